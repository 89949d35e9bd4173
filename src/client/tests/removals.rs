//! What the hub proposes, and what members make of it (S12, S13), leaving and deleting.

use super::*;

/// The DS's own signature, as OpenMLS takes it.
struct DsSigner<'a>(&'a SigningKey);

impl openmls_traits::signatures::Signer for DsSigner<'_> {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, openmls_traits::signatures::SignerError> {
        Ok(self.0.sign(payload))
    }

    fn signature_scheme(&self) -> openmls_traits::types::SignatureScheme {
        openmls_traits::types::SignatureScheme::ED25519
    }
}

#[test]
fn the_hub_can_propose_to_remove_and_nothing_else() {
    let (a, b, mut alice, bob, group) = pair();
    let mut mallory = Party::new(&a, "mallory");
    let made = mallory.core.make_key_packages(1, false, UnixMillis::now()).expect("are made");
    let Ok(Service::Keys(message)) = decode(&made.service.0) else { panic!("no keys request") };
    let KeysRequest::Publish(published) = message.request else { panic!("no publish") };
    let package = mls::read_key_package(&alice.core.provider, &published.key_packages[0]).expect("is valid");
    let (id, epoch) = (alice.core.groups[&group].group_id().clone(), alice.core.groups[&group].epoch());
    let (signer, index) = (DsSigner(&a.ds_key), SenderExtensionIndex::new(0));
    let add = ExternalProposal::new_add::<Provider>(package, id.clone(), epoch, &signer, index).expect("is made");
    alice.deliver(&group, 1, &add.tls_serialize_detached().expect("encodes"), None);
    assert!(matches!(&alice.events()[..], [Event::Unprocessable { .. }]));
    assert!(!alice.core.has_proposals(&group), "or the next Commit would carry it");
    let leaf = bob.core.groups[&group].own_leaf_index();
    let remove = ExternalProposal::new_remove::<Provider>(leaf, id, epoch, &signer, index).expect("is made");
    alice.deliver(&group, 1, &remove.tls_serialize_detached().expect("encodes"), None);
    assert_eq!(alice.events(), [Event::Proposed { group: group.clone(), epoch: 1 }]);
    assert!(alice.core.has_proposals(&group));
    drop(b);
}

/// The hub's proposal to remove `target`.
fn remove(hub: &Authority, members: &Party, target: &Party, group: &GroupUri) -> Vec<u8> {
    let (id, epoch) = (members.core.groups[group].group_id().clone(), members.core.groups[group].epoch());
    let leaf = target.core.groups[group].own_leaf_index();
    let made = ExternalProposal::new_remove::<Provider>(leaf, id, epoch, &DsSigner(&hub.ds_key), SenderExtensionIndex::new(0));
    made.expect("is made").tls_serialize_detached().expect("encodes")
}

#[test]
fn a_member_commits_what_the_hub_proposes_and_the_target_does_not() {
    let (a, _b, mut alice, mut bob, group) = pair();
    let proposal = remove(&a, &alice, &bob, &group);
    alice.deliver(&group, 1, &proposal, None);
    bob.deliver(&group, 1, &proposal, None);
    assert!(!bob.core.should_cover(&group) && bob.core.is_going(&group));
    assert!(bob.core.make_commit(&group, Plan::Update, Vec::new(), None).is_err(), "it may not commit");
    assert!(bob.core.make_message(&group, "still here".into(), None).is_err(), "nor send");
    assert!(alice.core.should_cover(&group));
    assert!(matches!(alice.core.left_of(&group, &Plan::Cover), Ok(Some(Plan::Cover))));
    let made = alice.core.make_commit(&group, Plan::Cover, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&made);
    let receipt = a.receipt(&group, 2, &update.commit);
    let won = alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt.clone())));
    assert!(matches!(won, Ok(CommitOutcome::Won(2))));
    assert_eq!(alice.core.members_now(&group), [alice.uri()]);
    assert!(matches!(alice.core.left_of(&group, &Plan::Cover), Ok(None)), "nothing is left to commit");
    bob.events();
    bob.deliver(&group, 2, &update.commit, Some(receipt));
    assert_eq!(bob.events(), [Event::Left { group, epoch: 2 }]);
}

