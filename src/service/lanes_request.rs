//! One request with frames of several lanes: what goes into it, and how it ends.

use std::sync::Arc;

use tls_codec::Size as _;
use tokio::time::Instant;

use super::Service;
use super::lanes_fate::SentFrames;
use super::recipients::StoredRecipient;
use super::removals::Rejected;
use crate::base::count::Held;
use crate::base::limits::{
    FRAME_BYTES_MAX, LANE_BATCH_BYTES_MAX, LANE_BATCH_FRAMES_MAX, LANE_BATCH_RECIPIENTS_MAX, PEER_REQUEST_TIMEOUT,
};
use crate::base::{Context as _, Domain, Fault, GroupUri};
use crate::federation::{PeerError, PeerStream};
use crate::storage::lanes::WaitingFrame;
use crate::wire::peer::{FrameAnswer, LaneAnswer, LaneBatch, LaneFrame, LaneResult, PeerRequest, PeerResponse};
use crate::wire::qs::{Delivery, QueueingServiceResponse};
use crate::wire::{List, Rejection, decode, encode};

/// Which frames of a lane are wanted.
pub(super) struct Wanted<'a> {
    /// The group.
    pub(super) group_id: &'a str,
    /// The first.
    pub(super) from: u64,
    /// At most so many, if that is said.
    pub(super) frames_max: Option<usize>,
}

/// A batch on its way, and which leaf each recipient of each of its frames is.
pub(super) struct Outgoing {
    pub(super) group: GroupUri,
    pub(super) batch: LaneBatch,
    leaves: Vec<Vec<u32>>,
}

/// A request that was answered, or not.
pub(super) struct Returned {
    pub(super) batches: Vec<Outgoing>,
    pub(super) outcome: Result<Vec<LaneAnswer>, NoAnswer>,
    /// The stream, if it can be used again.
    pub(super) stream: Option<PeerStream>,
}

/// Why frames have no answer of their own.
pub(super) enum NoAnswer {
    /// None came.
    Failed(PeerError),
    /// The request was refused as a whole.
    Refused(Rejection),
    /// What came does not fit the request.
    Nonsense(&'static str),
}

impl Outgoing {
    /// What `lanes_fate` has to know of it.
    pub(super) fn sent(&self, first_here: Option<u64>) -> SentFrames {
        let first = self.batch.frames.first().map_or(0, |frame| frame.lane_sequence);
        let has_reset = self.batch.frames.first().is_some_and(|frame| frame.delivery == Delivery::Reset);
        SentFrames { first, count: self.batch.frames.len(), has_reset, first_here: first_here.unwrap_or(first) }
    }

    /// The leaves whose QS rejected the queue information that was sent (S14). An answer that is short of some says nothing
    /// about them.
    pub(super) fn rejected(&self, answers: &List<FrameAnswer>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for ((frame, leaves), answer) in self.batch.frames.iter().zip(&self.leaves).zip(answers) {
            let answered = leaves.iter().zip(&frame.recipients).zip(&answer.responses);
            let invalid = answered.filter(|(_, response)| **response == QueueingServiceResponse::InvalidClientQueueInformation);
            rejected.extend(invalid.map(|((leaf_index, information), _)| Rejected {
                group: self.group.clone(),
                leaf_index: *leaf_index,
                information: information.to_vec(),
            }));
        }
        rejected
    }
}

/// How much of one batch is used. The other side refuses a batch over any of these limits as a whole, and would again and again.
#[derive(Default)]
struct Budget {
    frames: usize,
    octets: usize,
    recipients: usize,
    spent: bool,
}

impl Budget {
    /// Whether the batch has room for `frame`; if so it is counted. The first frame always has: alone it is within all limits.
    fn takes(&mut self, frame: &LaneFrame) -> bool {
        let octets = self.octets + frame.tls_serialized_len();
        let recipients = self.recipients + frame.recipients.len();
        let fits =
            self.frames < LANE_BATCH_FRAMES_MAX && octets <= LANE_BATCH_BYTES_MAX && recipients <= LANE_BATCH_RECIPIENTS_MAX;
        if !fits && self.frames > 0 {
            self.spent = true;
            return false;
        }
        (self.frames, self.octets, self.recipients) = (self.frames + 1, octets, recipients);
        true
    }

    fn frames_left(&self) -> usize {
        LANE_BATCH_FRAMES_MAX - self.frames
    }

