//! leave_group (S9): who leaves is removed by the DS, because nobody can remove itself by a Commit of its own.

use super::removal::{self, Cause};
use super::{GroupState, Hub, Outcome, Sender};
use crate::wire::{Rejection, Reply};

/// Decides a leave_group: a member takes all leaves of its user out; a KeyPackage's holder declines its invitation.
pub(super) fn decide(hub: &Hub<'_>, state: &GroupState, sender: &Sender) -> Result<Outcome, Rejection> {
    let wanted: Vec<(u32, Cause)> = match sender {
        Sender::Member(joiner) if joiner.as_joiner => vec![(joiner.leaf_index, Cause::Declined)],
        _ => {
            let user = sender.leaf()?.client.user();
            let theirs = state.members.iter().filter(|(_, member)| member.client.user() == user);
            theirs.map(|(leaf_index, _)| (*leaf_index, Cause::Left)).collect()
        }
    };
    let nothing_new = || Outcome { reply: Reply::Done, change: None, fan_out: Vec::new() };
    let mut outcome = removal::issue(hub, state, &wanted).unwrap_or_else(nothing_new);
    // With the last one the group is gone; its own key is the one that must not be forgotten.
    if let (Some(change), Sender::Member(sender)) = (&mut outcome.change, sender)
        && change.closed
        && let Some(member) = state.members.get(&sender.leaf_index)
    {
        removal::remember_key(&mut change.head, sender.leaf_index, member);
    }
    Ok(outcome)
}
