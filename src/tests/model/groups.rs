//! The hubs: their groups as the Delivery Service keeps them, and beside each what the model knows of it.

mod operations;
mod spoil;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::judge::{Faults, Group as Known};
use super::queues::{Queues, Rejected};
use super::{Cause, HUBS, People, Spoil, Step, What};
use crate::base::crypto::SigningKey;
use crate::base::limits::Limits;
use crate::base::{ClientUri, Domain, UnixMillis};
use crate::ds::{self, Decision, FanOut, GroupState, Hub, Outcome, Refusal, removal, sender};
use crate::identity::{AsRoots, RevokedKeys};
use crate::mls::Tree;
use crate::mls::external_sender::encode_external_sender;
use crate::synth::{self, SynthGroup};
use crate::tests::forged::{Room, content};
use crate::wire::ds::*;
use crate::wire::qs::QueueBinding;
use crate::wire::{ClientRequest, ErrorCode, List, Opaque, Rejection, Reply, Service};

/// Groups are many; most of what happens, happens in the youngest of them.
const GROUPS_MAX: usize = 100;
const YOUNG_GROUPS: usize = 6;

/// Small enough to be reached.
fn limits() -> Limits {
    Limits { group_leaves_max: 9, removals_at_once_max: 2, pending_joiners_max: 1_000, ..Limits::default() }
}

/// What happened, so that a test that reaches nothing is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    accepted: u64,
    refused: u64,
    commits: u64,
    joins: u64,
    messages: u64,
    covered: u64,
    closed: u64,
    entries: u64,
    markers: u64,
    rejections: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.commits += other.commits;
        self.joins += other.joins;
        self.messages += other.messages;
        self.covered += other.covered;
        self.closed += other.closed;
        self.entries += other.entries;
        self.markers += other.markers;
        self.rejections += other.rejections;
    }

    /// Whether there was enough of everything.
    pub(super) fn is_plenty(&self) -> bool {
        let Self { accepted, refused, commits, joins, messages, covered, closed, entries, markers, rejections } = *self;
        accepted > 1_000
            && refused > 1_000
            && [commits, messages, entries].iter().all(|count| *count > 500)
            && [joins, covered, closed, markers, rejections].iter().all(|count| *count > 10)
    }
}

/// A hub's own things.
struct Home {
    key: SigningKey,
    external_sender: Vec<u8>,
}

/// One group.
struct Group {
    hub: usize,
    state: GroupState,
    tree: Tree,
    /// The group as its members have it, the epoch before, and the Updates that were proposed in this one.
    room: Room,
    before: Option<SynthGroup>,
    updates: BTreeMap<u32, synth::Proposal>,
    known: Known,
    /// The Commit that ended each epoch.
    commits: BTreeMap<u64, [u8; 32]>,
}

/// All of it.
pub(super) struct World {
    people: &'static People,
    homes: Vec<Home>,
    roots: HashMap<Domain, Arc<AsRoots>>,
    revoked: HashMap<Domain, Arc<RevokedKeys>>,
    limits: Limits,
    now: UnixMillis,
    groups: Vec<Group>,
    queues: Queues,
    /// What QSes rejected and the hub has not heard of yet.
    rejected: VecDeque<Rejected>,
    counts: Counts,
}

/// A request before it is signed.
struct Ask {
    sender: DsSenderId,
    certificates: List<Opaque>,
    key: SigningKey,
    through: Domain,
    request: DsRequest,
}

