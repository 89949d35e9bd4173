//! Members' Commits: what each request's may do, and what no Commit may.

use openmls::prelude::ExtensionType;

use super::*;
use crate::mls::testing::Plan;
use crate::synth::{Capabilities, Change};
use crate::tests::forged::{Device, Room};

// covers DS-054
#[test]
fn a_commit_is_within_its_limit() {
    let (mut hub, mut alice, _) = group(&[]);
    let request = alice.update();
    hub.limits.commit_bytes_max = commit_of(&request).len() - 1;
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::TooLarge);
    hub.limits.commit_bytes_max += 1;
    assert!(ask(&mut hub, &alice, &request).is_ok());
}

// covers DS-058
#[test]
fn a_group_info_is_within_its_limit() {
    let (mut hub, mut alice, _) = group(&[]);
    let good = alice.commit(&[], &[], true).update;
    hub.limits.context_extensions_bytes_max = 1024;
    let mut padded = good.group_info.to_vec();
    padded.resize(1024 + crate::base::limits::GROUP_INFO_OVERHEAD_BYTES_MAX + 1, 0);
    let group_update = GroupUpdate { group_info: padded.into(), ..good };
    let request = alice.as_leaf(DsRequest::UpdateClient(GroupCommit { group_id: alice.group_id(), group_update }));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::TooLarge);

    let mut hub = TestHub::new();
    let mut bob = hub.client("bob@a.test");
    let request = hub.creation(&mut bob);
    let message = ds_message(&request).clone();
    let DsRequest::CreateGroup(mut body) = message.request else { unreachable!("a create_group") };
    let mut padded = body.group_info.to_vec();
    padded.resize(padded.len() + 64 * 1024, 0);
    body.group_info = padded.into();
    let request = bob.request(message.sender_id, DsRequest::CreateGroup(body));
    let refused = hub.try_create(&request, bob.uri.domain());
    assert!(matches!(refused, Err(Refusal::Rejected(rejection)) if rejection.code == ErrorCode::TooLarge));
}

// covers DS-042, DS-055
#[test]
fn a_commit_is_a_valid_one_and_public() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let good = alice.commit(&[], &[], true);
    let mut damaged = good.update.commit.to_vec();
    // Behind the frame of group id, epoch and sender: whatever is changed there, a signature or a hash does not hold.
    let position = damaged.len() / 2;
    damaged[position] ^= 1;
    let update = |commit: Vec<u8>| {
        let group_update = GroupUpdate { commit: commit.into(), ..good.update.clone() };
        DsRequest::UpdateClient(GroupCommit { group_id: alice.group_id(), group_update })
    };
    assert_eq!(code(ask(&mut hub, &alice, &alice.as_leaf(update(damaged)))), ErrorCode::InvalidCommit);
    let message = message_octets(&others[0].message("hello"));
    let proposal = others[0].proposed_update(None, TestClient::capabilities());
    for other in [proposal, message, vec![0, 1, 0, 1], Vec::new()] {
        assert_eq!(code(ask(&mut hub, &alice, &alice.as_leaf(update(other)))), ErrorCode::InvalidCommit);
    }
}

// covers DS-097
#[test]
fn a_commit_lists_no_proposal_twice() {
    let mut hub = TestHub::new();
    let devices = ["a.test", "b.test"].map(|domain| {
        let domain: Domain = domain.parse().expect("a domain");
        Device::new(&hub.as_roots[&domain], "alice")
    });
    let (mut room, creation) = Room::forge(&hub.domain, &hub.external_sender, &devices[0], devices[0].opaque_queue());
    hub.try_create(&creation, devices[0].domain()).expect("accepted");
    let package = devices[1].key_package(Some(&devices[1].opaque_queue()));
    let add = room.group.add(0, vec![package]).expect("a Commit");
    hub.ask(&room.request(0, DsRequest::AddUsers(room.add_body(&add))), devices[0].domain()).expect("accepted");
    // Remove (type 3) of leaf 1.
    let remove = vec![0, 3, 0, 0, 0, 1];
    let twice = room.try_commit(0, Change { remove: vec![1], other: vec![remove], ..Change::default() });
    let request = room.request(0, DsRequest::RemoveUsers(room.commit_body(&twice)));
    assert_eq!(code(hub.ask(&request, devices[0].domain())), ErrorCode::InvalidCommit);
    let once = room.try_commit(0, Change { remove: vec![1], ..Change::default() });
    let request = room.request(0, DsRequest::RemoveUsers(room.commit_body(&once)));
    assert!(hub.ask(&request, devices[0].domain()).is_ok());
}

