//! The members that a Commit brings or changes: who they are, and how many there may be (R8, S15, S19).

use std::collections::{BTreeMap, HashSet};

use super::credentials::{identify, identify_all, queue_of};
use super::{GroupState, Hub, Member, QueueAddress, Refusal};
use crate::base::rule::{answer, on};
use crate::base::{ClientUri, UserUri};
use crate::identity::{ClientIdentity, RevokedKeys};
use crate::mls::StagedUpdate;
use crate::wire::{ErrorCode, Rejection};

/// A member with this identity, heard of now. `leaf_not_after_ms`: the end of its leaf's own lifetime, if it has one.
pub(super) fn member(
    hub: &Hub<'_>,
    identity: ClientIdentity,
    queue: QueueAddress,
    joined_epoch: u64,
    leaf_not_after_ms: u64,
) -> Member {
    Member {
        signature_key: identity.public_key,
        client: identity.client,
        queue,
        joined_epoch,
        user_key_hash: identity.user_key_hash,
        heard_at_ms: hub.now.0,
        not_after_ms: identity.not_after.0.min(leaf_not_after_ms),
    }
}

/// The members that the Commit's Adds bring.
pub(super) fn added(hub: &Hub<'_>, state: &GroupState, staged: &StagedUpdate) -> Result<Vec<(u32, Member)>, Refusal> {
    let changes = &staged.changes;
    if changes.added.is_empty() {
        return Ok(Vec::new());
    }
    let identities = identify_all(hub, changes.added.iter().map(|(_, key_package)| &key_package.claim))?;
    let brought: HashSet<&ClientUri> = identities.iter().map(|identity| &identity.client).collect();
    let mut staying = state.members.iter().filter(|(leaf_index, _)| !changes.removed.contains(leaf_index));
    let is_there_already = staying.any(|(_, member)| brought.contains(&member.client));
    // DS-024: a client has one leaf in a group, but while its old one waits to be removed.
    if on("DS-024") && (brought.len() != identities.len() || is_there_already) {
        return Err(ErrorCode::InvalidCommit.into());
    }
    let mut set = Vec::new();
    for ((leaf_index, key_package), identity) in changes.added.iter().zip(identities) {
        // DS-023: a KeyPackage that is added says where its client's messages go.
        let without = || answer("DS-023", ErrorCode::InvalidQueueConfig, ErrorCode::Internal);
        let queue = queue_of(&identity.client, key_package.queue_config.as_ref().ok_or_else(without)?)?;
        set.push((*leaf_index, member(hub, identity, queue, staged.epoch, key_package.not_after.0)));
    }
    Ok(set)
}

/// The members whose leaves a path or an Update renews.
pub(super) fn updated(hub: &Hub<'_>, state: &GroupState, staged: &StagedUpdate) -> Result<Vec<(u32, Member)>, Refusal> {
    let mut set = Vec::new();
    for (leaf_index, claim) in &staged.changes.updated {
        let old = state.members.get(leaf_index).ok_or(ErrorCode::InvalidCommit)?;
        if staged.changes.same_identity.contains(leaf_index) && is_still_good(hub, old) {
            let heard_at_ms = if *leaf_index == staged.committer { hub.now.0 } else { old.heard_at_ms };
            set.push((*leaf_index, Member { heard_at_ms, ..old.clone() }));
            continue;
        }
        let identity = identify(hub, claim)?;
        check_same_client(&identity, &old.client)?;
        let new = member(hub, identity, old.queue.clone(), old.joined_epoch, u64::MAX);
        // Whose Update another member commits has not been heard of now.
        let heard_at_ms = if *leaf_index == staged.committer { new.heard_at_ms } else { old.heard_at_ms };
        set.push((*leaf_index, Member { heard_at_ms, ..new }));
    }
    Ok(set)
}

/// Whether a credential that was checked when its leaf came in (R8) is neither past its end nor revoked since. What is not gets the
/// whole check, and its answer. It is most of what a Commit costs in a small group.
fn is_still_good(hub: &Hub<'_>, member: &Member) -> bool {
    let is_revoked = |keys: &RevokedKeys| keys.contains(&member.user_key_hash) || keys.contains(&member.client_key_hash());
    let revoked = hub.revoked.get(member.client.domain());
    member.not_after_ms >= hub.now.0 && revoked.is_some_and(|keys| keys.is_fresh(hub.now) && !is_revoked(keys))
}

/// DS-025 (R8): keys and certificates of a leaf may be renewed, its client may not change.
pub(super) fn check_same_client(identity: &ClientIdentity, client: &ClientUri) -> Result<(), Rejection> {
    if on("DS-025") && identity.client != *client { Err(ErrorCode::InvalidCredential.into()) } else { Ok(()) }
}

/// Limits on leaves, of the group and of each user that gets a new one.
pub(super) fn check_limits(
    hub: &Hub<'_>,
    state: &GroupState,
    staged: &StagedUpdate,
    set: &[(u32, Member)],
) -> Result<(), Rejection> {
    let changes = &staged.changes;
    let joined = changes.joined.iter().map(|(leaf_index, _)| *leaf_index);
    let new: HashSet<u32> = changes.added.iter().map(|(leaf_index, _)| *leaf_index).chain(joined).collect();
    if new.is_empty() {
        return Ok(());
    }
    // DS-053: the group stays within its limit of leaves.
    let leaves = (state.members.len() + new.len()).saturating_sub(changes.removed.len());
    if on("DS-053") && leaves > hub.limits.group_leaves_max {
        return Err(ErrorCode::TooLarge.into());
    }
    let newcomers = set.iter().filter(|(leaf_index, _)| new.contains(leaf_index)).map(|(_, member)| member);
    let mut of_user: BTreeMap<&UserUri, usize> = BTreeMap::new();
    for member in newcomers {
        *of_user.entry(member.client.user()).or_default() += 1;
    }
    for (leaf_index, member) in &state.members {
        if let Some(count) = of_user.get_mut(member.client.user()).filter(|_| !changes.removed.contains(leaf_index)) {
            *count += 1;
        }
    }
    // DS-059: a user stays within the limit of leaves of one user.
    if on("DS-059") && of_user.values().any(|count| *count > hub.limits.user_leaves_max) {
        return Err(ErrorCode::TooLarge.into());
    }
    Ok(())
}
