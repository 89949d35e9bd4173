//! What went to and came from each peer since the start, for whoever looks at a node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Why;
use crate::base::count::{Counter, Counts, Level, labels};
use crate::base::{Domain, limits};

/// What went to and came from one peer. Whoever counts often keeps it: looking it up takes a lock.
#[derive(Debug, Default)]
pub struct PeerTraffic {
    /// Requests to it that are not lane frames: proxied ones, claims, questions about its domain.
    pub requests_sent: Counter,
    /// Those of them that got no answer.
    pub requests_failed: Counter,
    /// Requests to it that wait for their answer now.
    pub requests_in_flight: InFlight,
    /// Lane frames that were sent to it, repeats included.
    pub frames_sent: Counter,
    /// Lane frames that it has taken.
    pub frames_delivered: Counter,
    /// Lane frames that were sent and are not answered yet.
    pub frames_in_flight: InFlight,
    /// Lanes to it that were refused or got no answer, and are not tried again before their own time.
    pub lanes_held: Level,
    /// Its requests to us that are not lane frames.
    pub requests_received: Counter,
    /// Lane frames of it that we have taken.
    pub frames_received: Counter,
    /// Its requests and lanes that we refused.
    pub refused: Counter,
    /// Its requests and streams that were over its limits.
    pub over_limits: Counter,
}

/// How many are under way.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Level>);

impl AsRef<Level> for InFlight {
    fn as_ref(&self) -> &Level {
        &self.0
    }
}

impl InFlight {
    /// How many there are.
    pub fn value(&self) -> u64 {
        self.0.value()
    }
}

labels! {
    /// What came of one dial sequence.
    pub enum Dialled {
        /// A connection.
        Connected = "connected",
        /// DNS does not know the domain, or no federation records of it, or says that it does not federate.
        NotFound = "not_found",
        /// DNS failed or was silent.
        Dns = "dns",
        /// No address could be connected to.
        Unreachable = "unreachable",
        /// All its addresses are ones that are not dialled.
        ForbiddenAddress = "forbidden_address",
        /// The peer takes no connection now.
        Refused = "refused",
        /// The peer was silent.
        TimedOut = "timed_out",
        /// A certificate was refused.
        Certificate = "certificate",
        /// No protocol in common, or the `hello`s do not fit.
        Protocol = "protocol",
        /// The peer's policy does not allow us, or ours closed it meanwhile.
        Denied = "denied",
        /// The connection ended at once, or this node failed.
        Other = "other",
    }
}

impl From<&Why> for Dialled {
    fn from(why: &Why) -> Self {
        match why {
            Why::NoSuchDomain | Why::NoRecords | Why::RefusesFederation => Self::NotFound,
            Why::DnsFailure | Why::DnsTimedOut => Self::Dns,
            Why::Unreachable => Self::Unreachable,
            Why::ForbiddenAddress => Self::ForbiddenAddress,
            Why::Refused | Why::OverLimits => Self::Refused,
            Why::TimedOut => Self::TimedOut,
            Why::Certificate => Self::Certificate,
            Why::Protocol | Why::HelloRefused => Self::Protocol,
            Why::Denied | Why::Held | Why::DeniedHere => Self::Denied,
            Why::BackingOff { cause, .. } => Self::from(&**cause),
            _ => Self::Other,
        }
    }
}

/// The traffic of all peers.
#[derive(Debug, Default)]
pub struct Traffic {
    peers: Mutex<HashMap<Domain, Arc<PeerTraffic>>>,
    /// All those beyond [`limits::PEERS_MAX`] together.
    others: Arc<PeerTraffic>,
    /// Dial sequences, by what came of them.
    pub dials: Counts<Dialled>,
}

impl Traffic {
    /// That of one peer. Beyond [`limits::PEERS_MAX`] peers, new ones share one.
    pub fn of(&self, domain: &Domain) -> Arc<PeerTraffic> {
        let mut peers = self.peers();
        if let Some(known) = peers.get(domain) {
            return known.clone();
        }
        if peers.len() >= limits::PEERS_MAX {
            return self.others.clone();
        }
        peers.entry(domain.clone()).or_default().clone()
    }

    /// That of one peer, if it has a share of its own.
    pub fn known(&self, domain: &Domain) -> Option<Arc<PeerTraffic>> {
        self.peers().get(domain).cloned()
    }

    /// The peers that have a share of their own.
    pub fn domains(&self) -> Vec<Domain> {
        self.peers().keys().cloned().collect()
    }

    /// The share of all peers that have none of their own.
    pub fn others(&self) -> &PeerTraffic {
        &self.others
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<Domain, Arc<PeerTraffic>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_beyond_the_limit_share_one_count() {
        let traffic = Traffic::default();
        let domain = |number: usize| format!("n{number}.test").parse::<Domain>().expect("a domain");
        for number in 0..limits::PEERS_MAX + 5 {
            traffic.of(&domain(number)).requests_sent.one();
        }
        assert_eq!(traffic.domains().len(), limits::PEERS_MAX);
        assert_eq!(traffic.others().requests_sent.value(), 5);
        traffic.of(&domain(0)).requests_sent.one();
        assert_eq!(traffic.known(&domain(0)).expect("its own").requests_sent.value(), 2);
        assert!(traffic.known(&domain(limits::PEERS_MAX)).is_none());
    }
}
