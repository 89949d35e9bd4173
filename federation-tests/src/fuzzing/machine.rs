//! The Delivery Service as a machine: octets choose who asks what, and what is spoilt of it.
//!
//! Requests are forged anew in each run, signed after they are spoilt, so that a few octets of input reach every check. Wrong is:
//! a panic; a refused request after which the group is another; an accepted Commit that is not the next epoch; members that are
//! not the tree's leaves; a delivery to somebody who is no member; a group that its snapshot and log do not bring back.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use mimi_node::base::crypto::sha256;
use mimi_node::base::{Domain, UnixMillis};
use mimi_node::ds::removal::{self, Cause};
use mimi_node::ds::{Decision, Outcome, Refusal};
use mimi_node::identity::key_hash;
use mimi_node::mls::Tree;
use mimi_node::wire::ds::{
    ClientQueueConfig, DsRequest, DsSenderId, GroupAdd, GroupCommit, GroupJoin, GroupOnly, Propose, SendMessage, UpdateQueueInfo,
    WelcomeInfo,
};
use mimi_node::wire::{List, Opaque, Reply, encode};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;

use crate::hub::{Device, LocalGroup, Realm, further_device};
use crate::people::update_of;
use crate::synth::{
    CONTENT_TYPE_APPLICATION, CONTENT_TYPE_PROPOSAL, Capabilities, Change, Extension, Forged, KeyPackage, Proposal, SynthError,
    SynthGroup,
};

/// The requests of one run: enough for a group to come, grow and go.
const STEPS_MAX: usize = 24;

/// The extension of a group's context that says who may join.
const JOIN_POLICY_EXTENSION: u16 = 0xF0C1;

/// What does not depend on the input and costs signatures: the domains, and the clients of their users.
static CAST: LazyLock<(Realm, Vec<Device>)> = LazyLock::new(|| {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let realm = Realm::new(&["a.test", "b.test"], UnixMillis::now()).expect("two domains");
    let mut devices: Vec<Device> =
        (0..6).map(|user| realm.device(user % 2, &format!("user{user}"), "phone", &mut rng).expect("a device")).collect();
    for user in 0..2 {
        let Device { uri, user_key, user_certificate, .. } = &devices[user];
        let (user, key, certificate) = (uri.user().clone(), user_key.clone(), user_certificate.clone());
        devices.push(further_device(&user, key, certificate, "tablet", [user.name().len() as u8; 32]).expect("a device"));
    }
    (realm, devices)
});

/// Octets that are used up one by one; then zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn octet(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn up_to(&mut self, most: usize) -> Vec<u8> {
        let length = usize::from(self.octet()).min(most).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken.to_vec()
    }
}

/// One run.
struct Machine<'a> {
    input: Input<'a>,
    now: UnixMillis,
    rng: ChaCha20Rng,
    /// The group as its members have it.
    forged: SynthGroup,
    /// The group as the hub has it.
    group: LocalGroup,
    /// Members' proposals of this epoch that the hub has taken.
    proposed: Vec<Proposal>,
}

/// A request and, if it is a Commit, the group of its maker.
struct Asked {
    request: DsRequest,
    after: Option<SynthGroup>,
    /// What Commits may cover if the request is accepted.
    proposal: Option<Proposal>,
    /// Who asks by its user key, instead of a leaf.
    user: Option<&'static Device>,
}

impl From<DsRequest> for Asked {
    fn from(request: DsRequest) -> Self {
        Self { request, after: None, proposal: None, user: None }
    }
}

/// Runs the machine.
pub(super) fn delivery_service(octets: &[u8]) {
    let (realm, devices) = &*CAST;
    let (now, mut rng) = (UnixMillis::now(), ChaCha20Rng::seed_from_u64(2));
    let (forged, group) = realm.group(&devices[0], now, &mut rng).expect("a group");
    let mut machine = Machine { input: Input(octets), now, rng, forged, group, proposed: Vec::new() };
    for _ in 0..STEPS_MAX {
        if machine.input.0.is_empty() {
            break;
        }
        machine.step();
        machine.check();
    }
    machine.check_records();
}

