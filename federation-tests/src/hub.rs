//! A Delivery Service with one group, in memory: its decisions without network and storage, for benches and fuzzers.

use std::collections::HashMap;
use std::sync::Arc;

use mimi_node::base::crypto::SigningKey;
use mimi_node::base::ids::RequestId;
use mimi_node::base::limits::Limits;
use mimi_node::base::{ClientUri, Context as _, Domain, Fault, GroupUri, UnixMillis, UserUri};
use mimi_node::ds::{self, Accepted, Decision, GroupState, Outcome, Refusal};
use mimi_node::identity::issue::{issue_client, user_csr};
use mimi_node::identity::{AsRoot, AsRoots, RevokedKeys};
use mimi_node::mls::Tree;
use mimi_node::mls::external_sender::encode_external_sender;
use mimi_node::wire::ds::{ClientQueueConfig, CreateGroup, DsMessage, DsRequest, DsSenderId};
use mimi_node::wire::{ClientRequest, Content, ErrorCode, List, Opaque, Service, decode, encode};
use rand::Rng as _;
use rand_chacha::ChaCha20Rng;

use crate::people::key_of_seed;
use crate::synth::{Capabilities, Extension, Identity, KeyPackage, SynthGroup};

/// The KeyPackage extension with a queue config.
const QUEUE_CONFIG_EXTENSION: u16 = 0xF0C0;

/// What a Delivery Service has besides its groups. Making it takes a few signatures, so that many groups can share one.
pub struct Realm {
    /// The hub; the first domain.
    pub domain: Domain,
    /// Of each domain, in their order.
    as_roots: Vec<AsRoot>,
    ds_key: SigningKey,
    ds_chain: Vec<Vec<u8>>,
    external_sender: Vec<u8>,
    roots: HashMap<Domain, Arc<AsRoots>>,
    revoked: HashMap<Domain, Arc<RevokedKeys>>,
    /// What the operator allows.
    pub limits: Limits,
}

/// A client that its domain has certified.
#[derive(Clone)]
pub struct Device {
    /// Its name.
    pub uri: ClientUri,
    /// Its leaf key.
    pub key: SigningKey,
    /// As it goes into leaves.
    pub identity: Identity,
    /// Its user's key.
    pub user_key: SigningKey,
    /// Its user's certificate, DER.
    pub user_certificate: Vec<u8>,
}

impl Device {
    /// Where its messages go.
    pub fn queue_config(&self) -> ClientQueueConfig {
        let qs_domain = self.uri.domain().as_bytes().into();
        ClientQueueConfig { qs_domain, client_queue_information: vec![7; 150].into() }
    }

    /// A fresh KeyPackage, valid from `now` on.
    pub fn key_package(&self, now: UnixMillis, rng: &mut ChaCha20Rng) -> KeyPackage {
        let extension = Extension { kind: QUEUE_CONFIG_EXTENSION, data: encode(&self.queue_config()) };
        KeyPackage::new(self.identity.clone(), Capabilities::default(), &[extension], now.seconds(), rng)
    }
}

impl Realm {
    /// The hub `domains[0]` and the other domains whose users it knows.
    pub fn new(domains: &[&str], now: UnixMillis) -> Result<Self, Fault> {
        let (mut as_roots, mut roots, mut names) = (Vec::new(), HashMap::new(), Vec::new());
        let mut revoked = HashMap::new();
        for name in domains {
            let domain: Domain = name.parse().context("not a domain")?;
            let as_root = AsRoot::create(&domain, now)?;
            let pinned = AsRoots::new(domain.clone(), vec![as_root.certificate().to_vec()]).context("not a root")?;
            roots.insert(domain.clone(), Arc::new(pinned));
            revoked.insert(domain.clone(), Arc::new(RevokedKeys::new([], UnixMillis(u64::MAX))));
            as_roots.push(as_root);
            names.push(domain);
        }
        let (domain, as_root) = names.first().zip(as_roots.first()).context("a realm needs a hub")?;
        let ds_key = SigningKey::generate()?;
        let public: [u8; 32] = ds_key.public().try_into().context("an Ed25519 key has 32 octets")?;
        let certificate = as_root.issue_service(&format!("mimi://{domain}/ds"), &public, now).context("not issued")?;
        let ds_chain = vec![certificate];
        Ok(Self {
            domain: domain.clone(),
            external_sender: encode_external_sender(&public, &ds_chain)?,
            ds_key,
            ds_chain,
            roots,
            as_roots,
            revoked,
            limits: Limits::default(),
        })
    }

    /// Certifies a user of the domain with this index, and a client.
    pub fn device(&self, site: usize, name: &str, device: &str, rng: &mut ChaCha20Rng) -> Result<Device, Fault> {
        let (now, root) = (UnixMillis::now(), self.as_roots.get(site).context("no such domain")?);
        let user = UserUri::new(root.domain(), name).context("not a name")?;
        let user_key = key_of_seed(&rng.random())?;
        let user_certificate = root.issue_user(&user_csr(&user_key, &user)?, &user, now).context("not issued")?;
        further_device(&user, user_key, user_certificate, device, rng.random())
    }

    /// The extension of a group's context that names the DS.
    pub fn external_senders(&self) -> Extension {
        Extension::external_senders(&[(self.ds_key.public(), &self.ds_chain)])
    }