impl World {
    pub(super) fn new(people: &'static People) -> Self {
        let now = UnixMillis::now();
        let homes = (0..HUBS).map(|hub| {
            let key = SigningKey::generate().expect("a key");
            let public: [u8; 32] = key.public().try_into().expect("32 octets");
            let name = format!("mimi://{}/ds", people.domains[hub]);
            let chain = [people.roots[hub].issue_service(&name, &public, now).expect("a certificate")];
            Home { external_sender: encode_external_sender(&public, &chain).expect("encodes"), key }
        });
        let roots = people.roots.iter().map(|root| {
            let roots = AsRoots::new(root.domain().clone(), vec![root.certificate().to_vec()]).expect("roots");
            (root.domain().clone(), Arc::new(roots))
        });
        let nobody = RevokedKeys::new([], UnixMillis(u64::MAX));
        Self {
            people,
            homes: homes.collect(),
            roots: roots.collect(),
            revoked: people.domains.iter().map(|domain| (domain.clone(), Arc::new(nobody.clone()))).collect(),
            limits: limits(),
            now,
            groups: Vec::new(),
            queues: Queues::new(people),
            rejected: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    fn hub(&self, hub: usize) -> Hub<'_> {
        Hub {
            domain: &self.people.domains[hub],
            now: self.now,
            roots: &self.roots,
            revoked: &self.revoked,
            limits: &self.limits,
            external_sender: &self.homes[hub].external_sender,
            key: &self.homes[hub].key,
        }
    }

    /// Does one step; an error is a failure of the property.
    pub(super) fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.now = UnixMillis(self.now.0 + 1);
        match &step.what {
            What::Create { hub } if self.groups.len() < GROUPS_MAX => self.create(usize::from(*hub), step),
            What::Ack { device, entries } => {
                self.queues.ack(self.device(*device), usize::from(*entries));
                Ok(())
            }
            What::Retire { device } => {
                self.queues.retire(self.device(*device));
                Ok(())
            }
            What::Lane { lane, how } => {
                let rejected = self.queues.carry(*lane, *how, self.now)?;
                self.rejected.extend(rejected);
                self.hear_rejections()
            }
            _ if self.groups.is_empty() => self.create(0, step),
            _ => {
                let old = step.group >= 240;
                let among = if old { self.groups.len() } else { self.groups.len().min(YOUNG_GROUPS) };
                let group = self.groups.len() - 1 - usize::from(step.group) % among;
                self.step_in(group, step)
            }
        }
    }

    /// Lets every lane run empty and looks at everything once more.
    pub(super) fn finish(mut self) -> Result<Counts, TestCaseError> {
        while let Some(lane) = self.queues.waiting() {
            let rejected = self.queues.carry(lane, super::Carry::Frames(u8::MAX), self.now)?;
            self.rejected.extend(rejected);
            self.hear_rejections()?;
        }
        self.queues.check()?;
        (self.counts.entries, self.counts.markers) = (self.queues.entries, self.queues.markers);
        self.counts.rejections = self.queues.rejections;
        Ok(self.counts)
    }

    fn device(&self, number: u8) -> usize {
        usize::from(number) % self.people.devices.len()
    }

    fn create(&mut self, hub: usize, step: &Step) -> Result<(), TestCaseError> {
        // Devices of the hub's own domain, which is whose groups it makes.
        let own: Vec<usize> = (0..self.people.devices.len())
            .filter(|device| *self.people.devices[*device].domain() == self.people.domains[hub])
            .collect();
        let device = own[usize::from(step.by) % own.len()];
        let creator = &self.people.devices[device];
        let information = self.queues.information(device, bound_to(&self.people.domains[hub]));
        let queue = config(creator.domain(), &information);
        let (room, request) = Room::forge(&self.people.domains[hub], &self.homes[hub].external_sender, creator, queue);
        let Service::Ds(message) = &request.content.service else { unreachable!("a DS request") };
        let DsRequest::CreateGroup(body) = &message.request else { unreachable!("a create_group") };
        let through = match step.spoil {
            Spoil::Through(_) => &self.people.domains[(hub + 1) % 3],
            _ => creator.domain(),
        };
        let created = ds::create::decide(&self.hub(hub), &request, message, body, through);
        if through != creator.domain() {
            prop_assert!(created.is_err(), "a group made through another domain");
            self.counts.refused += 1;
            return Ok(());
        }
        let created = created.map_err(|refusal| TestCaseError::fail(format!("a good create_group: {refusal:?}")))?;
        let change = created.outcome.change.expect("a new group has a state");
        let members = change.set.into_iter().collect();
        let state = GroupState { uri: created.uri, revision: 0, head: change.head, members };
        let known = Known {
            devices: BTreeMap::from([(0, device)]),
            joined: BTreeMap::from([(0, 0)]),
            information: BTreeMap::from([(0, information)]),
            ..Known::default()
        };
        let (before, updates, commits) = (None, BTreeMap::new(), BTreeMap::new());
        self.groups.push(Group { hub, state, tree: created.tree, room, before, updates, known, commits });
        self.counts.accepted += 1;
        self.check(self.groups.len() - 1)
    }

