//! [`Gate`]: decides when a peer may be tried. One per peer, asked by every path to it (C4). Pure: it takes `now`.

use std::time::Instant;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::backoff;
use super::error::Why;
use crate::base::{Domain, limits};

/// Whether a peer may be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try now, and report [`Gate::succeeded`] or [`Gate::failed`].
    Try,
    /// Ask again at this time, or when told to; with why the peer failed last.
    Wait(Instant, Why),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing speaks against trying.
    Up,
    /// After failures, one attempt is under way, begun then.
    Probing { since: Instant },
    /// After failures, nobody tries before then.
    BackingOff { until: Instant },
}

/// The gate of one peer.
#[derive(Debug)]
pub struct Gate {
    peer: Domain,
    state: State,
    /// Failures in a row, and the last one's reason. Only an outbound success clears them: that a peer reaches us says nothing
    /// about the other direction.
    failures: u32,
    last_failure: Option<Why>,
    /// When contact from the peer last cut a back-off short.
    last_contact_probe: Option<Instant>,
    rng: StdRng,
}

impl Gate {
    /// The gate of a peer of which nothing is known: it may be tried. `seed` decides the jitter.
    pub fn new(peer: Domain, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { peer, state: State::Up, failures: 0, last_failure: None, last_contact_probe: None, rng }
    }

    /// Whether to try now. After failures, the first one told [`Verdict::Try`] is the only one until it has reported, or has
    /// been silent for longer than an attempt can take.
    pub fn may_try(&mut self, now: Instant) -> Verdict {
        match self.state {
            State::Up => Verdict::Try,
            State::Probing { since } if now < since + limits::DIAL_TIMEOUT * 2 => {
                Verdict::Wait(since + limits::DIAL_TIMEOUT * 2, self.reason())
            }
            State::BackingOff { until } if now < until => Verdict::Wait(until, self.reason()),
            State::Probing { .. } | State::BackingOff { .. } => {
                self.state = State::Probing { since: now };
                tracing::debug!(peer = %self.peer, failures = self.failures, "peer is tried again");
                Verdict::Try
            }
        }
    }

