//! Queues with bounds, invites, generations, KeyPackages and accounts, on a real database.

use super::*;
use crate::base::ids::InviteId;
use crate::base::{ClientUri, UserUri};
use crate::qs::key_packages::{PublishedInvite, PublishedKeyPackage};
use crate::storage::blocks::{BlockChanged, ChangeBlock};
use crate::storage::clients::{DeleteUser, RevokeClient, Revoked};
use crate::storage::deliveries::Invite;
use crate::storage::housekeeping::ForgetExpired;
use crate::storage::key_packages::{ClaimKeyPackages, Claimed, PublishKeyPackages, Published};
use crate::storage::queues::{AgeEntries, ChangeGeneration, Generation, GenerationChanged};
use crate::wire::qs::QueueEntry;

/// A write of nothing but one delivery, as a hub's lane brings it.
struct Deliver(DeliveryWrite);

impl Transaction for Deliver {
    const NAME: &'static str = "deliver";
    type Answer = Vec<bool>;

    async fn apply(&self, connection: &mut Connection) -> Result<Vec<bool>, Fault> {
        crate::storage::deliveries::write(connection, &self.0).await
    }
}

fn from(hub: &str, group: &str, local: Vec<LocalRecipient>) -> DeliveryWrite {
    DeliveryWrite { hub: domain(hub), group_id: format!("mimi://{hub}/g/{group}"), ..delivery(local, &[]) }
}

async fn deliver(storage: &Storage, write: DeliveryWrite) -> Vec<bool> {
    storage.write(Deliver(write)).await.expect("written")
}

async fn all(storage: &Storage, queue_id: QueueId) -> Vec<QueueEntry> {
    storage.entries(queue_id, 1, 10_000).await.expect("read")
}

/// Group and kind of each entry, in order: `1` for a message of group 1, `1?` for its marker.
fn told(entries: &[QueueEntry]) -> Vec<String> {
    let one = |entry: &QueueEntry| {
        let group = String::from_utf8_lossy(&entry.group_id).rsplit('/').next().unwrap_or_default().to_owned();
        if entry.delivery == Delivery::MessagesLost { format!("{group}?") } else { group }
    };
    entries.iter().map(one).collect()
}

/// Sequences without gaps, and counts that are those of the rows.
async fn expect_sound(storage: &Storage, queue_id: QueueId) {
    let entries = all(storage, queue_id).await;
    let first = entries.first().map_or(1, |entry| entry.sequence);
    for (entry, sequence) in entries.iter().zip(first..) {
        assert_eq!(entry.sequence, sequence, "no gap");
    }
    let row = sqlx::query(
        "SELECT entries, octets, markers, (SELECT COUNT(*) FROM queue_markers m WHERE m.queue_id = q.queue_id) AS counted \
         FROM queues q WHERE queue_id = $1",
    )
    .bind(queue_id.0.as_slice())
    .fetch_one(storage.readers())
    .await
    .expect("readable");
    let number = |name: &str| row.try_get::<i64, _>(name).expect("a number");
    let octets = |entry: &QueueEntry| match &entry.delivery {
        Delivery::Message(_) => encode(&entry.delivery).len() as i64,
        _ => 0,
    };
    assert_eq!(number("entries"), entries.len() as i64);
    assert_eq!(number("octets"), entries.iter().map(octets).sum::<i64>());
    assert_eq!(number("markers"), number("counted"));
}