    fn step_in(&mut self, index: usize, step: &Step) -> Result<(), TestCaseError> {
        let group = &self.groups[index];
        let leaves: Vec<u32> = group.known.devices.keys().copied().collect();
        // A group that is gone has no members; whoever was the first asks then.
        let by = if leaves.is_empty() { 0 } else { leaves[usize::from(step.by) % leaves.len()] };
        match &step.what {
            What::Commit { adds, removes, policy, updates, kind } => {
                self.commit(index, by, (adds, removes, *policy, *updates, *kind), step.spoil)
            }
            What::Join { device, kind } => self.join(index, by, self.device(*device), *kind, step.spoil),
            What::Message { epochs_back } => self.message(index, by, u64::from(*epochs_back), step.spoil),
            What::Propose => self.propose(index, by, step.spoil),
            What::Leave => self.leave(index, by, step.spoil),
            What::Decline => self.decline(index, step),
            What::Queue { good } => self.queue(index, by, *good, step.spoil),
            What::Issue { cause } => self.issue(index, by, *cause),
            What::Withdraw => self.withdraw(index, by),
            What::Create { .. } | What::Ack { .. } | What::Retire { .. } | What::Lane { .. } => Ok(()),
        }
    }

    /// As a leaf of a group; as the first device there is where the group has no leaves any more.
    fn as_leaf(&self, index: usize, leaf: u32, request: DsRequest) -> Ask {
        let device = self.groups[index].known.devices.get(&leaf).map_or(0, |device| *device);
        let device = &self.people.devices[device];
        let (key, through) = (device.key.clone(), device.domain().clone());
        Ask { sender: DsSenderId::LeafIndex(leaf), certificates: List::default(), key, through, request }
    }

    /// Asks the hub of a group. A refusal must have a reason and leave everything as it was; an acceptance must have none. Returns
    /// what an accepted request sends out.
    fn ask(&mut self, index: usize, ask: Ask, spoilt: bool, faults: &Faults) -> Result<Option<Vec<FanOut>>, TestCaseError> {
        let Ask { sender, certificates, key, through, request } = ask;
        let message = DsMessage { sender_id: sender, certificates, request };
        let hub = self.groups[index].hub;
        let request = content(&self.people.domains[hub], Service::Ds(message)).sign(&key);
        let Service::Ds(message) = &request.content.service else { unreachable!("a DS request") };
        // The node finds the group by the id in the request.
        let named = message.request.group_id().expect("about a group");
        let index = self.groups.iter().position(|group| group.room.uri.to_bytes() == named).unwrap_or(index);
        if self.groups[index].hub != hub {
            // It would be told that there is no such group here.
            return Ok(None);
        }
        let (head_before, members_before) = (self.groups[index].state.head.clone(), self.groups[index].state.members.clone());
        let tree_before = self.groups[index].tree.ratchet_tree().expect("encodes");
        match self.decide(index, &request, message, &through) {
            Ok(decision) => {
                prop_assert!(!spoilt, "accepted although it is spoilt");
                prop_assert!(faults.is_empty(), "accepted although {faults:?}");
                self.counts.accepted += 1;
                self.write(index, decision).map(Some)
            }
            Err(Refusal::Rejected(rejection)) => {
                prop_assert!(spoilt || !faults.is_empty(), "refused with {rejection}");
                if let ([Some(code)], false) = (&faults[..], spoilt) {
                    prop_assert_eq!(rejection.code, *code);
                }
                self.check_detail(index, &rejection)?;
                self.counts.refused += 1;
                let group = &self.groups[index];
                prop_assert!(group.state.head == head_before && group.state.members == members_before, "a refusal changes state");
                prop_assert!(group.tree.ratchet_tree().expect("encodes") == tree_before, "a refusal changes the tree");
                Ok(None)
            }
            Err(other) => Err(TestCaseError::fail(format!("{other:?}"))),
        }
    }

    fn decide(
        &mut self,
        index: usize,
        request: &ClientRequest,
        message: &DsMessage,
        through: &Domain,
    ) -> Result<Decision, Refusal> {
        let home = &self.homes[self.groups[index].hub];
        // As `World::hub`, which would borrow the groups, too.
        let hub = Hub {
            domain: &self.people.domains[self.groups[index].hub],
            now: self.now,
            roots: &self.roots,
            revoked: &self.revoked,
            limits: &self.limits,
            external_sender: &home.external_sender,
            key: &home.key,
        };
        let Group { state, tree, .. } = &mut self.groups[index];
        let sender = sender::authenticate(&hub, state, request, message, through)?;
        let tree = if ds::needs_tree(&message.request) { Some(tree) } else { None };
        ds::decide(&hub, state, tree, &sender, message)
    }

