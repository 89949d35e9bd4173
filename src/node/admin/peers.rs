//! What is known of peers, gathered from where it is: the pool, the configuration, the disk, the certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::router::Admin;
use super::view::{CountsView, InFlightView, LastErrorView, PeerView, PolicyView, QueuedView};
use crate::base::{Domain, Fault, UnixMillis};
use crate::federation::policy::Closure;
use crate::federation::{EffectivePolicy, GateState, PeerStatus, PeerTraffic};
use crate::identity::tls::days_left;
use crate::storage::lanes::LaneTotals;

/// A time of the monotonic clock as one of the calendar, the same each time it is asked for.
#[derive(Clone, Copy, Debug)]
pub(in crate::node) struct Calendar {
    instant: Instant,
    at: UnixMillis,
}

impl Calendar {
    /// Both clocks as they are now.
    pub(in crate::node) fn now() -> Self {
        Self { instant: Instant::now(), at: UnixMillis::now() }
    }

    /// When the calendar began.
    pub(in crate::node) fn began(&self) -> UnixMillis {
        self.at
    }

    fn time(&self, instant: Instant) -> UnixMillis {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.at.plus(later),
            None => self.at.minus(self.instant - instant),
        }
    }
}

/// The states' names, as they are answered.
pub(in crate::node) const STATES: [&str; 6] = ["up", "probing", "backing_off", "held", "denied", "untried"];

fn state_name(state: GateState) -> &'static str {
    match state {
        GateState::Up => "up",
        GateState::Probing => "probing",
        GateState::BackingOff { .. } => "backing_off",
        GateState::Held => "held",
        GateState::Denied => "denied",
    }
}

impl Admin {
    /// Every peer that there is anything to say of, in the order of their names: those of the configuration, those that were dialled
    /// or have connected since the start, and those that frames wait for.
    pub(in crate::node) async fn peers(&self) -> Result<Vec<PeerView>, Fault> {
        let now = UnixMillis::now();
        let pool = self.service.peers();
        let statuses: BTreeMap<Domain, PeerStatus> =
            pool.statuses().into_iter().map(|status| (status.domain.clone(), status)).collect();
        let waiting = self.service.storage().lane_totals().await?;
        let waiting: BTreeMap<Domain, LaneTotals> = waiting.into_iter().map(|totals| (totals.domain.clone(), totals)).collect();
        let dead = self.service.storage().dead_letter_totals().await?;
        let dead: BTreeMap<Domain, u64> = dead.into_iter().map(|totals| (totals.domain, totals.letters)).collect();
        let certificates = pool.tls().peers_not_after();
        let mut domains: BTreeSet<Domain> = pool.policies().named().into_iter().cloned().collect();
        domains.extend(statuses.keys().chain(waiting.keys()).chain(dead.keys()).chain(certificates.keys()).cloned());
        domains.extend(pool.traffic().domains());
        let views = domains.into_iter().map(|domain| {
            let mut view = untried(&domain, self.service.peer_policy(&domain));
            if let Some(status) = statuses.get(&domain) {
                self.put_status(&mut view, status);
            }
            if let Some(totals) = waiting.get(&domain) {
                view.queued = QueuedView {
                    frames: totals.frames,
                    bytes: totals.octets,
                    lanes: totals.lanes,
                    lanes_held: 0,
                    oldest_age_seconds: Some(age_seconds(totals.undelivered_since, now)),
                };
            }
            view.dead_letters = dead.get(&domain).copied().unwrap_or_default();
            view.certificate_days_left = certificates.get(&domain).map(|end| days_left(*end, now));
            if let Some(traffic) = pool.traffic().known(&domain) {
                put_traffic(&mut view, &traffic);
            }
            view
        });
        Ok(views.collect())
    }

    /// One peer, also one that there is nothing to say of but what holds for everyone.
    pub(in crate::node) async fn peer(&self, domain: &Domain) -> Result<PeerView, Fault> {
        let known = self.peers().await?.into_iter().find(|view| view.domain == *domain);
        Ok(known.unwrap_or_else(|| untried(domain, self.service.peer_policy(domain))))
    }

    fn put_status(&self, view: &mut PeerView, status: &PeerStatus) {
        let gate = &status.gate;
        view.state = state_name(gate.state).to_owned();
        view.since = Some(self.calendar.time(gate.since).to_rfc3339());
        if let GateState::BackingOff { until } = gate.state {
            view.retry_at = Some(self.calendar.time(until).to_rfc3339());
        }
        view.failures = gate.failures;
        view.last_error = gate.last_failure.as_ref().map(|(why, detail)| {
            let detail = if detail.is_empty() { why.to_string() } else { format!("{why}: {detail}") };
            LastErrorView { kind: why.name().to_owned(), detail }
        });
        view.connected = status.connected;
    }
}

/// A peer of which nothing is known but what the configuration and operators say.
fn untried(domain: &Domain, policy: EffectivePolicy) -> PeerView {
    let state = match policy.closure() {
        Some(Closure::Denied(_)) => "denied",
        Some(Closure::Held) => "held",
        None => "untried",
    };
    PeerView {
        domain: domain.clone(),
        state: state.to_owned(),
        since: None,
        retry_at: None,
        failures: 0,
        last_error: None,
        connected: None,
        certificate_days_left: None,
        policy: PolicyView {
            denied: policy.denied,
            held: policy.held,
            reason: policy.reason,
            configured: policy.configured,
            limits: policy.limits,
            said: policy.overridden,
        },
        dead_letters: 0,
        queued: QueuedView::default(),
        in_flight: InFlightView::default(),
        counts: CountsView::default(),
    }
}

/// How long ago that was.
pub(super) fn age_seconds(then: UnixMillis, now: UnixMillis) -> u64 {
    now.0.saturating_sub(then.0) / 1000
}

/// Puts in what went to and came from a peer.
pub(in crate::node) fn put_traffic(view: &mut PeerView, traffic: &PeerTraffic) {
    view.queued.lanes_held = traffic.lanes_held.value();
    view.in_flight = InFlightView { frames: traffic.frames_in_flight.value(), requests: traffic.requests_in_flight.value() };
    view.counts = CountsView {
        frames_sent: traffic.frames_sent.value(),
        frames_delivered: traffic.frames_delivered.value(),
        frames_received: traffic.frames_received.value(),
        requests_sent: traffic.requests_sent.value(),
        requests_failed: traffic.requests_failed.value(),
        requests_received: traffic.requests_received.value(),
        refused: traffic.refused.value(),
        over_limits: traffic.over_limits.value(),
    };
}
