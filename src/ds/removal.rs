//! The Removes that the DS itself proposes (S12, S13): which leaves it wants removed, and what it sends because of that.

use std::collections::BTreeMap;

use super::state::{FormerKey, Head, PendingProposal, ProposedBy, Removal};
use super::{FanOut, GroupState, Hub, Member, Outcome, Recipient, StateChange};
use crate::base::limits::FORMER_KEYS_MAX;
use crate::base::{Domain, GroupUri};
use crate::mls::proposal::external_remove;
use crate::wire::Reply;
use crate::wire::qs::{DeliveredMessage, Delivery};

pub use super::state::Cause;

/// Wants these leaves removed: remembers it, proposes as many Removes as may be pending at once and sends them to everyone. `None`
/// when there is nothing new in it. A group all of whose leaves are wanted is closed.
pub fn issue(hub: &Hub<'_>, state: &GroupState, wanted: &[(u32, Cause)]) -> Option<Outcome> {
    if state.head.closed_at_ms.is_some() {
        return None;
    }
    let mut head = state.head.clone();
    let known = wanted.iter().filter(|(leaf_index, _)| state.members.contains_key(leaf_index));
    let mut news = false;
    for (leaf_index, cause) in known {
        news |= want(&mut head, *leaf_index, *cause, hub.now.0);
    }
    if !news {
        return None;
    }
    let members = state.members.iter().map(|(leaf_index, member)| (*leaf_index, member)).collect();
    let fan_out = propose(hub, &state.uri, &mut head, &members);
    let mut change = StateChange { head, ..StateChange::default() };
    if state.members.keys().all(|leaf_index| change.head.removal(*leaf_index).is_some()) {
        for (leaf_index, member) in &state.members {
            remember_key(&mut change.head, *leaf_index, member);
            change.removed.push(*leaf_index);
        }
        close(hub, &mut change);
    }
    Some(Outcome { reply: Reply::Done, change: Some(change), fan_out })
}

/// Adds a wanted removal; returns whether it is new, or more final than what was there.
pub(super) fn want(head: &mut Head, leaf_index: u32, cause: Cause, now_ms: u64) -> bool {
    match head.removals.iter_mut().find(|removal| removal.leaf_index == leaf_index) {
        None => {
            head.removals.push(Removal { leaf_index, cause, since_ms: now_ms });
            true
        }
        Some(removal) if removal.cause.finality() < cause.finality() => {
            *removal = Removal { leaf_index, cause, since_ms: now_ms };
            true
        }
        Some(_) => false,
    }
}

/// Proposes the Removes that are wanted and not pending yet, as far as there is room for them, and tells all `members`.
pub(super) fn propose(hub: &Hub<'_>, group: &GroupUri, head: &mut Head, members: &BTreeMap<u32, &Member>) -> Vec<FanOut> {
    let mut fan_out = Vec::new();
    let mut pending = head.pending_removes().count();
    for removal in &head.removals {
        let of_leaf = |by: ProposedBy| matches!(by, ProposedBy::Ds { target, .. } if target == removal.leaf_index);
        match head.proposals.iter_mut().find(|proposal| of_leaf(proposal.by)) {
            // Withdrawn, and wanted again in the same epoch: everybody has it already. It counts like a new one, so that a Commit that
            // covers all of them still fits.
            Some(PendingProposal { by: ProposedBy::Ds { withdrawn, .. }, .. }) => {
                if *withdrawn && pending < hub.limits.removals_at_once_max {
                    *withdrawn = false;
                    pending += 1;
                }
            }
            Some(_) => {}
            None if pending >= hub.limits.removals_at_once_max => {}
            None => {
                let index = head.external_sender_index;
                let message = external_remove(hub.key, &group.to_bytes(), head.epoch, index, removal.leaf_index);
                fan_out.push(deliver(group, head.epoch, &message, members));
                let by = ProposedBy::Ds { target: removal.leaf_index, withdrawn: false };
                head.proposals.push(PendingProposal { message, by });
                pending += 1;
            }
        }
    }
    fan_out
}

fn deliver(group: &GroupUri, epoch: u64, message: &[u8], members: &BTreeMap<u32, &Member>) -> FanOut {
    FanOut {
        group: group.clone(),
        epoch,
        delivery: Delivery::Message(DeliveredMessage { message: message.into(), receipt: None }),
        recipients: members
            .iter()
            .map(|(leaf_index, member)| Recipient { leaf_index: *leaf_index, queue: member.queue.clone() })
            .collect(),
    }
}

