//! Receiving: [`Client::sync`] fetches what there is, [`Listener`] has it pushed. Both end in the same place: entries are taken
//! in batches, one state write each, then acknowledged.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use super::Client;
use super::connection::{NoAnswer, Subscription};
use super::core::{Core, Result};
use super::error::ClientError;
use super::event::Event;
use super::outgoing::welcome_info;
use super::receive::Need;
use crate::base::ids::RequestId;
use crate::base::{Context as _, GroupUri, UnixMillis, limits};
use crate::wire::error::Retry;
use crate::wire::qs::{AckEntries, FetchEntries, QsMessage, QsRequest, QsSender, QueueEntry};
use crate::wire::request::Service;
use crate::wire::{Content, Reply, Response};

/// How long one round of receiving works on what other operations left undone. What remains is for the next round.
const CHORES_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a listener looks after what waits, when nothing comes.
const CHORES_INTERVAL: Duration = Duration::from_secs(15);

/// How often a listener looks after what waits, while something does.
const BACKLOG_INTERVAL: Duration = Duration::from_millis(500);

/// How long after the last push what it brought is surely acknowledged.
const ACKNOWLEDGE_INTERVAL: Duration = Duration::from_secs(1);

/// Pushes that may wait to be taken; more wait in QUIC's window.
const PUSHES_MAX: usize = 256;

/// The waits between tries to subscribe again. A node that comes back is found within the longest of them.
const RESUBSCRIBE_FIRST: Duration = Duration::from_millis(200);
const RESUBSCRIBE_MAX: Duration = Duration::from_secs(2);

impl Client {
    /// Takes in all that the queue has, does what was left undone, and returns what happened since the last call, also during
    /// other operations.
    pub async fn sync(&self) -> Result<Vec<Event>> {
        let deadline = self.deadline();
        self.receive(deadline).await?;
        self.chores().await?;
        Ok(self.shared.inbox.take_all())
    }

    /// Has entries pushed as they arrive. Several listeners, and [`Client::sync`], may be used at once: each event is handed
    /// out once, to whoever asks first.
    pub fn listen(&self) -> Listener {
        Listener { client: self.clone(), work: None }
    }

    /// Fetches what had arrived when this was called. What arrives meanwhile may stay, or a busy group would keep this going
    /// for ever.
    pub(super) async fn receive(&self, deadline: Instant) -> Result<()> {
        let began = self.shared.now();
        loop {
            match self.receive_some(deadline).await? {
                Some(arrived_at) if arrived_at < began => {}
                _ => return Ok(()),
            }
        }
    }

    /// One fetch: takes what it brings and says when the last of it arrived; `None` when there was nothing. One at a time:
    /// order matters.
    pub(super) async fn receive_some(&self, deadline: Instant) -> Result<Option<UnixMillis>> {
        let _one = self.shared.receiving.lock().await;
        let (from, queue) = self.transact(|core| core.queue().map(|queue| (queue.next, queue.id))).await?;
        let request = QsRequest::Fetch(FetchEntries { from, max: limits::FETCH_ENTRIES_MAX });
        let service = Service::Qs(QsMessage { sender: QsSender::Owner(queue), request });
        let reply = self.ask_with(&self.shared.owner_key, self.shared.me.domain(), service, deadline).await?;
        let Reply::Entries(entries) = reply else {
            return Err(ClientError::Untrusted("the node answered a fetch with something else".into()));
        };
        let entries = entries.into_vec();
        let last = entries.last().map(|entry| UnixMillis(entry.arrived_at_ms));
        if last.is_some() {
            self.transact(move |core| core.take_batch(entries)).await?;
        }
        self.settle_backlog(deadline).await?;
        self.acknowledge().await?;
        Ok(last)
    }

    /// Tells the node that it may forget what is processed.
    async fn acknowledge(&self) -> Result<()> {
        let (queue, mut unacked) = self.transact(|core| Ok((core.queue()?.id, core.unacked()))).await?;
        while let Some(up_to) = unacked {
            let request = QsRequest::Ack(AckEntries { up_to });
            let service = Service::Qs(QsMessage { sender: QsSender::Owner(queue), request });
            let deadline = Instant::now() + CHORES_TIMEOUT;
            if let Err(error) = self.ask_with(&self.shared.owner_key, self.shared.me.domain(), service, deadline).await {
                // Not confirmed or refused: the next acknowledgement covers these, too.
                tracing::debug!(up_to, %error, "an acknowledgement did not pass");
                return Ok(());
            }
            unacked = self.transact(move |core| core.acked(up_to).map(|()| core.unacked())).await?;
        }
        Ok(())
    }

