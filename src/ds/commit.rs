//! The requests that carry a member's Commit: add_users, remove_users, update_client (S9, S10, R3–R6).

use std::collections::BTreeSet;

use super::credentials::{identify, identify_all, queue_of};
use super::state::{FormerKey, Head, Joiner, Member, RecentCommit};
use super::{Authenticated, FanOut, GroupState, Hub, Outcome, Recipient, Refusal, StateChange};
use crate::base::UserUri;
use crate::base::crypto::sha256;
use crate::base::limits::{FORMER_KEYS_MAX, RECENT_COMMITS_MAX};
use crate::mls::message::{framed_commit, welcome_recipients};
use crate::mls::{StagedUpdate, Tree};
use crate::wire::ds::GroupUpdate;
use crate::wire::qs::{DeliveredMessage, Delivery};
use crate::wire::receipt::ReceiptContent;
use crate::wire::{ErrorCode, List, Opaque, Receipt, Rejection, Reply};

/// Which request carries the Commit: what the Commit must then be.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// add_users, with its Welcomes.
    AddUsers(&'a List<Opaque>),
    /// remove_users.
    RemoveUsers,
    /// update_client.
    UpdateClient,
}

/// An acceptable Commit: the outcome to write, and the staged change to merge once it is written.
pub struct Accepted {
    /// What is written.
    pub outcome: Outcome,
    /// What is merged into the tree afterwards; its record is part of what is written.
    pub update: StagedUpdate,
}

/// DS-040 (R2): a member's Commit is of this group and the current epoch. Needs no tree; [`decide`] repeats it.
pub fn check_frame(state: &GroupState, update: &GroupUpdate) -> Result<(), Rejection> {
    let frame = framed_commit(&update.commit)?;
    if frame.group_id != state.uri.to_bytes() {
        return Err(ErrorCode::InvalidCommit.into());
    }
    if frame.epoch != state.head.epoch {
        return Err(Rejection::wrong_epoch(state.head.epoch, state.commit_hash(frame.epoch)));
    }
    Ok(())
}

/// Decides a member's Commit.
pub fn decide(
    hub: &Hub<'_>,
    state: &GroupState,
    tree: &Tree,
    sender: &Authenticated,
    kind: Kind<'_>,
    update: &GroupUpdate,
) -> Result<Accepted, Refusal> {
    check_frame(state, update)?;
    let frame = framed_commit(&update.commit)?;
    // DS-041 (S2): the envelope and the Commit are by the same leaf.
    if frame.committer != Some(sender.leaf_index) || sender.as_joiner {
        return Err(ErrorCode::NotAuthorized.into());
    }
    // What a Commit must be before anyone asks what it does: the rules from DS-042 to DS-046 are checked in `mls::group`.
    let staged = tree.stage(frame, &update.group_info, hub.external_sender)?;
    let changes = &staged.changes;
    let refused = || Rejection::from(ErrorCode::InvalidCommit);
    // DS-047: no proposal but Adds, Removes and Updates; ReInit, PSK and GroupContextExtensions have no place here.
    if !changes.only_membership || changes.by_value > hub.limits.commit_proposals_max {
        return Err(refused().into());
    }
    match kind {
        Kind::AddUsers(_) => check_adds_only(staged.changes.added.is_empty(), changes.removed.is_empty())?,
        Kind::RemoveUsers => check_removes_users(state, sender, changes)?,
        // DS-050: update_client has a path and nothing by value.
        Kind::UpdateClient => {
            if !changes.has_path || changes.by_value > 0 || !changes.added.is_empty() || !changes.removed.is_empty() {
                return Err(refused().into());
            }
        }
    }
    let set = changed_members(hub, state, &staged)?;
    // DS-051 (S9): every Add of add_users is of a user who is not a member yet.
    let is_added = |leaf_index: u32| changes.added.iter().any(|(added, _)| *added == leaf_index);
    let mut new_members = set.iter().filter(|(leaf_index, _)| is_added(*leaf_index));
    if matches!(kind, Kind::AddUsers(_)) && new_members.any(|(_, member)| state.has_user(member.client.user())) {
        return Err(refused().into());
    }
    // DS-053: the group stays within its limit of leaves.
    if state.members.len() + changes.added.len() > hub.limits.group_leaves_max {
        return Err(ErrorCode::TooLarge.into());
    }
    let welcomes = match kind {
        Kind::AddUsers(welcomes) => routed_welcomes(&staged, welcomes)?,
        Kind::RemoveUsers | Kind::UpdateClient => Vec::new(),
    };
    outcome(hub, state, sender, staged, set, update, welcomes)
}

