//! The one writer: it drains its queue into one database transaction, commits, and only then answers everyone. No artificial
//! delay: batches form under load, because a commit takes as long as the disk needs.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Instant;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Connection, Transaction};
use crate::base::count::{Counter, Histogram};
use crate::base::fault::{Context as _, Fault};
use crate::base::limits::{WRITER_BATCH_MAX, WRITER_QUEUE_MAX};

type Boxed<'a> = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>>;

/// A queued write, its types erased.
trait Job: Send {
    fn name(&self) -> &'static str;
    /// Runs the statements and keeps the answer back.
    fn apply<'a>(&'a mut self, connection: &'a mut Connection) -> Boxed<'a>;
    /// The transaction is on disk: hands the answer out.
    fn committed(self: Box<Self>);
    /// It is not, or nobody knows.
    fn failed(self: Box<Self>, fault: Fault);
}

struct Queued<T: Transaction> {
    transaction: T,
    answer: Option<T::Answer>,
    to: oneshot::Sender<Result<T::Answer, Fault>>,
}

impl<T: Transaction> Job for Queued<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn apply<'a>(&'a mut self, connection: &'a mut Connection) -> Boxed<'a> {
        Box::pin(async {
            self.answer = Some(self.transaction.apply(connection).await?);
            Ok(())
        })
    }

    fn committed(self: Box<Self>) {
        let answer = self.answer.context("a write was committed without having run");
        // Whoever asked may have gone away; what is written stays written.
        let _ = self.to.send(answer);
    }

    fn failed(self: Box<Self>, fault: Fault) {
        let _ = self.to.send(Err(fault));
    }
}

/// What the writer has done since the start.
#[derive(Debug)]
pub struct WriterCounts {
    /// How many writes each database transaction carried.
    pub batch_writes: Histogram,
    /// How long each database transaction took, commit included, in seconds.
    pub commit_seconds: Histogram,
    /// Database transactions that failed, and so are not or perhaps not on disk. One whose writes then passed one by one counts, too.
    pub failures: Counter,
    /// Writes that are on disk, by name. Locked once for each database transaction, by the writer.
    by_name: SyncMutex<BTreeMap<&'static str, u64>>,
    /// Why the database could not be written the last time; `None` after a success.
    trouble: SyncMutex<Option<String>>,
}

impl Default for WriterCounts {
    fn default() -> Self {
        Self {
            batch_writes: Histogram::new(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
            commit_seconds: Histogram::new(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]),
            failures: Counter::default(),
            by_name: SyncMutex::default(),
            trouble: SyncMutex::default(),
        }
    }
}

impl WriterCounts {
    /// How many writes of each name are on disk since the start; a name that was not used yet is missing.
    pub fn by_name(&self) -> BTreeMap<&'static str, u64> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the database could not be written the last time that it was tried; `None` when all is well. That one write is at fault
    /// itself is no trouble of the database.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ended(&self, jobs: &[Box<dyn Job>], ended: &Ended) {
        let trouble = match ended {
            Ended::OnDisk => {
                self.batch_writes.observe(jobs.len() as u64);
                let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
                jobs.iter().for_each(|job| *by_name.entry(job.name()).or_default() += 1);
                None
            }
            Ended::NotWritten(_) => return self.failures.one(),
            Ended::NotBegun(fault) | Ended::Unknown(fault) => {
                self.failures.one();
                Some(fault.to_string())
            }
        };
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Box<dyn Job>>>>,
    task: Mutex<Option<JoinHandle<()>>>,
    counts: Arc<WriterCounts>,
}

impl Writer {
    pub(super) fn start(options: SqliteConnectOptions, connection: Connection) -> Self {
        let (sender, receiver) = mpsc::channel(WRITER_QUEUE_MAX);
        let counts = Arc::<WriterCounts>::default();
        let task = tokio::spawn(run(options, connection, receiver, counts.clone()));
        Self { jobs: Mutex::new(Some(sender)), task: Mutex::new(Some(task)), counts }
    }

    pub(super) fn counts(&self) -> &WriterCounts {
        &self.counts
    }

    /// Queues a write. The order of two submissions that follow each other is the order of their writes.
    pub(super) async fn submit<T: Transaction>(
        &self,
        transaction: T,
    ) -> Result<impl Future<Output = Result<T::Answer, Fault>> + Send + use<T>, Fault> {
        let (to, answer) = oneshot::channel();
        let sender = self.jobs.lock().await.clone().context("the database is closed")?;
        let job: Box<dyn Job> = Box::new(Queued { transaction, answer: None, to });
        sender.send(job).await.map_err(|_| Fault::new("the database writer has ended"))?;
        Ok(async move { answer.await.context("the database writer has ended")? })
    }