#[tokio::test]
async fn a_full_queue_takes_one_marker_for_each_group_until_there_is_room() {
    let (_directory, storage) = open().await;
    let recipient = queue(&storage, 1).await;
    let limits = QueueLimits { entries_max: 3, octets_max: 1_000 };
    let arrive = async |group: &str| {
        let write = DeliveryWrite { limits, ..from("h.test", group, vec![recipient.clone()]) };
        assert_eq!(deliver(&storage, write).await, [true], "the hub is told ok");
        expect_sound(&storage, recipient.queue_id).await;
    };
    for group in ["1", "2", "1", "2", "2", "1", "3", "1", "3"] {
        arrive(group).await;
    }
    let entries = all(&storage, recipient.queue_id).await;
    assert_eq!(told(&entries), ["1", "2", "1", "2?", "1?", "3?"]);
    assert_eq!(count(&storage, "bodies").await, 6, "what is lost takes no room");

    // Room again, for one: the group that gets it is whole again from there on, the others are covered by their markers.
    storage.write(AckEntries { queue_id: recipient.queue_id, up_to: 4 }).await.expect("written");
    for group in ["1", "1", "2", "3"] {
        arrive(group).await;
    }
    assert_eq!(told(&all(&storage, recipient.queue_id).await), ["1?", "3?", "1", "1?", "2?"]);
    storage.write(AckEntries { queue_id: recipient.queue_id, up_to: 9 }).await.expect("written");
    expect_sound(&storage, recipient.queue_id).await;
    assert_eq!(count(&storage, "bodies").await, 0);
    assert_eq!(count(&storage, "queue_markers").await, 0);
    arrive("2").await;
    assert_eq!(told(&all(&storage, recipient.queue_id).await), ["2"]);
    assert_eq!(all(&storage, recipient.queue_id).await[0].sequence, 10);

    let large = DeliveryWrite { delivery: vec![0; 2_000], limits, ..from("h.test", "1", vec![recipient.clone()]) };
    assert_eq!(deliver(&storage, large).await, [true]);
    assert_eq!(told(&all(&storage, recipient.queue_id).await), ["2", "1?"], "over the limit of octets alone");
}

#[tokio::test]
async fn the_news_of_a_loss_is_told_once_until_something_follows_it() {
    let (_directory, storage) = open().await;
    let recipient = queue(&storage, 1).await;
    for lost in [true, true, false, true, true] {
        let write = DeliveryWrite { tells_loss: lost, ..from("h.test", "1", vec![recipient.clone(), recipient.clone()]) };
        assert_eq!(deliver(&storage, write).await, [true, true]);
        expect_sound(&storage, recipient.queue_id).await;
    }
    assert_eq!(told(&all(&storage, recipient.queue_id).await), ["1?", "1", "1?"]);
}

#[tokio::test]
async fn old_entries_become_markers_in_their_places() {
    let (_directory, storage) = open().await;
    let (recipient, other) = (queue(&storage, 1).await, queue(&storage, 2).await);
    for (group, at) in [("1", 10), ("2", 20), ("1", 30), ("1", 40), ("2", 50)] {
        let both = vec![recipient.clone(), other.clone()];
        deliver(&storage, DeliveryWrite { now: UnixMillis(at), ..from("h.test", group, both) }).await;
    }
    storage.write(AckEntries { queue_id: recipient.queue_id, up_to: 1 }).await.expect("written");
    storage.write(AckEntries { queue_id: other.queue_id, up_to: 3 }).await.expect("written");
    assert_eq!(storage.aged_queues(UnixMillis(40), None, 10).await.expect("read"), [recipient.queue_id]);
    assert_eq!(storage.aged_queues(UnixMillis(41), None, 10).await.expect("read"), [recipient.queue_id, other.queue_id]);
    let after = storage.aged_queues(UnixMillis(41), Some(recipient.queue_id), 10).await.expect("read");
    assert_eq!(after, [other.queue_id]);
    for expected in [1, 1, 0] {
        let age = AgeEntries { queue_id: recipient.queue_id, before: UnixMillis(40), limit: 1 };
        assert_eq!(storage.write(age).await.expect("written"), expected);
        expect_sound(&storage, recipient.queue_id).await;
    }
    let entries = all(&storage, recipient.queue_id).await;
    assert_eq!(told(&entries), ["2?", "1?", "1", "2"]);
    assert_eq!(entries[0].sequence, 2, "as it was");
    assert!(storage.aged_queues(UnixMillis(40), None, 10).await.expect("read").is_empty());
    assert_eq!(count(&storage, "bodies").await, 4, "two that both need, two markers");
    delete(&storage, recipient.queue_id).await;
    delete(&storage, other.queue_id).await;
    assert_eq!(count(&storage, "bodies").await, 0);
}

fn with_invite(recipient: &LocalRecipient, number: u8, last_resort: bool) -> LocalRecipient {
    let invite = Invite { invite_id: InviteId([number; 16]), last_resort, expires_at: UnixMillis(NOW.0 + 1_000) };
    LocalRecipient { invite: Some(invite), ..recipient.clone() }
}

