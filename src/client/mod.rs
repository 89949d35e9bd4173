//! The client library: the member's side of MLS over one's own node. `mimi-client` is made of it, and so are the tests.
//!
//! | file | is |
//! |---|---|
//! | [`enrol`] | from an invitation to certificates, queue and KeyPackages |
//! | `devices`, `pairing` | a user's further devices, backups, coming back, the account |
//! | [`groups`] | what a user does: create, add, remove, update, send |
//! | `external`, `joining` | external Commits: joining by oneself, resyncing |
//! | `removals` | committing what hubs propose, leaving, declining, deleting |
//! | [`listen`] | receiving, by asking or by being told |
//! | `upkeep` | what is done in time without being asked |
//! | `core`, `receive`, `welcome`, `outgoing` | the state machine: synchronous, one state write per step, no network |
//! | `state`, [`history`], `log` | what is on disk |
//! | `outbox`, `resume`, `connection` | requests sent until answered, over a connection that mends itself |
//! | `mls`, `storage`, `seal`, `keys` | MLS and its storage, sealed queue information, KeyPackages |
//!
//! Nothing is sent before the state that made it is on disk, and nothing is acknowledged before the state that holds it is. A
//! client that is killed at any moment and opened again sends what was unanswered, with the same request ids, and misses
//! nothing.

mod built;
mod connection;
mod core;
mod devices;
pub mod enrol;
mod error;
mod event;
mod external;
pub mod groups;
pub mod history;
mod joining;
mod keys;
pub mod listen;
mod log;
mod mls;
mod outbox;
mod outgoing;
mod pairing;
mod receive;
mod removals;
mod renewal;
mod resume;
mod seal;
mod state;
mod storage;
#[cfg(test)]
mod tests;
mod upkeep;
mod welcome;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

pub use self::built::{BuiltCommit, ResolvedCommit};
use self::connection::Node;
use self::core::{Core, Result};
pub use self::devices::{Device, Pairing, PairingAnswer, Rejoined};
pub use self::error::ClientError;
pub use self::event::Event;
pub use self::groups::SentMessage;
pub use self::history::HistoryLine;
pub use self::listen::Listener;
use self::mls::{Leaf, Provider};
use self::outbox::{Busy, NotConfirmed, Question};
use self::renewal::tls_pins;
pub use self::state::GroupStatus;
use self::state::{State, Store};
pub use self::upkeep::Waiting;
use crate::base::crypto::SigningKey;
use crate::base::ids::{QueueId, RequestId};
use crate::base::secret::Secret;
use crate::base::{ClientUri, Context as _, Domain, Fault, GroupUri, UnixMillis, limits};
use crate::transport::ClientIdentity;
use crate::wire::info::{DomainInfo, InfoRequest};
use crate::wire::request::Service;
use crate::wire::{ClientRequest, Reply, Response};

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Name servers to ask; empty means those of the system. Given at enrolment they are remembered.
    pub resolver: Vec<SocketAddr>,
    /// How long an operation tries before it fails with [`ClientError::NotConfirmed`].
    pub request_deadline: Duration,
    /// Where to append the event log, if anywhere.
    pub log: Option<PathBuf>,
    /// How many KeyPackages to keep published; only used at enrolment.
    pub key_packages: u32,
    /// What it does without being asked.
    pub upkeep: Upkeep,
}

/// What a client does without being asked, whenever it syncs or listens.
#[derive(Clone, Copy, Debug)]
pub struct Upkeep {
    /// Whether it commits what hubs propose, and resyncs what it cannot follow.
    pub unattended: bool,
    /// How old the keys of a leaf may get. Well below the time after which hubs take a leaf that they have not heard of for
    /// inactive (S12), and below the lifetime of a KeyPackage.
    pub leaf_age_max: Duration,
    /// How long before a KeyPackage expires another one is published in its place.
    pub key_package_remaining_min: Duration,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self {
            unattended: true,
            leaf_age_max: limits::CLIENT_LEAF_AGE_MAX,
            key_package_remaining_min: limits::CLIENT_KEY_PACKAGE_REMAINING_MIN,
        }
    }
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            resolver: Vec::new(),
            request_deadline: limits::CLIENT_REQUEST_DEADLINE,
            log: None,
            key_packages: 20,
            upkeep: Upkeep::default(),
        }
    }
}

/// One of this client's groups, for showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    /// The group.
    pub group: GroupUri,
    /// The name this client gave it.
    pub name: Option<String>,
    /// Where this client stands in it.
    pub status: GroupStatus,
    /// Its epoch, unless this client left.
    pub epoch: Option<u64>,
    /// How many clients are in it.
    pub members: usize,
}

