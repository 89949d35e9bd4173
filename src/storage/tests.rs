//! What storage promises, on a real database: all or nothing, gapless sequences, one body per message, repeats change nothing.

#![allow(clippy::panic)]

use sqlx::Row as _;

use super::answers::{Known, RequestKey, StoredAnswer};
use super::deliveries::{DeliveryWrite, LocalRecipient};
use super::groups::{AcceptRequest, Acceptance, GroupChange, MemberRow, WriteSnapshot};
use super::lanes::{Delivered, DropFrames};
use super::lanes_in::{ArrivedFrame, TakeFrames, Taken};
use super::queues::{AckEntries, CreateQueue, Created, DeleteQueue};
use super::*;
use crate::base::ids::{Incarnation, QueueId, RequestId};
use crate::base::limits::Limits;
use crate::base::{Domain, UnixMillis};
use crate::ds::state::{Head, Member};
use crate::qs::lanes::FrameHead;
use crate::qs::queue::QueueLimits;
use crate::wire::encode;
use crate::wire::qs::{DeliveredMessage, Delivery};

mod lanes;
mod queues;

const NOW: UnixMillis = UnixMillis(1_000_000);
const GROUP: &str = "mimi://a.test/g/1";

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

async fn open() -> (tempfile::TempDir, Storage) {
    let directory = tempfile::tempdir().expect("a directory");
    let storage = Storage::open(directory.path()).await.expect("a database");
    (directory, storage)
}

fn key(number: u8, digest: u8) -> RequestKey {
    RequestKey::new(b"sender", RequestId([number; 16]), [digest; 32])
}

async fn queue(storage: &Storage, number: u8) -> LocalRecipient {
    let queue_id = QueueId([number; 16]);
    let create = CreateQueue {
        key: key(200 + number, 0),
        response: Vec::new(),
        answer_expires_at: NOW,
        queue_id,
        owner_key: vec![number; 32],
        client: format!("mimi://a.test/d/user{number}/phone").parse().expect("a client"),
        client_key_hash: [number; 32],
        generation: 1,
        limits: Limits::default(),
        now: NOW,
    };
    assert_eq!(storage.write(create).await.expect("written"), Created::Done);
    LocalRecipient { queue_id, generation: 1, invite: None }
}

async fn delete(storage: &Storage, queue_id: QueueId) {
    let key = RequestKey::new(b"owner", RequestId(queue_id.0), [0; 32]);
    let delete = DeleteQueue { key, response: Vec::new(), answer_expires_at: NOW, queue_id };
    assert_eq!(storage.write(delete).await.expect("written"), None);
}

fn delivery(local: Vec<LocalRecipient>, remote: &[&str]) -> DeliveryWrite {
    DeliveryWrite {
        hub: domain("a.test"),
        group_id: GROUP.to_owned(),
        epoch: 1,
        delivery: encode(&Delivery::Message(DeliveredMessage { message: vec![7; 10].into(), receipt: None })),
        tells_loss: false,
        now: NOW,
        local,
        limits: QueueLimits { entries_max: 10_000, octets_max: 1_000_000 },
        remote: remote.iter().map(|name| (domain(name), b"recipients".to_vec())).collect(),
    }
}

fn accept(number: u8, revision: Option<u64>, deliveries: Vec<DeliveryWrite>) -> AcceptRequest {
    let head = Head::default().to_record().expect("a record");
    let change = GroupChange { head, group_info: Some(vec![1]), ..GroupChange::default() };
    AcceptRequest {
        answer: Some(StoredAnswer { key: key(number, number), response: vec![number], expires_at: NOW }),
        group_id: GROUP.to_owned(),
        revision,
        change: revision.is_none().then_some(change),
        deliveries,
    }
}

