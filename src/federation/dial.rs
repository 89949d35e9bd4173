//! One dial sequence: find the peer's nodes, and try them in order until one has said `hello` (C2, C3, X7).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{Connection, Endpoint};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::error::{PeerError, Why};
use super::hello::{self, Hello};
use crate::base::{Domain, limits};
use crate::transport::{Resolver, Service};

/// What every dial sequence needs.
pub(super) struct Dialer {
    pub(super) endpoint: Endpoint,
    pub(super) config: quinn::ClientConfig,
    pub(super) resolver: Resolver,
    pub(super) hello: Arc<dyn Hello>,
}

impl Dialer {
    /// A connection to `peer` on which `hello` has been exchanged. Every address of every target is tried before this fails,
    /// each with [`limits::DIAL_ADDRESS_TIMEOUT`], as far as [`limits::DIAL_TIMEOUT`] reaches. While one is silent the next is
    /// tried beside it, for QUIC does not learn that nobody listens; the first to complete wins.
    pub(super) async fn dial(&self, peer: &Domain) -> Result<Connection, PeerError> {
        let deadline = Instant::now() + limits::DIAL_TIMEOUT;
        let targets = timeout_at(deadline, self.resolver.resolve(Service::Federation, peer))
            .await
            .map_err(|_| PeerError::not_sent(peer, Why::DnsTimedOut, "discovery took too long"))?
            .map_err(|error| PeerError::discovery(peer, &error))?;
        let mut waiting: VecDeque<(String, SocketAddr)> = targets
            .into_iter()
            .flat_map(|target| target.addresses.into_iter().map(move |address| (target.host.clone(), address)))
            .collect();

        let mut failures = Failures::default();
        let mut attempts = JoinSet::new();
        let mut next_start = Instant::now();
        loop {
            if (attempts.is_empty() || next_start <= Instant::now())
                && let Some((host, address)) = waiting.pop_front()
            {
                let attempt = attempt(self.endpoint.clone(), self.config.clone(), self.hello.clone(), peer.clone(), address);
                attempts.spawn(async move { (host, address, attempt.await) });
                next_start = Instant::now() + limits::DIAL_STAGGER;
            }
            tokio::select! {
                ended = attempts.join_next() => match ended {
                    Some(Ok((_, _, Ok(connection)))) => return Ok(connection),
                    Some(Ok((host, address, Err(error)))) => {
                        failures.add(&host, address, error);
                        next_start = Instant::now();
                    }
                    Some(Err(_)) => {}
                    None => break,
                },
                () = sleep_until(next_start), if !waiting.is_empty() => {}
                () = sleep_until(deadline) => {
                    failures.details.push("the others did not answer in time".to_owned());
                    break;
                }
            }
        }
        Err(failures.into_error(peer))
    }
}

async fn attempt(
    endpoint: Endpoint,
    config: quinn::ClientConfig,
    hello: Arc<dyn Hello>,
    peer: Domain,
    address: SocketAddr,
) -> Result<Connection, PeerError> {
    let connecting = endpoint
        .connect_with(config, address, peer.as_str())
        .map_err(|error| PeerError::not_sent(&peer, Why::Unreachable, error.to_string()))?;
    let whole = async {
        let connection = connecting.await.map_err(|error| PeerError::connection(&peer, &error, super::Sent::NotSent))?;
        hello::offer(&connection, &peer, &*hello).await?;
        Ok(connection)
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
}

impl Failures {
    fn add(&mut self, host: &str, address: SocketAddr, error: PeerError) {
        let host = host.trim_end_matches('.');
        self.details.push(format!("{host} at {address}: {}: {}", error.why, error.detail));
        // A node that answered and refused tells more than one that was silent.
        let rank = |why: &Why| match why {
            Why::Unreachable => 0,
            Why::TimedOut => 1,
            Why::Closed => 2,
            Why::Refused => 3,
            _ => 4,
        };
        if self.worst.as_ref().is_none_or(|worst| rank(&error.why) > rank(worst)) {
            self.worst = Some(error.why);
        }
    }

    fn into_error(self, peer: &Domain) -> PeerError {
        PeerError::not_sent(peer, self.worst.unwrap_or(Why::Unreachable), self.details.join("; "))
    }
}
