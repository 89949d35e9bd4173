//! What Prometheus reads: every metric of a node is named, typed and described in this file's table, and in `docs/metrics.md`, which a
//! test compares with it. The numbers are counted where the things happen, and gathered here when they are asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use super::admin::view::PeerView;
use super::admin::{Admin, STATES};
use super::reload::{ReloadCounts, ReloadOutcome};
use crate::base::count::{HistogramValues, Label as _};
use crate::base::limits::{METRICS_PEERS_MAX, QUEUE_TOTALS_INTERVAL};
use crate::base::{Context as _, Fault, UnixMillis};
use crate::service::counts::RequestCounts;
use crate::storage::queues::QueueTotals;
use crate::transport::PortCounts;

/// The format of [`Admin::scrape`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The label value for all peers that have no metrics of their own. No domain is called so: a domain has a dot.
const OTHER_PEERS: &str = "other";

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// One metric.
#[derive(Debug, PartialEq, Eq)]
struct Metric {
    /// As Prometheus shows it: with its unit, and `_total` or `_info` last.
    name: &'static str,
    kind: Kind,
    /// The unit that the name carries; empty for mere counts.
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
}

impl Metric {
    /// Its name without what the encoder appends.
    fn stem(&self) -> &'static str {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        let stem = self.name.strip_suffix(suffix).unwrap_or(self.name);
        if self.unit.is_empty() { stem } else { stem.strip_suffix(self.unit).map_or(stem, |stem| stem.trim_end_matches('_')) }
    }

    fn metric_type(&self) -> MetricType {
        match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
            Kind::Info => MetricType::Info,
        }
    }
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] in $unit:literal, $help:literal;)*) => {
        $(const $constant: Metric =
            Metric { name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], help: $help };)*

        /// All of them, in the order in which they are shown.
        const TABLE: &[&Metric] = &[$(&$constant),*];
    };
}