// covers DS-098
#[test]
fn the_leaves_of_a_group_fit_a_frame_together() {
    let mut hub = TestHub::new();
    let root = hub.as_roots[&hub.domain].clone();
    let alice = Device::new(&root, "alice");
    let (mut room, creation) = Room::forge(&hub.domain, &hub.external_sender, &alice, alice.opaque_queue());
    hub.try_create(&creation, alice.domain()).expect("accepted");
    // Leaf nodes that are nearly as large as one may be, by extension types that nobody knows.
    let each = crate::base::limits::LEAF_NODE_BYTES_MAX - 2048;
    let fat = || Capabilities { extensions: (0..each / 2).map(|kind| 0xF0C0 | kind as u16).collect(), ..Capabilities::default() };
    let most = crate::base::limits::LEAF_NODES_BYTES_MAX / each;
    let package = |name: String| {
        let device = Device::new(&root, &name);
        device.key_package_with(Some(&device.opaque_queue()), fat())
    };
    let mut refused = None;
    for round in 0..=most / 40 {
        let packages = (0..40).map(|number| package(format!("user{round}-{number}"))).collect();
        let add = room.group.add(0, packages).expect("a Commit");
        let asked = hub.ask(&room.request(0, DsRequest::AddUsers(room.add_body(&add))), alice.domain());
        if asked.is_err() {
            refused = Some((round, code(asked)));
            break;
        }
    }
    assert_eq!(refused, Some((most / 40, ErrorCode::TooLarge)));
    let tree = hub.ratchet_tree().len();
    assert!(tree < crate::base::limits::LEAF_NODES_BYTES_MAX && tree > crate::base::limits::LEAF_NODES_BYTES_MAX / 2);
}

// covers DS-043
#[test]
fn a_path_does_not_bring_a_key_that_is_there_already() {
    let (mut hub, mut alice, others) = group(&["bob@b.test"]);
    let twin = alice.device_with_key("phone", others[0].key.clone());
    let commit = alice.make(Plan { leaf_of: Some(&twin), ..Plan::default() });
    let request = alice.with_commit(DsRequest::UpdateClient, &commit);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit);
    alice.drop_pending();
    let renewed = alice.device("phone");
    let commit = alice.make(Plan { leaf_of: Some(&renewed), ..Plan::default() });
    let request = alice.with_commit(DsRequest::UpdateClient, &commit);
    assert!(ask(&mut hub, &alice, &request).is_ok(), "a key of its own");
    assert_eq!(hub.state().members[&0].signature_key, renewed.key.public());
    // The same request again, signed with the key that it has replaced itself.
    assert!(matches!(hub.authenticate(&request, alice.uri.domain()), Ok(Sender::Former { .. })));
}

// covers DS-046
#[test]
fn capabilities_list_no_defaults() {
    let (mut hub, mut alice, _) = group(&[]);
    let wrong = || TestClient::capabilities_and(&[ExtensionType::RatchetTree]);
    let commit = alice.make(Plan { capabilities: Some(wrong()), ..Plan::default() });
    let request = alice.with_commit(DsRequest::UpdateClient, &commit);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit);
    alice.drop_pending();
    let bob = hub.client("bob@b.test");
    let request = alice.add(&[bob.key_package_with(wrong())]);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidKeyPackage);
    let mut carol = hub.client("carol@a.test");
    let request = carol.create_with(TestClient::context(&[&hub.external_sender], None, &[]), wrong());
    let refused = hub.try_create(&request, carol.uri.domain());
    assert!(matches!(refused, Err(Refusal::Rejected(rejection)) if rejection.code == ErrorCode::InvalidGroupInfo));
}

