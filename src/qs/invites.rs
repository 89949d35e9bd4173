//! Invites (X3, X5): the queue information of a KeyPackage, whose hub is not known yet, serves the group that uses it first.

use crate::base::Domain;
use crate::base::limits::INVITE_GROUPS_PER_HUB_MAX;
use crate::base::rule::on;

/// A group that an invite is bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound {
    /// The authenticated hub.
    pub hub: Domain,
    /// The group's URI.
    pub group_id: String,
}

/// What becomes of the use of an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InviteUse {
    /// The group is the one that the invite is bound to.
    Known,
    /// From now on it is.
    Bind,
    /// The hub is told that the queue information is not valid.
    Refused,
}

/// Decides whether `by` may use an invite. `bound`: the groups that the invite is bound to. `last_resort`: it stands in a
/// KeyPackage of last resort, and is bound in each group for itself. `blocked`: the hub, or who claimed the KeyPackage, is
/// blocked by the queue's user.
pub fn decide(by: &Bound, bound: &[Bound], last_resort: bool, blocked: bool) -> InviteUse {
    if bound.contains(by) {
        return InviteUse::Known;
    }
    // QS-005 (X3): an invite serves the first group that used it, or a bounded number of each hub's if it is one of last resort.
    let of_hub = bound.iter().filter(|bound| bound.hub == by.hub).count();
    let used_up = if last_resort { of_hub >= INVITE_GROUPS_PER_HUB_MAX } else { !bound.is_empty() };
    if on("QS-005") && used_up {
        return InviteUse::Refused;
    }
    // QS-006 (X5): a group that is new to the user comes neither from a blocked hub nor by a KeyPackage that a blocked user
    // claimed.
    if on("QS-006") && blocked {
        return InviteUse::Refused;
    }
    InviteUse::Bind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(hub: &str, number: usize) -> Bound {
        Bound { hub: hub.parse().expect("a domain"), group_id: format!("mimi://{hub}/g/{number}") }
    }

    // covers QS-005
    #[test]
    fn an_invite_serves_the_group_that_used_it_first() {
        let (first, second, elsewhere) = (group("a.test", 1), group("a.test", 2), group("b.test", 1));
        assert_eq!(decide(&first, &[], false, false), InviteUse::Bind);
        let bound = [first.clone()];
        assert_eq!(decide(&first, &bound, false, false), InviteUse::Known);
        for other in [&second, &elsewhere] {
            assert_eq!(decide(other, &bound, false, false), InviteUse::Refused);
            assert_eq!(decide(other, &bound, true, false), InviteUse::Bind, "one of last resort, in each group");
        }
        let many: Vec<Bound> = (0..INVITE_GROUPS_PER_HUB_MAX).map(|number| group("a.test", number)).collect();
        assert_eq!(decide(&group("a.test", many.len()), &many, true, false), InviteUse::Refused);
        assert_eq!(decide(&elsewhere, &many, true, false), InviteUse::Bind, "one hub does not use it up for another");
    }

    // covers QS-006
    #[test]
    fn who_is_blocked_starts_nothing_new_and_what_is_there_goes_on() {
        let first = group("a.test", 1);
        assert_eq!(decide(&first, &[], false, true), InviteUse::Refused);
        assert_eq!(decide(&first, &[], true, true), InviteUse::Refused);
        assert_eq!(decide(&first, std::slice::from_ref(&first), false, true), InviteUse::Known);
    }
}
