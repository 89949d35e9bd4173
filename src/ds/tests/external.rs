//! External Commits.

use super::*;
use crate::mls::JoinPolicy;

/// Alice's group that anybody may join, with bob in it.
fn open_group() -> (TestHub, TestClient, Vec<TestClient>) {
    let mut hub = TestHub::new();
    let mut alice = hub.client("alice@a.test");
    let creation = alice.create_with_policy(&hub.external_sender, JoinPolicy::Open);
    hub.try_create(&creation, alice.uri.domain()).expect("accepted");
    let bob = hub.client("bob@b.test");
    let others = add(&mut hub, &mut alice, Vec::new(), bob);
    (hub, alice, others)
}

/// The request of a client that comes in with its user's key.
fn join(hub: &TestHub, client: &mut TestClient, kind: fn(GroupJoin) -> DsRequest) -> crate::wire::ClientRequest {
    let update = client.external_commit(&hub.ratchet_tree(), &hub.group_info);
    client.as_user(kind(client.joining(update)))
}

#[test]
fn anybody_joins_where_the_policy_is_open() {
    let (mut hub, mut alice, mut others) = open_group();
    let mut dave = hub.client("dave@c.test");
    let look = dave.as_user(DsRequest::ExternalCommitInfo(GroupOnly { group_id: dave.group_id() }));
    assert!(matches!(hub.decide(&look, dave.uri.domain()), Ok(Decision::ExternalCommitInfo)));
    let request = join(&hub, &mut dave, DsRequest::JoinGroup);
    let outcome = ask(&mut hub, &dave, &request).expect("accepted");
    assert_eq!(outcome.fan_out[0].recipients.len(), 2, "everyone who was there");
    assert_eq!(hub.state().members[&2].client, dave.uri);
    let commit = commit_of(&request);
    alice.receive(&commit);
    others[0].receive(&commit);
    let message = dave.message("hello");
    assert_eq!(ask(&mut hub, &dave, &message).expect("accepted").fan_out[0].recipients.len(), 2);
    let request = alice.update();
    ask(&mut hub, &alice, &request).expect("accepted");
    dave.receive(&commit_of(&request));
}

// covers DS-091
#[test]
fn nobody_joins_where_it_is_closed() {
    let (mut hub, _, _) = group(&["bob@b.test"]);
    let mut dave = hub.client("dave@c.test");
    let look = dave.as_user(DsRequest::ExternalCommitInfo(GroupOnly { group_id: dave.group_id() }));
    assert_eq!(code(ask(&mut hub, &dave, &look)), ErrorCode::NotAuthorized);
    let request = join(&hub, &mut dave, DsRequest::JoinGroup);
    assert_eq!(code(ask(&mut hub, &dave, &request)), ErrorCode::NotAuthorized);
}

// covers DS-092
#[test]
fn who_is_there_does_not_join_the_group() {
    let (mut hub, alice, _) = open_group();
    let mut laptop = alice.device("laptop");
    let request = join(&hub, &mut laptop, DsRequest::JoinGroup);
    assert_eq!(code(ask(&mut hub, &laptop, &request)), ErrorCode::NotAuthorized);
}

// covers DS-093
#[test]
fn who_is_not_there_does_not_join_as_a_further_client() {
    let (mut hub, _, _) = open_group();
    let mut dave = hub.client("dave@c.test");
    let request = join(&hub, &mut dave, DsRequest::JoinClient);
    assert_eq!(code(ask(&mut hub, &dave, &request)), ErrorCode::NotAuthorized);
}

