//! What a start costs does not depend on how many groups there are.
//!
//! A start is looked at in a process of its own, in which sqlx tells of each statement to a subscriber that only counts. That
//! process is this test program again, told so by a variable.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, Row as _};
use tracing::field::{Field, Visit};
use tracing::span;

use crate::base::UnixMillis;
use crate::ds::state::{Head, Member, QueueAddress};
use crate::identity::TlsCa;
use crate::node::config::Listen;
use crate::node::init::NewNode;
use crate::node::{Config, Node};
use crate::storage::DATABASE_FILE;

/// The configuration of the node whose start is to be counted.
const CONFIGURATION: &str = "MIMI_TEST_START";

/// A statement, and how many rows it gave.
type Statement = (String, u64);

static STATEMENTS: Mutex<Vec<Statement>> = Mutex::new(Vec::new());

/// Hears of sqlx's statements and of nothing else.
struct Counter;

impl tracing::Subscriber for Counter {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut told = Told::default();
        event.record(&mut told);
        // A statement of four words or fewer is its own summary.
        let text = if told.statement.trim().is_empty() { told.summary } else { told.statement };
        let words: Vec<&str> = text.split_whitespace().collect();
        STATEMENTS.lock().expect("nobody panics").push((words.join(" "), told.rows));
    }
}

#[derive(Default)]
struct Told {
    summary: String,
    statement: String,
    rows: u64,
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.statement),
            _ => {}
        }
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "rows_returned" {
            self.rows = value;
        }
    }
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

/// A start is over when no statement has followed for so long. Workers and housekeeping take their first turn in it.
const QUIET: Duration = Duration::from_secs(1);

/// In the process of its own: starts the node and prints its statements. Without the variable it has nothing to do.
#[test]
fn a_start_tells_its_statements() {
    let Some(path) = std::env::var_os(CONFIGURATION) else { return };
    tracing::subscriber::set_global_default(Counter).expect("nobody else listens");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let config = Config::load(Path::new(&path)).expect("a configuration");
    let begun = Instant::now();
    let node = runtime.block_on(Node::start(&config)).expect("it starts");
    let took = begun.elapsed();
    let told = || STATEMENTS.lock().expect("nobody panics").len();
    loop {
        let before = told();
        std::thread::sleep(QUIET);
        if told() == before {
            break;
        }
        assert!(begun.elapsed() < 30 * QUIET, "it goes on and on: {:?}", STATEMENTS.lock());
    }
    let statements = std::mem::take(&mut *STATEMENTS.lock().expect("nobody panics"));
    println!("start: {}", serde_json::to_string(&(took.as_millis(), statements)).expect("encodes"));
    runtime.block_on(node.stop()).expect("it stops");
}

/// Milliseconds and statements of the start of the node with this configuration.
fn start(config: &Path) -> (u128, Vec<Statement>) {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "tests::start::a_start_tells_its_statements", "--nocapture"]).env(CONFIGURATION, config);
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let line = said.lines().find_map(|line| line.split_once("start: ").map(|(_, json)| json.to_owned()));
    serde_json::from_str(&line.unwrap_or_else(|| panic!("{said}"))).expect("what it printed")
}

/// Groups of one member as storage would have them, numbered up to `count`.
async fn fill(connection: &mut SqliteConnection, count: u32) {
    let now = UnixMillis::now();
    let member = Member {
        signature_key: vec![1; 32],
        client: "mimi://a.test/d/alice/phone".parse().expect("a client"),
        queue: QueueAddress { domain: "a.test".parse().expect("a domain"), information: vec![2; 150] },
        joined_epoch: 0,
        user_key_hash: [3; 32],
        heard_at_ms: now.0,
        not_after_ms: u64::MAX,
    };
    let numbers = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < $1) ";
    let id = "'mimi://a.test/g/' || n";
    for statement in [
        format!("INSERT INTO groups (group_id, revision, head, group_info) {numbers} SELECT {id}, 0, $2, x'00' FROM numbers"),
        format!("INSERT INTO group_snapshots (group_id, epoch, record) {numbers} SELECT {id}, 0, zeroblob(700) FROM numbers"),
        format!("INSERT INTO group_log (group_id, epoch, record) {numbers} SELECT {id}, 1, zeroblob(1500) FROM numbers"),
    ] {
        let query = sqlx::query(AssertSqlSafe(statement)).bind(count).bind(Head::default().to_record().expect("encodes"));
        query.execute(&mut *connection).await.expect("filled");
    }
    let statement = format!(
        "INSERT INTO group_members (group_id, leaf_index, record, user_uri, client_key, user_key, heard_at_ms, expires_at_ms) \
         {numbers} SELECT {id}, 0, $2, 'mimi://a.test/u/user' || (n % 1000), randomblob(32), randomblob(32), $3, $4 FROM numbers"
    );
    let query = sqlx::query(AssertSqlSafe(statement)).bind(count).bind(member.to_record().expect("encodes"));
    query.bind(now.0 as i64).bind(i64::MAX).execute(&mut *connection).await.expect("filled");
}

// Shows: statements and the rows they give are the same when a node with 10 groups starts and when one with 100,000 does, and none
// of them reads a whole table of groups. Both times are printed and not judged.
#[tokio::test]
async fn a_start_reads_the_same_for_10_and_for_100_000_groups() {
    let directory = tempfile::tempdir().expect("a directory");
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let domain = "a.test".parse().expect("a domain");
    let ca = TlsCa::create("test CA", UnixMillis::now()).expect("a CA");
    let mut starts = Vec::new();
    for groups in [10, 100_000] {
        let path = directory.path().join(groups.to_string());
        let listen = Listen { federation: loopback, client: loopback };
        let new =
            NewNode { domain: &domain, directory: &path, listen, dns: vec!["127.0.0.1:9".parse().expect("an address")], ca: &ca };
        let config = new.set_up().await.expect("set up");
        let options = SqliteConnectOptions::new().filename(path.join("data").join(DATABASE_FILE)).disable_statement_logging();
        let mut connection = options.connect().await.expect("the database");
        connection.execute("PRAGMA synchronous = OFF; BEGIN").await.expect("begun");
        fill(&mut connection, groups).await;
        connection.execute("COMMIT").await.expect("filled");
        let (took, statements) = start(&config);
        println!("{groups} groups: {} statements, {took} ms", statements.len());
        let tables = ["groups", "group_members", "group_snapshots", "group_log"];
        let explained = ["SELECT", "DELETE", "UPDATE"];
        for (statement, _) in statements.iter().filter(|(statement, _)| explained.iter().any(|verb| statement.starts_with(verb)))
        {
            let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"))).fetch_all(&mut connection).await;
            for step in plan.expect("a plan") {
                let detail: String = step.try_get("detail").expect("a text");
                let scans = |table: &&str| format!("{detail} ").starts_with(&format!("SCAN {table} "));
                assert!(!tables.iter().any(scans), "{statement}: {detail}");
            }
        }
        // How often the same is read, by how many workers and connections, is a matter of timing.
        starts.push(statements.into_iter().collect::<BTreeSet<_>>());
    }
    assert!(starts[0].len() > 3, "sqlx tells of statements: {:?}", starts[0]);
    assert_eq!(starts[0], starts[1]);
}
