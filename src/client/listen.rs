//! Receiving: [`Client::sync`] fetches what there is, [`Listener`] has it pushed. Both end in the same place: entries are taken
//! in batches, one state write each, then acknowledged.

use std::collections::HashSet;
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
use super::removals::cover_for_ever;
use crate::base::ids::RequestId;
use crate::base::{Context as _, GroupUri, UnixMillis, limits};
use crate::wire::error::{ErrorCode, Retry};
use crate::wire::qs::{AckEntries, Delivery, FetchEntries, QsMessage, QsRequest, QsSender, QueueEntry};
use crate::wire::reply::GroupState;
use crate::wire::request::Service;
use crate::wire::{Content, Reply, Response, decode};

impl Client {
    /// Takes in all that the queue has, does what was left undone, and returns what happened since the last call, also during
    /// other operations.
    pub async fn sync(&self) -> Result<Vec<Event>> {
        let deadline = self.deadline();
        self.receive(deadline).await?;
        self.chores().await?;
        self.cover_now(deadline).await?;
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
        let one = self.shared.receiving.lock().await;
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
        // What entries wait for may take its time; the next ones can be fetched meanwhile.
        drop(one);
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
            let deadline = Instant::now() + limits::CLIENT_CHORES_TIMEOUT;
            if let Err(error) = self.ask_with(&self.shared.owner_key, self.shared.me.domain(), service, deadline).await {
                // Not confirmed or refused: the next acknowledgement covers these, too.
                tracing::debug!(up_to, %error, "an acknowledgement did not pass");
                return Ok(());
            }
            unacked = self.transact(move |core| core.acked(up_to).map(|()| core.unacked())).await?;
        }
        Ok(())
    }

    /// Fetches what waiting entries need, and takes those that need nothing more. What cannot be had now stays. Each group has
    /// its own task: one whose hub does not answer holds up no other.
    pub(super) async fn settle_backlog(&self, deadline: Instant) -> Result<()> {
        let waiting: Vec<String> = self.transact(|core| Ok(core.state.backlog.keys().cloned().collect())).await?;
        let soon = deadline.min(Instant::now() + limits::CLIENT_CHORES_TIMEOUT);
        let mut tasks = JoinSet::new();
        for group in waiting.iter().filter_map(|name| name.parse::<GroupUri>().ok()) {
            let client = self.clone();
            tasks.spawn(async move { client.settle_backlog_of(&group, false, soon).await });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.context("taking what waited was interrupted")??;
        }
        Ok(())
    }

    /// As [`Client::settle_backlog`] for one group. `wanted`: an invitation that waits for its user's word has it.
    pub(super) async fn settle_backlog_of(&self, group: &GroupUri, wanted: bool, deadline: Instant) -> Result<()> {
        // One at a time: two would ask the same things, and the second could give up what the first got past.
        let lock = self.shared.backlog_lock(group);
        let Ok(_one) = timeout_at(deadline, lock.lock()).await else { return Ok(()) };
        let mut tree = None;
        loop {
            let need = {
                let (group, tree) = (group.clone(), tree.take());
                let take = move |core: &mut Core| {
                    core.take_backlog(&group, tree.as_ref().map(|(sequence, tree): &(u64, GroupState)| (*sequence, tree)))
                };
                self.transact(take).await?
            };
            match need {
                // The answer to the own Commit is somebody else's to get; see `resume`.
                None | Some(Need::OwnCommit) => return Ok(()),
                Some(Need::Domain(domain)) => {
                    if let Err(error) = self.domain_info(&domain, deadline).await {
                        tracing::debug!(%domain, %error, "entries wait for what a domain publishes");
                        return Ok(());
                    }
                }
                Some(Need::Tree(welcome)) => {
                    if !wanted && self.transact(|core| Ok(core.state.account.hold_invitations)).await? {
                        return Ok(());
                    }
                    let service = welcome_info(group, &welcome.reference, welcome.epoch);
                    let error = match self.ask(group.hub(), service, deadline).await {
                        Ok(Reply::GroupState(state)) => {
                            tree = Some((welcome.sequence, state));
                            continue;
                        }
                        Ok(_) => ClientError::Untrusted("the hub answered with something else".into()),
                        Err(error @ ClientError::Fault(_)) => return Err(error),
                        Err(error) => error,
                    };
                    let age = self.shared.now().0.saturating_sub(welcome.arrived_at_ms);
                    let too_old = Duration::from_millis(age) > limits::CLIENT_WELCOME_WAIT_MAX;
                    if !too_old && !error.code().is_some_and(is_never_told) {
                        // It may pass, and a Welcome comes only once.
                        tracing::debug!(%group, %error, "a Welcome waits for its tree");
                        return Ok(());
                    }
                    let (group, why) = (group.clone(), format!("the hub does not tell the group's tree: {error}"));
                    self.transact(move |core| core.skip_backlog(&group, welcome.sequence, why)).await?;
                }
            }
        }
    }

    /// What is to be done now and then, none of which may hold up receiving or another of them: the outbox, queue configs of
    /// groups just joined, KeyPackages. One round at a time.
    pub(super) async fn chores(&self) -> Result<()> {
        let _one = self.shared.chores.lock().await;
        let deadline = Instant::now() + limits::CLIENT_CHORES_TIMEOUT;
        let joined = async {
            let settled = self.settle_backlog(deadline).await;
            (settled, self.bind_queues(Instant::now() + limits::CLIENT_CHORES_TIMEOUT).await)
        };
        let (resumed, (settled, bound), topped_up) =
            tokio::join!(self.resume_by(deadline), joined, self.top_up_key_packages(deadline));
        let upkept = self.upkeep().await;
        for done in [resumed, settled, bound, topped_up, upkept, self.acknowledge().await] {
            match done {
                Err(error @ ClientError::Fault(_)) => return Err(error),
                Err(error) => tracing::debug!(%error, "something is left for later"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Gives the hubs of groups just joined a queue config that is theirs, in place of the invitation's (X3).
    async fn bind_queues(&self, deadline: Instant) -> Result<()> {
        let unbound: Vec<GroupUri> = self
            .transact(|core| {
                let current = core.queue()?.generation;
                let groups = core.state.groups.iter().filter(|(_, kept)| kept.queue_generation != Some(current));
                Ok(groups.filter_map(|(name, _)| name.parse().ok()).filter(|group| core.member_of(group).is_ok()).collect())
            })
            .await?;
        let mut silent = HashSet::new();
        for group in unbound {
            if silent.contains(group.hub()) {
                continue;
            }
            let (service, generation) = {
                let group = group.clone();
                self.transact(move |core| Ok((core.queue_update(&group)?, core.queue()?.generation))).await?
            };
            // One hub that does not answer must leave time for the next.
            let soon = deadline.min(Instant::now() + limits::CLIENT_CHORES_TIMEOUT / 4);
            match self.ask(group.hub(), service, soon).await {
                Ok(_) => {
                    self.transact(move |core| {
                        if let Some(kept) = core.group_mut(&group) {
                            kept.queue_generation = Some(generation);
                        }
                        core.save()
                    })
                    .await?;
                }
                // The invitation's keeps working until the KeyPackage would have expired; the next round tries again.
                Err(ClientError::Refused(rejection)) => {
                    tracing::warn!(%group, %rejection, "the hub refused a queue config");
                }
                Err(error @ ClientError::Fault(_)) => return Err(error),
                Err(error) => {
                    tracing::debug!(%group, %error, "a queue config is left for later");
                    silent.insert(group.hub().clone());
                }
            }
        }
        Ok(())
    }
}

/// Whether a hub that answers so will never tell the tree that a Welcome needs.
fn is_never_told(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NotAuthorized | ErrorCode::UnknownGroup | ErrorCode::GroupDeleted)
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
    /// Fails only when there is no use in going on: the queue is gone or has lost entries, or the disk cannot be written.
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

/// Receives, and beside it does what is to be done now and then; ends only with an error that trying again cannot mend.
async fn receive_for_ever(client: Client) -> Result<()> {
    tokio::try_join!(subscribe_for_ever(&client), do_chores_for_ever(&client), cover_for_ever(&client)).map(drop)
}

/// Apart from receiving, which never waits for it.
async fn do_chores_for_ever(client: &Client) -> Result<()> {
    let (mut wait, mut waited) = (limits::CLIENT_BACKLOG_INTERVAL, None);
    loop {
        client.chores().await?;
        let waiting = client.transact(|core| Ok(core.first_waiting())).await?;
        // The longer the same entries wait, the less often they are looked after: what they need may never come.
        wait = match &waiting {
            None => limits::CLIENT_CHORES_INTERVAL,
            same if *same == waited => (wait * 2).min(limits::CLIENT_CHORES_INTERVAL),
            Some(_) => limits::CLIENT_BACKLOG_INTERVAL,
        };
        waited = waiting;
        let due = Instant::now() + wait;
        // Early when an entry has begun to wait.
        let _ = timeout_at(due, client.shared.chores_due.notified()).await;
    }
}

/// Subscribes, again and again.
async fn subscribe_for_ever(client: &Client) -> Result<()> {
    let mut wait = limits::CLIENT_RESUBSCRIBE_FIRST;
    loop {
        let (began, mut of_use) = (Instant::now(), false);
        match receive_subscribed(client, &mut of_use).await {
            Err(ClientError::NotReached(why)) => tracing::debug!(why, "subscribing again"),
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        // Time alone does not tell: a node that is restarted often serves well in between.
        if of_use || began.elapsed() > limits::CLIENT_RESUBSCRIBE_MAX {
            wait = limits::CLIENT_RESUBSCRIBE_FIRST;
        }
        let pause = wait.mul_f64(rand::rng().random_range(0.5..1.0));
        sleep(pause).await;
        wait = (wait * 2).min(limits::CLIENT_RESUBSCRIBE_MAX);
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
    let (sender, mut pushes) = mpsc::channel(limits::CLIENT_PUSHES_MAX);
    // Dropped with this future, and with it what it runs.
    let mut tasks = JoinSet::new();
    tasks.spawn(read_pushes(subscription, sender));
    loop {
        // The last acknowledgement may have missed what came while it was on its way.
        let Ok(first) = timeout_at(Instant::now() + limits::CLIENT_ACKNOWLEDGE_INTERVAL, pushes.recv()).await else {
            if client.transact(|core| Ok(core.unacked().is_some())).await?
                && let Some(acknowledging) = Acknowledging::start(client)
            {
                tasks.spawn(acknowledging.run());
            }
            continue;
        };
        let mut entries = client.pushed(first)?;
        *of_use = true;
        let mut broken = Ok(());
        let mut octets = octets_of(&entries);
        while entries.len() < limits::FETCH_ENTRIES_MAX as usize
            && octets < limits::FETCH_BYTES_MAX
            && let Ok(next) = pushes.try_recv()
        {
            match client.pushed(Some(next)) {
                Ok(more) => {
                    octets += octets_of(&more);
                    entries.extend(more);
                }
                Err(error) => {
                    // What came before it is good.
                    broken = Err(error);
                    break;
                }
            }
        }
        let more_wait = {
            let _one = shared.receiving.lock().await;
            let take = move |core: &mut Core| {
                let before = core.state.backlog.len();
                core.take_batch(entries).map(|()| core.state.backlog.len() > before)
            };
            client.transact(take).await?
        };
        broken?;
        if more_wait {
            let client = client.clone();
            tasks.spawn(async move { client.settle_new_backlog().await });
        }
        if let Some(acknowledging) = Acknowledging::start(client) {
            tasks.spawn(acknowledging.run());
        }
        while tasks.try_join_next().is_some() {}
    }
}

/// The octets of the MLSMessages in `entries`.
fn octets_of(entries: &[QueueEntry]) -> usize {
    let octets = |entry: &QueueEntry| match &entry.delivery {
        Delivery::Message(delivered) => delivered.message.len(),
        _ => 0,
    };
    entries.iter().map(octets).sum()
}

impl Core {
    /// The entries that are the first to wait in their groups, by sequence; `None` when nothing waits.
    fn first_waiting(&self) -> Option<Vec<u64>> {
        let firsts = self.state.backlog.values().filter_map(|entries| decode::<QueueEntry>(&entries.first()?.0).ok());
        let sequences: Vec<u64> = firsts.map(|entry| entry.sequence).collect();
        Some(sequences).filter(|sequences| !sequences.is_empty())
    }
}

impl Client {
    /// Gets at once what entries have begun to wait for; then the chores that follow from a group joined.
    async fn settle_new_backlog(&self) {
        if let Err(error) = self.settle_backlog(Instant::now() + limits::CLIENT_CHORES_TIMEOUT).await {
            tracing::debug!(%error, "what waits could not be taken");
        }
        self.shared.chores_due.notify_one();
    }

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
