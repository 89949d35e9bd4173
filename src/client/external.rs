//! Entering a group by oneself: with a further device, into an open group, anew after a loss, or after losing everything
//! (S9, X4, X6).

use std::sync::PoisonError;

use tokio::time::{Instant, timeout_at};

use super::core::Result;
use super::error::ClientError;
use super::joining::{JoinOutcome, MadeJoin};
use super::outbox::Held;
use super::state::{Group, GroupStatus, JoinHow, Purpose};
use super::{Client, groups::is_settled};
use crate::base::crypto::SigningKey;
use crate::base::{Fault, GroupUri, limits};
use crate::wire::ds::{DsRequest, GroupOnly};
use crate::wire::error::ErrorCode;
use crate::wire::reply::GroupState;
use crate::wire::{Rejection, Reply};

impl Client {
    /// Joins `group`: by the invitation that waits, or by itself, as a further client of a member user or because the group is
    /// open. Returns its epoch. Who is a member already stays what it is.
    pub async fn join(&self, group: &GroupUri) -> Result<u64> {
        let deadline = self.deadline();
        self.settle_backlog_of(group, true, deadline).await?;
        let member = {
            let group = group.clone();
            self.transact(move |core| Ok(core.member_of(&group).ok().map(|mls| mls.epoch().as_u64()))).await?
        };
        match member {
            Some(epoch) => Ok(epoch),
            None => self.run_join(group, false, deadline).await,
        }
    }

    /// Replaces this client's leaf in `group`, so that it can follow the group again. Returns the epoch that begins so. The
    /// client does this by itself when messages were lost or a Commit could not be applied.
    pub async fn resync(&self, group: &GroupUri) -> Result<u64> {
        self.run_join(group, true, self.deadline()).await
    }

    /// Resyncs `group` if it cannot be followed as it is: what is asked of it then has a chance.
    pub(super) async fn unstick(&self, group: &GroupUri, deadline: Instant) -> Result<()> {
        let stuck = {
            let group = group.to_string();
            self.transact(move |core| Ok(core.state.groups.get(&group).is_some_and(is_behind))).await?
        };
        if stuck && self.shared.upkeep.unattended {
            self.run_join(group, true, deadline).await?;
        }
        Ok(())
    }

    pub(super) async fn run_join(&self, group: &GroupUri, only_resync: bool, deadline: Instant) -> Result<u64> {
        let lock = self.shared.group_lock(group);
        let Ok(_one) = timeout_at(deadline, lock.lock()).await else {
            return Err(ClientError::NotReached(format!("a Commit in {group} is being sent by another operation")));
        };
        // What can still be read with the old keys is read first.
        self.receive(deadline).await?;
        let kept = {
            let (group, busy) = (group.clone(), self.shared.busy.clone());
            self.transact(move |core| Ok(core.pending_join(&group).and_then(|kept| busy.take(kept)))).await?
        };
        match kept {
            Some(kept) => match self.settle_left_over_join(group, kept, deadline).await {
                Err(error) if is_settled(&error) => self.join_until_won(group, only_resync, None, deadline).await,
                done => done,
            },
            None => self.join_until_won(group, only_resync, None, deadline).await,
        }
    }

    /// Finishes an external Commit of the outbox. The group's lock is held.
    pub(super) async fn settle_left_over_join(&self, group: &GroupUri, held: Held, deadline: Instant) -> Result<u64> {
        let Purpose::Join { how, .. } = held.outgoing.purpose else {
            return Err(Fault::new("an external Commit that is none").into());
        };
        if !held.outgoing.stale {
            match self.settle_join(&held, deadline).await? {
                JoinOutcome::Won(epoch) => return Ok(epoch),
                JoinOutcome::Refused(rejection) => return Err(rejection.into()),
                JoinOutcome::Lost => {}
            }
        }
        self.join_until_won(group, how == JoinHow::Resync, Some(held), deadline).await
    }

    /// Makes the external Commit, and makes it anew when another one comes first, until it is accepted or the deadline passes.
    async fn join_until_won(
        &self,
        group: &GroupUri,
        only_resync: bool,
        mut kept: Option<Held>,
        deadline: Instant,
    ) -> Result<u64> {
        match self.try_to_join(group, only_resync, &mut kept, deadline).await {
            Ok(epoch) => Ok(epoch),
            Err(error) => Err(self.give_up(kept, error).await),
        }
    }

    async fn try_to_join(&self, group: &GroupUri, only_resync: bool, kept: &mut Option<Held>, deadline: Instant) -> Result<u64> {
        for attempt in 0..limits::CLIENT_ATTEMPTS_MAX {
            let state = self.external_commit_info(group, deadline).await?;
            let made = self.make_join(group, state, only_resync, kept.as_ref(), deadline).await?;
            *kept = None;
            match self.settle_join(&made, deadline).await? {
                JoinOutcome::Won(epoch) => {
                    self.shared.chores_due.notify_one();
                    return Ok(epoch);
                }
                JoinOutcome::Refused(rejection) => return Err(rejection.into()),
                JoinOutcome::Lost => *kept = Some(made),
            }
            if Instant::now() >= deadline {
                break;
            }
            self.pause(attempt).await;
        }
        Err(ClientError::NotReached("members' Commits kept coming first".into()))
    }

