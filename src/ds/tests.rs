//! The decisions, with real MLS members and no storage. What each refusal leaves behind on disk is for the system tests.

mod commits;
mod context;
mod external;
mod proposals;
mod removals;
mod renewals;
mod senders;

use super::testing::{TestHub, ds_message};
use super::*;
use crate::base::crypto::sha256;
use crate::mls::testing::TestClient;
use crate::wire::ds::*;
use crate::wire::{List, Opaque};

fn code(refused: Result<Outcome, Refusal>) -> ErrorCode {
    rejection(refused).code
}

fn rejection(refused: Result<Outcome, Refusal>) -> Rejection {
    match refused.expect_err("refused") {
        Refusal::Rejected(rejection) => rejection,
        Refusal::NeedsRoots(domains) => unreachable!("roots of {domains:?} are wanted"),
        Refusal::Failed(fault) => unreachable!("{fault}"),
    }
}

/// Alice's group at a.test with these further members, all of whom have joined.
fn group(others: &[&str]) -> (TestHub, TestClient, Vec<TestClient>) {
    let mut hub = TestHub::new();
    let mut alice = hub.client("alice@a.test");
    hub.create(&mut alice).expect("accepted");
    let mut members = Vec::new();
    for name in others {
        let member = hub.client(name);
        members = add(&mut hub, &mut alice, members, member);
    }
    (hub, alice, members)
}

/// Asks as a node of the client's own domain would.
fn ask(hub: &mut TestHub, who: &TestClient, request: &crate::wire::ClientRequest) -> Result<Outcome, Refusal> {
    hub.ask(request, who.uri.domain())
}

/// The Commit in a request.
fn commit_of(request: &crate::wire::ClientRequest) -> Vec<u8> {
    let request = commit::CommitRequest::of(&ds_message(request).request).expect("a Commit");
    request.update.commit.to_vec()
}

/// Adds another device of a member; everyone follows.
fn add_device(hub: &mut TestHub, adder: &mut TestClient, others: &mut [&mut TestClient], new: &mut TestClient) {
    let commit = adder.commit(&[new.key_package(Some(&new.queue()))], &[], true);
    let welcomes = vec![Opaque::from(commit.welcome.clone().expect("a Welcome"))].into();
    let body = GroupAdd { group_id: adder.group_id(), group_update: commit.update.clone(), welcomes };
    ask(hub, adder, &adder.as_leaf(DsRequest::AddClients(body))).expect("accepted");
    adder.merge();
    for other in others {
        other.receive(&commit.update.commit);
    }
    new.join(&commit.welcome.expect("a Welcome"), &hub.ratchet_tree());
}

/// Adds a member; everyone follows.
fn add(hub: &mut TestHub, adder: &mut TestClient, mut members: Vec<TestClient>, mut new: TestClient) -> Vec<TestClient> {
    let request = adder.add(&[new.key_package(Some(&new.queue()))]);
    hub.ask(&request, adder.uri.domain()).expect("accepted");
    adder.merge();
    let DsRequest::AddUsers(body) = &ds_message(&request).request else { unreachable!("an add_users") };
    for member in &mut members {
        member.receive(&body.group_update.commit);
    }
    new.join(&body.welcomes[0], &hub.ratchet_tree());
    members.push(new);
    members
}

#[test]
fn members_join_talk_update_and_are_removed() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test", "carol@a.test"]);
    assert_eq!((hub.state().head.epoch, hub.state().members.len(), hub.state().head.joiners.len()), (2, 3, 2));

    let request = others[0].message("hello");
    let outcome = hub.ask(&request, others[0].uri.domain()).expect("accepted");
    let to: Vec<u32> = outcome.fan_out[0].recipients.iter().map(|recipient| recipient.leaf_index).collect();
    assert_eq!(to, [0, 2], "everyone but the sender");
    assert_eq!(hub.state().head.joiners.len(), 1, "bob has been heard of as a member");

    let request = others[1].update();
    let outcome = hub.ask(&request, others[1].uri.domain()).expect("accepted");
    let Reply::CommitAccepted(receipt) = &outcome.reply else { unreachable!("a Commit was accepted") };
    let DsRequest::UpdateClient(body) = &ds_message(&request).request else { unreachable!("an update") };
    assert!(receipt.is_signed_by(hub.key.public()) && receipt.content.commit_hash == sha256(&body.group_update.commit));
    others[1].merge();
    alice.receive(&body.group_update.commit);
    others[0].receive(&body.group_update.commit);

    let request = alice.remove(&[1]);
    let outcome = hub.ask(&request, alice.uri.domain()).expect("accepted");
    let to: Vec<u32> = outcome.fan_out[0].recipients.iter().map(|recipient| recipient.leaf_index).collect();
    assert_eq!(to, [1, 2], "the removed one learns of it");
    assert_eq!(hub.state().members.keys().copied().collect::<Vec<_>>(), [0, 2]);
    let late = others[0].message("still here?");
    assert_eq!(code(hub.ask(&late, others[0].uri.domain())), ErrorCode::NotAuthorized);
}