#[tokio::test]
async fn an_invite_serves_the_first_group_that_used_it() {
    let (_directory, storage) = open().await;
    let recipient = queue(&storage, 1).await;
    let once = vec![with_invite(&recipient, 1, false)];
    assert_eq!(deliver(&storage, from("h.test", "1", once.clone())).await, [true]);
    let before = dump(&storage).await;
    assert_eq!(deliver(&storage, from("h.test", "2", once.clone())).await, [false], "another group of the hub");
    assert_eq!(deliver(&storage, from("g.test", "1", once.clone())).await, [false], "another hub");
    assert_eq!(dump(&storage).await, before, "nothing changed");
    assert_eq!(deliver(&storage, from("h.test", "1", once.clone())).await, [true]);
    let often = vec![with_invite(&recipient, 2, true)];
    for (hub, group) in [("h.test", "1"), ("h.test", "2"), ("g.test", "1")] {
        assert_eq!(deliver(&storage, from(hub, group, often.clone())).await, [true], "of last resort");
    }
    // A retired generation binds nothing.
    let retired = vec![LocalRecipient { generation: 0, ..with_invite(&recipient, 3, false) }];
    assert_eq!(deliver(&storage, from("h.test", "1", retired)).await, [false]);
    assert_eq!(count(&storage, "invite_bindings").await, 4);
    let forget = |now| ForgetExpired { now: UnixMillis(now), limit: 3 };
    assert_eq!(storage.write(forget(NOW.0 + 1_000)).await.expect("written"), 0, "still good");
    assert_eq!(storage.write(forget(NOW.0 + 1_001)).await.expect("written"), 3);
    assert_eq!(count(&storage, "invite_bindings").await, 1);
}

#[tokio::test]
async fn generations_come_and_go() {
    let (_directory, storage) = open().await;
    let recipient = queue(&storage, 1).await;
    let change = |number: u8, seen, change| ChangeGeneration {
        key: key(number, number),
        response: vec![number],
        answer_expires_at: NOW,
        queue_id: recipient.queue_id,
        seen,
        change,
    };
    let takes = async || {
        let mut taken = Vec::new();
        for generation in 0..4 {
            let to = LocalRecipient { generation, ..recipient.clone() };
            taken.extend(deliver(&storage, from("h.test", "1", vec![to])).await);
        }
        taken
    };
    assert_eq!(takes().await, [false, true, false, false]);
    assert_eq!(storage.write(change(1, 1, Generation::Begin(2))).await.expect("written"), GenerationChanged::Done);
    let again = storage.write(change(1, 1, Generation::Begin(2))).await.expect("answered");
    assert_eq!(again, GenerationChanged::Known(Known::Answered(vec![1])));
    assert_eq!(storage.write(change(2, 1, Generation::Begin(2))).await.expect("answered"), GenerationChanged::Conflict);
    assert_eq!(takes().await, [false, true, true, false]);
    assert_eq!(storage.write(change(3, 2, Generation::Retire(1))).await.expect("written"), GenerationChanged::Done);
    assert_eq!(takes().await, [false, false, true, false]);
    assert_eq!(storage.write(change(4, 2, Generation::Retire(0))).await.expect("written"), GenerationChanged::Done);
    assert_eq!(takes().await, [false, false, true, false], "what is retired stays so");
    // Two recipients with one queue are each answered for themselves.
    let old = LocalRecipient { generation: 1, ..recipient.clone() };
    let new = LocalRecipient { generation: 2, ..recipient.clone() };
    assert_eq!(deliver(&storage, from("h.test", "1", vec![old, new])).await, [false, true]);
}

fn alice(device: &str) -> ClientUri {
    format!("mimi://a.test/d/alice/{device}").parse().expect("a client")
}

fn user(name: &str) -> UserUri {
    name.parse().expect("a user")
}

async fn queue_of(storage: &Storage, number: u8, client: &ClientUri, limits: Limits) -> Created {
    let create = CreateQueue {
        key: key(number, 0),
        response: Vec::new(),
        answer_expires_at: NOW,
        queue_id: QueueId([number; 16]),
        owner_key: vec![number; 32],
        client: client.clone(),
        client_key_hash: [number; 32],
        generation: 1,
        limits,
        now: NOW,
    };
    storage.write(create).await.expect("written")
}

