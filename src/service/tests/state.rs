//! What a node keeps of a group: how it grows, and that records of another version are never read by guess.

use super::super::testing::{TestNode, Via};
use crate::base::Fault;
use crate::ds::state::{Head, Member};
use crate::mls::Tree;
use crate::synth::Change;
use crate::tests::forged::Device;
use crate::wire::ds::DsRequest;

/// The tables of a group's state.
const TABLES: [&str; 4] = ["groups", "group_members", "group_snapshots", "group_log"];

/// What the tables of a group's state take, in octets: records are shown in hexadecimal, and are most of it.
async fn stored_octets(node: &TestNode) -> usize {
    let tables = node.tables().await;
    TABLES.iter().flat_map(|table| tables.rows(table)).map(|row| row.len() / 2).sum()
}

// Shows: 1,000 Commits, each of which adds one user who is never heard of, so that everybody's past state is kept, grow what is
// stored of the group in proportion to the Commits: not to the sum of trees of all sizes, which would be hundreds of megabytes.
#[tokio::test]
async fn a_thousand_one_add_commits_grow_the_database_linearly() {
    const COMMITS: usize = 1_000;
    let node = TestNode::new().await;
    let alice = node.device("alice@a.test").await;
    let (mut room, request) = node.creation(&alice).await;
    node.accepts(Via::Home(&alice), &request).await;
    let root = &node.as_roots[&"b.test".parse().expect("a domain")];
    let (mut committed, mut halfway) = (0, (0, 0));
    for number in 1..=COMMITS {
        let new = Device::new(root, &format!("user{number}"));
        let add = vec![new.key_package(Some(&new.opaque_queue()))];
        // Without a path: its Commits are the smallest there are.
        let forged = room.group.commit(0, Change { add, without_path: true, ..Change::default() }).expect("a Commit");
        let request = room.request(0, DsRequest::AddUsers(room.add_body(&forged)));
        node.accepts(Via::Home(&alice), &request).await;
        committed += forged.commit.len();
        if number == COMMITS / 2 {
            halfway = (stored_octets(&node).await, committed);
        }
    }
    let stored = stored_octets(&node).await;
    println!("{COMMITS} Commits of {committed} octets: {stored} octets stored; half of them: {} of {}", halfway.0, halfway.1);
    assert!(stored <= 4 * committed, "{stored} octets stored for Commits of {committed}");
    let half = halfway.0;
    assert!(stored <= 5 * half / 2, "twice the Commits take {stored} instead of {half}");
}

/// The octets of the last column of a table's first row.
fn record(rows: &[String]) -> Vec<u8> {
    let (_, hex) = rows.first().and_then(|row| row.rsplit_once("X'")).expect("a record");
    crate::base::bytes::unhex(&hex.trim_end_matches('\'').to_ascii_lowercase()).expect("hexadecimal")
}

/// Every other first octet is refused with a sentence, and so is no octet at all.
fn refuses_other_formats<T>(what: &str, record: &[u8], read: impl Fn(&[u8]) -> Result<T, Fault>) {
    let ours = record[0];
    assert!(read(record).is_ok(), "{what}");
    assert!(read(&[]).is_err_and(|fault| fault.to_string().contains("empty")), "{what}");
    for format in (0..=u8::MAX).filter(|format| *format != ours) {
        let mut other = record.to_vec();
        other[0] = format;
        let fault = read(&other).err().expect("refused").to_string();
        assert!(fault.contains(&format!("format {format}, this version reads format {ours}")), "{what}: {fault}");
    }
}

#[tokio::test]
async fn records_of_an_unknown_format_are_a_clear_error() {
    let node = TestNode::new().await;
    let room = node.room(&["alice@a.test", "bob@b.test"]).await;
    let id = room.uri.to_bytes();
    let storage = node.service.storage();
    let state = storage.group_state(&room.uri).await.expect("readable").expect("there");
    refuses_other_formats("a head", &state.head.to_record().expect("encodes"), Head::from_record);
    refuses_other_formats("a member", &state.members[&1].to_record().expect("encodes"), Member::from_record);
    let tables = node.tables().await;
    let (snapshot, log) = (record(tables.rows("group_snapshots")), record(tables.rows("group_log")));
    refuses_other_formats("a snapshot", &snapshot, |octets| Tree::restore(&id, octets, [&log[..]]));
    refuses_other_formats("a log record", &log, |octets| Tree::restore(&id, &snapshot, [octets]));
    // A truncated record of the right format is an error, too.
    for length in 1..snapshot.len() {
        assert!(Tree::restore(&id, &snapshot[..length], []).is_err(), "{length} octets of a snapshot");
    }
}
