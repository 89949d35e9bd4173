//! propose: a member's standalone Update (S9, S11). Whoever commits next may carry it.

use super::commit::check_is_no_target;
use super::credentials::identify;
use super::leaves::check_same_client;
use super::state::{PendingProposal, ProposedBy};
use super::{FanOut, GroupState, Hub, Outcome, Recipient, Refusal, Sender, StateChange};
use crate::base::limits::{PENDING_PROPOSALS_BYTES_MAX, PROPOSAL_BYTES_MAX};
use crate::base::rule::on;
use crate::mls::Tree;
use crate::mls::proposal::framed_proposal;
use crate::wire::ds::Propose;
use crate::wire::qs::{DeliveredMessage, Delivery};
use crate::wire::{ErrorCode, Rejection, Reply};

/// Decides a propose.
pub(super) fn decide(
    hub: &Hub<'_>,
    state: &GroupState,
    tree: &mut Tree,
    sender: &Sender,
    body: &Propose,
) -> Result<Outcome, Refusal> {
    let sender = sender.leaf()?;
    check_is_no_target(state, sender)?;
    let by = ProposedBy::Member { leaf_index: sender.leaf_index };
    let of_members = state.head.proposals.iter().filter(|pending| matches!(pending.by, ProposedBy::Member { .. }));
    let (count, octets) = of_members.fold((0, 0), |(count, octets), pending| (count + 1, octets + pending.message.len()));
    let more: usize = body.proposals.iter().map(|proposal| proposal.len()).sum();
    // DS-089: the proposals that wait for a Commit are within their limit.
    if on("DS-089")
        && (count + body.proposals.len() > hub.limits.pending_proposals_max || octets + more > PENDING_PROPOSALS_BYTES_MAX)
    {
        return Err(ErrorCode::TooLarge.into());
    }
    let already = state.head.proposals.iter().any(|pending| pending.by == by);
    // DS-088: a member proposes one thing in an epoch.
    let message = match &body.proposals[..] {
        [message] if !on("DS-088") || !already => message,
        _ => return Err(crate::base::rule::answer("DS-088", ErrorCode::InvalidProposal, ErrorCode::Internal).into()),
    };
    // DS-090: a proposal is within its limit, before anything is decoded.
    if on("DS-090") && message.len() > PROPOSAL_BYTES_MAX {
        return Err(ErrorCode::TooLarge.into());
    }
    let frame = framed_proposal(message)?;
    // DS-082 (R2): a proposal is of this group and the current epoch.
    if on("DS-082") && frame.group_id != state.uri.to_bytes() {
        return Err(ErrorCode::InvalidProposal.into());
    }
    if on("DS-082") && frame.epoch != state.head.epoch {
        return Err(Rejection::wrong_epoch(state.head.epoch, state.commit_hash(frame.epoch)).into());
    }
    // DS-083 (S2): envelope and proposal are by the same leaf.
    if on("DS-083") && frame.proposer != sender.leaf_index {
        return Err(ErrorCode::NotAuthorized.into());
    }
    tree.learn(state.head.proposals.iter().map(|proposal| proposal.message.as_slice()))?;
    let claim = tree.check_update(frame)?;
    let identity = identify(hub, &claim)?;
    check_same_client(&identity, &sender.client)?;

    let others = state.members.iter().filter(|(leaf_index, _)| **leaf_index != sender.leaf_index);
    let fan_out = FanOut {
        group: state.uri.clone(),
        epoch: state.head.epoch,
        delivery: Delivery::Message(DeliveredMessage { message: message.clone(), receipt: None }),
        recipients: others
            .map(|(leaf_index, member)| Recipient { leaf_index: *leaf_index, queue: member.queue.clone() })
            .collect(),
    };
    let mut head = state.head_without_joiner(sender.leaf_index).unwrap_or_else(|| state.head.clone());
    head.proposals.push(PendingProposal { message: message.to_vec(), by });
    let change = StateChange { head, ..StateChange::default() };
    Ok(Outcome { reply: Reply::Done, change: Some(change), fan_out: vec![fan_out] })
}
