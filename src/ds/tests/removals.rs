//! Removes by the DS: issued, covered, withdrawn, and what happens meanwhile.

use std::time::Duration;

use super::*;
use crate::wire::decode;
use crate::wire::error::PendingProposals;

fn messages(outcome: &Outcome) -> Vec<Vec<u8>> {
    let message = |fan_out: &FanOut| match &fan_out.delivery {
        Delivery::Message(message) => message.message.to_vec(),
        _ => unreachable!("a message"),
    };
    outcome.fan_out.iter().map(message).collect()
}

/// Wants leaves removed; returns the proposals.
fn want(hub: &mut TestHub, wanted: &[(u32, Cause)]) -> Vec<Vec<u8>> {
    messages(&hub.act(|hub, state| removal::issue(hub, state, wanted)).expect("news"))
}

// covers DS-056, DS-065
#[test]
fn until_a_commit_covers_them_nothing_else_passes() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test", "carol@a.test"]);
    let proposals = want(&mut hub, &[(1, Cause::ClientRevoked)]);
    let request = alice.message("hello");
    let refused = rejection(ask(&mut hub, &alice, &request));
    assert_eq!(refused.code, ErrorCode::PendingProposals);
    let detail: PendingProposals = decode(&refused.detail).expect("its detail");
    assert_eq!(detail.proposals.iter().map(|proposal| proposal.to_vec()).collect::<Vec<_>>(), proposals);
    let request = alice.update();
    assert_eq!(rejection(ask(&mut hub, &alice, &request)), refused);
    alice.drop_pending();

    for client in [&mut alice, &mut others[1]] {
        client.learn(&proposals[0]);
    }
    // Whatever else a Commit does, it carries the Remove.
    let erin = hub.client("erin@b.test");
    let request = alice.add(&[erin.key_package(Some(&erin.queue()))]);
    let outcome = ask(&mut hub, &alice, &request).expect("accepted");
    assert_eq!(outcome.fan_out[0].recipients.len(), 2, "the removed one learns of it");
    assert_eq!(hub.state().members[&1].client, erin.uri, "in the place that became free");
    others[1].receive(&commit_of(&request));
    alice.merge();
    let request = alice.message("on");
    assert!(ask(&mut hub, &alice, &request).is_ok());
}

// covers DS-057
#[test]
fn a_target_neither_commits_nor_proposes() {
    let (mut hub, _, mut others) = group(&["bob@b.test"]);
    want(&mut hub, &[(1, Cause::Inactive)]);
    let request = others[0].update();
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::NotAuthorized);
    others[0].drop_pending();
    let update = others[0].proposed_update(None, TestClient::capabilities());
    let request = others[0].propose(vec![update]);
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::NotAuthorized);
}

#[test]
fn a_client_that_was_silent_comes_back_with_its_queue() {
    let (mut hub, mut alice, others) = group(&["bob@b.test"]);
    let proposals = want(&mut hub, &[(1, Cause::Inactive)]);
    let body = UpdateQueueInfo { group_id: others[0].group_id(), client_queue_config: others[0].queue() };
    let request = others[0].as_leaf(DsRequest::UpdateQueueInfo(body));
    ask(&mut hub, &others[0], &request).expect("accepted");
    assert!(hub.state().head.removals.is_empty());
    let request = alice.message("with both");
    assert!(ask(&mut hub, &alice, &request).is_ok(), "nothing has to be committed any more");
    // Wanted again in the same epoch: nothing new to send, but the old one counts again.
    assert!(want(&mut hub, &[(1, Cause::Inactive)]).is_empty());
    let request = alice.message("not yet");
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::PendingProposals);
    hub.act(|_, state| removal::withdraw(state, 1)).expect("news");
    // A withdrawn one may be committed until the epoch ends.
    alice.learn(&proposals[0]);
    let request = alice.update();
    ask(&mut hub, &alice, &request).expect("accepted");
    assert_eq!(hub.state().members.len(), 1);
}

