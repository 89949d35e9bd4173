//! Standalone proposals: what is not passed on.

use super::contexts::open;
use crate::base::limits::{Limits, PROPOSAL_BYTES_MAX};
use crate::service::testing::{TestNode, Via};
use crate::synth::{CONTENT_TYPE_COMMIT, CONTENT_TYPE_PROPOSAL, Capabilities, Identity};
use crate::tests::forged::Room;
use crate::wire::ds::*;
use crate::wire::{ClientRequest, ErrorCode, Opaque};

const ALICE: u32 = 0;
const BOB: u32 = 1;
const CAROL: u32 = 2;

fn propose(room: &Room, leaf: u32, message: Vec<u8>) -> ClientRequest {
    let body = Propose { group_id: room.id(), proposals: vec![Opaque::from(message)].into() };
    room.request(leaf, DsRequest::Propose(body))
}

// covers DS-081, DS-082, DS-083, DS-084, DS-085, DS-087, DS-088, DS-089, DS-090
#[tokio::test]
async fn a_member_proposes_an_update_of_its_own_leaf() {
    let node = TestNode::with_limits(Limits { pending_proposals_max: 2, ..Limits::default() }).await;
    let mut room = node.room(&["alice@a.test", "bob@b.test", "carol@a.test"]).await;
    let other = node.room(&["alice@a.test"]).await;
    let (alice, bob, carol) = (room.devices[&ALICE].clone(), room.devices[&BOB].clone(), room.devices[&CAROL].clone());
    let large = propose(&room, BOB, vec![0; PROPOSAL_BYTES_MAX + 1]);
    node.refuses("DS-090", Via::Home(&bob), &large, ErrorCode::TooLarge).await;
    let private = room.group.private_message(CONTENT_TYPE_COMMIT);
    node.refuses("DS-081", Via::Home(&bob), &propose(&room, BOB, private), ErrorCode::InvalidProposal).await;
    let foreign = other.group.clone().propose_update(ALICE).expect("a member").0;
    node.refuses("DS-082", Via::Home(&alice), &propose(&room, ALICE, foreign), ErrorCode::InvalidProposal).await;
    let mut ahead = room.group.clone();
    ahead.update(ALICE).expect("a member");
    let early = ahead.propose_update(BOB).expect("a member").0;
    node.refuses("DS-082", Via::Home(&bob), &propose(&room, BOB, early), ErrorCode::WrongEpoch).await;
    let (good, _) = room.group.propose_update(BOB).expect("a member");
    node.refuses("DS-083", Via::Home(&carol), &propose(&room, CAROL, good.clone()), ErrorCode::NotAuthorized).await;
    let mut spoilt = good.clone();
    let at = spoilt.len() - 60;
    spoilt[at] ^= 1;
    node.refuses("DS-084", Via::Home(&bob), &propose(&room, BOB, spoilt), ErrorCode::InvalidProposal).await;
    let remove = room.group.public_message(BOB, CONTENT_TYPE_PROPOSAL, &[0, 3, 0, 0, 0, 0]).expect("a member");
    node.refuses("DS-085", Via::Home(&bob), &propose(&room, BOB, remove), ErrorCode::InvalidProposal).await;
    let carols_key = Identity::new(&carol.seed, &bob.chain);
    let (taken, _) = room.group.propose_leaf(BOB, &carols_key, &Capabilities::default()).expect("a proposal");
    node.refuses("DS-087", Via::Home(&bob), &propose(&room, BOB, taken), ErrorCode::InvalidProposal).await;

    let two = Propose { group_id: room.id(), proposals: vec![Opaque::from(good.clone()), Opaque::from(good.clone())].into() };
    let two = room.request(BOB, DsRequest::Propose(two));
    node.refuses("DS-088", Via::Home(&bob), &two, ErrorCode::InvalidProposal).await;
    node.accepts(Via::Home(&bob), &propose(&room, BOB, good)).await;
    let (of_alice, _) = room.group.propose_update(ALICE).expect("a member");
    node.accepts(Via::Home(&alice), &propose(&room, ALICE, of_alice)).await;
    let (of_carol, _) = room.group.propose_update(CAROL).expect("a member");
    node.refuses("DS-089", Via::Home(&carol), &propose(&room, CAROL, of_carol), ErrorCode::TooLarge).await;
}

// covers DS-086
#[tokio::test]
async fn a_proposed_leaf_can_do_what_the_group_uses() {
    let node = TestNode::new().await;
    let mut room = node.room(&["alice@a.test", "bob@b.test"]).await;
    open(&node, &mut room).await;
    let bob = room.devices[&BOB].clone();
    let unable = Capabilities { extensions: vec![0xF0C0], ..Capabilities::default() };
    let (message, _) = room.group.propose_leaf(BOB, &bob.identity(), &unable).expect("a proposal");
    node.refuses("DS-086", Via::Home(&bob), &propose(&room, BOB, message), ErrorCode::InvalidProposal).await;
    let (able, _) = room.group.propose_update(BOB).expect("a member");
    node.accepts(Via::Home(&bob), &propose(&room, BOB, able)).await;
}