    /// What a decision at `now` looks at.
    pub fn hub(&self, now: UnixMillis) -> ds::Hub<'_> {
        ds::Hub {
            domain: &self.domain,
            now,
            roots: &self.roots,
            revoked: &self.revoked,
            limits: &self.limits,
            external_sender: &self.external_sender,
            key: &self.ds_key,
        }
    }

    /// A signed request to the hub.
    pub fn request(
        &self,
        now: UnixMillis,
        sender_id: DsSenderId,
        certificates: List<Opaque>,
        key: &SigningKey,
        request: DsRequest,
    ) -> ClientRequest {
        let message = DsMessage { sender_id, certificates, request };
        Content::new(&self.domain, RequestId([1; 16]), now, Service::Ds(message)).sign(key)
    }

    /// A group of one, made by `creator`, as its members and as the hub see it.
    pub fn group(&self, creator: &Device, now: UnixMillis, rng: &mut ChaCha20Rng) -> Result<(SynthGroup, LocalGroup), Fault> {
        let uri = GroupUri::new(&self.domain, &rng.random());
        let package = creator.key_package(now, rng);
        let mut forged = SynthGroup::create(&uri.to_bytes(), &package, &[self.external_senders()], rng.random());
        let body = CreateGroup {
            group_id: uri.to_bytes().into(),
            key_package: package.message().into(),
            client_queue_config: creator.queue_config(),
            group_info: forged.group_info_with_tree(0).context("leaf 0 is there")?.into(),
        };
        let sender_id = DsSenderId::KeyPackageRef(Opaque::from(package.reference().as_slice()));
        let request = self.request(now, sender_id, List::default(), &creator.key, DsRequest::CreateGroup(body));
        Ok((forged, LocalGroup::create(self, now, &request, creator.uri.domain())?))
    }
}

/// Another client of a user.
pub fn further_device(
    user: &UserUri,
    user_key: SigningKey,
    user_certificate: Vec<u8>,
    device: &str,
    seed: [u8; 32],
) -> Result<Device, Fault> {
    let (uri, key) = (user.client(device).context("not a name")?, key_of_seed(&seed)?);
    let certificate = issue_client(&user_key, &user_certificate, &uri, key.public(), UnixMillis::now()).context("not issued")?;
    let identity = Identity::new(&seed, &[certificate, user_certificate.clone()]);
    Ok(Device { uri, key, identity, user_key, user_certificate })
}

/// A group as a hub keeps it.
pub struct LocalGroup {
    /// The small record.
    pub state: GroupState,
    /// The tree.
    pub tree: Tree,
    /// The first snapshot, and the log since then, as storage would have them.
    pub snapshot: Vec<u8>,
    /// See `snapshot`.
    pub log: Vec<Vec<u8>>,
}

impl LocalGroup {
    fn create(realm: &Realm, now: UnixMillis, request: &ClientRequest, through: &Domain) -> Result<Self, Fault> {
        let Service::Ds(message) = &request.content.service else { return Err(Fault::new("not a DS request")) };
        let DsRequest::CreateGroup(body) = &message.request else { return Err(Fault::new("not a create_group")) };
        let created = ds::create::decide(&realm.hub(now), request, message, body, through)
            .map_err(|refusal| Fault::new(format!("the group is refused: {refusal:?}")))?;
        let change = created.outcome.change.context("a new group has a state")?;
        let members = change.set.into_iter().collect();
        let state = GroupState { uri: created.uri, revision: 0, head: change.head, members };
        Ok(Self { state, tree: created.tree, snapshot: created.snapshot, log: Vec::new() })
    }

    /// Decides a request from its frame, as a node does between the network and the database.
    pub fn decide(&mut self, realm: &Realm, now: UnixMillis, frame: &[u8], through: &Domain) -> Result<Decision, Refusal> {
        let request: ClientRequest = decode(frame).map_err(|_| ErrorCode::Malformed)?;
        let Service::Ds(message) = &request.content.service else { return Err(ErrorCode::Unsupported.into()) };
        let hub = realm.hub(now);
        let sender = ds::sender::authenticate(&hub, &self.state, &request, message, through)?;
        ds::check_without_tree(&hub, &self.state, &message.request)?;
        let tree = ds::needs_tree(&message.request).then_some(&mut self.tree);
        ds::decide(&hub, &self.state, tree, &sender, message)
    }

    /// Lets state, log and tree follow a decision. Returns the rest of the outcome, and a snapshot if one is asked for.
    pub fn follow(&mut self, decision: Decision, with_snapshot: bool) -> Result<(Option<Outcome>, Option<Vec<u8>>), Fault> {
        match decision {
            Decision::Commit(accepted) => {
                let Accepted { mut outcome, update, .. } = *accepted;
                self.follow_outcome(&mut outcome);
                self.log.push(update.record.clone());
                let snapshot = self.tree.merge(update, with_snapshot)?;
                Ok((Some(outcome), snapshot))
            }
            Decision::Outcome(mut outcome) => {
                self.follow_outcome(&mut outcome);
                Ok((Some(*outcome), None))
            }
            Decision::WelcomeInfo { .. } | Decision::ExternalCommitInfo => Ok((None, None)),
        }
    }

    /// Lets the small record follow an outcome that comes without a Commit.
    pub fn follow_outcome(&mut self, outcome: &mut Outcome) {
        if let Some(change) = outcome.change.take() {
            self.state.apply(change);
        }
    }
}
