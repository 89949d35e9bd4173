//! Frames of other domains for our clients' queues (S14, X8).

use std::sync::Arc;

use super::recipients::Wake;
use super::{Failure, Service};
use crate::base::crypto::sha256;
use crate::base::limits::{LANE_BATCH_FRAMES_MAX, QUEUE_INFORMATION_BYTES_MAX};
use crate::base::{Domain, GroupUri, UnixMillis};
use crate::storage::deliveries::DeliveryWrite;
use crate::storage::lanes::{ArrivedFrame, TakeFrames, Taken};
use crate::wire::peer::{FrameAnswer, LaneAnswer, LaneBatch, LaneFrame, LaneResult};
use crate::wire::qs::QueueingServiceResponse;
use crate::wire::{ErrorCode, List, Rejection, encode};

impl Service {
    /// Takes the frames of several lanes; each lane is answered for itself.
    pub(super) async fn take_lanes(
        self: &Arc<Self>,
        hub: &Domain,
        batches: List<LaneBatch>,
    ) -> Result<List<LaneAnswer>, Rejection> {
        // QS-040: at most so many frames at once.
        if batches.iter().map(|batch| batch.frames.len()).sum::<usize>() > LANE_BATCH_FRAMES_MAX {
            return Err(ErrorCode::TooLarge.into());
        }
        // All lanes are queued for writing before the first is waited for, so that they share a transaction.
        let mut pending = Vec::with_capacity(batches.len());
        for batch in batches {
            let (group_id, incarnation) = (batch.group_id.clone(), batch.incarnation);
            pending.push((group_id, incarnation, self.queue_lane(hub, batch).await));
        }
        let mut answers = Vec::with_capacity(pending.len());
        for (group_id, incarnation, queued) in pending {
            let result = match queued {
                Ok(queued) => self.lane_result(queued).await,
                Err(failure) => LaneResult::Refused(failure.into_rejection()),
            };
            answers.push(LaneAnswer { group_id, incarnation, result });
        }
        Ok(answers.into())
    }

    async fn queue_lane(
        self: &Arc<Self>,
        hub: &Domain,
        batch: LaneBatch,
    ) -> Result<Queued<impl Future<Output = Result<Taken, crate::base::Fault>> + Send + use<>>, Failure> {
        // QS-041: a hub sends for its own groups only.
        let group = GroupUri::from_bytes(&batch.group_id).map_err(|_| ErrorCode::Malformed)?;
        if group.hub() != hub {
            return Err(ErrorCode::NotAuthorized.into());
        }
        let now = UnixMillis::now();
        let group_id = group.to_string();
        let sequences: Vec<u64> = batch.frames.iter().map(|frame| frame.lane_sequence).collect();
        // QS-042: strict order within the batch; sequences begin at 1.
        if sequences.first() == Some(&0) || sequences.windows(2).any(|pair| pair[0].checked_add(1) != Some(pair[1])) {
            return Err(ErrorCode::Malformed.into());
        }
        let frames: Vec<ArrivedFrame> =
            batch.frames.into_iter().map(|frame| self.arrived(hub, &group_id, frame, now)).collect::<Result<_, _>>()?;
        let wakes = frames.iter().map(|frame| Wake::of(&frame.delivery)).collect();
        let take = TakeFrames { hub: hub.clone(), group_id, incarnation: batch.incarnation, frames };
        Ok(Queued { sequences, wakes, written: self.storage.queue_write(take).await? })
    }

    fn arrived(&self, hub: &Domain, group_id: &str, frame: LaneFrame, now: UnixMillis) -> Result<ArrivedFrame, Rejection> {
        // QS-043: what is too large to be a sealed information is not looked at.
        if frame.recipients.iter().any(|information| information.len() > QUEUE_INFORMATION_BYTES_MAX) {
            return Err(ErrorCode::TooLarge.into());
        }
        let opened: Vec<_> = frame.recipients.iter().map(|information| self.open_recipient(information, hub)).collect();
        Ok(ArrivedFrame {
            lane_sequence: frame.lane_sequence,
            digest: digest(&frame),
            opened: opened.iter().map(Option::is_some).collect(),
            delivery: DeliveryWrite {
                hub: hub.clone(),
                group_id: group_id.to_owned(),
                epoch: frame.epoch,
                delivery: encode(&frame.delivery),
                now,
                local: opened.into_iter().flatten().collect(),
                remote: Vec::new(),
            },
        })
    }

    async fn lane_result(
        self: &Arc<Self>,
        queued: Queued<impl Future<Output = Result<Taken, crate::base::Fault>> + Send>,
    ) -> LaneResult {
        match queued.written.await {
            Ok(Taken::All(answers)) => {
                self.wake_recipients(&queued.wakes);
                let frames = queued.sequences.into_iter().zip(answers).map(|(lane_sequence, taken)| FrameAnswer {
                    lane_sequence,
                    responses: taken.into_iter().map(response).collect(),
                });
                LaneResult::Accepted(frames.collect())
            }
            // QS-045 (X8): no frame is left out.
            Ok(Taken::Gap(expected)) => LaneResult::Gap(expected),
            // QS-044 (X8): a repeated frame has the same content.
            Ok(Taken::Conflict) => LaneResult::Refused(ErrorCode::LaneConflict.into()),
            Err(fault) => LaneResult::Refused(Failure::from(fault).into_rejection()),
        }
    }
}

/// A lane's frames on their way to disk.
struct Queued<F> {
    sequences: Vec<u64>,
    wakes: Vec<Wake>,
    written: F,
}

/// What makes a repeated frame the same frame. The recipients' informations are not part of it: they are looked up anew when a
/// frame is sent again, and may have been renewed in between.
fn digest(frame: &LaneFrame) -> [u8; 32] {
    let recipients = (frame.recipients.len() as u64).to_be_bytes();
    sha256(&[&frame.epoch.to_be_bytes()[..], &recipients[..], &encode(&frame.delivery)].concat())
}

fn response(taken: bool) -> QueueingServiceResponse {
    if taken { QueueingServiceResponse::Ok } else { QueueingServiceResponse::InvalidClientQueueInformation }
}
