//! The operations: each request made as well as can be and perhaps spoilt, what the model says of it, and what it knows afterwards.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::super::judge::{Commit, Group as Known};
use super::super::{Cause, HUBS, JoinKind, Kind, Spoil, Step};
use super::{Ask, World, bound_to, config};
use crate::ds::removal;
use crate::ds::state::ProposedBy;
use crate::identity::revoked::key_hash;
use crate::mls::JOIN_POLICY_EXTENSION;
use crate::synth::{self, CONTENT_TYPE_APPLICATION, Capabilities, Change, Extension, Forged, SynthGroup};
use crate::tests::forged::{Room, external_senders};
use crate::wire::ds::*;
use crate::wire::{ErrorCode, Opaque};

/// Where OpenMLS wants extensions listed that RFC 9420 does not define.
const EXTENSION_REQUIRED_CAPABILITIES: u16 = 3;

impl World {
    /// A member's Commit.
    pub(super) fn commit(
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
    pub(super) fn enter(&mut self, index: usize, after: SynthGroup, gone: &BTreeSet<u32>) {
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
    pub(super) fn join(
        &mut self,
        index: usize,
        by: u32,
        device: usize,
        kind: JoinKind,
        spoil: Spoil,
    ) -> Result<(), TestCaseError> {
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

    pub(super) fn as_user(&self, device: usize, request: DsRequest) -> Ask {
        let device = &self.people.devices[device];
        Ask {
            sender: DsSenderId::UserKeyHash(key_hash(device.user_key.public()).as_slice().into()),
            certificates: device.user_certificates(),
            key: device.user_key.clone(),
            through: device.domain().clone(),
            request,
        }
    }

    pub(super) fn message(&mut self, index: usize, by: u32, epochs_back: u64, spoil: Spoil) -> Result<(), TestCaseError> {
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

    pub(super) fn propose(&mut self, index: usize, by: u32, spoil: Spoil) -> Result<(), TestCaseError> {
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
    pub(super) fn leave(&mut self, index: usize, by: u32, spoil: Spoil) -> Result<(), TestCaseError> {
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
    pub(super) fn decline(&mut self, index: usize, step: &Step) -> Result<(), TestCaseError> {
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
    pub(super) fn queue(&mut self, index: usize, by: u32, good: bool, spoil: Spoil) -> Result<(), TestCaseError> {
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
        if matches!(known.wanted.get(&by), Some(Cause::Inactive | Cause::QueueRejected | Cause::Undeliverable)) {
            take_back(known, by);
        }
        self.settle(index, &fan_out, &[], &BTreeSet::new(), &BTreeMap::new(), false)
    }

    pub(super) fn issue(&mut self, index: usize, leaf: u32, cause: Cause) -> Result<(), TestCaseError> {
        let group = &mut self.groups[index];
        let news = !group.known.closed && group.known.devices.contains_key(&leaf) && group.known.want(leaf, cause);
        let group = &self.groups[index];
        let outcome = removal::issue(&self.hub(group.hub), &group.state, &[(leaf, cause)]);
        prop_assert_eq!(outcome.is_some(), news, "a wanted Remove");
        self.removal(index, outcome)
    }

    pub(super) fn withdraw(&mut self, index: usize, leaf: u32) -> Result<(), TestCaseError> {
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