fn key_package(number: u8, queue: u8, last_resort: bool) -> PublishedKeyPackage {
    PublishedKeyPackage {
        reference: vec![number],
        message: vec![number; 3],
        last_resort,
        not_after: UnixMillis(NOW.0 + 1_000),
        invite: PublishedInvite {
            queue_id: QueueId([queue; 16]),
            generation: 1,
            invite_id: InviteId([number; 16]),
            expires_at: UnixMillis(NOW.0 + 1_000),
        },
    }
}

async fn publish(storage: &Storage, number: u8, client: &ClientUri, key_packages: Vec<PublishedKeyPackage>) -> Published {
    publish_with(storage, number, [10; 32], client, key_packages).await
}

async fn publish_with(
    storage: &Storage,
    number: u8,
    client_key_hash: [u8; 32],
    client: &ClientUri,
    key_packages: Vec<PublishedKeyPackage>,
) -> Published {
    let publish = PublishKeyPackages {
        key: key(number, number),
        response: vec![number],
        answer_expires_at: NOW,
        client: client.clone(),
        client_key_hash,
        key_packages,
        limit: 2,
        now: NOW,
    };
    storage.write(publish).await.expect("written")
}

/// What is claimed, joined, is the answer.
fn respond(claimed: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    claimed.into_iter().flat_map(|(_, key_package)| key_package).collect()
}

async fn claim(storage: &Storage, number: u8, asker: &str) -> Claimed {
    let claim = ClaimKeyPackages {
        key: key(number, number),
        answer_expires_at: NOW,
        user: user("mimi://a.test/u/alice"),
        asker: user(asker),
        usable_until: NOW,
        respond,
    };
    storage.write(claim).await.expect("written")
}

#[tokio::test]
async fn key_packages_that_lead_nowhere_are_not_handed_out() {
    let (_directory, storage) = open().await;
    let phone = alice("phone");
    assert_eq!(queue_of(&storage, 1, &phone, Limits::default()).await, Created::Done);
    let two = vec![key_package(1, 1, false), key_package(2, 1, true)];
    assert_eq!(publish(&storage, 10, &phone, two).await, Published::Stored);
    // The client has lost its keys and comes back with others.
    let two = vec![key_package(3, 1, false), key_package(4, 1, false)];
    assert_eq!(publish_with(&storage, 11, [11; 32], &phone, two).await, Published::Stored, "others' do not count");
    let bob = "mimi://b.test/u/bob";
    assert_eq!(claim(&storage, 20, bob).await, Claimed::Answered(vec![3; 3]));
    // What is left is of a generation that is retired, but for one.
    let mut next = key_package(5, 1, false);
    next.invite.generation = 2;
    assert_eq!(publish_with(&storage, 12, [11; 32], &phone, vec![next]).await, Published::Stored);
    for (number, seen, change) in [(30, 1, Generation::Begin(2)), (31, 2, Generation::Retire(1))] {
        let change = ChangeGeneration {
            key: key(number, number),
            response: Vec::new(),
            answer_expires_at: NOW,
            queue_id: QueueId([1; 16]),
            seen,
            change,
        };
        assert_eq!(storage.write(change).await.expect("written"), GenerationChanged::Done);
    }
    assert_eq!(claim(&storage, 21, bob).await, Claimed::Answered(vec![5; 3]));
    assert_eq!(claim(&storage, 22, bob).await, Claimed::Refused(crate::wire::ErrorCode::UnknownUser.into()));
}