/// Where a client is in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// The queue.
    pub queue: QueueId,
    /// Its generation when the client made it.
    pub generation: u32,
    /// The sequence of the next entry to take.
    pub next: u64,
    /// The last sequence that the node knows it may forget.
    pub acked: u64,
    /// Entries taken that wait for something before they can be processed.
    pub waiting: usize,
    /// Requests that are not answered yet.
    pub outgoing: usize,
}

/// An enrolled client. Clones are handles of one client and may be used concurrently: to send while another one listens.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    core: Arc<Mutex<Core>>,
    node: Node,
    dir: PathBuf,
    me: ClientUri,
    /// The certificates may be renewed, the key never is.
    leaf: ArcSwap<Leaf>,
    leaf_key: SigningKey,
    user_key: SigningKey,
    owner_key: SigningKey,
    request_deadline: Duration,
    clock_offset_ms: AtomicI64,
    inbox: Inbox,
    busy: Arc<Busy>,
    /// Held while entries are fetched and taken.
    receiving: Mutex<()>,
    /// Whether a listener's acknowledgement is on its way.
    acknowledging: AtomicBool,
    /// One per group, held while a Commit is made and settled.
    groups: std::sync::Mutex<HashMap<GroupUri, Arc<Mutex<()>>>>,
    /// One per group, held while what waits for something is looked after.
    backlogs: std::sync::Mutex<HashMap<GroupUri, Arc<Mutex<()>>>>,
    upkeep: Upkeep,
    /// When this client is to commit what is pending in a group.
    covers: std::sync::Mutex<HashMap<GroupUri, Instant>>,
    covers_changed: Notify,
    /// Groups whose hub was asked to let this client stay.
    asked_to_stay: std::sync::Mutex<HashSet<GroupUri>>,
    /// Held during a round of chores.
    chores: Mutex<()>,
    /// Told when a listener's next round of chores should not wait.
    chores_due: Notify,
    /// Whether a Welcome may have used a KeyPackage since they were last counted.
    key_packages_used: AtomicBool,
    /// When the KeyPackages are to be counted in any case: others claim them without ever sending a Welcome, and they expire.
    key_packages_due: std::sync::Mutex<Instant>,
    /// When the own domain is to be asked whether the certificates are to be renewed.
    renewal_due: std::sync::Mutex<Instant>,
}

/// Events not handed out yet.
#[derive(Debug, Default)]
struct Inbox {
    events: std::sync::Mutex<VecDeque<Event>>,
    arrived: Notify,
}

impl Inbox {
    fn put(&self, new: Vec<Event>) {
        if new.is_empty() {
            return;
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.extend(new);
        let surplus = events.len().saturating_sub(limits::CLIENT_INBOX_EVENTS_MAX);
        events.drain(..surplus);
        self.arrived.notify_waiters();
    }

    fn take_one(&self) -> Option<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn take_all(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Ready when events have arrived since this was called.
    fn arrived(&self) -> impl Future<Output = ()> {
        self.arrived.notified()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.shared.me)
    }
}

impl Client {
    /// Opens an enrolled client's state directory. Does not connect: what an earlier run left unanswered is sent by
    /// [`Client::resume`], [`Client::sync`] or a [`Listener`].
    ///
    /// Fails when the directory holds no enrolled client, or another client runs on it.
    pub async fn open(dir: &Path, settings: ClientSettings) -> Result<Self> {
        let owned = dir.to_owned();
        let loaded = tokio::task::spawn_blocking(move || {
            let store = Store::open(&owned)?;
            let state = store.load()?;
            Ok::<_, Fault>((store, state))
        });
        let (store, loaded) = loaded.await.context("opening the client was interrupted")??;
        match loaded {
            Some((state, values)) if state.account.complete => {
                Self::start(store, state, Provider::with_values(values), settings).await
            }
            Some(_) => Err(ClientError::Invalid(format!(
                "the client in {} is not fully enrolled: run enrol again with the same invitation",
                dir.display()
            ))),
            None => Err(ClientError::Invalid(format!("there is no client in {}: enrol one first", dir.display()))),
        }
    }