#[test]
fn a_further_client_joins_and_one_that_lost_everything_is_replaced() {
    let (mut hub, mut alice, others) = group(&["bob@b.test"]);
    let mut laptop = alice.device("laptop");
    let request = join(&hub, &mut laptop, DsRequest::JoinClient);
    ask(&mut hub, &laptop, &request).expect("accepted");
    assert_eq!(hub.state().members[&2].client, laptop.uri);
    alice.receive(&commit_of(&request));
    assert!(hub.state().head.removals.is_empty());

    // Bob's phone has lost its keys: a leaf of the same client comes in, and the DS has the old one removed.
    let mut bob = others[0].device("phone");
    let request = join(&hub, &mut bob, DsRequest::JoinClient);
    let outcome = ask(&mut hub, &bob, &request).expect("accepted");
    assert_eq!(hub.state().head.removal(1).map(|removal| removal.cause), Some(Cause::Replaced));
    let [commit, removal] = outcome.fan_out.as_slice() else { unreachable!("a Commit and a Remove") };
    assert_eq!((commit.recipients.len(), removal.recipients.len(), removal.epoch), (3, 4, 3));
    alice.receive(&commit_of(&request));
    let request = alice.message("waits");
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::PendingProposals);
    let Delivery::Message(message) = &removal.delivery else { unreachable!("a proposal") };
    for client in [&mut alice, &mut bob] {
        client.learn(&message.message);
    }
    let request = bob.update();
    ask(&mut hub, &bob, &request).expect("accepted");
    alice.receive(&commit_of(&request));
    assert_eq!(hub.state().members.keys().copied().collect::<Vec<_>>(), [0, 2, 3]);
    let request = alice.message("goes");
    assert!(ask(&mut hub, &alice, &request).is_ok());
}

#[test]
fn a_client_resyncs_at_whichever_leaf_it_had() {
    for position in 0..5 {
        // The last of five leaves is alone in its half of the tree: without it the tree is half as large.
        let (mut hub, alice, others) = group(&["bob@b.test", "carol@a.test", "dave@b.test", "erin@a.test"]);
        let mut members: Vec<TestClient> = std::iter::once(alice).chain(others).collect();
        let mut again = members.remove(position);
        let old = again.leaf_index();
        let update = again.external_commit(&hub.ratchet_tree(), &hub.group_info);
        let body = DsRequest::ResyncClient(again.joining(update));
        let request = again.request(DsSenderId::LeafIndex(old), body);
        let outcome = ask(&mut hub, &again, &request).expect("accepted");
        assert_eq!(outcome.fan_out[0].recipients.len(), 4, "the old leaf gets no copy");
        assert_eq!((hub.state().members.len(), again.leaf_index()), (5, old), "the leftmost free leaf is its own");
        assert_eq!(hub.state().members[&old].joined_epoch, 5);
        hub.check();
        for member in &mut members {
            member.receive(&commit_of(&request));
        }
        let message = again.message("back");
        assert_eq!(ask(&mut hub, &again, &message).expect("accepted").fan_out[0].recipients.len(), 4);
        // Once more, signed with the key of the leaf that is gone: still known, for the stored answer.
        assert!(hub.authenticate(&request, again.uri.domain()).is_ok());
    }
}

#[test]
fn who_joins_takes_the_leftmost_free_leaf() {
    let (mut hub, mut alice, others) = group(&["bob@b.test", "carol@a.test", "dave@b.test"]);
    let request = alice.remove(&[1, 2]);
    ask(&mut hub, &alice, &request).expect("accepted");
    alice.merge();
    let mut laptop = alice.device("laptop");
    let mut tablet = others[2].device("tablet");
    for (client, lands) in [(&mut laptop, 1), (&mut tablet, 2)] {
        let request = join(&hub, client, DsRequest::JoinClient);
        ask(&mut hub, client, &request).expect("accepted");
        assert_eq!((client.leaf_index(), &hub.state().members[&lands].client), (lands, &client.uri));
        hub.check();
    }
    // Alice goes; dave's phone comes back in her place, which is left of its own.
    let request = tablet.remove(&[0, 1]);
    ask(&mut hub, &tablet, &request).expect("accepted");
    tablet.merge();
    let mut phone = others.into_iter().nth(2).expect("dave");
    let update = phone.external_commit(&hub.ratchet_tree(), &hub.group_info);
    let request = phone.request(DsSenderId::LeafIndex(3), DsRequest::ResyncClient(phone.joining(update)));
    ask(&mut hub, &phone, &request).expect("accepted");
    assert_eq!((phone.leaf_index(), hub.leaves()), (0, vec![0, 2]));
    tablet.receive(&commit_of(&request));
    hub.check();
}

// covers DS-096
#[test]
fn a_resync_takes_the_old_leaf_out() {
    let (mut hub, _, others) = group(&["bob@b.test"]);
    let mut renewed = others[0].device("phone");
    let update = renewed.external_commit(&hub.ratchet_tree(), &hub.group_info);
    let request = others[0].as_leaf(DsRequest::ResyncClient(renewed.joining(update)));
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::InvalidCommit);
}

