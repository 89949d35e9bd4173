//! update_queue_info (S8).

use super::credentials::queue_of;
use super::removal::withdraw_from;
use super::{GroupState, Member, Outcome, Sender, StateChange};
use crate::wire::ds::UpdateQueueInfo;
use crate::wire::{ErrorCode, Rejection, Reply};

/// Decides an update_queue_info: a member's, for its own leaf, without a Commit. Whoever was to be removed for its silence or its
/// rejected queue has come back with it: the Remove is withdrawn (S13).
pub(super) fn decide(state: &GroupState, sender: &Sender, body: &UpdateQueueInfo) -> Result<Outcome, Rejection> {
    let sender = sender.leaf()?;
    let member = state.members.get(&sender.leaf_index).ok_or(ErrorCode::NotAuthorized)?;
    let queue = queue_of(&member.client, &body.client_queue_config)?;
    let mut head = state.head_without_joiner(sender.leaf_index).unwrap_or_else(|| state.head.clone());
    if head.removal(sender.leaf_index).is_some_and(|removal| removal.cause.ends_on_return()) {
        withdraw_from(&mut head, sender.leaf_index);
    }
    let set = vec![(sender.leaf_index, Member { queue, ..member.clone() })];
    let change = StateChange { set, head, ..StateChange::default() };
    Ok(Outcome { reply: Reply::Done, change: Some(change), fan_out: Vec::new() })
}
