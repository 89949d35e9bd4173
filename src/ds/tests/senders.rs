//! Who may ask, and by which sender id.

use super::*;

fn leave(client: &TestClient) -> DsRequest {
    DsRequest::LeaveGroup(GroupOnly { group_id: client.group_id() })
}

fn info(client: &TestClient) -> DsRequest {
    DsRequest::ExternalCommitInfo(GroupOnly { group_id: client.group_id() })
}

// covers DS-018
#[test]
fn each_request_has_its_sender_ids() {
    let (mut hub, mut alice, _) = group(&[]);
    let bob = hub.client("bob@b.test");
    let request = alice.add(&[bob.key_package(Some(&bob.queue()))]);
    ask(&mut hub, &alice, &request).expect("accepted");
    let by_reference = |request: DsRequest| {
        bob.request(DsSenderId::KeyPackageRef(hub.state().head.joiners[0].key_package_ref.as_slice().into()), request)
    };
    let new_queue = UpdateQueueInfo { group_id: bob.group_id(), client_queue_config: bob.queue() };
    let too_early = by_reference(DsRequest::UpdateQueueInfo(new_queue.clone()));
    let welcomed = by_reference(DsRequest::WelcomeInfo(WelcomeInfo { group_id: bob.group_id(), epoch: 1 }));
    assert_eq!(code(ask(&mut hub, &bob, &too_early)), ErrorCode::NotAuthorized, "not before it speaks as a member");
    assert!(ask(&mut hub, &bob, &welcomed).is_ok());
    let as_leaf = alice.as_leaf(DsRequest::WelcomeInfo(WelcomeInfo { group_id: alice.group_id(), epoch: 1 }));
    assert_eq!(code(ask(&mut hub, &alice, &as_leaf)), ErrorCode::NotAuthorized);
    for request in [leave(&alice), DsRequest::UpdateQueueInfo(new_queue)] {
        assert_eq!(code(ask(&mut hub, &alice, &alice.as_user(request))), ErrorCode::NotAuthorized, "a user is no leaf");
    }
    assert!(ask(&mut hub, &alice, &alice.as_user(info(&alice))).is_ok());
    assert!(ask(&mut hub, &alice, &alice.as_leaf(info(&alice))).is_ok());
}

// covers DS-014
#[test]
fn a_user_key_hash_is_that_of_the_certificate() {
    let (mut hub, alice, _) = group(&[]);
    let request = alice.as_user_with([7; 32], &alice.chain[1], info(&alice));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::NotAuthorized);
}

// covers DS-015
#[test]
fn a_users_certificate_is_of_its_domains_root() {
    let (mut hub, alice, _) = group(&[]);
    let impostor = TestHub::new().client("alice@a.test");
    let request = impostor.as_user(info(&alice));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential);
    let request = alice.as_user_with(alice.user_key_hash(), &[1, 2, 3], info(&alice));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential);
    // Roots that nobody knows yet are asked for, of the domain that the request came through and of no other.
    let bob = hub.client("bob@b.test");
    hub.roots.remove(bob.uri.domain());
    let request = bob.as_user(info(&alice));
    assert!(matches!(ask(&mut hub, &bob, &request), Err(Refusal::NeedsRoots(domains)) if domains == [bob.uri.domain().clone()]));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::WrongOrigin);
}

// covers DS-016
#[test]
fn a_revoked_user_key_asks_nothing() {
    let (mut hub, alice, _) = group(&[]);
    let request = alice.as_user(info(&alice));
    assert!(ask(&mut hub, &alice, &request).is_ok());
    hub.revoke(alice.uri.domain(), &[alice.user_key_hash()]);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential);
}

// covers DS-011, DS-012
#[test]
fn a_users_request_is_signed_and_comes_through_its_domain() {
    let (mut hub, alice, others) = group(&["bob@b.test"]);
    let request = alice.as_user(info(&alice));
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::WrongOrigin);
    let forged = others[0].as_user_with(alice.user_key_hash(), &alice.chain[1], info(&alice));
    assert_eq!(code(ask(&mut hub, &alice, &forged)), ErrorCode::BadSignature);
}

// covers DS-080
#[test]
fn a_past_state_is_for_its_joiner() {
    let (mut hub, mut alice, _) = group(&[]);
    let bob = hub.client("bob@b.test");
    let request = alice.add(&[bob.key_package(Some(&bob.queue()))]);
    ask(&mut hub, &alice, &request).expect("accepted");
    let reference = hub.state().head.joiners[0].key_package_ref.clone();
    let welcome = |epoch| {
        let body = WelcomeInfo { group_id: bob.group_id(), epoch };
        bob.request(DsSenderId::KeyPackageRef(reference.as_slice().into()), DsRequest::WelcomeInfo(body))
    };
    assert_eq!(code(ask(&mut hub, &bob, &welcome(0))), ErrorCode::NotAuthorized);
    assert!(matches!(hub.decide(&welcome(1), bob.uri.domain()), Ok(Decision::WelcomeInfo { epoch: 1 })));
}

#[test]
fn a_member_is_heard_of_now_and_then() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    let heard = |hub: &TestHub| hub.state().members[&0].heard_at_ms;
    let before = heard(&hub);
    let request = alice.message("soon");
    ask(&mut hub, &alice, &request).expect("accepted");
    assert_eq!(heard(&hub), before);
    hub.ahead = std::time::Duration::from_secs(hub.limits.inactive_leaf_seconds_max / 10);
    let request = alice.message("later");
    ask(&mut hub, &alice, &request).expect("accepted");
    assert!(heard(&hub) > before, "a tenth of the time that is allowed has passed");
}