#[test]
fn the_tree_is_rebuilt_from_snapshot_and_log_in_every_epoch() {
    let (mut hub, mut alice, others) = group(&["bob@b.test", "carol@a.test", "dave@b.test"]);
    // Removing the rightmost leaf makes the tree smaller; the next Add takes the place of the leftmost blank one.
    let request = alice.remove(&[1, 3]);
    hub.ask(&request, alice.uri.domain()).expect("accepted");
    alice.merge();
    let erin = hub.client("erin@b.test");
    let request = alice.add(&[erin.key_package(Some(&erin.queue()))]);
    hub.ask(&request, alice.uri.domain()).expect("accepted");
    drop(others);
    assert_eq!(hub.state().members.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(hub.state().members[&1].client, erin.uri);

    let id = hub.state().uri.to_bytes();
    for epochs in 0..=hub.log.len() {
        let records = hub.log.iter().take(epochs).map(Vec::as_slice);
        let tree = crate::mls::Tree::restore(&id, &hub.snapshot, records).expect("restores");
        assert_eq!(tree.epoch(), epochs as u64);
        if epochs == hub.log.len() {
            let now = hub.tree.as_ref().expect("there");
            assert_eq!(tree.ratchet_tree().expect("encodes"), now.ratchet_tree().expect("encodes"));
            assert_eq!(tree.leaf_indices(), [0, 1, 2]);
        }
    }
    let mut unknown = hub.snapshot.clone();
    unknown[0] = 99;
    let refused = crate::mls::Tree::restore(&id, &unknown, []).err().expect("an unknown format").to_string();
    assert!(refused.contains("format 99"), "{refused}");
}

// covers DS-010, DS-011, DS-012
#[test]
fn a_request_is_by_a_member_signed_by_its_leaf_and_through_its_own_domain() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let (a, b) = (alice.uri.domain().clone(), others[0].uri.domain().clone());
    let request = alice.message("hello");
    assert_eq!(code(hub.ask(&request, &b)), ErrorCode::WrongOrigin, "alice's request does not come through b.test");
    let DsRequest::SendMessage(body) = &ds_message(&request).request else { unreachable!("a message") };
    let forged = others[0].request(DsSenderId::LeafIndex(0), DsRequest::SendMessage(body.clone()));
    assert_eq!(code(hub.ask(&forged, &a)), ErrorCode::BadSignature, "bob signs as alice");
    let nobody = alice.request(DsSenderId::LeafIndex(7), DsRequest::SendMessage(body.clone()));
    assert_eq!(code(hub.ask(&nobody, &a)), ErrorCode::NotAuthorized);
    let mut altered = request.clone();
    altered.content.issued_at_ms += 1;
    assert_eq!(code(hub.ask(&altered, &a)), ErrorCode::BadSignature);
    assert!(hub.ask(&request, &a).is_ok());
    let ours = others[0].message("hello");
    assert!(hub.ask(&ours, &b).is_ok());
}

