//! Receiving: [`Client::sync`] fetches what there is, [`Listener`] has it pushed. Both end in the same place: entries are taken
//! in batches, one state write each, then acknowledged.

use std::fmt;
use std::time::Duration;

use rand::Rng as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Client;
use super::connection::{NoAnswer, Subscription};
use super::core::Result;
use super::error::ClientError;
use super::event::Event;
use super::outgoing::welcome_info;
use super::receive::Need;
use crate::base::{Context as _, Fault, GroupUri, limits};
use crate::wire::qs::{AckEntries, FetchEntries, QsMessage, QsRequest, QsSender};
use crate::wire::request::Service;
use crate::wire::{Content, Reply, Response};

/// How long one round of receiving works on what other operations left undone. What remains is for the next round.
const CHORES_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a listener looks after what waits, when nothing comes.
const CHORES_INTERVAL: Duration = Duration::from_secs(15);

/// How often a listener looks after what waits, while something does.
const BACKLOG_INTERVAL: Duration = Duration::from_millis(500);

/// The waits between tries to subscribe again. A node that comes back is found within the longest of them.
const RESUBSCRIBE_FIRST: Duration = Duration::from_millis(200);
const RESUBSCRIBE_MAX: Duration = Duration::from_secs(2);

impl Client {
    /// Takes in all that the queue has, does what was left undone, and returns what happened since the last call, also during
    /// other operations.
    pub async fn sync(&self) -> Result<Vec<Event>> {
        let deadline = self.deadline();
        self.receive_once(deadline).await?;
        self.chores().await?;
        Ok(self.shared.inbox.take_all())
    }

    /// Has entries pushed as they arrive. Several listeners, and [`Client::sync`], may be used at once: each event is handed
    /// out once, to whoever asks first.
    pub fn listen(&self) -> Listener {
        Listener { client: self.clone(), work: None }
    }

    /// Fetches until the queue is empty. One at a time: order matters.
    pub(super) async fn receive_once(&self, deadline: Instant) -> Result<()> {
        let _one = self.shared.receiving.lock().await;
        loop {
            let (from, queue) = self.transact(|core| core.queue().map(|queue| (queue.next, queue.id))).await?;
            let request = QsRequest::Fetch(FetchEntries { from, max: limits::FETCH_ENTRIES_MAX });
            let service = Service::Qs(QsMessage { sender: QsSender::Owner(queue), request });
            let reply = self.ask_with(&self.shared.owner_key, self.shared.me.domain(), service, deadline).await?;
            let Reply::Entries(entries) = reply else {
                return Err(ClientError::Untrusted("the node answered a fetch with something else".into()));
            };
            let entries = entries.into_vec();
            let more = entries.len() > 1;
            if !entries.is_empty() {
                self.transact(move |core| core.take_batch(entries)).await?;
            }
            self.settle_backlog(deadline).await?;
            self.acknowledge().await?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Tells the node that it may forget what is processed.
    async fn acknowledge(&self) -> Result<()> {
        let unacked = self.transact(|core| Ok(core.queue()?.id).map(|queue| (queue, core.unacked()))).await?;
        let (queue, Some(up_to)) = unacked else { return Ok(()) };
        let service = Service::Qs(QsMessage { sender: QsSender::Owner(queue), request: QsRequest::Ack(AckEntries { up_to }) });
        let deadline = Instant::now() + CHORES_TIMEOUT;
        match self.ask_with(&self.shared.owner_key, self.shared.me.domain(), service, deadline).await {
            Ok(_) => self.transact(move |core| core.acked(up_to)).await,
            // Not confirmed or refused: the next acknowledgement covers these, too.
            Err(error) => {
                tracing::debug!(up_to, %error, "an acknowledgement did not pass");
                Ok(())
            }
        }
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

/// The next push, and the subscription for the one after it.
async fn next_pushed(mut subscription: Subscription) -> (Subscription, std::result::Result<Response, NoAnswer>) {
    let next = subscription.next().await;
    (subscription, next)
}

/// One subscription, until it breaks. `of_use` says whether anything came through it.
async fn receive_subscribed(client: &Client, of_use: &mut bool) -> Result<()> {
    let shared = &client.shared;
    let (from, queue) = client.transact(|core| core.queue().map(|queue| (queue.next, queue.id))).await?;
    let request = QsRequest::Subscribe(FetchEntries { from, max: limits::FETCH_ENTRIES_MAX });
    let service = Service::Qs(QsMessage { sender: QsSender::Owner(queue), request });
    let content = Content::new(shared.me.domain(), crate::base::ids::RequestId::random(), shared.now(), service);
    let not_reached = |error: &dyn fmt::Display| ClientError::NotReached(error.to_string());
    let request = content.sign(&shared.owner_key);
    let subscription = shared.node.subscribe(&request).await.map_err(|error| not_reached(&error))?;
    let mut pushed = Box::pin(next_pushed(subscription));
    let mut last_chores: Option<Instant> = None;
    loop {
        let waits = client.transact(|core| Ok(!core.state.backlog.is_empty())).await?;
        let interval = if waits { BACKLOG_INTERVAL } else { CHORES_INTERVAL };
        let due = last_chores.map_or(Duration::ZERO, |last| interval.saturating_sub(last.elapsed()));
        // The read goes on where it was after a time-out: it is the same future.
        let Ok((subscription, next)) = timeout(due, &mut pushed).await else {
            client.chores().await?;
            last_chores = Some(Instant::now());
            continue;
        };
        let response = next.map_err(|error| not_reached(&error))?;
        let reply = match response.into_result() {
            Ok(reply) => reply,
            Err(rejection) => {
                if let Some(detail) = rejection.as_replayed_or_stale() {
                    shared.correct_clock(detail.server_time_ms);
                    return Err(not_reached(&rejection));
                }
                let later = rejection.may_pass_later();
                return Err(if later { not_reached(&rejection) } else { rejection.into() });
            }
        };
        let Reply::Entries(entries) = reply else {
            return Err(Fault::new("the node pushed something that is no queue entry").into());
        };
        *of_use = true;
        {
            let _one = shared.receiving.lock().await;
            client.transact(move |core| core.take_batch(entries.into_vec())).await?;
            client.settle_backlog(Instant::now() + CHORES_TIMEOUT).await?;
            client.acknowledge().await?;
        }
        let joined = client.transact(|core| Ok(core.state.groups.values().any(|kept| !kept.queue_bound))).await?;
        if joined {
            last_chores = None;
        }
        pushed = Box::pin(next_pushed(subscription));
    }
}
