//! send_message (R1, R2): never touches the tree.

use super::commit::pending_proposals;
use super::{FanOut, GroupState, Hub, Outcome, Recipient, Sender, StateChange};
use crate::base::limits::APPLICATION_PAST_EPOCHS_MAX;
use crate::base::rule::on;
use crate::mls::message::application_frame;
use crate::wire::ds::SendMessage;
use crate::wire::qs::{DeliveredMessage, Delivery};
use crate::wire::reply::MessageAccepted;
use crate::wire::{ErrorCode, Rejection, Reply};

/// Decides a send_message.
pub(super) fn decide(hub: &Hub<'_>, state: &GroupState, sender: &Sender, body: &SendMessage) -> Result<Outcome, Rejection> {
    let sender = sender.leaf()?;
    // DS-060: an application message is within its limit, before anything is decoded.
    if on("DS-060") && body.message.len() > hub.limits.message_bytes_max {
        return Err(ErrorCode::TooLarge.into());
    }
    // DS-065 (S13): application messages wait until the DS's Removes are committed.
    if on("DS-065") && state.head.pending_removes().next().is_some() {
        return Err(pending_proposals(state));
    }
    let frame = application_frame(&body.message)?;
    // DS-062 (R2): it is of this group.
    if on("DS-062") && frame.group_id != state.uri.to_bytes() {
        return Err(ErrorCode::InvalidMessage.into());
    }
    // DS-063 (R2): it is of this epoch or one shortly before it.
    let current = state.head.epoch;
    if on("DS-063") && (frame.epoch > current || current - frame.epoch > APPLICATION_PAST_EPOCHS_MAX) {
        return Err(Rejection::wrong_epoch(current, state.commit_hash(frame.epoch)));
    }
    // DS-064: it is of an epoch in which its sender was a member.
    let member = state.members.get(&sender.leaf_index).ok_or(ErrorCode::NotAuthorized)?;
    if on("DS-064") && frame.epoch < member.joined_epoch {
        return Err(ErrorCode::NotAuthorized.into());
    }
    // Who joined after the message's epoch could not read it.
    let readers = state.members.iter().filter(|(_, member)| member.joined_epoch <= frame.epoch);
    let recipients = readers
        .filter(|(leaf_index, _)| **leaf_index != sender.leaf_index)
        .map(|(leaf_index, member)| Recipient { leaf_index: *leaf_index, queue: member.queue.clone() })
        .collect::<Vec<_>>();
    let delivery = Delivery::Message(DeliveredMessage { message: body.message.clone(), receipt: None });
    let fan_out = FanOut { group: state.uri.clone(), epoch: frame.epoch, delivery, recipients };
    let change = state.head_without_joiner(sender.leaf_index).map(|head| StateChange { head, ..StateChange::default() });
    let reply = Reply::MessageAccepted(MessageAccepted { epoch: current, accepted_at_ms: hub.now.0 });
    Ok(Outcome { reply, change, fan_out: vec![fan_out] })
}
