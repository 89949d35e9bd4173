//! External Commits: join_group, join_client, resync_client (S9, R4).

use std::collections::BTreeSet;

use super::commit::{CommitRequest, Kind};
use super::credentials::{identify, queue_of};
use super::removal::Cause;
use super::sender::AuthenticatedUser;
use super::{Authenticated, GroupState, Hub, Member, Refusal, Sender, leaves};
use crate::base::UserUri;
use crate::base::rule::{answer, on};
use crate::mls::changes::Changes;
use crate::mls::message::FramedCommit;
use crate::mls::{JoinPolicy, StagedUpdate};
use crate::wire::{ErrorCode, Rejection};

/// Who wants to come in, and as what.
pub(super) enum Newcomer<'a> {
    /// A client of this user.
    User(&'a AuthenticatedUser),
    /// The client of this leaf, which the Commit replaces.
    Leaf(&'a Authenticated),
}

impl Newcomer<'_> {
    /// The leaf that asks, if it is one.
    pub(super) fn leaf_index(&self) -> Option<u32> {
        match self {
            Self::User(_) => None,
            Self::Leaf(leaf) => Some(leaf.leaf_index),
        }
    }
}

/// Who comes in, if the request is one of the three and may be asked by this sender; `None` for the others.
pub(super) fn newcomer<'a>(state: &GroupState, sender: &'a Sender, kind: Kind) -> Result<Option<Newcomer<'a>>, Rejection> {
    let newcomer = match kind {
        Kind::JoinGroup => {
            let user = sender.user()?;
            // DS-092 (S9): join_group is for users without a leaf in the group.
            if on("DS-092") && state.has_user(&user.user) {
                return Err(ErrorCode::NotAuthorized.into());
            }
            check_policy(state)?;
            Newcomer::User(user)
        }
        Kind::JoinClient => {
            let user = sender.user()?;
            // DS-093 (S9): join_client is for users who are members.
            if on("DS-093") && !state.has_user(&user.user) {
                return Err(ErrorCode::NotAuthorized.into());
            }
            Newcomer::User(user)
        }
        Kind::ResyncClient => Newcomer::Leaf(sender.leaf()?),
        _ => return Ok(None),
    };
    check_stays(state, &newcomer)?;
    Ok(Some(newcomer))
}

/// DS-091 (S9): who is no member comes in, or sees what one needs for it, only where the join policy is open.
fn check_policy(state: &GroupState) -> Result<(), Rejection> {
    if on("DS-091") && state.head.join_policy != JoinPolicy::Open { Err(ErrorCode::NotAuthorized.into()) } else { Ok(()) }
}

/// DS-094 (S12): who leaves, was deleted or revoked does not come in by an external Commit. Who was silent or had a rejected queue
/// may come back. Revoked keys as such are the matter of DS-016 and DS-019.
fn check_stays(state: &GroupState, newcomer: &Newcomer<'_>) -> Result<(), Rejection> {
    let user = match newcomer {
        Newcomer::User(user) => &user.user,
        Newcomer::Leaf(leaf) => leaf.client.user(),
    };
    let bars = |leaf_index: u32, member: &Member, cause: Cause| match (cause, newcomer) {
        (Cause::Left, _) => true,
        // With a new key it is another account of the same name.
        (Cause::UserDeleted, Newcomer::User(user)) => member.user_key_hash == user.key_hash,
        (cause, Newcomer::Leaf(leaf)) => leaf.leaf_index == leaf_index && !cause.admits_resync(),
        _ => false,
    };
    let mut theirs = state.head.removals.iter().filter_map(|removal| {
        let member = state.members.get(&removal.leaf_index)?;
        (member.client.user() == user).then_some((removal, member))
    });
    if on("DS-094") && theirs.any(|(removal, member)| bars(removal.leaf_index, member, removal.cause)) {
        return Err(ErrorCode::NotAuthorized.into());
    }
    Ok(())
}

/// Whether `user` may see what an external Commit is made from.
pub(super) fn check_may_look(state: &GroupState, user: &UserUri) -> Result<(), Rejection> {
    if state.has_user(user) { Ok(()) } else { check_policy(state) }
}

/// DS-078 (R4): an external Commit has one ExternalInit, a path, at most one Remove by value, and nothing else.
pub(super) fn check_frame(frame: &FramedCommit) -> Result<(), Rejection> {
    if on("DS-078") && frame.committer.is_some() { Err(ErrorCode::InvalidCommit.into()) } else { Ok(()) }
}

/// The rest of DS-078, once the Commit is staged.
pub(super) fn check(changes: &Changes) -> Result<(), Rejection> {
    let one = changes.external_inits == 1 && changes.has_path && changes.removed_by_value.len() <= 1;
    let more = !changes.added.is_empty()
        || !changes.removed_by_ds.is_empty()
        || !changes.updated.is_empty()
        || changes.context.is_some()
        || changes.others > 0;
    if on("DS-078") && (!one || more) { Err(ErrorCode::InvalidCommit.into()) } else { Ok(()) }
}

/// The member that the external Commit brings.
pub(super) fn joined(
    hub: &Hub<'_>,
    state: &GroupState,
    newcomer: &Newcomer<'_>,
    request: &CommitRequest<'_>,
    staged: &StagedUpdate,
) -> Result<(u32, Member), Refusal> {
    let changes = &staged.changes;
    // DS-078 (R4): an external Commit has one ExternalInit, a path, at most one Remove by value, and nothing else.
    let (leaf_index, claim) =
        changes.joined.as_ref().ok_or_else(|| answer("DS-078", ErrorCode::InvalidCommit, ErrorCode::Internal))?;
    let identity = identify(hub, claim)?;
    let is_own = match newcomer {
        Newcomer::User(user) => identity.client.user() == &user.user,
        Newcomer::Leaf(leaf) => identity.client == leaf.client,
    };
    // DS-095 (R8): the leaf that comes in is a client of the user who asks, and after a resync the same client.
    if on("DS-095") && !is_own {
        return Err(ErrorCode::InvalidCredential.into());
    }
    let removed = changes.removed_by_value.iter().filter_map(|leaf_index| state.members.get(leaf_index));
    // DS-079 (R4): its Remove is of a leaf of the same client.
    if on("DS-079") && removed.into_iter().any(|member| member.client != identity.client) {
        return Err(ErrorCode::InvalidCommit.into());
    }
    // DS-096 (R4): a resync removes its own old leaf.
    if let Some(old) = newcomer.leaf_index()
        && on("DS-096")
        && changes.removed_by_value != BTreeSet::from([old])
    {
        return Err(ErrorCode::InvalidCommit.into());
    }
    let config = request.queue.ok_or(ErrorCode::InvalidQueueConfig)?;
    let queue = queue_of(&identity.client, config)?;
    Ok((*leaf_index, leaves::member(hub, identity, queue, staged.epoch, u64::MAX)))
}