#[test]
fn who_may_stay_asks_but_not_who_left_or_was_replaced() {
    let (a, b, mut alice, mut bob, group) = pair();
    let proposal = remove(&a, &alice, &bob, &group);
    assert!(bob.core.going().is_empty());
    bob.deliver(&group, 1, &proposal, None);
    assert_eq!(bob.core.going(), std::slice::from_ref(&group));
    bob.core.group_mut(&group).expect("is there").status = GroupStatus::Leaving;
    assert!(bob.core.going().is_empty(), "it asked for it");
    // Another phone of bob's, made from a backup, has come in.
    bob.core.group_mut(&group).expect("is there").status = GroupStatus::Member;
    let mut again = bob.again(&b, "phone");
    again.core.pin(&a.domain, &a.info).expect("is pinned");
    let mls = &alice.core.groups[&group];
    let info =
        mls.export_group_info(openmls_traits::OpenMlsProvider::crypto(&alice.core.provider), &alice.core.leaf.signer(), false);
    let state = GroupState { group_info: info.expect("is made").to_bytes().expect("encodes").into(), ..tree_of(&alice, &group) };
    let Ok(crate::client::joining::MadeJoin::Made(made)) = again.core.make_join(&group, &state, false, None) else {
        panic!("not made")
    };
    let (update, _) = update_of(&made);
    let receipt = a.receipt(&group, 2, &update.commit);
    for member in [&mut alice, &mut bob] {
        member.deliver(&group, 2, &update.commit, Some(receipt.clone()));
    }
    bob.deliver(&group, 2, &remove(&a, &alice, &bob, &group), None);
    assert!(bob.core.is_going(&group) && bob.core.going().is_empty(), "the other one is bob's phone now");
}

#[test]
fn what_the_hub_removes_already_is_not_removed_twice() {
    let (a, _b, mut alice, bob, group) = pair();
    alice.deliver(&group, 1, &remove(&a, &alice, &bob, &group), None);
    let made = alice.core.make_commit(&group, Plan::Remove(vec![bob.user()]), Vec::new(), None).expect("is made");
    assert!(matches!(ds_request(&made), DsRequest::UpdateClient(_)), "there is nothing by value");
    let (update, _) = update_of(&made);
    let receipt = a.receipt(&group, 2, &update.commit);
    alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt))).expect("settles");
    assert_eq!(alice.core.members_now(&group), [alice.uri()]);
}

#[test]
fn a_refusal_brings_the_proposals_that_the_next_commit_carries() {
    let (a, _b, mut alice, bob, group) = pair();
    let made = alice.core.make_message(&group, "hello".into(), None).expect("is made");
    let pending = crate::wire::error::PendingProposals { proposals: vec![Opaque::from(remove(&a, &alice, &bob, &group))].into() };
    let refused = Err(Rejection { code: ErrorCode::PendingProposals, detail: encode(&pending).into() });
    assert!(matches!(alice.core.settle_message(made.request, refused), Ok(MessageOutcome::Proposals)));
    assert!(alice.core.should_cover(&group));
    assert!(alice.core.state.outbox.iter().all(|kept| kept.stale), "it is sent anew afterwards");
}

#[test]
fn a_deleted_group_is_gone_for_everybody() {
    let (a, _b, mut alice, mut bob, group) = pair();
    let made = alice.core.make_commit(&group, Plan::Delete, Vec::new(), None).expect("is made");
    assert!(matches!(ds_request(&made), DsRequest::DeleteGroup(_)));
    let (update, _) = update_of(&made);
    let receipt = a.receipt(&group, 2, &update.commit);
    alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt.clone()))).expect("settles");
    assert!(alice.events().contains(&Event::Deleted { group: group.clone() }));
    bob.deliver(&group, 2, &update.commit, Some(receipt));
    assert_eq!(bob.events(), [Event::Left { group: group.clone(), epoch: 2 }]);
    let alice = alice.crash();
    assert_eq!(alice.core.state.groups[&group.to_string()].status, GroupStatus::Deleted);
    assert!(alice.core.groups.is_empty());
}

#[test]
fn who_opens_a_group_keeps_its_hub_in_it() {
    let (a, _b, mut alice, mut bob, group) = pair();
    for (epoch, open) in [(2, true), (3, false)] {
        let plan = Plan::Policy { open };
        assert!(matches!(alice.core.left_of(&group, &plan), Ok(Some(_))));
        let made = alice.core.make_commit(&group, plan.clone(), Vec::new(), None).expect("is made");
        assert!(matches!(ds_request(&made), DsRequest::UpdateGroup(_)));
        let (update, _) = update_of(&made);
        let receipt = a.receipt(&group, epoch, &update.commit);
        alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt.clone()))).expect("settles");
        bob.deliver(&group, epoch, &update.commit, Some(receipt));
        for party in [&alice, &bob] {
            let mls = &party.core.groups[&group];
            assert_eq!((mls::is_open(mls), mls::external_senders(mls.extensions()).len()), (open, 1));
        }
        assert!(matches!(alice.core.left_of(&group, &plan), Ok(None)), "nothing is left to do");
    }
}

