//! What is known of peers, gathered from where it is: the pool, the configuration, the disk, the certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::router::Admin;
use super::view::{CountsView, InFlightView, LastErrorView, PeerView, QueuedView};
use crate::base::limits::PEERS_MAX;
use crate::base::{Domain, Fault, UnixMillis};
use crate::federation::{GateState, PeerStatus, PeerTraffic};
use crate::identity::tls::days_left;
use crate::storage::backlog::Backlog;

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
        let backlogs = self.service.storage().backlogs(PEERS_MAX).await?;
        let backlogs: BTreeMap<Domain, Backlog> = backlogs.into_iter().map(|backlog| (backlog.domain.clone(), backlog)).collect();
        let certificates = pool.tls().peers_not_after();
        let mut domains: BTreeSet<Domain> = self.config.peers.keys().cloned().collect();
        domains.extend(statuses.keys().chain(backlogs.keys()).chain(certificates.keys()).cloned());
        domains.extend(pool.traffic().domains());
        let views = domains.into_iter().map(|domain| {
            let mut view = self.untried(&domain);
            if let Some(status) = statuses.get(&domain) {
                self.put_status(&mut view, status);
            }
            if let Some(backlog) = backlogs.get(&domain) {
                view.queued = QueuedView {
                    frames: backlog.frames,
                    lanes: backlog.lanes,
                    oldest_age_seconds: Some(now.0.saturating_sub(backlog.oldest.0) / 1000),
                };
            }
            view.certificate_days_left = certificates.get(&domain).map(|end| days_left(*end, now));
            if let Some(traffic) = pool.traffic().known(&domain) {
                put_traffic(&mut view, &traffic);
            }
            view
        });
        Ok(views.collect())
    }

    /// One peer, whether or not there is anything to say of it.
    pub(in crate::node) async fn peer(&self, domain: &Domain) -> Result<Option<PeerView>, Fault> {
        Ok(self.peers().await?.into_iter().find(|view| view.domain == *domain))
    }

    fn untried(&self, domain: &Domain) -> PeerView {
        PeerView {
            domain: domain.clone(),
            state: "untried".to_owned(),
            since: None,
            retry_at: None,
            failures: 0,
            last_error: None,
            connected: None,
            certificate_days_left: None,
            configured: self.config.peers.contains_key(domain),
            queued: QueuedView::default(),
            in_flight: InFlightView::default(),
            counts: CountsView::default(),
        }
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

/// Puts in what went to and came from a peer.
pub(in crate::node) fn put_traffic(view: &mut PeerView, traffic: &PeerTraffic) {
    view.in_flight = InFlightView { frames: traffic.frames_in_flight.value(), requests: traffic.requests_in_flight.value() };
    view.counts = CountsView {
        frames_sent: traffic.frames_sent.value(),
        frames_delivered: traffic.frames_delivered.value(),
        frames_received: traffic.frames_received.value(),
        requests_sent: traffic.requests_sent.value(),
        requests_failed: traffic.requests_failed.value(),
        requests_received: traffic.requests_received.value(),
        refused: traffic.refused.value(),
    };
}
