//! The requests that carry a Commit, a member's or an external one (S7, S9, R3–R6, S13).

use std::collections::BTreeMap;

use super::external::{self, Newcomer};
use super::removal::{self, Cause};
use super::state::{Head, Joiner, RecentCommit};
use super::{Authenticated, FanOut, GroupState, Hub, Member, Outcome, Recipient, Refusal, Sender, StateChange, kind, leaves};
use crate::base::crypto::sha256;
use crate::base::limits::{GROUP_INFO_OVERHEAD_BYTES_MAX, RECENT_COMMITS_MAX};
use crate::base::rule::on;
use crate::mls::message::{FramedCommit, framed_commit, welcome_recipients};
use crate::mls::{StagedUpdate, Tree};
use crate::wire::ds::{ClientQueueConfig, DsRequest, GroupUpdate};
use crate::wire::qs::{DeliveredMessage, Delivery};
use crate::wire::receipt::ReceiptContent;
use crate::wire::{ErrorCode, Opaque, Receipt, Rejection, Reply};

/// Which request carries the Commit: what the Commit must then be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    DeleteGroup,
    AddUsers,
    RemoveUsers,
    AddClients,
    RemoveClients,
    UpdateClient,
    UpdateGroup,
    JoinGroup,
    JoinClient,
    ResyncClient,
}

/// A request that carries a Commit, whatever its type.
pub(super) struct CommitRequest<'a> {
    pub(super) kind: Kind,
    pub(super) update: &'a GroupUpdate,
    pub(super) welcomes: &'a [Opaque],
    /// The queue of the leaf that an external Commit brings.
    pub(super) queue: Option<&'a ClientQueueConfig>,
}

impl<'a> CommitRequest<'a> {
    /// `None` for a request without a Commit.
    pub(super) fn of(request: &'a DsRequest) -> Option<Self> {
        let (kind, update, welcomes, queue): (_, _, &[Opaque], _) = match request {
            DsRequest::DeleteGroup(body) => (Kind::DeleteGroup, &body.group_update, &[], None),
            DsRequest::AddUsers(body) => (Kind::AddUsers, &body.group_update, &body.welcomes, None),
            DsRequest::RemoveUsers(body) => (Kind::RemoveUsers, &body.group_update, &[], None),
            DsRequest::AddClients(body) => (Kind::AddClients, &body.group_update, &body.welcomes, None),
            DsRequest::RemoveClients(body) => (Kind::RemoveClients, &body.group_update, &[], None),
            DsRequest::UpdateClient(body) => (Kind::UpdateClient, &body.group_update, &[], None),
            DsRequest::UpdateGroup(body) => (Kind::UpdateGroup, &body.group_update, &[], None),
            DsRequest::JoinGroup(body) => (Kind::JoinGroup, &body.group_update, &[], Some(&body.client_queue_config)),
            DsRequest::JoinClient(body) => (Kind::JoinClient, &body.group_update, &[], Some(&body.client_queue_config)),
            DsRequest::ResyncClient(body) => (Kind::ResyncClient, &body.group_update, &[], Some(&body.client_queue_config)),
            _ => return None,
        };
        Some(Self { kind, update, welcomes, queue })
    }
}

/// An acceptable Commit: the outcome to write, and the staged change to merge once it is written.
pub struct Accepted {
    /// What is written.
    pub outcome: Outcome,
    /// What is merged into the tree afterwards; its record is part of what is written.
    pub update: StagedUpdate,
}