/// DS-048: add_users adds and does nothing else.
fn check_adds_only(no_adds: bool, no_removes: bool) -> Result<(), Rejection> {
    if no_adds || !no_removes { Err(ErrorCode::InvalidCommit.into()) } else { Ok(()) }
}

/// DS-049 (S9): remove_users removes all leaves of each user it touches, none of the committer's user, and adds nobody.
fn check_removes_users(
    state: &GroupState,
    sender: &Authenticated,
    changes: &crate::mls::group::Changes,
) -> Result<(), Rejection> {
    let refused = || Rejection::from(ErrorCode::InvalidCommit);
    if !changes.added.is_empty() || changes.removed.is_empty() {
        return Err(refused());
    }
    let users: BTreeSet<&UserUri> =
        changes.removed.iter().filter_map(|leaf| state.members.get(leaf)).map(|member| member.client.user()).collect();
    let all = state.members.iter().filter(|(_, member)| users.contains(member.client.user())).map(|(leaf, _)| *leaf);
    if users.contains(sender.client.user()) || all.collect::<BTreeSet<u32>>() != changes.removed {
        return Err(refused());
    }
    Ok(())
}

/// The members that the Commit brings or changes, their credentials checked (R8).
fn changed_members(hub: &Hub<'_>, state: &GroupState, staged: &StagedUpdate) -> Result<Vec<(u32, Member)>, Refusal> {
    let changes = &staged.changes;
    let mut set = Vec::new();
    let identities = identify_all(hub, changes.added.iter().map(|(_, key_package)| &key_package.claim))?;
    let mut clients: BTreeSet<String> = BTreeSet::new();
    for ((leaf_index, key_package), identity) in changes.added.iter().zip(identities) {
        // DS-023: a KeyPackage says where its client's messages go (S15).
        let config = key_package.queue_config.as_ref().ok_or(ErrorCode::InvalidQueueConfig)?;
        let queue = queue_of(&identity.client, config)?;
        // DS-024: a client has one leaf.
        let taken =
            state.members.iter().any(|(leaf, member)| member.client == identity.client && !changes.removed.contains(leaf));
        if taken || !clients.insert(identity.client.to_string()) {
            return Err(ErrorCode::InvalidCommit.into());
        }
        let member = Member {
            signature_key: key_package.claim.signature_key.clone(),
            client: identity.client,
            queue,
            joined_epoch: staged.epoch,
        };
        set.push((*leaf_index, member));
    }
    for (leaf_index, claim) in &changes.updated {
        let member = state.members.get(leaf_index).ok_or(ErrorCode::InvalidCommit)?;
        let identity = identify(hub, claim)?;
        // DS-025 (R8): keys and certificates may be renewed, the client may not change.
        if identity.client != member.client {
            return Err(ErrorCode::InvalidCredential.into());
        }
        set.push((*leaf_index, Member { signature_key: claim.signature_key.clone(), ..member.clone() }));
    }
    Ok(set)
}

/// DS-052 (R6): the Welcomes are for exactly the Commit's Adds. Returns, for each Welcome, the leaves it is for.
fn routed_welcomes<'a>(staged: &StagedUpdate, welcomes: &'a List<Opaque>) -> Result<Vec<(&'a Opaque, Vec<u32>)>, Rejection> {
    let refused = || Rejection::from(ErrorCode::InvalidWelcome);
    let mut awaited: Vec<(&[u8], u32)> =
        staged.changes.added.iter().map(|(leaf, key_package)| (key_package.reference.as_slice(), *leaf)).collect();
    let mut routed = Vec::new();
    for welcome in welcomes {
        let mut leaves = Vec::new();
        for reference in welcome_recipients(welcome)? {
            let position = awaited.iter().position(|(awaited, _)| *awaited == reference).ok_or_else(refused)?;
            leaves.push(awaited.swap_remove(position).1);
        }
        if leaves.is_empty() {
            return Err(refused());
        }
        routed.push((welcome, leaves));
    }
    if awaited.is_empty() { Ok(routed) } else { Err(refused()) }
}

