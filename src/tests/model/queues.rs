//! The Queueing Services: queues and lanes in memory, moved by the functions that the node's transactions call, beside what the
//! model expects to be in each queue.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::{Carry, People};
use crate::base::ids::{Incarnation, InviteId, QueueId};
use crate::base::{Domain, UnixMillis};
use crate::ds::FanOut;
use crate::qs::invites::{Bound, InviteUse};
use crate::qs::lanes::{FrameHead, LaneDecision, LaneState, check_batch, frame_digest};
use crate::qs::queue::{Arrival, QueueLimits, QueueState, arrive, takes_generation};
use crate::qs::{invites, lanes, sealed};
use crate::wire::peer::{LaneBatch, LaneFrame};
use crate::wire::qs::{Delivery, Invite, QueueBinding, QueueInformation};
use crate::wire::{Opaque, decode, encode};

/// Small, so that queues of those who never acknowledge overflow.
const LIMITS: QueueLimits = QueueLimits { entries_max: 60, octets_max: 200_000 };

/// One device's queue.
struct Queue {
    id: QueueId,
    state: QueueState,
    next_sequence: u64,
    acked: u64,
    /// Everything that ever was in it, acknowledged or not.
    entries: Vec<Entry>,
    /// What the model expects of each group, in order.
    expected: BTreeMap<usize, Vec<u64>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    sequence: u64,
    group: usize,
    octets: u64,
    /// The delivery; `None` is a marker.
    delivery: Option<u64>,
}

/// A recipient as its frame keeps it.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) leaf: u32,
    pub(super) information: Vec<u8>,
}

/// A frame on its way.
#[derive(Clone)]
struct Frame {
    delivery: u64,
    recipients: Vec<Address>,
    frame: LaneFrame,
}

/// From one hub's group to one other domain.
struct Lane {
    group: usize,
    hub: usize,
    to: usize,
    incarnation: Incarnation,
    /// The frames of this incarnation, sequence 1 first; those before `taken` were taken.
    frames: Vec<Frame>,
    taken: usize,
    /// The receiver's side.
    state: Option<LaneState>,
    kept: BTreeMap<u64, [u8; 32]>,
}

/// A recipient that its QS rejected, for the group's hub to know.
pub(super) struct Rejected {
    pub(super) group: usize,
    pub(super) address: Address,
}

/// All queues, and all lanes.
pub(super) struct Queues {
    people: &'static People,
    queues: Vec<Queue>,
    invites: BTreeMap<InviteId, Vec<Bound>>,
    lanes: Vec<Lane>,
    next_delivery: u64,
    /// Markers written, frames refused: for the counts.
    pub(super) markers: u64,
    pub(super) rejections: u64,
    pub(super) entries: u64,
}

impl Queues {
    pub(super) fn new(people: &'static People) -> Self {
        let queue = |number: usize| Queue {
            id: QueueId((number as u128).to_be_bytes()),
            state: QueueState { generation: 1, ..QueueState::default() },
            next_sequence: 1,
            acked: 0,
            entries: Vec::new(),
            expected: BTreeMap::new(),
        };
        let queues = (0..people.devices.len()).map(queue).collect();
        let (invites, lanes) = (BTreeMap::new(), Vec::new());
        Self { people, queues, invites, lanes, next_delivery: 0, markers: 0, rejections: 0, entries: 0 }
    }

    /// What a device's sealed queue information for a hub says; here it is not sealed, which no hub can tell.
    pub(super) fn information(&self, device: usize, binding: QueueBinding) -> Vec<u8> {
        let queue = &self.queues[device];
        encode(&QueueInformation { queue_id: queue.id, generation: queue.state.generation, binding })
    }

    /// That of a KeyPackage, for whichever group uses it first.
    pub(super) fn invitation(&self, device: usize, now: UnixMillis) -> Vec<u8> {
        let expires_at_ms = now.plus(std::time::Duration::from_secs(86_400)).0;
        self.information(device, QueueBinding::Invite(Invite { invite_id: InviteId::random(), last_resort: 0, expires_at_ms }))
    }

    /// Begins a generation and retires those before.
    pub(super) fn retire(&mut self, device: usize) {
        let state = &mut self.queues[device].state;
        state.retired_generation = state.generation;
        state.generation += 1;
    }