    /// The group's GroupInfo, tree and epoch now, asked with the user key.
    async fn external_commit_info(&self, group: &GroupUri, deadline: Instant) -> Result<GroupState> {
        let request = DsRequest::ExternalCommitInfo(GroupOnly { group_id: group.to_bytes().into() });
        let service = self.transact(move |core| core.user_request(request)).await?;
        match self.ask_with(&self.shared.user_key, group.hub(), service, deadline).await? {
            Reply::GroupState(state) => Ok(state),
            _ => Err(ClientError::Untrusted(format!("{}: the hub answered with something else", group.hub()))),
        }
    }

    /// Makes an external Commit, getting to know the members' domains on the way.
    async fn make_join(
        &self,
        group: &GroupUri,
        state: GroupState,
        only_resync: bool,
        kept: Option<&Held>,
        deadline: Instant,
    ) -> Result<Held> {
        let replaces = kept.map(|kept| kept.outgoing.request);
        for _ in 0..limits::CLIENT_ATTEMPTS_MAX {
            let (group, state, busy) = (group.clone(), state.clone(), self.shared.busy.clone());
            let (held, needed) = self
                .transact(move |core| match core.make_join(&group, &state, only_resync, replaces)? {
                    MadeJoin::Made(made) => Ok((busy.take_new(*made), None)),
                    MadeJoin::Needs(domain) => Ok((None, Some(domain))),
                    MadeJoin::NoMember => Err(Rejection::new(ErrorCode::NotAuthorized).into()),
                })
                .await?;
            match (held, needed) {
                (Some(held), _) => return Ok(held),
                (None, Some(domain)) => drop(self.domain_info(&domain, deadline).await?),
                (None, None) => return Err(Fault::new("a request id came twice").into()),
            }
        }
        Err(ClientError::Untrusted(format!("{group} has members of too many unknown domains")))
    }

    async fn settle_join(&self, held: &Held, deadline: Instant) -> Result<JoinOutcome> {
        let request = held.outgoing.request;
        let answer = self.ask_held(held, deadline).await?;
        self.transact(move |core| core.settle_join(request, answer)).await
    }

    /// The key that signs a request of the outbox.
    pub(super) fn key_of(&self, purpose: &Purpose) -> &SigningKey {
        match purpose {
            Purpose::Join { how: JoinHow::Client | JoinHow::Open, .. } => &self.shared.user_key,
            _ => &self.shared.leaf_key,
        }
    }

    /// Stays in groups whose hub is about to remove this client, where it lets it: who was silent for too long, or had its queue
    /// rejected, may come back (S12). One try for each; a hub that wants it gone refuses.
    pub(super) async fn stay(&self, deadline: Instant) -> Result<()> {
        let going: Vec<GroupUri> = self.transact(|core| Ok(core.going())).await?;
        for group in going {
            let first = self.shared.asked_to_stay.lock().unwrap_or_else(PoisonError::into_inner).insert(group.clone());
            if !first || Instant::now() >= deadline {
                continue;
            }
            match self.run_join(&group, true, deadline).await {
                Err(error @ ClientError::Fault(_)) => return Err(error),
                Err(error) => tracing::debug!(%group, %error, "this client is going to be removed"),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Resyncs every group that lost messages or could not be followed (X4). One after the other, as far as the time goes.
    pub(super) async fn resync_lost(&self, deadline: Instant) -> Result<()> {
        let lost: Vec<GroupUri> = self
            .transact(|core| {
                let lost = core.state.groups.iter().filter(|(_, kept)| is_behind(kept));
                Ok(lost.filter_map(|(name, _)| name.parse().ok()).collect())
            })
            .await?;
        for group in lost {
            let soon = deadline.min(Instant::now() + limits::CLIENT_CHORES_TIMEOUT);
            let Err(error) = self.run_join(&group, true, soon).await else { continue };
            let status = match error.code() {
                Some(ErrorCode::UnknownGroup | ErrorCode::GroupDeleted) => GroupStatus::Deleted,
                Some(ErrorCode::NotAuthorized) => GroupStatus::Left,
                _ => {
                    tracing::debug!(%group, %error, "a group waits to be resynced");
                    continue;
                }
            };
            tracing::warn!(%group, %error, "a group that could not be followed is lost");
            self.transact(move |core| core.forget_group(&group, status)).await?;
        }
        Ok(())
    }
}

/// Whether something of the group is missing here.
fn is_behind(kept: &Group) -> bool {
    kept.lost || kept.status == GroupStatus::Stuck
}