/// Whose Commit it is.
enum Committer<'a> {
    Member(&'a Authenticated),
    Newcomer(Newcomer<'a>),
}

/// What a Commit can be refused for before the tree is loaded.
pub(super) fn check_frame(hub: &Hub<'_>, state: &GroupState, update: &GroupUpdate) -> Result<FramedCommit, Rejection> {
    // DS-054: a Commit is within its limit, before anything is decoded.
    if on("DS-054") && update.commit.len() > hub.limits.commit_bytes_max {
        return Err(ErrorCode::TooLarge.into());
    }
    // DS-058: a GroupInfo is not larger than one can be, before anything is decoded.
    if on("DS-058") && update.group_info.len() > hub.limits.context_extensions_bytes_max + GROUP_INFO_OVERHEAD_BYTES_MAX {
        return Err(ErrorCode::TooLarge.into());
    }
    let frame = framed_commit(&update.commit)?;
    // DS-040 (R2): the Commit is of this group and the current epoch.
    if on("DS-040") && frame.group_id != state.uri.to_bytes() {
        return Err(ErrorCode::InvalidCommit.into());
    }
    if on("DS-040") && frame.epoch != state.head.epoch {
        return Err(Rejection::wrong_epoch(state.head.epoch, state.commit_hash(frame.epoch)));
    }
    Ok(frame)
}

/// Decides a Commit.
pub(super) fn decide(
    hub: &Hub<'_>,
    state: &GroupState,
    tree: &mut Tree,
    sender: &Sender,
    request: &CommitRequest<'_>,
) -> Result<Accepted, Refusal> {
    let frame = check_frame(hub, state, request.update)?;
    let committer = match external::newcomer(state, sender, request.kind)? {
        Some(newcomer) => Committer::Newcomer(newcomer),
        None => Committer::Member(sender.leaf()?),
    };
    match &committer {
        Committer::Newcomer(_) => external::check_frame(&frame)?,
        Committer::Member(sender) => {
            // DS-041 (S2): envelope and Commit are by the same leaf.
            if on("DS-041") && frame.committer != Some(sender.leaf_index) {
                return Err(ErrorCode::NotAuthorized.into());
            }
            check_is_no_target(state, sender)?;
        }
    }
    tree.learn(state.head.proposals.iter().map(|proposal| proposal.message.as_slice()))?;
    // What a Commit must be before anyone asks what it does: the rules from DS-042 to DS-046 are checked in `mls`.
    let staged = tree.stage(frame, &request.update.group_info, hub.context_rules())?;
    let mut set = match &committer {
        Committer::Member(sender) => {
            check_covers(state, &staged)?;
            kind::check(hub, state, sender, request.kind, &staged.changes)?;
            leaves::added(hub, state, &staged)?
        }
        Committer::Newcomer(newcomer) => {
            external::check(&staged.changes)?;
            vec![external::joined(hub, state, newcomer, request, &staged)?]
        }
    };
    set.extend(leaves::updated(hub, state, &staged)?);
    kind::check_users(state, request.kind, &staged.changes, &set)?;
    leaves::check_limits(hub, state, &staged, &set)?;
    let welcomes = routed_welcomes(&staged, request.welcomes)?;
    outcome(hub, state, &committer, staged, set, request, welcomes)
}

/// DS-057 (S13): a leaf that is to be removed neither commits nor proposes.
pub(super) fn check_is_no_target(state: &GroupState, sender: &Authenticated) -> Result<(), Rejection> {
    if on("DS-057") && state.is_target(sender.leaf_index) { Err(ErrorCode::NotAuthorized.into()) } else { Ok(()) }
}

/// DS-056 (S13): a member's Commit carries, by reference, every Remove of the DS that is pending.
fn check_covers(state: &GroupState, staged: &StagedUpdate) -> Result<(), Rejection> {
    let covered = &staged.changes.removed_by_ds;
    if on("DS-056") && state.head.pending_removes().any(|(target, _)| !covered.contains(&target)) {
        return Err(pending_proposals(state));
    }
    Ok(())
}

/// The refusal that brings the DS's pending Removes.
pub(super) fn pending_proposals(state: &GroupState) -> Rejection {
    Rejection::pending_proposals(state.head.pending_removes().map(|(_, message)| Opaque::from(message)).collect())
}

/// DS-052 (R6): the Welcomes are for exactly the Commit's Adds. Returns, for each Welcome, the leaves it is for.
fn routed_welcomes<'a>(staged: &StagedUpdate, welcomes: &'a [Opaque]) -> Result<Vec<(&'a Opaque, Vec<u32>)>, Rejection> {
    let refused = || Rejection::from(ErrorCode::InvalidWelcome);
    let mut awaited: BTreeMap<&[u8], u32> =
        staged.changes.added.iter().map(|(leaf, key_package)| (key_package.reference.as_slice(), *leaf)).collect();
    let mut routed = Vec::new();
    for welcome in welcomes {
        let mut leaves = Vec::new();
        for reference in welcome_recipients(welcome)? {
            match awaited.remove(reference.as_slice()) {
                Some(leaf) => leaves.push(leaf),
                None if on("DS-052") => return Err(refused()),
                None => {}
            }
        }
        if on("DS-052") && leaves.is_empty() {
            return Err(refused());
        }
        routed.push((welcome, leaves));
    }
    if on("DS-052") && !awaited.is_empty() { Err(refused()) } else { Ok(routed) }
}

