//! While the DS wants a leaf removed, and after a group is gone.

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
