//! One group, as our Delivery Service and as a bare OpenMLS PublicGroup see it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use federation_tests::people::{key_of_seed, update_of};
use federation_tests::synth::{Capabilities, Extension, Identity, KeyPackage, SynthGroup};
use mimi_node::base::crypto::SigningKey;
use mimi_node::base::ids::RequestId;
use mimi_node::base::limits::Limits;
use mimi_node::base::{Domain, GroupUri, UnixMillis, UserUri};
use mimi_node::ds::{self, Authenticated, GroupState, Hub, Sender};
use mimi_node::identity::issue::{issue_client, user_csr};
use mimi_node::identity::{AsRoot, AsRoots, RevokedKeys};
use mimi_node::mls::Tree;
use mimi_node::mls::external_sender::encode_external_sender;
use mimi_node::wire::ds::{ClientQueueConfig, CreateGroup, DsMessage, DsRequest, DsSenderId, GroupAdd, GroupCommit, SendMessage};
use mimi_node::wire::{ClientRequest, Content, List, Opaque, Response, Service, decode, encode};
use openmls::prelude::tls_codec::Deserialize as _;
use openmls::prelude::{
    MlsMessageBodyIn, MlsMessageIn, OpenMlsProvider as _, ProcessedMessageContent, ProposalStore, PublicGroup, RatchetTreeIn,
};
use openmls_rust_crypto::OpenMlsRustCrypto;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;

use crate::null_store::NullStore;

const HUB: &str = "hub.test";
/// The KeyPackage extension with a queue config.
const QUEUE_CONFIG_EXTENSION: u16 = 0xF0C0;
/// KeyPackages added by one Commit while a group is made.
const ADDED_AT_ONCE: usize = 100;

/// The group, with everything that requests about it are made of.
pub struct World {
    domain: Domain,
    ds_key: SigningKey,
    external_sender: Vec<u8>,
    as_root: AsRoot,
    roots: HashMap<Domain, Arc<AsRoots>>,
    revoked: HashMap<Domain, Arc<RevokedKeys>>,
    limits: Limits,
    uri: GroupUri,
    forged: SynthGroup,
    keys: BTreeMap<u32, SigningKey>,
    state: GroupState,
    tree: Tree,
    snapshot: Vec<u8>,
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
        let (domain, now): (Domain, _) = (HUB.parse().unwrap(), UnixMillis::now());
        let as_root = AsRoot::create(&domain, now).unwrap();
        let roots = AsRoots::new(domain.clone(), vec![as_root.certificate().to_vec()]).unwrap();
        let ds_key = SigningKey::generate().unwrap();
        let ds_public: [u8; 32] = ds_key.public().try_into().unwrap();
        let chain = vec![as_root.issue_service(&format!("mimi://{HUB}/ds"), &ds_public, now).unwrap()];
        let external_sender = encode_external_sender(&ds_public, &chain).unwrap();
        let mut rng = ChaCha20Rng::seed_from_u64(size as u64);
        let uri = GroupUri::new(&domain, &rng.random());

