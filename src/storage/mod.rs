//! Durable state: one writer that commits groups of transactions, a few readers, and one file of SQL per table group.
//!
//! Statements use `$1` placeholders and portable upserts, so that a second backend shares them; only `migrations/` knows column
//! types. Every write is a [`Transaction`] with a name, run by the one [`Writer`]: nothing is acknowledged before its commit.

pub mod accounts;
pub mod answers;
pub mod blocks;
pub mod clients;
pub mod dead_letters;
pub mod deliveries;
pub mod groups;
pub mod housekeeping;
mod invites;
pub mod key_packages;
pub mod lanes;
pub mod lanes_in;
pub mod peers;
pub mod probe;
pub mod queues;
pub mod roots;
pub mod settings;
pub mod status;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use tokio::time::{Instant, sleep};

use crate::base::fault::{Context as _, Fault};
use crate::base::limits::{DATA_LOCK_WAIT, DATABASE_READERS};
use writer::Writer;
pub use writer::WriterCounts;

/// The connection type of the backend; statements are written against it.
pub type Connection = SqliteConnection;

/// A named write: all of it happens or none of it. `apply` may run a second time when another write of the same batch failed,
/// so it takes `&self` and keeps nothing outside the connection.
pub trait Transaction: Send + Sync + 'static {
    /// Its name, for logs and metrics.
    const NAME: &'static str;
    /// What the writer learns, once it is on disk.
    type Answer: Send + 'static;
    /// Runs its statements.
    fn apply(&self, connection: &mut Connection) -> impl Future<Output = Result<Self::Answer, Fault>> + Send;
}

/// A node's database.
pub struct Storage {
    writer: Writer,
    readers: SqlitePool,
    // Held by a node as long as the database is open: two of them would each trust their own memory.
    _lock: Option<std::fs::File>,
}

/// The database's file within the data directory.
pub const DATABASE_FILE: &str = "node.sqlite";

impl Storage {
    /// Opens the database in `directory`, making or migrating it as needed, and locks it against a second instance.
    pub async fn open(directory: &Path) -> Result<Self, Fault> {
        let lock = lock(directory).await?;
        Self::open_file(&directory.join(DATABASE_FILE), Some(lock)).await
    }

    /// Opens an existing database beside a node that may be using it, for an operator's command. Its writes wait their turn.
    pub async fn open_beside(directory: &Path) -> Result<Self, Fault> {
        let path = directory.join(DATABASE_FILE);
        if !path.exists() {
            return Err(Fault::new(format!("there is no node in {}: run `mimi-node init` first", directory.display())));
        }
        Self::open_file(&path, None).await
    }

    async fn open_file(path: &Path, lock: Option<std::fs::File>) -> Result<Self, Fault> {
        let options = options(path)?;
        restrict(path)?;
        let mut connection = writer::connect(&options).await?;
        if lock.is_some() {
            // Only the node itself, which holds the lock, changes the schema.
            let migrated = migrator().run(&mut connection).await;
            migrated.with_context(|| format!("could not bring {} up to date", path.display()))?;
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(DATABASE_READERS)
            .connect_with(options.clone().read_only(true))
            .await
            .with_context(|| format!("could not open {} for reading", path.display()))?;
        Ok(Self { writer: Writer::start(options, connection), readers, _lock: lock })
    }

    /// Runs a write and returns once it is on disk.
    pub async fn write<T: Transaction>(&self, transaction: T) -> Result<T::Answer, Fault> {
        self.writer.submit(transaction).await?.await
    }

    /// Queues a write behind those queued before it; the returned future resolves once it is on disk.
    pub async fn queue_write<T: Transaction>(
        &self,
        transaction: T,
    ) -> Result<impl Future<Output = Result<T::Answer, Fault>> + Send + use<T>, Fault> {
        self.writer.submit(transaction).await
    }

    /// What was written since the start.
    pub fn writes(&self) -> &WriterCounts {
        self.writer.counts()
    }

    /// Finishes the queued writes and closes the database. The writer goes last: the last connection to close empties the
    /// write-ahead log, which a reader may not.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.stop().await;
    }

    fn readers(&self) -> &SqlitePool {
        &self.readers
    }
}

fn options(path: &Path) -> Result<SqliteConnectOptions, Fault> {
    Ok(SqliteConnectOptions::from_str("sqlite://")
        .context("the database driver refused its own scheme")?
        .filename(path)
        .create_if_missing(true)
        // Both are needed for an acknowledged row to survive a power cut.
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(std::time::Duration::from_secs(10)))
}

/// The backend's migrations, in order.
fn migrator() -> Migrator {
    let migrations = [
        (1, "initial", include_str!("migrations/sqlite/0001_initial.sql")),
        (2, "delivery", include_str!("migrations/sqlite/0002_delivery.sql")),
        (3, "queues", include_str!("migrations/sqlite/0003_queues.sql")),
        (4, "peers", include_str!("migrations/sqlite/0004_peers.sql")),
        (5, "dead_letters", include_str!("migrations/sqlite/0005_dead_letters.sql")),
        (6, "as_roots", include_str!("migrations/sqlite/0006_as_roots.sql")),
    ];
    let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sqlx::SqlStr::from_static(sql), false)
    };
    Migrator::with_migrations(migrations.into_iter().map(migration).collect())
}

/// Holds the data directory for this process. Whoever holds it is given a moment: a node that is just ending, or a child of it that
/// is not its own program yet.
async fn lock(directory: &Path) -> Result<std::fs::File, Fault> {
    let path: PathBuf = directory.join("lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("could not open {}: does the data directory exist (`mimi-node init`)?", path.display()))?;
    let patience = Instant::now() + DATA_LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < patience => sleep(DATA_LOCK_WAIT / 50).await,
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Fault::new(format!("{} is in use by another mimi-node: stop it first", directory.display())));
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(Fault::because(format!("could not lock {}", path.display()), error));
            }
        }
    }
}

/// The database holds private keys: nobody else reads it. Made before SQLite opens it, which gives the write-ahead log the same
/// permissions.
fn restrict(path: &Path) -> Result<(), Fault> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let failed = || format!("could not restrict the permissions of {}", path.display());
    std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).with_context(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(failed)
}

/// `($1, $2), ($3, $4), …`: the VALUES of a multi-row statement.
fn rows(rows: usize, columns: usize) -> String {
    let mut next = 1;
    let mut text = String::with_capacity(rows * columns * 5);
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            if column > 0 {
                text.push_str(", ");
            }
            text.push('$');
            text.push_str(&next.to_string());
            next += 1;
        }
        text.push(')');
    }
    text
}

/// `$first, $first+1, …`: the list of an IN with `count` values.
fn list(first: usize, count: usize) -> String {
    (first..first + count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

/// The last `n` of rows (n, octets) that together have at most `octets_max` octets; the first one counts whatever its size.
fn last_within(sizes: &[sqlx::sqlite::SqliteRow], octets_max: usize) -> Result<Option<i64>, sqlx::Error> {
    use sqlx::Row as _;
    let (mut last, mut octets) = (None, 0);
    for row in sizes {
        octets += unsigned(row.try_get("octets")?);
        if last.is_some() && octets > octets_max as u64 {
            break;
        }
        last = Some(row.try_get("n")?);
    }
    Ok(last)
}

/// Rows per multi-row statement: few statements, each far below the backends' limit on parameters.
const ROWS_PER_STATEMENT: usize = 50;

/// A count or number of the protocol as the databases know it. All of ours stay far below 2^63.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// And back; a negative one was never written by us and reads as 0.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