#[test]
fn who_is_revoked_does_not_come_back_with_its_queue() {
    let (mut hub, _, others) = group(&["bob@b.test"]);
    want(&mut hub, &[(1, Cause::ClientRevoked)]);
    let body = UpdateQueueInfo { group_id: others[0].group_id(), client_queue_config: others[0].queue() };
    let request = others[0].as_leaf(DsRequest::UpdateQueueInfo(body));
    ask(&mut hub, &others[0], &request).expect("accepted");
    assert!(hub.state().is_target(1));
}

#[test]
fn so_many_are_pending_at_once_and_the_rest_follow() {
    let (mut hub, mut alice, _) = group(&["bob@b.test", "carol@a.test", "dave@b.test"]);
    hub.limits.removals_at_once_max = 2;
    let mut pending = want(&mut hub, &[(1, Cause::Inactive), (2, Cause::Left), (3, Cause::Inactive)]);
    assert_eq!((pending.len(), hub.state().head.removals.len()), (2, 3));
    for left in [1, 0] {
        pending.iter().for_each(|proposal| alice.learn(proposal));
        let request = alice.update();
        let outcome = ask(&mut hub, &alice, &request).expect("accepted");
        alice.merge();
        assert_eq!(hub.state().head.removals.len(), left);
        pending = messages(&outcome).split_off(1);
        assert_eq!(pending.len(), left, "in the same outcome");
    }
    assert_eq!(hub.state().members.len(), 1);
}

#[test]
fn a_withdrawn_remove_that_is_wanted_again_counts_like_a_new_one() {
    let (mut hub, _, _) = group(&["bob@b.test", "carol@a.test", "dave@b.test"]);
    hub.limits.removals_at_once_max = 2;
    want(&mut hub, &[(1, Cause::Expired), (2, Cause::Expired)]);
    hub.act(|_, state| removal::withdraw(state, 1)).expect("taken back");
    assert_eq!(want(&mut hub, &[(3, Cause::Expired)]).len(), 1);
    assert!(want(&mut hub, &[(1, Cause::Expired)]).is_empty(), "everybody has it already");
    let pending: Vec<u32> = hub.state().head.pending_removes().map(|(target, _)| target).collect();
    assert_eq!((pending, hub.state().head.removals.len()), (vec![2, 3], 3));
}

#[test]
fn a_user_leaves_with_all_its_leaves() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test", "carol@a.test"]);
    let mut laptop = alice.device("laptop");
    let (bob, carol) = others.split_at_mut(1);
    add_device(&mut hub, &mut alice, &mut [&mut bob[0], &mut carol[0]], &mut laptop);
    let leave = |client: &TestClient| client.as_leaf(DsRequest::LeaveGroup(GroupOnly { group_id: client.group_id() }));
    let proposals = messages(&ask(&mut hub, &laptop, &leave(&laptop)).expect("accepted"));
    assert_eq!((proposals.len(), hub.state().head.removals.len()), (2, 2));
    let repeat = ask(&mut hub, &alice, &leave(&alice)).expect("accepted");
    assert!(repeat.fan_out.is_empty(), "it leaves already");
    proposals.iter().for_each(|proposal| bob[0].learn(proposal));
    let request = bob[0].update();
    ask(&mut hub, &bob[0], &request).expect("accepted");
    assert!(!hub.state().has_user(alice.uri.user()) && hub.state().members.len() == 2);
}

#[test]
fn an_invitation_is_declined() {
    let (mut hub, mut alice, _) = group(&["carol@a.test"]);
    let bob = hub.client("bob@b.test");
    let request = alice.add(&[bob.key_package(Some(&bob.queue()))]);
    ask(&mut hub, &alice, &request).expect("accepted");
    alice.merge();
    let joiner = hub.state().head.joiners.iter().find(|joiner| joiner.leaf_index == 2).expect("bob");
    let sender = DsSenderId::KeyPackageRef(joiner.key_package_ref.as_slice().into());
    let request = bob.request(sender, DsRequest::LeaveGroup(GroupOnly { group_id: bob.group_id() }));
    let proposals = messages(&ask(&mut hub, &bob, &request).expect("accepted"));
    assert_eq!(hub.state().head.removal(2).map(|removal| removal.cause), Some(Cause::Declined));
    alice.learn(&proposals[0]);
    let request = alice.update();
    ask(&mut hub, &alice, &request).expect("accepted");
    assert!(!hub.state().has_user(bob.uri.user()));
}