        let (key, package) = client(&as_root, 0, &mut rng);
        let senders = Extension::external_senders(&[(&ds_public, &chain)]);
        let mut forged = SynthGroup::create(&uri.to_bytes(), &package, &[senders], rng.random());
        let group_info = forged.group_info_with_tree(0).unwrap();
        let bare = Bare::new(&group_info, &forged.ratchet_tree());
        let body = CreateGroup {
            group_id: uri.to_bytes().into(),
            key_package: package.message().into(),
            client_queue_config: queue_config(),
            group_info: group_info.into(),
        };
        let sender_id = DsSenderId::KeyPackageRef(package.reference().as_slice().into());
        let request = sign(&key, sender_id, DsRequest::CreateGroup(body));
        let roots = HashMap::from([(domain.clone(), Arc::new(roots))]);
        let (revoked, limits) = (HashMap::new(), Limits::default());
        let hub = Hub {
            domain: &domain,
            now,
            roots: &roots,
            revoked: &revoked,
            limits: &limits,
            external_sender: &external_sender,
            key: &ds_key,
        };
        let Service::Ds(message) = &request.content.service else { unreachable!() };
        let DsRequest::CreateGroup(body) = &message.request else { unreachable!() };
        let created = ds::create::decide(&hub, &request, message, body, &domain).unwrap_or_else(|refusal| panic!("{refusal:?}"));
        let change = created.outcome.change.unwrap();
        let members = change.set.into_iter().collect();
        let state = GroupState { uri: uri.clone(), revision: 0, head: change.head, members };
        let mut world = Self {
            domain,
            ds_key,
            external_sender,
            as_root,
            roots,
            revoked,
            limits,
            uri,
            forged,
            keys: BTreeMap::from([(0, key)]),
            state,
            tree: created.tree,
            snapshot: created.snapshot,
            bare,
            rng,
            turn: 0,
        };
        while world.size() < size {
            let next = size.min(world.size() + ADDED_AT_ONCE);
            world.add(next);
        }
        // Every parent node gets a key.
        for leaf in (0..size as u32).step_by(2) {
            let commit = world.update_of(leaf);
            world.decide(&commit.frame);
            world.bare.follow(&commit.octets);
        }
        world
    }

    /// Adds clients up to `size`, in one Commit.
    pub fn add(&mut self, size: usize) {
        let first = self.keys.len();
        let added: Vec<_> = (first..size).map(|number| client(&self.as_root, number, &mut self.rng)).collect();
        let packages = added.iter().map(|(_, package)| package.clone()).collect();
        let forged = self.forged.add(0, packages).unwrap();
        self.keys.extend(added.into_iter().enumerate().map(|(index, (key, _))| ((first + index) as u32, key)));
        let body = GroupAdd {
            group_id: self.uri.to_bytes().into(),
            group_update: update_of(&forged),
            welcomes: vec![Opaque::from(forged.welcome.as_slice())].into(),
        };
        let frame = encode(&self.request(0, DsRequest::AddUsers(body)));
        self.decide(&frame);
        self.bare.follow(&forged.commit);
    }

    /// How many members there are.
    pub fn size(&self) -> usize {
        self.keys.len()
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
        let body = GroupCommit { group_id: self.uri.to_bytes().into(), group_update: update_of(&forged) };
        Commit { frame: encode(&self.request(leaf, DsRequest::UpdateClient(body))), octets: forged.commit }
    }

    /// A message of leaf 0 in `epoch`, as a request's frame.
    pub fn message(&mut self, epoch: u64) -> Vec<u8> {
        let message = self.forged.private_message_of(epoch, federation_tests::synth::CONTENT_TYPE_APPLICATION);
        let body = SendMessage { group_id: self.uri.to_bytes().into(), message: message.into() };
        encode(&self.request(0, DsRequest::SendMessage(body)))
    }

    /// The current epoch.
    pub fn epoch(&self) -> u64 {
        self.state.head.epoch
    }

    fn request(&self, leaf: u32, request: DsRequest) -> ClientRequest {
        sign(&self.keys[&leaf], DsSenderId::LeafIndex(leaf), request)
    }

    fn hub(&self) -> Hub<'_> {
        Hub {
            domain: &self.domain,
            now: UnixMillis::now(),
            roots: &self.roots,
            revoked: &self.revoked,
            limits: &self.limits,
            external_sender: &self.external_sender,
            key: &self.ds_key,
        }
    }

    fn authenticate(&self, request: &ClientRequest, message: &DsMessage) -> Authenticated {
        match ds::sender::authenticate(&self.state, request, message, &self.domain).unwrap() {
            Sender::Member(sender) => sender,
            other => panic!("{other:?}"),
        }
    }

    /// Decides a Commit from its frame and follows it.
    pub fn decide(&mut self, frame: &[u8]) {
        let request: ClientRequest = decode(frame).unwrap();
        let Service::Ds(message) = &request.content.service else { panic!("not a DS request") };
        let sender = self.authenticate(&request, message);
        let (kind, update) = match &message.request {
            DsRequest::AddUsers(body) => (ds::commit::Kind::AddUsers(&body.welcomes), &body.group_update),
            DsRequest::UpdateClient(body) => (ds::commit::Kind::UpdateClient, &body.group_update),
            other => panic!("{other:?}"),
        };
        ds::commit::check_frame(&self.state, update).unwrap();
        let accepted = ds::commit::decide(&self.hub(), &self.state, &self.tree, &sender, kind, update);
        let accepted = accepted.unwrap_or_else(|refusal| panic!("{refusal:?}"));
        let response = encode(&Response::new(Ok(accepted.outcome.reply)));
        self.state.apply(accepted.outcome.change.unwrap());
        self.tree.merge(accepted.update, false).unwrap();
        std::hint::black_box((response, accepted.outcome.fan_out));
    }

    /// What bare OpenMLS does with a Commit.
    pub fn follow_bare(&mut self, commit: &[u8]) {
        self.bare.follow(commit);
    }

    /// Decides a message from its frame. Returns how many recipients it has.
    pub fn decide_message(&self, frame: &[u8]) -> usize {
        let request: ClientRequest = decode(frame).unwrap();
        let Service::Ds(message) = &request.content.service else { panic!("not a DS request") };
        let sender = self.authenticate(&request, message);
        let DsRequest::SendMessage(body) = &message.request else { panic!("not a message") };
        let outcome = ds::message::decide(&self.hub(), &self.state, &sender, body).unwrap();
        let response = encode(&Response::new(Ok(outcome.reply)));
        let recipients = outcome.fan_out.iter().map(|fan_out| fan_out.recipients.len()).sum();
        std::hint::black_box((response, outcome.fan_out));
        recipients
    }

    /// The tree as a record, after one more Commit.
    pub fn snapshot(&mut self) -> (Vec<u8>, Vec<u8>) {
        let commit = self.next_update();
        let request: ClientRequest = decode(&commit.frame).unwrap();
        let Service::Ds(message) = &request.content.service else { panic!("not a DS request") };
        let sender = self.authenticate(&request, message);
        let DsRequest::UpdateClient(body) = &message.request else { panic!("not an update") };
        let kind = ds::commit::Kind::UpdateClient;
        let accepted = ds::commit::decide(&self.hub(), &self.state, &self.tree, &sender, kind, &body.group_update).ok().unwrap();
        self.state.apply(accepted.outcome.change.unwrap());
        self.snapshot = self.tree.merge(accepted.update, true).unwrap().unwrap();
        self.bare.follow(&commit.octets);
        (self.uri.to_bytes(), self.snapshot.clone())
    }

    /// The small record.
    pub fn state(&self) -> &GroupState {
        &self.state
    }
}

