//! [`Gate`]: decides when a peer may be tried. One per peer, asked by every path to it (C4). Pure: it takes `now`.
//!
//! ```text
//!            failed                     its time has come, or the peer has connected to us
//!   up ─────────────────▶ backing off ───────────────────────────────────────▶ probing
//!    ▲                         ▲                   failed                         │
//!    │                         └──────────────────────────────────────────────────┤
//!    └────────────────────────────────────────────────────────────────────────────┘ succeeded
//!
//!   held, denied: from and to any of these, by an operator
//! ```
//!
//! Each change of state is one line in the log, with its reason: a warning when a peer is lost or fails for another reason than
//! before, information when it is back or an operator acts, and `debug` for the tries in between.

use std::fmt;
use std::time::Instant;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::backoff::Backoff;
use super::error::Why;
use crate::base::{Domain, limits};

/// Whether a peer may be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try now, and report [`Gate::succeeded`], [`Gate::failed`] or [`Gate::abandoned`].
    Try,
    /// Ask again at this time, or when told to; with why the peer failed last.
    Wait(Instant, Why),
    /// Not before an operator says so: [`Why::Held`] or [`Why::DeniedHere`].
    Closed(Why),
}

/// What a gate has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// Nothing speaks against trying.
    Up,
    /// After failures, one attempt is under way.
    Probing,
    /// After failures, nobody tries before then.
    BackingOff {
        /// When the next one may.
        until: Instant,
    },
    /// An operator wants nothing sent for now; what waits is kept.
    Held,
    /// An operator does not federate with this peer.
    Denied,
}

impl fmt::Display for GateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Probing => "probing",
            Self::BackingOff { .. } => "backing off",
            Self::Held => "held",
            Self::Denied => "denied",
        })
    }
}

/// How long a gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedUntil {
    /// Until then, or until told otherwise.
    Time(Instant),
    /// Until an operator opens it.
    Told,
}

/// Everything an operator wants to know of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateStatus {
    /// Its state.
    pub state: GateState,
    /// Since when.
    pub since: Instant,
    /// Failures in a row.
    pub failures: u32,
    /// Why the last one failed, and in detail; `None` when nothing has failed since the last success.
    pub last_failure: Option<(Why, String)>,
}

/// The gate of one peer.
#[derive(Debug)]
pub struct Gate {
    peer: Domain,
    state: GateState,
    since: Instant,
    /// While probing: when the back-off that contact from the peer cut short would have ended.
    cut_short: Option<Instant>,
    /// Failures in a row, and the last one's reason. Only an outbound success clears them: that a peer reaches us says nothing
    /// about the other direction.
    failures: u32,
    last_failure: Option<(Why, String)>,
    /// When contact from the peer last cut a back-off short.
    last_contact_probe: Option<Instant>,
    backoff: Backoff,
    rng: StdRng,
}

/// How loudly a change is logged.
enum Loudness {
    Warning,
    Information,
    Detail,
}

