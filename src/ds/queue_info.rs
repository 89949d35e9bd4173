//! update_queue_info (S8).

use super::credentials::queue_of;
use super::{Authenticated, GroupState, Member, Outcome, StateChange};
use crate::wire::ds::UpdateQueueInfo;
use crate::wire::{ErrorCode, Rejection, Reply};

/// Decides an update_queue_info: a member's, for its own leaf, without a Commit.
pub fn decide(state: &GroupState, sender: &Authenticated, body: &UpdateQueueInfo) -> Result<Outcome, Rejection> {
    // DS-070: a KeyPackage's holder is not a member before it says so as one.
    if sender.as_joiner {
        return Err(ErrorCode::NotAuthorized.into());
    }
    let member = state.members.get(&sender.leaf_index).ok_or(ErrorCode::NotAuthorized)?;
    let queue = queue_of(&member.client, &body.client_queue_config)?;
    let head = state.head_without_joiner(sender.leaf_index).unwrap_or_else(|| state.head.clone());
    let set = vec![(sender.leaf_index, Member { queue, ..member.clone() })];
    let change = StateChange { set, head, ..StateChange::default() };
    Ok(Outcome { reply: Reply::Done, change: Some(change), fan_out: Vec::new() })
}