    /// A wrong epoch is told with what was accepted instead, pending proposals when there are some.
    fn check_detail(&self, index: usize, rejection: &Rejection) -> Result<(), TestCaseError> {
        let group = &self.groups[index];
        if let Some(detail) = rejection.as_wrong_epoch() {
            prop_assert_eq!(detail.current_epoch, group.known.epoch);
            if let Some(hash) = detail.accepted_commit_hash {
                // Of a Commit, that of the epoch before; of a message, of one some epochs ago.
                prop_assert!(group.commits.values().any(|known| *known == hash), "a hash that is no Commit's");
            }
        }
        if rejection.code == ErrorCode::PendingProposals {
            prop_assert!(!group.known.pending.is_empty(), "pending proposals are told and there are none");
        }
        Ok(())
    }

    /// Writes what was decided, as storage would. Returns what goes out.
    fn write(&mut self, index: usize, decision: Decision) -> Result<Vec<FanOut>, TestCaseError> {
        match decision {
            Decision::Outcome(outcome) => self.apply(index, *outcome),
            Decision::Commit(accepted) => {
                let ds::Accepted { outcome, update } = *accepted;
                let Reply::CommitAccepted(receipt) = &outcome.reply else {
                    return Err(TestCaseError::fail("a Commit without a receipt"));
                };
                let group = &mut self.groups[index];
                let epoch = group.known.epoch;
                let again = group.commits.insert(epoch, receipt.content.commit_hash);
                prop_assert!(again.is_none(), "a second Commit in epoch {epoch}");
                prop_assert_eq!(receipt.content.epoch, epoch + 1);
                group.tree.merge(update, false).map_err(|fault| TestCaseError::fail(fault.to_string()))?;
                self.counts.commits += 1;
                self.apply(index, outcome)
            }
            Decision::WelcomeInfo { .. } | Decision::ExternalCommitInfo => Ok(Vec::new()),
        }
    }

    fn apply(&mut self, index: usize, outcome: Outcome) -> Result<Vec<FanOut>, TestCaseError> {
        let group = &mut self.groups[index];
        if let Some(change) = outcome.change {
            group.known.closed |= change.closed;
            self.counts.closed += u64::from(change.closed);
            group.state.apply(change);
        }
        Ok(outcome.fan_out)
    }

    /// What went out goes to exactly `audience`, delivery by delivery, and the DS's own Removes behind that to all of `everyone`.
    /// `before`: where messages went before. `proposes`: the DS has looked at what it wants removed.
    fn settle(
        &mut self,
        index: usize,
        fan_out: &[FanOut],
        audience: &[BTreeSet<u32>],
        everyone: &BTreeSet<u32>,
        before: &BTreeMap<u32, Vec<u8>>,
        proposes: bool,
    ) -> Result<(), TestCaseError> {
        let got: Vec<BTreeSet<u32>> = fan_out.iter().map(leaves_of).filter(|leaves| !leaves.is_empty()).collect();
        let wanted: Vec<&BTreeSet<u32>> = audience.iter().filter(|leaves| !leaves.is_empty()).collect();
        prop_assert!(got.len() >= wanted.len(), "{got:?} goes out, and should to {wanted:?}");
        let (first, removes) = got.split_at(wanted.len());
        prop_assert!(first.iter().eq(wanted.iter().copied()), "{first:?} goes out, and should to {wanted:?}");
        prop_assert!(removes.iter().all(|leaves| leaves == everyone), "{removes:?} are Removes, for {everyone:?}");

        let group = &mut self.groups[index];
        let known = &mut group.known;
        for recipient in fan_out.iter().flat_map(|delivery| &delivery.recipients) {
            let addresses = [before.get(&recipient.leaf_index), known.information.get(&recipient.leaf_index)];
            let fits = addresses.into_iter().flatten().any(|information| *information == recipient.queue.information);
            prop_assert!(fits, "leaf {} has another queue", recipient.leaf_index);
        }
        let pending: BTreeSet<u32> = group.state.head.pending_removes().map(|(target, _)| target).collect();
        prop_assert!(pending.iter().all(|target| known.wanted.contains_key(target)), "a Remove that nobody wants");
        if proposes && !known.closed {
            let many = known.wanted.len().min(self.limits.removals_at_once_max);
            prop_assert_eq!(pending.len(), many, "of those that are wanted, as many as may be");
        }
        known.pending = pending;
        for delivery in fan_out {
            let rejected = self.queues.deliver(self.groups[index].hub, index, delivery, self.now);
            self.rejected.extend(rejected);
        }
        self.check(index)?;
        self.hear_rejections()
    }

