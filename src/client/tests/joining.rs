//! External Commits: what replaces a leaf, brings a further device, or enters an open group. What counts as failure: a group that
//! is given up for one that the hub has not accepted, or keys that a crash leaves behind half.

use super::super::joining::{JoinOutcome, MadeJoin};
use super::super::state::JoinHow;
use super::*;

/// What the hub answers `external_commit_info`.
fn state_of(party: &Party, group: &GroupUri) -> GroupState {
    let mls = &party.core.groups[group];
    let info =
        mls.export_group_info(openmls_traits::OpenMlsProvider::crypto(&party.core.provider), &party.core.leaf.signer(), false);
    GroupState { group_info: info.expect("is made").to_bytes().expect("encodes").into(), ..tree_of(party, group) }
}

fn join(party: &mut Party, group: &GroupUri, state: &GroupState, only_resync: bool) -> Outgoing {
    match party.core.make_join(group, state, only_resync, None) {
        Ok(MadeJoin::Made(made)) => *made,
        other => panic!("{other:?}"),
    }
}

/// The hub accepts `made`, and `members` learn of it.
fn accept(hub: &Authority, group: &GroupUri, epoch: u64, made: &Outgoing, joiner: &mut Party, members: &mut [&mut Party]) {
    let (update, _) = update_of(made);
    let receipt = hub.receipt(group, epoch, &update.commit);
    for member in members {
        member.deliver(group, epoch, &update.commit, Some(receipt.clone()));
    }
    let outcome = joiner.core.settle_join(made.request, Ok(Reply::CommitAccepted(receipt)));
    assert!(matches!(outcome, Ok(JoinOutcome::Won(begun)) if begun == epoch), "{outcome:?}");
}

fn talk(group: &GroupUri, one: &mut Party, other: &mut Party) {
    assert_eq!(one.authenticator(group), other.authenticator(group));
    let (epoch, hello) = one.says(group, "hello");
    other.deliver(group, epoch, &hello, None);
    let (epoch, answer) = other.says(group, "welcome back");
    one.deliver(group, epoch, &answer, None);
    assert_eq!((one.texts().as_slice(), other.texts().as_slice()), (&["welcome back".to_owned()][..], &["hello".to_owned()][..]));
}

/// Alice commits; bob never hears of it.
fn commit_without_bob(hub: &Authority, alice: &mut Party, group: &GroupUri, epoch: u64) {
    let made = alice.core.make_commit(group, Plan::Update, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&made);
    let receipt = hub.receipt(group, epoch, &update.commit);
    alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt))).expect("settles");
}

#[test]
fn who_missed_a_commit_comes_back_in_the_place_of_its_old_leaf() {
    let (a, _b, mut alice, mut bob, group) = pair();
    commit_without_bob(&a, &mut alice, &group, 2);
    let (epoch, unread) = alice.says(&group, "unread");
    bob.deliver(&group, epoch, &unread, None);
    assert_eq!(bob.core.state.groups[&group.to_string()].status, GroupStatus::Stuck);
    bob.events();
    let made = join(&mut bob, &group, &state_of(&alice, &group), true);
    assert!(matches!(made.purpose, Purpose::Join { how: JoinHow::Resync, epoch: 2, .. }));
    assert!(matches!(ds_request(&made), DsRequest::ResyncClient(_)));
    // Nothing has changed yet, and a crash changes nothing.
    let mut bob = bob.crash();
    assert_eq!(bob.core.groups[&group].epoch().as_u64(), 1);
    // What the others say meanwhile waits.
    let (update, _) = update_of(&made);
    let receipt = a.receipt(&group, 3, &update.commit);
    alice.deliver(&group, 3, &update.commit, Some(receipt));
    let (epoch, early) = alice.says(&group, "early");
    bob.deliver(&group, epoch, &early, None);
    assert!(bob.texts().is_empty());
    accept(&a, &group, 3, &made, &mut bob, &mut []);
    assert_eq!(bob.core.members_now(&group), [alice.uri(), bob.uri()]);
    let events = bob.events();
    assert!(events.contains(&Event::Resynced { group: group.clone(), epoch: 3 }), "{events:?}");
    assert!(matches!(events.last(), Some(Event::Message { text, .. }) if text == "early"), "{events:?}");
    alice.events();
    let mut bob = bob.crash();
    talk(&group, &mut bob, &mut alice);
    assert!(bob.core.state.outbox.is_empty() && bob.core.state.backlog.is_empty());
}

