//! Frames on their way to other domains: one worker per remote domain, which sends what is on disk in order until the other side
//! has it on disk (S14, S15). Accepting a message never waits for it.
//!
//! A request carries frames of many lanes, and a few requests are on their way at once. A lane is in at most one of them, which
//! keeps its order; so one that the other side is slow with, or does not take, delays itself and nothing else.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tls_codec::Size as _;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Service;
use super::lanes_fate::{self, Fate, Over, SentFrames};
use super::recipients::StoredRecipient;
use super::removals::Rejected;
use crate::base::count::Held;
use crate::base::limits::{
    FRAME_BYTES_MAX, LANE_BATCH_BYTES_MAX, LANE_BATCH_FRAMES_MAX, LANE_BATCH_RECIPIENTS_MAX, LANE_REQUEST_PATIENCE,
    LANE_REQUESTS_AT_ONCE_MAX, LANES_PER_BATCH_MAX, PEER_REQUEST_TIMEOUT,
};
use crate::base::{Context as _, Domain, Fault, GroupUri, UnixMillis};
use crate::federation::{PeerError, PeerStream, Sent, Why, backoff};
use crate::storage::lanes::{Delivered, DropFrames, NoteRefused, WaitingFrame};
use crate::wire::peer::{FrameAnswer, LaneAnswer, LaneBatch, LaneFrame, LaneResult, PeerRequest, PeerResponse};
use crate::wire::qs::{Delivery, QueueingServiceResponse};
use crate::wire::{List, Rejection, decode, encode};

/// The workers, one per remote domain that has or had frames waiting. They end with the node.
#[derive(Default)]
pub(super) struct LaneWorkers(Mutex<Workers>);

#[derive(Default)]
struct Workers {
    by_domain: BTreeMap<Domain, Arc<Errand>>,
    tasks: JoinSet<()>,
}

/// What a worker is told.
#[derive(Default)]
struct Errand {
    /// Something is new: frames, or lanes below.
    woken: Notify,
    /// Groups whose lanes are over their bounds, and when that was seen.
    over: Mutex<BTreeMap<String, UnixMillis>>,
}

impl Service {
    /// Starts the workers: those of revocations, rejections and bounds, and one for each domain that frames wait for on disk.
    pub async fn start_workers(self: &Arc<Self>) -> Result<(), Fault> {
        {
            let mut workers = self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner);
            workers.tasks.spawn(self.clone().look_after_statuses());
            workers.tasks.spawn(self.clone().look_into_rejections());
            workers.tasks.spawn(self.clone().keep_looking_after_lanes());
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
        if let Some(errand) = self.lane_worker(domain) {
            // Keeps one permit when the worker is busy, so that it looks again.
            errand.woken.notify_one();
        }
    }

    /// The lane of `group_id` to `domain` is over its bounds at `now`: its worker ends it.
    pub(super) fn lane_is_over(self: &Arc<Self>, domain: &Domain, group_id: String, now: UnixMillis) {
        if let Some(errand) = self.lane_worker(domain) {
            errand.over.lock().unwrap_or_else(PoisonError::into_inner).insert(group_id, now);
            errand.woken.notify_one();
        }
    }

    /// The worker of `domain`, started if there is none; `None` when the node stops.
    fn lane_worker(self: &Arc<Self>, domain: &Domain) -> Option<Arc<Errand>> {
        let mut workers = self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errand) = workers.by_domain.get(domain) {
            return Some(errand.clone());
        }
        if *self.shutdown.borrow() {
            return None;
        }
        let errand = Arc::new(Errand::default());
        workers.by_domain.insert(domain.clone(), errand.clone());
        // A cycle, which ends with the node's shutdown signal.
        workers.tasks.spawn(Worker::new(self.clone(), domain.clone(), errand.clone()).run());
        Some(errand)
    }
}

/// A batch on its way, and which leaf each recipient of each of its frames is.
struct Outgoing {
    group: GroupUri,
    batch: LaneBatch,
    leaves: Vec<Vec<u32>>,
}

/// A request that was answered, or not.
struct Returned {
    batches: Vec<Outgoing>,
    outcome: Result<Vec<LaneAnswer>, NoAnswer>,
    /// The stream, if it can be used again.
    stream: Option<PeerStream>,
}

