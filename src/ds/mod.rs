//! The Delivery Service, pure: state, a verified request and the time in; an [`Outcome`] or a refusal out (S10).
//!
//! One file per step. Nothing here reads a clock, a socket or a database, and nothing changes until storage has written the
//! [`Outcome`]. Rules are numbered in `docs/rules.md` and cited at their checks.

pub mod commit;
pub mod create;
mod credentials;
mod external;
mod join;
mod kind;
mod leave;
mod leaves;
mod message;
mod proposal;
mod queue_info;
pub mod removal;
pub mod sender;
pub mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::crypto::SigningKey;
use crate::base::limits::Limits;
use crate::base::rule::on;
use crate::base::{Domain, Fault, GroupUri, UnixMillis};
use crate::identity::RevokedKeys;
use crate::identity::chain::AsRoots;
use crate::mls::Tree;
use crate::mls::policy::ContextRules;
use crate::wire::ds::{DsMessage, DsRequest};
use crate::wire::qs::Delivery;
use crate::wire::{ErrorCode, Rejection, Reply};

pub use commit::Accepted;
pub use removal::Cause;
pub use sender::{Authenticated, AuthenticatedUser, Sender};
pub use state::{GroupState, Member, QueueAddress};

/// What every decision of one domain's DS may look at, besides the group.
pub struct Hub<'a> {
    /// The domain that this DS serves.
    pub domain: &'a Domain,
    /// The time of the decision.
    pub now: UnixMillis,
    /// AS roots that are pinned so far, by domain.
    pub roots: &'a HashMap<Domain, Arc<AsRoots>>,
    /// Keys that are known to be revoked, by domain (X1).
    pub revoked: &'a HashMap<Domain, Arc<RevokedKeys>>,
    /// What the operator allows.
    pub limits: &'a Limits,
    /// The DS's own encoded ExternalSender (S12).
    pub external_sender: &'a [u8],
    /// The key of that ExternalSender; signs receipts (X9).
    pub key: &'a SigningKey,
}

impl Hub<'_> {
    fn context_rules(&self) -> ContextRules<'_> {
        ContextRules { external_sender: self.external_sender, extensions_bytes_max: self.limits.context_extensions_bytes_max }
    }
}

