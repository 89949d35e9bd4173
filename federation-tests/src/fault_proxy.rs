//! A UDP link with faults, on loopback: what a client sends to [`FaultProxy::local_addr`] reaches the target lost, doubled, delayed or
//! out of order as a [`FaultPlan`] says, and so do the answers.
//!
//! The fate of a datagram depends on the seed, its direction and its number in that direction, and on nothing else: not on time, nor on
//! what happened to those before it. A test that prints its seed can be repeated.

use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::Instant;

/// The largest UDP payload.
const DATAGRAM_OCTETS_MAX: usize = 65_535;

/// Client addresses at a time; the one that was silent longest makes room.
const PEERS_MAX: usize = 256;

/// Datagrams that wait for their time; more are lost, as in a router.
const WAITING_MAX: usize = 65_536;

/// Answers between the sockets that take them in and the task that decides on them; more are lost.
const ANSWERS_MAX: usize = 4_096;

/// What happens to datagrams, in both directions.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    /// The probability, from 0 to 1, that a datagram is lost.
    pub loss: f64,
    /// The probability that a datagram that is not lost arrives twice.
    pub duplicate: f64,
    /// The probability that a copy waits for `reorder_delay` more, so that later ones overtake it.
    pub reorder: f64,
    /// How long every copy takes: evenly distributed. An empty range is its start.
    pub delay: Range<Duration>,
    /// What `reorder` adds.
    pub reorder_delay: Duration,
}

impl FaultPlan {
    /// A link without faults.
    pub fn none() -> Self {
        Self { loss: 0.0, duplicate: 0.0, reorder: 0.0, delay: Duration::ZERO..Duration::ZERO, reorder_delay: Duration::ZERO }
    }
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self::none()
    }
}

/// How many datagrams met which fate, both directions together. Each that came in is `forwarded` or `dropped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Passed on, at once or later.
    pub forwarded: u64,
    /// Lost: by the plan, because the link was cut, or because too many waited.
    pub dropped: u64,
    /// Passed on twice.
    pub duplicated: u64,
    /// Copies that had to wait.
    pub delayed: u64,
}

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToTarget,
    ToClient,
}

/// The fate of one datagram: how long each of its copies takes. None is loss, two are a duplicate.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fate {
    copies: Vec<Duration>,
}

/// The fate of datagram `number` (from 0) in `direction`.
fn fate(seed: u64, direction: Direction, number: u64, plan: &FaultPlan) -> Fate {
    /// More 32-bit words than one decision draws, so that decisions never share randomness.
    const WORDS_PER_DECISION: u128 = 32;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(match direction {
        Direction::ToTarget => 1,
        Direction::ToClient => 2,
    });
    rng.set_word_pos(u128::from(number) * WORDS_PER_DECISION);
    // Everything is drawn whether it is needed or not: changing one probability leaves the other decisions as they were.
    let lost = rng.random::<f64>() < plan.loss;
    let doubled = rng.random::<f64>() < plan.duplicate;
    let mut copy = || {
        let (spread, held_back) = (rng.random::<f64>(), rng.random::<f64>() < plan.reorder);
        let delay = plan.delay.start + plan.delay.end.saturating_sub(plan.delay.start).mul_f64(spread);
        if held_back { delay + plan.reorder_delay } else { delay }
    };
    let (first, second) = (copy(), copy());
    Fate {
        copies: match (lost, doubled) {
            (true, _) => Vec::new(),
            (false, false) => vec![first],
            (false, true) => vec![first, second],
        },
    }
}

/// A running proxy. Dropping it ends its tasks.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<FaultPlan>,
    /// How often the link was cut and restored: it is cut while this is odd. A datagram passes only if the number is even and still
    /// that of its arrival.
    changes: AtomicU64,
    forwarded: AtomicU64,
    dropped: AtomicU64,
    duplicated: AtomicU64,
    delayed: AtomicU64,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, FaultPlan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_cut(&self, cut: bool) {
        let next = |changes: u64| (changes.is_multiple_of(2) == cut).then_some(changes + 1);
        // The error means that the link is already as it should be.
        let _ = self.changes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    }

    /// Whether what arrived after `changes` may pass now.
    fn passes(&self, changes: u64) -> bool {
        changes.is_multiple_of(2) && self.changes.load(Ordering::SeqCst) == changes
    }
}