#[test]
fn a_resync_that_another_commit_overtook_is_made_anew_and_a_forged_receipt_changes_nothing() {
    let (a, b, mut alice, mut bob, group) = pair();
    let made = join(&mut bob, &group, &state_of(&alice, &group), true);
    let (update, _) = update_of(&made);
    let forged = b.receipt(&group, 2, &update.commit);
    assert!(bob.core.settle_join(made.request, Ok(Reply::CommitAccepted(forged))).is_err());
    assert_eq!(bob.core.groups[&group].epoch().as_u64(), 1);
    commit_without_bob(&a, &mut alice, &group, 2);
    let lost = Err(Rejection::wrong_epoch(2, Some([7; 32])));
    assert!(matches!(bob.core.settle_join(made.request, lost), Ok(JoinOutcome::Lost)));
    let mut bob = bob.crash();
    let state = state_of(&alice, &group);
    assert!(bob.core.make_join(&group, &state, true, None).is_err(), "one at a time");
    let Ok(MadeJoin::Made(again)) = bob.core.make_join(&group, &state, true, Some(made.request)) else { panic!("not made") };
    assert_eq!(bob.core.state.outbox.len(), 1);
    // Accepted; the answer was lost and is forgotten.
    let (update, _) = update_of(&again);
    alice.deliver(&group, 3, &update.commit, Some(a.receipt(&group, 3, &update.commit)));
    let known = Err(Rejection::wrong_epoch(3, Some(sha256(&update.commit))));
    assert!(matches!(bob.core.settle_join(again.request, known), Ok(JoinOutcome::Won(3))));
    alice.events();
    bob.events();
    talk(&group, &mut bob, &mut alice);
}

#[test]
fn a_further_device_joins_by_itself_and_so_does_one_that_lost_its_keys() {
    let (a, b, mut alice, mut bob, group) = pair();
    let mut laptop = bob.again(&b, "laptop");
    let state = state_of(&alice, &group);
    assert!(matches!(laptop.core.make_join(&group, &state, false, None), Ok(MadeJoin::Needs(domain)) if domain == a.domain));
    laptop.core.pin(&a.domain, &a.info).expect("is pinned");
    assert!(matches!(laptop.core.make_join(&group, &state, true, None), Ok(MadeJoin::NoMember)), "it has no leaf to replace");
    let made = join(&mut laptop, &group, &state, false);
    assert!(matches!(made.purpose, Purpose::Join { how: JoinHow::Client, .. }));
    match decode(&made.service.0) {
        Ok(Service::Ds(message)) => {
            assert!(matches!(message.sender_id, crate::wire::ds::DsSenderId::UserKeyHash(_)) && message.certificates.len() == 1);
        }
        other => panic!("{other:?}"),
    }
    accept(&a, &group, 2, &made, &mut laptop, &mut [&mut alice, &mut bob]);
    let joined = laptop.events();
    assert_eq!(joined, [Event::Joined { group: group.clone(), epoch: 2 }]);
    assert!(matches!(&alice.events()[..], [Event::EpochChanged { added, .. }] if *added == [laptop.uri()]));
    talk(&group, &mut laptop, &mut alice);

    // The phone's directory is gone: the same name with other keys.
    drop(bob);
    let mut phone = laptop.again(&b, "phone");
    phone.core.pin(&a.domain, &a.info).expect("is pinned");
    let made = join(&mut phone, &group, &state_of(&alice, &group), false);
    assert!(matches!(made.purpose, Purpose::Join { how: JoinHow::Client, .. }));
    accept(&a, &group, 3, &made, &mut phone, &mut [&mut alice]);
    assert_eq!(alice.core.members_now(&group).iter().filter(|client| **client == phone.uri()).count(), 2);
    phone.events();
    alice.events();
    talk(&group, &mut phone, &mut alice);
}