#[test]
fn an_update_that_was_proposed_comes_with_anothers_commit() {
    let (a, _b, mut alice, mut bob, group) = pair();
    let (_, proposal) = bob.core.make_proposal(&group).expect("is made");
    alice.deliver(&group, 1, &proposal.message, None);
    assert!(alice.core.should_cover(&group));
    let made = alice.core.make_commit(&group, Plan::Cover, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&made);
    let receipt = a.receipt(&group, 2, &update.commit);
    alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt.clone()))).expect("settles");
    let mut bob = bob.crash();
    bob.deliver(&group, 2, &update.commit, Some(receipt));
    assert_eq!(alice.authenticator(&group), bob.authenticator(&group));
    let (epoch, hello) = bob.says(&group, "with new keys");
    alice.deliver(&group, epoch, &hello, None);
    assert_eq!(alice.texts(), ["with new keys"]);
}

#[test]
fn an_invitation_that_cannot_be_used_is_declined_and_one_that_waits_can_be() {
    let (a, _b, mut alice, _bob, group) = pair();
    let invite = |alice: &mut Party, guest: &mut Party, epoch| {
        let made = guest.core.make_key_packages(1, false, UnixMillis::now()).expect("are made");
        guest.core.settle_other(made.request, Ok(Reply::Done)).expect("settles");
        let Ok(Service::Keys(message)) = decode(&made.service.0) else { panic!("no keys request") };
        let KeysRequest::Publish(published) = message.request else { panic!("no publish") };
        let package = mls::read_key_package(&alice.core.provider, &published.key_packages[0]).expect("is valid");
        let plan = Plan::Add(vec![guest.user()]);
        let made = alice.core.make_commit(&group, plan, vec![package], None).expect("is made");
        let (update, welcomes) = update_of(&made);
        let receipt = a.receipt(&group, epoch, &update.commit);
        alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt))).expect("settles");
        guest.deliver(&group, epoch, &welcomes[0], None);
    };
    let declined = |guest: &Party| {
        let [declined] = &guest.core.state.outbox[..] else { panic!("{:?}", guest.core.state.outbox) };
        let Ok(Service::Ds(message)) = decode::<Service>(&declined.service.0) else { panic!("no DS request") };
        assert!(matches!(message.sender_id, crate::wire::ds::DsSenderId::KeyPackageRef(_)));
        assert!(matches!(message.request, DsRequest::LeaveGroup(_)));
    };
    // For carol the hub's Delivery Service has another key.
    let mut carol = Party::new(&a, "carol");
    let other = Authority::new("a.test");
    let info = DomainInfo { external_sender: other.info.external_sender.clone(), ..a.info.clone() };
    carol.core.pin(&a.domain, &info).expect("is pinned");
    invite(&mut alice, &mut carol, 2);
    let tree = tree_of(&alice, &group);
    assert!(matches!(carol.core.take_backlog(&group, Some((1, &tree))), Ok(None)));
    assert!(carol.core.groups.is_empty());
    declined(&carol);
    // Dave does not want to.
    let mut dave = Party::new(&a, "dave");
    invite(&mut alice, &mut dave, 3);
    assert!(dave.core.decline_waiting(&"mimi://a.test/g/00ff".parse().expect("a group")).is_err());
    dave.core.decline_waiting(&group).expect("is declined");
    assert!(dave.core.state.backlog.is_empty() && dave.core.groups.is_empty());
    declined(&dave.crash());
}

#[test]
fn what_is_given_up_leaves_nothing_in_the_way() {
    let (a, _b, mut alice, mut bob, group) = pair();
    let made = alice.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    alice.core.give_up_on(&made).expect("is given up");
    assert!(alice.core.state.outbox.is_empty() && alice.core.pending_commit(&group).is_none());
    // Another Commit can be made, and others' are applied.
    let theirs = bob.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&theirs);
    alice.deliver(&group, 2, &update.commit, Some(a.receipt(&group, 2, &update.commit)));
    assert_eq!(alice.core.groups[&group].epoch().as_u64(), 2);
    let created = alice.core.make_group(Some("never there".into())).expect("is made");
    alice.core.give_up_on(&created).expect("is given up");
    assert_eq!(alice.crash().core.groups.len(), 1);
}
