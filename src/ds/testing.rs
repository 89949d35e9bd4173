//! Real MLS members with X.509 credentials, and a hub without storage, for the unit tests of the decisions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use openmls::prelude::*;
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::types::SignatureScheme;
use tls_codec::Deserialize as _;

use super::{Authenticated, GroupState, Hub, Outcome, Refusal, commit, create, message, queue_info, sender};
use crate::base::crypto::SigningKey;
use crate::base::ids::RequestId;
use crate::base::{ClientUri, Domain, GroupUri, UnixMillis, UserUri};
use crate::identity::issue::{issue_client, user_csr};
use crate::identity::{AsRoot, AsRoots};
use crate::mls::external_sender::encode_external_sender;
use crate::mls::{QUEUE_CONFIG_EXTENSION, Tree};
use crate::wire::ds::*;
use crate::wire::{ClientRequest, Content, List, Opaque, Service, encode};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

/// The domains of a test, and the hub's own things.
pub(super) struct TestHub {
    pub(super) domain: Domain,
    pub(super) key: SigningKey,
    pub(super) external_sender: Vec<u8>,
    pub(super) as_roots: HashMap<Domain, AsRoot>,
    pub(super) roots: HashMap<Domain, Arc<AsRoots>>,
    pub(super) state: Option<GroupState>,
    pub(super) tree: Option<Tree>,
    /// The first snapshot and all log records, as storage would have them.
    pub(super) snapshot: Vec<u8>,
    pub(super) log: Vec<Vec<u8>>,
}

impl TestHub {
    pub(super) fn new() -> Self {
        let now = UnixMillis::now();
        let domains: Vec<Domain> = ["a.test", "b.test"].iter().map(|name| name.parse().expect("a domain")).collect();
        let as_roots: HashMap<Domain, AsRoot> =
            domains.iter().map(|domain| (domain.clone(), AsRoot::create(domain, now).expect("a root"))).collect();
        let roots = as_roots.iter().map(|(domain, root)| {
            let roots = AsRoots::new(domain.clone(), vec![root.certificate().to_vec()]).expect("roots");
            (domain.clone(), Arc::new(roots))
        });
        let key = SigningKey::generate().expect("a key");
        let public: [u8; 32] = key.public().try_into().expect("32 octets");
        let own = as_roots.get(&domains[0]).expect("the hub's own");
        let chain = vec![own.issue_service("mimi://a.test/ds", &public, now).expect("a certificate")];
        Self {
            domain: domains[0].clone(),
            external_sender: encode_external_sender(&public, &chain).expect("encodes"),
            key,
            roots: roots.collect(),
            as_roots,
            state: None,
            tree: None,
            snapshot: Vec::new(),
            log: Vec::new(),
        }
    }

