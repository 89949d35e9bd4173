//! Members' proposals.

use openmls::prelude::{Capabilities, ExtensionType};

use super::*;
use crate::mls::testing::Plan;

fn proposed(client: &mut TestClient) -> Vec<u8> {
    client.proposed_update(None, TestClient::capabilities())
}

#[test]
fn an_update_is_fanned_out_and_the_next_commit_may_carry_it() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test", "carol@a.test"]);
    let renewed = others[0].device("phone");
    let update = others[0].proposed_update(Some(&renewed), TestClient::capabilities());
    let request = others[0].propose(vec![update.clone()]);
    let outcome = ask(&mut hub, &others[0], &request).expect("accepted");
    let to: Vec<u32> = outcome.fan_out[0].recipients.iter().map(|recipient| recipient.leaf_index).collect();
    assert_eq!((to.as_slice(), outcome.fan_out[0].epoch), (&[0, 2][..], 2));
    alice.learn(&update);
    let request = alice.update();
    ask(&mut hub, &alice, &request).expect("accepted");
    assert_eq!(hub.state().members[&1].signature_key, renewed.key.public());
    assert_eq!(hub.state().members[&1].client, renewed.uri);
    assert!(hub.state().head.proposals.is_empty(), "a new epoch");
    // A Commit without it is fine, too; then it is gone.
    alice.merge();
    others[1].learn(&update);
    others[1].receive(&commit_of(&request));
    let update = proposed(&mut others[1]);
    let proposal = others[1].propose(vec![update]);
    ask(&mut hub, &others[1], &proposal).expect("accepted");
    let request = alice.update();
    ask(&mut hub, &alice, &request).expect("accepted");
    assert!(hub.state().head.proposals.is_empty());
}

// covers DS-081, DS-085
#[test]
fn only_updates_are_proposed() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let removal = others[0].proposed_remove(0);
    let request = others[0].propose(vec![removal]);
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::InvalidProposal);
    let commit = alice.commit(&[], &[], true).update.commit.to_vec();
    alice.drop_pending();
    let message = message_octets(&alice.message("hello"));
    for other in [commit, message, vec![0, 1], Vec::new()] {
        let request = alice.propose(vec![other]);
        assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidProposal);
    }
}

// covers DS-082
#[test]
fn a_proposal_is_of_this_epoch() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let update = proposed(&mut others[0]);
    let request = alice.update();
    ask(&mut hub, &alice, &request).expect("accepted");
    let late = others[0].propose(vec![update]);
    let lost = rejection(ask(&mut hub, &others[0], &late)).as_wrong_epoch().expect("wrong_epoch");
    assert_eq!((lost.current_epoch, lost.accepted_commit_hash), (2, Some(sha256(&commit_of(&request)))));
}

// covers DS-083, DS-084
#[test]
fn a_proposal_is_the_senders_own_and_signed_by_it() {
    let (mut hub, alice, mut others) = group(&["bob@b.test"]);
    let update = proposed(&mut others[0]);
    let stolen = alice.propose(vec![update.clone()]);
    assert_eq!(code(ask(&mut hub, &alice, &stolen)), ErrorCode::NotAuthorized);
    let mut damaged = update;
    let position = damaged.len() - 60;
    damaged[position] ^= 1;
    let request = others[0].propose(vec![damaged]);
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::InvalidProposal);
}

// covers DS-086
#[test]
fn an_update_can_do_what_the_group_uses() {
    let (mut hub, _, mut others) = group(&["bob@b.test"]);
    let usual = TestClient::capabilities();
    let poor = Capabilities::new(None, Some(&[]), Some(usual.extensions()), Some(&[]), Some(usual.credentials()));
    let update = others[0].proposed_update(None, poor);
    let request = others[0].propose(vec![update]);
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::InvalidProposal);
}

// covers DS-087
#[test]
fn an_updates_keys_are_new() {
    let (mut hub, alice, mut others) = group(&["bob@b.test"]);
    let twin = others[0].device_with_key("phone", alice.key.clone());
    let update = others[0].proposed_update(Some(&twin), TestClient::capabilities());
    let request = others[0].propose(vec![update]);
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::InvalidProposal);
}

// covers DS-088
#[test]
fn a_member_proposes_once_in_an_epoch() {
    let (mut hub, _, mut others) = group(&["bob@b.test"]);
    let (first, second) = (proposed(&mut others[0]), proposed(&mut others[0]));
    let none = others[0].propose(Vec::new());
    assert_eq!(code(ask(&mut hub, &others[0], &none)), ErrorCode::InvalidProposal);
    let request = others[0].propose(vec![first]);
    ask(&mut hub, &others[0], &request).expect("accepted");
    let request = others[0].propose(vec![second]);
    assert_eq!(code(ask(&mut hub, &others[0], &request)), ErrorCode::InvalidProposal);
}

// covers DS-089
#[test]
fn so_many_proposals_wait() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    hub.limits.pending_proposals_max = 1;
    let update = proposed(&mut others[0]);
    let request = others[0].propose(vec![update]);
    ask(&mut hub, &others[0], &request).expect("accepted");
    let update = proposed(&mut alice);
    let request = alice.propose(vec![update]);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::TooLarge);
}

// covers DS-090
#[test]
fn a_proposal_is_within_its_limit() {
    let (mut hub, alice, _) = group(&["bob@b.test"]);
    let request = alice.propose(vec![vec![0; crate::base::limits::PROPOSAL_BYTES_MAX + 1]]);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::TooLarge);
}

#[test]
fn an_update_of_another_clients_or_without_a_chain_is_refused() {
    let (mut hub, mut alice, others) = group(&["bob@b.test"]);
    for wrong in [alice.device("laptop"), others[0].device("phone"), TestHub::new().client("alice@a.test")] {
        let update = alice.proposed_update(Some(&wrong), TestClient::capabilities());
        let request = alice.propose(vec![update]);
        assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential);
    }
    let update = alice.proposed_update(None, TestClient::capabilities_and(&[ExtensionType::RatchetTree]));
    let request = alice.propose(vec![update]);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidProposal);
    alice.forget_proposals();
    let commit = alice.make(Plan::default());
    let request = alice.with_commit(DsRequest::UpdateClient, &commit);
    assert!(ask(&mut hub, &alice, &request).is_ok());
}