    async fn start(store: Store, state: State, provider: Provider, settings: ClientSettings) -> Result<Self> {
        let account = &state.account;
        let leaf = Arc::new(Leaf {
            key: SigningKey::from_pkcs8(&account.client_key.0)?,
            chain: vec![account.client_certificate.0.clone(), account.user_certificate.0.clone()],
        });
        let (user_key, owner_key) = (SigningKey::from_pkcs8(&account.user_key.0)?, SigningKey::from_pkcs8(&account.owner_key.0)?);
        let domain: Domain = account.domain.parse().context("the state names no domain")?;
        let resolver = if settings.resolver.is_empty() { account.resolver.clone() } else { settings.resolver };
        let identity = ClientIdentity { chain: leaf.chain.clone(), key: Secret::new(leaf.key.pkcs8().expose().to_vec()) };
        let node = Node::new(&domain, &resolver, &tls_pins(&state), Some(&identity))?;
        let clock_offset_ms = AtomicI64::new(state.clock_offset_ms);
        let dir = store.dir().to_owned();
        let core = {
            let (leaf, log) = (leaf.clone(), settings.log);
            let made = tokio::task::spawn_blocking(move || Core::new(store, state, provider, leaf, log.as_deref()));
            made.await.context("opening the client was interrupted")??
        };
        let me = core.me.clone();
        Ok(Self {
            shared: Arc::new(Shared {
                core: Arc::new(Mutex::new(core)),
                node,
                dir,
                me,
                leaf_key: leaf.key.clone(),
                leaf: ArcSwap::from(leaf),
                renewal_due: std::sync::Mutex::new(Instant::now()),
                user_key,
                owner_key,
                request_deadline: settings.request_deadline,
                clock_offset_ms,
                inbox: Inbox::default(),
                busy: Arc::default(),
                receiving: Mutex::default(),
                acknowledging: AtomicBool::new(false),
                groups: std::sync::Mutex::default(),
                backlogs: std::sync::Mutex::default(),
                upkeep: settings.upkeep,
                covers: std::sync::Mutex::default(),
                covers_changed: Notify::new(),
                asked_to_stay: std::sync::Mutex::default(),
                chores: Mutex::default(),
                chores_due: Notify::new(),
                key_packages_used: AtomicBool::new(true),
                key_packages_due: std::sync::Mutex::new(Instant::now() + limits::CLIENT_KEY_PACKAGES_COUNT_INTERVAL),
            }),
        })
    }

    /// Closes the connection and lets go of the state directory, whatever other handles there are; they fail from now on.
    pub async fn close(self) {
        self.shared.core.lock().await.close();
        self.shared.node.close().await;
    }

    /// This client's name.
    pub fn uri(&self) -> &ClientUri {
        &self.shared.me
    }

    /// This client's certificates, DER: client, user. They are renewed now and then.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        self.shared.leaf.load().chain.clone()
    }

    /// The key of this client's certificate and leaves.
    pub fn leaf_key(&self) -> &SigningKey {
        &self.shared.leaf_key
    }

    /// The key of this client's user.
    pub fn user_key(&self) -> &SigningKey {
        &self.shared.user_key
    }

    /// The key of this client's queue.
    pub fn owner_key(&self) -> &SigningKey {
        &self.shared.owner_key
    }

    /// Where this client is in its queue.
    pub async fn queue_state(&self) -> Result<QueueState> {
        self.transact(|core| {
            let queue = core.queue()?;
            Ok(QueueState {
                queue: queue.id,
                generation: queue.generation,
                next: queue.next,
                acked: queue.acked,
                waiting: core.state.backlog.values().map(Vec::len).sum(),
                outgoing: core.state.outbox.len(),
            })
        })
        .await
    }

    /// What happened during operations so far and was not handed out by [`Client::sync`] or a [`Listener`].
    pub fn take_events(&self) -> Vec<Event> {
        self.shared.inbox.take_all()
    }

    /// The messages read and sent so far, oldest first.
    pub async fn history(&self, group: Option<&GroupUri>) -> Result<Vec<HistoryLine>> {
        let (dir, group) = (self.shared.dir.clone(), group.map(GroupUri::to_string));
        let read = tokio::task::spawn_blocking(move || history::read_history(&dir, group.as_deref()));
        Ok(read.await.context("reading the history was interrupted")??)
    }

    /// Sends any request on this client's connection, once, and returns whatever the node answers.
    pub async fn raw_request(&self, request: &ClientRequest) -> Result<Response> {
        let answer = self.shared.node.request(request, self.deadline()).await;
        answer.map_err(|error| ClientError::NotReached(error.to_string()))
    }

    /// What `domain` publishes, asked of the own node now. Its AS roots are pinned at first sight, and followed
    /// as far as pinned ones vouch for others (X2); anything else is refused.
    pub async fn domain_info(&self, domain: &Domain, deadline: Instant) -> Result<DomainInfo> {
        let known = {
            let domain = domain.clone();
            self.transact(move |core| Ok(core.domain_info(&domain).filter(|_| !core.doubted.contains_key(&domain)))).await?
        };
        match known {
            Some(known) => Ok(known),
            None => self.ask_domain(domain, deadline).await,
        }
    }