impl FaultProxy {
    /// Listens on `listen` (port 0: any) and passes on to `target`.
    pub async fn start(listen: SocketAddr, target: SocketAddr, plan: FaultPlan, seed: u64) -> io::Result<Self> {
        let socket = Arc::new(UdpSocket::bind(listen).await?);
        let local_addr = socket.local_addr()?;
        let shared = Arc::new(Shared {
            plan: Mutex::new(plan),
            changes: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            duplicated: AtomicU64::new(0),
            delayed: AtomicU64::new(0),
        });
        let (answers_in, answers) = mpsc::channel(ANSWERS_MAX);
        let link = Link {
            shared: Arc::clone(&shared),
            seed,
            socket,
            target,
            answers_in,
            peers: HashMap::new(),
            receivers: JoinSet::new(),
            numbers: [0, 0],
            waiting: BinaryHeap::new(),
            queued: 0,
        };
        Ok(Self { shared, local_addr, task: tokio::spawn(link.run(answers)) })
    }

    /// Where clients send to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Loses everything from now on, what waits included.
    pub fn cut(&self) {
        self.shared.set_cut(true);
    }

    /// Ends a [`FaultProxy::cut`].
    pub fn restore(&self) {
        self.shared.set_cut(false);
    }

    /// Changes the plan for datagrams that come from now on.
    pub fn set_plan(&self, plan: FaultPlan) {
        *self.shared.plan() = plan;
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Counters {
            forwarded: read(&self.shared.forwarded),
            dropped: read(&self.shared.dropped),
            duplicated: read(&self.shared.duplicated),
            delayed: read(&self.shared.delayed),
        }
    }

