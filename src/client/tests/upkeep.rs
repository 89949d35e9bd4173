//! What a client sees to in time, with a clock of the test's own.

use std::time::Duration;

use super::*;
use crate::base::limits;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn a_leaf_is_renewed_well_before_it_is_too_old_and_not_all_the_time() {
    let (a, _b, mut alice, _bob, group) = pair();
    let joined = UnixMillis(alice.core.state.groups[&group.to_string()].leaf_renewed_ms);
    let age_max = limits::CLIENT_LEAF_AGE_MAX;
    let due = |party: &Party, now| party.core.leaves_due(age_max, now) == [group.clone()];
    assert!(!due(&alice, joined) && !due(&alice, joined.plus(age_max / 2)));
    assert!(due(&alice, joined.plus(age_max)));
    // A Commit with a path renews it; one without does not.
    alice.core.group_mut(&group).expect("is there").leaf_renewed_ms = 0;
    assert!(due(&alice, UnixMillis::now()));
    let made = alice.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&made);
    let receipt = a.receipt(&group, 2, &update.commit);
    alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt))).expect("settles");
    assert!(!due(&alice, UnixMillis::now()));
    // Hubs wait many times as long before they take a leaf for inactive, and a KeyPackage's leaf lives longer, too.
    let inactive = Duration::from_secs(limits::Limits::default().inactive_leaf_seconds_max);
    assert!(age_max * 4 < inactive && age_max * 4 < Duration::from_secs(84 * 24 * 60 * 60));
}

#[test]
fn key_packages_are_replaced_before_they_expire_and_forgotten_long_after() {
    let a = Authority::new("a.test");
    let mut alice = Party::new(&a, "alice");
    let (now, before) = (UnixMillis::now(), limits::CLIENT_KEY_PACKAGE_REMAINING_MIN);
    assert_eq!(alice.core.key_packages_are_fresh(before, now), (false, false), "there are none");
    alice.core.make_key_packages(2, true, now).expect("are made");
    assert_eq!(alice.core.key_packages_are_fresh(before, now), (true, true));
    let expiry = UnixMillis(alice.core.state.key_packages[0].expires_at_ms);
    assert!(expiry > now.plus(80 * DAY));
    assert_eq!(alice.core.key_packages_are_fresh(before, expiry.minus(before)), (false, false));
    alice.core.make_key_packages(0, true, now).expect("is made");
    assert_eq!(alice.core.state.key_packages.len(), 4);
    assert_eq!(alice.core.forget_expired_key_packages(expiry).expect("nothing"), 0);
    let late = expiry.plus(limits::CLIENT_EXPIRED_KEY_PACKAGES_KEPT).plus(DAY);
    let references: Vec<_> = alice.core.state.key_packages.iter().map(|kept| kept.reference.0.clone()).collect();
    let has = |party: &Party, reference: &[u8]| {
        party.core.provider.has_key_package(&mls::key_package_ref(reference).expect("is a reference"))
    };
    assert!(references.iter().all(|reference| has(&alice, reference)));
    assert_eq!(alice.core.forget_expired_key_packages(late).expect("are forgotten"), 4);
    let alice = alice.crash();
    assert!(!references.iter().any(|reference| has(&alice, reference)) && alice.core.state.key_packages.is_empty());
}

#[test]
fn a_generation_is_retired_when_hubs_and_key_packages_have_the_next() {
    let (_a, _b, mut alice, _bob, group) = pair();
    let made = alice.core.make_key_packages(1, true, UnixMillis::now()).expect("are made");
    alice.core.settle_other(made.request, Ok(Reply::Done)).expect("settles");
    assert_eq!(alice.core.retirable(), None, "nothing is to be retired");
    let queue = alice.core.state.queue.as_mut().expect("a queue");
    (queue.generation, queue.retiring) = (2, Some(1));
    assert_eq!(alice.core.retirable(), None, "the hub has the old one, and so have the KeyPackages");
    alice.core.group_mut(&group).expect("is there").queue_generation = Some(2);
    assert_eq!(alice.core.retirable(), None, "the KeyPackages have it still");
    let made = alice.core.make_key_packages(1, true, UnixMillis::now()).expect("are made");
    assert_eq!(alice.core.retirable(), None, "nobody has the new ones yet");
    alice.core.settle_other(made.request, Ok(Reply::Done)).expect("settles");
    assert_eq!(alice.core.retirable(), Some(1));
}