metrics! {
    BUILD = Info "mimi_build_info" ["version"] in "", "The program that runs";
    START_TIME = Gauge "mimi_start_time_seconds" [] in "seconds", "When the node started, since 1970";

    CERTIFICATE_LEFT = Gauge "mimi_certificate_left_days" [] in "days",
        "How long the node's TLS certificate is valid still; negative when it has expired";
    PEER_CERTIFICATE_LEFT = Gauge "mimi_peer_certificate_left_days" ["peer"] in "days",
        "How long the TLS certificate of a peer that is connected, in either direction, is valid still, in whole days";
    TLS_RELOADS = Counter "mimi_tls_reloads_total" ["part", "outcome"] in "",
        "Changed TLS files that were taken up or refused: the node's certificate and key (pair), or CAs and revocation lists (trust)";

    PEER_STATE = Gauge "mimi_peer_state" ["peer", "state"] in "", "1 for the state that a peer is in, 0 for the others";
    PEER_CONNECTED = Gauge "mimi_peer_connected" ["peer"] in "", "Whether a connection of ours to the peer is up";
    PEER_FAILURES = Gauge "mimi_peer_failures" ["peer"] in "", "Failures to reach the peer in a row, now";
    PEER_FRAMES_QUEUED = Gauge "mimi_peer_frames_queued" ["peer"] in "", "Lane frames that wait for the peer on disk";
    PEER_BYTES_QUEUED = Gauge "mimi_peer_queued_bytes" ["peer"] in "bytes", "Their octets";
    PEER_LANES = Gauge "mimi_peer_lanes" ["peer"] in "", "Lanes that have frames waiting for the peer";
    PEER_LANES_HELD = Gauge "mimi_peer_lanes_held" ["peer"] in "",
        "Those of them that were refused or got no answer, and are not tried again before their own time";
    PEER_OLDEST = Gauge "mimi_peer_oldest_undelivered_age_seconds" ["peer"] in "seconds",
        "The age of the oldest lane frame that waits for the peer; 0 when none does";
    PEER_FRAMES_IN_FLIGHT = Gauge "mimi_peer_frames_in_flight" ["peer"] in "", "Lane frames sent to the peer and not answered yet";
    PEER_REQUESTS_IN_FLIGHT = Gauge "mimi_peer_requests_in_flight" ["peer"] in "",
        "Other requests to the peer that are not answered yet";
    PEER_FRAMES_SENT = Counter "mimi_peer_frames_sent_total" ["peer"] in "", "Lane frames sent to the peer, repeats included";
    PEER_FRAMES_DELIVERED = Counter "mimi_peer_frames_delivered_total" ["peer"] in "", "Lane frames that the peer has taken";
    PEER_FRAMES_RECEIVED = Counter "mimi_peer_frames_received_total" ["peer"] in "",
        "Lane frames of the peer that this node has taken, repeats included";
    PEER_REQUESTS_SENT = Counter "mimi_peer_requests_sent_total" ["peer"] in "",
        "Other requests to the peer: proxied ones, claims, questions about its domain";
    PEER_REQUESTS_FAILED = Counter "mimi_peer_requests_failed_total" ["peer"] in "", "Those of them that got no answer";
    PEER_REQUESTS_RECEIVED = Counter "mimi_peer_requests_received_total" ["peer"] in "", "Other requests of the peer";
    PEER_REFUSED = Counter "mimi_peer_refused_total" ["peer"] in "", "Requests and lanes of the peer that this node has refused";
    PEER_OVER_LIMITS = Counter "mimi_peer_over_limits_total" ["peer"] in "", "Requests and streams of the peer that were over its limits";
    PEER_DEAD_LETTERS = Gauge "mimi_peer_dead_letters" ["peer"] in "",
        "Incarnations of lanes to the peer that ended before all their frames were delivered, as far as they are kept";
    DIALS = Counter "mimi_dials_total" ["outcome"] in "", "Attempts to reach peers, each over all addresses of one, by outcome";

    CONNECTIONS_OPEN = Gauge "mimi_connections_open" ["port"] in "", "Connections that others have made and that are open";
    CONNECTIONS_ACCEPTED = Counter "mimi_connections_accepted_total" ["port"] in "",
        "Connections that others have made, whose handshake was done and whose certificate, if any, was accepted";
    CONNECTIONS_REFUSED = Counter "mimi_connections_refused_total" ["port", "reason"] in "",
        "Connections that others have tried to make and that did not come to be, or ended with their hello";

    REQUESTS = Counter "mimi_requests_total" ["from", "service", "outcome"] in "",
        "Requests of clients, at this node's client port or through their own node, by error code or ok";
    COMMITS = Counter "mimi_commits_accepted_total" [] in "", "Commits, external ones included, that this hub has accepted";
    MESSAGES = Counter "mimi_messages_accepted_total" [] in "", "Application messages that this hub has accepted";
    GROUPS_HOT = Gauge "mimi_groups_hot" [] in "", "Groups that are held in memory";
    GROUPS_HOT_BYTES = Gauge "mimi_groups_hot_bytes" [] in "bytes", "About how much memory they take";

    QUEUES = Gauge "mimi_queues" [] in "", "Queues of this domain's clients, counted at most once a minute";
    QUEUE_ENTRIES = Gauge "mimi_queue_entries" [] in "", "Entries in all queues together, likewise";
    QUEUE_BYTES = Gauge "mimi_queue_bytes" [] in "bytes", "Octets of messages in all queues together, likewise";

    STORAGE_WRITES = Counter "mimi_storage_writes_total" ["transaction"] in "", "Writes that are on disk, by name";
    STORAGE_BATCH = Histogram "mimi_storage_batch_writes" [] in "writes", "How many writes each database transaction carried";
    STORAGE_COMMIT = Histogram "mimi_storage_commit_seconds" [] in "seconds",
        "How long each database transaction took, commit included";
    STORAGE_FAILURES = Counter "mimi_storage_failures_total" [] in "", "Database transactions that failed";

    DNS_QUESTIONS = Counter "mimi_dns_questions_total" ["outcome"] in "", "Questions to name servers, by what came of them";
    DNS_CACHED = Counter "mimi_dns_cached_answers_total" ["age"] in "",
        "Questions that the cache answered: fresh, or stale because the name servers failed";
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Count(u64),
    Number(f64),
    Histogram(HistogramValues),
    Info,
}

type Labels = Vec<(&'static str, String)>;

/// What one look has gathered, by the metrics' names.
#[derive(Debug, Default)]
struct Samples(BTreeMap<&'static str, Vec<(Labels, Value)>>);

impl Samples {
    fn put(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let labels = metric.labels.iter().copied().zip(labels.iter().map(|&label| label.to_owned())).collect();
        self.0.entry(metric.name).or_default().push((labels, value));
    }

    fn count(&mut self, metric: &'static Metric, labels: &[&str], value: u64) {
        self.put(metric, labels, Value::Count(value));
    }

    fn gauge(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.put(metric, labels, Value::Number(value));
    }
}

/// What was gathered last, for the registry's encoder.
#[derive(Clone, Debug, Default)]
struct Gathered(Arc<Mutex<Samples>>);

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for metric in TABLE {
            let unit = match metric.unit {
                "" => None,
                "seconds" => Some(Unit::Seconds),
                "bytes" => Some(Unit::Bytes),
                other => Some(Unit::Other(other.to_owned())),
            };
            let help = format!("{}.", metric.help);
            let mut family = encoder.encode_descriptor(metric.stem(), &help, unit.as_ref(), metric.metric_type())?;
            for (labels, value) in samples.0.get(metric.name).into_iter().flatten() {
                match value {
                    Value::Info => family.encode_info(labels)?,
                    // An empty set of labels would be written as `{}`.
                    value if labels.is_empty() => write(&mut family, value)?,
                    value => write(&mut family.encode_family(labels)?, value)?,
                }
            }
        }
        Ok(())
    }
}

