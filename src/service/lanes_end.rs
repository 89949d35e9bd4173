//! Lanes that begin anew (X8): what their members are told, and the bounds within which frames wait for a domain that does not
//! take them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Service;
use super::lanes_fate::Over;
use super::recipients::StoredRecipient;
use crate::base::crypto::sha256;
use crate::base::ids::Incarnation;
use crate::base::limits::{
    DEAD_LETTERS_KEPT, LANE_BATCH_RECIPIENTS_MAX, LANE_BOUNDS_INTERVAL, LANE_LOST_RECIPIENTS_MAX, LANE_SIZES_AT_ONCE_MAX,
    LANE_SLACK_DIVISOR, LANE_SWEEP_AT_ONCE_MAX, Limits, REASON_BYTES_MAX,
};
use crate::base::{Context as _, Domain, Fault, GroupUri, UnixMillis};
use crate::ds::GroupState;
use crate::storage::dead_letters::{DeadLetter, DeadReason, ForgetDeadLetters};
use crate::storage::lanes::{EndIncarnation, FrameSize, LaneBounds, LaneStatus, ResetFrame, SweepFrames};
use crate::wire::qs::Delivery;
use crate::wire::{List, Opaque, decode, encode};

impl Service {
    /// Ends an incarnation of a lane as `over` says; what is left follows a `reset` that tells every member in that domain. Only the
    /// domain's worker does this, with nothing of the lane on its way. `false`: it was over already.
    pub(super) async fn end_incarnation(
        &self,
        domain: &Domain,
        group: &GroupUri,
        incarnation: Incarnation,
        over: Over,
    ) -> Result<bool, Fault> {
        let group_id = group.to_string();
        let lost_here = self.storage.frames_before(domain, &group_id, over.keep_from).await?;
        let messages = lost_here.frames - lost_here.resets.min(lost_here.frames);
        let first_lost = match messages {
            0 => None,
            _ => self.storage.waiting_frames(domain, &group_id, 1 + lost_here.resets, 1, 0).await?.pop(),
        };
        let recipients = self.storage.recipients_before(domain, &group_id, over.keep_from, LANE_LOST_RECIPIENTS_MAX).await?;
        let now = UnixMillis::now();
        let (told, written) = {
            // Until the write is queued nothing else of the group is: the reset lies before whatever members see of it later.
            let slot = self.groups.slot(group);
            let mut held = slot.lock().await;
            let state = held.state(&self.storage, group).await?;
            let epoch = state.as_ref().map(|state| state.head.epoch);
            let told = told(state.as_deref(), domain, &recipients)?;
            let count = told.len() as u64;
            let lost_epoch = first_lost.as_ref().map(|frame| frame.epoch);
            let missing = over.missing.unwrap_or((0, 0));
            let first_sequence = first_lost.as_ref().map_or(over.keep_from, |frame| frame.lane_sequence);
            let mut detail = over.detail.clone();
            detail.truncate(detail.floor_char_boundary(REASON_BYTES_MAX));
            let letter = DeadLetter {
                domain: domain.clone(),
                group_id: group_id.clone(),
                incarnation,
                lane_sequence: if missing.1 > 0 { missing.0 } else { first_sequence },
                frames: messages + missing.1,
                octets: lost_here.octets,
                epoch: lost_epoch.or(epoch).unwrap_or(0),
                recipients: count,
                digest: first_lost.map(|frame| sha256(&frame.delivery)),
                reason: over.reason,
                detail,
                died_at: now,
            };
            let end = EndIncarnation {
                letter,
                keep_from: over.keep_from,
                frames: lost_here.frames,
                octets: lost_here.octets,
                next: Incarnation::random(),
                reset: ResetFrame {
                    epoch: epoch.or(lost_epoch).unwrap_or(0),
                    recipients: encode(&told),
                    delivery: encode(&Delivery::Reset),
                },
                hub: self.domain.clone(),
            };
            (count, self.storage.queue_write(end).await?)
        };
        let ended = written.await?;
        if ended {
            let lost = messages + over.missing.map_or(0, |(_, count)| count);
            tracing::warn!(
                %domain, group = %group_id, reason = %over.reason, lost, told,
                "a lane begins anew, and its members are told that messages may be lost: {}", over.detail
            );
        }
        Ok(ended)
    }

    /// How a lane that is over its bounds ends; `None` when it is not, or not any more.
    pub(super) async fn over_its_bounds(&self, lane: &LaneStatus, now: UnixMillis) -> Result<Option<Over>, Fault> {
        let mut excess = Excess::of(&self.limits, lane.frames, lane.octets, now);
        let mut from = 1;
        loop {
            let sizes = self.storage.frame_sizes(&lane.domain, &lane.group_id, from, LANE_SIZES_AT_ONCE_MAX).await?;
            let Some(last) = sizes.last() else { break };
            from = last.lane_sequence + 1;
            if !sizes.iter().all(|frame| excess.loses(frame)) {
                break;
            }
        }
        Ok(excess.over(&self.limits))
    }

