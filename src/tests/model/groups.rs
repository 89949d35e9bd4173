//! The hubs: their groups as the Delivery Service keeps them, and beside each what the model knows of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::judge::{Commit, Faults, Group as Known};
use super::queues::{Queues, Rejected};
use super::{Cause, HUBS, JoinKind, Kind, People, Spoil, Step, What};
use crate::base::crypto::SigningKey;
use crate::base::limits::Limits;
use crate::base::{ClientUri, Domain, UnixMillis};
use crate::ds::state::ProposedBy;
use crate::ds::{self, Decision, FanOut, GroupState, Hub, Outcome, Refusal, removal, sender};
use crate::identity::revoked::key_hash;
use crate::identity::{AsRoots, RevokedKeys};
use crate::mls::external_sender::encode_external_sender;
use crate::mls::{JOIN_POLICY_EXTENSION, Tree};
use crate::synth::{self, CONTENT_TYPE_APPLICATION, Capabilities, Change, Extension, Forged, SynthGroup};
use crate::tests::forged::{Room, content, external_senders};
use crate::wire::ds::*;
use crate::wire::qs::QueueBinding;
use crate::wire::{ClientRequest, ErrorCode, List, Opaque, Rejection, Reply, Service};

/// Where OpenMLS wants extensions listed that RFC 9420 does not define.
const EXTENSION_REQUIRED_CAPABILITIES: u16 = 3;

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

    /// Spoils an envelope; returns whether it is spoilt.
    fn spoil(&self, index: usize, ask: &mut Ask, spoil: Spoil) -> bool {
        match spoil {
            Spoil::Key(device) => {
                let key = &self.people.devices[self.device(device)].key;
                let other = key.public() != ask.key.public();
                ask.key = key.clone();
                other
            }
            Spoil::Through(domain) => {
                let through = &self.people.domains[usize::from(domain) % self.people.domains.len()];
                let other = *through != ask.through;
                ask.through = through.clone();
                other
            }
            Spoil::Leaf => {
                ask.sender = DsSenderId::LeafIndex(1_000);
                true
            }
            Spoil::Group => {
                let other = &self.groups[(index + 1) % self.groups.len()];
                match update_of(&mut ask.request) {
                    // What has no MLS message in it says nowhere else which group it is for.
                    Some((group_id, _)) if self.groups.len() > 1 => {
                        *group_id = other.room.id();
                        true
                    }
                    _ => false,
                }
            }
            // Nobody but a member can tell whether a PrivateMessage or a membership tag, of 33 octets, is right.
            Spoil::Bit(_) if matches!(ask.request, DsRequest::SendMessage(_)) => false,
            Spoil::Bit(bit) => spoil_message(&mut ask.request, |message| flip(message, bit, 33)),
            Spoil::InfoBit(bit) => match update_of(&mut ask.request) {
                Some((_, Some(update))) => flip(&mut update.group_info, bit, 0),
                _ => false,
            },
            Spoil::Cut(at) => spoil_message(&mut ask.request, |message| {
                *message = message[..usize::from(at) % message.len()].into();
                true
            }),
            Spoil::NoWelcome | Spoil::TwoWelcomes => match &mut ask.request {
                DsRequest::AddUsers(body) | DsRequest::AddClients(body) if !body.welcomes.is_empty() => {
                    let welcomes = if spoil == Spoil::NoWelcome { Vec::new() } else { vec![body.welcomes[0].clone(); 2] };
                    body.welcomes = welcomes.into();
                    true
                }
                _ => false,
            },
            Spoil::Nothing | Spoil::Stale | Spoil::Uncovered => false,
        }
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

    /// A member's Commit.
    fn commit(
        &mut self,
        index: usize,
        by: u32,
        (adds, removes, policy, updates, kind): (&[u8], &[u8], Option<bool>, bool, Kind),
        spoil: Spoil,
    ) -> Result<(), TestCaseError> {
        let group = &self.groups[index];
        let known = &group.known;
        let stale = group.before.as_ref().filter(|before| spoil == Spoil::Stale && before.leaves().contains(&by));
        let is_stale = stale.is_some();
        let mut after = stale.unwrap_or(&group.room.group).clone();
        let is_there = |leaf: &u32| after.leaves().contains(leaf) && *leaf != by;
        let mut covers: BTreeSet<u32> = known.pending.iter().copied().collect();
        if updates {
            covers.extend(&known.withdrawn);
        }
        if spoil == Spoil::Uncovered {
            covers.pop_first();
        }
        if is_stale {
            covers.clear();
        }
        covers.retain(is_there);
        let leaves: Vec<u32> = known.devices.keys().copied().collect();
        if leaves.is_empty() {
            return Ok(());
        }
        let mut removes: BTreeSet<u32> = match kind {
            Kind::DeleteGroup => leaves.iter().copied().collect(),
            _ => removes.iter().map(|leaf| leaves[usize::from(*leaf) % leaves.len()]).collect(),
        };
        // Mostly whole users, where users are what is removed.
        if kind == Kind::RemoveUsers && updates {
            let users: Vec<_> = removes.iter().map(|leaf| self.people.devices[known.devices[leaf]].uri.user().clone()).collect();
            removes.extend(users.iter().flat_map(|user| known.leaves_of(self.people, user)));
        }
        removes.retain(|leaf| is_there(leaf) && !covers.contains(leaf));
        let gone: BTreeSet<u32> = removes.union(&covers).copied().collect();
        // Whether a key may come back in the very Commit that takes it away is nobody's question.
        let goes = |device: &usize| known.devices.iter().any(|(leaf, there)| there == device && gone.contains(leaf));
        let adds: Vec<usize> = adds.iter().map(|device| self.device(*device)).filter(|device| !goes(device)).collect();

        let mut cover = Vec::new();
        for proposal in &group.state.head.proposals {
            match proposal.by {
                ProposedBy::Ds { target, .. } if covers.contains(&target) => {
                    cover.push(synth::Proposal::external_remove(&proposal.message, target));
                }
                ProposedBy::Member { leaf_index } if updates && !is_stale && is_there(&leaf_index) => {
                    cover.extend(group.updates.get(&leaf_index).filter(|_| !gone.contains(&leaf_index)).cloned());
                }
                _ => {}
            }
        }
        let is_covering = !cover.is_empty();
        let invitations: Vec<Vec<u8>> = adds.iter().map(|device| self.queues.invitation(*device, self.now)).collect();
        let add = adds.iter().zip(&invitations).map(|(device, information)| {
            let device = &self.people.devices[*device];
            device.key_package(Some(&config(device.domain(), information)))
        });
        let extensions = policy.map(|open| {
            let [high, low] = JOIN_POLICY_EXTENSION.to_be_bytes();
            let required = Extension { kind: EXTENSION_REQUIRED_CAPABILITIES, data: vec![2, high, low, 0, 0] };
            let policy = Extension { kind: JOIN_POLICY_EXTENSION, data: vec![u8::from(open)] };
            vec![external_senders(&self.homes[group.hub].external_sender), required, policy]
        });
        let change =
            Change { cover, add: add.collect(), remove: removes.iter().copied().collect(), extensions, ..Change::default() };
        let staying: BTreeSet<u32> = after.leaves().into_iter().filter(|leaf| !gone.contains(leaf)).collect();
        let Ok(forged) = after.commit(by, change) else { return Ok(()) };
        let commit = Commit { by, kind, adds: &adds, removes: &removes, policy, covers: &covers };
        let mut faults = known.judge_commit(self.people, self.limits.group_leaves_max, &commit);
        if is_stale && !known.closed {
            // Told before anything else is looked at.
            faults = vec![Some(ErrorCode::WrongEpoch)];
        }
        let mut ask = self.as_leaf(index, by, request_of(&group.room, kind, &forged));
        let spoilt = self.spoil(index, &mut ask, spoil);

        let (everyone, before) = (self.members(index), known.information.clone());
        let others: BTreeSet<u32> = everyone.iter().copied().filter(|leaf| *leaf != by).collect();
        let Some(fan_out) = self.ask(index, ask, spoilt, &faults)? else { return Ok(()) };
        self.counts.covered += u64::from(is_covering);
        let added: BTreeSet<u32> = after.leaves().into_iter().filter(|leaf| !staying.contains(leaf)).collect();
        self.enter(index, after, &gone);
        let group = &mut self.groups[index];
        for (device, information) in adds.iter().zip(invitations) {
            let key = self.people.devices[*device].key.public();
            let at = |leaf: &&u32| group.room.group.identity(**leaf).is_ok_and(|identity| identity.public_key() == *key);
            let Some(leaf) = added.iter().find(at) else { return Err(TestCaseError::fail("an added leaf is not there")) };
            group.known.devices.insert(*leaf, *device);
            group.known.joined.insert(*leaf, group.known.epoch);
            group.known.information.insert(*leaf, information);
        }
        if let Some(open) = policy {
            group.known.open = open;
        }
        if kind == Kind::DeleteGroup {
            prop_assert!(group.known.closed, "deleted and not closed");
        }
        let everyone = self.members(index);
        self.settle(index, &fan_out, &[others, added], &everyone, &before, true)
    }

    /// The group goes into the next epoch, without the leaves that are `gone`.
    fn enter(&mut self, index: usize, after: SynthGroup, gone: &BTreeSet<u32>) {
        let group = &mut self.groups[index];
        group.before = Some(std::mem::replace(&mut group.room.group, after));
        group.updates.clear();
        let known = &mut group.known;
        known.epoch += 1;
        for leaf in gone {
            known.devices.remove(leaf);
            known.joined.remove(leaf);
            known.information.remove(leaf);
            known.wanted.remove(leaf);
        }
        known.withdrawn.clear();
        known.proposers.clear();
        if known.closed {
            known.wanted.clear();
        }
    }

    /// An external Commit.
    fn join(&mut self, index: usize, by: u32, device: usize, kind: JoinKind, spoil: Spoil) -> Result<(), TestCaseError> {
        let group = &self.groups[index];
        let old = (kind == JoinKind::Resync).then_some(by);
        let device = match old {
            Some(leaf) => match group.known.devices.get(&leaf) {
                Some(device) => *device,
                None => return Ok(()),
            },
            None => device,
        };
        let person = &self.people.devices[device];
        let mut after = group.room.group.clone();
        let Ok((joined, forged)) = after.join(&person.identity(), &Capabilities::default(), old) else { return Ok(()) };
        let information = self.queues.information(device, bound_to(&self.people.domains[group.hub]));
        let body = group.room.join_body(&forged, config(person.domain(), &information));
        let mut ask = match kind {
            JoinKind::Resync => self.as_leaf(index, by, DsRequest::ResyncClient(body)),
            JoinKind::Group => self.as_user(device, DsRequest::JoinGroup(body)),
            JoinKind::Client => self.as_user(device, DsRequest::JoinClient(body)),
        };
        let spoilt = self.spoil(index, &mut ask, spoil);
        let known = &self.groups[index].known;
        let faults = known.judge_join(self.people, self.limits.group_leaves_max, device, old, kind);
        let before = known.information.clone();
        let others: BTreeSet<u32> = self.members(index).into_iter().filter(|leaf| Some(*leaf) != old).collect();
        let Some(fan_out) = self.ask(index, ask, spoilt, &faults)? else { return Ok(()) };
        self.counts.joins += 1;
        self.enter(index, after, &old.into_iter().collect());
        let known = &mut self.groups[index].known;
        let same_client: Vec<u32> = known
            .devices
            .iter()
            .filter(|(_, there)| self.people.devices[**there].uri == person.uri)
            .map(|(leaf, _)| *leaf)
            .collect();
        for leaf in same_client {
            known.want(leaf, Cause::Replaced);
        }
        known.devices.insert(joined, device);
        known.joined.insert(joined, known.epoch);
        known.information.insert(joined, information);
        let everyone = self.members(index);
        self.settle(index, &fan_out, &[others], &everyone, &before, true)
    }

    fn as_user(&self, device: usize, request: DsRequest) -> Ask {
        let device = &self.people.devices[device];
        Ask {
            sender: DsSenderId::UserKeyHash(key_hash(device.user_key.public()).as_slice().into()),
            certificates: device.user_certificates(),
            key: device.user_key.clone(),
            through: device.domain().clone(),
            request,
        }
    }

    fn message(&mut self, index: usize, by: u32, epochs_back: u64, spoil: Spoil) -> Result<(), TestCaseError> {
        let group = &mut self.groups[index];
        let epoch = group.known.epoch.saturating_sub(epochs_back);
        let message = group.room.group.private_message_of(epoch, CONTENT_TYPE_APPLICATION);
        let body = group.room.message_body(message);
        let known = &group.known;
        let faults = known.judge_message(by, epoch);
        let readers = known.joined.iter().filter(|(leaf, joined)| **joined <= epoch && **leaf != by);
        let readers: BTreeSet<u32> = readers.map(|(leaf, _)| *leaf).collect();
        let before = known.information.clone();
        let mut ask = self.as_leaf(index, by, body);
        let spoilt = self.spoil(index, &mut ask, spoil);
        let Some(fan_out) = self.ask(index, ask, spoilt, &faults)? else { return Ok(()) };
        self.counts.messages += 1;
        self.settle(index, &fan_out, &[readers], &BTreeSet::new(), &before, false)
    }

    fn propose(&mut self, index: usize, by: u32, spoil: Spoil) -> Result<(), TestCaseError> {
        let group = &mut self.groups[index];
        let Ok((message, proposal)) = group.room.group.propose_update(by) else { return Ok(()) };
        let body = Propose { group_id: group.room.id(), proposals: vec![Opaque::from(message)].into() };
        let faults = group.known.judge_proposal(by);
        let mut ask = self.as_leaf(index, by, DsRequest::Propose(body));
        let spoilt = self.spoil(index, &mut ask, spoil);
        let others: BTreeSet<u32> = self.members(index).into_iter().filter(|leaf| *leaf != by).collect();
        let Some(fan_out) = self.ask(index, ask, spoilt, &faults)? else { return Ok(()) };
        let group = &mut self.groups[index];
        group.updates.insert(by, proposal);
        group.known.proposers.insert(by);
        let before = group.known.information.clone();
        self.settle(index, &fan_out, &[others], &BTreeSet::new(), &before, false)
    }

    /// A user leaves with all its leaves.
    fn leave(&mut self, index: usize, by: u32, spoil: Spoil) -> Result<(), TestCaseError> {
        let group = &self.groups[index];
        let mut ask = self.as_leaf(index, by, DsRequest::LeaveGroup(GroupOnly { group_id: group.room.id() }));
        let spoilt = self.spoil(index, &mut ask, spoil);
        let (faults, everyone) = (group.known.judge_open(), self.members(index));
        let Some(fan_out) = self.ask(index, ask, spoilt, &faults)? else { return Ok(()) };
        let known = &mut self.groups[index].known;
        let user = self.people.devices[known.devices[&by]].uri.user();
        for leaf in known.leaves_of(self.people, user).collect::<Vec<u32>>() {
            known.want(leaf, Cause::Left);
        }
        self.removed(index, &fan_out, &everyone)
    }

    /// Who was added and has not been heard of since declines.
    fn decline(&mut self, index: usize, step: &Step) -> Result<(), TestCaseError> {
        let group = &self.groups[index];
        let joiners = &group.state.head.joiners;
        if joiners.is_empty() {
            return Ok(());
        }
        let joiner = &joiners[usize::from(step.by) % joiners.len()];
        let leaf = joiner.leaf_index;
        let body = DsRequest::LeaveGroup(GroupOnly { group_id: group.room.id() });
        let sender = DsSenderId::KeyPackageRef(joiner.key_package_ref.as_slice().into());
        let mut ask = Ask { sender, ..self.as_leaf(index, leaf, body) };
        let spoilt = self.spoil(index, &mut ask, step.spoil);
        let (faults, everyone) = (group.known.judge_open(), self.members(index));
        let Some(fan_out) = self.ask(index, ask, spoilt, &faults)? else { return Ok(()) };
        self.groups[index].known.want(leaf, Cause::Declined);
        self.removed(index, &fan_out, &everyone)
    }

    /// A leaf says where its messages go from now on.
    fn queue(&mut self, index: usize, by: u32, good: bool, spoil: Spoil) -> Result<(), TestCaseError> {
        let group = &self.groups[index];
        let Some(device) = group.known.devices.get(&by) else { return Ok(()) };
        let bound = if good { group.hub } else { (group.hub + 1) % HUBS };
        let information = self.queues.information(*device, bound_to(&self.people.domains[bound]));
        let client_queue_config = config(self.people.devices[*device].domain(), &information);
        let body = UpdateQueueInfo { group_id: group.room.id(), client_queue_config };
        let mut ask = self.as_leaf(index, by, DsRequest::UpdateQueueInfo(body));
        let spoilt = self.spoil(index, &mut ask, spoil);
        let faults = group.known.judge_open();
        let Some(fan_out) = self.ask(index, ask, spoilt, &faults)? else { return Ok(()) };
        let known = &mut self.groups[index].known;
        known.information.insert(by, information);
        if matches!(known.wanted.get(&by), Some(Cause::Inactive | Cause::QueueRejected)) {
            take_back(known, by);
        }
        self.settle(index, &fan_out, &[], &BTreeSet::new(), &BTreeMap::new(), false)
    }

    fn issue(&mut self, index: usize, leaf: u32, cause: Cause) -> Result<(), TestCaseError> {
        let group = &mut self.groups[index];
        let news = !group.known.closed && group.known.devices.contains_key(&leaf) && group.known.want(leaf, cause);
        let group = &self.groups[index];
        let outcome = removal::issue(&self.hub(group.hub), &group.state, &[(leaf, cause)]);
        prop_assert_eq!(outcome.is_some(), news, "a wanted Remove");
        self.removal(index, outcome)
    }

    fn withdraw(&mut self, index: usize, leaf: u32) -> Result<(), TestCaseError> {
        let group = &mut self.groups[index];
        let outcome = removal::withdraw(&group.state, leaf);
        prop_assert_eq!(outcome.is_some(), take_back(&mut group.known, leaf), "a withdrawn Remove");
        let Some(outcome) = outcome else { return Ok(()) };
        let fan_out = self.apply(index, outcome)?;
        self.settle(index, &fan_out, &[], &BTreeSet::new(), &BTreeMap::new(), false)
    }
}