#[test]
fn nobody_joins_in_the_place_of_another() {
    let (a, b, mut alice, bob, group) = pair();
    // Mallory's external Commit removes bob's leaf, which has the same signature key only if it is bob's.
    let mut mallory = Party::new(&a, "mallory");
    mallory.core.pin(&b.domain, &b.info).expect("is pinned");
    let leaf = Leaf { key: bob.core.leaf.key.clone(), chain: mallory.core.leaf.chain.clone() };
    mallory.core.leaf = Arc::new(leaf);
    let made = join(&mut mallory, &group, &state_of(&alice, &group), true);
    let (update, _) = update_of(&made);
    alice.deliver(&group, 2, &update.commit, Some(a.receipt(&group, 2, &update.commit)));
    assert!(matches!(&alice.events()[..], [Event::Unprocessable { .. }]));
    assert_eq!(alice.core.groups[&group].epoch().as_u64(), 1);
}

#[test]
fn an_open_group_can_be_joined_and_its_hub_must_be_in_it() {
    let (a, b, mut alice, mut bob, group) = pair();
    let mut carol = Party::new(&a, "carol");
    carol.core.pin(&b.domain, &b.info).expect("is pinned");
    let made = join(&mut carol, &group, &state_of(&alice, &group), false);
    assert!(matches!(made.purpose, Purpose::Join { how: JoinHow::Open, .. }));
    // Whether the group is open is the hub's to say.
    let outcome = carol.core.settle_join(made.request, refused(ErrorCode::NotAuthorized));
    assert!(matches!(outcome, Ok(JoinOutcome::Refused(_))));
    assert!(carol.core.state.outbox.is_empty() && carol.core.groups.is_empty() && carol.core.state.groups.is_empty());
    let made = join(&mut carol, &group, &state_of(&alice, &group), false);
    accept(&a, &group, 2, &made, &mut carol, &mut [&mut alice, &mut bob]);
    bob.events();
    carol.events();
    talk(&group, &mut carol, &mut bob);
    // Another Delivery Service's group under this hub's name.
    let false_ = Authority::new("a.test");
    let mut dave = Party::new(&false_, "dave");
    dave.core.pin(&b.domain, &b.info).expect("is pinned");
    assert!(dave.core.make_join(&group, &state_of(&alice, &group), false, None).is_err());
}

#[test]
fn lost_messages_call_for_a_resync_even_where_nothing_is_known_of_the_group() {
    let (_a, _b, _alice, mut bob, group) = pair();
    bob.core.take_batch(vec![entry(2, &group, 1, Delivery::MessagesLost)]).expect("is taken");
    let kept = &bob.core.state.groups[&group.to_string()];
    assert!(kept.lost && kept.status == GroupStatus::Member, "what can be read is read until then");
    let unknown: GroupUri = "mimi://a.test/g/00ff".parse().expect("a group");
    bob.core.take_batch(vec![entry(3, &unknown, 1, Delivery::MessagesLost)]).expect("is taken");
    let mut bob = bob.crash();
    assert!(bob.core.state.groups[&unknown.to_string()].lost);
    bob.events();
    // There is no such group, or this client was never in it.
    bob.core.forget_group(&unknown, GroupStatus::Left).expect("is forgotten");
    assert!(!bob.core.state.groups.contains_key(&unknown.to_string()) && bob.events().is_empty());
    bob.core.forget_group(&group, GroupStatus::Left).expect("is forgotten");
    assert_eq!(bob.events(), [Event::Left { group: group.clone(), epoch: 1 }]);
    let bob = bob.crash();
    assert!(!bob.core.state.groups[&group.to_string()].lost);
}