#[test]
fn the_last_ones_to_leave_close_the_group() {
    let (mut hub, alice, others) = group(&["bob@b.test"]);
    want(&mut hub, &[(1, Cause::Inactive)]);
    let leaving = alice.as_leaf(DsRequest::LeaveGroup(GroupOnly { group_id: alice.group_id() }));
    ask(&mut hub, &alice, &leaving).expect("accepted");
    assert!(hub.state().head.closed_at_ms.is_some() && hub.state().members.is_empty());
    let request = others[0].as_leaf(DsRequest::LeaveGroup(GroupOnly { group_id: alice.group_id() }));
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::GroupDeleted);
    assert_eq!(hub.authenticate(&leaving, alice.uri.domain()).expect("known, for its answer").key(), alice.key.public());
    assert!(hub.act(|hub, state| removal::issue(hub, state, &[(0, Cause::Inactive)])).is_none());
}

#[test]
fn a_rejected_queue_counts_as_long_as_it_is_the_current_one() {
    let (mut hub, _, others) = group(&["bob@b.test"]);
    let rejected = hub.state().members[&1].queue.information.clone();
    let renewed = ClientQueueConfig { client_queue_information: vec![1].into(), ..others[0].queue() };
    let body = UpdateQueueInfo { group_id: others[0].group_id(), client_queue_config: renewed };
    let request = others[0].as_leaf(DsRequest::UpdateQueueInfo(body));
    ask(&mut hub, &others[0], &request).expect("accepted");
    assert!(hub.act(|hub, state| removal::rejected_queue(hub, state, 1, &rejected)).is_none());
    assert!(hub.act(|hub, state| removal::rejected_queue(hub, state, 7, &[1])).is_none(), "no such leaf");
    assert!(hub.act(|hub, state| removal::rejected_queue(hub, state, 1, &[1])).is_some());
    assert_eq!(hub.state().head.removal(1).map(|removal| removal.cause), Some(Cause::QueueRejected));
}

#[test]
fn time_and_revocation_make_leaves_removable() {
    let (mut hub, alice, others) = group(&["bob@b.test", "carol@a.test"]);
    assert!(removal::due(&hub.hub(), hub.state()).is_empty());
    hub.revoke(others[0].uri.domain(), &[others[0].key_hash()]);
    hub.revoke(alice.uri.domain(), &[others[1].user_key_hash()]);
    assert_eq!(removal::due(&hub.hub(), hub.state()), [(1, Cause::ClientRevoked), (2, Cause::UserDeleted)]);
    let due = removal::due(&hub.hub(), hub.state());
    want(&mut hub, &due);
    assert!(removal::due(&hub.hub(), hub.state()).is_empty(), "wanted already");
    hub.ahead = Duration::from_secs(hub.limits.inactive_leaf_seconds_max + 1);
    assert_eq!(removal::due(&hub.hub(), hub.state()), [(0, Cause::Inactive)]);
}

#[test]
fn a_leaf_ends_with_its_key_package_or_its_certificate() {
    let (mut hub, _, _) = group(&["bob@b.test"]);
    hub.limits.inactive_leaf_seconds_max = u64::MAX / 1000;
    hub.ahead = Duration::from_secs(100 * 24 * 60 * 60);
    assert_eq!(removal::due(&hub.hub(), hub.state()), [(1, Cause::Expired)], "alice's leaf has been renewed by a path");
    hub.ahead = Duration::from_secs(400 * 24 * 60 * 60);
    assert_eq!(removal::due(&hub.hub(), hub.state()), [(0, Cause::Expired), (1, Cause::Expired)]);
}