/// State, receipt and deliveries of an accepted Commit.
fn outcome(
    hub: &Hub<'_>,
    state: &GroupState,
    sender: &Authenticated,
    staged: StagedUpdate,
    set: Vec<(u32, Member)>,
    update: &GroupUpdate,
    welcomes: Vec<(&Opaque, Vec<u32>)>,
) -> Result<Accepted, Refusal> {
    let changes = &staged.changes;
    let commit_hash = sha256(&update.commit);
    let receipt = ReceiptContent { group_id: state.uri.to_bytes().into(), epoch: staged.epoch, commit_hash }.sign(hub.key);

    let mut head = Head { epoch: staged.epoch, ..state.head.clone() };
    head.recent_commits.push_back(RecentCommit { from_epoch: state.head.epoch, hash: commit_hash });
    while head.recent_commits.len() > RECENT_COMMITS_MAX {
        head.recent_commits.pop_front();
    }
    // What they signed before may be on its way again: a lost answer is asked for once more.
    let renewed = changes.updated.iter().filter(|(leaf_index, claim)| {
        state.members.get(leaf_index).is_some_and(|member| member.signature_key != claim.signature_key)
    });
    for leaf_index in changes.removed.iter().chain(renewed.map(|(leaf_index, _)| leaf_index)) {
        let Some(Member { signature_key, client, .. }) = state.members.get(leaf_index) else { continue };
        head.former_keys.push_back(FormerKey { leaf_index: *leaf_index, key: signature_key.clone(), client: client.clone() });
    }
    while head.former_keys.len() > FORMER_KEYS_MAX {
        head.former_keys.pop_front();
    }
    head.joiners.retain(|joiner| {
        let gone = changes.removed.contains(&joiner.leaf_index) || joiner.leaf_index == sender.leaf_index;
        !gone && joiner.not_after_ms > hub.now.0
    });
    head.joiners.extend(changes.added.iter().map(|(leaf_index, key_package)| Joiner {
        key_package_ref: key_package.reference.clone(),
        epoch: staged.epoch,
        leaf_index: *leaf_index,
        not_after_ms: key_package.not_after.0,
    }));
    // Past states are bounded (S11): who has waited longest gives way, and comes back by an external Commit.
    let surplus = head.joiners.len().saturating_sub(hub.limits.pending_joiners_max);
    head.joiners.drain(..surplus);

    // The Commit goes to everyone who was a member, those it removes included: that is how they learn of it.
    let before = state.members.iter().filter(|(leaf_index, _)| **leaf_index != sender.leaf_index);
    let to_members = before.map(|(leaf_index, member)| recipient(*leaf_index, member)).collect();
    let mut fan_out = vec![deliver(state, staged.epoch, &update.commit, Some(&receipt), to_members)];
    for (welcome, leaves) in welcomes {
        let joining = set.iter().filter(|(leaf_index, _)| leaves.contains(leaf_index));
        let recipients = joining.map(|(leaf_index, member)| recipient(*leaf_index, member)).collect();
        fan_out.push(deliver(state, staged.epoch, welcome, None, recipients));
    }
    fan_out.retain(|delivery| !delivery.recipients.is_empty());

    let change = StateChange {
        set,
        removed: changes.removed.iter().copied().collect(),
        head,
        group_info: Some(update.group_info.to_vec()),
    };
    let outcome = Outcome { reply: Reply::CommitAccepted(receipt), change: Some(change), fan_out };
    Ok(Accepted { outcome, update: staged })
}

fn recipient(leaf_index: u32, member: &Member) -> Recipient {
    Recipient { leaf_index, queue: member.queue.clone() }
}

fn deliver(state: &GroupState, epoch: u64, message: &Opaque, receipt: Option<&Receipt>, recipients: Vec<Recipient>) -> FanOut {
    let delivery = Delivery::Message(DeliveredMessage { message: message.clone(), receipt: receipt.cloned() });
    FanOut { group: state.uri.clone(), epoch, delivery, recipients }
}
