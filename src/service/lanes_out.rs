//! Frames on their way to other domains: one worker per remote domain, which sends what is on disk in order until the other side
//! has it on disk (S14, S15). Accepting a message never waits for it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tls_codec::Size as _;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Service;
use super::recipients::StoredRecipient;
use super::removals::Rejected;
use crate::base::limits::{
    FRAME_BYTES_MAX, LANE_BATCH_BYTES_MAX, LANE_BATCH_FRAMES_MAX, LANE_BATCH_RECIPIENTS_MAX, LANES_PER_BATCH_MAX,
    PEER_REQUEST_TIMEOUT,
};
use crate::base::{Context as _, Domain, Fault, GroupUri};
use crate::federation::{PeerStream, backoff};
use crate::storage::lanes::{Delivered, DropFrames, WaitingFrame};
use crate::wire::peer::{FrameAnswer, LaneAnswer, LaneBatch, LaneFrame, LaneResult, PeerRequest, PeerResponse};
use crate::wire::qs::QueueingServiceResponse;
use crate::wire::{List, decode, encode};

/// The workers, one per remote domain that has or had frames waiting. They end with the node.
#[derive(Default)]
pub(super) struct LaneWorkers(Mutex<Workers>);

#[derive(Default)]
struct Workers {
    by_domain: HashMap<Domain, Arc<Notify>>,
    tasks: JoinSet<()>,
}

impl Service {
    /// Starts the workers: those of revocations and rejections, and one for each domain that frames wait for on disk.
    pub async fn start_workers(self: &Arc<Self>) -> Result<(), Fault> {
        {
            let mut workers = self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner);
            workers.tasks.spawn(self.clone().look_after_statuses());
            workers.tasks.spawn(self.clone().look_into_rejections());
        }
        for domain in self.storage.domains_with_frames().await? {
            self.wake_lane(&domain);
        }
        Ok(())
    }

    /// Waits for the workers, which end when the node stops.
    pub async fn join_workers(&self) {
        let mut tasks = {
            let mut workers = self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner);
            workers.by_domain.clear();
            std::mem::take(&mut workers.tasks)
        };
        while tasks.join_next().await.is_some() {}
    }

    /// Frames for `domain` are on disk.
    pub(super) fn wake_lane(self: &Arc<Self>, domain: &Domain) {
        let mut workers = self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = workers.by_domain.get(domain) {
            // Keeps one permit when the worker is busy, so that it looks again.
            return notify.notify_one();
        }
        if *self.shutdown.borrow() {
            return;
        }
        let notify = Arc::new(Notify::new());
        workers.by_domain.insert(domain.clone(), notify.clone());
        let worker = Worker {
            // A cycle, which ends with the node's shutdown signal.
            service: self.clone(),
            domain: domain.clone(),
            stream: None,
            held: HashMap::new(),
            served_last: String::new(),
            delivered: HashMap::new(),
            dropping: None,
            failures: 0,
        };
        workers.tasks.spawn(worker.run(notify));
    }
}

/// A batch on its way, and which leaf each recipient of each of its frames is.
struct Outgoing {
    group: GroupUri,
    batch: LaneBatch,
    leaves: Vec<Vec<u32>>,
}