impl Gate {
    /// The gate of a peer of which nothing is known: it may be tried. `seed` decides the jitter.
    pub fn new(peer: Domain, backoff: Backoff, seed: u64, now: Instant) -> Self {
        Self {
            peer,
            state: GateState::Up,
            since: now,
            cut_short: None,
            failures: 0,
            last_failure: None,
            last_contact_probe: None,
            backoff,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Whether to try now. After failures, the first one told [`Verdict::Try`] is the only one until it has reported, or has
    /// been silent for longer than an attempt can take.
    pub fn may_try(&mut self, now: Instant) -> Verdict {
        match self.state {
            GateState::Up => Verdict::Try,
            GateState::Held => Verdict::Closed(Why::Held),
            GateState::Denied => Verdict::Closed(Why::DeniedHere),
            GateState::Probing if now < self.since + limits::DIAL_TIMEOUT * 2 => {
                Verdict::Wait(self.since + limits::DIAL_TIMEOUT * 2, self.reason())
            }
            GateState::BackingOff { until } if now < until => Verdict::Wait(until, self.reason()),
            GateState::Probing => {
                // The attempt before was lost without a report; that is no change.
                (self.since, self.cut_short) = (now, None);
                Verdict::Try
            }
            GateState::BackingOff { .. } => {
                self.change(GateState::Probing, now, "its back-off is over", Loudness::Detail);
                Verdict::Try
            }
        }
    }

    /// How long nobody may try; `None`: one may now, or when the attempt under way has ended. Changes nothing.
    pub fn closed_until(&self, now: Instant) -> Option<ClosedUntil> {
        match self.state {
            GateState::BackingOff { until } if now < until => Some(ClosedUntil::Time(until)),
            GateState::Held | GateState::Denied => Some(ClosedUntil::Told),
            _ => None,
        }
    }

    /// Why an operator has closed it, if so.
    pub fn closed(&self) -> Option<Why> {
        match self.state {
            GateState::Held => Some(Why::Held),
            GateState::Denied => Some(Why::DeniedHere),
            _ => None,
        }
    }

    /// What there is to know.
    pub fn status(&self) -> GateStatus {
        GateStatus { state: self.state, since: self.since, failures: self.failures, last_failure: self.last_failure.clone() }
    }

    /// An attempt reached the peer: history is cleared.
    pub fn succeeded(&mut self, now: Instant) {
        let after = self.failures;
        (self.failures, self.last_failure, self.cut_short) = (0, None, None);
        if self.closed().is_none() && self.state != GateState::Up {
            self.change(GateState::Up, now, &format!("it was reached, after {after} failures"), Loudness::Information);
        }
    }

    /// An attempt failed: nobody tries again before the time returned; `None` while an operator has closed the gate. A probe that
    /// contact from the peer caused leaves the back-off that it cut short as it was.
    pub fn failed(&mut self, now: Instant, why: Why, detail: &str) -> Option<Instant> {
        let known = self.last_failure.as_ref().is_some_and(|(last, _)| *last == why);
        let resumed = self.cut_short.take().filter(|until| now < *until);
        let until = resumed.unwrap_or_else(|| {
            self.failures = self.failures.saturating_add(1);
            now + self.backoff.delay(self.failures, &mut self.rng)
        });
        let reason = if detail.is_empty() { why.to_string() } else { format!("{why}: {detail}") };
        self.last_failure = Some((why, detail.to_owned()));
        if self.closed().is_some() {
            return None;
        }
        let loudness = if known { Loudness::Detail } else { Loudness::Warning };
        self.change(GateState::BackingOff { until }, now, &reason, loudness);
        Some(until)
    }

    /// An attempt was given up without an outcome: the next one need not wait for it.
    pub fn abandoned(&mut self, now: Instant) {
        self.cut_short = None;
        if self.state == GateState::Probing {
            self.change(GateState::BackingOff { until: now }, now, "the try was abandoned", Loudness::Detail);
        }
    }

    /// The peer has connected to us: if it failed before and nobody has tried since, one attempt is to be made at once, at most
    /// every [`limits::INBOUND_PROBE_INTERVAL`], and nothing more. When true, the caller makes it and reports.
    pub fn inbound_contact(&mut self, now: Instant) -> bool {
        let GateState::BackingOff { until } = self.state else { return false };
        if self.last_contact_probe.is_some_and(|last| now < last + limits::INBOUND_PROBE_INTERVAL) {
            return false;
        }
        self.last_contact_probe = Some(now);
        self.cut_short = Some(until);
        self.change(GateState::Probing, now, "it has connected to us", Loudness::Detail);
        true
    }

    /// Somebody who knows better (an operator, a changed configuration) wants the peer tried: allows one immediate attempt.
    /// Whether the gate was backing off.
    pub fn wake(&mut self, now: Instant) -> bool {
        let closed = matches!(self.state, GateState::BackingOff { until } if now < until);
        if closed {
            // Backing off still, but for no longer: the first to ask probes.
            self.state = GateState::BackingOff { until: now };
        }
        closed
    }

    /// An operator wants nothing sent to the peer until [`Gate::reopen`]. `reason` is for the log.
    pub fn hold(&mut self, now: Instant, reason: &str) {
        self.close(GateState::Held, now, reason);
    }

    /// An operator does not federate with the peer until [`Gate::reopen`]. `reason` is for the log.
    pub fn deny(&mut self, now: Instant, reason: &str) {
        self.close(GateState::Denied, now, reason);
    }

    fn close(&mut self, state: GateState, now: Instant, reason: &str) {
        self.cut_short = None;
        if self.state != state {
            self.change(state, now, reason, Loudness::Information);
        }
    }

    /// Ends [`Gate::hold`] or [`Gate::deny`]; the peer may be tried at once. Whether it was closed by either.
    pub fn reopen(&mut self, now: Instant, reason: &str) -> bool {
        let closed = self.closed().is_some();
        if closed {
            // What failed before the hold may still fail: one attempt finds out.
            let next = if self.failures > 0 { GateState::BackingOff { until: now } } else { GateState::Up };
            self.change(next, now, reason, Loudness::Information);
        }
        closed
    }

    /// The one place where the state changes, and is logged.
    fn change(&mut self, to: GateState, now: Instant, reason: &str, loudness: Loudness) {
        let (peer, from, failures) = (&self.peer, self.state, self.failures);
        (self.state, self.since) = (to, now);
        let retry_in_ms = match to {
            GateState::BackingOff { until } => Some(until.saturating_duration_since(now).as_millis() as u64),
            _ => None,
        };
        match loudness {
            Loudness::Warning => tracing::warn!(%peer, %from, %to, reason, failures, retry_in_ms, "peer state"),
            Loudness::Information => tracing::info!(%peer, %from, %to, reason, failures, retry_in_ms, "peer state"),
            Loudness::Detail => tracing::debug!(%peer, %from, %to, reason, failures, retry_in_ms, "peer state"),
        }
    }

    fn reason(&self) -> Why {
        self.last_failure.as_ref().map_or(Why::Closed, |(why, _)| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    fn gate() -> (Gate, Instant) {
        let now = Instant::now();
        (Gate::new("b.test".parse().expect("a domain"), Backoff::default(), 1, now), now)
    }

    fn waits(verdict: Verdict) -> Instant {
        match verdict {
            Verdict::Wait(until, _) => until,
            Verdict::Try | Verdict::Closed(_) => unreachable!("the gate backs off"),
        }
    }

    fn fails(gate: &mut Gate, now: Instant) -> Instant {
        gate.failed(now, Why::Unreachable, "").expect("nobody has closed it")
    }

    #[test]
    fn an_unknown_peer_may_be_tried_by_everyone() {
        let (mut gate, now) = gate();
        assert_eq!(gate.may_try(now), Verdict::Try);
        assert_eq!(gate.may_try(now), Verdict::Try);
        assert_eq!(gate.closed_until(now), None);
    }

    #[test]
    fn after_a_failure_one_probe_passes_when_its_time_has_come() {
        let (mut gate, now) = gate();
        let until = fails(&mut gate, now);
        assert!((Duration::from_millis(800)..=Duration::from_millis(1_200)).contains(&(until - now)), "about a second");
        assert_eq!(gate.may_try(now), Verdict::Wait(until, Why::Unreachable));
        assert_eq!(gate.closed_until(now), Some(ClosedUntil::Time(until)));
        assert_eq!(gate.may_try(until), Verdict::Try);
        assert!(waits(gate.may_try(until)) > until, "the second one waits for the probe");
        // A second failure waits longer than the first.
        let again = fails(&mut gate, until);
        assert!(again - until > limits::BACKOFF_FIRST);
        assert_eq!(gate.may_try(again), Verdict::Try);
        gate.succeeded(again);
        assert_eq!(gate.may_try(again), Verdict::Try);
        assert!(fails(&mut gate, again) - again <= limits::BACKOFF_FIRST * 12 / 10, "history is cleared");
    }

    #[test]
    fn a_probe_that_never_reports_does_not_close_the_gate_for_ever() {
        let (mut gate, now) = gate();
        let until = fails(&mut gate, now);
        assert_eq!(gate.may_try(until), Verdict::Try);
        let later = waits(gate.may_try(until));
        assert_eq!(gate.may_try(later), Verdict::Try);
        // One that is known to be given up closes it for no time at all.
        gate.abandoned(later);
        assert_eq!(gate.may_try(later), Verdict::Try);
    }

    #[test]
    fn inbound_contact_makes_one_probe_and_nothing_more() {
        let (mut gate, now) = gate();
        for _ in 0..5 {
            fails(&mut gate, now);
        }
        let until = waits(gate.may_try(now));
        let before = gate.status().failures;
        assert!(gate.inbound_contact(now));
        assert!(waits(gate.may_try(now)) > now, "nobody else tries meanwhile");
        assert!(!gate.inbound_contact(now), "one");
        assert_eq!(fails(&mut gate, now), until, "the back-off is as it was");
        assert_eq!(gate.status().failures, before, "and so is the history");
        // Contact in a loop does not make a loop of probes.
        assert!(!gate.inbound_contact(now + Duration::from_millis(1)));
        let later = now + limits::INBOUND_PROBE_INTERVAL;
        assert!(gate.inbound_contact(later));
        // One that fails after its back-off would have ended is a failure like any other.
        let again = fails(&mut gate, until);
        assert!(again > until && gate.status().failures == before + 1);
        assert!(gate.inbound_contact(until), "while it backs off, contact helps");
        gate.succeeded(until);
        assert_eq!((gate.status().state, gate.status().failures), (GateState::Up, 0), "outbound success clears the history");
    }

    #[test]
    fn inbound_contact_with_an_open_gate_changes_nothing() {
        let (mut gate, now) = gate();
        assert!(!gate.inbound_contact(now));
        let until = fails(&mut gate, now);
        assert!(gate.inbound_contact(until), "the earlier contact was not counted, and nobody else may want anything of it");
        let again = fails(&mut gate, until);
        assert!(again > until, "its back-off was over");
    }

    #[test]
    fn held_and_denied_stay_so_until_told() {
        let (mut gate, now) = gate();
        gate.hold(now, "maintenance");
        assert_eq!((gate.may_try(now), gate.closed_until(now)), (Verdict::Closed(Why::Held), Some(ClosedUntil::Told)));
        // An attempt that was under way opens nothing, and neither does contact.
        gate.succeeded(now);
        assert_eq!(gate.failed(now, Why::TimedOut, ""), None);
        assert!(!gate.inbound_contact(now) && !gate.wake(now));
        assert_eq!(gate.may_try(now + limits::BACKOFF_MAX * 2), Verdict::Closed(Why::Held));
        gate.deny(now, "abuse");
        assert_eq!(gate.may_try(now), Verdict::Closed(Why::DeniedHere));
        assert!(gate.reopen(now, "sorry") && !gate.reopen(now, "again"));
        assert_eq!(gate.may_try(now), Verdict::Try);
        assert_eq!(gate.status().state, GateState::Probing, "what failed before is found out by one");
    }

    /// A log that a test reads.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend(octets);
            Ok(octets.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_change_is_logged_once_with_its_reason() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let (mut gate, now) = gate();
            gate.succeeded(now);
            let until = gate.failed(now, Why::Unreachable, "no answer").expect("open");
            let _ = gate.may_try(now);
            let _ = gate.may_try(until);
            let _ = gate.may_try(until);
            let until = gate.failed(until, Why::Unreachable, "no answer").expect("open");
            let _ = gate.may_try(until);
            let until = gate.failed(until, Why::Certificate, "expired").expect("open");
            assert!(gate.inbound_contact(now));
            gate.succeeded(until);
            gate.succeeded(until);
            gate.hold(until, "maintenance");
            gate.hold(until, "maintenance");
            gate.deny(until, "abuse");
            gate.reopen(until, "appeal");
        });
        let text = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("text");
        let changes: Vec<(&str, &str)> = text
            .lines()
            .map(|line| {
                let level = line.split_whitespace().next().expect("a level");
                let from = line.find("from=").expect("from");
                let end = line.find(" failures=").expect("failures");
                (level, &line[from..end])
            })
            .collect();
        assert_eq!(
            changes,
            [
                ("WARN", "from=up to=backing off reason=\"unreachable: no answer\""),
                ("DEBUG", "from=backing off to=probing reason=\"its back-off is over\""),
                ("DEBUG", "from=probing to=backing off reason=\"unreachable: no answer\""),
                ("DEBUG", "from=backing off to=probing reason=\"its back-off is over\""),
                ("WARN", "from=probing to=backing off reason=\"certificate refused: expired\""),
                ("DEBUG", "from=backing off to=probing reason=\"it has connected to us\""),
                ("INFO", "from=probing to=up reason=\"it was reached, after 3 failures\""),
                ("INFO", "from=up to=held reason=\"maintenance\""),
                ("INFO", "from=held to=denied reason=\"abuse\""),
                ("INFO", "from=denied to=up reason=\"appeal\""),
            ],
            "{text}"
        );
    }
}