    /// When the peer may be tried: `None` for now, or for when the attempt under way has ended. Changes nothing.
    pub fn closed_until(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::BackingOff { until } if now < until => Some(until),
            _ => None,
        }
    }

    /// An attempt reached the peer: history is cleared.
    pub fn succeeded(&mut self) {
        if self.failures > 0 {
            tracing::info!(peer = %self.peer, failures = self.failures, "peer is reachable again");
        }
        self.failures = 0;
        self.last_failure = None;
        self.state = State::Up;
    }

    /// An attempt failed: nobody tries again before the time returned.
    pub fn failed(&mut self, now: Instant, why: Why, detail: &str) -> Instant {
        self.failures = self.failures.saturating_add(1);
        let delay = backoff::delay(self.failures, &mut self.rng);
        let until = now + delay;
        let retry_in_ms = delay.as_millis() as u64;
        if self.last_failure.as_ref() == Some(&why) {
            tracing::debug!(peer = %self.peer, %why, detail, failures = self.failures, retry_in_ms, "peer still fails");
        } else {
            tracing::warn!(peer = %self.peer, %why, detail, failures = self.failures, retry_in_ms, "peer cannot be reached");
        }
        self.last_failure = Some(why);
        self.state = State::BackingOff { until };
        until
    }

    /// An attempt was given up without an outcome: the next one need not wait for it.
    pub fn abandoned(&mut self, now: Instant) {
        if matches!(self.state, State::Probing { .. }) {
            self.state = State::BackingOff { until: now };
        }
    }

    /// The peer has connected to us: allows one immediate attempt, at most every [`limits::INBOUND_PROBE_INTERVAL`], and nothing
    /// more. Whether it did.
    pub fn inbound_contact(&mut self, now: Instant) -> bool {
        let recent = self.last_contact_probe.is_some_and(|last| now < last + limits::INBOUND_PROBE_INTERVAL);
        if recent || !self.open(now, "the peer has connected to us") {
            return false;
        }
        self.last_contact_probe = Some(now);
        true
    }

    /// Somebody who knows better (an operator, a changed configuration) wants the peer tried: allows one immediate attempt.
    /// Whether the gate was closed.
    pub fn wake(&mut self, now: Instant) -> bool {
        self.open(now, "asked to")
    }

    fn open(&mut self, now: Instant, why: &str) -> bool {
        let closed = matches!(self.state, State::BackingOff { until } if now < until);
        if closed {
            self.state = State::BackingOff { until: now };
            tracing::debug!(peer = %self.peer, why, "peer may be tried before its back-off ends");
        }
        closed
    }

    fn reason(&self) -> Why {
        self.last_failure.clone().unwrap_or(Why::Closed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gate() -> Gate {
        Gate::new("b.test".parse().expect("a domain"), 1)
    }

    fn waits(verdict: Verdict) -> Instant {
        match verdict {
            Verdict::Wait(until, _) => until,
            Verdict::Try => unreachable!("the gate is open"),
        }
    }

    #[test]
    fn an_unknown_peer_may_be_tried_by_everyone() {
        let (mut gate, now) = (gate(), Instant::now());
        assert_eq!(gate.may_try(now), Verdict::Try);
        assert_eq!(gate.may_try(now), Verdict::Try);
        assert_eq!(gate.closed_until(now), None);
    }

    #[test]
    fn after_a_failure_one_probe_passes_when_its_time_has_come() {
        let (mut gate, now) = (gate(), Instant::now());
        let until = gate.failed(now, Why::Unreachable, "");
        assert_eq!(gate.may_try(now), Verdict::Wait(until, Why::Unreachable));
        assert_eq!(gate.closed_until(now), Some(until));
        assert_eq!(gate.may_try(until), Verdict::Try);
        assert!(waits(gate.may_try(until)) > until, "the second one waits for the probe");
        // A second failure waits longer than the first.
        let again = gate.failed(until, Why::TimedOut, "");
        assert!(again - until > limits::BACKOFF_FIRST);
        assert_eq!(gate.may_try(again), Verdict::Try);
        gate.succeeded();
        assert_eq!(gate.may_try(again), Verdict::Try);
        assert!(gate.failed(again, Why::Unreachable, "") - again <= limits::BACKOFF_FIRST * 12 / 10, "history is cleared");
    }

    #[test]
    fn a_probe_that_never_reports_does_not_close_the_gate_for_ever() {
        let (mut gate, now) = (gate(), Instant::now());
        let until = gate.failed(now, Why::Unreachable, "");
        assert_eq!(gate.may_try(until), Verdict::Try);
        let later = waits(gate.may_try(until));
        assert_eq!(gate.may_try(later), Verdict::Try);
        // One that is known to be given up closes it for no time at all.
        gate.abandoned(later);
        assert_eq!(gate.may_try(later), Verdict::Try);
    }

    #[test]
    fn inbound_contact_allows_one_probe_and_keeps_the_history() {
        let (mut gate, now) = (gate(), Instant::now());
        for _ in 0..5 {
            gate.failed(now, Why::Unreachable, "");
        }
        assert!(gate.inbound_contact(now));
        assert_eq!(gate.may_try(now), Verdict::Try);
        waits(gate.may_try(now));
        let until = gate.failed(now, Why::Unreachable, "");
        assert!(until - now > limits::BACKOFF_FIRST * 20, "the sixth failure is the sixth");
        // Contact in a loop does not make a loop of probes.
        assert!(!gate.inbound_contact(now + Duration::from_millis(1)));
        assert_eq!(waits(gate.may_try(now)), until);
        assert!(gate.inbound_contact(now + limits::INBOUND_PROBE_INTERVAL));
        assert_eq!(gate.may_try(now + limits::INBOUND_PROBE_INTERVAL), Verdict::Try);
    }

    #[test]
    fn inbound_contact_with_an_open_gate_changes_nothing() {
        let (mut gate, now) = (gate(), Instant::now());
        assert!(!gate.inbound_contact(now));
        gate.failed(now, Why::Unreachable, "");
        assert!(gate.inbound_contact(now), "the earlier contact was not counted");
    }
}