    /// Whether a frame was turned away, or none more would be taken.
    fn is_spent(&self) -> bool {
        self.spent || self.frames_left() == 0 || self.octets > LANE_BATCH_BYTES_MAX
    }
}

impl Service {
    /// The first frames of each of these lanes to `domain`, bounded together.
    pub(super) async fn outgoing(&self, domain: &Domain, lanes: &[Wanted<'_>]) -> Result<Vec<Outgoing>, Fault> {
        let mut batches = Vec::new();
        let mut budget = Budget::default();
        for (index, Wanted { group_id, from, frames_max }) in lanes.iter().enumerate() {
            // A fair share of what is left, so that a long lane leaves room for the others.
            let share = budget.frames_left().div_ceil(lanes.len() - index);
            let share = frames_max.map_or(share, |most| most.min(share));
            let waiting = self.storage.waiting_frames(domain, group_id, *from, share, LANE_BATCH_BYTES_MAX).await?;
            let Some(first) = waiting.first() else { continue };
            let incarnation = first.incarnation;
            let group: GroupUri = group_id.parse().context("a waiting frame's group is not readable")?;
            let (mut frames, mut leaves) = (Vec::new(), Vec::new());
            for frame in waiting {
                let (frame, recipients) = self.frame(domain, &group, frame).await?;
                if !budget.takes(&frame) {
                    break;
                }
                frames.push(frame);
                leaves.push(recipients);
            }
            if !frames.is_empty() {
                let batch = LaneBatch { group_id: group_id.as_bytes().into(), incarnation, frames: frames.into() };
                batches.push(Outgoing { group, batch, leaves });
            }
            if budget.is_spent() {
                break;
            }
        }
        Ok(batches)
    }

    /// The frame as it is sent, with the queue information that each recipient's leaf has now; and the leaves.
    async fn frame(&self, domain: &Domain, uri: &GroupUri, waiting: WaitingFrame) -> Result<(LaneFrame, Vec<u32>), Fault> {
        let recipients: List<StoredRecipient> =
            decode(&waiting.recipients).context("a waiting frame's recipients are not readable")?;
        let leaves = recipients.iter().map(|recipient| recipient.leaf_index).collect();
        let slot = self.groups.slot(uri);
        let mut group = slot.lock().await;
        let state = group.state(&self.storage, uri).await?;
        let recipients = recipients.into_iter().map(|recipient| {
            let member = state.as_ref().and_then(|state| state.members.get(&recipient.leaf_index));
            // The leaf may have been given to someone else since.
            match member.filter(|member| member.joined_epoch <= waiting.epoch && member.queue.domain == *domain) {
                Some(member) => member.queue.information.as_slice().into(),
                None => recipient.information,
            }
        });
        let frame = LaneFrame {
            lane_sequence: waiting.lane_sequence,
            epoch: waiting.epoch,
            recipients: recipients.collect(),
            delivery: decode(&waiting.delivery).context("a waiting frame's message is not readable")?,
        };
        Ok((frame, leaves))
    }
}

/// Sends batches and reads their answers, on `stream` if there is one.
pub(super) async fn exchange(
    service: Arc<Service>,
    domain: Domain,
    stream: Option<PeerStream>,
    batches: Vec<Outgoing>,
) -> Returned {
    let deadline = Instant::now() + PEER_REQUEST_TIMEOUT;
    let traffic = service.peers.traffic().of(&domain);
    let exchanged = async {
        let mut stream = match stream {
            Some(stream) => stream,
            None => service.peers.open_stream(&domain, deadline).await?,
        };
        let request = encode(&PeerRequest::Lanes(batches.iter().map(|outgoing| outgoing.batch.clone()).collect()));
        let frames = batches.iter().map(|outgoing| outgoing.batch.frames.len() as u64).sum();
        traffic.frames_sent.add(frames);
        let _in_flight = Held::new(traffic.frames_in_flight.clone(), frames);
        stream.sender.write(&request, deadline).await?;
        let answer = stream.receiver.read(FRAME_BYTES_MAX, deadline).await?;
        Ok((answer, stream))
    };
    let (answer, stream) = match exchanged.await {
        Ok(exchanged) => exchanged,
        Err(error) => return Returned { batches, outcome: Err(NoAnswer::Failed(error)), stream: None },
    };
    let outcome = match decode(&answer) {
        Ok(PeerResponse::Lanes(answers)) => {
            let fitting = fitting(answers.into_vec(), &batches);
            fitting.iter().flatten().for_each(|answer| {
                if let LaneResult::Accepted(frames) = &answer.result {
                    traffic.frames_delivered.add(frames.len() as u64);
                }
            });
            fitting
        }
        Ok(PeerResponse::Error(rejection)) => Err(NoAnswer::Refused(rejection)),
        Ok(_) | Err(_) => Err(NoAnswer::Nonsense("the answer is not one for lanes")),
    };
    let stream = Some(stream).filter(|_| !matches!(outcome, Err(NoAnswer::Nonsense(_))));
    Returned { batches, outcome, stream }
}

/// The answers, if they are for these batches.
fn fitting(answers: Vec<LaneAnswer>, batches: &[Outgoing]) -> Result<Vec<LaneAnswer>, NoAnswer> {
    let fits = answers.len() == batches.len()
        && answers
            .iter()
            .zip(batches)
            .all(|(answer, Outgoing { batch, .. })| answer.group_id == batch.group_id && answer.incarnation == batch.incarnation);
    if fits { Ok(answers) } else { Err(NoAnswer::Nonsense("the answer is not for the frames that were sent")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::GROUP_LEAVES_MAX;
    use crate::wire::qs::Delivery;

    fn frame(recipients: usize, octets: usize) -> LaneFrame {
        LaneFrame {
            lane_sequence: 1,
            epoch: 1,
            recipients: vec![vec![0; octets].into(); recipients].into(),
            delivery: Delivery::MessagesLost,
        }
    }

    /// How many such frames one batch takes.
    fn taken(frame: &LaneFrame) -> usize {
        let mut budget = Budget::default();
        (0..=LANE_BATCH_FRAMES_MAX).take_while(|_| budget.takes(frame)).count()
    }

    #[test]
    fn a_batch_stays_within_every_limit_of_the_receiver_and_is_never_empty() {
        assert_eq!(taken(&frame(1, 80)), LANE_BATCH_FRAMES_MAX);
        assert_eq!(taken(&frame(100, 80)), LANE_BATCH_RECIPIENTS_MAX / 100, "a backlog of a large group");
        assert_eq!(taken(&frame(10, 60_000)), LANE_BATCH_BYTES_MAX / frame(10, 60_000).tls_serialized_len());
        assert_eq!(taken(&frame(10, LANE_BATCH_BYTES_MAX)), 1, "one at least, however large");
        const { assert!(GROUP_LEAVES_MAX <= LANE_BATCH_RECIPIENTS_MAX, "the largest group's frame fits alone") };
    }
}
