//! Application messages and queue information.

use crate::base::limits::{APPLICATION_MESSAGE_BYTES_MAX, APPLICATION_PAST_EPOCHS_MAX};
use crate::service::testing::{TestNode, Via, changed};
use crate::synth::{CONTENT_TYPE_APPLICATION, CONTENT_TYPE_COMMIT};
use crate::wire::ErrorCode;
use crate::wire::ds::*;

const ALICE: u32 = 0;
const BOB: u32 = 1;

// covers DS-010, DS-011, DS-012, DS-013
#[tokio::test]
async fn a_request_is_by_a_member_signed_by_its_leaf_and_through_its_own_domain() {
    let node = TestNode::new().await;
    let mut room = node.room(&["alice@a.test", "bob@b.test"]).await;
    let message = room.group.private_message(CONTENT_TYPE_APPLICATION);
    let request = room.request(ALICE, room.message_body(message));
    let (alice, bob) = (&room.devices[&ALICE], &room.devices[&BOB]);
    node.refuses("DS-012", Via::Peer("b.test"), &request, ErrorCode::WrongOrigin).await;
    let forged = changed(&bob.key, &request, |_, _| ());
    node.refuses("DS-011", Via::Home(alice), &forged, ErrorCode::BadSignature).await;
    let nobody = changed(&alice.key, &request, |sender, _| *sender = DsSenderId::LeafIndex(7));
    node.refuses("DS-010", Via::Home(alice), &nobody, ErrorCode::NotAuthorized).await;
    let elsewhere = changed(&alice.key, &request, |_, body| {
        if let DsRequest::SendMessage(body) = body {
            body.group_id = b"mimi://a.test/g/elsewhere".as_slice().into();
        }
    });
    node.refuses("DS-013", Via::Home(alice), &elsewhere, ErrorCode::UnknownGroup).await;
    let before = node.tables().await;
    node.accepts(Via::Home(alice), &request).await;
    let frames = |tables: &crate::service::testing::Tables| tables.rows("lane_frames").len();
    assert_eq!(frames(&node.tables().await), frames(&before) + 1, "the control: one for bob");
}

// covers DS-060, DS-061, DS-062, DS-063, DS-064
#[tokio::test]
async fn a_message_is_of_the_group_and_of_an_epoch_its_sender_was_in() {
    let node = TestNode::new().await;
    let mut room = node.room(&["alice@a.test", "bob@b.test"]).await;
    let other = node.room(&["carol@a.test"]).await;
    let send = |room: &crate::tests::forged::Room, leaf, message: Vec<u8>| room.request(leaf, room.message_body(message));
    let alice = room.devices[&ALICE].clone();
    let large = send(&room, ALICE, vec![0; APPLICATION_MESSAGE_BYTES_MAX + 1]);
    node.refuses("DS-060", Via::Home(&alice), &large, ErrorCode::TooLarge).await;
    let handshake = room.group.private_message(CONTENT_TYPE_COMMIT);
    node.refuses("DS-061", Via::Home(&alice), &send(&room, ALICE, handshake), ErrorCode::InvalidMessage).await;
    let garbage = send(&room, ALICE, vec![0, 1, 0, 2, 1]);
    node.refuses("DS-061", Via::Home(&alice), &garbage, ErrorCode::InvalidMessage).await;
    let foreign = other.group.clone().private_message_of(1, CONTENT_TYPE_APPLICATION);
    node.refuses("DS-062", Via::Home(&alice), &send(&room, ALICE, foreign), ErrorCode::InvalidMessage).await;
    let future = room.group.private_message_of(2, CONTENT_TYPE_APPLICATION);
    node.refuses("DS-063", Via::Home(&alice), &send(&room, ALICE, future), ErrorCode::WrongEpoch).await;
    let bob = room.devices[&BOB].clone();
    let before_bob = room.group.private_message_of(0, CONTENT_TYPE_APPLICATION);
    node.refuses("DS-064", Via::Home(&bob), &send(&room, BOB, before_bob), ErrorCode::NotAuthorized).await;
    for _ in 0..=APPLICATION_PAST_EPOCHS_MAX {
        let forged = room.group.update(ALICE).expect("alice is there");
        let request = room.request(ALICE, DsRequest::UpdateClient(room.commit_body(&forged)));
        node.accepts(Via::Home(&alice), &request).await;
    }
    let old = room.group.private_message_of(1, CONTENT_TYPE_APPLICATION);
    node.refuses("DS-063", Via::Home(&alice), &send(&room, ALICE, old), ErrorCode::WrongEpoch).await;
}

// covers DS-022, DS-018, DS-080
#[tokio::test]
async fn queue_information_and_past_states_are_ones_own() {
    let node = TestNode::new().await;
    let mut room = node.room(&["alice@a.test"]).await;
    let bob = node.device("bob@b.test").await;
    let package = bob.key_package(Some(&bob.opaque_queue()));
    let forged = room.group.add(ALICE, vec![package.clone()]).expect("alice is there");
    let add = room.request(ALICE, DsRequest::AddUsers(room.add_body(&forged)));
    node.accepts(Via::Home(&room.devices[&ALICE]), &add).await;
    room.devices.insert(BOB, bob.clone());

    let queue = |config| DsRequest::UpdateQueueInfo(UpdateQueueInfo { group_id: room.id(), client_queue_config: config });
    let elsewhere = ClientQueueConfig { qs_domain: b"a.test".as_slice().into(), ..bob.opaque_queue() };
    let request = room.request(BOB, queue(elsewhere));
    node.refuses("DS-022", Via::Home(&bob), &request, ErrorCode::InvalidQueueConfig).await;
    let reference = DsSenderId::KeyPackageRef(package.reference().as_slice().into());
    let as_joiner = room.request_by(reference.clone(), &bob.key, queue(bob.opaque_queue()));
    node.refuses("DS-018", Via::Home(&bob), &as_joiner, ErrorCode::NotAuthorized).await;
    let info = |epoch| DsRequest::WelcomeInfo(WelcomeInfo { group_id: room.id(), epoch });
    let too_late = room.request_by(reference.clone(), &bob.key, info(2));
    node.refuses("DS-080", Via::Home(&bob), &too_late, ErrorCode::NotAuthorized).await;
    let by_leaf = room.request(BOB, info(1));
    node.refuses("DS-080", Via::Home(&bob), &by_leaf, ErrorCode::NotAuthorized).await;
    node.accepts(Via::Home(&bob), &room.request_by(reference, &bob.key, info(1))).await;
}