    pub(super) fn hub(&self) -> Hub<'_> {
        Hub {
            domain: &self.domain,
            now: UnixMillis::now(),
            roots: &self.roots,
            external_sender: &self.external_sender,
            key: &self.key,
        }
    }

    pub(super) fn client(&self, name: &str) -> TestClient {
        let (user, domain) = name.split_once('@').expect("user@domain");
        let domain: Domain = domain.parse().expect("a domain");
        TestClient::new(self.as_roots.get(&domain).expect("a known domain"), user)
    }

    pub(super) fn state(&self) -> &GroupState {
        self.state.as_ref().expect("the group is made")
    }

    fn tree(&self) -> &Tree {
        self.tree.as_ref().expect("the group is made")
    }

    pub(super) fn create(&mut self, creator: &mut TestClient) -> Result<(), Refusal> {
        let request = creator.create(self);
        self.try_create(&request, creator.uri.domain())
    }

    /// A create_group that would be accepted.
    pub(super) fn creation(&self, creator: &mut TestClient) -> ClientRequest {
        creator.create(self)
    }

    pub(super) fn try_create(&mut self, request: &ClientRequest, through: &Domain) -> Result<(), Refusal> {
        let message = ds_message(request);
        let DsRequest::CreateGroup(body) = &message.request else { unreachable!("a create_group") };
        let created = create::decide(&self.hub(), request, message, body, through)?;
        let change = created.outcome.change.expect("a new group has a state");
        self.state = Some(GroupState {
            uri: created.uri,
            revision: 0,
            head: change.head,
            members: change.set.into_iter().collect::<BTreeMap<_, _>>(),
        });
        self.tree = Some(created.tree);
        self.snapshot = created.snapshot;
        Ok(())
    }

    /// Verifies a request as the node does.
    pub(super) fn authenticate(&self, request: &ClientRequest, through: &Domain) -> Result<Authenticated, Refusal> {
        Ok(sender::authenticate(self.state(), request, ds_message(request), through)?)
    }

    /// Decides a request to the group and, when it is accepted, applies it. Returns the outcome's deliveries and reply.
    pub(super) fn ask(&mut self, request: &ClientRequest, through: &Domain) -> Result<Outcome, Refusal> {
        let sender = self.authenticate(request, through)?;
        let (kind, update) = match &ds_message(request).request {
            DsRequest::SendMessage(body) => {
                let mut outcome = message::decide(&self.hub(), self.state(), &sender, body)?;
                self.apply(&mut outcome);
                return Ok(outcome);
            }
            DsRequest::UpdateQueueInfo(body) => {
                let mut outcome = queue_info::decide(self.state(), &sender, body)?;
                self.apply(&mut outcome);
                return Ok(outcome);
            }
            DsRequest::AddUsers(body) => (commit::Kind::AddUsers(&body.welcomes), &body.group_update),
            DsRequest::RemoveUsers(body) => (commit::Kind::RemoveUsers, &body.group_update),
            DsRequest::UpdateClient(body) => (commit::Kind::UpdateClient, &body.group_update),
            _ => unreachable!("the tests ask nothing else"),
        };
        let commit::Accepted { mut outcome, update } =
            commit::decide(&self.hub(), self.state(), self.tree(), &sender, kind, update)?;
        self.log.push(update.record.clone());
        self.apply(&mut outcome);
        self.tree.as_mut().expect("the group is made").merge(update, false).expect("merges");
        Ok(outcome)
    }

    fn apply(&mut self, outcome: &mut Outcome) {
        if let Some(change) = outcome.change.take() {
            self.state.as_mut().expect("the group is made").apply(change);
        }
    }
}

/// The DS request in an envelope.
pub(super) fn ds_message(request: &ClientRequest) -> &DsMessage {
    let Service::Ds(message) = &request.content.service else { unreachable!("a DS request") };
    message
}

struct TestSigner<'a>(&'a SigningKey);

impl Signer for TestSigner<'_> {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(payload))
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// A member's side of MLS.
pub(super) struct TestClient {
    pub(super) uri: ClientUri,
    pub(super) key: SigningKey,
    pub(super) chain: Vec<Vec<u8>>,
    provider: OpenMlsRustCrypto,
    group: Option<MlsGroup>,
    hub: Domain,
    group_id: Vec<u8>,
}

/// A Commit as it would be sent.
pub(super) struct TestCommit {
    pub(super) update: GroupUpdate,
    pub(super) welcome: Option<Vec<u8>>,
}

impl TestClient {
    fn new(root: &AsRoot, user: &str) -> Self {
        let now = UnixMillis::now();
        let user: UserUri = UserUri::new(root.domain(), user).expect("a user");
        let uri = user.client("phone").expect("a client");
        let (user_key, key) = (SigningKey::generate().expect("a key"), SigningKey::generate().expect("a key"));
        let request = user_csr(&user_key, &user).expect("a request");
        let user_certificate = root.issue_user(&request, &user, now).expect("a certificate");
        let certificate = issue_client(&user_key, &user_certificate, &uri, key.public(), now).expect("a certificate");
        let hub: Domain = "a.test".parse().expect("a domain");
        Self {
            uri,
            key,
            chain: vec![certificate, user_certificate],
            provider: OpenMlsRustCrypto::default(),
            group: None,
            group_id: GroupUri::new(&hub, &[7; 16]).to_bytes(),
            hub,
        }
    }