    /// Looks after the bounds of all lanes: those to domains that are down, on hold or denied as well. What is over is for the
    /// worker of its domain to end. Accepting messages waits for none of this.
    pub async fn look_after_lanes(self: &Arc<Self>, now: UnixMillis) -> Result<(), Fault> {
        let bounds = LaneBounds {
            frames_max: self.limits.lane_frames_max,
            octets_max: self.limits.lane_bytes_max,
            accepted_before: now.minus(Duration::from_secs(self.limits.lane_age_seconds_max)),
        };
        for (domain, group_id) in self.storage.lanes_over(&bounds).await? {
            self.lane_is_over(&domain, group_id, now);
        }
        while let Some((domain, group_id)) = self.storage.unswept_lane().await? {
            let sweep = || SweepFrames { domain: domain.clone(), group_id: group_id.clone(), limit: LANE_SWEEP_AT_ONCE_MAX };
            while self.storage.write(sweep()).await? == LANE_SWEEP_AT_ONCE_MAX {}
        }
        self.storage.write(ForgetDeadLetters { died_before: now.minus(DEAD_LETTERS_KEPT) }).await
    }

    /// Looks after lanes until the node stops.
    pub(super) async fn keep_looking_after_lanes(self: Arc<Self>) {
        let mut shutdown = self.shutdown.clone();
        let mut interval = tokio::time::interval(look_after_lanes_interval(&self.limits));
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
            if let Err(fault) = self.look_after_lanes(UnixMillis::now()).await {
                tracing::error!("lanes could not be looked after: {fault}");
            }
        }
    }
}

/// How often the bounds of lanes are looked at: no age is passed by much.
fn look_after_lanes_interval(limits: &Limits) -> Duration {
    Duration::from_secs(limits.lane_age_seconds_max / 4).clamp(Duration::from_secs(1), LANE_BOUNDS_INTERVAL)
}

/// Whom a `reset` tells: all members in that domain, and recipients of lost frames who are none any more: what they lost may be
/// that they are not.
fn told(state: Option<&GroupState>, domain: &Domain, lost: &[Vec<u8>]) -> Result<List<StoredRecipient>, Fault> {
    let members = state.iter().flat_map(|state| &state.members).filter(|(_, member)| member.queue.domain == *domain);
    let mut told: Vec<StoredRecipient> = members
        .map(|(leaf_index, member)| StoredRecipient {
            leaf_index: *leaf_index,
            information: Opaque::from(member.queue.information.as_slice()),
        })
        .collect();
    let mut leaves: BTreeSet<u32> = told.iter().map(|recipient| recipient.leaf_index).collect();
    for recipients in lost {
        let recipients: List<StoredRecipient> = decode(recipients).context("a waiting frame's recipients are not readable")?;
        told.extend(recipients.into_iter().filter(|recipient| leaves.insert(recipient.leaf_index)));
    }
    told.truncate(LANE_BATCH_RECIPIENTS_MAX);
    Ok(told.into())
}

/// What a lane that is over a bound loses: its oldest frames, until it is a little below all of them. Pure.
struct Excess {
    /// The messages that are left if it loses no more, the reset before them, and the octets of all.
    messages: u64,
    resets: u64,
    octets: u64,
    limits: Bounds,
    /// What may be left once it begins anew.
    kept: Bounds,
    lost: Option<(DeadReason, u64)>,
}

/// Bounds of a lane, at a certain time.
#[derive(Clone, Copy)]
struct Bounds {
    frames: u64,
    octets: u64,
    accepted_since: UnixMillis,
}

impl Bounds {
    /// Which of them a lane of so many frames and octets is over, whose oldest message is `oldest`.
    fn broken(&self, frames: u64, octets: u64, oldest: &FrameSize) -> Option<DeadReason> {
        let over = [
            (frames > self.frames, DeadReason::TooMany),
            (octets > self.octets, DeadReason::TooLarge),
            (oldest.accepted_at < self.accepted_since, DeadReason::TooOld),
        ];
        over.into_iter().find(|(over, _)| *over).map(|(_, reason)| reason)
    }
}

impl Excess {
    fn of(limits: &Limits, frames: u64, octets: u64, now: UnixMillis) -> Self {
        let less = |most: u64| most - most / LANE_SLACK_DIVISOR;
        let since = |age: u64| now.minus(Duration::from_secs(age));
        let (most_frames, most_octets, age) = (limits.lane_frames_max, limits.lane_bytes_max, limits.lane_age_seconds_max);
        Self {
            messages: frames,
            resets: 0,
            octets,
            limits: Bounds { frames: most_frames, octets: most_octets, accepted_since: since(age) },
            // One message less: the reset counts.
            kept: Bounds {
                frames: less(most_frames).saturating_sub(1),
                octets: less(most_octets),
                accepted_since: since(less(age)),
            },
            lost: None,
        }
    }