/// Every row of every table, as text: what "nothing changed" means.
async fn dump(storage: &Storage) -> Vec<String> {
    let names =
        sqlx::query("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetch_all(storage.readers()).await;
    let mut rows = Vec::new();
    for table in names.expect("readable").iter().map(|row| row.try_get::<String, _>("name").expect("a name")) {
        let found = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT * FROM {table}"))).fetch_all(storage.readers()).await;
        for row in found.expect("readable") {
            let columns = (0..row.len()).map(|column| {
                let text =
                    row.try_get::<String, _>(column).or_else(|_| row.try_get::<i64, _>(column).map(|value| value.to_string()));
                text.unwrap_or_else(|_| format!("{:?}", row.try_get::<Vec<u8>, _>(column)))
            });
            rows.push(format!("{table}: {}", columns.collect::<Vec<_>>().join(" | ")));
        }
    }
    rows
}

async fn count(storage: &Storage, table: &str) -> i64 {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT COUNT(*) AS n FROM {table}")));
    row.fetch_one(storage.readers()).await.expect("readable").try_get("n").expect("a number")
}

#[tokio::test]
async fn a_request_is_accepted_once_with_its_answer_and_its_deliveries() {
    let (_directory, storage) = open().await;
    let (first, second) = (queue(&storage, 1).await, queue(&storage, 2).await);
    let created = storage.write(accept(1, None, Vec::new())).await.expect("written");
    assert_eq!(created, Acceptance::Written(Vec::new()));

    let both = vec![delivery(vec![first.clone(), second.clone()], &["b.test"])];
    let written = storage.write(accept(2, Some(0), both.clone())).await.expect("written");
    assert_eq!(written, Acceptance::Written(vec![vec![true, true]]));
    assert_eq!(count(&storage, "bodies").await, 1, "the body is stored once");

    let before = dump(&storage).await;
    // The same request again, the same id with other content, and one decided on an older state.
    let again = storage.write(accept(2, Some(0), both.clone())).await.expect("answered");
    assert_eq!(again, Acceptance::Known(Known::Answered(vec![2])));
    let other = AcceptRequest {
        answer: Some(StoredAnswer { key: key(2, 9), response: vec![2], expires_at: NOW }),
        ..accept(2, Some(0), both.clone())
    };
    assert_eq!(storage.write(other).await.expect("answered"), Acceptance::Known(Known::OtherContent));
    assert_eq!(storage.write(accept(3, Some(7), both.clone())).await.expect("answered"), Acceptance::Conflict);
    assert_eq!(storage.write(accept(4, None, Vec::new())).await.expect("answered"), Acceptance::Conflict, "the id is taken");
    assert_eq!(dump(&storage).await, before, "nothing changed");
}

#[tokio::test]
async fn sequences_have_no_gaps_and_a_body_lives_as_long_as_it_is_needed() {
    let (_directory, storage) = open().await;
    let (first, second) = (queue(&storage, 1).await, queue(&storage, 2).await);
    let gone = LocalRecipient { queue_id: QueueId([9; 16]), generation: 1, invite: None };
    let retired = LocalRecipient { generation: 0, ..second.clone() };
    storage.write(accept(1, None, Vec::new())).await.expect("written");
    for number in 0..120 {
        let recipients =
            vec![first.clone(), gone.clone(), first.clone(), if number % 2 == 0 { second.clone() } else { retired.clone() }];
        let request = accept(10 + number, Some(0), vec![delivery(recipients, &[])]);
        let Acceptance::Written(taken) = storage.write(request).await.expect("written") else { panic!("not written") };
        assert!(taken[0][0] && !taken[0][1], "a queue that is not there takes nothing");
    }
    let sequences = |entries: Vec<crate::wire::qs::QueueEntry>| entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>();
    assert_eq!(sequences(storage.entries(first.queue_id, 1, 500).await.expect("read")), (1..=120).collect::<Vec<_>>());
    assert_eq!(sequences(storage.entries(first.queue_id, 119, 500).await.expect("read")), [119, 120]);
    assert_eq!(count(&storage, "bodies").await, 120);

    storage.write(AckEntries { queue_id: first.queue_id, up_to: 100 }).await.expect("written");
    storage.write(AckEntries { queue_id: first.queue_id, up_to: 100 }).await.expect("a repeat changes nothing");
    assert_eq!(sequences(storage.entries(first.queue_id, 1, 500).await.expect("read")), (101..=120).collect::<Vec<_>>());
    let waiting = storage.entries(second.queue_id, 1, 500).await.expect("read").len();
    assert!(waiting >= 60, "the other queue is not touched");
    delete(&storage, second.queue_id).await;
    assert_eq!(count(&storage, "bodies").await, 20, "what no queue refers to is gone");
    delete(&storage, first.queue_id).await;
    assert_eq!(count(&storage, "bodies").await, 0);
}

#[tokio::test]
async fn lane_frames_wait_in_order_until_they_are_dropped() {
    let (_directory, storage) = open().await;
    storage.write(accept(1, None, Vec::new())).await.expect("written");
    for number in 0..3 {
        storage.write(accept(10 + number, Some(0), vec![delivery(Vec::new(), &["b.test", "c.test"])])).await.expect("written");
    }
    assert_eq!(storage.domains_with_frames().await.expect("read"), [domain("b.test"), domain("c.test")]);
    assert_eq!(storage.waiting_lanes(&domain("b.test"), "", 10).await.expect("read"), [GROUP]);
    assert!(storage.waiting_lanes(&domain("b.test"), GROUP, 10).await.expect("read").is_empty());
    let waiting = storage.waiting_frames(&domain("b.test"), GROUP, 0, 10, 1_000_000).await.expect("read");
    assert_eq!(waiting.iter().map(|frame| frame.lane_sequence).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(waiting.windows(2).all(|pair| pair[0].incarnation == pair[1].incarnation));
    let first = storage.waiting_frames(&domain("b.test"), GROUP, 0, 10, 1).await.expect("read");
    assert_eq!(first.len(), 1, "one at least, however large, and no more than fit");
    for _ in 0..2 {
        let drop = DropFrames {
            domain: domain("b.test"),
            lanes: vec![Delivered { group_id: GROUP.to_owned(), incarnation: waiting[0].incarnation, up_to: 2 }],
        };
        storage.write(drop).await.expect("written");
    }
    assert_eq!(storage.waiting_frames(&domain("b.test"), GROUP, 0, 10, 1_000_000).await.expect("read").len(), 1);
    assert_eq!(storage.waiting_frames(&domain("c.test"), GROUP, 0, 10, 1_000_000).await.expect("read").len(), 3);
    assert_eq!(count(&storage, "bodies").await, 3, "the other lane still needs them");
}

fn take(incarnation: u8, frames: &[(u64, u8)], recipient: &LocalRecipient) -> TakeFrames {
    let frame = |(lane_sequence, digest): &(u64, u8)| ArrivedFrame {
        head: FrameHead { lane_sequence: *lane_sequence, digest: [*digest; 32], is_reset: false },
        opened: vec![false, true],
        delivery: delivery(vec![recipient.clone()], &[]),
    };
    TakeFrames {
        hub: domain("h.test"),
        group_id: GROUP.to_owned(),
        incarnation: Incarnation([incarnation; 16]),
        frames: frames.iter().map(frame).collect(),
    }
}

#[tokio::test]
async fn a_lane_is_taken_once_in_order_and_without_gaps() {
    let (_directory, storage) = open().await;
    let recipient = queue(&storage, 1).await;
    let row = vec![false, true];
    let taken = storage.write(take(1, &[(1, 1), (2, 2)], &recipient)).await.expect("written");
    assert_eq!(taken, Taken::All(vec![row.clone(), row.clone()]));

    let before = dump(&storage).await;
    let repeat = storage.write(take(1, &[(1, 1), (2, 2)], &recipient)).await.expect("answered");
    assert_eq!(repeat, Taken::All(vec![row.clone(), row.clone()]), "a repeat is answered as before");
    assert_eq!(storage.write(take(1, &[(2, 9)], &recipient)).await.expect("answered"), Taken::Conflict);
    assert_eq!(storage.write(take(1, &[(4, 4)], &recipient)).await.expect("answered"), Taken::Gap(3));
    assert_eq!(storage.write(take(1, &[(1, 1), (2, 9), (3, 3)], &recipient)).await.expect("answered"), Taken::Conflict);
    assert_eq!(storage.write(take(2, &[(2, 2)], &recipient)).await.expect("answered"), Taken::Gap(1), "a new life begins at 1");
    assert_eq!(dump(&storage).await, before, "nothing changed");

    let partly_known = storage.write(take(1, &[(2, 2), (3, 3)], &recipient)).await.expect("written");
    assert_eq!(partly_known, Taken::All(vec![row.clone(), row.clone()]));
    assert_eq!(storage.entries(recipient.queue_id, 1, 10).await.expect("read").len(), 3);
    // So old that its answer is forgotten: the sender was slow to notice, not wrong.
    let later: Vec<(u64, u8)> = (4..=2_000).map(|sequence| (sequence, 7)).collect();
    storage.write(take(1, &later, &recipient)).await.expect("written");
    let old = storage.write(take(1, &[(1, 1)], &recipient)).await.expect("answered");
    assert_eq!(old, Taken::All(vec![vec![true, true]]));
    let before = dump(&storage).await;
    let new_life = storage.write(take(2, &[(1, 7)], &recipient)).await.expect("answered");
    assert_eq!(new_life, Taken::Conflict, "another life without a reset");
    assert_eq!(dump(&storage).await, before, "nothing changed");
    let mut reset = take(2, &[(1, 7), (2, 8)], &recipient);
    reset.frames[0].head.is_reset = true;
    reset.frames[0].delivery.tells_loss = true;
    assert_eq!(storage.write(reset).await.expect("written"), Taken::All(vec![row.clone(), row.clone()]));
    let next = storage.entries(recipient.queue_id, 2_001, 10).await.expect("read");
    assert_eq!(next.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [2_001, 2_002]);
    assert_eq!(next[0].delivery, Delivery::MessagesLost, "what the life before had not delivered is lost");
    let repeat = storage.write(take(2, &[(2, 8)], &recipient)).await.expect("answered");
    assert_eq!(repeat, Taken::All(vec![row]));
    let old_life = storage.write(take(1, &[(2_001, 1)], &recipient)).await.expect("answered");
    assert_eq!(old_life, Taken::Gap(1), "the life before is over");
}

#[tokio::test]
async fn snapshots_keep_what_a_pending_joiner_needs() {
    let (_directory, storage) = open().await;
    storage.write(accept(1, None, Vec::new())).await.expect("written");
    for epoch in 1..=6_u8 {
        let mut request = accept(10 + epoch, Some(u64::from(epoch) - 1), Vec::new());
        let head = Head { epoch: u64::from(epoch), ..Head::default() }.to_record().expect("a record");
        request.change = Some(GroupChange { head, log: Some((u64::from(epoch), vec![epoch])), ..GroupChange::default() });
        assert_eq!(storage.write(request).await.expect("written"), Acceptance::Written(Vec::new()));
    }
    let snapshot = |epoch, oldest_needed| WriteSnapshot { group_id: GROUP.to_owned(), epoch, record: vec![0], oldest_needed };
    storage.write(snapshot(2, 2)).await.expect("written");
    assert_eq!(count(&storage, "group_log").await, 4);
    // Somebody still waits for epoch 3: the snapshot of 2 and the log after it stay.
    storage.write(snapshot(5, 3)).await.expect("written");
    assert_eq!((count(&storage, "group_snapshots").await, count(&storage, "group_log").await), (2, 4));
    storage.write(snapshot(6, 6)).await.expect("written");
    assert_eq!((count(&storage, "group_snapshots").await, count(&storage, "group_log").await), (1, 0));
}

/// The epochs of the snapshots that are kept.
async fn snapshots(storage: &Storage) -> Vec<u64> {
    let rows = sqlx::query("SELECT epoch FROM group_snapshots ORDER BY epoch").fetch_all(storage.readers()).await;
    rows.expect("readable").iter().map(|row| unsigned(row.try_get("epoch").expect("a number"))).collect()
}

// Shows: however long somebody waits and however many others come, no more than three snapshots are kept, one of them not younger
// than the oldest epoch that is needed; and whoever never stops waiting for the last 500 epochs does not keep the log for ever.
#[tokio::test]
async fn three_snapshots_are_enough_for_whoever_waits() {
    const STEP: u64 = 64;
    let (_directory, storage) = open().await;
    let mut create = accept(1, None, Vec::new());
    if let Some(change) = &mut create.change {
        change.snapshot = Some((0, vec![1]));
    }
    storage.write(create).await.expect("written");
    let write = |epoch, oldest_needed| WriteSnapshot { group_id: GROUP.to_owned(), epoch, record: vec![1; 10], oldest_needed };
    for step in 1..=100 {
        let epoch = step * STEP;
        let oldest_needed = epoch.saturating_sub(500);
        storage.write(write(epoch, oldest_needed)).await.expect("written");
        let kept = snapshots(&storage).await;
        assert!(kept.len() <= 3, "{kept:?}");
        assert_eq!(kept.last(), Some(&epoch), "the newest, from which the group is loaded");
        assert!(kept.first().is_some_and(|first| *first <= oldest_needed), "{kept:?} and somebody needs {oldest_needed}");
        assert!(kept.first().is_some_and(|first| epoch - first <= 2 * 500 + 2 * STEP), "{kept:?} at {epoch}");
    }
    storage.write(write(101 * STEP, 101 * STEP)).await.expect("written");
    assert_eq!(snapshots(&storage).await, [101 * STEP], "nobody waits any more");
}

/// A write that fails after it has written, or does not.
struct Scribble {
    name: &'static str,
    fails: bool,
}

impl Transaction for Scribble {
    const NAME: &'static str = "scribble";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2)")
            .bind(self.name)
            .bind(b"x".as_slice())
            .execute(connection)
            .await
            .context("could not scribble")?;
        if self.fails { Err(Fault::new("on purpose")) } else { Ok(()) }
    }
}

#[tokio::test]
async fn one_failing_write_of_a_batch_fails_alone_and_leaves_nothing() {
    let (directory, storage) = open().await;
    // Queued without waiting, so that they share batches.
    let names: Vec<&'static str> = ["a", "b", "c", "d", "e", "f", "g", "h"].to_vec();
    let mut pending = Vec::new();
    for (index, name) in names.iter().enumerate() {
        pending.push(storage.queue_write(Scribble { name, fails: index % 3 == 1 }).await.expect("queued"));
    }
    for (index, answer) in pending.into_iter().enumerate() {
        assert_eq!(answer.await.is_err(), index % 3 == 1, "write {index}");
    }
    storage.close().await;
    drop(storage);
    let storage = Storage::open(directory.path()).await.expect("opens again");
    for (index, name) in names.iter().enumerate() {
        assert_eq!(storage.setting(name).await.expect("read").is_some(), index % 3 != 1, "{name}");
    }
}

#[tokio::test]
async fn a_second_node_is_kept_out_and_a_command_is_not() {
    let (directory, storage) = open().await;
    let refused = Storage::open(directory.path()).await.err().expect("refused").to_string();
    assert!(refused.contains("in use by another mimi-node"), "{refused}");
    let beside = Storage::open_beside(directory.path()).await.expect("opens beside");
    beside.write(Scribble { name: "beside", fails: false }).await.expect("written");
    beside.close().await;
    assert!(storage.setting("beside").await.expect("read").is_some());
}

#[tokio::test]
async fn a_group_state_reads_back_as_it_was_written() {
    let (_directory, storage) = open().await;
    let member = Member {
        signature_key: vec![1; 32],
        client: "mimi://a.test/d/alice/phone".parse().expect("a client"),
        queue: crate::ds::QueueAddress { domain: domain("a.test"), information: vec![5] },
        joined_epoch: 0,
        user_key_hash: [6; 32],
        heard_at_ms: 7,
        not_after_ms: 8,
    };
    let mut create = accept(1, None, Vec::new());
    if let Some(change) = &mut create.change {
        change.set = vec![(0, MemberRow::of(&member).expect("a row")), (3, MemberRow::of(&member).expect("a row"))];
    }
    storage.write(create).await.expect("written");
    let uri = GROUP.parse().expect("a group");
    let state = storage.group_state(&uri).await.expect("read").expect("there");
    assert_eq!((state.revision, state.members.len(), state.members.get(&3)), (0, 2, Some(&member)));
    assert!(storage.group_state(&"mimi://a.test/g/2".parse().expect("a group")).await.expect("read").is_none());
}

#[tokio::test]
async fn a_database_of_before_keeps_its_as_root_and_what_it_has_pinned() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(DATABASE_FILE);
    let mut connection = writer::connect(&options(&path).expect("options")).await.expect("a database");
    let before: Vec<Migration> = migrator().migrations.iter().filter(|migration| migration.version < 6).cloned().collect();
    Migrator::with_migrations(before).run(&mut connection).await.expect("an old database");
    let info = [&[0, 0xff, 0x80][..], b"info", &[0]].concat();
    for (name, value) in [("as_root_certificate", &b"certificate\0"[..]), ("as_root_key", b"\xffkey"), ("domain", b"a.test")] {
        let insert = sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2)").bind(name).bind(value);
        insert.execute(&mut connection).await.expect("written");
    }
    let insert = sqlx::query("INSERT INTO domains (domain, info, pinned_at_ms) VALUES ('b.test', $1, 1)").bind(info.as_slice());
    insert.execute(&mut connection).await.expect("written");
    sqlx::Connection::close(connection).await.expect("closes");
    let storage = Storage::open(directory.path()).await.expect("is converted");
    let roots = storage.own_roots().await.expect("readable");
    assert_eq!((roots.len(), &roots[0].certificate[..], roots[0].key.expose()), (1, &b"certificate\0"[..], &b"\xffkey"[..]));
    assert_eq!(storage.setting("as_root_key").await.expect("readable"), None, "in one place only");
    assert_eq!(storage.setting("domain").await.expect("readable").as_deref(), Some(&b"a.test"[..]));
    let pinned = storage.pinned_domains().await.expect("readable");
    assert_eq!(pinned, [(domain("b.test"), [&info[..], &[0]].concat())], "with an empty list behind it");
}