impl Outgoing {
    /// The leaves whose QS rejected the queue information that was sent (S14). An answer that is short of some says nothing
    /// about them.
    fn rejected(&self, answers: &List<FrameAnswer>) -> Vec<Rejected> {
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

/// A write on its way to disk.
type Pending = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + Sync>>;

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

/// Sends the frames of all lanes to one domain.
struct Worker {
    service: Arc<Service>,
    domain: Domain,
    stream: Option<PeerStream>,
    /// Lanes that the other side refused, and when each is tried again: a stuck lane never delays another.
    held: HashMap<String, (Instant, u32)>,
    /// The lane that was last served.
    served_last: String,
    /// The last frame of each lane that is known to be delivered; its row may still be waiting to be dropped.
    delivered: HashMap<String, u64>,
    /// The removal of the frames delivered last, on its way to disk.
    dropping: Option<Pending>,
    /// For requests that fail on a connection that is up; the peer's gate paces everything else.
    failures: u32,
}

impl Worker {
    async fn run(mut self, woken: Arc<Notify>) {
        let mut shutdown = self.service.shutdown.clone();
        loop {
            let step = async {
                match self.step().await {
                    Ok(Progress::Sent) => {}
                    Ok(Progress::Idle) => woken.notified().await,
                    Ok(Progress::HeldUntil(at)) => {
                        tokio::select! {
                            () = woken.notified() => {}
                            () = tokio::time::sleep_until(at) => {}
                        }
                    }
                    Err(fault) => {
                        tracing::error!(domain = %self.domain, "frames cannot be read for sending: {fault}");
                        self.pause().await;
                    }
                }
            };
            tokio::select! {
                () = step => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Sends one batch, if any frame waits.
    async fn step(&mut self) -> Result<Progress, Fault> {
        let Some(batches) = self.next_batches().await? else {
            let next = self.held.values().map(|(until, _)| *until).min();
            return Ok(next.map_or(Progress::Idle, Progress::HeldUntil));
        };
        self.service.peers.wait_until_ready(&self.domain).await;
        match self.exchange(&batches).await {
            Ok(answers) => {
                self.failures = 0;
                self.settle(&batches, answers).await?;
            }
            Err(error) => {
                tracing::info!(domain = %self.domain, "frames were not delivered and stay queued: {error}");
                self.stream = None;
                // The gate holds us back when the peer could not be reached at all. A connection that was merely lost is worth
                // one try at once; a peer that fails again and again, however, is not.
                if self.failures > 0 || self.service.peers.is_up(&self.domain) {
                    self.pause().await;
                } else {
                    self.failures += 1;
                }
            }
        }
        Ok(Progress::Sent)
    }

    /// The next frames to send: of the lanes that follow those served last, so that every lane has its turn however many there
    /// are, and however many are held. `None` when no lane is ready.
    async fn next_batches(&mut self) -> Result<Option<Vec<Outgoing>>, Fault> {
        let mut from_the_first = self.served_last.is_empty();
        loop {
            let lanes = self.service.storage.waiting_lanes(&self.domain, &self.served_last, LANES_PER_BATCH_MAX).await?;
            let Some(last) = lanes.last().cloned() else {
                if from_the_first && self.served_last.is_empty() {
                    // Nothing waits at all.
                    self.held.clear();
                    self.delivered.clear();
                }
                if from_the_first {
                    self.served_last.clear();
                    return Ok(None);
                }
                self.served_last.clear();
                from_the_first = true;
                continue;
            };
            let now = Instant::now();
            let is_ready = |group_id: &&String| self.held.get(*group_id).is_none_or(|(until, _)| *until <= now);
            let ready: Vec<&String> = lanes.iter().filter(is_ready).collect();
            let batches = self.batches(&ready).await?;
            let served = batches.last().map(|outgoing| outgoing.group.to_string());
            self.served_last = served.unwrap_or(last);
            if !batches.is_empty() {
                return Ok(Some(batches));
            }
        }
    }

    /// The first frames of each lane, bounded together.
    async fn batches(&self, groups: &[&String]) -> Result<Vec<Outgoing>, Fault> {
        let mut batches = Vec::new();
        let mut budget = Budget::default();
        for (index, group_id) in groups.iter().enumerate() {
            // A fair share of what is left, so that a long lane leaves room for the others.
            let share = budget.frames_left().div_ceil(groups.len() - index);
            let from = self.delivered.get(*group_id).map_or(0, |last| last + 1);
            let waiting = self.service.storage.waiting_frames(&self.domain, group_id, from, share, LANE_BATCH_BYTES_MAX).await?;
            let Some(first) = waiting.first() else { continue };
            let incarnation = first.incarnation;
            let group: GroupUri = group_id.parse().context("a waiting frame's group is not readable")?;
            let (mut frames, mut leaves) = (Vec::new(), Vec::new());
            for frame in waiting {
                let (frame, recipients) = self.frame(&group, frame).await?;
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
    async fn frame(&self, uri: &GroupUri, waiting: WaitingFrame) -> Result<(LaneFrame, Vec<u32>), Fault> {
        let recipients: List<StoredRecipient> =
            decode(&waiting.recipients).context("a waiting frame's recipients are not readable")?;
        let leaves = recipients.iter().map(|recipient| recipient.leaf_index).collect();
        let slot = self.service.groups.slot(uri);
        let mut group = slot.lock().await;
        let state = group.state(&self.service.storage, uri).await?;
        let recipients = recipients.into_iter().map(|recipient| {
            let member = state.as_ref().and_then(|state| state.members.get(&recipient.leaf_index));
            // The leaf may have been given to someone else since.
            match member.filter(|member| member.joined_epoch <= waiting.epoch && member.queue.domain == self.domain) {
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

    async fn exchange(&mut self, batches: &[Outgoing]) -> Result<Vec<LaneAnswer>, String> {
        let deadline = Instant::now() + PEER_REQUEST_TIMEOUT;
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.service.peers.open_stream(&self.domain, deadline).await.map_err(|error| error.to_string())?,
        };
        let request = encode(&PeerRequest::Lanes(batches.iter().map(|outgoing| outgoing.batch.clone()).collect()));
        stream.sender.write(&request, deadline).await.map_err(|error| error.to_string())?;
        let answer = stream.receiver.read(FRAME_BYTES_MAX, deadline).await.map_err(|error| error.to_string())?;
        match decode(&answer) {
            Ok(PeerResponse::Lanes(answers)) => {
                let fits = answers.len() == batches.len()
                    && answers.iter().zip(batches).all(|(answer, Outgoing { batch, .. })| {
                        answer.group_id == batch.group_id && answer.incarnation == batch.incarnation
                    });
                if !fits {
                    return Err("the answer is not for the frames that were sent".to_owned());
                }
                self.stream = Some(stream);
                Ok(answers.into_vec())
            }
            Ok(PeerResponse::Error(rejection)) => Err(format!("all lanes were refused: {rejection}")),
            Ok(_) | Err(_) => Err("the answer is not one for lanes".to_owned()),
        }
    }

    /// Drops what is delivered, and holds lanes that were refused.
    async fn settle(&mut self, batches: &[Outgoing], answers: Vec<LaneAnswer>) -> Result<(), Fault> {
        let mut delivered = Vec::new();
        for (outgoing, answer) in batches.iter().zip(answers) {
            let group_id = outgoing.group.to_string();
            match answer.result {
                LaneResult::Accepted(frames) => {
                    self.service.rejections.report(outgoing.rejected(&frames));
                    if let Some(last) = outgoing.batch.frames.last() {
                        delivered.push(Delivered {
                            group_id: group_id.clone(),
                            incarnation: outgoing.batch.incarnation,
                            up_to: last.lane_sequence,
                        });
                    }
                    self.held.remove(&group_id);
                }
                LaneResult::Gap(expected) => {
                    self.hold(group_id, format!("the other side waits for frame {expected}, which is not here any more"));
                }
                LaneResult::Refused(rejection) => self.hold(group_id, rejection.to_string()),
            }
        }
        if !delivered.is_empty() {
            self.delivered.extend(delivered.iter().map(|lane| (lane.group_id.clone(), lane.up_to)));
            // The one before must be on disk by now: after a crash the other side recognises repeats only so far back. This one
            // is waited for when the next batch is through.
            if let Some(dropping) = self.dropping.take() {
                dropping.await?;
            }
            let drop_frames = DropFrames { domain: self.domain.clone(), lanes: delivered };
            self.dropping = Some(Box::pin(self.service.storage.queue_write(drop_frames).await?));
        }
        Ok(())
    }

    /// Waits after a failure that the peer's gate does not know of.
    async fn pause(&mut self) {
        self.failures += 1;
        let wait = backoff::delay(self.failures, &mut rand::rng());
        tokio::time::sleep(wait).await;
    }

    fn hold(&mut self, group_id: String, reason: String) {
        let (until, failures) = self.held.entry(group_id.clone()).or_insert_with(|| (Instant::now(), 0));
        *failures += 1;
        let wait = backoff::delay(*failures, &mut rand::rng());
        *until = Instant::now() + wait;
        tracing::warn!(group = %group_id, domain = %self.domain, retry_after_ms = wait.as_millis(), "a lane is held: {reason}");
    }
}

/// What a step came to.
enum Progress {
    /// Something was tried; look again at once.
    Sent,
    /// Nothing waits.
    Idle,
    /// Only lanes that are held wait.
    HeldUntil(Instant),
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
