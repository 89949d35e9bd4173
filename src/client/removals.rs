//! Removals: committing what a hub proposes (S12, S13), leaving, declining, deleting.
//!
//! Until a Commit covers its Removes a hub takes nothing else, so somebody has to make one, and nobody is appointed. Every
//! member's client that learns of them waits for a random time, the longer the more members there are, and commits them unless
//! another one's Commit has come by then. A client that is to be removed does not.

use std::time::Duration;

use openmls::prelude::{KeyPackageRef, MlsMessageBodyIn};
use rand::Rng as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Client;
use super::core::{Core, Result};
use super::error::ClientError;
use super::mls;
use super::outgoing::ds;
use super::receive::Need;
use super::state::{GroupStatus, Plan, Purpose};
use crate::base::{ClientUri, Context as _, GroupUri, limits};
use crate::wire::decode;
use crate::wire::ds::{DsRequest, DsSenderId, GroupOnly, Propose};
use crate::wire::error::ErrorCode;
use crate::wire::qs::{Delivery, QueueEntry};
use crate::wire::request::Service;

/// How long at most a client in a group of `members` waits before it commits what is pending: the more may do it, the longer,
/// so that about one begins before the others have heard of it.
fn jitter_max(members: usize) -> Duration {
    let members = u32::try_from(members).unwrap_or(u32::MAX);
    (limits::CLIENT_COVER_JITTER_PER_MEMBER.saturating_mul(members)).min(limits::CLIENT_COVER_JITTER_MAX)
}

impl Core {
    /// Whether this client is to commit what is pending in `group`: something is, and it may.
    pub(super) fn should_cover(&self, group: &GroupUri) -> bool {
        self.has_proposals(group) && self.member_of(group).is_ok() && !self.is_going(group)
    }

    /// The groups with something to commit, and how many members each has.
    pub(super) fn uncovered(&self) -> Vec<(GroupUri, usize)> {
        let groups = self.groups.iter().filter(|(group, _)| self.should_cover(group));
        groups.map(|(group, mls)| (group.clone(), mls.members().count())).collect()
    }

    /// The groups that this client is about to be removed from without having asked for it. Where another client of this name is,
    /// it has taken this one's place.
    pub(super) fn going(&self) -> Vec<GroupUri> {
        let is_replaced = |group: &GroupUri| self.members_now(group).iter().filter(|client| **client == self.me).count() > 1;
        let going = self.groups.keys().filter(|group| self.member_of(group).is_ok() && self.is_going(group));
        going.filter(|group| !is_replaced(group)).cloned().collect()
    }

    /// `leave_group` as the member that this client is.
    fn leave_request(&self, group: &GroupUri) -> Result<Service> {
        let index = match self.groups.get(group) {
            Some(mls) if mls.is_active() => mls.own_leaf_index().u32(),
            _ => self.member_of(group)?.own_leaf_index().u32(),
        };
        let request = DsRequest::LeaveGroup(GroupOnly { group_id: group.to_bytes().into() });
        Ok(ds(DsSenderId::LeafIndex(index), request))
    }

    /// Has the hub remove the leaf that a Welcome to this KeyPackage made: the Welcome cannot be used, or is not wanted. The
    /// caller saves.
    pub(super) fn decline(&mut self, group: &GroupUri, reference: &KeyPackageRef) {
        let request = DsRequest::LeaveGroup(GroupOnly { group_id: group.to_bytes().into() });
        let service = ds(DsSenderId::KeyPackageRef(reference.as_slice().into()), request);
        self.enqueue(group.hub(), &service, Purpose::Decline { group: group.to_string() }, None);
    }

    /// The groups whose invitation waits: for the user's word, or for what the hub has not told yet.
    fn invitations(&self) -> Vec<GroupUri> {
        let waiting = self.state.backlog.iter().filter(|(_, entries)| entries.first().is_some_and(|entry| is_welcome(&entry.0)));
        waiting.filter_map(|(name, _)| name.parse().ok()).collect()
    }

    /// Declines the invitation that waits for `group`.
    pub(super) fn decline_waiting(&mut self, group: &GroupUri) -> Result<()> {
        match self.take_backlog(group, None)? {
            Some(Need::Tree(welcome)) => {
                self.decline(group, &welcome.reference);
                self.skip_backlog(group, welcome.sequence, "the invitation is declined".into())
            }
            _ => Err(ClientError::Invalid(format!("no invitation to {group} waits"))),
        }
    }

