//! One group, as our Delivery Service and as a bare OpenMLS PublicGroup see it.

use std::collections::BTreeMap;

use federation_tests::hub::{Device, LocalGroup, Realm};
use federation_tests::people::update_of;
use federation_tests::synth::{CONTENT_TYPE_APPLICATION, SynthGroup};
use mimi_node::base::UnixMillis;
use mimi_node::ds::GroupState;
use mimi_node::wire::ds::{DsRequest, DsSenderId, GroupAdd, GroupCommit, SendMessage};
use mimi_node::wire::{List, Opaque, Response, encode};
use openmls::prelude::tls_codec::Deserialize as _;
use openmls::prelude::{
    MlsMessageBodyIn, MlsMessageIn, OpenMlsProvider as _, ProcessedMessageContent, ProposalStore, PublicGroup, RatchetTreeIn,
};
use openmls_rust_crypto::OpenMlsRustCrypto;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;

use crate::null_store::NullStore;

/// KeyPackages added by one Commit while a group is made.
const ADDED_AT_ONCE: usize = 100;

/// The group, with everything that requests about it are made of.
pub struct World {
    realm: Realm,
    forged: SynthGroup,
    devices: BTreeMap<u32, Device>,
    group: LocalGroup,
    bare: Bare,
    rng: ChaCha20Rng,
    turn: usize,
}

/// A Commit for both.
pub struct Commit {
    /// The request's frame.
    pub frame: Vec<u8>,
    /// The Commit's MLSMessage.
    pub octets: Vec<u8>,
}

/// OpenMLS by itself.
struct Bare {
    provider: OpenMlsRustCrypto,
    group: PublicGroup,
}

impl Bare {
    fn new(group_info: &[u8], tree: &[u8]) -> Self {
        let provider = OpenMlsRustCrypto::default();
        let MlsMessageBodyIn::GroupInfo(info) = MlsMessageIn::tls_deserialize_exact(group_info).unwrap().extract() else {
            panic!("not a GroupInfo")
        };
        let tree = RatchetTreeIn::tls_deserialize_exact(tree).unwrap();
        let (group, _) = PublicGroup::from_external(provider.crypto(), &NullStore, tree, info, ProposalStore::new()).unwrap();
        Self { provider, group }
    }

    fn follow(&mut self, commit: &[u8]) {
        let message = MlsMessageIn::tls_deserialize_exact(commit).unwrap().try_into_protocol_message().unwrap();
        let processed = self.group.process_message(self.provider.crypto(), message).unwrap();
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else { panic!("not a Commit") };
        self.group.merge_commit(&NullStore, *staged).unwrap();
    }
}

impl World {
    /// A group of `size` clients, each of another user, in which every node of the tree has a key.
    pub fn new(size: usize) -> Self {
        let now = UnixMillis::now();
        let mut rng = ChaCha20Rng::seed_from_u64(size as u64);
        let realm = Realm::new(&["hub.test"], now).unwrap();
        let creator = realm.device(0, "user0", "phone", &mut rng).unwrap();
        let (mut forged, group) = realm.group(&creator, now, &mut rng).unwrap();
        let bare = Bare::new(&forged.group_info_with_tree(0).unwrap(), &forged.ratchet_tree());
        let devices = BTreeMap::from([(0, creator)]);
        let mut world = Self { realm, forged, devices, group, bare, rng, turn: 0 };
        while world.size() < size {
            world.add(size.min(world.size() + ADDED_AT_ONCE));
        }
        // Every parent node gets a key, and every member has been checked with the leaf that its own Commit brought.
        for leaf in 0..size as u32 {
            let commit = world.update_of(leaf);
            world.decide(&commit.frame, false);
            world.bare.follow(&commit.octets);
        }
        world
    }

    /// Adds clients up to `size`, in one Commit.
    pub fn add(&mut self, size: usize) {
        let first = self.size();
        let added: Vec<Device> =
            (first..size).map(|number| self.realm.device(0, &format!("user{number}"), "phone", &mut self.rng).unwrap()).collect();
        let packages = added.iter().map(|device| device.key_package(UnixMillis::now(), &mut self.rng)).collect();
        let forged = self.forged.add(0, packages).unwrap();
        self.devices.extend(added.into_iter().enumerate().map(|(index, device)| ((first + index) as u32, device)));
        let body = GroupAdd {
            group_id: self.group.state.uri.to_bytes().into(),
            group_update: update_of(&forged),
            welcomes: vec![Opaque::from(forged.welcome.as_slice())].into(),
        };
        let frame = self.frame(0, DsRequest::AddUsers(body));
        self.decide(&frame, false);
        self.bare.follow(&forged.commit);
    }

    /// How many members there are.
    pub fn size(&self) -> usize {
        self.devices.len()
    }

    /// The next update: members take turns. Both sides have to follow it.
    pub fn next_update(&mut self) -> Commit {
        self.turn += 1;
        // A step that is coprime to every size here, so that neighbours do not follow each other.
        let leaf = (self.turn * 37 % self.size()) as u32;
        self.update_of(leaf)
    }

    fn update_of(&mut self, leaf: u32) -> Commit {
        let forged = self.forged.update(leaf).unwrap();
        let body = GroupCommit { group_id: self.group.state.uri.to_bytes().into(), group_update: update_of(&forged) };
        Commit { frame: self.frame(leaf, DsRequest::UpdateClient(body)), octets: forged.commit }
    }

    /// A message of leaf 0 in `epoch`, as a request's frame.
    pub fn message(&mut self, epoch: u64) -> Vec<u8> {
        let message = self.forged.private_message_of(epoch, CONTENT_TYPE_APPLICATION);
        let body = SendMessage { group_id: self.group.state.uri.to_bytes().into(), message: message.into() };
        self.frame(0, DsRequest::SendMessage(body))
    }

    /// The current epoch.
    pub fn epoch(&self) -> u64 {
        self.group.state.head.epoch
    }

    fn frame(&self, leaf: u32, request: DsRequest) -> Vec<u8> {
        let (sender_id, key) = (DsSenderId::LeafIndex(leaf), &self.devices[&leaf].key);
        encode(&self.realm.request(UnixMillis::now(), sender_id, List::default(), key, request))
    }

    /// Decides a request from its frame and follows the decision. Returns how many recipients there are, and the tree as a record
    /// if it is asked for.
    pub fn decide(&mut self, frame: &[u8], with_snapshot: bool) -> (usize, Option<Vec<u8>>) {
        let decision = self.group.decide(&self.realm, UnixMillis::now(), frame, &self.realm.domain);
        let decision = decision.unwrap_or_else(|refusal| panic!("{refusal:?}"));
        let (outcome, snapshot) = self.group.follow(decision, with_snapshot).unwrap();
        let outcome = outcome.unwrap();
        std::hint::black_box(encode(&Response::new(Ok(outcome.reply))));
        (outcome.fan_out.iter().map(|fan_out| fan_out.recipients.len()).sum(), snapshot)
    }

    /// What bare OpenMLS does with a Commit.
    pub fn follow_bare(&mut self, commit: &[u8]) {
        self.bare.follow(commit);
    }

    /// The group's id, and its tree as a record, after one more Commit.
    pub fn snapshot(&mut self) -> (Vec<u8>, Vec<u8>) {
        let commit = self.next_update();
        let (_, snapshot) = self.decide(&commit.frame, true);
        self.bare.follow(&commit.octets);
        (self.group.state.uri.to_bytes(), snapshot.unwrap())
    }

    /// The small record.
    pub fn state(&self) -> &GroupState {
        &self.group.state
    }
}