    /// Ends the proxy and waits until its sockets are closed.
    pub async fn stop(mut self) {
        self.task.abort();
        // The only outcome after an abort is "cancelled"; a panic of the task shows on standard error by itself.
        let _ = (&mut self.task).await;
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client address and the socket that stands for it at the target.
struct Peer {
    upstream: Arc<UdpSocket>,
    receiver: AbortHandle,
    last_active: Instant,
}

/// A datagram that waits for its time.
struct Waiting {
    due: Instant,
    /// The order of arrival decides between equals.
    order: u64,
    direction: Direction,
    client: SocketAddr,
    payload: Arc<[u8]>,
    /// Not the copy of another, so it is counted.
    first: bool,
    /// [`Shared::changes`] at its arrival.
    changes: u64,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    /// The earliest is the greatest: [`BinaryHeap`] gives the greatest first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

/// The state of the one task that decides.
struct Link {
    shared: Arc<Shared>,
    seed: u64,
    socket: Arc<UdpSocket>,
    target: SocketAddr,
    answers_in: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    peers: HashMap<SocketAddr, Peer>,
    /// One task a peer; they end with this struct.
    receivers: JoinSet<()>,
    /// Datagrams so far, by direction.
    numbers: [u64; 2],
    waiting: BinaryHeap<Waiting>,
    queued: u64,
}

impl Link {
    async fn run(mut self, mut answers: mpsc::Receiver<(SocketAddr, Vec<u8>)>) {
        let mut buffer = vec![0; DATAGRAM_OCTETS_MAX];
        let socket = Arc::clone(&self.socket);
        loop {
            let due = self.waiting.peek().map(|waiting| waiting.due);
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    // An error here is about an earlier send (an ICMP answer); nothing is lost but that datagram.
                    if let Ok((length, client)) = received && self.peer(client).await.is_ok() {
                        self.take(Direction::ToTarget, client, &buffer[..length]).await;
                    }
                }
                // The channel cannot end: `self` holds a sender.
                Some((client, payload)) = answers.recv() => self.take(Direction::ToClient, client, &payload).await,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.send_due().await,
                // Ended receivers are collected as they end.
                Some(_) = self.receivers.join_next() => {}
            }
        }
    }

    /// Decides on a datagram that came in.
    async fn take(&mut self, direction: Direction, client: SocketAddr, payload: &[u8]) {
        let number = &mut self.numbers[direction as usize];
        let fate = fate(self.seed, direction, *number, &self.shared.plan());
        *number += 1;
        if fate.copies.is_empty() || self.waiting.len() + fate.copies.len() > WAITING_MAX {
            self.shared.dropped.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let changes = self.shared.changes.load(Ordering::SeqCst);
        let (now, payload) = (Instant::now(), Arc::<[u8]>::from(payload));
        for (index, delay) in fate.copies.into_iter().enumerate() {
            if !delay.is_zero() {
                self.shared.delayed.fetch_add(1, Ordering::SeqCst);
            }
            self.queued += 1;
            let (order, payload, first) = (self.queued, Arc::clone(&payload), index == 0);
            self.waiting.push(Waiting { due: now + delay, order, direction, client, payload, first, changes });
        }
        self.send_due().await;
    }

    /// Sends what is due.
    async fn send_due(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|waiting| waiting.due <= now) {
            let Some(datagram) = self.waiting.pop() else { return };
            let sent = self.shared.passes(datagram.changes) && self.send(&datagram).await;
            let counter = match (sent, datagram.first) {
                (true, true) => &self.shared.forwarded,
                (true, false) => &self.shared.duplicated,
                (false, true) => &self.shared.dropped,
                (false, false) => continue,
            };
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Sends one datagram; whether the system took it. Nobody listening at the other end is the other end's matter, as on a real link.
    async fn send(&mut self, datagram: &Waiting) -> bool {
        let result = match datagram.direction {
            Direction::ToClient => self.socket.send_to(&datagram.payload, datagram.client).await,
            Direction::ToTarget => match self.peer(datagram.client).await {
                Ok(upstream) => upstream.send(&datagram.payload).await,
                Err(error) => Err(error),
            },
        };
        match result {
            Ok(_) => true,
            // The answer to an *earlier* datagram; this one was not sent, and would have met the same.
            Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        }
    }

    /// The socket that stands for `client`, made when first needed.
    async fn peer(&mut self, client: SocketAddr) -> io::Result<Arc<UdpSocket>> {
        if let Some(peer) = self.peers.get_mut(&client) {
            peer.last_active = Instant::now();
            return Ok(Arc::clone(&peer.upstream));
        }
        if self.peers.len() >= PEERS_MAX
            && let Some(silent) = self.peers.iter().min_by_key(|(_, peer)| peer.last_active).map(|(address, _)| *address)
            && let Some(peer) = self.peers.remove(&silent)
        {
            peer.receiver.abort();
        }
        let any: SocketAddr = match self.target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let upstream = UdpSocket::bind(any).await?;
        upstream.connect(self.target).await?;
        let upstream = Arc::new(upstream);
        let receiver = self.receivers.spawn(receive_answers(
            Arc::clone(&upstream),
            client,
            self.answers_in.clone(),
            Arc::clone(&self.shared),
        ));
        self.peers.insert(client, Peer { upstream: Arc::clone(&upstream), receiver, last_active: Instant::now() });
        Ok(upstream)
    }
}

/// Hands what comes for `client` to the task that decides.
async fn receive_answers(
    upstream: Arc<UdpSocket>,
    client: SocketAddr,
    answers: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    shared: Arc<Shared>,
) {
    let mut buffer = vec![0; DATAGRAM_OCTETS_MAX];
    loop {
        match upstream.recv(&mut buffer).await {
            Ok(length) => match answers.try_send((client, buffer[..length].to_vec())) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => {
                    shared.dropped.fetch_add(1, Ordering::SeqCst);
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            },
            // The target is not there (yet): reading the error clears it, and the next read waits.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests;