    /// As [`Client::domain_info`], asked in any case. What pinned roots do not vouch for is refused.
    async fn ask_domain(&self, domain: &Domain, deadline: Instant) -> Result<DomainInfo> {
        let service = Service::Info(InfoRequest { domain: domain.as_bytes().into() });
        let question = Question {
            request: RequestId::random(),
            destination: self.shared.me.domain().clone(),
            service,
            key: None,
            perhaps_done: false,
        };
        let info = match self.shared.put(&question, deadline).await {
            Ok(Ok(Reply::DomainInfo(info))) => info,
            Ok(Ok(_)) => return Err(ClientError::Untrusted("the node answered info with something else".into())),
            Ok(Err(rejection)) => return Err(rejection.into()),
            Err(error) => return Err(ClientError::NotReached(error.0)),
        };
        let domain = domain.clone();
        self.transact(move |core| {
            core.pin(&domain, &info)?;
            core.save()?;
            Ok(core.domain_info(&domain).context("a domain that was just pinned is gone")?)
        })
        .await
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.request_deadline
    }

    /// Runs `work` on the core, on a thread that may wait for the disk. It runs to its end even if the caller is dropped.
    async fn transact<T: Send + 'static>(&self, work: impl FnOnce(&mut Core) -> Result<T> + Send + 'static) -> Result<T> {
        let mut core = self.shared.core.clone().lock_owned().await;
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || {
            core.state.clock_offset_ms = shared.clock_offset_ms.load(Ordering::Relaxed);
            let result = core.run(work);
            let events = std::mem::take(&mut core.events);
            let proposed =
                if events.iter().any(|event| matches!(event, Event::Proposed { .. })) { core.uncovered() } else { Vec::new() };
            if events.iter().any(|event| matches!(event, Event::MessagesLost { .. } | Event::Unprocessable { .. })) {
                shared.chores_due.notify_one();
            }
            if events.iter().any(|event| matches!(event, Event::Joined { .. })) {
                shared.key_packages_used.store(true, Ordering::Relaxed);
            }
            // Free for the next before anyone is woken.
            drop(core);
            shared.inbox.put(events);
            Client { shared }.cover_soon(proposed);
            result
        });
        done.await.context("the client's work was interrupted")?
    }

    /// A request that is not kept, signed by the client key, until it is answered.
    async fn ask(&self, destination: &Domain, service: Service, deadline: Instant) -> Result<Reply> {
        self.ask_with(&self.shared.leaf_key, destination, service, deadline).await
    }

    async fn ask_with(&self, key: &SigningKey, destination: &Domain, service: Service, deadline: Instant) -> Result<Reply> {
        let question = Question {
            request: RequestId::random(),
            destination: destination.clone(),
            service,
            key: Some(key),
            perhaps_done: false,
        };
        match self.shared.put(&question, deadline).await {
            Ok(answer) => Ok(answer?),
            Err(error) => Err(ClientError::NotReached(error.0)),
        }
    }
}

impl Shared {
    /// The time as the node has it, as far as is known.
    fn now(&self) -> UnixMillis {
        UnixMillis(UnixMillis::now().0.saturating_add_signed(self.clock_offset_ms.load(Ordering::Relaxed)))
    }

    /// Remembers how far the clock is from the node's.
    fn correct_clock(&self, server_time_ms: u64) {
        let offset = i128::from(server_time_ms) - i128::from(UnixMillis::now().0);
        self.clock_offset_ms.store(i64::try_from(offset).unwrap_or_default(), Ordering::Relaxed);
    }

    /// Asks until there is an answer.
    async fn put(&self, question: &Question<'_>, deadline: Instant) -> std::result::Result<outgoing::Answer, NotConfirmed> {
        let before = self.clock_offset_ms.load(Ordering::Relaxed);
        let mut offset = before;
        let answer = question.ask(&self.node, &mut offset, deadline).await;
        if offset != before {
            self.clock_offset_ms.store(offset, Ordering::Relaxed);
        }
        answer
    }

    fn backlog_lock(&self, group: &GroupUri) -> Arc<Mutex<()>> {
        self.backlogs.lock().unwrap_or_else(PoisonError::into_inner).entry(group.clone()).or_default().clone()
    }

    fn group_lock(&self, group: &GroupUri) -> Arc<Mutex<()>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).entry(group.clone()).or_default().clone()
    }
}
