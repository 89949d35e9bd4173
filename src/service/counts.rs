//! What the services have done since the start, for whoever looks at a node.

use crate::base::count::{Counter, Counts, Label, labels};
use crate::transport::PortCounts;
use crate::wire::{ErrorCode, Service as Body};

/// The counters of one node's services.
#[derive(Debug, Default)]
pub struct ServiceCounts {
    /// What came to the port of other nodes.
    pub federation_port: PortCounts,
    /// What came to the port of the domain's clients.
    pub client_port: PortCounts,
    /// Requests of clients at the client port, by service and outcome.
    pub of_clients: RequestCounts,
    /// Requests that other domains' nodes proxied, likewise.
    pub of_peers: RequestCounts,
    /// Commits, external ones included, that were accepted and are on disk.
    pub commits_accepted: Counter,
    /// Application messages that were accepted and are on disk.
    pub messages_accepted: Counter,
}

labels! {
    /// What a request is for.
    pub enum Asked {
        /// The Delivery Service of this hub.
        Ds = "ds",
        /// The Queueing Service.
        Qs = "qs",
        /// KeyPackages.
        Keys = "keys",
        /// Enrolment and revocation.
        Accounts = "accounts",
        /// What domains publish.
        Info = "info",
        /// Another domain: it was carried there. Its outcome is `ok` when an answer came, whatever that says.
        Proxied = "proxied",
        /// Nobody knows: it could not be read.
        Unreadable = "unreadable",
    }
}

impl From<&Body> for Asked {
    fn from(body: &Body) -> Self {
        match body {
            Body::Ds(_) => Self::Ds,
            Body::Qs(_) => Self::Qs,
            Body::Keys(_) => Self::Keys,
            Body::Accounts(_) => Self::Accounts,
            Body::Info(_) => Self::Info,
        }
    }
}

/// How a request ended: well (`None`), or with a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome(pub Option<ErrorCode>);

const OUTCOMES: usize = ErrorCode::ALL.len() + 1;

const ALL_OUTCOMES: [Outcome; OUTCOMES] = {
    let mut all = [Outcome(None); OUTCOMES];
    let mut next = 1;
    while next < OUTCOMES {
        all[next] = Outcome(Some(ErrorCode::ALL[next - 1]));
        next += 1;
    }
    all
};

impl Label for Outcome {
    const ALL: &'static [Self] = &ALL_OUTCOMES;

    fn index(self) -> usize {
        Self::ALL.iter().position(|outcome| *outcome == self).unwrap_or_default()
    }

    fn text(self) -> &'static str {
        self.0.map_or("ok", ErrorCode::name)
    }
}

/// Requests by service and outcome.
#[derive(Debug)]
pub struct RequestCounts(Box<[Counts<Outcome>]>);

impl Default for RequestCounts {
    fn default() -> Self {
        Self(Asked::ALL.iter().map(|_| Counts::default()).collect())
    }
}

impl RequestCounts {
    /// One more.
    pub fn one(&self, asked: Asked, outcome: Outcome) {
        if let Some(counts) = self.0.get(asked.index()) {
            counts.one(outcome);
        }
    }

    /// How many of each pair; pairs that did not happen are left out, but for `ok`.
    pub fn values(&self) -> impl Iterator<Item = (Asked, Outcome, u64)> {
        let rows = Asked::ALL.iter().zip(&self.0);
        let all = rows.flat_map(|(asked, counts)| counts.values().map(|(outcome, count)| (*asked, outcome, count)));
        all.filter(|(_, outcome, count)| outcome.0.is_none() || *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_own_place() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(outcome.index(), index, "{}", outcome.text());
        }
        let counts = RequestCounts::default();
        counts.one(Asked::Keys, Outcome(Some(ErrorCode::RateLimited)));
        counts.one(Asked::Keys, Outcome(None));
        let seen: Vec<_> =
            counts.values().filter(|(.., count)| *count > 0).map(|(asked, outcome, _)| (asked.text(), outcome.text())).collect();
        assert_eq!(seen, [("keys", "ok"), ("keys", "rate_limited")]);
    }
}