// covers DS-040, DS-041
#[test]
fn one_commit_wins_an_epoch_and_the_loser_learns_which() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let (first, second) = (alice.update(), others[0].update());
    hub.ask(&first, alice.uri.domain()).expect("accepted");
    let Refusal::Rejected(lost) = hub.ask(&second, others[0].uri.domain()).expect_err("refused") else {
        unreachable!("a rejection")
    };
    let DsRequest::UpdateClient(won) = &ds_message(&first).request else { unreachable!("an update") };
    let detail = lost.as_wrong_epoch().expect("wrong_epoch");
    assert_eq!((detail.current_epoch, detail.accepted_commit_hash), (2, Some(sha256(&won.group_update.commit))));
    // The loser's Commit in the winner's envelope.
    alice.merge();
    others[0].drop_pending();
    others[0].receive(&won.group_update.commit);
    let DsRequest::UpdateClient(body) = update_body(&mut others[0]) else { unreachable!("an update") };
    let stolen = alice.as_leaf(DsRequest::UpdateClient(body));
    assert_eq!(code(hub.ask(&stolen, alice.uri.domain())), ErrorCode::NotAuthorized);
}

fn update_body(client: &mut TestClient) -> DsRequest {
    ds_message(&client.update()).request.clone()
}

// covers DS-045
#[test]
fn a_group_info_that_is_not_the_commits_is_refused() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let DsRequest::UpdateClient(good) = update_body(&mut alice) else { unreachable!("an update") };
    let info = |group_info: Vec<u8>| {
        let group_update = GroupUpdate { group_info: group_info.into(), ..good.group_update.clone() };
        DsRequest::UpdateClient(GroupCommit { group_update, ..good.clone() })
    };
    let octets = good.group_update.group_info.to_vec();
    // Every single octet of it matters: context, extensions, confirmation tag, signer, signature.
    for position in (0..octets.len()).step_by(7) {
        let mut tampered = octets.clone();
        tampered[position] ^= 1;
        let refused = code(hub.ask(&alice.as_leaf(info(tampered)), alice.uri.domain()));
        assert_eq!(refused, ErrorCode::InvalidGroupInfo, "octet {position}");
    }
    let DsRequest::UpdateClient(other) = update_body(&mut others[0]) else { unreachable!("an update") };
    let foreign = info(other.group_update.group_info.to_vec());
    assert_eq!(code(hub.ask(&alice.as_leaf(foreign), alice.uri.domain())), ErrorCode::InvalidGroupInfo);
    let right = alice.as_leaf(DsRequest::UpdateClient(good));
    assert!(hub.ask(&right, alice.uri.domain()).is_ok());
}

// covers DS-048, DS-049, DS-050, DS-051
#[test]
fn a_commit_is_what_its_request_says() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test", "carol@a.test"]);
    let a = alice.uri.domain().clone();
    let id = alice.group_id();
    let update = alice.commit(&[], &[], true).update;
    let as_removal = alice.as_leaf(DsRequest::RemoveUsers(GroupCommit { group_id: id.clone(), group_update: update.clone() }));
    assert_eq!(code(hub.ask(&as_removal, &a)), ErrorCode::InvalidCommit);
    let as_add = GroupAdd { group_id: id.clone(), group_update: update, welcomes: List::default() };
    assert_eq!(code(hub.ask(&alice.as_leaf(DsRequest::AddUsers(as_add)), &a)), ErrorCode::InvalidCommit);
    alice.drop_pending();

    let removal = alice.commit(&[], &[1], true).update;
    let as_update = alice.as_leaf(DsRequest::UpdateClient(GroupCommit { group_id: id, group_update: removal }));
    assert_eq!(code(hub.ask(&as_update, &a)), ErrorCode::InvalidCommit);
    alice.drop_pending();

    // Bob is a member already: a second client of his is not for add_users.
    let second = others[0].device("tablet");
    let again = alice.add(&[second.key_package(Some(&second.queue()))]);
    assert_eq!(code(hub.ask(&again, &a)), ErrorCode::InvalidCommit);
    alice.drop_pending();
    let nobody = others[1].remove(&[]);
    assert_eq!(code(hub.ask(&nobody, &a)), ErrorCode::InvalidCommit);
}

