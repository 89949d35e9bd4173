//! `probe_back` (X10): a peer asks to be connected to, and told what was seen; and this node's own diagnosis of a peer.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Service;
use crate::base::limits::{PROBE_BACK_BURST, PROBE_BACK_INTERVAL, PROBE_KEYS_MAX, PROBES_AT_ONCE_MAX};
use crate::base::rate::{Rate, RateLimiter};
use crate::base::{Domain, UnixMillis};
use crate::federation::{Depth, Diagnosis};
use crate::wire::peer::PeerResponse;
use crate::wire::probe::{ProbeReport, ProbedAddress, ProbedCertificate, ProbedConnection, Trouble};
use crate::wire::{ErrorCode, Rejection};

/// The probes under way on behalf of peers, and how often each may ask.
pub(super) struct Probes(Mutex<State>);

struct State {
    under_way: HashSet<Domain>,
    rates: RateLimiter<Domain>,
}

/// One probe under way; it ends when this is dropped.
struct UnderWay<'a> {
    probes: &'a Probes,
    peer: &'a Domain,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.probes.state().under_way.remove(self.peer);
    }
}

impl Default for Probes {
    fn default() -> Self {
        let rate = Rate { count: 1, per: PROBE_BACK_INTERVAL, burst: PROBE_BACK_BURST };
        Self(Mutex::new(State { under_way: HashSet::new(), rates: RateLimiter::new(rate, PROBE_KEYS_MAX) }))
    }
}

impl Probes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One probe at a time for each peer, a few for all, and for each peer not too often.
    fn begin<'a>(&'a self, peer: &'a Domain, now: UnixMillis) -> Result<UnderWay<'a>, Rejection> {
        let mut state = self.state();
        if state.under_way.contains(peer) || state.under_way.len() >= PROBES_AT_ONCE_MAX {
            return Err(Rejection::rate_limited(PROBE_BACK_INTERVAL));
        }
        state.rates.take(peer, now).map_err(Rejection::rate_limited)?;
        state.under_way.insert(peer.clone());
        Ok(UnderWay { probes: self, peer })
    }
}

impl Service {
    /// Looks at everything between this node and `domain`'s, and back.
    pub async fn diagnose(&self, domain: &Domain) -> Diagnosis {
        self.peers.diagnose(domain, Depth::BothWays).await
    }

    /// Connects to the authenticated `peer` by a connection of its own, as for a lane, and tells what was seen.
    pub(super) async fn answer_probe_back(&self, peer: &Domain) -> PeerResponse {
        let _under_way = match self.probes.begin(peer, UnixMillis::now()) {
            Ok(under_way) => under_way,
            Err(rejection) => return PeerResponse::Error(rejection),
        };
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            diagnosis = self.peers.diagnose(peer, Depth::OnBehalf) => {
                tracing::info!(%peer, trouble = diagnosis.trouble.map(Trouble::name), "the peer had us connect back to it");
                PeerResponse::ProbeBack(report(&diagnosis, UnixMillis::now()))
            }
            _ = shutdown.wait_for(|stop| *stop) => PeerResponse::Error(ErrorCode::ShuttingDown.into()),
        }
    }
}

/// What a peer is told of a diagnosis: codes and times, no sentence of ours.
fn report(diagnosis: &Diagnosis, now: UnixMillis) -> ProbeReport {
    let findings = &diagnosis.findings;
    let best = findings.best();
    let reached = best.is_some_and(|best| best.trouble.is_none());
    // That our operator holds the peer, or that the clocks differ, is told elsewhere: this is about the way.
    let dns = findings.dns.as_ref().and_then(|dns| dns.trouble);
    let outcome = if reached { None } else { dns.or(best.and_then(|best| best.trouble)).or(diagnosis.trouble) };
    let addresses = findings.addresses.iter().map(|address| ProbedAddress {
        address: address.address.to_string().into_bytes().into(),
        outcome: Trouble::number_of(address.trouble),
        took_ms: u32::try_from(address.took_ms).unwrap_or(u32::MAX),
    });
    let certificate = best.and_then(|best| best.certificate.as_ref());
    let connection = best.and_then(|best| best.connection.as_ref());
    ProbeReport {
        server_time_ms: now.0,
        standing: findings.here.standing,
        outcome: Trouble::number_of(outcome),
        discovery: Trouble::number_of(dns),
        addresses: addresses.collect(),
        certificate: certificate.map(|certificate| ProbedCertificate {
            not_after_ms: certificate.not_after_ms,
            outcome: Trouble::number_of(certificate.trouble),
        }),
        connection: connection.map(|connection| ProbedConnection {
            version: connection.version,
            round_trip_us: u32::try_from(connection.round_trip_us).unwrap_or(u32::MAX),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_one_at_a_time_for_a_peer_few_in_all_and_not_too_often() {
        let (probes, now) = (Probes::default(), UnixMillis(1_900_000_000_000));
        let peers: Vec<Domain> = (0..9).map(|n| format!("p{n}.test").parse().expect("a domain")).collect();
        let first = probes.begin(&peers[0], now).ok().expect("the first");
        let again = probes.begin(&peers[0], now).err().expect("one at a time");
        assert_eq!(again.code, ErrorCode::RateLimited);
        drop(first);
        let held: Vec<_> = peers[1..=PROBES_AT_ONCE_MAX].iter().map(|peer| probes.begin(peer, now)).collect();
        assert!(held.iter().all(Result::is_ok) && probes.begin(&peers[0], now).is_err(), "all places are taken");
        drop(held);
        // The refusals cost nothing: one of the burst is used.
        for _ in 1..PROBE_BACK_BURST {
            assert!(probes.begin(&peers[0], now).is_ok());
        }
        assert!(probes.begin(&peers[0], now).is_err(), "too often");
        assert!(probes.begin(&peers[0], now.plus(PROBE_BACK_INTERVAL)).is_ok());
    }
}