    /// Whether it loses `frame`, too: to be asked of all frames in order, until one stays.
    fn loses(&mut self, frame: &FrameSize) -> bool {
        if frame.is_reset {
            // No message: it is replaced when a message behind it is lost, and not else.
            (self.messages, self.resets) = (self.messages.saturating_sub(1), 1);
        } else {
            let broken = match self.lost {
                None => self.limits.broken(self.messages + self.resets, self.octets, frame),
                Some(_) => self.kept.broken(self.messages, self.octets, frame),
            };
            let Some(reason) = broken else { return false };
            let (reason, _) = self.lost.unwrap_or((reason, 0));
            self.lost = Some((reason, frame.lane_sequence));
            self.messages = self.messages.saturating_sub(1);
        }
        self.octets = self.octets.saturating_sub(frame.octets);
        true
    }

    fn over(self, limits: &Limits) -> Option<Over> {
        let (reason, last) = self.lost?;
        let detail = match reason {
            DeadReason::TooMany => format!("more than {} frames waited (lane_frames_max)", limits.lane_frames_max),
            DeadReason::TooLarge => format!("more than {} octets waited (lane_bytes_max)", limits.lane_bytes_max),
            _ => format!("frames waited longer than {} s (lane_age_seconds_max)", limits.lane_age_seconds_max),
        };
        Some(Over { reason, detail, keep_from: last + 1, missing: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000_000);

    fn limits() -> Limits {
        Limits { lane_frames_max: 160, lane_bytes_max: 16_000, lane_age_seconds_max: 1_600, ..Limits::default() }
    }

    /// Frames of 10 octets, accepted so many seconds ago; the first is a reset.
    fn lane(ages: &[u64]) -> Vec<FrameSize> {
        let frame = |(index, age): (usize, &u64)| FrameSize {
            lane_sequence: index as u64 + 1,
            octets: 10,
            accepted_at: NOW.minus(Duration::from_secs(*age)),
            is_reset: index == 0,
        };
        ages.iter().enumerate().map(frame).collect()
    }

    fn ends(limits: &Limits, frames: &[FrameSize]) -> Option<(DeadReason, u64)> {
        let octets = frames.iter().map(|frame| frame.octets).sum();
        let mut excess = Excess::of(limits, frames.len() as u64, octets, NOW);
        let _ = frames.iter().all(|frame| excess.loses(frame));
        excess.over(limits).map(|over| (over.reason, over.keep_from))
    }

    #[test]
    fn a_lane_within_its_bounds_stays_as_it_is() {
        assert_eq!(ends(&limits(), &lane(&[1_600; 160])), None, "at the bounds is not over them");
        assert_eq!(ends(&limits(), &[]), None);
        assert_eq!(ends(&limits(), &lane(&[9_999])), None, "a reset alone is nothing to lose");
    }

    #[test]
    fn a_lane_over_a_bound_loses_its_oldest_down_to_a_little_below_it() {
        // 161 frames with the reset; with the next reset 150 are left.
        assert_eq!(ends(&limits(), &lane(&[5; 161])), Some((DeadReason::TooMany, 13)));
        let few = Limits { lane_frames_max: 1_000, ..limits() };
        let mut large = lane(&[5; 10]);
        large[3].octets = 16_000;
        assert_eq!(ends(&few, &large), Some((DeadReason::TooLarge, 5)), "up to the one that is too large");
        let ages: Vec<u64> = (0..100).map(|index| 1_700 - 10 * index).collect();
        // Whatever is older than 15/16 of the age goes with what is older than the age.
        assert_eq!(ends(&few, &lane(&ages)), Some((DeadReason::TooOld, 21)));
        assert_eq!(ends(&few, &lane(&ages[11..])), None, "the oldest message is 1580 s old");
    }

    // Shows: what is kept is over no bound, or a lane would begin anew at every look. The one exception is a bound that is smaller
    // than a single frame.
    #[test]
    fn what_is_kept_is_over_no_bound() {
        for most in [1, 2, 15, 16, 17, 100] {
            let limits = Limits { lane_frames_max: most, ..limits() };
            let frames = lane(&vec![5; most as usize * 3 + 2]);
            let (_, keep_from) = ends(&limits, &frames).expect("over");
            let left = frames.iter().filter(|frame| frame.lane_sequence >= keep_from).count() as u64 + 1;
            assert!(left <= most, "{left} of {most}");
        }
    }
}