#[test]
fn an_inactive_leaf_whose_key_is_revoked_does_not_come_back() {
    let (mut hub, _, others) = group(&["bob@b.test"]);
    want(&mut hub, &[(1, Cause::Inactive)]);
    hub.revoke(others[0].uri.domain(), &[others[0].key_hash()]);
    assert_eq!(removal::due(&hub.hub(), hub.state()), [(1, Cause::ClientRevoked)]);
    assert!(want(&mut hub, &[(1, Cause::ClientRevoked)]).is_empty(), "everybody knows that it is to go");
    assert_eq!(hub.state().head.removal(1).map(|removal| removal.cause), Some(Cause::ClientRevoked));
}

#[test]
fn a_tree_from_disk_knows_the_pending_proposals_again() {
    let (mut hub, mut alice, _) = group(&["bob@b.test", "carol@a.test"]);
    let proposals = want(&mut hub, &[(1, Cause::Inactive)]);
    alice.learn(&proposals[0]);
    let id = hub.state().uri.to_bytes();
    let records = hub.log.iter().map(Vec::as_slice);
    hub.tree = Some(crate::mls::Tree::restore(&id, &hub.snapshot, records).expect("restores"));
    let request = alice.update();
    assert!(ask(&mut hub, &alice, &request).is_ok());
}

#[test]
fn an_update_of_a_leaf_that_is_to_go_is_passed_over() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test", "carol@a.test"]);
    let update = others[0].proposed_update(None, TestClient::capabilities());
    let request = others[0].propose(vec![update.clone()]);
    ask(&mut hub, &others[0], &request).expect("accepted");
    let removal = want(&mut hub, &[(1, Cause::Expired)]);
    alice.learn(&update);
    alice.learn(&removal[0]);
    let request = alice.update();
    ask(&mut hub, &alice, &request).expect("accepted");
    assert_eq!(hub.leaves(), [0, 2]);
    others[1].learn(&update);
    others[1].learn(&removal[0]);
    others[1].receive(&commit_of(&request));
    hub.check();
}

#[test]
fn a_group_is_deleted_while_removes_are_pending() {
    let (mut hub, mut alice, _) = group(&["bob@b.test", "carol@a.test"]);
    let removal = want(&mut hub, &[(1, Cause::Inactive)]);
    let all = alice.commit(&[], &[1, 2], true);
    let request = alice.with_commit(DsRequest::DeleteGroup, &all);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::PendingProposals, "by reference, not by value");
    alice.drop_pending();
    alice.learn(&removal[0]);
    let all = alice.commit(&[], &[2], true);
    let request = alice.with_commit(DsRequest::DeleteGroup, &all);
    ask(&mut hub, &alice, &request).expect("accepted");
    assert!(hub.state().head.closed_at_ms.is_some() && hub.state().head.removals.is_empty());
    assert_eq!(hub.leaves(), [0]);
}

#[test]
fn a_more_final_cause_takes_over() {
    let (mut hub, mut alice, others) = group(&["bob@b.test"]);
    want(&mut hub, &[(1, Cause::Inactive)]);
    // The client has lost everything and comes in anew; whoever has its old key cannot keep the old leaf.
    let mut phone = others[0].device("phone");
    let update = phone.external_commit(&hub.ratchet_tree(), &hub.group_info);
    let request = phone.as_user(DsRequest::JoinClient(phone.joining(update)));
    ask(&mut hub, &phone, &request).expect("accepted");
    assert_eq!(hub.state().head.removal(1).map(|removal| removal.cause), Some(Cause::Replaced));
    let body = UpdateQueueInfo { group_id: others[0].group_id(), client_queue_config: others[0].queue() };
    let back = others[0].as_leaf(DsRequest::UpdateQueueInfo(body));
    ask(&mut hub, &others[0], &back).expect("accepted");
    assert!(hub.state().is_target(1));
    alice.receive(&commit_of(&request));
}
