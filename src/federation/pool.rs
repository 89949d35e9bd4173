//! [`PeerPool`]: one connection per peer, shared by all requests and lanes to it (C2, C4).
//!
//! A peer's link is down, being dialled (once, by a task of the pool; everyone else waits for its result) or up. Only the gate
//! decides whether a link that is down is dialled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use quinn::Endpoint;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::backoff::Backoff;
use super::dial::{DialSettings, Dialer};
use super::error::{self, PeerError, Why};
use super::gate::{ClosedUntil, Gate, GateStatus, Verdict};
use super::hello::{Greeting, Hello};
use super::live::{Live, PeerStream, exchange, lost_unused, open};
use super::policy::{Closure, EffectivePolicy, PeerPolicies};
use super::traffic::{Dialled, Traffic};
use crate::base::count::Held;
use crate::base::{Domain, Fault, limits};
use crate::transport::{AddressPolicy, CloseCode, NodeTls, Resolver, Service};

/// The connections of this node to its peers. Clones share them; the last one dropped ends them.
#[derive(Clone)]
pub struct PeerPool {
    shared: Arc<Shared>,
}

struct Shared {
    own: Domain,
    dialer: Arc<Dialer>,
    tls: NodeTls,
    backoff: Backoff,
    /// Where every peer may be dialled.
    addresses: AddressPolicy,
    /// Stored before it is followed, so that whatever is made meanwhile is made by the new ones.
    policies: ArcSwap<PeerPolicies>,
    slots: Arc<Slots>,
    peers: Mutex<HashMap<Domain, Arc<Peer>>>,
    /// The dial sequences under way; they end with the pool.
    dials: Mutex<JoinSet<()>>,
    traffic: Traffic,
}

/// Dial sequences that may be under way, see [`limits::DIALS_AT_ONCE_MAX`].
struct Slots {
    known: Semaphore,
    others: Semaphore,
}

/// One peer: its link, and the gate that decides when to dial.
struct Peer {
    domain: Domain,
    state: Mutex<State>,
    /// Told when the gate may have opened.
    changed: Notify,
}

struct State {
    link: Link,
    gate: Gate,
    last_used: Instant,
    /// Whether it was reached, or has reached us, since it is remembered.
    is_known: bool,
    /// Counts flushes: what was being dialled at the last one serves those who wait until it is there, and nobody after them.
    flushes: u64,
}

enum Link {
    Down,
    Dialling(DialOutcome),
    Up(Arc<Live>),
}

/// Where the outcome of a dial sequence will be.
type DialOutcome = watch::Receiver<Option<Result<Arc<Live>, PeerError>>>;

/// What is known of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub domain: Domain,
    /// Whether it may be tried, and what failed.
    pub gate: GateStatus,
    /// The address that our connection to it leads to, if it is up.
    pub connected: Option<std::net::SocketAddr>,
    /// What it said on that connection.
    pub greeting: Option<Greeting>,
}

