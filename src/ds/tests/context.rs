//! update_group: what a GroupContext may become.

use openmls::prelude::{Capabilities, ProposalType};

use super::*;
use crate::mls::JoinPolicy;
use crate::mls::testing::{Plan, SUITE, TestCommit};

fn changed(hub: &TestHub, alice: &mut TestClient, policy: Option<&[u8]>, required: &[ProposalType]) -> TestCommit {
    let context = TestClient::context(&[&hub.external_sender], policy, required);
    alice.make(Plan { context: Some(context), ..Plan::default() })
}

// covers DS-077
#[test]
fn update_group_replaces_the_contexts_extensions_and_does_nothing_else() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let plain = alice.commit(&[], &[], true);
    let request = alice.with_commit(DsRequest::UpdateGroup, &plain);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit);
    alice.drop_pending();
    let open = changed(&hub, &mut alice, Some(&[1]), &[]);
    let request = alice.with_commit(DsRequest::UpdateGroup, &open);
    ask(&mut hub, &alice, &request).expect("accepted");
    assert_eq!(hub.state().head.join_policy, JoinPolicy::Open);
    alice.merge();
    others[0].receive(&open.update.commit);
    // A second external sender may stand before the DS's own; its Removes name its place.
    let senders = [others[0].external_sender(), hub.external_sender.clone()];
    let context = TestClient::context(&[&senders[0], &senders[1]], None, &[]);
    let closed = others[0].make(Plan { context: Some(context), ..Plan::default() });
    let request = others[0].with_commit(DsRequest::UpdateGroup, &closed);
    ask(&mut hub, &others[0], &request).expect("accepted");
    assert_eq!((hub.state().head.join_policy, hub.state().head.external_sender_index), (JoinPolicy::Closed, 1));
    let outcome = hub.act(|hub, state| removal::issue(hub, state, &[(1, Cause::Inactive)])).expect("news");
    alice.receive(&closed.update.commit);
    alice.learn(message_in(&outcome.fan_out[0]));
}

fn message_in(fan_out: &FanOut) -> &[u8] {
    let Delivery::Message(message) = &fan_out.delivery else { unreachable!("a message") };
    &message.message
}

// covers DS-044
#[test]
fn the_ds_stays_an_external_sender() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    let other = alice.external_sender();
    for senders in [vec![], vec![other.as_slice()]] {
        let context = TestClient::context(&senders, None, &[]);
        let commit = alice.make(Plan { context: Some(context), ..Plan::default() });
        let request = alice.with_commit(DsRequest::UpdateGroup, &commit);
        assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit);
        alice.drop_pending();
    }
    let mut carol = hub.client("carol@a.test");
    let request = carol.create(&other);
    let refused = hub.try_create(&request, carol.uri.domain());
    assert!(matches!(refused, Err(Refusal::Rejected(rejection)) if rejection.code == ErrorCode::InvalidGroupInfo));
}

// covers DS-072
#[test]
fn a_contexts_extensions_are_within_their_limit() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    let commit = changed(&hub, &mut alice, Some(&[1]), &[]);
    let request = alice.with_commit(DsRequest::UpdateGroup, &commit);
    hub.limits.context_extensions_bytes_max = 100;
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::TooLarge);
}

// covers DS-073
#[test]
fn a_join_policy_is_a_known_one() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    for policy in [&[2][..], &[1, 0], &[]] {
        let commit = changed(&hub, &mut alice, Some(policy), &[]);
        let request = alice.with_commit(DsRequest::UpdateGroup, &commit);
        assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit, "{policy:?}");
        alice.drop_pending();
    }
}

// covers DS-074
#[test]
fn nothing_is_required_that_a_member_cannot_do() {
    let (mut hub, mut alice, _) = group(&["bob@b.test"]);
    let rare = ProposalType::Custom(0xF0F0);
    let context = TestClient::context(&[&hub.external_sender], None, &[rare]);
    let usual = TestClient::capabilities();
    let own = Capabilities::new(None, Some(&[SUITE]), Some(usual.extensions()), Some(&[rare]), Some(usual.credentials()));
    let commit = alice.make(Plan { context: Some(context), capabilities: Some(own), ..Plan::default() });
    let request = alice.with_commit(DsRequest::UpdateGroup, &commit);
    assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCommit);
}