/// Takes a wanted removal back, because the client returned or its home did. What was proposed stays committable until the epoch
/// ends, but need not be committed. `None` when the leaf is not wanted.
pub fn withdraw(state: &GroupState, leaf_index: u32) -> Option<Outcome> {
    let mut head = state.head.clone();
    if !withdraw_from(&mut head, leaf_index) {
        return None;
    }
    let change = StateChange { head, ..StateChange::default() };
    Some(Outcome { reply: Reply::Done, change: Some(change), fan_out: Vec::new() })
}

/// As [`withdraw`], in a head that is about to be written; returns whether there was something to take back.
pub(super) fn withdraw_from(head: &mut Head, leaf_index: u32) -> bool {
    let before = head.removals.len();
    head.removals.retain(|removal| removal.leaf_index != leaf_index);
    for proposal in &mut head.proposals {
        if let ProposedBy::Ds { target, withdrawn } = &mut proposal.by
            && *target == leaf_index
        {
            *withdrawn = true;
        }
    }
    head.removals.len() != before
}

/// A QS rejected queue information of a leaf: grounds for a Remove only as long as it is the leaf's current one (S14).
pub fn rejected_queue(hub: &Hub<'_>, state: &GroupState, leaf_index: u32, information: &[u8]) -> Option<Outcome> {
    let member = state.members.get(&leaf_index)?;
    if member.queue.information != information {
        return None;
    }
    issue(hub, state, &[(leaf_index, Cause::QueueRejected)])
}

/// Nothing of the group reaches `domain`, or nothing is taken there: whoever has its queue there cannot take part (S12).
pub fn undeliverable(hub: &Hub<'_>, state: &GroupState, domain: &Domain) -> Option<Outcome> {
    let members = state.members.iter().filter(|(_, member)| member.queue.domain == *domain);
    let wanted: Vec<_> = members.map(|(leaf_index, _)| (*leaf_index, Cause::Undeliverable)).collect();
    issue(hub, state, &wanted)
}

/// The leaves that time or revocation has made removable and that are not wanted yet: for housekeeping to [`issue`].
pub fn due(hub: &Hub<'_>, state: &GroupState) -> Vec<(u32, Cause)> {
    let silent_ms = hub.limits.inactive_leaf_seconds_max.saturating_mul(1000);
    let cause_of = |member: &Member| {
        let revoked = hub.revoked.get(member.client.domain());
        if revoked.is_some_and(|keys| keys.contains(&member.user_key_hash)) {
            Some(Cause::UserDeleted)
        } else if revoked.is_some_and(|keys| keys.contains(&member.client_key_hash())) {
            Some(Cause::ClientRevoked)
        } else if member.not_after_ms < hub.now.0 {
            Some(Cause::Expired)
        } else if member.heard_at_ms.saturating_add(silent_ms) < hub.now.0 {
            Some(Cause::Inactive)
        } else {
            None
        }
    };
    let causes = state.members.iter().filter_map(|(leaf_index, member)| Some((*leaf_index, cause_of(member)?)));
    let is_news = |leaf_index: u32, cause: Cause| match state.head.removal(leaf_index) {
        None => true,
        Some(removal) => removal.cause.finality() < cause.finality(),
    };
    causes.filter(|(leaf_index, cause)| is_news(*leaf_index, *cause)).collect()
}

/// Ends the group: whoever was a member may still find the answers to what it asked before, and nothing else.
pub(super) fn close(hub: &Hub<'_>, change: &mut StateChange) {
    change.head.closed_at_ms = Some(hub.now.0);
    change.head.joiners.clear();
    change.head.removals.clear();
    change.head.proposals.clear();
    change.closed = true;
}

/// What was signed with a key before it was removed or replaced may be on its way again: a lost answer is asked for once more.
pub(super) fn remember_key(head: &mut Head, leaf_index: u32, member: &Member) {
    let Member { signature_key, client, .. } = member;
    head.former_keys.push_back(FormerKey { leaf_index, key: signature_key.clone(), client: client.clone() });
    while head.former_keys.len() > FORMER_KEYS_MAX {
        head.former_keys.pop_front();
    }
}