impl Machine<'_> {
    fn step(&mut self) {
        let (what, who) = (self.input.octet(), self.input.octet());
        match what % 24 {
            17 => self.time_passes(who),
            18 => self.wants_removed(who),
            19 => self.is_heard_of(who),
            what => {
                let leaf = self.nth_leaf(who);
                if let Ok(asked) = self.asked(what, leaf) {
                    self.ask(leaf, asked);
                }
            }
        }
    }

    /// One of the leaves, mostly one that is there.
    fn nth_leaf(&self, who: u8) -> u32 {
        let leaves: Vec<u32> = self.group.state.members.keys().copied().collect();
        match leaves.len() {
            0 => u32::from(who),
            count => leaves[usize::from(who) % count],
        }
    }

    fn device_of(&self, leaf: u32) -> Option<&'static Device> {
        let client = &self.group.state.members.get(&leaf)?.client;
        CAST.1.iter().find(|device| device.uri == *client)
    }

    fn group_id(&self) -> Opaque {
        self.group.state.uri.to_bytes().into()
    }

    fn packages(&mut self, mask: u8) -> Vec<KeyPackage> {
        let chosen = CAST.1.iter().enumerate().filter(|(index, _)| mask >> index & 1 == 1);
        chosen.map(|(_, device)| device.key_package(self.now, &mut self.rng)).collect()
    }

    fn leaves(&self, mask: u8) -> Vec<u32> {
        (0..8).filter(|bit| mask >> bit & 1 == 1).collect()
    }

    /// Forges a Commit. It covers what is pending, but where the input says otherwise.
    fn commit(&mut self, leaf: u32, mut change: Change) -> Result<(Forged, SynthGroup), SynthError> {
        let uncovered = self.input.octet();
        if uncovered & 1 == 0 {
            let removes = self.group.state.head.pending_removes();
            change.cover.extend(removes.map(|(target, message)| Proposal::external_remove(message, target)));
            let covered: Vec<u32> = self.group.state.head.pending_removes().map(|(target, _)| target).collect();
            change.remove.retain(|leaf| !covered.contains(leaf));
        }
        if uncovered & 2 == 0 {
            change.cover.extend(self.proposed.iter().cloned());
        }
        let mut after = self.forged.clone();
        let forged = after.commit(leaf, change)?;
        Ok((forged, after))
    }

    /// A request, as it would be right or nearly so.
    fn asked(&mut self, what: u8, leaf: u32) -> Result<Asked, SynthError> {
        let group_id = self.group_id();
        let change = match what {
            0 | 1 => Change::default(),
            2..=4 => {
                let (mask, flags) = (self.input.octet(), self.input.octet());
                Change { add: self.packages(mask), without_path: flags & 1 == 1, ..Change::default() }
            }
            5..=7 => {
                let mask = self.input.octet();
                Change { remove: self.leaves(mask), ..Change::default() }
            }
            8 => {
                let (flags, policy) = (self.input.octet(), self.input.octet());
                let mut extensions = vec![Extension { kind: JOIN_POLICY_EXTENSION, data: vec![policy] }];
                if flags & 1 == 0 {
                    extensions.push(CAST.0.external_senders());
                }
                Change { extensions: Some(extensions), ..Change::default() }
            }
            20 => {
                let (message, proposal) = self.forged.propose_update(leaf)?;
                let request = DsRequest::Propose(Propose { group_id, proposals: vec![Opaque::from(message)].into() });
                return Ok(Asked { proposal: Some(proposal), ..request.into() });
            }
            21 | 22 => return self.asked_to_join(leaf),
            _ => return Ok(self.asked_without_commit(what, leaf)?.into()),
        };
        let (mut forged, after) = self.commit(leaf, change)?;
        let kind = self.input.octet();
        self.spoil(&mut forged);
        let group_commit = || GroupCommit { group_id: group_id.clone(), group_update: update_of(&forged) };
        let welcomes: List<Opaque> = match forged.welcome.as_slice() {
            [] => List::default(),
            welcome => vec![Opaque::from(welcome)].into(),
        };
        let group_add = || GroupAdd { group_id: group_id.clone(), group_update: update_of(&forged), welcomes: welcomes.clone() };
        // Mostly what the Commit is.
        let kind = if kind < 200 { what } else { kind % 9 };
        let request = match kind {
            0 | 1 => DsRequest::UpdateClient(group_commit()),
            2 | 3 => DsRequest::AddUsers(group_add()),
            4 => DsRequest::AddClients(group_add()),
            5 => DsRequest::RemoveUsers(group_commit()),
            6 => DsRequest::RemoveClients(group_commit()),
            7 => DsRequest::DeleteGroup(group_commit()),
            _ => DsRequest::UpdateGroup(group_commit()),
        };
        Ok(Asked { after: Some(after), ..request.into() })
    }

    /// An external Commit, of a user or of a leaf that comes back.
    fn asked_to_join(&mut self, leaf: u32) -> Result<Asked, SynthError> {
        let (who, flags) = (self.input.octet(), self.input.octet());
        let comes_back = flags & 1 == 1;
        let chosen = &CAST.1[usize::from(who) % CAST.1.len()];
        let device = if comes_back { self.device_of(leaf).unwrap_or(chosen) } else { chosen };
        let removed = match flags >> 1 & 3 {
            0 if comes_back => Some(leaf),
            1 => Some(u32::from(who) % 8),
            _ => None,
        };
        let mut after = self.forged.clone();
        let (_, mut forged) = after.join(&device.identity, &Capabilities::default(), removed)?;
        let kind = self.input.octet();
        self.spoil(&mut forged);
        let group_update = update_of(&forged);
        let client_queue_config = device.queue_config();
        let body = GroupJoin { group_id: self.group_id(), group_update, client_queue_config };
        let is_member = self.group.state.has_user(device.uri.user());
        let (request, user) = match kind {
            0..200 if comes_back => (DsRequest::ResyncClient(body), None),
            0..200 if is_member => (DsRequest::JoinClient(body), Some(device)),
            0..200 => (DsRequest::JoinGroup(body), Some(device)),
            200..230 => (DsRequest::ResyncClient(body), None),
            _ => (DsRequest::JoinClient(body), Some(device)),
        };
        Ok(Asked { after: Some(after), user, ..request.into() })
    }

    fn asked_without_commit(&mut self, what: u8, leaf: u32) -> Result<DsRequest, SynthError> {
        let group_id = self.group_id();
        Ok(match what {
            9 | 10 => {
                let back = self.input.octet();
                let epoch = self.forged.epoch().wrapping_sub(u64::from(back % 8));
                let message = self.forged.private_message_of(epoch, CONTENT_TYPE_APPLICATION + u8::from(back > 250));
                DsRequest::SendMessage(SendMessage { group_id, message: message.into() })
            }
            11 => DsRequest::LeaveGroup(GroupOnly { group_id }),
            12 => {
                let content = self.input.up_to(64);
                let message = self.forged.public_message(leaf, CONTENT_TYPE_PROPOSAL, &content)?;
                DsRequest::Propose(Propose { group_id, proposals: vec![Opaque::from(message)].into() })
            }
            13 => {
                let (domain, length) = (self.input.octet(), self.input.octet());
                let qs_domain = match domain % 4 {
                    0 => Opaque::from(self.input.up_to(16)),
                    1 => b"b.test".as_slice().into(),
                    _ => b"a.test".as_slice().into(),
                };
                let client_queue_information = vec![8; usize::from(length) * 3].into();
                let client_queue_config = ClientQueueConfig { qs_domain, client_queue_information };
                DsRequest::UpdateQueueInfo(UpdateQueueInfo { group_id, client_queue_config })
            }
            14 => DsRequest::WelcomeInfo(WelcomeInfo { group_id, epoch: u64::from(self.input.octet()) }),
            15 => DsRequest::ExternalCommitInfo(GroupOnly { group_id }),
            _ => {
                let message = self.input.up_to(255);
                match self.input.octet() % 2 {
                    0 => DsRequest::SendMessage(SendMessage { group_id, message: message.into() }),
                    _ => DsRequest::Propose(Propose { group_id, proposals: vec![Opaque::from(message)].into() }),
                }
            }
        })
    }

    /// Flips an octet of a part, perhaps. The maker of a spoilt Commit that is accepted all the same (a server cannot check every
    /// octet) is then the only one in its epoch: what is forged afterwards does not fit, and is refused.
    fn spoil(&mut self, forged: &mut Forged) {
        let how = self.input.octet();
        let part = match how {
            128..170 => &mut forged.commit,
            170..212 => &mut forged.group_info,
            212..=255 => &mut forged.welcome,
            _ => return,
        };
        let position = usize::from(u16::from_be_bytes([self.input.octet(), self.input.octet()]));
        if !part.is_empty() {
            let position = position % part.len();
            part[position] ^= 1 << (how % 8);
        }
    }

    /// Signs the request, mostly as whoever asks and through its domain, and lets the hub decide.
    fn ask(&mut self, leaf: u32, asked: Asked) {
        let Some(device) = asked.user.or_else(|| self.device_of(leaf)) else { return };
        let how = self.input.octet();
        let mut as_user = asked.user.is_some();
        let mut key = if as_user { &device.user_key } else { &device.key };
        let mut sender_id = DsSenderId::LeafIndex(leaf);
        let mut through = device.uri.domain().clone();
        match how {
            200..215 => key = &CAST.1[usize::from(how) % CAST.1.len()].key,
            215..225 => sender_id = DsSenderId::LeafIndex(u32::from(self.input.octet())),
            225..235 => through = if through == CAST.0.domain { domain("b.test") } else { domain("a.test") },
            235..245 => {
                let joiner = self.group.state.head.joiners.first();
                let reference = joiner.map_or_else(Vec::new, |joiner| joiner.key_package_ref.clone());
                sender_id = DsSenderId::KeyPackageRef(reference.into());
            }
            245..=255 => (as_user, key) = (true, &device.user_key),
            _ => {}
        }
        let mut certificates = List::default();
        if as_user {
            sender_id = DsSenderId::UserKeyHash(key_hash(device.user_key.public()).as_slice().into());
            certificates = vec![Opaque::from(device.user_certificate.as_slice())].into();
        }
        let frame = encode(&CAST.0.request(self.now, sender_id, certificates, key, asked.request));
        let before = self.picture();
        match self.group.decide(&CAST.0, self.now, &frame, &through) {
            Ok(decision) => {
                self.proposed.extend(asked.proposal);
                self.accepted(decision, asked.after, &before.2);
            }
            Err(Refusal::Rejected(_)) => assert_eq!(self.picture(), before, "a refused request changed the group"),
            Err(other) => unreachable!("{other:?}: all roots are known, and state and tree fit together"),
        }
    }

    /// What a refusal leaves as it is: the record, the tree's epoch, and its leaves.
    fn picture(&self) -> (Vec<u8>, u64, BTreeSet<u32>) {
        let LocalGroup { state, tree, .. } = &self.group;
        let mut record = state.head.to_record().expect("encodes");
        for (leaf, member) in &state.members {
            record.extend(leaf.to_be_bytes());
            record.extend(member.to_record().expect("encodes"));
        }
        (record, tree.epoch(), state.members.keys().copied().collect())
    }

    fn accepted(&mut self, decision: Decision, after: Option<SynthGroup>, members: &BTreeSet<u32>) {
        let epoch = self.group.state.head.epoch;
        let is_commit = matches!(decision, Decision::Commit(_));
        let (outcome, _) = self.group.follow(decision, false).expect("what was decided can be followed");
        if let Some(outcome) = &outcome {
            self.check_outcome(outcome, members);
        }
        assert_eq!(self.group.state.head.epoch, epoch + u64::from(is_commit));
        if is_commit {
            self.proposed.clear();
        }
        if let Some(after) = after.filter(|_| is_commit) {
            self.forged = after;
        }
    }

    fn check_outcome(&self, outcome: &Outcome, before: &BTreeSet<u32>) {
        let after: BTreeSet<u32> = self.group.state.members.keys().copied().collect();
        for fan_out in &outcome.fan_out {
            let strangers =
                fan_out.recipients.iter().filter(|to| !before.contains(&to.leaf_index) && !after.contains(&to.leaf_index));
            assert_eq!(strangers.count(), 0, "a delivery to somebody who is no member");
        }
        if let Reply::CommitAccepted(receipt) = &outcome.reply {
            assert_eq!(receipt.content.epoch, self.group.state.head.epoch);
            let sent = outcome.fan_out.iter().filter_map(|fan_out| match &fan_out.delivery {
                mimi_node::wire::qs::Delivery::Message(message) if message.receipt.is_some() => Some(sha256(&message.message)),
                _ => None,
            });
            assert!(sent.into_iter().all(|hash| hash == receipt.content.commit_hash));
        }
    }

    fn time_passes(&mut self, days: u8) {
        self.now = self.now.plus(Duration::from_secs(u64::from(days) * 86_400 / 4));
        let hub = CAST.0.hub(self.now);
        let due = removal::due(&hub, &self.group.state);
        let outcome = removal::issue(&hub, &self.group.state, &due);
        self.own(outcome);
    }

    fn wants_removed(&mut self, mask: u8) {
        let causes = [Cause::ClientRevoked, Cause::UserDeleted, Cause::Inactive, Cause::QueueRejected, Cause::Expired];
        let cause = causes[usize::from(self.input.octet()) % causes.len()];
        let wanted: Vec<(u32, Cause)> = self.leaves(mask).into_iter().map(|leaf| (leaf, cause)).collect();
        let outcome = removal::issue(&CAST.0.hub(self.now), &self.group.state, &wanted);
        self.own(outcome);
    }

    fn is_heard_of(&mut self, who: u8) {
        let leaf = self.nth_leaf(who);
        let information = self.group.state.members.get(&leaf).map(|member| member.queue.information.clone());
        let outcome = match (self.input.octet() % 2, information) {
            (0, Some(information)) => removal::rejected_queue(&CAST.0.hub(self.now), &self.group.state, leaf, &information),
            _ => removal::withdraw(&self.group.state, leaf),
        };
        self.own(outcome);
    }

    /// Lets the record follow what the DS does by itself.
    fn own(&mut self, outcome: Option<Outcome>) {
        let before = self.group.state.members.keys().copied().collect();
        if let Some(mut outcome) = outcome {
            self.group.follow_outcome(&mut outcome);
            self.check_outcome(&outcome, &before);
        }
    }

    /// Record and tree are of the same group.
    fn check(&self) {
        let LocalGroup { state, tree, .. } = &self.group;
        if state.head.closed_at_ms.is_some() {
            let head = &state.head;
            assert!(head.joiners.is_empty() && head.removals.is_empty() && head.proposals.is_empty(), "nothing waits any more");
            return;
        }
        assert_eq!(state.head.epoch, tree.epoch());
        assert_eq!(state.members.keys().copied().collect::<Vec<_>>(), tree.leaf_indices(), "members and leaves");
        let clients: BTreeSet<String> = state.members.values().map(|member| member.client.to_string()).collect();
        let keys: BTreeSet<&[u8]> = state.members.values().map(|member| member.signature_key.as_slice()).collect();
        assert_eq!(keys.len(), state.members.len(), "a key stands in the tree once");
        assert!(clients.len() + state.head.removals.len() >= state.members.len(), "a client has one leaf, but for what is to go");
        assert!(state.head.pending_removes().count() <= CAST.0.limits.removals_at_once_max);
    }

    /// What storage would have brings the same tree back.
    fn check_records(&self) {
        let LocalGroup { state, tree, snapshot, log } = &self.group;
        let restored =
            Tree::restore(&state.uri.to_bytes(), snapshot, log.iter().map(Vec::as_slice)).expect("a log can be replayed");
        assert_eq!(restored.epoch(), tree.epoch());
        assert_eq!(restored.ratchet_tree().expect("encodes"), tree.ratchet_tree().expect("encodes"));
    }
}

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}