    /// Finishes what is queued and closes the connection.
    pub(super) async fn stop(&self) {
        self.jobs.lock().await.take();
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!("the database writer ended badly: {error}");
        }
    }
}

pub(super) async fn connect(options: &SqliteConnectOptions) -> Result<Connection, Fault> {
    options.connect().await.with_context(|| format!("could not open {}", options.get_filename().display()))
}

async fn run(
    options: SqliteConnectOptions,
    connection: Connection,
    mut jobs: mpsc::Receiver<Box<dyn Job>>,
    counts: Arc<WriterCounts>,
) {
    let mut connection = Some(connection);
    let mut batch = Vec::with_capacity(WRITER_BATCH_MAX);
    while jobs.recv_many(&mut batch, WRITER_BATCH_MAX).await > 0 {
        let jobs = std::mem::take(&mut batch);
        write_batch(&options, &mut connection, jobs, &counts).await;
    }
    if let Some(connection) = connection
        && let Err(error) = connection.close().await
    {
        tracing::warn!("could not close the database cleanly: {error}");
    }
}

/// How a batch ended.
enum Ended {
    OnDisk,
    /// A write of the batch failed before the commit: certainly not on disk.
    NotWritten(Fault),
    /// The database could not even be asked.
    NotBegun(Fault),
    /// The commit itself failed: nobody knows (every write has an idempotency key for this).
    Unknown(Fault),
}

async fn write_batch(
    options: &SqliteConnectOptions,
    connection: &mut Option<Connection>,
    mut jobs: Vec<Box<dyn Job>>,
    counts: &WriterCounts,
) {
    let begun = Instant::now();
    let ended = attempt(options, connection, &mut jobs).await;
    counts.commit_seconds.observe_time(begun.elapsed());
    counts.ended(&jobs, &ended);
    match ended {
        Ended::OnDisk => {
            #[cfg(feature = "fault-points")]
            crate::base::fault_points::reached("committed", || jobs.iter().map(|job| job.name()).collect::<Vec<_>>().join(" "));
            for job in jobs {
                job.committed();
            }
        }
        Ended::Unknown(fault) => {
            tracing::error!("a database commit failed: {fault}");
            fail_all(jobs, &fault);
        }
        Ended::NotBegun(fault) => {
            tracing::error!("the database cannot be written: {fault}");
            fail_all(jobs, &fault);
        }
        Ended::NotWritten(fault) if jobs.len() == 1 => {
            tracing::error!("database write {} failed: {fault}", jobs.first().map_or("", |job| job.name()));
            fail_all(jobs, &fault);
        }
        // One of them is at fault; alone, each is answered for itself.
        Ended::NotWritten(_) => {
            for job in jobs {
                Box::pin(write_batch(options, connection, vec![job], counts)).await;
            }
        }
    }
}

fn fail_all(jobs: Vec<Box<dyn Job>>, fault: &Fault) {
    for job in jobs {
        job.failed(Fault::new(fault.to_string()));
    }
}

async fn attempt(options: &SqliteConnectOptions, slot: &mut Option<Connection>, jobs: &mut [Box<dyn Job>]) -> Ended {
    // After any error the connection is thrown away: sqlx may believe in a transaction that the database does not know, and
    // what follows on it would be lost.
    let mut connection = match slot.take() {
        Some(connection) => connection,
        None => match connect(options).await {
            Ok(connection) => connection,
            Err(fault) => return Ended::NotBegun(fault),
        },
    };
    let ended = async {
        let mut transaction = match connection.begin_with("BEGIN IMMEDIATE").await {
            Ok(transaction) => transaction,
            Err(error) => return Ended::NotBegun(Fault::because("could not begin a transaction", error)),
        };
        for job in jobs {
            if let Err(fault) = job.apply(&mut transaction).await {
                return Ended::NotWritten(fault);
            }
        }
        match transaction.commit().await {
            Ok(()) => Ended::OnDisk,
            Err(error) => Ended::Unknown(Fault::because("could not commit", error)),
        }
    }
    .await;
    match ended {
        Ended::OnDisk => *slot = Some(connection),
        Ended::NotWritten(_) | Ended::NotBegun(_) | Ended::Unknown(_) => {
            if let Err(error) = connection.close_hard().await {
                tracing::warn!("could not close a failed database connection: {error}");
            }
        }
    }
    ended
}
