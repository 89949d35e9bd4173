//! The Delivery Service, pure: state, a verified request and the time in; an [`Outcome`] or a refusal out (S10).
//!
//! One file per step. Nothing here reads a clock, a socket or a database, and nothing changes until storage has written the
//! [`Outcome`]. Rules are numbered in `docs/rules.md` and cited at their checks.

pub mod commit;
pub mod create;
pub mod credentials;
pub mod join;
pub mod message;
pub mod queue_info;
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
use crate::base::{Domain, GroupUri, UnixMillis};
use crate::identity::RevokedKeys;
use crate::identity::chain::AsRoots;
use crate::wire::qs::Delivery;
use crate::wire::{ErrorCode, Rejection, Reply};

pub use sender::{Authenticated, Sender};
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

/// Why a request did not lead to an [`Outcome`].
#[derive(Debug)]
pub enum Refusal {
    /// The sender's fault; it is told so.
    Rejected(Rejection),
    /// Nobody's fault: a credential of these domains must be checked and their AS roots are not known yet. Fetch and ask again.
    NeedsRoots(Vec<Domain>),
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

/// A change of a group's small record: the members it sets or removes, and the rest of the state as it will be.
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
