//! What a client sees to in time by itself: groups that it cannot follow, the age of its leaves, KeyPackages, generations of queue
//! information (X3, X4, R7, S12).

use std::time::Duration;

use openmls_traits::OpenMlsProvider as _;
use tokio::time::Instant;

use super::Client;
use super::core::{Core, Result};
use super::error::ClientError;
use super::mls;
use super::state::{GroupStatus, Outgoing, Plan, Purpose};
use crate::base::crypto::sha256;
use crate::base::ids::RequestId;
use crate::base::{Context as _, GroupUri, UnixMillis, limits};
use crate::wire::Reply;
use crate::wire::qs::{QsMessage, QsRequest, QsSender, RetireGeneration};
use crate::wire::request::Service;

/// The part of `age_max` after which a client renews its leaf in a group: between three quarters and all of it, different for
/// each, so that those who joined at the same time do not commit at the same time.
fn renewal_age(age_max: Duration, core: &Core, group: &GroupUri) -> Duration {
    let [first, ..] = sha256(format!("{} {group}", core.me).as_bytes());
    age_max.mul_f64(0.75 + 0.25 * f64::from(first) / 256.0)
}

impl Core {
    /// The groups in which this client's leaf is due for new keys at `now`.
    pub(super) fn leaves_due(&self, age_max: Duration, now: UnixMillis) -> Vec<GroupUri> {
        let members = self.groups.keys().filter(|group| self.member_of(group).is_ok() && !self.is_going(group));
        let is_due = |group: &&GroupUri| {
            let renewed = self.state.groups.get(&group.to_string()).map_or(0, |kept| kept.leaf_renewed_ms);
            UnixMillis(renewed).plus(renewal_age(age_max, self, group)) <= now
        };
        members.filter(is_due).cloned().collect()
    }

    /// Whether the newest KeyPackages, and the last-resort one, are of the present generation and good for at least `remaining`.
    pub(super) fn key_packages_are_fresh(&self, remaining: Duration, now: UnixMillis) -> (bool, bool) {
        let generation = self.state.queue.as_ref().map_or(0, |queue| queue.generation);
        let fresh = |last_resort| {
            self.state.key_packages.iter().any(|kept| {
                kept.last_resort == last_resort
                    && kept.generation >= generation
                    && now.plus(remaining) < UnixMillis(kept.expires_at_ms)
            })
        };
        (fresh(false), fresh(true))
    }

    /// Forgets the private keys of KeyPackages that expired long before `now`. Returns how many.
    pub(super) fn forget_expired_key_packages(&mut self, now: UnixMillis) -> Result<usize> {
        let is_over = |expires_at_ms: u64| UnixMillis(expires_at_ms).plus(limits::CLIENT_EXPIRED_KEY_PACKAGES_KEPT) < now;
        let (over, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.state.key_packages).into_iter().partition(|kept| is_over(kept.expires_at_ms));
        self.state.key_packages = kept;
        for key_package in &over {
            self.provider.forget_key_package(&mls::key_package_ref(&key_package.reference.0)?)?;
        }
        if !over.is_empty() {
            self.save()?;
        }
        Ok(over.len())
    }

    /// Takes a request out of the outbox unanswered, with what was only there for it.
    pub(super) fn give_up_on(&mut self, outgoing: &Outgoing) -> Result<()> {
        self.take_outgoing(outgoing.request);
        match &outgoing.purpose {
            Purpose::Commit { group, .. } => {
                let group: GroupUri = group.parse().context("the outbox names no group")?;
                let Self { groups, provider, .. } = self;
                if let Some(mls) = groups.get_mut(&group).filter(|_| !outgoing.stale) {
                    mls.clear_pending_commit(provider.storage()).map_err(mls::failed("withdraw a Commit"))?;
                }
                // What waited for the answer comes as it is: if the Commit was accepted, it shows.
                self.drain_backlog(&group, None)?;
            }
            Purpose::CreateGroup { group } => {
                let group: GroupUri = group.parse().context("the outbox names no group")?;
                self.forget_group(&group, GroupStatus::Left)?;
            }
            Purpose::Join { group, .. } => {
                let group: GroupUri = group.parse().context("the outbox names no group")?;
                self.drain_backlog(&group, None)?;
            }
            Purpose::KeyPackages | Purpose::Message { .. } | Purpose::Decline { .. } => {}
        }
        self.save()
    }

    /// The generation that nothing of this client's needs any more and that is to be retired (X3).
    pub(super) fn retirable(&self) -> Option<u32> {
        let queue = self.state.queue.as_ref()?;
        let retiring = queue.retiring?;
        let is_bound = |name: &String, generation: Option<u32>| {
            let member = name.parse().is_ok_and(|group: GroupUri| self.groups.contains_key(&group));
            !member || generation.is_some_and(|generation| generation > retiring)
        };
        let bound = self.state.groups.iter().all(|(name, kept)| is_bound(name, kept.queue_generation));
        let published = !self.state.outbox.iter().any(|outgoing| matches!(outgoing.purpose, Purpose::KeyPackages));
        let (fresh, last_resort) = self.key_packages_are_fresh(Duration::ZERO, self.now());
        (bound && published && fresh && last_resort).then_some(retiring)
    }
}

/// A request that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its id.
    pub request: RequestId,
    /// The domain that has to answer.
    pub destination: String,
    /// What it is, in a word.
    pub what: &'static str,
    /// The group it is about.
    pub group: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
}