    /// The device has taken its next entries.
    pub(super) fn ack(&mut self, device: usize, entries: usize) {
        let queue = &mut self.queues[device];
        let waiting = queue.entries.iter().filter(|entry| entry.sequence > queue.acked).take(entries);
        let (count, octets, last) =
            waiting.fold((0, 0, queue.acked), |(count, octets, _), entry| (count + 1, octets + entry.octets, entry.sequence));
        queue.acked = last;
        queue.state.entries -= count;
        queue.state.octets -= octets;
    }

    /// Takes one delivery of a hub: here what is for its own domain, into lanes what is for others.
    pub(super) fn deliver(&mut self, hub: usize, group: usize, fan_out: &FanOut, now: UnixMillis) -> Vec<Rejected> {
        let delivery = self.next_delivery;
        self.next_delivery += 1;
        let octets = encode(&fan_out.delivery).len() as u64;
        let mut by_domain: BTreeMap<usize, Vec<Address>> = BTreeMap::new();
        for recipient in &fan_out.recipients {
            let of = self.people.domains.iter().position(|domain| *domain == recipient.queue.domain).expect("a known domain");
            let address = Address { leaf: recipient.leaf_index, information: recipient.queue.information.clone() };
            by_domain.entry(of).or_default().push(address);
        }
        let mut rejected = Vec::new();
        for (to, recipients) in by_domain {
            if to == hub {
                rejected.extend(self.arrive(hub, group, delivery, octets, &recipients, now));
                continue;
            }
            let index = self.lanes.iter().position(|lane| lane.group == group && lane.to == to).unwrap_or_else(|| {
                let (incarnation, frames, kept) = (Incarnation::random(), Vec::new(), BTreeMap::new());
                self.lanes.push(Lane { group, hub, to, incarnation, frames, taken: 0, state: None, kept });
                self.lanes.len() - 1
            });
            let lane = &mut self.lanes[index];
            let frame = LaneFrame {
                lane_sequence: lane.frames.len() as u64 + 1,
                epoch: fan_out.epoch,
                recipients: recipients.iter().map(|address| Opaque::from(address.information.as_slice())).collect(),
                delivery: fan_out.delivery.clone(),
            };
            lane.frames.push(Frame { delivery, recipients, frame });
        }
        rejected
    }

