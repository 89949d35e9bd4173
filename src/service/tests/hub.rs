//! What a hub allows anyone, and whose lists of revoked keys it takes.

use crate::base::UnixMillis;
use crate::base::limits::Limits;
use crate::service::testing::{TestNode, Via};
use crate::synth::{CONTENT_TYPE_APPLICATION, Capabilities, Change};
use crate::tests::forged::Device;
use crate::wire::ds::*;
use crate::wire::peer::CredentialStatus;
use crate::wire::{ClientRequest, ErrorCode};

const ALICE: u32 = 0;

// covers DS-200
#[tokio::test]
async fn a_user_is_in_so_many_groups_and_no_more() {
    let node = TestNode::with_limits(Limits { groups_per_user_max: 2, ..Limits::default() }).await;
    let bob = node.device("bob@b.test").await;
    for round in 0..3 {
        let mut room = node.room(&["alice@a.test"]).await;
        let alice = room.devices[&ALICE].clone();
        let package = bob.key_package(Some(&bob.opaque_queue()));
        let forged = room.try_commit(ALICE, Change { add: vec![package], ..Change::default() });
        let request = room.request(ALICE, DsRequest::AddUsers(room.add_body(&forged)));
        if round < 2 {
            node.accepts(Via::Home(&alice), &request).await;
        } else {
            node.refuses("DS-200", Via::Home(&alice), &request, ErrorCode::TooLarge).await;
        }
        // The room is forged anew each time.
        room.devices.clear();
    }
}

/// Messages of alice's, more than ten at once and one a second allow, however slow this machine is.
async fn many_messages(limits: Limits) -> (TestNode, Device, Vec<ClientRequest>) {
    let node = TestNode::with_limits(limits).await;
    let mut room = node.room(&["alice@a.test"]).await;
    let alice = room.devices[&ALICE].clone();
    let messages = (0..40).map(|_| room.group.private_message(CONTENT_TYPE_APPLICATION)).collect::<Vec<_>>();
    let requests = messages.into_iter().map(|message| room.request(ALICE, room.message_body(message))).collect();
    (node, alice, requests)
}

// covers DS-203
#[tokio::test]
async fn a_client_makes_so_many_requests_and_no_more() {
    let limits = Limits { requests_per_client_per_second_max: 1, ..Limits::default() };
    let (node, alice, requests) = many_messages(limits).await;
    let rejection = node.refuses_one_of("DS-203", Via::Home(&alice), &requests, ErrorCode::RateLimited).await;
    assert!(rejection.as_rate_limited().is_some_and(|detail| detail.retry_after_ms > 0), "it says when");
}

// covers DS-204
#[tokio::test]
async fn a_group_gets_so_many_requests_and_no_more() {
    let limits = Limits { requests_per_group_per_second_max: 1, ..Limits::default() };
    let (node, alice, requests) = many_messages(limits).await;
    node.refuses_one_of("DS-204", Via::Home(&alice), &requests, ErrorCode::RateLimited).await;
}

fn status(domain: &str, version: u64, revoked: [u8; 32]) -> CredentialStatus {
    CredentialStatus {
        domain: domain.as_bytes().into(),
        version,
        next_update_ms: UnixMillis::now().0 + 60_000,
        revoked: vec![revoked.as_slice().into()].into(),
        signature: crate::wire::Opaque::default(),
    }
}

// covers DS-201, DS-202
#[tokio::test]
async fn a_list_of_revoked_keys_is_its_domains_own_and_signed_by_it() {
    let node = TestNode::new().await;
    let (a, b) =
        (node.as_roots[&"a.test".parse().expect("a domain")].key(), node.as_roots[&"b.test".parse().expect("a domain")].key());
    let of_another = status("a.test", 7, [1; 32]).sign(b);
    node.refuses_status("DS-201", "b.test", &of_another, ErrorCode::WrongOrigin).await;
    let by_another = status("b.test", 7, [1; 32]).sign(a);
    node.refuses_status("DS-202", "b.test", &by_another, ErrorCode::BadSignature).await;
    node.takes_status("b.test", &status("b.test", 7, [2; 32]).sign(b)).await;
    let b_test = "b.test".parse().expect("a domain");
    let knows = |hash: [u8; 32]| node.service.directory.revoked().get(&b_test).is_some_and(|keys| keys.contains(&hash));
    assert!(knows([2; 32]));
    // An older one is no news, whoever repeats it.
    node.takes_status("b.test", &status("b.test", 6, [3; 32]).sign(b)).await;
    assert!(knows([2; 32]) && !knows([3; 32]));
    // One that is overdue when it comes, as of a domain whose clock is wrong, can be decided on all the same.
    let overdue = CredentialStatus { next_update_ms: 1, ..status("b.test", 8, [4; 32]) };
    node.takes_status("b.test", &overdue.sign(b)).await;
    assert!(knows([4; 32]));
    assert!(node.service.directory.revoked().get(&b_test).is_some_and(|keys| keys.is_fresh(UnixMillis::now())));
}

// covers DS-205
#[tokio::test]
async fn a_user_comes_in_from_outside_so_often_and_no_more() {
    let node = TestNode::with_limits(Limits { external_commits_per_hour_max: 2, ..Limits::default() }).await;
    let mut room = node.room(&["alice@a.test"]).await;
    let alice = room.devices[&ALICE].clone();
    let root = node.as_roots[alice.domain()].clone();
    for (round, device) in ["laptop", "tablet", "watch"].into_iter().enumerate() {
        let device = alice.sibling(device);
        let (_, forged) = room.group.join(&device.identity(), &Capabilities::default(), None).expect("a Commit");
        let body = room.join_body(&forged, device.opaque_queue());
        let request = room.request_by_user(&device, &root, DsRequest::JoinClient(body));
        if round < 2 {
            node.accepts(Via::Home(&device), &request).await;
        } else {
            node.refuses("DS-205", Via::Home(&device), &request, ErrorCode::RateLimited).await;
        }
    }
}
