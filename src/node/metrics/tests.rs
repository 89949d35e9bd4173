use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::base::count::Histogram;
use crate::base::limits::Limits;
use crate::node::admin::view::{CountsView, InFlightView, PolicyView, QueuedView};

const DOCUMENTATION: &str = include_str!("../../../docs/metrics.md");

/// A row of the documentation: name, type, labels, what it is.
fn documented() -> Vec<[String; 4]> {
    let rows = DOCUMENTATION.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells.first()?.strip_prefix('`')?.strip_suffix('`')?;
        let [_, kind, labels, help] = cells.as_slice() else { return None };
        name.starts_with("mimi_").then(|| [name, kind, labels, help].map(str::to_owned))
    });
    rows.collect()
}

#[test]
fn the_documentation_has_each_metric_as_the_table_has_it() {
    let table = TABLE.iter().map(|metric| {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
        [metric.name.to_owned(), metric.metric_type().as_str().to_owned(), labels, metric.help.to_owned()]
    });
    let (table, documented): (Vec<_>, Vec<_>) = (table.collect(), documented());
    for row in &table {
        assert!(documented.contains(row), "docs/metrics.md lacks | `{}` | {} | {} | {} |", row[0], row[1], row[2], row[3]);
    }
    for row in &documented {
        assert!(table.contains(row), "docs/metrics.md has {row:?}, which is no metric");
    }
    assert_eq!(documented.len(), table.len(), "none twice");
}

#[test]
fn a_name_says_what_kind_it_is_and_in_which_unit() {
    let names: BTreeSet<&str> = TABLE.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), TABLE.len(), "none twice");
    for metric in TABLE {
        let suffix = match metric.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            _ => "",
        };
        let with_unit = if metric.unit.is_empty() { String::new() } else { format!("_{}", metric.unit) };
        assert_eq!(metric.name, format!("{}{with_unit}{suffix}", metric.stem()), "the encoder puts it together so");
        assert!(metric.name.starts_with("mimi_") && !metric.help.ends_with('.'), "{}", metric.name);
        for (word, unit) in [("second", "seconds"), ("byte", "bytes"), ("day", "days")] {
            assert_eq!(metric.name.contains(word), metric.unit == unit, "{}", metric.name);
        }
    }
}

fn encoded(samples: Samples) -> String {
    let metrics = Metrics::new(Arc::default());
    *metrics.gathered.0.lock().expect("not poisoned") = samples;
    let mut text = String::new();
    encode(&mut text, &metrics.registry).expect("text");
    text
}

fn peer(number: usize) -> PeerView {
    PeerView {
        domain: format!("n{number:04}.test").parse().expect("a domain"),
        state: "up".to_owned(),
        since: None,
        retry_at: None,
        failures: 0,
        last_error: None,
        connected: None,
        certificate_days_left: Some(i64::try_from(number).expect("small")),
        policy: PolicyView {
            denied: None,
            held: false,
            reason: None,
            configured: false,
            limits: Limits::default().per_peer(),
            said: None,
        },
        queued: QueuedView::default(),
        dead_letters: 0,
        in_flight: InFlightView::default(),
        counts: CountsView { frames_sent: 2, ..CountsView::default() },
    }
}

#[test]
fn every_metric_is_there_with_its_type_and_help_even_without_a_value() {
    let text = encoded(Samples::default());
    for metric in TABLE {
        let family = metric.name.strip_suffix("_total").or(metric.name.strip_suffix("_info")).unwrap_or(metric.name);
        assert!(text.contains(&format!("# HELP {family} {}.\n", metric.help)), "{}", metric.name);
        assert!(text.contains(&format!("# TYPE {family} {}\n", metric.metric_type().as_str())), "{}", metric.name);
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn values_are_written_as_prometheus_reads_them() {
    let mut samples = Samples::default();
    samples.count(&DIALS, &["refused"], 3);
    samples.gauge(&CERTIFICATE_LEFT, &[], -1.5);
    samples.put(&BUILD, &["1.2.3"], Value::Info);
    let histogram = Histogram::new(&[0.5, 1.0]);
    [100, 700, 5_000].into_iter().for_each(|ms| histogram.observe_time(Duration::from_millis(ms)));
    samples.put(&STORAGE_COMMIT, &[], Value::Histogram(histogram.values()));
    let text = encoded(samples);
    for line in [
        "mimi_dials_total{outcome=\"refused\"} 3",
        "mimi_certificate_left_days -1.5",
        "# UNIT mimi_certificate_left_days days",
        "mimi_build_info{version=\"1.2.3\"} 1",
        "mimi_storage_commit_seconds_bucket{le=\"0.5\"} 1",
        "mimi_storage_commit_seconds_bucket{le=\"1.0\"} 2",
        "mimi_storage_commit_seconds_bucket{le=\"+Inf\"} 3",
        "mimi_storage_commit_seconds_count 3",
        "mimi_storage_commit_seconds_sum 5.8",
    ] {
        assert!(text.lines().any(|there| there == line), "{line} is not in\n{text}");
    }
}

#[test]
fn peers_beyond_the_limit_are_one_and_those_in_trouble_are_not_among_them() {
    let mut peers: Vec<PeerView> = (0..METRICS_PEERS_MAX + 10).map(peer).collect();
    let last = peers.len() - 1;
    peers[last].state = "backing_off".to_owned();
    peers[last - 1].queued = QueuedView { frames: 7, oldest_age_seconds: Some(60), ..QueuedView::default() };
    peers[last - 2].policy.configured = true;
    let mut samples = Samples::default();
    put_peers(&mut samples, peers);
    let text = encoded(samples);
    let values = |metric: &Metric| text.lines().filter(|line| line.starts_with(&format!("{}{{", metric.name))).count();
    assert_eq!(values(&PEER_FRAMES_SENT), METRICS_PEERS_MAX + 1);
    assert_eq!(values(&PEER_STATE), (METRICS_PEERS_MAX + 1) * STATES.len());
    for number in [last, last - 1, last - 2] {
        assert!(text.contains(&format!("mimi_peer_connected{{peer=\"n{number:04}.test\"}}")), "{number}");
    }
    assert!(text.contains("mimi_peer_state{peer=\"other\",state=\"up\"} 10"), "how many there are");
    assert!(text.contains("mimi_peer_frames_sent_total{peer=\"other\"} 20"));
    // The first of those that are left out, by name.
    assert!(
        text.contains(&format!("mimi_peer_certificate_left_days{{peer=\"other\"}} {}", METRICS_PEERS_MAX - 3)),
        "the nearest end"
    );
}