/// Why frames have no answer of their own.
enum NoAnswer {
    /// None came.
    Failed(PeerError),
    /// The request was refused as a whole.
    Refused(Rejection),
    /// What came does not fit the request.
    Nonsense(&'static str),
}

impl Outgoing {
    fn sent(&self, first_here: Option<u64>) -> SentFrames {
        let first = self.batch.frames.first().map_or(0, |frame| frame.lane_sequence);
        let has_reset = self.batch.frames.first().is_some_and(|frame| frame.delivery == Delivery::Reset);
        SentFrames { first, count: self.batch.frames.len(), has_reset, first_here: first_here.unwrap_or(first) }
    }

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

/// A write on its way to disk.
type Pending = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + Sync>>;

/// What a worker remembers of a lane. Most are as new, and not remembered.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lane {
    /// Its frames are in a request that is on its way.
    on_its_way: bool,
    /// Not tried again before this.
    held_until: Option<Instant>,
    /// How often in a row it came to nothing.
    failures: u32,
    /// The last frame that is known to be delivered; its row may still be waiting to be dropped.
    delivered: Option<u64>,
    /// At most so many frames at once, while one that is refused is looked for.
    frames_max: Option<usize>,
    /// Alone in its requests: the one before came to nothing, and it may be because of this lane.
    alone: bool,
}

impl Lane {
    fn is_ready(&self, now: Instant) -> bool {
        !self.on_its_way && self.held_until.is_none_or(|until| until <= now)
    }
}

/// Sends the frames of all lanes to one domain.
struct Worker {
    service: Arc<Service>,
    domain: Domain,
    errand: Arc<Errand>,
    lanes: BTreeMap<String, Lane>,
    /// The lane that was last served.
    served_last: String,
    requests: JoinSet<Returned>,
    /// When the last request went out.
    last_sent: Instant,
    /// No lane that has frames is ready, as far as was looked.
    nothing_ready: bool,
    /// Streams that no request uses.
    streams: Vec<PeerStream>,
    /// The removal of the frames delivered last, on its way to disk, and which they are.
    dropping: Option<(Pending, Vec<Delivered>)>,
    /// For requests that fail on a connection that is up; the peer's gate paces everything else.
    failures: u32,
    /// Nothing is sent before this.
    paused_until: Option<Instant>,
}

impl Worker {
    fn new(service: Arc<Service>, domain: Domain, errand: Arc<Errand>) -> Self {
        Self {
            service,
            domain,
            errand,
            lanes: BTreeMap::new(),
            served_last: String::new(),
            requests: JoinSet::new(),
            last_sent: Instant::now(),
            nothing_ready: false,
            streams: Vec::new(),
            dropping: None,
            failures: 0,
            paused_until: None,
        }
    }

