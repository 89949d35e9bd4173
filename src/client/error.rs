//! [`ClientError`]: why a client's operation did not happen, or is not known to have happened.

use crate::base::Fault;
use crate::wire::{ErrorCode, Rejection};

/// Why an operation failed. Displayed as one plain sentence without a full stop.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A node refused it; nothing changed there.
    #[error("refused: {0}")]
    Refused(Rejection),
    /// No answer came before the deadline. What was asked stays in the outbox and is asked again, as the same request, by the
    /// next operation that gets through.
    #[error("not confirmed in time, and will be tried again: {0}")]
    NotConfirmed(String),
    /// It may have been done, and nobody can tell any more: the answer came too late, and doing it again might double it.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
    /// The own node could not be reached, or not in time; nothing was left behind.
    #[error("the node could not be reached: {0}")]
    NotReached(String),
    /// What another party sent does not prove what it claims.
    #[error("not trusted: {0}")]
    Untrusted(String),
    /// What was asked for makes no sense in the present state (no such group, no longer a member, …).
    #[error("{0}")]
    Invalid(String),
    /// This side failed: disk, randomness, an invariant.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl ClientError {
    /// The code, when a node refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(rejection) => Some(rejection.code),
            _ => None,
        }
    }
}

impl From<Rejection> for ClientError {
    fn from(rejection: Rejection) -> Self {
        Self::Refused(rejection)
    }
}