/// A leaf need not go any more; returns whether it had to.
fn take_back(known: &mut Known, leaf: u32) -> bool {
    if known.pending.remove(&leaf) {
        known.withdrawn.insert(leaf);
    }
    known.wanted.remove(&leaf).is_some()
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

/// A Commit as the request of this kind.
fn request_of(room: &Room, kind: Kind, forged: &Forged) -> DsRequest {
    match kind {
        Kind::AddUsers => DsRequest::AddUsers(room.add_body(forged)),
        Kind::AddClients => DsRequest::AddClients(room.add_body(forged)),
        Kind::RemoveUsers => DsRequest::RemoveUsers(room.commit_body(forged)),
        Kind::RemoveClients => DsRequest::RemoveClients(room.commit_body(forged)),
        Kind::UpdateClient => DsRequest::UpdateClient(room.commit_body(forged)),
        Kind::UpdateGroup => DsRequest::UpdateGroup(room.commit_body(forged)),
        Kind::DeleteGroup => DsRequest::DeleteGroup(room.commit_body(forged)),
    }
}

/// A request that carries an MLS message: where it says which group it is for, and the Commit and GroupInfo if it has them.
fn update_of(request: &mut DsRequest) -> Option<(&mut Opaque, Option<&mut GroupUpdate>)> {
    Some(match request {
        DsRequest::AddUsers(body) | DsRequest::AddClients(body) => (&mut body.group_id, Some(&mut body.group_update)),
        DsRequest::RemoveUsers(body)
        | DsRequest::RemoveClients(body)
        | DsRequest::UpdateClient(body)
        | DsRequest::UpdateGroup(body)
        | DsRequest::DeleteGroup(body) => (&mut body.group_id, Some(&mut body.group_update)),
        DsRequest::JoinGroup(body) | DsRequest::JoinClient(body) | DsRequest::ResyncClient(body) => {
            (&mut body.group_id, Some(&mut body.group_update))
        }
        DsRequest::SendMessage(body) => (&mut body.group_id, None),
        DsRequest::Propose(body) => (&mut body.group_id, None),
        _ => return None,
    })
}

/// Spoils the Commit, proposal or message of a request.
fn spoil_message(request: &mut DsRequest, spoil: impl FnOnce(&mut Opaque) -> bool) -> bool {
    match request {
        DsRequest::SendMessage(body) => spoil(&mut body.message),
        DsRequest::Propose(body) => {
            let mut message = body.proposals[0].clone();
            let spoilt = spoil(&mut message);
            body.proposals = vec![message].into();
            spoilt
        }
        other => match update_of(other) {
            Some((_, Some(update))) => spoil(&mut update.commit),
            _ => false,
        },
    }
}

/// Flips a bit of all but the last `tail` octets.
fn flip(octets: &mut Opaque, bit: u16, tail: usize) -> bool {
    let mut changed = octets.to_vec();
    let count = changed.len().saturating_sub(tail);
    if count == 0 {
        return false;
    }
    // 16 bits, spread over what may be a long message.
    changed[usize::from(bit) * 31 % count] ^= 1 << (bit % 8);
    *octets = changed.into();
    true
}