/// A lock whose holder panicked is still good: every change under it is complete at any point.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PeerPool {
    /// A pool that dials from `endpoint` as `own`, finds peers with `resolver` and greets them with `hello`. Connects to nobody
    /// yet. Must be used within a tokio runtime.
    pub fn new(
        endpoint: Endpoint,
        tls: &NodeTls,
        resolver: Resolver,
        own: Domain,
        hello: Arc<dyn Hello>,
        settings: DialSettings,
    ) -> Result<Self, Fault> {
        let DialSettings { addresses, policies, backoff } = settings;
        let (config, dialled) = (tls.federation_client()?, ArcSwap::from_pointee(addresses.clone()));
        let dialer = Arc::new(Dialer { endpoint, config, resolver, hello, addresses: dialled, budget: Mutex::default() });
        let (tls, peers, dials, traffic) = (tls.clone(), Mutex::default(), Mutex::default(), Traffic::default());
        let slots = || Semaphore::new(limits::DIALS_AT_ONCE_MAX);
        let slots = Arc::new(Slots { known: slots(), others: slots() });
        let policies = ArcSwap::from_pointee(policies);
        let shared = Shared { own, dialer, tls, backoff, addresses, policies, slots, peers, dials, traffic };
        let pool = Self { shared: Arc::new(shared) };
        pool.follow_policies();
        Ok(pool)
    }

    /// Who may federate, and what is different for single peers.
    pub fn policies(&self) -> Arc<PeerPolicies> {
        self.shared.policies.load_full()
    }

    /// From now on these policies hold, for what is up and under way as well: connections of denied peers close, in both
    /// directions; those to held ones, and from or to those whose certificates are no longer accepted, too; peers that are no
    /// longer closed may be tried at once; those whose addresses have changed are dialled anew when they are next needed.
    pub fn set_policies(&self, policies: PeerPolicies) {
        let before = self.shared.policies.swap(Arc::new(policies));
        self.follow_policies();
        let after = self.policies();
        let known: Vec<_> = lock(&self.shared.peers).keys().cloned().collect();
        for domain in known.iter().filter(|domain| before.addresses(domain) != after.addresses(domain)) {
            self.replace(domain);
        }
    }

    fn follow_policies(&self) {
        let policies = self.policies();
        let written = policies.named().into_iter().map(|peer| (peer.clone(), policies.addresses(peer)));
        self.shared.dialer.resolver.set_static(Service::Federation, written.filter(|(_, addresses)| !addresses.is_empty()));
        self.shared.dialer.addresses.store(Arc::new(policies.address_policy(&self.shared.addresses)));
        for cut in self.shared.tls.set_peer_trust(policies.trust()) {
            tracing::warn!(peer = %cut.domain, "a connection is closed: {}", cut.reason);
        }
        let known: Vec<_> = lock(&self.shared.peers).values().cloned().collect();
        for peer in known {
            lock(&peer.state).follow(&policies.of(&peer.domain));
            peer.changed.notify_waiters();
        }
        for domain in self.shared.tls.connected().iter().filter(|domain| policies.denied(domain).is_some()) {
            let reason = format!("the node of {} does not federate with {domain} any more", self.shared.own);
            self.shared.tls.cut_peer(domain, CloseCode::Denied, &reason);
        }
    }

    /// The TLS identity that peers are dialled with, and what judges theirs.
    pub fn tls(&self) -> &NodeTls {
        &self.shared.tls
    }

    /// What dials.
    pub(super) fn dialer(&self) -> &Arc<Dialer> {
        &self.shared.dialer
    }

    /// The domain that dials.
    pub(super) fn own(&self) -> &Domain {
        &self.shared.own
    }

    /// What went to and came from each peer.
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// The resolver that finds peers.
    pub fn resolver(&self) -> &Resolver {
        &self.shared.dialer.resolver
    }

    /// Sends one request frame to `domain` on a stream of its own and returns the answer, at most `response_limit` octets,
    /// before `deadline`. Connects first where needed and allowed; while the peer backs off it fails at once.
    ///
    /// A request that times out closes the connection, unless another was answered on it meanwhile, so that the next one
    /// redials. [`PeerError::sent`] tells whether it can have had an effect.
    pub async fn request(
        &self,
        domain: &Domain,
        frame: &[u8],
        response_limit: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, PeerError> {
        let traffic = self.shared.traffic.of(domain);
        traffic.requests_sent.one();
        let _in_flight = Held::new(traffic.requests_in_flight.clone(), 1);
        let outcome = self.try_request(domain, frame, response_limit, deadline).await;
        if outcome.is_err() {
            traffic.requests_failed.one();
        }
        outcome
    }

    async fn try_request(
        &self,
        domain: &Domain,
        frame: &[u8],
        response_limit: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, PeerError> {
        let peer = self.peer(domain)?;
        let mut may_redial = true;
        loop {
            let (live, cached) = self.live(&peer, deadline).await?;
            match exchange(domain, &live, frame, response_limit, deadline).await {
                Err(error) if may_redial && cached && lost_unused(&live, &error) => may_redial = false,
                outcome => return outcome,
            }
        }
    }

    /// Opens a stream to `domain` on which several frames are written and answered in order, as a lane's are. The peer notices
    /// it with the first frame.
    pub async fn open_stream(&self, domain: &Domain, deadline: Instant) -> Result<PeerStream, PeerError> {
        let peer = self.peer(domain)?;
        let mut may_redial = true;
        loop {
            let (live, cached) = self.live(&peer, deadline).await?;
            match open(domain, &live, deadline).await {
                Err(error) if may_redial && cached && lost_unused(&live, &error) => may_redial = false,
                Err(error) => return Err(error),
                Ok(streams) => return Ok(PeerStream::new(domain, live, streams)),
            }
        }
    }

    /// `domain` has connected to us and shown its certificate: if we are backing off from it, one attempt is made at once, whether
    /// or not anything waits for it. If it fails, all is as it was.
    pub fn inbound_contact(&self, domain: &Domain) {
        let Some(peer) = lock(&self.shared.peers).get(domain).cloned() else { return };
        let mut state = lock(&peer.state);
        state.is_known = true;
        if matches!(state.link, Link::Down) && state.gate.inbound_contact(now()) {
            self.spawn_dial(&peer, &mut state);
            drop(state);
            // Whoever waits for the gate now waits for the probe.
            peer.changed.notify_waiters();
        }
    }

    /// Allows one attempt to reach `domain` at once, whatever its back-off, and tells those who wait for it. Whether it was backed
    /// off from.
    pub fn wake(&self, domain: &Domain) -> bool {
        let Some(peer) = lock(&self.shared.peers).get(domain).cloned() else { return false };
        let woken = lock(&peer.state).gate.wake(now());
        peer.changed.notify_waiters();
        woken
    }

    /// Forgets what DNS said, of `domain` or of everyone, and allows one attempt at once where a peer is backed off from. Nothing
    /// more is sent on a connection that is up, so that a peer that has moved is found: whoever is next dials. Requests on it are
    /// still answered, and a lane's stream tells its writer to open another one.
    pub fn flush(&self, domain: Option<&Domain>) {
        match domain {
            Some(domain) => {
                self.shared.dialer.resolver.flush_domain(domain);
                self.replace(domain);
            }
            None => {
                self.shared.dialer.resolver.flush();
                let known: Vec<_> = lock(&self.shared.peers).keys().cloned().collect();
                known.iter().for_each(|domain| self.replace(domain));
            }
        }
    }

    /// The next one to need `domain` dials.
    fn replace(&self, domain: &Domain) {
        let Some(peer) = lock(&self.shared.peers).get(domain).cloned() else { return };
        let replaced = lock(&peer.state).replace();
        if let Some(live) = replaced {
            let live = Arc::downgrade(&live);
            // For whoever keeps a stream and does not use it.
            lock(&self.shared.dials).spawn(async move {
                sleep(limits::REPLACED_CONNECTION_KEPT).await;
                if let Some(live) = live.upgrade() {
                    CloseCode::Superseded.close(&live.connection, CloseCode::Superseded.text());
                }
            });
        }
        self.wake(domain);
    }

    /// What is known of `domain`; `None` when nobody has asked for it lately.
    pub fn status(&self, domain: &Domain) -> Option<PeerStatus> {
        let peer = lock(&self.shared.peers).get(domain).cloned();
        peer.map(|peer| peer.status())
    }

    /// What is known of every peer that was asked for lately, in the order of their names.
    pub fn statuses(&self) -> Vec<PeerStatus> {
        let peers: Vec<_> = lock(&self.shared.peers).values().cloned().collect();
        let mut statuses: Vec<_> = peers.iter().map(|peer| peer.status()).collect();
        statuses.sort_by(|a, b| a.domain.cmp(&b.domain));
        statuses
    }

    /// Waits until `domain` may be tried: at once unless it backs off, is held or denied. Cancel-safe.
    pub async fn wait_until_ready(&self, domain: &Domain) {
        let Ok(peer) = self.peer(domain) else { return };
        loop {
            let mut changed = std::pin::pin!(peer.changed.notified());
            // Registered before looking, so that no change in between is missed.
            changed.as_mut().enable();
            let Some(until) = lock(&peer.state).gate.closed_until(now()) else { return };
            match until {
                ClosedUntil::Told => changed.await,
                ClosedUntil::Time(until) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(until.into()) => {}
                },
            }
        }
    }

    /// Whether a connection to `domain` is up now.
    pub fn is_up(&self, domain: &Domain) -> bool {
        let peer = lock(&self.shared.peers).get(domain).cloned();
        peer.is_some_and(|peer| lock(&peer.state).live().is_some())
    }

    /// Closes the connection to `domain`, if any, as when the policy for it has changed. It may be dialled again.
    pub fn close(&self, domain: &Domain, code: CloseCode) {
        if let Some(peer) = lock(&self.shared.peers).get(domain).cloned() {
            lock(&peer.state).close(code);
        }
    }

    /// Closes every connection and abandons every dial, as when the node stops or its certificate has changed. A later request
    /// dials again.
    pub fn close_all(&self, code: CloseCode) {
        lock(&self.shared.dials).abort_all();
        let peers: Vec<_> = lock(&self.shared.peers).values().cloned().collect();
        for peer in peers {
            lock(&peer.state).close(code);
        }
    }

    /// The peer's entry, made when there is none. Over [`limits::PEERS_MAX`] the one used longest ago goes, as long as nobody
    /// waits for it.
    fn peer(&self, domain: &Domain) -> Result<Arc<Peer>, PeerError> {
        if *domain == self.shared.own {
            return Err(PeerError::not_sent(domain, Why::Local, "this is the node's own domain"));
        }
        let mut peers = lock(&self.shared.peers);
        if let Some(peer) = peers.get(domain) {
            return Ok(peer.clone());
        }
        if peers.len() >= limits::PEERS_MAX {
            // What an operator has closed may be forgotten, too: the policies close it again.
            let unused = peers.values().filter(|peer| Arc::strong_count(peer) == 1);
            let oldest = unused.min_by_key(|peer| {
                let mut state = lock(&peer.state);
                (state.live().is_some(), state.last_used)
            });
            let Some(oldest) = oldest.map(|peer| peer.domain.clone()) else {
                return Err(PeerError::not_sent(domain, Why::Local, "too many peers are in use"));
            };
            peers.remove(&oldest);
        }
        let gate = Gate::new(domain.clone(), self.shared.backoff, rand::random(), now());
        let mut state = State { link: Link::Down, gate, last_used: Instant::now(), is_known: false, flushes: 0 };
        state.follow(&self.shared.policies.load().of(domain));
        let peer = Arc::new(Peer { domain: domain.clone(), state: Mutex::new(state), changed: Notify::new() });
        peers.insert(domain.clone(), peer.clone());
        Ok(peer)
    }

    /// The peer's connection, dialled if need be; and whether it was there before.
    async fn live(&self, peer: &Arc<Peer>, deadline: Instant) -> Result<(Arc<Live>, bool), PeerError> {
        let mut dial = {
            let mut state = lock(&peer.state);
            state.last_used = Instant::now();
            if let Some(live) = state.live() {
                return Ok((live, true));
            }
            match &state.link {
                Link::Dialling(dial) => dial.clone(),
                _ => match state.gate.may_try(now()) {
                    Verdict::Try => self.spawn_dial(peer, &mut state),
                    Verdict::Wait(until, cause) => {
                        let detail = "a try before its back-off ends would only add load";
                        let why = Why::BackingOff { until, cause: Box::new(cause) };
                        return Err(PeerError::not_sent(&peer.domain, why, detail));
                    }
                    Verdict::Closed(why) => return Err(PeerError::not_sent(&peer.domain, why, "")),
                },
            }
        };
        let outcome = match timeout_at(deadline, dial.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone(),
            Ok(Err(_)) => None,
            Err(_) => return Err(PeerError::not_sent(&peer.domain, Why::TimedOut, "connecting took too long")),
        };
        let abandoned = || Err(PeerError::not_sent(&peer.domain, Why::Closed, "the attempt to connect was abandoned"));
        outcome.unwrap_or_else(abandoned).map(|live| (live, false))
    }

    /// Dials in a task of the pool, so that a caller who gives up takes no one else's connection away. Returns where its outcome
    /// will be.
    fn spawn_dial(&self, peer: &Arc<Peer>, state: &mut State) -> DialOutcome {
        let (result, outcome) = watch::channel(None);
        state.link = Link::Dialling(outcome.clone());
        let (is_known, flushes) = (state.is_known, state.flushes);
        let (dialer, tls, slots) = (self.shared.dialer.clone(), self.shared.tls.clone(), self.shared.slots.clone());
        let peer = peer.clone();
        // The pool's dials end with it, so that they must not keep it.
        let shared = Arc::downgrade(&self.shared);
        let mut dials = lock(&self.shared.dials);
        while dials.try_join_next().is_some() {}
        dials.spawn(async move {
            let abandoned = Abandoned(&peer);
            // Never closed; whoever waits for the outcome has a deadline of its own.
            let _slot = if is_known { &slots.known } else { &slots.others }.acquire().await;
            let outcome = dialer.dial(&peer.domain).await;
            let outcome = outcome.and_then(|(connection, greeting)| {
                // Judged once more, by what is trusted now, and watched from now on.
                match tls.admit(&peer.domain, &connection) {
                    Ok(session) => Ok((connection, greeting, session)),
                    Err((code, reason)) => {
                        code.close(&connection, &reason);
                        Err(PeerError::not_sent(&peer.domain, Why::Certificate, reason))
                    }
                }
            });
            let outcome = {
                let mut state = lock(&peer.state);
                let closed = state.gate.closed();
                let outcome = match (outcome, closed) {
                    (Ok((connection, greeting, session)), None) => {
                        let (address, version) = (connection.remote_address(), greeting.version);
                        tracing::info!(peer = %peer.domain, %address, %version, "peer connected");
                        state.gate.succeeded(now());
                        state.is_known = true;
                        Ok(Arc::new(Live::new(connection, greeting, session, state.flushes != flushes)))
                    }
                    // An operator was faster.
                    (Ok((connection, ..)), Some(why)) => {
                        CloseCode::Done.close(&connection, "not wanted any more");
                        Err(PeerError::not_sent(&peer.domain, why, ""))
                    }
                    (Err(error), _) => {
                        state.gate.failed(now(), error.why.clone(), &error.detail);
                        Err(error)
                    }
                };
                state.link = match &outcome {
                    Ok(live) if !live.is_replaced() => Link::Up(live.clone()),
                    _ => Link::Down,
                };
                outcome
            };
            std::mem::forget(abandoned);
            if let Some(shared) = shared.upgrade() {
                shared.traffic.dials.one(outcome.as_ref().map_or_else(|error| (&error.why).into(), |_| Dialled::Connected));
            }
            peer.changed.notify_waiters();
            // Whoever waited may have given up.
            let _ = result.send(Some(outcome));
        });
        outcome
    }
}