    /// The hub has heard that this client's user leaves.
    fn leaving(&mut self, group: &GroupUri) -> Result<()> {
        let others = self.members_now(group).iter().any(|client| client.user() != self.me.user());
        if !others {
            // Nobody is there to commit it: the hub closes the group (S13).
            return self.forget_group(group, GroupStatus::Deleted);
        }
        if let Some(kept) = self.group_mut(group).filter(|kept| kept.status == GroupStatus::Member) {
            kept.status = GroupStatus::Leaving;
        }
        self.save()
    }
}

impl Client {
    /// Asks the hub to remove this client's user, with all its clients, from `group`. Another member's client then commits that;
    /// an event tells when. Nothing more can be sent from here.
    pub async fn leave(&self, group: &GroupUri) -> Result<()> {
        let deadline = self.deadline();
        let service = {
            let group = group.clone();
            self.transact(move |core| core.leave_request(&group)).await?
        };
        let answer = self.ask(group.hub(), service, deadline).await;
        let group = group.clone();
        match answer {
            Ok(_) => self.transact(move |core| core.leaving(&group)).await,
            Err(error) if matches!(error.code(), Some(ErrorCode::GroupDeleted | ErrorCode::UnknownGroup)) => {
                self.transact(move |core| core.forget_group(&group, GroupStatus::Deleted)).await
            }
            Err(error) => Err(error),
        }
    }

    /// Has invitations wait for [`Client::join`] or [`Client::decline`], or no longer. As long as one waits, the queue keeps what
    /// came after it.
    pub async fn hold_invitations(&self, hold: bool) -> Result<()> {
        self.transact(move |core| {
            core.state.account.hold_invitations = hold;
            core.save()
        })
        .await
    }

    /// The groups whose invitation waits.
    pub async fn invitations(&self) -> Result<Vec<GroupUri>> {
        self.transact(|core| Ok(core.invitations())).await
    }

    /// Declines an invitation that waits: the hub has this client removed from `group` again.
    pub async fn decline(&self, group: &GroupUri) -> Result<()> {
        let of_group = group.clone();
        self.domain_info(group.hub(), self.deadline()).await?;
        self.transact(move |core| core.decline_waiting(&of_group)).await?;
        self.resume().await
    }

    /// Deletes `group`: removes everybody else by a Commit, from which they learn of it, and then there is no group (S7).
    pub async fn delete_group(&self, group: &GroupUri) -> Result<()> {
        self.run_commit(group, Plan::Delete, self.deadline()).await.map(drop)
    }

    /// Adds those clients of the member `users` that are not in the group yet. Returns the group's epoch afterwards.
    pub async fn add_clients(&self, group: &GroupUri, users: &[crate::base::UserUri]) -> Result<u64> {
        let users = users.iter().map(ToString::to_string).collect();
        self.run_commit(group, Plan::AddClients(users), self.deadline()).await
    }

    /// Removes `clients` whose users stay; those not there are passed over. Returns the group's epoch afterwards.
    pub async fn remove_clients(&self, group: &GroupUri, clients: &[ClientUri]) -> Result<u64> {
        let clients = clients.iter().map(ToString::to_string).collect();
        self.run_commit(group, Plan::RemoveClients(clients), self.deadline()).await
    }

    /// Lets users join `group` by themselves, or no longer. Returns the group's epoch afterwards.
    pub async fn set_open(&self, group: &GroupUri, open: bool) -> Result<u64> {
        self.run_commit(group, Plan::Policy { open }, self.deadline()).await
    }

    /// Commits what others have proposed in `group`, if anything. Returns its epoch afterwards.
    pub async fn commit_proposals(&self, group: &GroupUri) -> Result<u64> {
        self.run_commit(group, Plan::Cover, self.deadline()).await
    }

