//! One dial sequence: find the peer's nodes, and try them in order until one has said `hello` (C2, C3, X7).
//!
//! What bounds it: the whole by [`limits::DIAL_TIMEOUT`], one address by [`limits::DIAL_ADDRESS_TIMEOUT`], targets and addresses by
//! `[dns]`, where it may go by the [`AddressPolicy`], and how often by the [`DialBudget`] of the address. There is one sequence
//! at a time for each peer: that is the pool's business.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use quinn::{Connection, Endpoint};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::backoff::Backoff;
use super::budget::DialBudget;
use super::error::{PeerError, Why};
use super::hello::{self, Greeting, Hello};
use super::policy::PeerPolicies;
use crate::base::{Domain, limits};
use crate::transport::{AddressPolicy, Discovered, Origin, Resolver, Service, Target};

/// What an operator may set about dialling peers.
#[derive(Clone, Debug, Default)]
pub struct DialSettings {
    /// Where it may go for every peer; what single ones may have beside that is in `policies`.
    pub addresses: AddressPolicy,
    /// Who may federate, and what is different for single peers.
    pub policies: PeerPolicies,
    /// How long to wait after failures.
    pub backoff: Backoff,
}

/// A connection on which `hello` has been exchanged, and what the peer said.
pub(super) type Greeted = (Connection, Greeting);

/// What every dial sequence needs.
pub(super) struct Dialer {
    pub(super) endpoint: Endpoint,
    pub(super) config: quinn::ClientConfig,
    pub(super) resolver: Resolver,
    pub(super) hello: Arc<dyn Hello>,
    pub(super) addresses: ArcSwap<AddressPolicy>,
    pub(super) budget: Mutex<DialBudget>,
}

impl Dialer {
    /// A connection to `peer` on which `hello` has been exchanged. Every address of every target is tried before this fails. When
    /// none was of use and they were not asked for just now, DNS is asked again and what is new is tried as well.
    pub(super) async fn dial(&self, peer: &Domain) -> Result<Greeted, PeerError> {
        let deadline = Instant::now() + limits::DIAL_TIMEOUT;
        let mut sequence = Sequence { peer, tried: HashSet::new(), failures: Failures::default(), deadline };
        let found = self.discover(peer, deadline).await?;
        if let Some(greeted) = self.attempt_all(&mut sequence, &found.targets).await {
            return Ok(greeted);
        }
        self.resolver.doubt(Service::Federation, peer);
        if found.origin == Origin::Cached && Instant::now() < deadline {
            match self.discover(peer, deadline).await {
                Ok(found) => {
                    if let Some(greeted) = self.attempt_all(&mut sequence, &found.targets).await {
                        return Ok(greeted);
                    }
                }
                // What became of the attempts tells more than that DNS could not be asked again.
                Err(error) if matches!(error.why, Why::DnsFailure | Why::DnsTimedOut) => {
                    sequence.failures.details.push(error.detail)
                }
                Err(error) => return Err(error),
            }
        }
        Err(sequence.failures.into_error(peer))
    }

    async fn discover(&self, peer: &Domain, deadline: Instant) -> Result<Discovered, PeerError> {
        timeout_at(deadline, self.resolver.discover(Service::Federation, peer))
            .await
            .map_err(|_| PeerError::not_sent(peer, Why::DnsTimedOut, "discovery took too long"))?
            .map_err(|error| PeerError::discovery(peer, &error))
    }