// covers DS-079
#[test]
fn no_other_clients_leaf_is_taken_out() {
    let (mut hub, alice, _) = group(&["bob@b.test"]);
    // The builder removes the leaf with the same key, whose client is another.
    let mut laptop = alice.device_with_key("laptop", alice.key.clone());
    let request = join(&hub, &mut laptop, DsRequest::JoinClient);
    assert_eq!(code(ask(&mut hub, &laptop, &request)), ErrorCode::InvalidCommit);
    let mut phone = alice.device_with_key("phone", alice.key.clone());
    let request = join(&hub, &mut phone, DsRequest::JoinClient);
    assert!(ask(&mut hub, &phone, &request).is_ok());
    assert_eq!(hub.state().members.len(), 2);
}

// covers DS-078
#[test]
fn who_joins_sends_an_external_commit() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    let update = alice.commit(&[], &[], true).update;
    let request = alice.as_user(DsRequest::JoinClient(alice.joining(update)));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit);
    let mut laptop = alice.device("laptop");
    let group_update = laptop.external_commit(&hub.ratchet_tree(), &hub.group_info);
    let body = GroupCommit { group_id: alice.group_id(), group_update };
    let request = alice.as_leaf(DsRequest::UpdateClient(body));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::NotAuthorized, "and nobody else does");
}

// covers DS-095
#[test]
fn who_joins_is_a_client_of_who_asks() {
    let (mut hub, alice, others) = group(&["bob@b.test"]);
    let mut tablet = others[0].device("tablet");
    let update = tablet.external_commit(&hub.ratchet_tree(), &hub.group_info);
    let request = alice.as_user(DsRequest::JoinClient(tablet.joining(update)));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential);
    let mut laptop = alice.device_with_key("laptop", alice.key.clone());
    let update = laptop.external_commit(&hub.ratchet_tree(), &hub.group_info);
    let request = alice.as_leaf(DsRequest::ResyncClient(laptop.joining(update)));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential, "the same key under another name");
}

// covers DS-094
#[test]
fn who_leaves_or_was_deleted_does_not_come_in() {
    for cause in [Cause::Left, Cause::UserDeleted, Cause::Inactive] {
        let (mut hub, mut alice, _) = group(&["bob@b.test"]);
        hub.act(|hub, state| removal::issue(hub, state, &[(0, cause)])).expect("news");
        let mut laptop = alice.device("laptop");
        let request = join(&hub, &mut laptop, DsRequest::JoinClient);
        let old = alice.leaf_index();
        let update = alice.external_commit(&hub.ratchet_tree(), &hub.group_info);
        let resync = alice.request(DsSenderId::LeafIndex(old), DsRequest::ResyncClient(alice.joining(update)));
        if cause == Cause::Inactive {
            assert!(hub.decide(&request, laptop.uri.domain()).is_ok());
            ask(&mut hub, &alice, &resync).expect("it came back");
            assert!(hub.state().head.removals.is_empty() && hub.state().head.proposals.is_empty());
        } else {
            assert_eq!(code(ask(&mut hub, &laptop, &request)), ErrorCode::NotAuthorized, "{cause:?}");
            assert_eq!(code(ask(&mut hub, &alice, &resync)), ErrorCode::NotAuthorized, "{cause:?}");
        }
    }
}

#[test]
fn an_external_commit_passes_pending_removes_which_are_proposed_anew() {
    let (mut hub, mut alice, others) = group(&["bob@b.test", "carol@a.test"]);
    hub.act(|hub, state| removal::issue(hub, state, &[(1, Cause::Inactive)])).expect("news");
    let mut laptop = others[1].device("laptop");
    let request = join(&hub, &mut laptop, DsRequest::JoinClient);
    let outcome = ask(&mut hub, &laptop, &request).expect("accepted");
    let [_, removal] = outcome.fan_out.as_slice() else { unreachable!("a Commit and a Remove") };
    assert_eq!((removal.epoch, removal.recipients.len()), (3, 4), "the new leaf can commit it, too");
    let Delivery::Message(message) = &removal.delivery else { unreachable!("a proposal") };
    alice.receive(&commit_of(&request));
    alice.learn(&message.message);
    let request = alice.update();
    ask(&mut hub, &alice, &request).expect("accepted");
    assert!(!hub.state().members.contains_key(&1) && hub.state().head.removals.is_empty());
}