// covers DS-020, DS-022, DS-023, DS-028, DS-052
#[test]
fn an_added_leaf_proves_who_it_is_and_says_where_its_messages_go() {
    let (mut hub, mut alice, _) = group(&[]);
    let a = alice.uri.domain().clone();
    let bob = hub.client("bob@b.test");
    let without_queue = alice.add(&[bob.key_package(None)]);
    assert_eq!(code(hub.ask(&without_queue, &a)), ErrorCode::InvalidQueueConfig);
    alice.drop_pending();
    let elsewhere = ClientQueueConfig { qs_domain: b"c.test".as_slice().into(), ..bob.queue() };
    let request = alice.add(&[bob.key_package(Some(&elsewhere))]);
    assert_eq!(code(hub.ask(&request, &a)), ErrorCode::InvalidQueueConfig);
    alice.drop_pending();

    // A chain of the same names under a root that is not the pinned one; garbage; a chain for another key.
    let stranger = TestHub::new().client("bob@b.test");
    let mut garbage = hub.client("bob@b.test");
    garbage.chain = vec![vec![1, 2, 3], vec![4]];
    let mut borrowed = hub.client("bob@b.test");
    borrowed.chain = bob.chain.clone();
    for fake in [stranger, garbage, borrowed] {
        let request = alice.add(&[fake.key_package(Some(&bob.queue()))]);
        assert_eq!(code(hub.ask(&request, &a)), ErrorCode::InvalidCredential);
        alice.drop_pending();
    }

    // A leaf that is all padding: its certificates are, by name, many times as long as they need to be.
    let mut fat = hub.client("bob@b.test");
    fat.chain = vec![vec![0x30; crate::base::limits::LEAF_NODE_BYTES_MAX]];
    let request = alice.add(&[fat.key_package(Some(&bob.queue()))]);
    assert_eq!(code(hub.ask(&request, &a)), ErrorCode::TooLarge);
    alice.drop_pending();

    let request = alice.add(&[bob.key_package(Some(&bob.queue()))]);
    let DsRequest::AddUsers(body) = &ds_message(&request).request else { unreachable!("an add_users") };
    for welcomes in [Vec::new(), vec![body.welcomes[0].clone(), body.welcomes[0].clone()], vec![Opaque::from(vec![1])]] {
        let wrong = GroupAdd { welcomes: welcomes.into(), ..body.clone() };
        assert_eq!(code(hub.ask(&alice.as_leaf(DsRequest::AddUsers(wrong)), &a)), ErrorCode::InvalidWelcome);
    }
    // An unknown domain is not a refusal: its roots are fetched first.
    let b: Domain = "b.test".parse().expect("a domain");
    let roots = hub.roots.remove(&b).expect("known");
    assert!(matches!(hub.ask(&request, &a), Err(Refusal::NeedsRoots(domains)) if domains == [b.clone()]));
    hub.roots.insert(b, roots);
    assert!(hub.ask(&request, &a).is_ok());
}

// covers DS-060, DS-061, DS-062, DS-063, DS-064
#[test]
fn an_application_message_is_of_the_group_and_of_an_epoch_its_sender_was_in() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let a = alice.uri.domain().clone();
    let id = alice.group_id();
    let send = |client: &TestClient, message: Vec<u8>| {
        client.as_leaf(DsRequest::SendMessage(SendMessage { group_id: id.clone(), message: message.into() }))
    };
    let handshake = alice.commit(&[], &[], true).update.commit.to_vec();
    alice.drop_pending();
    assert_eq!(code(hub.ask(&send(&alice, handshake), &a)), ErrorCode::InvalidMessage, "a handshake");
    assert_eq!(code(hub.ask(&send(&alice, vec![0, 1, 0, 2, 1]), &a)), ErrorCode::InvalidMessage, "garbage");
    let mut elsewhere = hub.client("dave@a.test").in_group(9);
    hub.creation(&mut elsewhere);
    let theirs = elsewhere.message("of another group");
    assert_eq!(code(hub.ask(&send(&alice, message_octets(&theirs)), &a)), ErrorCode::InvalidMessage, "of another group");
    let large = vec![0; crate::base::limits::APPLICATION_MESSAGE_BYTES_MAX + 1];
    assert_eq!(code(hub.ask(&send(&alice, large), &a)), ErrorCode::TooLarge);

    // Kept back while epochs pass: readable for a few of them, and not meant for those who joined since.
    let old = alice.message("early");
    for round in 0..=crate::base::limits::APPLICATION_PAST_EPOCHS_MAX {
        let DsRequest::SendMessage(body) = &ds_message(&old).request else { unreachable!("a message") };
        let repeat = alice.as_leaf(DsRequest::SendMessage(body.clone()));
        assert!(hub.ask(&repeat, &a).is_ok(), "{round} epochs later");
        if round == 0 {
            let carol = hub.client("carol@a.test");
            let members = std::mem::take(&mut others);
            others = add(&mut hub, &mut alice, members, carol);
            let outcome = hub.ask(&repeat, &a).expect("accepted");
            assert_eq!(outcome.fan_out[0].recipients.len(), 1, "carol could not read it");
            assert_eq!(code(hub.ask(&send(&others[1], message_octets(&old)), &a)), ErrorCode::NotAuthorized, "nor send it");
        } else {
            let request = alice.update();
            hub.ask(&request, &a).expect("accepted");
            alice.merge();
        }
    }
    assert_eq!(code(hub.ask(&old, &a)), ErrorCode::WrongEpoch);
    let stranger = code(hub.ask(&send(&others[1], message_octets(&old)), &a));
    assert_eq!(stranger, ErrorCode::WrongEpoch);
}