// covers DS-047
#[test]
fn a_commit_has_so_many_proposals_and_only_the_usual_ones() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    hub.limits.commit_proposals_max = 1;
    let (dave, erin) = (hub.client("dave@a.test"), hub.client("erin@b.test"));
    let request = alice.add(&[&dave, &erin].map(|client| client.key_package(Some(&client.queue()))));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit);
    alice.drop_pending();
    hub.limits.commit_proposals_max = 10;
    let context = TestClient::context(&[&hub.external_sender], Some(&[1]), &[]);
    let commit = alice.make(Plan { removes: &[1], context: Some(context), ..Plan::default() });
    let request = alice.with_commit(DsRequest::RemoveUsers, &commit);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit, "a new context on the side");
}

// covers DS-075
#[test]
fn further_clients_are_of_member_users() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let dave = hub.client("dave@a.test");
    let request = alice.add(&[dave.key_package(Some(&dave.queue()))]);
    let DsRequest::AddUsers(body) = ds_message(&request).request.clone() else { unreachable!("an add_users") };
    let request = alice.as_leaf(DsRequest::AddClients(body));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit, "dave is no member");
    alice.drop_pending();

    let mut tablet = others[0].device("tablet");
    add_device(&mut hub, &mut alice, &mut [&mut others[0]], &mut tablet);
    assert_eq!(hub.state().members[&2].client, tablet.uri);
    let request = tablet.message("hello");
    assert_eq!(ask(&mut hub, &tablet, &request).expect("accepted").fan_out[0].recipients.len(), 2);
}

// covers DS-076
#[test]
fn clients_are_removed_whose_users_keep_one() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let mut laptop = alice.device("laptop");
    add_device(&mut hub, &mut alice, &mut [&mut others[0]], &mut laptop);
    let last = alice.commit(&[], &[1], true);
    let request = alice.with_commit(DsRequest::RemoveClients, &last);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit, "bob has no other");
    alice.drop_pending();
    let lost = alice.commit(&[], &[2], true);
    let request = alice.with_commit(DsRequest::RemoveClients, &lost);
    let outcome = ask(&mut hub, &alice, &request).expect("accepted");
    assert_eq!(outcome.fan_out[0].recipients.len(), 2, "the removed one learns of it");
    assert_eq!(hub.state().members.len(), 2);
}

// covers DS-071
#[test]
fn a_group_is_deleted_by_a_commit_that_removes_all_others() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test", "carol@a.test"]);
    let some = alice.commit(&[], &[1], true);
    let request = alice.with_commit(DsRequest::DeleteGroup, &some);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit, "carol is left");
    alice.drop_pending();
    let all = alice.commit(&[], &[1, 2], true);
    let request = alice.with_commit(DsRequest::DeleteGroup, &all);
    let outcome = ask(&mut hub, &alice, &request).expect("accepted");
    assert_eq!(outcome.fan_out[0].recipients.len(), 2);
    assert!(hub.state().head.closed_at_ms.is_some());
    assert_eq!(hub.state().members.keys().copied().collect::<Vec<_>>(), [0]);
    let late = others[0].message("hello?");
    assert_eq!(code(ask(&mut hub, &others[0], &late)), ErrorCode::GroupDeleted);
}