#[tokio::test]
async fn a_key_package_goes_out_once_and_never_comes_back() {
    let (_directory, storage) = open().await;
    let phone = alice("phone");
    assert_eq!(queue_of(&storage, 1, &phone, Limits::default()).await, Created::Done);
    let three = vec![key_package(1, 1, false), key_package(2, 1, false), key_package(3, 1, true)];
    assert_eq!(publish(&storage, 10, &phone, three).await, Published::Stored);
    let before = dump(&storage).await;
    assert_eq!(publish(&storage, 11, &phone, vec![key_package(4, 1, false)]).await, Published::OverLimit);
    assert_eq!(dump(&storage).await, before, "nothing changed");
    let bob = "mimi://b.test/u/bob";
    assert_eq!(claim(&storage, 20, bob).await, Claimed::Answered(vec![1; 3]));
    assert_eq!(claim(&storage, 20, bob).await, Claimed::Known(Known::Answered(vec![1; 3])), "a repeat takes no other");
    assert_eq!(claim(&storage, 21, bob).await, Claimed::Answered(vec![2; 3]));
    for number in [22, 23] {
        assert_eq!(claim(&storage, number, bob).await, Claimed::Answered(vec![3; 3]), "the last resort stays");
    }
    let before = dump(&storage).await;
    assert_eq!(publish(&storage, 12, &phone, vec![key_package(1, 1, false)]).await, Published::Repeated, "was handed out");
    let twice = vec![key_package(5, 1, false), key_package(5, 1, false)];
    assert_eq!(publish(&storage, 13, &phone, twice).await, Published::Repeated);
    assert_eq!(dump(&storage).await, before, "nothing changed");
    assert_eq!(publish(&storage, 14, &phone, vec![key_package(6, 1, true)]).await, Published::Stored);
    assert_eq!(publish(&storage, 15, &phone, vec![key_package(3, 1, true)]).await, Published::Repeated, "was replaced");
    assert_eq!(count(&storage, "key_package_references").await, 4);
    let forget = ForgetExpired { now: UnixMillis(NOW.0 + 1_001), limit: 100 };
    storage.write(forget).await.expect("written");
    assert_eq!(count(&storage, "key_package_references").await + count(&storage, "key_packages").await, 0);
}

async fn change_block(storage: &Storage, number: u8, name: &str, blocked: bool) -> BlockChanged {
    let change = ChangeBlock {
        key: key(number, number),
        response: vec![number],
        answer_expires_at: NOW,
        user: user("mimi://a.test/u/alice"),
        name: name.to_owned(),
        blocked,
    };
    storage.write(change).await.expect("written")
}

#[tokio::test]
async fn who_is_blocked_gets_no_key_package_and_starts_no_group() {
    let (_directory, storage) = open().await;
    let phone = alice("phone");
    assert_eq!(queue_of(&storage, 1, &phone, Limits::default()).await, Created::Done);
    let two = vec![key_package(1, 1, false), key_package(2, 1, false)];
    assert_eq!(publish(&storage, 10, &phone, two).await, Published::Stored);
    let (bob, carol) = ("mimi://b.test/u/bob", "mimi://c.test/u/carol");
    assert_eq!(claim(&storage, 20, bob).await, Claimed::Answered(vec![1; 3]));
    assert_eq!(claim(&storage, 21, carol).await, Claimed::Answered(vec![2; 3]));
    assert_eq!(publish(&storage, 11, &phone, vec![key_package(3, 1, false)]).await, Published::Stored);
    let to = |number| {
        let recipient = LocalRecipient { queue_id: QueueId([1; 16]), generation: 1, invite: None };
        vec![with_invite(&recipient, number, false)]
    };
    // Bob's invite is in use when he is blocked: that group goes on.
    assert_eq!(deliver(&storage, from("b.test", "1", to(1))).await, [true]);
    assert_eq!(change_block(&storage, 30, bob, true).await, BlockChanged::Done);
    assert_eq!(change_block(&storage, 31, "c.test", true).await, BlockChanged::Done);
    assert_eq!(change_block(&storage, 31, "c.test", true).await, BlockChanged::Known(Known::Answered(vec![31])));
    assert_eq!(deliver(&storage, from("b.test", "1", to(1))).await, [true]);
    for (number, asker) in [(22, bob), (23, carol), (24, "mimi://c.test/u/chris")] {
        let before = dump(&storage).await;
        assert!(matches!(claim(&storage, number, asker).await, Claimed::Refused(_)), "{asker}");
        assert_eq!(dump(&storage).await, before, "nothing changed");
    }
    for (hub, number) in [("c.test", 2), ("d.test", 2), ("c.test", 3)] {
        let before = dump(&storage).await;
        assert_eq!(deliver(&storage, from(hub, "9", to(number))).await, [false], "{hub} {number}");
        assert_eq!(dump(&storage).await, before, "nothing changed");
    }
    assert_eq!(change_block(&storage, 32, "c.test", false).await, BlockChanged::Done);
    assert_eq!(deliver(&storage, from("d.test", "9", to(2))).await, [true]);
    assert_eq!(claim(&storage, 25, "mimi://b.test/u/ben").await, Claimed::Answered(vec![3; 3]), "of bob's domain");
}

