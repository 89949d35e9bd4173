//! An independent judge of a run: reads what the clients logged ([`read_log`]) and says what went wrong ([`check`]).
//!
//! | rule | every run must keep |
//! |---|---|
//! | 1 | an accepted application message or commit reaches, or waits for, every member but its sender |
//! | 2 | no client is given anything twice, and nothing again that it acknowledged |
//! | 3 | all queues of a group, and the epochs of acceptance, agree on one order |
//! | 4 | one commit makes an epoch; all its members derive the same secrets and see the same members |
//! | 5 | sequence numbers of a queue have no gaps and name one entry each |
//! | 6 | nothing arrives that nobody sent, and it arrives as it was sent |
//! | 7 | whoever is given an application message can read it |
//! | 8 | nothing of a group reaches a client after its removal |
//!
//! What does *not* count as a violation: a message that was refused, or whose sender never learnt its fate, and that reached nobody;
//! an identical external proposal issued twice; an entry that is both processed and still in the queue.

mod facts;
mod finding;
mod log;
mod order;
mod rules;
#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

pub use finding::{Finding, Place};
pub use log::{Event, Kind, Line, LogError, read_log};

/// What [`check`] found.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether there are no findings.
    pub ok: bool,
    /// Every violation, by rule.
    pub findings: Vec<Finding>,
    /// The run in numbers.
    pub figures: Figures,
}

/// A run in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Domains that the clients belong to.
    pub domains: usize,
    /// Clients that logged anything.
    pub clients: usize,
    /// Groups.
    pub groups: usize,
    /// Application messages that a hub accepted.
    pub sent: usize,
    /// Pairs of an accepted application message and a member that must get it.
    pub expected: usize,
    /// Pairs of an application message and a client, other than its sender, that received it.
    pub delivered: usize,
    /// Expected pairs that were not received but wait in a queue.
    pub still_queued: usize,
    /// Expected pairs that were neither received nor wait.
    pub lost: usize,
    /// Entries given to a client again.
    pub duplicated: usize,
    /// Queues that disagree with others about the order.
    pub out_of_order: usize,
    /// Epochs that commits made, over all groups.
    pub epochs: usize,
    /// Median time from sending to receipt, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of the same.
    pub p99_ms: f64,
}

/// Judges a run. Lines of one client must stand in the order in which it wrote them; how clients are mixed does not matter.
pub fn check(lines: &[Line]) -> Verdict {
    let facts = facts::Facts::of(lines);
    let mut figures = rules::figures(&facts);
    let mut findings = Vec::new();
    rules::delivery(&facts, &mut findings, &mut figures);
    rules::duplicates(&facts, &mut findings);
    order::one_order(&facts, &mut findings);
    rules::epochs(&facts, &mut findings);
    rules::sequences(&facts, &mut findings);
    rules::provenance(&facts, &mut findings);
    rules::readable(&facts, &mut findings);
    rules::removal(&facts, &mut findings);
    findings.sort_by(|a, b| a.rule().cmp(&b.rule()).then_with(|| a.cmp(b)));
    figures.duplicated = findings.iter().filter(|finding| finding.rule() == 2).count();
    figures.out_of_order = findings.iter().filter(|finding| finding.rule() == 3).count();
    Verdict { ok: findings.is_empty(), findings, figures }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A broken run can break one rule a hundred thousand times; a person needs a few of each kind.
        const SHOWN_PER_KIND_MAX: usize = 10;
        let figures = &self.figures;
        writeln!(f, "{}", if self.ok { "ok" } else { "NOT ok" })?;
        writeln!(
            f,
            "{} domains, {} clients, {} groups, {} epochs",
            figures.domains, figures.clients, figures.groups, figures.epochs
        )?;
        writeln!(
            f,
            "{} sent, {} delivered of {} expected, {} still queued, {} lost, {} duplicated, {} out of order",
            figures.sent,
            figures.delivered,
            figures.expected,
            figures.still_queued,
            figures.lost,
            figures.duplicated,
            figures.out_of_order
        )?;
        writeln!(f, "latency p50 {:.1} ms, p99 {:.1} ms", figures.p50_ms, figures.p99_ms)?;
        let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
        for finding in &self.findings {
            let count = shown.entry(finding.name()).or_default();
            *count += 1;
            if *count <= SHOWN_PER_KIND_MAX {
                writeln!(f, "  {finding}")?;
            }
        }
        for (name, count) in shown.into_iter().filter(|(_, count)| *count > SHOWN_PER_KIND_MAX) {
            writeln!(f, "  … and {} more {name}", count - SHOWN_PER_KIND_MAX)?;
        }
        Ok(())
    }
}