    fn credential(&self) -> CredentialWithKey {
        let content = self.chain.iter().flat_map(|der| encode(&Opaque::from(der.as_slice()))).collect();
        CredentialWithKey {
            credential: Credential::new(CredentialType::X509, content),
            signature_key: self.key.public().to_vec().into(),
        }
    }

    pub(super) fn queue(&self) -> ClientQueueConfig {
        ClientQueueConfig { qs_domain: self.uri.domain().as_bytes().into(), client_queue_information: self.uri.to_bytes().into() }
    }

    fn capabilities() -> Capabilities {
        let extensions = [ExtensionType::Unknown(QUEUE_CONFIG_EXTENSION)];
        Capabilities::new(None, Some(&[SUITE]), Some(&extensions), Some(&[]), Some(&[CredentialType::X509]))
    }

    pub(super) fn key_package(&self, queue: Option<&ClientQueueConfig>) -> KeyPackage {
        let extension = queue.map(|queue| Extension::Unknown(QUEUE_CONFIG_EXTENSION, UnknownExtension(encode(queue))));
        let extensions = Extensions::from_vec(extension.into_iter().collect()).expect("extensions");
        let builder = KeyPackage::builder().leaf_node_capabilities(Self::capabilities()).key_package_extensions(extensions);
        let bundle = builder.build(SUITE, &self.provider, &TestSigner(&self.key), self.credential()).expect("a KeyPackage");
        bundle.into_key_package()
    }

    fn create(&mut self, hub: &TestHub) -> ClientRequest {
        let senders = Vec::<ExternalSender>::tls_deserialize_exact(encode(&List::from(vec![Raw(hub.external_sender.clone())])));
        let extension = Extension::ExternalSenders(senders.expect("external senders"));
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(SUITE)
            .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
            .capabilities(Self::capabilities())
            .with_group_context_extensions(Extensions::from_vec(vec![extension]).expect("extensions"))
            .build();
        let signer = TestSigner(&self.key);
        let id = GroupId::from_slice(&self.group_id);
        let group = MlsGroup::new_with_group_id(&self.provider, &signer, &config, id, self.credential()).expect("a group");
        let info = group.export_group_info(self.provider.crypto(), &signer, true).expect("a GroupInfo");
        self.group = Some(group);
        let key_package = self.key_package(None);
        let reference = key_package.hash_ref(self.provider.crypto()).expect("a reference");
        let body = CreateGroup {
            group_id: self.group_id.as_slice().into(),
            key_package: MlsMessageOut::from(key_package).to_bytes().expect("encodes").into(),
            client_queue_config: self.queue(),
            group_info: info.to_bytes().expect("encodes").into(),
        };
        self.request(DsSenderId::KeyPackageRef(reference.as_slice().into()), DsRequest::CreateGroup(body))
    }

    /// An envelope signed by this client's key.
    pub(super) fn request(&self, sender_id: DsSenderId, request: DsRequest) -> ClientRequest {
        let message = DsMessage { sender_id, certificates: List::default(), request };
        Content::new(&self.hub, RequestId::random(), UnixMillis::now(), Service::Ds(message)).sign(&self.key)
    }

    pub(super) fn leaf_index(&self) -> u32 {
        self.group().own_leaf_index().u32()
    }

    pub(super) fn as_leaf(&self, request: DsRequest) -> ClientRequest {
        self.request(DsSenderId::LeafIndex(self.leaf_index()), request)
    }

    pub(super) fn group(&self) -> &MlsGroup {
        self.group.as_ref().expect("a member")
    }

    pub(super) fn group_id(&self) -> Opaque {
        self.group_id.as_slice().into()
    }