    /// Fetches what waiting entries need, and takes those that need nothing more. What cannot be had now stays.
    pub(super) async fn settle_backlog(&self, deadline: Instant) -> Result<()> {
        let waiting: Vec<String> = self.transact(|core| Ok(core.state.backlog.keys().cloned().collect())).await?;
        for name in waiting {
            let Ok(group) = name.parse::<GroupUri>() else { continue };
            let mut tree = None;
            loop {
                let need = {
                    let (group, tree) = (group.clone(), tree.take());
                    self.transact(move |core| core.take_backlog(&group, tree.as_ref())).await?
                };
                let soon = deadline.min(Instant::now() + CHORES_TIMEOUT);
                match need {
                    // The answer to the own Commit is somebody else's to get; see `resume`.
                    None | Some(Need::OwnCommit) => break,
                    Some(Need::Domain(domain)) => match self.domain_info(&domain, soon).await {
                        Ok(_) => {}
                        Err(error) => {
                            tracing::debug!(%domain, %error, "entries wait for what a domain publishes");
                            break;
                        }
                    },
                    Some(Need::Tree { reference, epoch }) => {
                        let service = welcome_info(&group, &reference, epoch);
                        match self.ask(group.hub(), service, soon).await {
                            Ok(Reply::GroupState(state)) => tree = Some(state),
                            Ok(_) => {
                                let group = group.clone();
                                self.transact(move |core| core.skip_backlog(&group, "the hub answered something else".into()))
                                    .await?;
                            }
                            Err(ClientError::Refused(rejection)) => {
                                let why = format!("the hub refused the group's tree: {rejection}");
                                let group = group.clone();
                                self.transact(move |core| core.skip_backlog(&group, why)).await?;
                            }
                            Err(error) => {
                                tracing::debug!(%group, %error, "a Welcome waits for its tree");
                                break;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What is to be done now and then, none of which may hold up receiving: the outbox, queue configs of groups just joined,
    /// KeyPackages.
    pub(super) async fn chores(&self) -> Result<()> {
        let deadline = Instant::now() + CHORES_TIMEOUT;
        let done = async {
            self.resume_by(deadline).await?;
            self.settle_backlog(deadline).await?;
            self.acknowledge().await?;
            self.bind_queues(deadline).await?;
            self.top_up_key_packages(deadline).await
        };
        match done.await {
            Err(error @ ClientError::Fault(_)) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "something is left for later");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Gives the hubs of groups just joined a queue config that is theirs, in place of the invitation's (X3).
    async fn bind_queues(&self, deadline: Instant) -> Result<()> {
        let unbound: Vec<GroupUri> = self
            .transact(|core| {
                let groups = core.state.groups.iter().filter(|(_, kept)| !kept.queue_bound);
                Ok(groups.filter_map(|(name, _)| name.parse().ok()).filter(|group| core.member_of(group).is_ok()).collect())
            })
            .await?;
        for group in unbound {
            let service = {
                let group = group.clone();
                self.transact(move |core| core.queue_update(&group)).await?
            };
            match self.ask(group.hub(), service, deadline).await {
                Ok(_) => {
                    self.transact(move |core| {
                        if let Some(kept) = core.group_mut(&group) {
                            kept.queue_bound = true;
                        }
                        core.save()
                    })
                    .await?;
                }
                // The invitation's keeps working until the KeyPackage would have expired; the next round tries again.
                Err(ClientError::Refused(rejection)) => {
                    tracing::warn!(%group, %rejection, "the hub refused a queue config");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Receives as entries arrive. Reconnects by itself.
///
/// The receiving is a task of its own, which ends with the listener: were it polled by [`Listener::next`] alone, a caller that
/// does something else with the client between two calls could wait for a lock that the unpolled future has been given.
pub struct Listener {
    client: Client,
    work: Option<AbortOnDrop>,
}

struct AbortOnDrop(JoinHandle<Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.client.uri())
    }
}

impl Listener {
    /// The next event. **Cancel-safe**: a call that is dropped loses nothing, and the next one goes on where it stopped.
    /// Fails only when there is no use in going on: the queue is gone, or the disk cannot be written.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            let arrived = self.client.shared.inbox.arrived();
            if let Some(event) = self.client.shared.inbox.take_one() {
                return Ok(event);
            }
            let client = &self.client;
            let work = self.work.get_or_insert_with(|| AbortOnDrop(tokio::spawn(receive_for_ever(client.clone()))));
            tokio::select! {
                () = arrived => {}
                ended = &mut work.0 => {
                    self.work = None;
                    ended.context("receiving was interrupted")??;
                }
            }
        }
    }
}

/// Subscribes, again and again; ends only with an error that trying again cannot mend.
async fn receive_for_ever(client: Client) -> Result<()> {
    let mut wait = RESUBSCRIBE_FIRST;
    loop {
        let (began, mut of_use) = (Instant::now(), false);
        match receive_subscribed(&client, &mut of_use).await {
            Err(error @ (ClientError::Fault(_) | ClientError::Refused(_) | ClientError::Invalid(_))) => return Err(error),
            Err(error) => tracing::debug!(%error, "subscribing again"),
            Ok(()) => {}
        }
        // Time alone does not tell: a node that is restarted often serves well in between.
        if of_use || began.elapsed() > RESUBSCRIBE_MAX {
            wait = RESUBSCRIBE_FIRST;
        }
        let pause = wait.mul_f64(rand::rng().random_range(0.5..1.0));
        sleep(pause).await;
        wait = (wait * 2).min(RESUBSCRIBE_MAX);
    }
}

/// Reads pushes as fast as they come, so that those that came while others were taken are taken together.
async fn read_pushes(mut subscription: Subscription, pushes: mpsc::Sender<std::result::Result<Response, NoAnswer>>) {
    loop {
        let next = subscription.next().await;
        let ended = next.is_err();
        if pushes.send(next).await.is_err() || ended {
            return;
        }
    }
}

/// One subscription, until it breaks. `of_use` says whether anything came through it.
async fn receive_subscribed(client: &Client, of_use: &mut bool) -> Result<()> {
    let shared = &client.shared;
    let (from, queue) = client.transact(|core| core.queue().map(|queue| (queue.next, queue.id))).await?;
    let request = QsRequest::Subscribe(FetchEntries { from, max: limits::FETCH_ENTRIES_MAX });
    let service = Service::Qs(QsMessage { sender: QsSender::Owner(queue), request });
    let content = Content::new(shared.me.domain(), RequestId::random(), shared.now(), service);
    let request = content.sign(&shared.owner_key);
    let not_reached = |error: NoAnswer| ClientError::NotReached(error.to_string());
    let subscription = shared.node.subscribe(&request).await.map_err(not_reached)?;
    let (sender, mut pushes) = mpsc::channel(PUSHES_MAX);
    // Dropped with this future, and with it what it runs.
    let mut tasks = JoinSet::new();
    tasks.spawn(read_pushes(subscription, sender));
    let mut due = Instant::now();
    loop {
        // Looked at first: pushes that never cease must not keep chores waiting for ever.
        if Instant::now() >= due {
            client.chores().await?;
            due = Instant::now() + client.transact(|core| Ok(chores_interval(core))).await?;
        }
        let Ok(first) = timeout_at(due, pushes.recv()).await else { continue };
        let mut entries = client.pushed(first)?;
        *of_use = true;
        let mut broken = Ok(());
        while entries.len() < limits::FETCH_ENTRIES_MAX as usize
            && let Ok(next) = pushes.try_recv()
        {
            match client.pushed(Some(next)) {
                Ok(more) => entries.extend(more),
                Err(error) => {
                    // What came before it is good.
                    broken = Err(error);
                    break;
                }
            }
        }
        let (waits, joined) = {
            let _one = shared.receiving.lock().await;
            let take =
                move |core: &mut Core| core.take_batch(entries).map(|()| (!core.state.backlog.is_empty(), core.has_unbound()));
            let (waits, joined) = client.transact(take).await?;
            if waits {
                client.settle_backlog(Instant::now() + CHORES_TIMEOUT).await?;
            }
            (waits, joined)
        };
        broken?;
        if let Some(acknowledging) = Acknowledging::start(client) {
            tasks.spawn(acknowledging.run());
        }
        while tasks.try_join_next().is_some() {}
        if joined || waits {
            due = due.min(Instant::now() + if joined { Duration::ZERO } else { BACKLOG_INTERVAL });
        } else {
            // The last acknowledgement may have missed these.
            due = due.min(Instant::now() + ACKNOWLEDGE_INTERVAL);
        }
    }
}

fn chores_interval(core: &Core) -> Duration {
    if core.state.backlog.is_empty() { CHORES_INTERVAL } else { BACKLOG_INTERVAL }
}

impl Client {
    /// The entries of one push; `None` is the end of the subscription.
    fn pushed(&self, push: Option<std::result::Result<Response, NoAnswer>>) -> Result<Vec<QueueEntry>> {
        let ended = || ClientError::NotReached("the subscription ended".into());
        let response = push.ok_or_else(ended)?.map_err(|error| ClientError::NotReached(error.to_string()))?;
        match response.into_result() {
            Ok(Reply::Entries(entries)) => Ok(entries.into_vec()),
            Ok(_) => Err(ClientError::Untrusted("the node pushed something that is no queue entry".into())),
            Err(rejection) => {
                if let Some(detail) = rejection.as_replayed_or_stale() {
                    self.shared.correct_clock(detail.server_time_ms);
                    return Err(ClientError::NotReached(rejection.to_string()));
                }
                let later = rejection.code.retry() == Retry::Later;
                Err(if later { ClientError::NotReached(rejection.to_string()) } else { rejection.into() })
            }
        }
    }
}

/// The one acknowledgement of a client that is on its way in the background. Dropped at any moment, another may start.
struct Acknowledging {
    client: Client,
}

impl Acknowledging {
    fn start(client: &Client) -> Option<Self> {
        let running = client.shared.acknowledging.swap(true, Ordering::AcqRel);
        if running { None } else { Some(Self { client: client.clone() }) }
    }

    async fn run(self) {
        if let Err(error) = self.client.acknowledge().await {
            tracing::debug!(%error, "an acknowledgement could not be noted");
        }
    }
}

impl Drop for Acknowledging {
    fn drop(&mut self) {
        self.client.shared.acknowledging.store(false, Ordering::Release);
    }
}