    /// Tries the addresses that this sequence has not tried yet. While one is silent the next is tried beside it, for QUIC does
    /// not learn that nobody listens; the first to complete wins.
    async fn attempt_all(&self, sequence: &mut Sequence<'_>, targets: &[Target]) -> Option<Greeted> {
        let peer = sequence.peer;
        let candidates: Vec<Candidate> = candidates(targets).filter(|next| sequence.tried.insert(next.address)).collect();
        // The last one is started early enough to have its time.
        let room = sequence.deadline.saturating_duration_since(Instant::now()).saturating_sub(limits::DIAL_ADDRESS_TIMEOUT);
        let mut waiting: VecDeque<(Candidate, Duration)> = with_pauses(candidates, room).into();

        let mut attempts = JoinSet::new();
        let mut priority = None;
        let mut last_start = Instant::now();
        loop {
            if Instant::now() >= sequence.deadline {
                sequence.failures.details.push("the others did not answer in time".to_owned());
                return None;
            }
            let due = waiting.front().map(|(next, pause)| {
                // A failure moves on at once, but to a lesser priority only when nothing of a better one is under way.
                let free = attempts.is_empty() || (sequence.failures.fresh && priority == Some(next.priority));
                if free { Instant::now() } else { last_start + *pause }
            });
            if due.is_some_and(|due| due <= Instant::now())
                && let Some((next, _)) = waiting.pop_front()
            {
                sequence.failures.fresh = false;
                (priority, last_start) = (Some(next.priority), Instant::now());
                match self.admit(peer, next.address) {
                    Ok(()) => {
                        let attempt =
                            attempt(self.endpoint.clone(), self.config.clone(), self.hello.clone(), peer.clone(), next.address);
                        attempts.spawn(async move { (next.host, next.address, attempt.await) });
                    }
                    Err(error) => sequence.failures.add(&next.host, next.address, error),
                }
                continue;
            }
            tokio::select! {
                ended = attempts.join_next(), if !attempts.is_empty() => match ended {
                    Some(Ok((_, address, Ok(greeted)))) => {
                        self.found(address);
                        return Some(greeted);
                    }
                    Some(Ok((host, address, Err(error)))) => sequence.failures.add(&host, address, error),
                    Some(Err(_)) | None => {}
                },
                () = sleep_until(due.unwrap_or(sequence.deadline)), if due.is_some() => {}
                () = sleep_until(sequence.deadline), if !attempts.is_empty() => {}
                else => return None,
            }
        }
    }

    /// Whether this address may be dialled now. Asked with the very address that is dialled next: an answer of DNS that was looked
    /// at earlier, or elsewhere, says nothing about it.
    pub(super) fn admit(&self, peer: &Domain, address: SocketAddr) -> Result<(), PeerError> {
        let allowed = self.addresses.load().check(peer, address.ip());
        allowed.map_err(|forbidden| PeerError::not_sent(peer, Why::ForbiddenAddress, forbidden.to_string()))?;
        if self.budget().draw(address.ip(), Instant::now().into_std()) {
            Ok(())
        } else {
            let detail = "it was dialled too often lately without finding a peer there";
            Err(PeerError::not_sent(peer, Why::Unreachable, detail))
        }
    }

    /// A peer was found there: that costs the address nothing.
    pub(super) fn found(&self, address: SocketAddr) {
        self.budget().give_back(address.ip());
    }

    fn budget(&self) -> std::sync::MutexGuard<'_, DialBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A dial sequence under way.
struct Sequence<'a> {
    peer: &'a Domain,
    tried: HashSet<SocketAddr>,
    failures: Failures,
    deadline: Instant,
}

/// An address to try.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    host: String,
    priority: u16,
    address: SocketAddr,
}

/// The targets' addresses, in the order in which to try them.
fn candidates(targets: &[Target]) -> impl Iterator<Item = Candidate> {
    targets.iter().flat_map(|target| {
        let candidate =
            |address: &SocketAddr| Candidate { host: target.host.clone(), priority: target.priority, address: *address };
        target.addresses.iter().map(candidate)
    })
}

/// How long after the one before it each is started, while that one is silent. Together no longer than `room`, so that every one
/// has its turn however many there are.
fn with_pauses(candidates: Vec<Candidate>, room: Duration) -> Vec<(Candidate, Duration)> {
    let mut before = None;
    let mut paused: Vec<(Candidate, Duration)> = candidates
        .into_iter()
        .map(|candidate| {
            let pause = match before.replace(candidate.priority) {
                None => Duration::ZERO,
                Some(priority) if priority == candidate.priority => limits::DIAL_STAGGER,
                Some(_) => limits::DIAL_PRIORITY_STAGGER,
            };
            (candidate, pause)
        })
        .collect();
    let total: Duration = paused.iter().map(|(_, pause)| *pause).sum();
    if total > room {
        for (_, pause) in &mut paused {
            *pause = pause.mul_f64(room.as_secs_f64() / total.as_secs_f64());
        }
    }
    paused
}

