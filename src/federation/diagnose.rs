//! What stands between this node and another domain's (X10): every step of connecting to it, looked at one by one, and back.
//!
//! | file | is |
//! |---|---|
//! | [`findings`] | what was found, with stable names in JSON |
//! | [`address`] | one address: policy, UDP, TLS, `hello` |
//! | [`back`] | the peer's own report, asked for with `probe_back` |
//! | [`checks`] | what to make of it all: verdicts, sentences, one trouble (pure) |
//!
//! A diagnosis has connections of its own and asks DNS anew: it neither uses nor changes what the pool, the gate and the cache
//! have, and it works while the peer is backed off from or held. It dials by the same rules as a lane: resolver, address policy,
//! budget, trust. To a peer that is denied nothing is sent.

mod address;
mod back;
pub mod checks;
pub mod findings;

use quinn::Connection;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::policy::Closure;
use super::pool::PeerPool;
use crate::base::{Domain, UnixMillis, limits};
use crate::identity::tls::days_left;
use crate::transport::{CloseCode, DiscoveryError, Examination, Service};
use crate::wire::probe::{Standing, Trouble};
use address::{Look, rank};
pub use checks::{Check, Verdict};
pub use findings::Findings;
use findings::{DnsFinding, HereFinding, OwnCertificateFinding, RecordFinding};

/// How far a diagnosis goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// To the peer and back: a running node's.
    BothWays,
    /// To the peer only: without a node that it could come back to.
    Outward,
    /// To the peer only, because it has asked: no more than a lane would do.
    OnBehalf,
}

/// What was found, and what it means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The first trouble in the order of the checks; `None`: all is well.
    pub trouble: Option<Trouble>,
    /// What `mimi-node doctor` ends with: 0 or the trouble's number.
    pub exit_code: u8,
    /// One for each line of the table.
    pub checks: Vec<Check>,
    /// What they are made from.
    #[serde(flatten)]
    pub findings: Findings,
}

impl Diagnosis {
    /// Draws the conclusions.
    pub fn of(findings: Findings) -> Self {
        let checks = checks::checks(&findings);
        let trouble = checks.iter().filter(|check| check.verdict == Verdict::Fail).find_map(|check| check.trouble);
        Self { trouble, exit_code: trouble.map_or(0, |trouble| trouble as u8), checks, findings }
    }
}

impl PeerPool {
    /// What an operator of this node has decided about `peer`.
    pub fn standing(&self, peer: &Domain) -> Standing {
        match self.policies().of(peer).closure() {
            Some(Closure::Held) => Standing::Held,
            Some(Closure::Denied(_)) => Standing::Denied,
            None => Standing::Allowed,
        }
    }

    /// Looks at everything between this node and `peer`. Never fails: what fails is what it tells.
    pub async fn diagnose(&self, peer: &Domain, depth: Depth) -> Diagnosis {
        let now = UnixMillis::now();
        let not_after = self.tls().not_after();
        let mut findings = Findings {
            domain: peer.clone(),
            own: self.own().clone(),
            depth,
            at_ms: now.0,
            here: self.here(peer),
            own_certificate: OwnCertificateFinding { not_after_ms: not_after.0, days_left: days_left(not_after, now) },
            dns: None,
            addresses: Vec::new(),
            back: None,
        };
        if findings.here.standing == Standing::Denied || peer == self.own() {
            return Diagnosis::of(findings);
        }
        let deadline = Instant::now() + limits::DIAL_TIMEOUT;
        let examined = timeout_at(deadline, self.dialer().resolver.examine(Service::Federation, peer)).await;
        let dns = dns_finding(peer, examined.ok());
        let looks = self.look_everywhere(peer, &dns, depth).await;
        findings.dns = Some(dns);
        let (addresses, connections): (Vec<_>, Vec<_>) = looks.into_iter().map(|look| (look.finding, look.connection)).unzip();
        findings.addresses = addresses;
        let mut connections = connections.into_iter().flatten();
        if depth == Depth::BothWays
            && let Some(connection) = connections.next()
        {
            findings.back = Some(back::ask(&connection).await);
            good_bye(&connection);
        }
        connections.for_each(|connection| good_bye(&connection));
        Diagnosis::of(findings)
    }