    /// The hubs hear of queue informations that were rejected: a leaf that still uses one is to be removed.
    fn hear_rejections(&mut self) -> Result<(), TestCaseError> {
        while let Some(Rejected { group: index, address }) = self.rejected.pop_front() {
            let group = &mut self.groups[index];
            let is_current = group.known.information.get(&address.leaf) == Some(&address.information);
            let news = is_current && !group.known.closed && group.known.want(address.leaf, Cause::QueueRejected);
            let group = &self.groups[index];
            let outcome = removal::rejected_queue(&self.hub(group.hub), &group.state, address.leaf, &address.information);
            prop_assert_eq!(outcome.is_some(), news, "a rejected queue");
            self.removal(index, outcome)?;
        }
        Ok(())
    }

    /// Writes and sends what the DS decided by itself.
    fn removal(&mut self, index: usize, outcome: Option<Outcome>) -> Result<(), TestCaseError> {
        let Some(outcome) = outcome else { return Ok(()) };
        let everyone = self.members(index);
        let fan_out = self.apply(index, outcome)?;
        self.removed(index, &fan_out, &everyone)
    }

    /// What comes after the DS wants a leaf removed: when it wants all, the group is closed and nobody is a member any more.
    fn removed(&mut self, index: usize, fan_out: &[FanOut], everyone: &BTreeSet<u32>) -> Result<(), TestCaseError> {
        let known = &mut self.groups[index].known;
        let before = known.information.clone();
        prop_assert_eq!(known.closed, known.devices.keys().all(|leaf| known.wanted.contains_key(leaf)), "closed with the last");
        if known.closed {
            forget_members(known);
        }
        self.settle(index, fan_out, &[], everyone, &before, true)
    }

    fn members(&self, index: usize) -> BTreeSet<u32> {
        self.groups[index].known.devices.keys().copied().collect()
    }

    /// What the hub has is what the members have.
    fn check(&self, index: usize) -> Result<(), TestCaseError> {
        let Group { state, tree, room, known, .. } = &self.groups[index];
        prop_assert_eq!(state.head.closed_at_ms.is_some(), known.closed);
        let members: BTreeMap<u32, &ClientUri> = state.members.iter().map(|(leaf, member)| (*leaf, &member.client)).collect();
        let devices: BTreeMap<u32, &ClientUri> =
            known.devices.iter().map(|(leaf, device)| (*leaf, &self.people.devices[*device].uri)).collect();
        prop_assert_eq!(members, devices, "members");
        if known.closed {
            return Ok(());
        }
        prop_assert_eq!(state.head.epoch, known.epoch);
        prop_assert_eq!(tree.epoch(), known.epoch);
        prop_assert_eq!(tree.leaf_indices(), room.group.leaves());
        prop_assert!(tree.ratchet_tree().expect("encodes") == room.group.ratchet_tree(), "another tree than the members'");
        for (leaf, member) in &state.members {
            let identity = room.group.identity(*leaf).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert!(member.signature_key == identity.public_key(), "another key at leaf {leaf}");
            prop_assert_eq!(Some(&member.queue.information), known.information.get(leaf));
        }
        let wanted: BTreeMap<u32, Cause> =
            state.head.removals.iter().map(|removal| (removal.leaf_index, removal.cause)).collect();
        prop_assert_eq!(&wanted, &known.wanted, "who is to go");
        Ok(())
    }
}

/// The group is closed by its DS: nobody is left.
fn forget_members(known: &mut Known) {
    known.devices.clear();
    known.joined.clear();
    known.information.clear();
    known.wanted.clear();
    known.pending.clear();
}

fn bound_to(hub: &Domain) -> QueueBinding {
    QueueBinding::Hub(hub.as_bytes().into())
}

fn config(domain: &Domain, information: &[u8]) -> ClientQueueConfig {
    ClientQueueConfig { qs_domain: domain.as_bytes().into(), client_queue_information: information.into() }
}

fn leaves_of(fan_out: &FanOut) -> BTreeSet<u32> {
    fan_out.recipients.iter().map(|recipient| recipient.leaf_index).collect()
}
