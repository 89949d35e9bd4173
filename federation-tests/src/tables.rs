//! What is in a node's database, as one digest per table: equal before and after means that nothing changed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mimi_node::base::{Context as _, Fault};
use sha2::{Digest as _, Sha256};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Column as _, ConnectOptions as _, Row as _, TypeInfo as _, ValueRef as _};

/// Every table that a request may change. `domains` is not one of them: what another domain publishes is pinned whenever its
/// credentials are first looked at, whatever becomes of the request that brought them.
const TABLES: [&str; 25] = [
    "groups",
    "group_members",
    "group_snapshots",
    "group_log",
    "answers",
    "bodies",
    "queues",
    "queue_entries",
    "key_packages",
    "lanes",
    "lane_frames",
    "lanes_in",
    "lane_answers",
    "users",
    "queue_markers",
    "deleted_queues",
    "invite_claims",
    "invite_bindings",
    "key_package_references",
    "client_keys",
    "revoked_keys",
    "blocks",
    "user_hubs",
    "as_roots",
    "root_statements",
];

/// How long frames may take to their remote domains before a test gives up on them.
const QUIET_TIMEOUT: Duration = Duration::from_secs(60);

/// A database opened beside its node.
pub struct Tables {
    connection: SqliteConnection,
}

/// Rows and digest of each table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents(BTreeMap<&'static str, (usize, String)>);

impl Contents {
    /// How many rows a table has.
    pub fn rows(&self, table: &str) -> usize {
        self.0.get(table).map_or(0, |(rows, _)| *rows)
    }

    /// The tables that differ from `before`, with their rows then and now.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let differ = |(table, now): (&&'static str, &(usize, String))| {
            let then = before.0.get(*table)?;
            (then != now).then(|| format!("{table}: {} rows, then {}", then.0, now.0))
        };
        self.0.iter().filter_map(differ).collect()
    }
}

impl Tables {
    /// Opens the database in a node's data directory.
    pub async fn open(data: &Path) -> Result<Self, Fault> {
        let options = SqliteConnectOptions::new().filename(data.join("node.sqlite")).read_only(true);
        let connection = options.connect().await.context("cannot open a node's database beside it")?;
        Ok(Self { connection })
    }

    /// What is in the tables now.
    pub async fn contents(&mut self) -> Result<Contents, Fault> {
        let mut contents = BTreeMap::new();
        // One transaction, hence one state of the database.
        let mut transaction = sqlx::Connection::begin(&mut self.connection).await.context("cannot read a database")?;
        for table in TABLES.into_iter().chain(["invitations"]) {
            let statement = format!("SELECT * FROM {table}");
            let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut *transaction).await.context("cannot read a table")?;
            let mut lines = rows.iter().map(digest_of_row).collect::<Result<Vec<_>, Fault>>()?;
            lines.sort_unstable();
            let digest = Sha256::digest(lines.concat());
            contents.insert(table, (rows.len(), digest.iter().map(|octet| format!("{octet:02x}")).collect()));
        }
        transaction.rollback().await.context("cannot end reading")?;
        Ok(Contents(contents))
    }

    /// Waits until no frame waits for another domain, then tells what is there: what was accepted before has arrived.
    pub async fn quiet(&mut self) -> Result<Contents, Fault> {
        let waited = tokio::time::timeout(QUIET_TIMEOUT, async {
            loop {
                let contents = self.contents().await?;
                if contents.rows("lane_frames") == 0 {
                    return Ok(contents);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.context("frames for another domain did not leave")?
    }
}

fn digest_of_row(row: &sqlx::sqlite::SqliteRow) -> Result<Vec<u8>, Fault> {
    let failed = "a row cannot be read";
    let mut digest = Sha256::new();
    for column in row.columns() {
        let raw = row.try_get_raw(column.ordinal()).context(failed)?;
        let octets = match raw.type_info().name() {
            "NULL" => Vec::new(),
            "INTEGER" => row.try_get::<i64, _>(column.ordinal()).context(failed)?.to_be_bytes().to_vec(),
            "TEXT" => row.try_get::<String, _>(column.ordinal()).context(failed)?.into_bytes(),
            _ => row.try_get::<Vec<u8>, _>(column.ordinal()).context(failed)?,
        };
        digest.update((octets.len() as u64).to_be_bytes());
        digest.update(octets);
    }
    Ok(digest.finalize().to_vec())
}