async fn attempt(
    endpoint: Endpoint,
    config: quinn::ClientConfig,
    hello: Arc<dyn Hello>,
    peer: Domain,
    address: SocketAddr,
) -> Result<Greeted, PeerError> {
    // The certificate is checked for the domain that was looked up. With DANE (`transport::discovery`), a proven target's TLSA
    // records would be handed to the verifier here.
    let connecting = endpoint
        .connect_with(config, address, peer.as_str())
        .map_err(|error| PeerError::not_sent(&peer, Why::Unreachable, error.to_string()))?;
    let whole = async {
        let connection = connecting.await.map_err(|error| PeerError::connection(&peer, &error, super::Sent::NotSent))?;
        let greeting = hello::offer(&connection, &peer, &*hello).await?;
        Ok((connection, greeting))
    };
    match timeout(limits::DIAL_ADDRESS_TIMEOUT, whole).await {
        Ok(outcome) => outcome,
        Err(_) => Err(PeerError::not_sent(&peer, Why::Unreachable, "no answer")),
    }
}

/// What the attempts of one sequence came to.
#[derive(Default)]
struct Failures {
    worst: Option<Why>,
    details: Vec<String>,
    /// Whether one was added since the last attempt was started.
    fresh: bool,
}

impl Failures {
    fn add(&mut self, host: &str, address: SocketAddr, error: PeerError) {
        self.fresh = true;
        let host = host.trim_end_matches('.');
        self.details.push(format!("{host} at {address}: {}: {}", error.why, error.detail));
        // A node that answered and refused tells more than one that was silent, and that more than one that was not asked.
        let rank = |why: &Why| match why {
            Why::ForbiddenAddress => 0,
            Why::Unreachable => 1,
            Why::TimedOut => 2,
            Why::Closed => 3,
            Why::Refused => 4,
            _ => 5,
        };
        if self.worst.as_ref().is_none_or(|worst| rank(&error.why) > rank(worst)) {
            self.worst = Some(error.why);
        }
    }

    fn into_error(self, peer: &Domain) -> PeerError {
        PeerError::not_sent(peer, self.worst.unwrap_or(Why::Unreachable), self.details.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(number: u8, priority: u16) -> Candidate {
        Candidate { host: "n.".to_owned(), priority, address: ([192, 0, 2, number], 1).into() }
    }

    #[test]
    fn a_lesser_priority_waits_longer_than_a_further_address() {
        let room = Duration::from_secs(60);
        let paused = with_pauses(vec![candidate(1, 5), candidate(2, 5), candidate(3, 9)], room);
        let pauses: Vec<Duration> = paused.into_iter().map(|(_, pause)| pause).collect();
        assert_eq!(pauses, [Duration::ZERO, limits::DIAL_STAGGER, limits::DIAL_PRIORITY_STAGGER]);
    }

    proptest! {
        #[test]
        fn every_candidate_has_its_turn_in_time(priorities in prop::collection::vec(0u16..9, 0..64), room_ms in 0u64..20_000) {
            let mut priorities = priorities;
            priorities.sort_unstable();
            let all: Vec<Candidate> = priorities.iter().zip(0..).map(|(priority, number)| candidate(number, *priority)).collect();
            let room = Duration::from_millis(room_ms);
            let paused = with_pauses(all.clone(), room);
            prop_assert_eq!(paused.iter().map(|(candidate, _)| candidate.clone()).collect::<Vec<_>>(), all);
            let total: Duration = paused.iter().map(|(_, pause)| *pause).sum();
            // Rounding may add a nanosecond each.
            prop_assert!(total <= room + Duration::from_nanos(64));
        }
    }
}