impl Peer {
    fn status(&self) -> PeerStatus {
        let mut state = lock(&self.state);
        let live = state.live();
        let connected = live.as_ref().map(|live| live.connection.remote_address());
        let greeting = live.map(|live| live.greeting.clone());
        PeerStatus { domain: self.domain.clone(), gate: state.gate.status(), connected, greeting }
    }
}

/// The gate's clock, which a test may stop.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Dropped when a dial ends without a result: the link is down then, and may be dialled by the next one.
struct Abandoned<'a>(&'a Peer);

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.link = Link::Down;
        state.gate.abandoned(now());
        drop(state);
        self.0.changed.notify_waiters();
    }
}

impl State {
    /// Has the gate closed or opened as an operator wants.
    fn follow(&mut self, policy: &EffectivePolicy) {
        match policy.closure() {
            Some(Closure::Denied(_)) => {
                self.gate.deny(now(), &policy.closure_text());
                self.close(CloseCode::Denied);
            }
            Some(Closure::Held) => {
                self.gate.hold(now(), &policy.closure_text());
                self.close(CloseCode::Done);
            }
            None => {
                self.gate.reopen(now(), "an operator has it tried again");
            }
        }
    }

    /// Has the next one dial. Returns the connection that is replaced by that.
    fn replace(&mut self) -> Option<Arc<Live>> {
        self.flushes += 1;
        let live = self.live()?;
        live.replace();
        self.link = Link::Down;
        Some(live)
    }

    /// The connection, if it is up. One that was lost is forgotten here; if it never was of use, that is a failed attempt.
    fn live(&mut self) -> Option<Arc<Live>> {
        let Link::Up(live) = &self.link else { return None };
        let Some(reason) = live.connection.close_reason() else { return Some(live.clone()) };
        let of_use = live.answers() > 0 || live.since.elapsed() >= limits::CONNECTION_STABLE_AFTER;
        if !of_use && reason != quinn::ConnectionError::LocallyClosed {
            // Else a peer that greets and then hangs up would be dialled in a loop.
            let why = error::connection_failure(&reason).0;
            self.gate.failed(now(), why, &reason.to_string());
        }
        self.link = Link::Down;
        None
    }

    fn close(&mut self, code: CloseCode) {
        if let Some(live) = self.live() {
            code.close(&live.connection, code.text());
            self.link = Link::Down;
        }
    }
}
