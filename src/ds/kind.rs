//! What a member's Commit may do, by the request that carries it (S7, S9). It also carries, by reference, the DS's Removes and
//! perhaps pending Updates; the rules here speak of the rest.

use std::collections::BTreeSet;

use super::commit::Kind;
use super::{Authenticated, GroupState, Hub, Member};
use crate::base::UserUri;
use crate::base::rule::on;
use crate::mls::changes::Changes;
use crate::wire::{ErrorCode, Rejection};

/// Whether the proposals are those of the request's type.
pub(super) fn check(
    hub: &Hub<'_>,
    state: &GroupState,
    sender: &Authenticated,
    kind: Kind,
    changes: &Changes,
) -> Result<(), Rejection> {
    let refused = || Err(Rejection::from(ErrorCode::InvalidCommit));
    let (adds, removes) = (!changes.added.is_empty(), !changes.removed_by_value.is_empty());
    // DS-047: no proposals but Adds, Removes and Updates, or in update_group GroupContextExtensions, and not too many by value.
    let foreign = changes.others > 0 || (changes.context.is_some() && kind != Kind::UpdateGroup);
    if on("DS-047") && (foreign || changes.by_value > hub.limits.commit_proposals_max) {
        return refused();
    }
    match kind {
        // DS-048: add_users and add_clients add and do nothing else.
        Kind::AddUsers | Kind::AddClients if on("DS-048") && (!adds || removes) => return refused(),
        Kind::RemoveUsers => check_removes_users(state, sender, changes)?,
        Kind::RemoveClients => check_removes_clients(state, changes)?,
        // DS-050: update_client has a path and nothing by value.
        Kind::UpdateClient if on("DS-050") && (!changes.has_path || changes.by_value > 0) => return refused(),
        // DS-077 (S9): update_group replaces the GroupContext's extensions and does nothing else.
        Kind::UpdateGroup if on("DS-077") && (changes.context.is_none() || adds || removes) => return refused(),
        Kind::DeleteGroup => {
            let others = state.members.keys().filter(|leaf_index| **leaf_index != sender.leaf_index);
            // DS-071 (S7): delete_group removes everyone but its author, with a path, and adds nobody.
            if on("DS-071") && (adds || !changes.has_path || !others.eq(changes.removed.iter())) {
                return refused();
            }
        }
        _ => {}
    }
    Ok(())
}

/// The users of these leaves.
fn users_of<'a>(state: &'a GroupState, leaves: &BTreeSet<u32>) -> BTreeSet<&'a UserUri> {
    leaves.iter().filter_map(|leaf_index| state.members.get(leaf_index)).map(|member| member.client.user()).collect()
}

/// DS-049 (S9): remove_users removes all leaves of each user it touches, none of the committer's user, and adds nobody.
fn check_removes_users(state: &GroupState, sender: &Authenticated, changes: &Changes) -> Result<(), Rejection> {
    let users = users_of(state, &changes.removed_by_value);
    let mut theirs = state.members.iter().filter(|(_, member)| users.contains(member.client.user()));
    let all = theirs.all(|(leaf_index, _)| changes.removed.contains(leaf_index));
    if on("DS-049") && (!changes.added.is_empty() || users.is_empty() || !all || users.contains(sender.client.user())) {
        return Err(ErrorCode::InvalidCommit.into());
    }
    Ok(())
}

/// DS-076 (S9): remove_clients removes clients whose users keep a leaf, and adds nobody.
fn check_removes_clients(state: &GroupState, changes: &Changes) -> Result<(), Rejection> {
    let users = users_of(state, &changes.removed_by_value);
    let staying = state.members.iter().filter(|(leaf_index, _)| !changes.removed.contains(leaf_index));
    let kept: BTreeSet<&UserUri> = staying.map(|(_, member)| member.client.user()).filter(|user| users.contains(user)).collect();
    if on("DS-076") && (!changes.added.is_empty() || users.is_empty() || users != kept) {
        return Err(ErrorCode::InvalidCommit.into());
    }
    Ok(())
}

/// Whether the added leaves are of users of the right sort. `set`: the members that the Commit brings or changes.
pub(super) fn check_users(state: &GroupState, kind: Kind, changes: &Changes, set: &[(u32, Member)]) -> Result<(), Rejection> {
    if !matches!(kind, Kind::AddUsers | Kind::AddClients) {
        return Ok(());
    }
    let added: BTreeSet<u32> = changes.added.iter().map(|(leaf_index, _)| *leaf_index).collect();
    let users: BTreeSet<&UserUri> =
        set.iter().filter(|(leaf_index, _)| added.contains(leaf_index)).map(|(_, member)| member.client.user()).collect();
    let staying = state.members.iter().filter(|(leaf_index, _)| !changes.removed.contains(leaf_index));
    let there: BTreeSet<&UserUri> = staying.map(|(_, member)| member.client.user()).filter(|user| users.contains(user)).collect();
    // DS-051 (S9): every Add of add_users is of a user who is not a member yet.
    if on("DS-051") && kind == Kind::AddUsers && !users.is_disjoint(&there) {
        return Err(ErrorCode::InvalidCommit.into());
    }
    // DS-075 (S9): every Add of add_clients is of a user who is a member and stays one.
    if on("DS-075") && kind == Kind::AddClients && !users.is_subset(&there) {
        return Err(ErrorCode::InvalidCommit.into());
    }
    Ok(())
}
