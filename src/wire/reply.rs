//! Answers to client requests (S1): one generic response, with a body by kind or a [`Rejection`].

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::accounts::Enrolled;
use super::codec::{List, Opaque};
use super::error::Rejection;
use super::info::DomainInfo;
use super::keys::{ClaimedKeyPackage, KeyPackageCount};
use super::qs::QueueEntry;
use super::receipt::Receipt;
use crate::base::ids::QueueId;

/// `Response`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Response {
    /// [`super::VERSION`].
    pub version: u16,
    /// What came of the request.
    pub outcome: Outcome,
}

/// `select (ok, error)`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum Outcome {
    /// Done; what changed is on disk.
    #[tls_codec(discriminant = 0)]
    Ok(Reply),
    /// Refused; nothing changed, unless the code says that the outcome is unknown.
    Error(Rejection),
}

impl Response {
    /// A response of the current version.
    pub fn new(result: Result<Reply, Rejection>) -> Self {
        let outcome = match result {
            Ok(reply) => Outcome::Ok(reply),
            Err(rejection) => Outcome::Error(rejection),
        };
        Self { version: super::VERSION, outcome }
    }

    /// The body or the rejection.
    pub fn into_result(self) -> Result<Reply, Rejection> {
        match self.outcome {
            Outcome::Ok(reply) => Ok(reply),
            Outcome::Error(rejection) => Err(rejection),
        }
    }
}

/// The bodies of `ok`, each with its number as first octet.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum Reply {
    /// Done, nothing more to say.
    #[tls_codec(discriminant = 0)]
    Done,
    /// A Commit was accepted (X9).
    CommitAccepted(Receipt),
    /// An application message was accepted.
    MessageAccepted(MessageAccepted),
    /// For `welcome_info` and `external_commit_info`.
    GroupState(GroupState),
    /// For `list_groups`.
    Groups(List<Opaque>),
    /// For `qs.create`.
    QueueCreated(QueueCreated),
    /// For `qs.fetch` and, many times, `qs.subscribe`.
    Entries(List<QueueEntry>),
    /// For `keys.count`.
    KeyPackageCount(KeyPackageCount),
    /// For `keys.claim`.
    KeyPackages(List<ClaimedKeyPackage>),
    /// For `accounts.enrol`.
    Enrolled(Enrolled),
    /// For `accounts.hubs`: domains.
    Hubs(List<Opaque>),
    /// For `info`.
    DomainInfo(DomainInfo),
    /// For `qs.new_generation`.
    Generation(u32),
}

/// `send_message` was accepted.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MessageAccepted {
    /// The group's epoch when the hub accepted the message.
    pub epoch: u64,
    /// The hub's clock, in milliseconds since 1970.
    pub accepted_at_ms: u64,
}

/// What a joiner needs of a group.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupState {
    /// The epoch of the state.
    pub epoch: u64,
    /// RFC 9420 ratchet_tree.
    pub ratchet_tree: Opaque,
    /// MLSMessage with the GroupInfo; empty in an answer to `welcome_info`, whose Welcome carries it.
    pub group_info: Opaque,
    /// Pending proposals of the epoch, MLSMessages (S13).
    pub proposals: List<Opaque>,
}

/// `qs.create` made a queue.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct QueueCreated {
    /// Its name.
    pub queue_id: QueueId,
    /// Its first generation (X3).
    pub generation: u32,
}