    /// Proposes new keys for this client's leaf, for another member's Commit to take in. [`Client::update`] does it at once.
    pub async fn propose_update(&self, group: &GroupUri) -> Result<()> {
        let (index, proposal) = {
            let group = group.clone();
            self.transact(move |core| core.make_proposal(&group)).await?
        };
        let request = DsRequest::Propose(Propose {
            group_id: group.to_bytes().into(),
            proposals: vec![proposal.message.as_slice().into()].into(),
        });
        let asked = self.ask(group.hub(), ds(DsSenderId::LeafIndex(index), request), self.deadline()).await;
        match asked {
            Ok(_) => Ok(()),
            Err(error @ ClientError::Refused(_)) => {
                let group = group.clone();
                self.transact(move |core| core.take_back_proposal(&group, &proposal.reference)).await?;
                Err(error)
            }
            // It may have been taken: to be in a Commit of ours does no harm.
            Err(error) => Err(error),
        }
    }

    /// Sees to it that what is pending in `groups` is committed soon.
    pub(super) fn cover_soon(&self, groups: Vec<(GroupUri, usize)>) {
        if groups.is_empty() || !self.shared.upkeep.unattended {
            return;
        }
        let mut covers = self.shared.covers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (group, members) in groups {
            let wait = jitter_max(members).mul_f64(rand::rng().random_range(0.0..1.0));
            covers.entry(group).or_insert_with(|| Instant::now() + wait);
        }
        drop(covers);
        self.shared.covers_changed.notify_one();
    }

    /// Commits what is pending everywhere, without waiting: for who is not listening. One after the other.
    pub(super) async fn cover_now(&self, deadline: Instant) -> Result<()> {
        if !self.shared.upkeep.unattended {
            return Ok(());
        }
        for (group, _) in self.transact(|core| Ok(core.uncovered())).await? {
            self.cover(&group, deadline.min(Instant::now() + limits::CLIENT_CHORES_TIMEOUT)).await?;
        }
        Ok(())
    }

    async fn cover(&self, group: &GroupUri, deadline: Instant) -> Result<()> {
        let due = {
            let group = group.clone();
            self.transact(move |core| Ok(core.should_cover(&group))).await?
        };
        if !due {
            // Somebody else was first.
            return Ok(());
        }
        match self.run_commit(group, Plan::Cover, deadline).await {
            Err(error @ ClientError::Fault(_)) => Err(error),
            Err(error) => {
                tracing::debug!(%group, %error, "what is pending is left for later");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// The next group whose turn it is, or when there is one.
    fn next_cover(&self) -> std::result::Result<GroupUri, Option<Instant>> {
        let mut covers = self.shared.covers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some((group, due)) = covers.iter().min_by_key(|(_, due)| **due).map(|(group, due)| (group.clone(), *due)) else {
            return Err(None);
        };
        if due > Instant::now() {
            return Err(Some(due));
        }
        covers.remove(&group);
        Ok(group)
    }
}

/// Commits what is pending, each group when its time has come; ends only with an error that trying again cannot mend.
pub(super) async fn cover_for_ever(client: &Client) -> Result<()> {
    let mut tasks = JoinSet::new();
    client.cover_soon(client.transact(|core| Ok(core.uncovered())).await?);
    loop {
        while let Some(ended) = tasks.try_join_next() {
            let covered: Result<()> = ended.context("committing what is pending was interrupted")?;
            covered?;
        }
        match client.next_cover() {
            Ok(group) if tasks.len() < limits::CLIENT_COVERS_AT_ONCE_MAX => {
                let client = client.clone();
                tasks.spawn(async move {
                    let deadline = Instant::now() + limits::CLIENT_CHORES_TIMEOUT;
                    client.cover(&group, deadline).await
                });
            }
            Ok(group) => {
                client.cover_soon(vec![(group, 1)]);
                if let Some(ended) = tasks.join_next().await {
                    ended.context("committing what is pending was interrupted")??;
                }
            }
            Err(Some(due)) => drop(timeout_at(due, client.shared.covers_changed.notified()).await),
            Err(None) => client.shared.covers_changed.notified().await,
        }
    }
}

fn is_welcome(entry: &[u8]) -> bool {
    let Ok(QueueEntry { delivery: Delivery::Message(message), .. }) = decode(entry) else { return false };
    matches!(mls::read_message(&message.message), Ok(MlsMessageBodyIn::Welcome(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_members_the_longer_they_wait_up_to_a_limit() {
        assert!(jitter_max(2) < jitter_max(10));
        assert_eq!(jitter_max(1_000_000), limits::CLIENT_COVER_JITTER_MAX);
    }
}
