//! Frames of other domains for our clients' queues (S14, X8).

use std::sync::Arc;

use super::recipients::Wake;
use super::{Failure, Service};
use crate::base::{Domain, UnixMillis};
use crate::qs::lanes::{FrameHead, check_batch, check_request, frame_digest};
use crate::storage::deliveries::DeliveryWrite;
use crate::storage::lanes_in::{ArrivedFrame, TakeFrames, Taken};
use crate::wire::peer::{FrameAnswer, LaneAnswer, LaneBatch, LaneFrame, LaneResult};
use crate::wire::qs::{Delivery, QueueingServiceResponse};
use crate::wire::{ErrorCode, List, Rejection, encode};

impl Service {
    /// Takes the frames of several lanes; each lane is answered for itself.
    pub(super) async fn take_lanes(
        self: &Arc<Self>,
        hub: &Domain,
        batches: List<LaneBatch>,
    ) -> Result<List<LaneAnswer>, Rejection> {
        check_request(&batches)?;
        // All lanes are queued for writing before the first is waited for, so that they share a transaction.
        let mut pending = Vec::with_capacity(batches.len());
        for batch in batches {
            let (group_id, incarnation) = (batch.group_id.clone(), batch.incarnation);
            pending.push((group_id, incarnation, self.queue_lane(hub, batch).await));
        }
        let traffic = self.peers.traffic().of(hub);
        let mut answers = Vec::with_capacity(pending.len());
        for (group_id, incarnation, queued) in pending {
            let result = match queued {
                Ok(queued) => self.lane_result(queued).await,
                Err(failure) => LaneResult::Refused(failure.into_rejection()),
            };
            match &result {
                LaneResult::Accepted(frames) => traffic.frames_received.add(frames.len() as u64),
                LaneResult::Gap(_) | LaneResult::Refused(_) => traffic.refused.one(),
            }
            answers.push(LaneAnswer { group_id, incarnation, result });
        }
        Ok(answers.into())
    }

    async fn queue_lane(
        self: &Arc<Self>,
        hub: &Domain,
        batch: LaneBatch,
    ) -> Result<Queued<impl Future<Output = Result<Taken, crate::base::Fault>> + Send + use<>>, Failure> {
        let group = check_batch(hub, &batch)?;
        let now = UnixMillis::now();
        let group_id = group.to_string();
        let sequences: Vec<u64> = batch.frames.iter().map(|frame| frame.lane_sequence).collect();
        let frames: Vec<ArrivedFrame> = batch.frames.into_iter().map(|frame| self.arrived(hub, &group_id, frame, now)).collect();
        let wakes = frames.iter().map(|frame| Wake::of(&frame.delivery)).collect();
        let take = TakeFrames { hub: hub.clone(), group_id, incarnation: batch.incarnation, frames };
        Ok(Queued { sequences, wakes, written: self.storage.queue_write(take).await? })
    }

    fn arrived(&self, hub: &Domain, group_id: &str, frame: LaneFrame, now: UnixMillis) -> ArrivedFrame {
        let opened: Vec<_> = frame.recipients.iter().map(|information| self.open_recipient(information, hub, now)).collect();
        let is_reset = frame.delivery == Delivery::Reset;
        ArrivedFrame {
            head: FrameHead { lane_sequence: frame.lane_sequence, digest: frame_digest(&frame), is_reset },
            opened: opened.iter().map(Option::is_some).collect(),
            delivery: DeliveryWrite {
                hub: hub.clone(),
                group_id: group_id.to_owned(),
                epoch: frame.epoch,
                delivery: encode(&frame.delivery),
                tells_loss: is_reset || frame.delivery == Delivery::MessagesLost,
                now,
                local: opened.into_iter().flatten().collect(),
                limits: self.queue_limits(),
                remote: Vec::new(),
            },
        }
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
            Ok(Taken::Gap(expected)) => LaneResult::Gap(expected),
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

fn response(taken: bool) -> QueueingServiceResponse {
    if taken { QueueingServiceResponse::Ok } else { QueueingServiceResponse::InvalidClientQueueInformation }
}