#[tokio::test]
async fn with_a_client_or_user_goes_what_is_its() {
    let (_directory, storage) = open().await;
    let (phone, laptop) = (alice("phone"), alice("laptop"));
    let namesake: ClientUri = "mimi://a.test/d/alice2/phone".parse().expect("a client");
    let few = Limits { queues_per_client_max: 1, ..Limits::default() };
    for (number, client) in [(1, &phone), (2, &laptop), (3, &namesake)] {
        assert_eq!(queue_of(&storage, number, client, few.clone()).await, Created::Done);
    }
    assert_eq!(queue_of(&storage, 4, &phone, few).await, Created::OverLimit);
    let to = |numbers: &[u8]| {
        numbers.iter().map(|number| LocalRecipient { queue_id: QueueId([*number; 16]), generation: 1, invite: None }).collect()
    };
    assert_eq!(deliver(&storage, from("h.test", "1", to(&[1, 2, 3]))).await, [true; 3]);
    assert_eq!(deliver(&storage, from("g.test", "1", to(&[1]))).await, [true]);
    assert_eq!(publish(&storage, 10, &phone, vec![key_package(1, 1, false)]).await, Published::Stored);
    let alices = user("mimi://a.test/u/alice");
    assert_eq!(storage.hubs_of(&alices).await.expect("read"), [domain("g.test"), domain("h.test")]);
    assert_eq!(storage.hubs_of(namesake.user()).await.expect("read"), [domain("h.test")]);
    assert_eq!(storage.hubs().await.expect("read"), [domain("g.test"), domain("h.test")]);

    let revoke = |number: u8, client: &ClientUri| RevokeClient {
        key: key(number, number),
        response: vec![number],
        answer_expires_at: NOW,
        client: client.clone(),
        now: NOW,
    };
    let before = dump(&storage).await;
    assert_eq!(storage.write(revoke(20, &alice("watch"))).await.expect("answered"), Revoked::UnknownClient);
    assert_eq!(dump(&storage).await, before, "nothing changed");
    let done = storage.write(revoke(21, &phone)).await.expect("written");
    assert_eq!(done, Revoked::Done(vec![QueueId([1; 16])]));
    let again = storage.write(revoke(21, &phone)).await.expect("answered");
    assert_eq!(again, Revoked::Known(Known::Answered(vec![21])));
    // The phone showed two keys: one with its queue, one with its KeyPackages.
    let (version, mut keys) = storage.revoked_keys().await.expect("read");
    keys.sort_unstable();
    assert_eq!((version, keys), (2, vec![[1; 32], [10; 32]]));
    assert_eq!((count(&storage, "key_packages").await, count(&storage, "queues").await), (0, 2));
    assert_eq!(deliver(&storage, from("h.test", "1", to(&[1, 2]))).await, [false, true]);

    change_block(&storage, 30, "b.test", true).await;
    let delete = || DeleteUser {
        key: key(40, 40),
        response: vec![40],
        answer_expires_at: NOW,
        user: alices.clone(),
        user_key_hash: [99; 32],
        now: NOW,
    };
    assert_eq!(storage.write(delete()).await.expect("written"), Revoked::Done(vec![QueueId([2; 16])]));
    assert_eq!(storage.write(delete()).await.expect("answered"), Revoked::Known(Known::Answered(vec![40])));
    let (version, keys) = storage.revoked_keys().await.expect("read");
    assert_eq!((version, keys.len()), (4, 4), "the laptop's and the user's");
    assert_eq!((count(&storage, "blocks").await, count(&storage, "queues").await), (0, 1));
    assert_eq!(count(&storage, "client_keys").await, 1, "the namesake's");
    assert_eq!(count(&storage, "bodies").await, 1);
    assert_eq!(storage.hubs().await.expect("read").len(), 2, "they have to be told");
}