    /// Builds a Commit without merging it.
    pub(super) fn commit(&mut self, adds: &[KeyPackage], removes: &[u32], path: bool) -> TestCommit {
        let Self { provider, key, group, .. } = self;
        let bundle = group
            .as_mut()
            .expect("a member")
            .commit_builder()
            .force_self_update(path)
            .propose_adds(adds.to_vec())
            .propose_removals(removes.iter().map(|index| LeafNodeIndex::new(*index)))
            .load_psks(provider.storage())
            .expect("no PSKs")
            .use_ratchet_tree_extension(false)
            .create_group_info(true)
            .build(provider.rand(), provider.crypto(), &TestSigner(key), |_| true)
            .expect("a Commit")
            .stage_commit(provider)
            .expect("a staged Commit");
        let (commit, welcome, info) = bundle.into_messages();
        TestCommit {
            update: GroupUpdate {
                commit: commit.to_bytes().expect("encodes").into(),
                group_info: info.expect("a GroupInfo").to_bytes().expect("encodes").into(),
            },
            welcome: welcome.map(|welcome| welcome.to_bytes().expect("encodes")),
        }
    }

    pub(super) fn add(&mut self, adds: &[KeyPackage]) -> ClientRequest {
        let commit = self.commit(adds, &[], true);
        let welcomes = commit.welcome.into_iter().map(Opaque::from).collect();
        self.as_leaf(DsRequest::AddUsers(GroupAdd { group_id: self.group_id(), group_update: commit.update, welcomes }))
    }

    pub(super) fn remove(&mut self, removes: &[u32]) -> ClientRequest {
        let group_update = self.commit(&[], removes, true).update;
        self.as_leaf(DsRequest::RemoveUsers(GroupCommit { group_id: self.group_id(), group_update }))
    }

    pub(super) fn update(&mut self) -> ClientRequest {
        let group_update = self.commit(&[], &[], true).update;
        self.as_leaf(DsRequest::UpdateClient(GroupCommit { group_id: self.group_id(), group_update }))
    }

    pub(super) fn message(&mut self, text: &str) -> ClientRequest {
        let Self { provider, key, group, .. } = self;
        let group = group.as_mut().expect("a member");
        let message = group.create_message(provider, &TestSigner(key), text.as_bytes()).expect("a message");
        let message = message.to_bytes().expect("encodes").into();
        self.as_leaf(DsRequest::SendMessage(SendMessage { group_id: self.group_id(), message }))
    }

    pub(super) fn merge(&mut self) {
        let Self { provider, group, .. } = self;
        group.as_mut().expect("a member").merge_pending_commit(provider).expect("merges");
    }

    pub(super) fn drop_pending(&mut self) {
        let Self { provider, group, .. } = self;
        group.as_mut().expect("a member").clear_pending_commit(provider.storage()).expect("cleared");
    }

    pub(super) fn receive(&mut self, commit: &[u8]) {
        let Self { provider, group, .. } = self;
        let group = group.as_mut().expect("a member");
        let message = MlsMessageIn::tls_deserialize_exact(commit).expect("decodes");
        let message = message.try_into_protocol_message().expect("a handshake");
        let processed = group.process_message(provider, message).expect("valid for members, too");
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else { unreachable!("a Commit") };
        group.merge_staged_commit(provider, *staged).expect("merges");
    }

    pub(super) fn join(&mut self, welcome: &[u8], tree: &[u8]) {
        let message = MlsMessageIn::tls_deserialize_exact(welcome).expect("decodes");
        let MlsMessageBodyIn::Welcome(welcome) = message.extract() else { unreachable!("a Welcome") };
        let tree = RatchetTreeIn::tls_deserialize_exact(tree).expect("a tree");
        let config = MlsGroupJoinConfig::builder().wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY).build();
        let staged = StagedWelcome::new_from_welcome(&self.provider, &config, welcome, Some(tree)).expect("for us");
        self.group = Some(staged.into_group(&self.provider).expect("joins"));
    }
}

/// Octets that are already encoded.
struct Raw(Vec<u8>);

impl tls_codec::Size for Raw {
    fn tls_serialized_len(&self) -> usize {
        self.0.len()
    }
}

impl tls_codec::Serialize for Raw {
    fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, tls_codec::Error> {
        writer.write_all(&self.0)?;
        Ok(self.0.len())
    }
}