/// State, receipt and deliveries of an accepted Commit.
fn outcome(
    hub: &Hub<'_>,
    state: &GroupState,
    committer: &Committer<'_>,
    staged: StagedUpdate,
    set: Vec<(u32, Member)>,
    request: &CommitRequest<'_>,
    welcomes: Vec<(&Opaque, Vec<u32>)>,
) -> Result<Accepted, Refusal> {
    let changes = &staged.changes;
    let commit = &request.update.commit;
    let commit_hash = sha256(commit);
    let receipt = ReceiptContent { group_id: state.uri.to_bytes().into(), epoch: staged.epoch, commit_hash }.sign(hub.key);

    let mut head = next_head(hub, state, &staged, commit_hash);
    let sender_leaf = match committer {
        Committer::Member(sender) => Some(sender.leaf_index),
        Committer::Newcomer(newcomer) => newcomer.leaf_index(),
    };
    head.joiners.retain(|joiner| Some(joiner.leaf_index) != sender_leaf);

    // The Commit goes to everyone who was a member, those it removes included: that is how they learn of it. Who comes in anew
    // needs no copy where it was before.
    let own_old = |leaf_index: &u32| match committer {
        Committer::Member(_) => Some(*leaf_index) == sender_leaf,
        Committer::Newcomer(_) => changes.removed_by_value.contains(leaf_index),
    };
    let before = state.members.iter().filter(|(leaf_index, _)| !own_old(leaf_index));
    let to_members = before.map(|(leaf_index, member)| recipient(*leaf_index, member)).collect();
    let mut fan_out = vec![deliver(state, staged.epoch, commit, Some(&receipt), to_members)];
    for (welcome, leaves) in welcomes {
        let joining = set.iter().filter(|(leaf_index, _)| leaves.contains(leaf_index));
        let recipients = joining.map(|(leaf_index, member)| recipient(*leaf_index, member)).collect();
        fan_out.push(deliver(state, staged.epoch, welcome, None, recipients));
    }

    if let Some((leaf_index, _)) = &changes.joined {
        let client = set.iter().find(|(set, _)| set == leaf_index).map(|(_, member)| &member.client);
        let same =
            state.members.iter().filter(|(leaf, member)| Some(&member.client) == client && !changes.removed.contains(leaf));
        for (old, _) in same {
            removal::want(&mut head, *old, Cause::Replaced, hub.now.0);
        }
    }
    let removed: Vec<u32> = changes.removed.iter().copied().collect();
    let mut change = StateChange { set, removed, head, group_info: Some(request.update.group_info.to_vec()), closed: false };
    if request.kind == Kind::DeleteGroup {
        removal::close(hub, &mut change);
    } else if !change.head.removals.is_empty() {
        // What is still wanted is proposed anew, for the epoch that begins.
        let staying = state.members.iter().filter(|(leaf_index, _)| !changes.removed.contains(leaf_index));
        let mut after: BTreeMap<u32, &Member> = staying.map(|(leaf_index, member)| (*leaf_index, member)).collect();
        after.extend(change.set.iter().map(|(leaf_index, member)| (*leaf_index, member)));
        fan_out.extend(removal::propose(hub, &state.uri, &mut change.head, &after));
    }
    fan_out.retain(|delivery| !delivery.recipients.is_empty());
    let outcome = Outcome { reply: Reply::CommitAccepted(receipt), change: Some(change), fan_out };
    Ok(Accepted { outcome, update: staged })
}

/// The head of the epoch that the Commit begins.
fn next_head(hub: &Hub<'_>, state: &GroupState, staged: &StagedUpdate, commit_hash: [u8; 32]) -> Head {
    let changes = &staged.changes;
    let mut head = Head { epoch: staged.epoch, ..state.head.clone() };
    head.recent_commits.push_back(RecentCommit { from_epoch: state.head.epoch, hash: commit_hash });
    while head.recent_commits.len() > RECENT_COMMITS_MAX {
        head.recent_commits.pop_front();
    }
    let renewed = changes.updated.iter().filter(|(leaf_index, claim)| {
        state.members.get(leaf_index).is_some_and(|member| member.signature_key != claim.signature_key)
    });
    for leaf_index in changes.removed.iter().chain(renewed.map(|(leaf_index, _)| leaf_index)) {
        if let Some(member) = state.members.get(leaf_index) {
            removal::remember_key(&mut head, *leaf_index, member);
        }
    }
    head.joiners.retain(|joiner| {
        let young = joiner.epoch.saturating_add(hub.limits.past_states_max) >= staged.epoch;
        young && !changes.removed.contains(&joiner.leaf_index) && joiner.not_after_ms > hub.now.0
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
    head.removals.retain(|removal| !changes.removed.contains(&removal.leaf_index));
    head.proposals.clear();
    if let Some(context) = changes.context {
        head.join_policy = context.join_policy;
        head.external_sender_index = context.external_sender_index;
    }
    head
}

fn recipient(leaf_index: u32, member: &Member) -> Recipient {
    Recipient { leaf_index, queue: member.queue.clone() }
}

fn deliver(state: &GroupState, epoch: u64, message: &Opaque, receipt: Option<&Receipt>, recipients: Vec<Recipient>) -> FanOut {
    let delivery = Delivery::Message(DeliveredMessage { message: message.clone(), receipt: receipt.cloned() });
    FanOut { group: state.uri.clone(), epoch, delivery, recipients }
}