/// Why a request did not lead to an [`Outcome`].
#[derive(Debug)]
pub enum Refusal {
    /// The sender's fault; it is told so.
    Rejected(Rejection),
    /// Nobody's fault: a credential of these domains must be checked, and their AS roots or which keys they have revoked is not
    /// known, or not any more. Fetch and ask again.
    NeedsRoots(Vec<Domain>),
    /// Our fault: what is kept of the group does not fit together.
    Failed(Fault),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self::Rejected(code.into())
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// What became of a request that was not refused.
pub enum Decision {
    /// To be written.
    Outcome(Box<Outcome>),
    /// To be written, and merged into the tree afterwards.
    Commit(Box<Accepted>),
    /// Nothing to write: the answer is the tree of this epoch.
    WelcomeInfo {
        /// The epoch.
        epoch: u64,
    },
    /// Nothing to write: the answer is the current tree, GroupInfo and [`state::Head::proposal_messages`].
    ExternalCommitInfo,
}

/// Whether [`decide`] wants the group's tree for such a request.
pub fn needs_tree(request: &DsRequest) -> bool {
    commit::CommitRequest::of(request).is_some() || matches!(request, DsRequest::Propose(_))
}

/// What can be said of a request before the tree is loaded, which is much work: above all that a Commit is of another epoch.
/// [`decide`] repeats it.
pub fn check_without_tree(hub: &Hub<'_>, state: &GroupState, request: &DsRequest) -> Result<(), Rejection> {
    check_open(state)?;
    match commit::CommitRequest::of(request) {
        Some(request) => commit::check_frame(hub, state, request.update).map(|_| ()),
        None => Ok(()),
    }
}

/// DS-017 (S7): a deleted group takes nothing.
fn check_open(state: &GroupState) -> Result<(), Rejection> {
    if on("DS-017") && state.head.closed_at_ms.is_some() { Err(ErrorCode::GroupDeleted.into()) } else { Ok(()) }
}

/// Decides any request to an existing group. `sender`: from [`sender::authenticate`]. `tree`: the group's current one, there when
/// [`needs_tree`] says so; what it learns of pending proposals stays true whatever becomes of the request.
pub fn decide(
    hub: &Hub<'_>,
    state: &GroupState,
    tree: Option<&mut Tree>,
    sender: &Sender,
    message: &DsMessage,
) -> Result<Decision, Refusal> {
    check_open(state)?;
    let mut decision = match (commit::CommitRequest::of(&message.request), &message.request) {
        (Some(request), _) => {
            let tree = tree.ok_or_else(without_tree)?;
            Decision::Commit(Box::new(commit::decide(hub, state, tree, sender, &request)?))
        }
        (None, DsRequest::Propose(body)) => {
            let tree = tree.ok_or_else(without_tree)?;
            Decision::Outcome(Box::new(proposal::decide(hub, state, tree, sender, body)?))
        }
        (None, DsRequest::UpdateQueueInfo(body)) => Decision::Outcome(Box::new(queue_info::decide(state, sender, body)?)),
        (None, DsRequest::SendMessage(body)) => Decision::Outcome(Box::new(message::decide(hub, state, sender, body)?)),
        (None, DsRequest::LeaveGroup(_)) => Decision::Outcome(Box::new(leave::decide(hub, state, sender)?)),
        (None, DsRequest::WelcomeInfo(body)) => Decision::WelcomeInfo { epoch: join::welcome_info(state, sender, body)? },
        (None, DsRequest::ExternalCommitInfo(_)) => {
            join::external_commit_info(state, sender)?;
            Decision::ExternalCommitInfo
        }
        // create_group makes a group and list_groups is about none: the service asks for them elsewhere.
        (None, _) => return Err(ErrorCode::Unsupported.into()),
    };
    match &mut decision {
        Decision::Outcome(outcome) => note_heard(hub, state, sender, outcome),
        Decision::Commit(accepted) => note_heard(hub, state, sender, &mut accepted.outcome),
        Decision::WelcomeInfo { .. } | Decision::ExternalCommitInfo => {}
    }
    Ok(decision)
}

fn without_tree() -> Refusal {
    Fault::new("a request is decided without the tree it needs").into()
}

/// An accepted request of a leaf shows that its client is alive (S12).
fn note_heard(hub: &Hub<'_>, state: &GroupState, sender: &Sender, outcome: &mut Outcome) {
    let Sender::Member(Authenticated { leaf_index, as_joiner: false, .. }) = sender else { return };
    let Some(member) = state.members.get(leaf_index) else { return };
    let Some(heard) = member.heard(hub.now, hub.limits.inactive_leaf_seconds_max) else { return };
    let change = outcome.change.get_or_insert_with(|| StateChange { head: state.head.clone(), ..StateChange::default() });
    // A leaf that is new or gone has nothing to be noted.
    match change.set.iter_mut().find(|(set, _)| set == leaf_index) {
        Some((_, member)) => member.heard_at_ms = hub.now.0,
        None if !change.removed.contains(leaf_index) => change.set.push((*leaf_index, heard)),
        None => {}
    }
}

/// What an accepted request does: all of it is written in one transaction, and the reply leaves only after that.
#[derive(Debug)]
pub struct Outcome {
    /// The answer.
    pub reply: Reply,
    /// What becomes of the group's small record; `None` leaves it as it is.
    pub change: Option<StateChange>,
    /// What goes to members' queues, in order.
    pub fan_out: Vec<FanOut>,
}

/// A change of a group's small record: the leaves it removes and the members it then sets (perhaps at the same leaf), and the rest of the state as it will be.
#[derive(Debug, Default)]
pub struct StateChange {
    /// Members that are new or changed.
    pub set: Vec<(u32, Member)>,
    /// Leaves that are gone.
    pub removed: Vec<u32>,
    /// Everything else of the state, as it will be.
    pub head: state::Head,
    /// The GroupInfo, when it changed.
    pub group_info: Option<Vec<u8>>,
    /// The group ends: it answers `group_deleted` from now on, and needs no tree any more (S7).
    pub closed: bool,
}

/// One delivery to several members (S14). The message is there once.
#[derive(Clone, Debug)]
pub struct FanOut {
    /// The group.
    pub group: GroupUri,
    /// A Commit's or Welcome's new epoch; else the epoch of the message.
    pub epoch: u64,
    /// What is delivered.
    pub delivery: Delivery,
    /// To whom.
    pub recipients: Vec<Recipient>,
}

/// Who gets a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The member's leaf.
    pub leaf_index: u32,
    /// Where its queue is.
    pub queue: QueueAddress,
}