// covers DS-017
#[test]
fn a_deleted_group_says_so_to_everyone_and_repeats_find_their_answers() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let early = others[0].message("before");
    ask(&mut hub, &others[0], &early).expect("accepted");
    let all = alice.commit(&[], &[1], true);
    let deletion = alice.with_commit(DsRequest::DeleteGroup, &all);
    ask(&mut hub, &alice, &deletion).expect("accepted");
    alice.drop_pending();
    let request = alice.message("anyone?");
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::GroupDeleted, "its own author, too");
    let mut stranger = hub.client("dave@a.test");
    hub.creation(&mut stranger);
    let request = stranger.message("hello");
    assert_eq!(code(ask(&mut hub, &stranger, &request)), ErrorCode::GroupDeleted, "who never was a member");
    // The answers are stored under keys that are still known.
    for (who, request) in [(&alice, &deletion), (&others[0], &early)] {
        let sender = hub.authenticate(request, who.uri.domain()).expect("known");
        assert_eq!(sender.key(), who.key.public());
    }
}

// covers DS-053
#[test]
fn a_group_has_so_many_leaves() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    hub.limits.group_leaves_max = 2;
    let dave = hub.client("dave@a.test");
    let request = alice.add(&[dave.key_package(Some(&dave.queue()))]);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::TooLarge);
    hub.limits.group_leaves_max = 3;
    assert!(ask(&mut hub, &alice, &request).is_ok());
}

// covers DS-059
#[test]
fn a_user_has_so_many_leaves() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    hub.limits.user_leaves_max = 1;
    let laptop = alice.device("laptop");
    let request = alice.add(&[laptop.key_package(Some(&laptop.queue()))]);
    let DsRequest::AddUsers(body) = ds_message(&request).request.clone() else { unreachable!("an add_users") };
    let request = alice.as_leaf(DsRequest::AddClients(body));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::TooLarge);
    hub.limits.user_leaves_max = 2;
    assert!(ask(&mut hub, &alice, &request).is_ok());
}

// covers DS-024
#[test]
fn a_client_has_one_leaf() {
    let (mut hub, mut alice, others) = group(&["bob@b.test"]);
    let again = others[0].device("phone");
    let request = alice.add(&[again.key_package(Some(&again.queue()))]);
    let DsRequest::AddUsers(body) = ds_message(&request).request.clone() else { unreachable!("an add_users") };
    let request = alice.as_leaf(DsRequest::AddClients(body));
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit);
}

// covers DS-025
#[test]
fn a_leaf_stays_the_same_clients() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    let laptop = alice.device("laptop");
    let commit = alice.make(Plan { leaf_of: Some(&laptop), ..Plan::default() });
    let request = alice.with_commit(DsRequest::UpdateClient, &commit);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential);
}

// covers DS-026
#[test]
fn a_chain_has_two_certificates() {
    let (mut hub, mut alice, _) = group(&[]);
    let mut bob = hub.client("bob@b.test");
    bob.chain.push(bob.chain[1].clone());
    let request = alice.add(&[bob.key_package(Some(&bob.queue()))]);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential);
}

// covers DS-019
#[test]
fn no_leaf_enters_with_a_revoked_key() {
    let (mut hub, mut alice, _) = group(&[]);
    let bob = hub.client("bob@b.test");
    let request = alice.add(&[bob.key_package(Some(&bob.queue()))]);
    for hash in [bob.key_hash(), bob.user_key_hash()] {
        hub.revoke(bob.uri.domain(), &[hash]);
        assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential);
    }
    hub.revoke(bob.uri.domain(), &[[1; 32]]);
    assert!(ask(&mut hub, &alice, &request).is_ok());
}

// covers DS-021
#[test]
fn all_missing_roots_are_asked_for_at_once() {
    let (mut hub, mut alice, _) = group(&[]);
    let clients = ["bob@b.test", "carol@c.test"].map(|name| hub.client(name));
    let request = alice.add(&clients.each_ref().map(|client| client.key_package(Some(&client.queue()))));
    let domains = clients.each_ref().map(|client| client.uri.domain().clone());
    for domain in &domains {
        hub.roots.remove(domain);
    }
    let refused = ask(&mut hub, &alice, &request);
    assert!(matches!(refused, Err(Refusal::NeedsRoots(wanted)) if wanted == domains));
}