fn message_octets(request: &crate::wire::ClientRequest) -> Vec<u8> {
    let DsRequest::SendMessage(body) = &ds_message(request).request else { unreachable!("a message") };
    body.message.to_vec()
}

// covers DS-030, DS-031, DS-032, DS-033, DS-034, DS-035
#[test]
fn a_group_is_made_by_its_only_member() {
    let mut hub = TestHub::new();
    let mut alice = hub.client("alice@a.test");
    let a = alice.uri.domain().clone();
    let good = hub.creation(&mut alice);
    let refused = |hub: &mut TestHub, change: &dyn Fn(&mut CreateGroup, &mut DsSenderId)| {
        let message = ds_message(&good);
        let DsRequest::CreateGroup(body) = &message.request else { unreachable!("a create_group") };
        let (mut body, mut sender) = (body.clone(), message.sender_id.clone());
        change(&mut body, &mut sender);
        let request = alice.request(sender, DsRequest::CreateGroup(body));
        match hub.try_create(&request, &a).expect_err("refused") {
            Refusal::Rejected(rejection) => rejection.code,
            _ => unreachable!("all roots are known"),
        }
    };
    let elsewhere = refused(&mut hub, &|body, _| body.group_id = b"mimi://b.test/g/1".as_slice().into());
    assert_eq!(elsewhere, ErrorCode::InvalidGroupId);
    assert_eq!(refused(&mut hub, &|body, _| body.group_id = Opaque::default()), ErrorCode::InvalidGroupId);
    let other_id = refused(&mut hub, &|body, _| body.group_id = b"mimi://a.test/g/2".as_slice().into());
    assert_eq!(other_id, ErrorCode::InvalidGroupInfo, "the GroupInfo is of another group");
    assert_eq!(refused(&mut hub, &|body, _| body.key_package = vec![1].into()), ErrorCode::InvalidKeyPackage);
    assert_eq!(refused(&mut hub, &|_, sender| *sender = DsSenderId::LeafIndex(0)), ErrorCode::NotAuthorized);
    let mut stranger = hub.client("alice@a.test");
    let DsRequest::CreateGroup(body) = ds_message(&good).request.clone() else { unreachable!("a create_group") };
    let forged = stranger.request(ds_message(&good).sender_id.clone(), DsRequest::CreateGroup(body));
    assert!(
        matches!(hub.try_create(&forged, &a), Err(Refusal::Rejected(rejection)) if rejection.code == ErrorCode::BadSignature)
    );
    let theirs = hub.creation(&mut stranger);
    let DsRequest::CreateGroup(theirs) = ds_message(&theirs).request.clone() else { unreachable!("a create_group") };
    let foreign = refused(&mut hub, &|body, _| body.group_info = theirs.group_info.clone());
    assert_eq!(foreign, ErrorCode::InvalidGroupInfo, "its only leaf is another's");
    let through: Domain = "b.test".parse().expect("a domain");
    assert!(
        matches!(hub.try_create(&good, &through), Err(Refusal::Rejected(rejection)) if rejection.code == ErrorCode::WrongOrigin)
    );
    assert!(hub.try_create(&good, &a).is_ok());
}