    /// One frame arrives at the QS of its recipients. Returns those that it rejects.
    fn arrive(
        &mut self,
        hub: usize,
        group: usize,
        delivery: u64,
        octets: u64,
        recipients: &[Address],
        now: UnixMillis,
    ) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for address in recipients {
            if !self.arrive_at(hub, group, delivery, octets, &address.information, now) {
                self.rejections += 1;
                rejected.push(Rejected { group, address: address.clone() });
            }
        }
        rejected
    }

    /// What the storage transaction does with one recipient, and beside it what the model expects.
    fn arrive_at(&mut self, hub: usize, group: usize, delivery: u64, octets: u64, information: &[u8], now: UnixMillis) -> bool {
        let hub_domain: &Domain = &self.people.domains[hub];
        let information: QueueInformation = decode(information).expect("well-formed");
        let device = self.queues.iter().position(|queue| queue.id == information.queue_id).expect("a queue");
        let by = Bound { hub: hub_domain.clone(), group_id: group.to_string() };

        // The model: a generation that is current, a binding that fits.
        let state = self.queues[device].state;
        let current = information.generation > state.retired_generation && information.generation <= state.generation;
        let fits = match &information.binding {
            QueueBinding::Hub(bound) => bound[..] == *hub_domain.as_bytes(),
            QueueBinding::Invite(invite) => {
                self.invites.get(&invite.invite_id).is_none_or(|bound| bound.iter().all(|bound| *bound == by))
            }
        };
        if current && fits {
            self.queues[device].expected.entry(group).or_default().push(delivery);
        }

        if !sealed::may_be_used_by(&information, hub_domain, now) {
            return false;
        }
        if !takes_generation(Some(&state), information.generation) {
            return false;
        }
        if let QueueBinding::Invite(invite) = &information.binding {
            let bound = self.invites.entry(invite.invite_id).or_default();
            match invites::decide(&by, bound, invite.last_resort == 1, false) {
                InviteUse::Known => {}
                InviteUse::Bind => bound.push(by),
                InviteUse::Refused => return false,
            }
        }
        self.put(device, group, Some((delivery, octets)))
    }

    /// An entry, or the news of a loss, reaches a queue.
    fn put(&mut self, device: usize, group: usize, arrival: Option<(u64, u64)>) -> bool {
        let queue = &mut self.queues[device];
        let waiting = || queue.entries.iter().filter(|entry| entry.sequence > queue.acked);
        let mut last: BTreeMap<usize, bool> = BTreeMap::new();
        for entry in waiting() {
            last.insert(entry.group, entry.delivery.is_none());
        }
        let marked = last.get(&group) == Some(&true);
        // Far fewer groups than a hub may have markers of.
        let markers = last.values().filter(|marked| **marked).count() as u64;
        let entry = match arrive(&queue.state, &LIMITS, arrival.map(|(_, octets)| octets), marked, markers) {
            Arrival::Entry => {
                let (delivery, octets) = arrival.expect("a loss is no entry");
                Entry { sequence: queue.next_sequence, group, octets, delivery: Some(delivery) }
            }
            Arrival::Marker => Entry { sequence: queue.next_sequence, group, octets: 0, delivery: None },
            Arrival::Covered => return true,
            Arrival::Refused => return false,
        };
        self.markers += u64::from(entry.delivery.is_none());
        self.entries += 1;
        queue.next_sequence += 1;
        queue.state.entries += 1;
        queue.state.octets += entry.octets;
        queue.entries.push(entry);
        true
    }

    /// Moves one lane. Returns whom the receiver rejects.
    pub(super) fn carry(&mut self, lane: u8, how: Carry, now: UnixMillis) -> Result<Vec<Rejected>, TestCaseError> {
        if self.lanes.is_empty() {
            return Ok(Vec::new());
        }
        let index = usize::from(lane) % self.lanes.len();
        let lane = &self.lanes[index];
        let (taken, waiting) = (lane.taken, lane.frames.len() - lane.taken);
        let (range, expected) = match how {
            Carry::Frames(count) if waiting > 0 => {
                let end = taken + waiting.min(usize::from(count));
                // Now and then with what was taken before in front.
                (taken.saturating_sub(usize::from(count) / 4)..end, None)
            }
            Carry::Again if taken > 0 => (taken.saturating_sub(2)..taken, None),
            Carry::Gap if waiting > 1 => (taken + 1..taken + 2, Some(LaneDecision::Gap(taken as u64 + 1))),
            Carry::Altered if taken > 0 => (taken - 1..taken, Some(LaneDecision::Conflict)),
            Carry::Reset => return self.reset(index),
            _ => return Ok(Vec::new()),
        };
        let mut frames: Vec<Frame> = lane.frames[range].to_vec();
        if how == Carry::Altered {
            frames[0].frame.epoch ^= 1;
        }
        let (hub, group) = (lane.hub, lane.group);
        let batch = LaneBatch {
            // The hub's groups are numbered here.
            group_id: format!("mimi://{}/g/{group}", self.people.domains[hub]).into_bytes().into(),
            incarnation: lane.incarnation,
            frames: frames.iter().map(|frame| frame.frame.clone()).collect(),
        };
        prop_assert!(check_batch(&self.people.domains[hub], &batch).is_ok(), "a good batch");
        prop_assert!(check_batch(&self.people.domains[(hub + 1) % 3], &batch).is_err(), "of another domain's group");
        let heads: Vec<FrameHead> = frames.iter().map(|frame| head(&frame.frame)).collect();
        let decision = lanes::decide(lane.state.as_ref(), lane.incarnation, &heads, &lane.kept);
        if let Some(expected) = expected {
            prop_assert_eq!(decision, expected);
            return Ok(Vec::new());
        }
        let begins = lane.state.is_none_or(|state| state.incarnation != lane.incarnation);
        prop_assert_eq!(decision, LaneDecision::Take { next: taken as u64 + 1, begins });
        let lane = &mut self.lanes[index];
        if begins {
            lane.kept.clear();
        }
        let new: Vec<Frame> = frames.into_iter().filter(|frame| frame.frame.lane_sequence > taken as u64).collect();
        for frame in &new {
            lane.kept.insert(frame.frame.lane_sequence, frame_digest(&frame.frame));
            lane.taken += 1;
        }
        lane.state = Some(LaneState { incarnation: lane.incarnation, next_sequence: lane.taken as u64 + 1 });
        let mut rejected = Vec::new();
        for Frame { delivery, recipients, frame } in new {
            if frame.delivery == Delivery::Reset {
                self.lose(group, &recipients);
            } else {
                let octets = encode(&frame.delivery).len() as u64;
                rejected.extend(self.arrive(hub, group, delivery, octets, &recipients, now));
            }
        }
        Ok(rejected)
    }

    /// The hub ends a life of a lane: what it has not delivered is lost, and the next life begins by saying so.
    fn reset(&mut self, index: usize) -> Result<Vec<Rejected>, TestCaseError> {
        let lane = &mut self.lanes[index];
        if lane.state.is_none() || lane.frames.len() == lane.taken {
            return Ok(Vec::new());
        }
        let lost = lane.frames.split_off(lane.taken);
        let mut recipients: BTreeMap<Vec<u8>, Address> = BTreeMap::new();
        for address in lost.iter().flat_map(|frame| &frame.recipients) {
            recipients.insert(address.information.clone(), address.clone());
        }
        let recipients: Vec<Address> = recipients.into_values().collect();
        let first = LaneFrame {
            lane_sequence: 1,
            epoch: 0,
            recipients: recipients.iter().map(|address| Opaque::from(address.information.as_slice())).collect(),
            delivery: Delivery::Reset,
        };
        let incarnation = Incarnation::random();
        let unannounced = LaneFrame { delivery: Delivery::MessagesLost, ..first.clone() };
        let refused = lanes::decide(lane.state.as_ref(), incarnation, &[head(&unannounced)], &lane.kept);
        prop_assert_eq!(refused, LaneDecision::Conflict, "a new life without a reset");
        lane.incarnation = incarnation;
        lane.taken = 0;
        lane.frames = vec![Frame { delivery: self.next_delivery, recipients, frame: first }];
        self.next_delivery += 1;
        // What is lost was for these; the model expects it, and a marker instead.
        let lost: Vec<(u64, Address)> = lost
            .into_iter()
            .filter(|frame| frame.frame.delivery != Delivery::Reset)
            .flat_map(|frame| frame.recipients.into_iter().map(move |address| (frame.delivery, address)))
            .collect();
        let group = self.lanes[index].group;
        for (delivery, address) in lost {
            let information: QueueInformation = decode(&address.information).expect("well-formed");
            let queue = self.queues.iter_mut().find(|queue| queue.id == information.queue_id).expect("a queue");
            let state = queue.state;
            if information.generation > state.retired_generation {
                queue.expected.entry(group).or_default().push(delivery);
            }
        }
        Ok(Vec::new())
    }

    /// A reset tells its recipients that something of the group is lost.
    fn lose(&mut self, group: usize, recipients: &[Address]) {
        for address in recipients {
            let information: QueueInformation = decode(&address.information).expect("well-formed");
            let device = self.queues.iter().position(|queue| queue.id == information.queue_id).expect("a queue");
            self.put(device, group, None);
        }
    }

    /// Whether any lane has frames on their way.
    pub(super) fn waiting(&self) -> Option<u8> {
        self.lanes.iter().position(|lane| lane.taken < lane.frames.len()).map(|index| index as u8)
    }

    /// The queues hold what the model expects: gapless sequences, each group's deliveries in the order in which its hub made them,
    /// and none missing but where a marker says so.
    pub(super) fn check(&self) -> Result<(), TestCaseError> {
        for (device, queue) in self.queues.iter().enumerate() {
            let uri = &self.people.devices[device].uri;
            let gapless = queue.entries.iter().zip(1..).all(|(entry, sequence)| entry.sequence == sequence);
            prop_assert!(gapless, "the queue of {uri} has a gap");
            let groups: std::collections::BTreeSet<usize> =
                queue.entries.iter().map(|entry| entry.group).chain(queue.expected.keys().copied()).collect();
            for group in groups {
                let mut expected = queue.expected.get(&group).map_or(&[][..], Vec::as_slice).iter().copied();
                prop_assert!(expected.clone().is_sorted(), "{uri}: group {group} is out of order");
                let mut lost = false;
                for entry in queue.entries.iter().filter(|entry| entry.group == group) {
                    let Some(delivery) = entry.delivery else {
                        lost = true;
                        continue;
                    };
                    loop {
                        match expected.next() {
                            Some(wanted) if wanted == delivery => break,
                            Some(wanted) => prop_assert!(lost, "{uri}: {wanted} of group {group} is missing before {delivery}"),
                            None => return Err(TestCaseError::fail(format!("{uri}: {delivery} of group {group} is not for it"))),
                        }
                    }
                    lost = false;
                }
                prop_assert!(lost || expected.next().is_none(), "{uri}: the last of group {group} is missing");
            }
        }
        Ok(())
    }
}

fn head(frame: &LaneFrame) -> FrameHead {
    let is_reset = frame.delivery == Delivery::Reset;
    FrameHead { lane_sequence: frame.lane_sequence, digest: frame_digest(frame), is_reset }
}
