//! While the DS wants a leaf removed, and after a group is gone.

use std::time::Duration;

use crate::base::UnixMillis;
use crate::service::testing::{TestNode, Via};
use crate::synth::{CONTENT_TYPE_APPLICATION, Change, Proposal};
use crate::wire::ds::*;
use crate::wire::error::PendingProposals;
use crate::wire::{ErrorCode, decode};

const ALICE: u32 = 0;
const BOB: u32 = 1;
const CAROL: u32 = 2;

// covers DS-056, DS-057, DS-065
#[tokio::test]
async fn nothing_goes_on_until_the_removes_are_committed() {
    let node = TestNode::new().await;
    let mut room = node.room(&["alice@a.test", "bob@b.test", "carol@a.test"]).await;
    let (alice, bob) = (room.devices[&ALICE].clone(), room.devices[&BOB].clone());
    let leave = room.request(BOB, DsRequest::LeaveGroup(GroupOnly { group_id: room.id() }));
    node.accepts(Via::Home(&bob), &leave).await;

    let message = room.group.private_message(CONTENT_TYPE_APPLICATION);
    let message = room.request(ALICE, room.message_body(message));
    let told = node.refuses("DS-065", Via::Home(&alice), &message, ErrorCode::PendingProposals).await;
    let (_, update) = room.update(ALICE);
    node.refuses("DS-056", Via::Home(&alice), &update, ErrorCode::PendingProposals).await;
    let (_, by_bob) = room.update(BOB);
    node.refuses("DS-057", Via::Home(&bob), &by_bob, ErrorCode::NotAuthorized).await;

    // What the refusal tells is what a Commit needs.
    let told: PendingProposals = decode(&told.detail).expect("the proposals");
    let cover = told.proposals.iter().map(|message| Proposal::external_remove(message, BOB)).collect();
    let forged = room.group.commit(ALICE, Change { cover, ..Change::default() }).expect("alice is there");
    let update = room.request(ALICE, DsRequest::UpdateClient(room.commit_body(&forged)));
    node.accepts(Via::Home(&alice), &update).await;
    node.accepts(Via::Home(&alice), &message).await;
}

// covers DS-017
#[tokio::test]
async fn a_deleted_group_takes_nothing() {
    let node = TestNode::new().await;
    let mut room = node.room(&["alice@a.test", "bob@b.test", "carol@a.test"]).await;
    let alice = room.devices[&ALICE].clone();
    let message = room.group.private_message(CONTENT_TYPE_APPLICATION);
    let message = room.request(ALICE, room.message_body(message));
    let forged = room.try_commit(ALICE, Change { remove: vec![BOB, CAROL], ..Change::default() });
    let delete = room.request(ALICE, DsRequest::DeleteGroup(room.commit_body(&forged)));
    let answer = node.accepts(Via::Home(&alice), &delete).await;
    node.refuses("DS-017", Via::Home(&alice), &message, ErrorCode::GroupDeleted).await;
    let bob = room.devices[&BOB].clone();
    let leave = room.request(BOB, DsRequest::LeaveGroup(GroupOnly { group_id: room.id() }));
    node.refuses("DS-017", Via::Home(&bob), &leave, ErrorCode::GroupDeleted).await;
    assert_eq!(node.accepts(Via::Home(&alice), &delete).await, answer, "a repeat is answered as before");
}

// covers DS-065
// Shows: a queue information that cannot be opened leads to the Remove of its leaf, unless it is not the leaf's any more.
#[tokio::test]
async fn a_rejected_queue_leads_to_a_remove() {
    let node = TestNode::new().await;
    let mut room = node.room(&["alice@a.test", "bob@b.test", "carol@a.test"]).await;
    let (alice, carol) = (room.devices[&ALICE].clone(), room.devices[&CAROL].clone());
    let say = |room: &mut crate::tests::forged::Room| {
        let message = room.group.private_message(CONTENT_TYPE_APPLICATION);
        room.request(ALICE, room.message_body(message))
    };
    let queue_info = |room: &crate::tests::forged::Room, config: ClientQueueConfig| {
        let body = UpdateQueueInfo { group_id: room.id(), client_queue_config: config };
        room.request(CAROL, DsRequest::UpdateQueueInfo(body))
    };
    // Rejected, and replaced before anybody looked into it.
    node.accepts(Via::Home(&carol), &queue_info(&room, carol.opaque_queue())).await;
    let message = say(&mut room);
    node.accepts(Via::Home(&alice), &message).await;
    let good = node.queue_config(&carol).await;
    node.accepts(Via::Home(&carol), &queue_info(&room, good)).await;
    node.service.look_into_those_waiting().await;
    let message = say(&mut room);
    node.accepts(Via::Home(&alice), &message).await;

    node.accepts(Via::Home(&carol), &queue_info(&room, carol.opaque_queue())).await;
    let message = say(&mut room);
    node.accepts(Via::Home(&alice), &message).await;
    node.service.look_into_those_waiting().await;
    let message = say(&mut room);
    let told = node.refuses("DS-065", Via::Home(&alice), &message, ErrorCode::PendingProposals).await;
    let pending: PendingProposals = decode(&told.detail).expect("proposals");
    assert_eq!(pending.proposals.len(), 1);
}

// Shows: when a deleted group's time is over nothing of it is left, and nothing is amiss with another one.
#[tokio::test]
async fn a_deleted_group_is_gone_when_its_time_is_over() {
    let node = TestNode::new().await;
    let mut room = node.room(&["alice@a.test", "bob@b.test"]).await;
    let other = node.room(&["carol@a.test", "dave@b.test"]).await;
    let alice = room.devices[&ALICE].clone();
    let limits = &node.service.limits;
    let silent = Duration::from_secs(limits.inactive_leaf_seconds_max + 60);
    let kept = Duration::from_secs(limits.deleted_group_kept_seconds + 60);
    let now = UnixMillis::now();
    let message = room.group.private_message(CONTENT_TYPE_APPLICATION);
    let request = room.request(ALICE, room.message_body(message));
    node.service.look_after_groups(now).await.expect("looked after");
    node.accepts(Via::Home(&alice), &request).await;

    let forged = room.try_commit(ALICE, Change { remove: vec![BOB], ..Change::default() });
    let delete = room.request(ALICE, DsRequest::DeleteGroup(room.commit_body(&forged)));
    node.accepts(Via::Home(&alice), &delete).await;
    assert!(silent > kept, "so that what follows does not close the other group");
    node.service.look_after_groups(now.plus(kept)).await.expect("looked after");
    let tables = node.tables().await;
    for table in ["groups", "group_members", "group_log", "group_snapshots", "lanes", "lane_frames"] {
        let of = |uri: &crate::base::GroupUri| tables.rows(table).iter().any(|row| row.contains(&uri.to_string()));
        assert!(!of(&room.uri), "{table} has something of the group");
        assert!(of(&other.uri) || table == "group_log", "the control: {table} has the other group");
    }
    let rejection = node.ask(Via::Home(&alice), &request).await.expect_err("refused");
    assert_eq!(rejection.code, ErrorCode::UnknownGroup);
}
