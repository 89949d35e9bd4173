//! GroupContexts that no group gets.

use crate::service::testing::{TestNode, Via};
use crate::synth::{Change, Extension};
use crate::tests::forged::{Room, external_senders};
use crate::wire::ds::*;
use crate::wire::{ClientRequest, ErrorCode, Opaque, decode, encode};

const ALICE: u32 = 0;
const EXTENSION_REQUIRED_CAPABILITIES: u16 = 3;
const EXTENSION_EXTERNAL_SENDERS: u16 = 5;

/// The extensions of a group with a join policy: the DS, what every member must know, and the policy itself.
pub(super) fn with_policy(node: &TestNode, octet: u8) -> Vec<Extension> {
    let required = Extension { kind: EXTENSION_REQUIRED_CAPABILITIES, data: vec![2, 0xF0, 0xC1, 0, 0] };
    let policy = Extension { kind: crate::mls::JOIN_POLICY_EXTENSION, data: vec![octet] };
    vec![external_senders(node.service.directory.external_sender()), required, policy]
}

/// An update_group of alice's that sets these extensions.
fn update(room: &Room, extensions: Vec<Extension>) -> ClientRequest {
    let forged = room.try_commit(ALICE, Change { extensions: Some(extensions), ..Change::default() });
    room.request(ALICE, DsRequest::UpdateGroup(room.commit_body(&forged)))
}

/// Lets everybody join.
pub(super) async fn open(node: &TestNode, room: &mut Room) {
    let change = Change { extensions: Some(with_policy(node, 1)), ..Change::default() };
    let forged = room.group.commit(ALICE, change).expect("alice is there");
    let request = room.request(ALICE, DsRequest::UpdateGroup(room.commit_body(&forged)));
    node.accepts(Via::Home(&room.devices[&ALICE]), &request).await;
}

// covers DS-044, DS-072, DS-073, DS-074
#[tokio::test]
async fn a_context_is_one_that_the_hub_and_every_member_know() {
    let node = TestNode::new().await;
    let room = node.room(&["alice@a.test", "bob@b.test"]).await;
    let alice = &room.devices[&ALICE];
    let own = || external_senders(node.service.directory.external_sender());
    node.refuses("DS-044", Via::Home(alice), &update(&room, vec![]), ErrorCode::InvalidCommit).await;
    // The DS itself, and another with a long certificate.
    let another = Extension::external_senders(&[(&[7; 32], &[vec![0x30; 16_400]])]);
    let both: Vec<u8> =
        [own(), another].iter().flat_map(|list| decode::<Opaque>(&list.data).expect("a list").into_vec()).collect();
    let large = Extension { kind: EXTENSION_EXTERNAL_SENDERS, data: encode(&Opaque::from(both)) };
    node.refuses("DS-072", Via::Home(alice), &update(&room, vec![large]), ErrorCode::TooLarge).await;
    node.refuses("DS-073", Via::Home(alice), &update(&room, with_policy(&node, 2)), ErrorCode::InvalidCommit).await;
    let unknown = Extension { kind: EXTENSION_REQUIRED_CAPABILITIES, data: vec![0, 2, 0xFA, 0x01, 0] };
    node.refuses("DS-074", Via::Home(alice), &update(&room, vec![own(), unknown]), ErrorCode::InvalidCommit).await;
    node.accepts(Via::Home(alice), &update(&room, with_policy(&node, 1))).await;
}
