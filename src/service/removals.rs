//! What the Delivery Service does without being asked (S12): Removes of leaves whose client is gone, and the end of deleted
//! groups.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Service;
use super::delivery::group_change;
use super::recipients::Wake;
use crate::base::limits::{DECISIONS_MAX, GROUPS_AT_ONCE_MAX, PURGE_AT_ONCE_MAX, QUEUE_REJECTIONS_MAX};
use crate::base::{Context as _, Fault, GroupUri, UnixMillis};
use crate::ds::removal;
use crate::ds::{GroupState, Hub, Outcome};
use crate::storage::groups::{AcceptRequest, Acceptance, LeavesBy, PurgeGroups};

/// A queue information that its QS rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rejected {
    /// The group.
    pub(super) group: GroupUri,
    /// The leaf whose messages it was for.
    pub(super) leaf_index: u32,
    /// The sealed information that was rejected.
    pub(super) information: Vec<u8>,
}

/// Rejections that wait to be looked into. Some may be lost, in a crash or because there are too many: whoever sends the next
/// message to such a leaf finds out again.
#[derive(Default)]
pub(super) struct Rejections {
    waiting: Mutex<VecDeque<Rejected>>,
    arrived: Notify,
}

impl Rejections {
    /// Has them looked into.
    pub(super) fn report(&self, rejected: impl IntoIterator<Item = Rejected>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for one in rejected {
            if waiting.len() < QUEUE_REJECTIONS_MAX && !waiting.contains(&one) {
                waiting.push_back(one);
            }
        }
        if !waiting.is_empty() {
            self.arrived.notify_one();
        }
    }

    fn next(&self) -> Option<Rejected> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Service {
    /// Looks into rejections until the node stops.
    pub(super) async fn look_into_rejections(self: Arc<Self>) {
        let mut shutdown = self.shutdown.clone();
        loop {
            self.look_into_those_waiting().await;
            tokio::select! {
                () = self.rejections.arrived.notified() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Looks into the rejections that there are: those that concern a leaf's current queue information lead to its Remove (S14).
    pub(super) async fn look_into_those_waiting(self: &Arc<Self>) {
        while let Some(rejected) = self.rejections.next() {
            let decide = |hub: &Hub<'_>, state: &GroupState| {
                removal::rejected_queue(hub, state, rejected.leaf_index, &rejected.information)
            };
            if let Err(fault) = self.change_group(&rejected.group, decide).await {
                tracing::error!(group = %rejected.group, "a rejected queue could not be looked into: {fault}");
            }
        }
    }

    /// Has the DS look at every group with a leaf that is found so. What the look-up says is only where to look: the leaves may
    /// have changed since.
    pub(super) async fn remove_leaves_by(self: &Arc<Self>, by: LeavesBy<'_>) -> Result<(), Fault> {
        let mut after = String::new();
        loop {
            let groups = self.storage.groups_with_leaves(by, &after, GROUPS_AT_ONCE_MAX).await?;
            let Some(last) = groups.last().cloned() else { return Ok(()) };
            for group_id in &groups {
                let uri: GroupUri = group_id.parse().context("a stored group id is not readable")?;
                self.change_group(&uri, |hub, state| removal::issue(hub, state, &removal::due(hub, state))).await?;
            }
            after = last;
        }
    }

    /// Has the DS change a group on its own: decides on the group as it is, and again when it changed meanwhile. Nothing happens
    /// when there is no such group, or nothing to do.
    async fn change_group(
        self: &Arc<Self>,
        uri: &GroupUri,
        decide: impl Fn(&Hub<'_>, &GroupState) -> Option<Outcome>,
    ) -> Result<(), Fault> {
        for _ in 0..DECISIONS_MAX {
            let mut group = self.groups.slot(uri).lock().await;
            let now = UnixMillis::now();
            let (roots, revoked) = (self.directory.roots(), self.directory.revoked());
            let Some(state) = group.state(&self.storage, uri).await? else {
                return Ok(());
            };
            let Some(outcome) = decide(&self.hub(now, &roots, &revoked), state) else { return Ok(()) };
            let (deliveries, addressed) = self.deliveries(&outcome.fan_out, now);
            let wakes: Vec<Wake> = deliveries.iter().map(Wake::of).collect();
            let accept = AcceptRequest {
                answer: None,
                group_id: uri.to_string(),
                revision: Some(state.revision),
                change: outcome.change.as_ref().map(group_change).transpose()?,
                deliveries,
            };
            let written = self.storage.queue_write(accept).await?.await;
            match written {
                Ok(Acceptance::Written(taken)) => {
                    self.wake_recipients(&wakes);
                    self.rejections.report(addressed.rejected(&taken));
                    if let Some(change) = outcome.change {
                        self.apply(&mut group, change, None).await;
                    }
                    return Ok(());
                }
                Ok(Acceptance::Conflict | Acceptance::Known(_)) => group.forget(),
                Err(fault) => {
                    group.forget();
                    return Err(fault);
                }
            }
        }
        Err(Fault::new(format!("{uri} keeps changing while its Delivery Service wants to change it")))
    }

    /// Removes of leaves that were silent for too long, have expired or cannot be reached; and deleted groups whose time is over.
    pub async fn look_after_groups(self: &Arc<Self>, now: UnixMillis) -> Result<(), Fault> {
        let before = |seconds: u64| UnixMillis(now.0.saturating_sub(seconds.saturating_mul(1000)));
        let silent_since = before(self.limits.inactive_leaf_seconds_max);
        self.remove_leaves_by(LeavesBy::SilentSince(silent_since)).await?;
        self.remove_leaves_by(LeavesBy::ExpiringBefore(now)).await?;
        let undelivered = before(self.limits.lane_undelivered_seconds_max);
        let refused = before(self.limits.lane_refused_seconds_max);
        for (domain, group_id) in self.storage.hopeless_lanes(undelivered, refused).await? {
            let uri: GroupUri = group_id.parse().context("a lane's group is not readable")?;
            self.change_group(&uri, |hub, state| removal::undeliverable(hub, state, &domain)).await?;
        }
        let closed_before = before(self.limits.deleted_group_kept_seconds);
        loop {
            let gone = self.storage.write(PurgeGroups { closed_before, limit: PURGE_AT_ONCE_MAX }).await?;
            for group_id in &gone {
                let uri: GroupUri = group_id.parse().context("a stored group id is not readable")?;
                self.groups.slot(&uri).lock().await.forget();
            }
            if (gone.len() as u64) < PURGE_AT_ONCE_MAX {
                return Ok(());
            }
        }
    }

    /// How often [`Service::look_after_groups`] is due: often enough that no limit of time is passed by much.
    pub fn look_after_groups_interval(&self) -> Duration {
        let limits = &self.limits;
        let of_leaves = limits.inactive_leaf_seconds_max.min(limits.deleted_group_kept_seconds);
        let of_lanes = limits.lane_undelivered_seconds_max.min(limits.lane_refused_seconds_max);
        let shortest = of_leaves.min(of_lanes);
        Duration::from_secs(shortest / 4).clamp(Duration::from_secs(1), crate::base::limits::HOUSEKEEPING_INTERVAL)
    }
}
