//! The use cases: authenticate → route → decide → store → deliver, and the workers that deliver.
//!
//! | file | is |
//! |---|---|
//! | [`ports`] | what the client port and the peer port do with a connection and its streams |
//! | [`hello`] | what this node says in `hello`, and how it judges a peer's |
//! | [`probe`] | connecting back to a peer that asks for it (X10) |
//! | [`route`] | one client request: here, or on to its destination |
//! | [`delivery`] | Delivery Service requests: decide, store, wake |
//! | [`groups`] | groups held in memory |
//! | [`rates`] | how many requests a client may make, and a group gets |
//! | [`peer_policy`], [`peer_rates`] | what an operator says of peers while the node runs; how much each peer asks for |
//! | [`recipients`] | sealed queue informations: which queue, and where |
//! | [`queueing`] | Queueing Service requests and subscriptions |
//! | [`keys`], [`accounts`], [`directory`] | KeyPackages, enrolment, what domains publish |
//! | [`removals`], [`credential_status`] | what the DS does on its own (S12), and which keys are revoked (X1) |
//! | [`counts`] | what all of them have done since the start |
//! | [`lanes_in`], [`lanes_out`] | frames from and to other domains |
//! | `lanes_fate`, `lanes_end` | what becomes of frames that are not taken, and of lanes that begin anew (X8) |

pub mod accounts;
pub mod counts;
pub mod credential_status;
pub mod delivery;
pub mod directory;
pub mod groups;
pub mod hello;
pub mod keys;
mod lanes_end;
mod lanes_fate;
pub mod lanes_in;
pub mod lanes_out;
pub mod peer_policy;
pub mod peer_rates;
pub mod ports;
pub mod probe;
pub mod queueing;
pub mod rates;
pub mod recipients;
pub mod removals;
pub mod route;
pub mod wakeups;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::watch;

use crate::base::crypto::SigningKey;
use crate::base::limits::{ANSWERS_KEPT, Limits, REQUEST_TIME_WINDOW};
use crate::base::{Domain, Fault, UnixMillis};
use crate::federation::PeerPool;
use crate::identity::AsRoot;
use crate::qs::sealed::QsKeyPair;
use crate::storage::Storage;
use crate::storage::answers::{Known, RequestKey};
use crate::wire::{Content, ErrorCode, Rejection, Reply, Response, encode};
use counts::ServiceCounts;
use credential_status::StatusWork;
use directory::Directory;
use groups::HotGroups;
use keys::Claims;
use lanes_out::LaneWorkers;
use peer_policy::PolicyWork;
use peer_rates::PeerRates;
use probe::Probes;
use rates::RequestRates;
use recipients::OpenedInformations;
use removals::Rejections;
use wakeups::QueueWaiters;

/// One node's services, shared by all its connections and workers.
pub struct Service {
    domain: Domain,
    storage: Storage,
    peers: PeerPool,
    keys: NodeKeys,
    limits: Limits,
    directory: Directory,
    groups: HotGroups,
    opened: OpenedInformations,
    waiters: QueueWaiters,
    rejections: Rejections,
    rates: RequestRates,
    peer_rates: Arc<PeerRates>,
    policy_work: PolicyWork,
    status_work: StatusWork,
    claims: Claims,
    probes: Probes,
    lanes: LaneWorkers,
    counts: ServiceCounts,
    shutdown: watch::Receiver<bool>,
}

/// The private keys of a domain.
pub struct NodeKeys {
    /// The Authentication Service's root.
    pub as_root: AsRoot,
    /// The Delivery Service's key: external sender and receipts.
    pub ds: SigningKey,
    /// The Delivery Service's certificate chain (DER).
    pub ds_chain: Vec<Vec<u8>>,
    /// The Queueing Service's keys; the first is the one that clients use.
    pub qs: Vec<QsKeyPair>,
}

/// Why a request has no good answer.
#[derive(Debug)]
pub enum Failure {
    /// The sender's fault: it is told.
    Rejected(Rejection),
    /// Ours: it is logged, and the sender learns `internal`.
    Fault(Fault),
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        Self::Rejected(code.into())
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Failure {
    /// What the other side is told. A fault is logged here, once.
    pub fn into_rejection(self) -> Rejection {
        match self {
            Self::Rejected(rejection) => rejection,
            Self::Fault(fault) => {
                tracing::error!("a request failed: {fault}");
                ErrorCode::Internal.into()
            }
        }
    }
}

impl Service {
    /// Puts the services of `domain` together. No worker runs before [`Service::start_workers`].
    pub async fn new(
        domain: Domain,
        storage: Storage,
        peers: PeerPool,
        keys: NodeKeys,
        limits: Limits,
        shutdown: watch::Receiver<bool>,
    ) -> Result<Arc<Self>, Fault> {
        let claims = Claims::new(&limits);
        let rates = RequestRates::new(&limits);
        let directory = Directory::load(&domain, &keys, &storage).await?;
        Ok(Arc::new(Self {
            domain,
            storage,
            peers,
            keys,
            groups: HotGroups::new(limits.hot_groups_bytes_max),
            limits,
            directory,
            opened: OpenedInformations::default(),
            waiters: QueueWaiters::default(),
            rejections: Rejections::default(),
            rates,
            peer_rates: Arc::default(),
            policy_work: PolicyWork::default(),
            status_work: StatusWork::at_start(),
            claims,
            probes: Probes::default(),
            lanes: LaneWorkers::default(),
            counts: ServiceCounts::default(),
            shutdown,
        }))
    }

    /// The domain that is served.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The database.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The peers.
    pub fn peers(&self) -> &PeerPool {
        &self.peers
    }

    /// Whether the node has been told to stop.
    pub fn is_stopping(&self) -> bool {
        *self.shutdown.borrow()
    }

    /// What the services have done since the start.
    pub fn counts(&self) -> &ServiceCounts {
        &self.counts
    }

    /// The groups held in memory, and about how many octets they take.
    pub fn hot_groups(&self) -> (usize, usize) {
        self.groups.totals()
    }

    /// What peers ask of this node.
    pub fn peer_rates(&self) -> &PeerRates {
        &self.peer_rates
    }

    /// An encoded good answer.
    fn encode_reply(reply: Reply) -> Vec<u8> {
        encode(&Response::new(Ok(reply)))
    }

    /// When an answer stored now may be forgotten.
    fn answer_expiry(now: UnixMillis) -> UnixMillis {
        now.plus(ANSWERS_KEPT)
    }

    /// Whether a request was made close enough to now. Asked only of requests that are not known already.
    fn check_time(content: &Content, now: UnixMillis) -> Result<(), Rejection> {
        if UnixMillis(content.issued_at_ms).distance(now) > REQUEST_TIME_WINDOW {
            return Err(Rejection::replayed_or_stale(now));
        }
        Ok(())
    }

    /// What is answered to a request id that is known: the stored answer, or a refusal.
    fn answer_known(known: Known, now: UnixMillis) -> Result<Vec<u8>, Failure> {
        match known {
            Known::Answered(response) => Ok(response),
            Known::OtherContent => Err(Rejection::replayed_or_stale(now).into()),
        }
    }

    /// The stored answer to a request, if its id is known.
    async fn stored_answer(&self, key: &RequestKey, now: UnixMillis) -> Result<Option<Vec<u8>>, Failure> {
        match self.storage.known_request(key).await? {
            Some(known) => Self::answer_known(known, now).map(Some),
            None => Ok(None),
        }
    }
}