fn queue_config() -> ClientQueueConfig {
    ClientQueueConfig { qs_domain: HUB.as_bytes().into(), client_queue_information: vec![7; 150].into() }
}

/// A client of a user of its own, with a KeyPackage.
fn client(as_root: &AsRoot, number: usize, rng: &mut ChaCha20Rng) -> (SigningKey, KeyPackage) {
    let now = UnixMillis::now();
    let user = UserUri::new(as_root.domain(), &format!("user{number}")).unwrap();
    let uri = user.client("phone").unwrap();
    let (user_key, seed) = (key_of_seed(&rng.random()).unwrap(), rng.random());
    let key = key_of_seed(&seed).unwrap();
    let user_certificate = as_root.issue_user(&user_csr(&user_key, &user).unwrap(), &user, now).unwrap();
    let certificate = issue_client(&user_key, &user_certificate, &uri, key.public(), now).unwrap();
    let identity = Identity::new(&seed, &[certificate, user_certificate]);
    let extension = Extension { kind: QUEUE_CONFIG_EXTENSION, data: encode(&queue_config()) };
    (key, KeyPackage::new(identity, Capabilities::default(), &[extension], now.seconds(), rng))
}

fn sign(key: &SigningKey, sender_id: DsSenderId, request: DsRequest) -> ClientRequest {
    let message = DsMessage { sender_id, certificates: List::default(), request };
    let domain: Domain = HUB.parse().unwrap();
    Content::new(&domain, RequestId::random(), UnixMillis::now(), Service::Ds(message)).sign(key)
}