    async fn run(mut self) {
        let mut shutdown = self.service.shutdown.clone();
        let traffic = self.service.peers.traffic().of(&self.domain);
        loop {
            traffic.lanes_held.set(self.lanes.values().filter(|lane| lane.held_until.is_some()).count() as u64);
            let step = async {
                if let Err(fault) = self.step().await {
                    tracing::error!(domain = %self.domain, "frames cannot be sent: {fault}");
                    self.pause(None);
                }
            };
            tokio::select! {
                () = step => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Sends what can be sent now, then waits until something is new: frames, an answer, a time that was waited for.
    async fn step(&mut self) -> Result<(), Fault> {
        self.end_those_over().await?;
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        let may_look = self.paused_until.is_none() && !self.nothing_ready && self.requests.len() < LANE_REQUESTS_AT_ONCE_MAX;
        let patient = !self.requests.is_empty() && self.last_sent.elapsed() < LANE_REQUEST_PATIENCE;
        if may_look && !patient {
            let errand = self.errand.clone();
            tokio::select! {
                // A peer that cannot be tried: what its lanes hold is looked after all the same.
                () = errand.woken.notified() => {
                    self.nothing_ready = false;
                    return Ok(());
                }
                returned = next_returned(&mut self.requests) => return self.settle(returned).await,
                () = self.service.peers.wait_until_ready(&self.domain) => {}
            }
            match self.next_batches().await? {
                Some(batches) => self.send(batches),
                None => self.nothing_ready = true,
            }
            return Ok(());
        }
        let held = self.lanes.values().filter(|lane| !lane.on_its_way).filter_map(|lane| lane.held_until).min();
        let looks_again = match (self.paused_until, may_look) {
            (Some(until), _) => Some(until),
            (None, true) => Some(self.last_sent + LANE_REQUEST_PATIENCE),
            (None, false) => held,
        };
        let errand = self.errand.clone();
        tokio::select! {
            () = errand.woken.notified() => self.nothing_ready = false,
            returned = next_returned(&mut self.requests) => self.settle(returned).await?,
            () = sleep_until(looks_again) => self.nothing_ready = false,
        }
        Ok(())
    }

    /// The next frames to send: of the lanes that follow those served last, so that every lane has its turn however many there
    /// are, and however many are held. `None` when no lane is ready.
    async fn next_batches(&mut self) -> Result<Option<Vec<Outgoing>>, Fault> {
        let mut from_the_first = self.served_last.is_empty();
        loop {
            let lanes = self.service.storage.waiting_lanes(&self.domain, &self.served_last, LANES_PER_BATCH_MAX).await?;
            let Some(last) = lanes.last().cloned() else {
                self.served_last.clear();
                if from_the_first {
                    return Ok(None);
                }
                from_the_first = true;
                continue;
            };
            let now = Instant::now();
            let lane = |group_id: &String| self.lanes.get(group_id);
            let mut ready: Vec<&String> =
                lanes.iter().filter(|group_id| lane(group_id).is_none_or(|lane| lane.is_ready(now))).collect();
            // One that has to be alone is: it comes first, or waits until it does.
            let is_alone = |group_id: &String| lane(group_id).is_some_and(|lane| lane.alone);
            match ready.iter().position(|group_id| is_alone(group_id)) {
                Some(0) => ready.truncate(1),
                Some(first) => ready.truncate(first),
                None => {}
            }
            let batches = self.batches(&ready).await?;
            let served = ready.last().filter(|_| batches.is_empty()).map(|group_id| (*group_id).clone());
            let served = batches.last().map(|outgoing| outgoing.group.to_string()).or(served);
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
            let lane = self.lanes.get(*group_id);
            // A fair share of what is left, so that a long lane leaves room for the others.
            let share = budget.frames_left().div_ceil(groups.len() - index);
            let share = lane.and_then(|lane| lane.frames_max).map_or(share, |most| most.min(share));
            let from = lane.and_then(|lane| lane.delivered).map_or(1, |last| last + 1);
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

    fn send(&mut self, batches: Vec<Outgoing>) {
        for outgoing in &batches {
            self.lanes.entry(outgoing.group.to_string()).or_default().on_its_way = true;
        }
        self.last_sent = Instant::now();
        self.requests.spawn(exchange(self.service.clone(), self.domain.clone(), self.streams.pop(), batches));
    }

    /// Follows the answer to a request.
    async fn settle(&mut self, returned: Result<Returned, Fault>) -> Result<(), Fault> {
        self.nothing_ready = false;
        let Returned { batches, outcome, stream } = match returned {
            Ok(returned) => returned,
            Err(fault) => {
                // Which lanes it was about is lost with it.
                self.requests.abort_all();
                self.lanes.values_mut().for_each(|lane| lane.on_its_way = false);
                return Err(fault);
            }
        };
        self.streams.extend(stream);
        for outgoing in &batches {
            self.lanes.entry(outgoing.group.to_string()).or_default().on_its_way = false;
        }
        match outcome {
            Ok(answers) => {
                self.failures = 0;
                self.settle_lanes(&batches, answers).await?;
            }
            Err(why) => self.settle_failure(&batches, why).await?,
        }
        self.lanes.retain(|_, lane| *lane != Lane::default());
        Ok(())
    }

    async fn settle_lanes(&mut self, batches: &[Outgoing], answers: Vec<LaneAnswer>) -> Result<(), Fault> {
        let mut delivered = Vec::new();
        let mut others = Vec::new();
        for (outgoing, answer) in batches.iter().zip(answers) {
            match answer.result {
                LaneResult::Accepted(frames) => {
                    self.service.rejections.report(outgoing.rejected(&frames));
                    delivered.push(self.delivered(outgoing));
                }
                result => others.push((outgoing, result)),
            }
        }
        self.drop_delivered(delivered).await?;
        for (outgoing, result) in others {
            let group_id = outgoing.group.to_string();
            let first_here = match result {
                LaneResult::Gap(_) => {
                    self.finish_dropping().await?;
                    let status = self.service.storage.lane_status(&self.domain, &group_id).await?;
                    status.map(|status| status.first_sequence)
                }
                _ => None,
            };
            let reason = match &result {
                LaneResult::Gap(expected) => format!("the other side waits for frame {expected}"),
                LaneResult::Refused(rejection) => rejection.to_string(),
                LaneResult::Accepted(_) => String::new(),
            };
            let fate = lanes_fate::of_result(&result, &outgoing.sent(first_here));
            self.meet(outgoing, fate, &reason).await?;
        }
        Ok(())
    }

    /// The request as a whole came to nothing.
    async fn settle_failure(&mut self, batches: &[Outgoing], why: NoAnswer) -> Result<(), Fault> {
        let (reason, timed_out) = match &why {
            NoAnswer::Failed(error) => {
                // Those of the same connection are of no more use, either.
                self.streams.clear();
                (error.to_string(), error.why == Why::TimedOut && error.sent == Sent::OutcomeUnknown)
            }
            NoAnswer::Refused(rejection) => (format!("all lanes were refused: {rejection}"), false),
            NoAnswer::Nonsense(what) => ((*what).to_owned(), false),
        };
        tracing::info!(domain = %self.domain, lanes = batches.len(), "frames were not delivered and stay queued: {reason}");
        let fate = |outgoing: &Outgoing| match &why {
            NoAnswer::Failed(error) => lanes_fate::of_failure(error, &outgoing.sent(None)),
            NoAnswer::Refused(rejection) => lanes_fate::of_refusal(rejection, &outgoing.sent(None)),
            NoAnswer::Nonsense(_) => Fate::Later(None),
        };
        let fates: Vec<Fate> = batches.iter().map(fate).collect();
        if fates.iter().all(|fate| matches!(fate, Fate::Later(_))) {
            // Whichever lane it is that the other side takes too long with, or answers for with nonsense, it is found alone.
            if timed_out || matches!(why, NoAnswer::Nonsense(_)) {
                batches.iter().filter(|_| batches.len() > 1).for_each(|outgoing| self.lane(outgoing).alone = true);
                if let [outgoing] = batches {
                    self.hold(outgoing, None, &reason);
                    return Ok(());
                }
            }
            let wait = fates.iter().find_map(|fate| if let Fate::Later(wait) = fate { *wait } else { None });
            // The gate holds us back when the peer could not be reached at all. A connection that was merely lost is worth
            // one try at once, after the last of its requests; a peer that fails again and again, however, is not.
            if wait.is_none() && !self.requests.is_empty() {
                return Ok(());
            }
            if wait.is_some() || self.failures > 0 || self.service.peers.is_up(&self.domain) {
                self.pause(wait);
            } else {
                self.failures += 1;
            }
            return Ok(());
        }
        // For good, and nobody says because of which lane: each is tried alone.
        for (outgoing, fate) in batches.iter().zip(fates) {
            if batches.len() > 1 {
                self.lane(outgoing).alone = true;
            } else {
                self.meet(outgoing, fate, &reason).await?;
            }
        }
        Ok(())
    }

    /// Does to a lane what becomes of its frames.
    async fn meet(&mut self, outgoing: &Outgoing, fate: Fate, reason: &str) -> Result<(), Fault> {
        match fate {
            Fate::Delivered => {}
            Fate::Later(wait) => {
                // It may be that what was delivered is not there any more.
                self.lane(outgoing).delivered = None;
                self.hold(outgoing, wait, reason);
            }
            Fate::Fewer => self.lane(outgoing).frames_max = Some((outgoing.batch.frames.len() / 2).max(1)),
            Fate::Unwanted => {
                let (domain, group_id) = (self.domain.clone(), outgoing.group.to_string());
                self.service.storage.write(NoteRefused { domain, group_id, since: UnixMillis::now() }).await?;
                self.hold(outgoing, None, &format!("nothing of it is wanted there: {reason}"));
            }
            Fate::Over(over) => self.end(&outgoing.group, outgoing.batch.incarnation, over).await?,
        }
        Ok(())
    }

    /// What an accepted batch delivered.
    fn delivered(&mut self, outgoing: &Outgoing) -> Delivered {
        let up_to = outgoing.batch.frames.last().map_or(0, |frame| frame.lane_sequence);
        let only_reset = outgoing.batch.frames.len() == 1 && outgoing.sent(None).has_reset;
        let lane = self.lane(outgoing);
        lane.delivered = Some(up_to);
        lane.held_until = None;
        lane.alone = false;
        lane.frames_max = lane.frames_max.map(|most| most * 2).filter(|most| *most < LANE_BATCH_FRAMES_MAX);
        // A lane that takes nothing but resets makes no progress, and must not begin anew all the time.
        if !only_reset {
            lane.failures = 0;
        }
        Delivered { group_id: outgoing.group.to_string(), incarnation: outgoing.batch.incarnation, up_to }
    }

    async fn drop_delivered(&mut self, delivered: Vec<Delivered>) -> Result<(), Fault> {
        if delivered.is_empty() {
            return Ok(());
        }
        // The one before must be on disk by now: after a crash the other side recognises repeats only so far back. This one
        // is waited for when the next batch is through.
        self.finish_dropping().await?;
        let drop_frames = DropFrames { domain: self.domain.clone(), lanes: delivered.clone() };
        self.dropping = Some((Box::pin(self.service.storage.queue_write(drop_frames).await?), delivered));
        Ok(())
    }

    /// Waits until the frames delivered last are dropped.
    async fn finish_dropping(&mut self) -> Result<(), Fault> {
        let Some((pending, delivered)) = self.dropping.take() else { return Ok(()) };
        pending.await?;
        for Delivered { group_id, up_to, .. } in delivered {
            if let Some(lane) = self.lanes.get_mut(&group_id)
                && lane.delivered == Some(up_to)
            {
                lane.delivered = None;
            }
        }
        Ok(())
    }

    /// Ends the lanes that are over their bounds, but for those whose frames are on their way.
    async fn end_those_over(&mut self) -> Result<(), Fault> {
        let over = std::mem::take(&mut *self.errand.over.lock().unwrap_or_else(PoisonError::into_inner));
        for (group_id, now) in over {
            if self.lanes.get(&group_id).is_some_and(|lane| lane.on_its_way) {
                // The next look at the bounds finds it again.
                continue;
            }
            self.finish_dropping().await?;
            let Some(lane) = self.service.storage.lane_status(&self.domain, &group_id).await? else { continue };
            let Some(over) = self.service.over_its_bounds(&lane, now).await? else { continue };
            let group: GroupUri = group_id.parse().context("a lane's group is not readable")?;
            self.end(&group, lane.incarnation, over).await?;
        }
        Ok(())
    }

    async fn end(&mut self, group: &GroupUri, incarnation: crate::base::ids::Incarnation, over: Over) -> Result<(), Fault> {
        // What was delivered is not lost.
        self.finish_dropping().await?;
        self.service.end_incarnation(&self.domain, group, incarnation, over).await?;
        let lane = self.lanes.entry(group.to_string()).or_default();
        lane.delivered = None;
        // The reset first, by itself: whether it is taken says whether anything would be.
        lane.frames_max = Some(1);
        if lane.failures > 0 {
            lane.held_until = Some(Instant::now() + backoff::delay(lane.failures, &mut rand::rng()));
        }
        lane.failures += 1;
        Ok(())
    }

    fn lane(&mut self, outgoing: &Outgoing) -> &mut Lane {
        self.lanes.entry(outgoing.group.to_string()).or_default()
    }

    /// Sends nothing for a while, after a failure that the peer's gate does not know of.
    fn pause(&mut self, at_least: Option<Duration>) {
        self.failures += 1;
        let wait = backoff::delay(self.failures, &mut rand::rng());
        self.paused_until = Some(Instant::now() + at_least.map_or(wait, |least| wait.max(least)));
    }

    fn hold(&mut self, outgoing: &Outgoing, at_least: Option<Duration>, reason: &str) {
        let domain = self.domain.clone();
        let lane = self.lane(outgoing);
        lane.failures += 1;
        let wait = backoff::delay(lane.failures, &mut rand::rng());
        let wait = at_least.map_or(wait, |least| wait.max(least));
        lane.held_until = Some(Instant::now() + wait);
        tracing::warn!(group = %outgoing.group, %domain, retry_after_ms = wait.as_millis(), "a lane is held: {reason}");
    }
}

/// The next request that is answered or failed; never when none is on its way.
async fn next_returned(requests: &mut JoinSet<Returned>) -> Result<Returned, Fault> {
    match requests.join_next().await {
        Some(returned) => returned.context("a request with frames was interrupted"),
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Sends batches and reads their answers, on `stream` if there is one.
async fn exchange(service: Arc<Service>, domain: Domain, stream: Option<PeerStream>, batches: Vec<Outgoing>) -> Returned {
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