fn write(encoder: &mut MetricEncoder<'_>, value: &Value) -> std::fmt::Result {
    match value {
        Value::Count(count) => encoder.encode_counter::<NoLabelSet, u64, f64>(count, None),
        Value::Number(number) => encoder.encode_gauge(number),
        Value::Histogram(values) => encoder.encode_histogram::<NoLabelSet>(values.sum, values.count, &values.buckets, None),
        // An info is nothing but its labels.
        Value::Info => Ok(()),
    }
}

/// A node's registry, and what is not counted anew at each look.
pub(super) struct Metrics {
    registry: Registry,
    gathered: Gathered,
    queues: tokio::sync::Mutex<Option<(Instant, QueueTotals)>>,
    reloads: Arc<ReloadCounts>,
}

impl Metrics {
    /// Nothing gathered yet.
    pub(super) fn new(reloads: Arc<ReloadCounts>) -> Self {
        let (mut registry, gathered) = (Registry::default(), Gathered::default());
        registry.register_collector(Box::new(gathered.clone()));
        Self { registry, gathered, queues: tokio::sync::Mutex::default(), reloads }
    }
}

impl Admin {
    /// All metrics as OpenMetrics text.
    pub(super) async fn scrape(&self) -> Result<String, Fault> {
        let mut samples = Samples::default();
        self.put_node(&mut samples).await?;
        put_peers(&mut samples, self.peers().await?);
        let mut text = String::new();
        {
            // Two looks at once: each is encoded whole, one of them perhaps twice.
            *self.metrics.gathered.0.lock().unwrap_or_else(PoisonError::into_inner) = samples;
            encode(&mut text, &self.metrics.registry).context("the metrics could not be written")?;
        }
        Ok(text)
    }

    async fn put_node(&self, samples: &mut Samples) -> Result<(), Fault> {
        let now = UnixMillis::now();
        samples.put(&BUILD, &[env!("CARGO_PKG_VERSION")], Value::Info);
        samples.gauge(&START_TIME, &[], self.calendar.began().0 as f64 / 1e3);

        let service = &self.service;
        let left = service.peers().tls().not_after().0 as f64 - now.0 as f64;
        samples.gauge(&CERTIFICATE_LEFT, &[], left / (24.0 * 60.0 * 60.0 * 1e3));
        for (part, counts) in [("pair", &self.metrics.reloads.pair), ("trust", &self.metrics.reloads.trust)] {
            counts
                .values()
                .for_each(|(outcome, count)| samples.count(&TLS_RELOADS, &[part, ReloadOutcome::text(outcome)], count));
        }
        let dials = &service.peers().traffic().dials;
        dials.values().for_each(|(outcome, count)| samples.count(&DIALS, &[outcome.text()], count));

        let counts = service.counts();
        put_port(samples, "federation", &counts.federation_port);
        put_port(samples, "client", &counts.client_port);
        put_requests(samples, "clients", &counts.of_clients);
        put_requests(samples, "peers", &counts.of_peers);
        samples.count(&COMMITS, &[], counts.commits_accepted.value());
        samples.count(&MESSAGES, &[], counts.messages_accepted.value());
        let (groups, octets) = service.hot_groups();
        samples.gauge(&GROUPS_HOT, &[], groups as f64);
        samples.gauge(&GROUPS_HOT_BYTES, &[], octets as f64);

        let queues = self.queue_totals().await?;
        samples.gauge(&QUEUES, &[], queues.queues as f64);
        samples.gauge(&QUEUE_ENTRIES, &[], queues.entries as f64);
        samples.gauge(&QUEUE_BYTES, &[], queues.octets as f64);

        let writes = service.storage().writes();
        writes.by_name().into_iter().for_each(|(name, count)| samples.count(&STORAGE_WRITES, &[name], count));
        samples.put(&STORAGE_BATCH, &[], Value::Histogram(writes.batch_writes.values()));
        samples.put(&STORAGE_COMMIT, &[], Value::Histogram(writes.commit_seconds.values()));
        samples.count(&STORAGE_FAILURES, &[], writes.failures.value());

        let lookups = service.peers().resolver().counts();
        lookups.asked.values().for_each(|(outcome, count)| samples.count(&DNS_QUESTIONS, &[outcome.text()], count));
        samples.count(&DNS_CACHED, &["fresh"], lookups.cached.value());
        samples.count(&DNS_CACHED, &["stale"], lookups.stale.value());
        Ok(())
    }