impl Client {
    /// The requests that are not answered yet, in the order they were made.
    pub async fn outbox(&self) -> Result<Vec<Waiting>> {
        self.transact(|core| {
            let waiting = core.state.outbox.iter().map(|outgoing| {
                let (what, group) = match &outgoing.purpose {
                    Purpose::KeyPackages => ("KeyPackages", None),
                    Purpose::CreateGroup { group } => ("a new group", Some(group.clone())),
                    Purpose::Commit { group, .. } => ("a Commit", Some(group.clone())),
                    Purpose::Join { group, .. } => ("an external Commit", Some(group.clone())),
                    Purpose::Message { group, .. } => ("a message", Some(group.clone())),
                    Purpose::Decline { group } => ("a declined invitation", Some(group.clone())),
                };
                let (destination, made_at_ms) = (outgoing.destination.clone(), outgoing.made_at_ms);
                Waiting { request: outgoing.request, destination, what, group, made_at_ms }
            });
            Ok(waiting.collect())
        })
        .await
    }

    /// Gives up a request that is not answered yet, for a domain that never will. Whether it was acted on stays unknown: a Commit
    /// of ours that was accepted after all makes the group one to resync.
    pub async fn drop_outgoing(&self, request: RequestId) -> Result<()> {
        let busy = self.shared.busy.clone();
        self.transact(move |core| {
            let Some(outgoing) = core.state.outbox.iter().find(|kept| kept.request == request).cloned() else {
                return Err(ClientError::Invalid("there is no such request any more".into()));
            };
            let Some(_held) = busy.take(outgoing.clone()) else {
                return Err(ClientError::Invalid("the request is being sent by another operation".into()));
            };
            core.give_up_on(&outgoing)
        })
        .await
    }

    /// A round of upkeep. Each part has its own time: none holds up another.
    pub(super) async fn upkeep(&self) -> Result<()> {
        let soon = || Instant::now() + limits::CLIENT_CHORES_TIMEOUT;
        if self.shared.upkeep.unattended {
            self.resync_lost(soon()).await?;
            self.stay(soon()).await?;
        }
        if self.transact(|core| Ok(core.state.account.rejoin)).await? {
            match self.rejoin_by(soon()).await {
                Err(error @ ClientError::Fault(_)) => return Err(error),
                Err(error) => tracing::debug!(%error, "the user's groups are joined later"),
                Ok(_) => {}
            }
        }
        match self.keep_certificates().await {
            Err(error @ ClientError::Fault(_)) => return Err(error),
            Err(error) => tracing::debug!(%error, "the certificates are looked after later"),
            Ok(()) => {}
        }
        for done in [self.renew_leaves(soon()).await, self.retire(soon()).await] {
            match done {
                Err(error @ ClientError::Fault(_)) => return Err(error),
                Err(error) => tracing::debug!(%error, "upkeep is left for later"),
                Ok(()) => {}
            }
        }
        let now = self.shared.now();
        self.transact(move |core| core.forget_expired_key_packages(now)).await.map(drop)
    }

    /// Renews the keys of leaves that are due.
    async fn renew_leaves(&self, deadline: Instant) -> Result<()> {
        let (age_max, now) = (self.shared.upkeep.leaf_age_max, self.shared.now());
        for group in self.transact(move |core| Ok(core.leaves_due(age_max, now))).await? {
            if Instant::now() >= deadline {
                break;
            }
            match self.run_commit(&group, Plan::Update, deadline).await {
                Err(error @ ClientError::Fault(_)) => return Err(error),
                Err(error) => tracing::debug!(%group, %error, "a leaf's new keys are left for later"),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Begins a new generation of queue information: hubs and KeyPackages get new ones, and when all have them those from before
    /// stop working (X3). What could still be sent here by somebody who should not is refused from then on.
    pub async fn renew_queue(&self) -> Result<u32> {
        let generation = self.begin_generation(self.deadline()).await?;
        self.chores().await?;
        Ok(generation)
    }

    /// Begins a new generation; what follows from it is for the chores.
    pub(super) async fn begin_generation(&self, deadline: Instant) -> Result<u32> {
        let Reply::Generation(generation) = self.ask_queue(QsRequest::NewGeneration, deadline).await? else {
            return Err(ClientError::Untrusted("the node answered a new generation with something else".into()));
        };
        self.transact(move |core| {
            if let Some(queue) = &mut core.state.queue {
                queue.generation = generation;
                queue.retiring = generation.checked_sub(1);
            }
            core.save()
        })
        .await?;
        self.shared.key_packages_used.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(generation)
    }

    /// Ends a generation once nobody needs it.
    async fn retire(&self, deadline: Instant) -> Result<()> {
        let Some(generation) = self.transact(|core| Ok(core.retirable())).await? else { return Ok(()) };
        self.ask_queue(QsRequest::RetireGeneration(RetireGeneration { generation }), deadline).await?;
        self.transact(|core| {
            if let Some(queue) = &mut core.state.queue {
                queue.retiring = None;
            }
            core.save()
        })
        .await
    }

    async fn ask_queue(&self, request: QsRequest, deadline: Instant) -> Result<Reply> {
        let queue = self.transact(|core| core.queue().map(|queue| queue.id)).await?;
        let service = Service::Qs(QsMessage { sender: QsSender::Owner(queue), request });
        self.ask_with(&self.shared.owner_key, self.shared.me.domain(), service, deadline).await
    }
}