    fn here(&self, peer: &Domain) -> HereFinding {
        let status = self.status(peer);
        let last = status.as_ref().and_then(|status| status.gate.last_failure.clone());
        let policy = self.policies().of(peer);
        HereFinding {
            standing: self.standing(peer),
            policy: policy.closure().map(|_| policy.closure_text()),
            state: status.as_ref().map_or_else(|| "up".to_owned(), |status| status.gate.state.to_string()),
            last_failure: last.map(|(why, detail)| if detail.is_empty() { why.to_string() } else { format!("{why}: {detail}") }),
            connected: status.and_then(|status| status.connected),
        }
    }

    /// Looks at all addresses at once, each in its own time; in the order of DNS.
    async fn look_everywhere(&self, peer: &Domain, dns: &DnsFinding, depth: Depth) -> Vec<Look> {
        let mut looks = JoinSet::new();
        let mut seen = Vec::new();
        for record in &dns.records {
            for address in record.addresses.iter().copied() {
                if seen.contains(&address) {
                    continue;
                }
                let (dialer, tls) = (self.dialer().clone(), self.tls().clone());
                let (peer, host, number) = (peer.clone(), record.target.clone(), seen.len());
                seen.push(address);
                looks.spawn(async move { (number, address::look(&dialer, &tls, &peer, &host, address, depth).await) });
            }
        }
        let mut found: Vec<(usize, Look)> = Vec::new();
        while let Some(ended) = looks.join_next().await {
            found.extend(ended.ok());
        }
        found.sort_by_key(|(number, _)| *number);
        found.into_iter().map(|(_, look)| look).collect()
    }
}

fn good_bye(connection: &Connection) {
    CloseCode::Done.close(connection, "a diagnosis has ended");
}

/// The trouble that a failed discovery is.
fn dns_trouble(failure: &DiscoveryError) -> Trouble {
    match failure {
        DiscoveryError::NoSuchDomain { .. } => Trouble::NoSuchDomain,
        DiscoveryError::NoRecords { .. } => Trouble::NoRecords,
        DiscoveryError::RefusesFederation { .. } => Trouble::RefusesFederation,
        DiscoveryError::ServerFailure { .. } => Trouble::DnsFailure,
        DiscoveryError::TimedOut { .. } => Trouble::DnsTimedOut,
    }
}

fn dns_finding(peer: &Domain, examined: Option<Examination>) -> DnsFinding {
    let Some(examined) = examined else {
        let name = Service::Federation.srv_name(peer);
        let detail = format!("looking up {name} took too long");
        return DnsFinding {
            name: Some(name),
            trouble: Some(Trouble::DnsTimedOut),
            detail: Some(detail),
            ttl_seconds: None,
            records: Vec::new(),
            left_out: 0,
        };
    };
    let records = examined.records.into_iter().map(|record| RecordFinding {
        priority: record.priority,
        weight: record.weight,
        port: record.port,
        target: record.target.trim_end_matches('.').to_owned(),
        trouble: record.host.failure.as_ref().map(dns_trouble),
        detail: record.host.failure.map(|failure| failure.to_string()),
        ttl_seconds: record.host.ttl.map(|ttl| ttl.as_secs()),
        addresses: record.host.addresses,
    });
    DnsFinding {
        name: examined.name,
        trouble: examined.failure.as_ref().map(dns_trouble),
        detail: examined.failure.map(|failure| failure.to_string()),
        ttl_seconds: examined.ttl.map(|ttl| ttl.as_secs()),
        records: records.collect(),
        left_out: examined.left_out,
    }
}