    async fn queue_totals(&self) -> Result<QueueTotals, Fault> {
        let mut known = self.metrics.queues.lock().await;
        if let Some((at, totals)) = *known
            && at.elapsed() < QUEUE_TOTALS_INTERVAL
        {
            return Ok(totals);
        }
        let totals = self.service.storage().queue_totals().await?;
        *known = Some((Instant::now(), totals));
        Ok(totals)
    }
}

fn put_port(samples: &mut Samples, port: &str, counts: &PortCounts) {
    samples.gauge(&CONNECTIONS_OPEN, &[port], counts.open.value() as f64);
    samples.count(&CONNECTIONS_ACCEPTED, &[port], counts.accepted.value());
    counts.turned.values().for_each(|(reason, count)| samples.count(&CONNECTIONS_REFUSED, &[port, reason.text()], count));
}

fn put_requests(samples: &mut Samples, from: &str, counts: &RequestCounts) {
    for (asked, outcome, count) in counts.values() {
        samples.count(&REQUESTS, &[from, asked.text(), outcome.text()], count);
    }
}

/// Each peer's metrics; those beyond [`METRICS_PEERS_MAX`], the least telling ones, as one.
fn put_peers(samples: &mut Samples, mut peers: Vec<PeerView>) {
    peers.sort_by_key(|peer| {
        let troubled = !matches!(peer.state.as_str(), "up" | "untried");
        (!peer.policy.configured, peer.queued.frames == 0, !troubled, peer.domain.clone())
    });
    let others = peers.split_off(peers.len().min(METRICS_PEERS_MAX));
    for peer in &peers {
        put_peer(samples, peer.domain.as_str(), std::slice::from_ref(peer));
    }
    if !others.is_empty() {
        put_peer(samples, OTHER_PEERS, &others);
    }
}

/// The metrics of `peers` together, as those of `name`.
fn put_peer(samples: &mut Samples, name: &str, peers: &[PeerView]) {
    for state in STATES {
        let there = peers.iter().filter(|peer| peer.state == state).count();
        samples.gauge(&PEER_STATE, &[name, state], there as f64);
    }
    if let Some(days) = peers.iter().filter_map(|peer| peer.certificate_days_left).min() {
        samples.gauge(&PEER_CERTIFICATE_LEFT, &[name], days as f64);
    }
    let sum = |of: fn(&PeerView) -> u64| peers.iter().map(of).sum::<u64>();
    let oldest = peers.iter().filter_map(|peer| peer.queued.oldest_age_seconds).max().unwrap_or(0);
    let gauges: [(&'static Metric, u64); 10] = [
        (&PEER_CONNECTED, sum(|peer| u64::from(peer.connected.is_some()))),
        (&PEER_FAILURES, sum(|peer| u64::from(peer.failures))),
        (&PEER_FRAMES_QUEUED, sum(|peer| peer.queued.frames)),
        (&PEER_BYTES_QUEUED, sum(|peer| peer.queued.bytes)),
        (&PEER_DEAD_LETTERS, sum(|peer| peer.dead_letters)),
        (&PEER_LANES, sum(|peer| peer.queued.lanes)),
        (&PEER_LANES_HELD, sum(|peer| peer.queued.lanes_held)),
        (&PEER_OLDEST, oldest),
        (&PEER_FRAMES_IN_FLIGHT, sum(|peer| peer.in_flight.frames)),
        (&PEER_REQUESTS_IN_FLIGHT, sum(|peer| peer.in_flight.requests)),
    ];
    gauges.into_iter().for_each(|(metric, value)| samples.gauge(metric, &[name], value as f64));
    let counters: [(&'static Metric, u64); 8] = [
        (&PEER_FRAMES_SENT, sum(|peer| peer.counts.frames_sent)),
        (&PEER_FRAMES_DELIVERED, sum(|peer| peer.counts.frames_delivered)),
        (&PEER_FRAMES_RECEIVED, sum(|peer| peer.counts.frames_received)),
        (&PEER_REQUESTS_SENT, sum(|peer| peer.counts.requests_sent)),
        (&PEER_REQUESTS_FAILED, sum(|peer| peer.counts.requests_failed)),
        (&PEER_REQUESTS_RECEIVED, sum(|peer| peer.counts.requests_received)),
        (&PEER_REFUSED, sum(|peer| peer.counts.refused)),
        (&PEER_OVER_LIMITS, sum(|peer| peer.counts.over_limits)),
    ];
    counters.into_iter().for_each(|(metric, value)| samples.count(metric, &[name], value));
}

#[cfg(test)]
mod tests;
