//! Real MLS members with X.509 credentials, for the unit tests of the layers above. The one place besides the parent that
//! names OpenMLS on the server's side.

use openmls::prelude::*;
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::types::SignatureScheme;
use tls_codec::Deserialize as _;

use super::{JOIN_POLICY_EXTENSION, JoinPolicy, QUEUE_CONFIG_EXTENSION};
use crate::base::crypto::SigningKey;
use crate::base::ids::RequestId;
use crate::base::{ClientUri, Domain, GroupUri, UnixMillis, UserUri};
use crate::identity::issue::{issue_client, user_csr};
use crate::identity::{AsRoot, key_hash};
use crate::wire::ds::*;
use crate::wire::{ClientRequest, Content, List, Opaque, Service, encode};

pub(crate) const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

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
pub(crate) struct TestClient {
    pub(crate) uri: ClientUri,
    pub(crate) key: SigningKey,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) user_key: SigningKey,
    provider: OpenMlsRustCrypto,
    group: Option<MlsGroup>,
    hub: Domain,
    group_id: Vec<u8>,
}

/// What a Commit is to be, beyond what is usual.
#[derive(Default)]
pub(crate) struct Plan<'a> {
    pub(crate) adds: &'a [KeyPackage],
    pub(crate) removes: &'a [u32],
    /// Further proposals by value.
    pub(crate) proposals: Vec<Proposal>,
    /// The GroupContext's new extensions.
    pub(crate) context: Option<Extensions<GroupContext>>,
    /// No path, where the proposals need none.
    pub(crate) without_path: bool,
    /// Leave out what was proposed.
    pub(crate) without_proposed: bool,
    /// The path's leaf has this client's key and credential.
    pub(crate) leaf_of: Option<&'a TestClient>,
    /// The path's leaf has these capabilities.
    pub(crate) capabilities: Option<Capabilities>,
}

/// A Commit as it would be sent.
pub(crate) struct TestCommit {
    pub(crate) update: GroupUpdate,
    pub(crate) welcome: Option<Vec<u8>>,
}

impl TestClient {
    /// A user of the root's domain with one device.
    pub(crate) fn new(root: &AsRoot, user: &str) -> Self {
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
            user_key,
            provider: OpenMlsRustCrypto::default(),
            group: None,
            group_id: GroupUri::new(&hub, &[7; 16]).to_bytes(),
            hub,
        }
    }

    /// Another client of the same user, or the same one with a new key.
    pub(crate) fn device(&self, name: &str) -> Self {
        self.device_with_key(name, SigningKey::generate().expect("a key"))
    }

    /// A client of the same user with this key.
    pub(crate) fn device_with_key(&self, name: &str, key: SigningKey) -> Self {
        let uri = self.uri.user().client(name).expect("a client");
        let user_certificate = self.chain[1].clone();
        let now = UnixMillis::now();
        let certificate = issue_client(&self.user_key, &user_certificate, &uri, key.public(), now).expect("a certificate");
        Self {
            uri,
            key,
            chain: vec![certificate, user_certificate],
            user_key: self.user_key.clone(),
            provider: OpenMlsRustCrypto::default(),
            group: None,
            group_id: self.group_id.clone(),
            hub: self.hub.clone(),
        }
    }

    /// The same client, at home in another group of the hub.
    pub(crate) fn in_group(mut self, id: u8) -> Self {
        self.group_id = GroupUri::new(&self.hub, &[id; 16]).to_bytes();
        self
    }

    pub(crate) fn key_hash(&self) -> [u8; 32] {
        key_hash(self.key.public())
    }

    pub(crate) fn user_key_hash(&self) -> [u8; 32] {
        key_hash(self.user_key.public())
    }

    fn credential(&self) -> CredentialWithKey {
        let content = self.chain.iter().flat_map(|der| encode(&Opaque::from(der.as_slice()))).collect();
        CredentialWithKey {
            credential: Credential::new(CredentialType::X509, content),
            signature_key: self.key.public().to_vec().into(),
        }
    }

    pub(crate) fn queue(&self) -> ClientQueueConfig {
        ClientQueueConfig { qs_domain: self.uri.domain().as_bytes().into(), client_queue_information: self.uri.to_bytes().into() }
    }

    pub(crate) fn capabilities() -> Capabilities {
        Self::capabilities_and(&[])
    }

    /// The usual capabilities and these extension types.
    pub(crate) fn capabilities_and(more: &[ExtensionType]) -> Capabilities {
        let usual = [QUEUE_CONFIG_EXTENSION, JOIN_POLICY_EXTENSION].map(ExtensionType::Unknown);
        let extensions = [&usual, &[ExtensionType::LastResort][..], more].concat();
        Capabilities::new(None, Some(&[SUITE]), Some(&extensions), Some(&[]), Some(&[CredentialType::X509]))
    }

    pub(crate) fn key_package(&self, queue: Option<&ClientQueueConfig>) -> KeyPackage {
        self.build_key_package(queue, false)
    }

    /// As its client would publish it.
    pub(crate) fn key_package_message(&self, queue: Option<&ClientQueueConfig>, last_resort: bool) -> Vec<u8> {
        MlsMessageOut::from(self.build_key_package(queue, last_resort)).to_bytes().expect("encodes")
    }

    /// A KeyPackage message with a lifetime of this length from now on.
    pub(crate) fn key_package_living(&self, lifetime: std::time::Duration) -> Vec<u8> {
        let now = UnixMillis::now().seconds();
        let builder = self.key_package_builder(Some(&self.queue()), false);
        let builder = builder.key_package_lifetime(Lifetime::init(now.saturating_sub(60), now + lifetime.as_secs()));
        let bundle = builder.build(SUITE, &self.provider, &TestSigner(&self.key), self.credential()).expect("a KeyPackage");
        MlsMessageOut::from(bundle.into_key_package()).to_bytes().expect("encodes")
    }

    fn build_key_package(&self, queue: Option<&ClientQueueConfig>, last_resort: bool) -> KeyPackage {
        let builder = self.key_package_builder(queue, last_resort);
        let bundle = builder.build(SUITE, &self.provider, &TestSigner(&self.key), self.credential()).expect("a KeyPackage");
        bundle.into_key_package()
    }

    fn key_package_builder(&self, queue: Option<&ClientQueueConfig>, last_resort: bool) -> KeyPackageBuilder {
        let extension = queue.map(|queue| Extension::Unknown(QUEUE_CONFIG_EXTENSION, UnknownExtension(encode(queue))));
        let extensions = Extensions::from_vec(extension.into_iter().collect()).expect("extensions");
        let mut builder = KeyPackage::builder().leaf_node_capabilities(Self::capabilities()).key_package_extensions(extensions);
        if last_resort {
            builder = builder.mark_as_last_resort();
        }
        builder
    }

    /// A KeyPackage message whose leaf has these capabilities.
    pub(crate) fn key_package_with(&self, capabilities: Capabilities) -> KeyPackage {
        let builder = self.key_package_builder(Some(&self.queue()), false).leaf_node_capabilities(capabilities);
        let bundle = builder.build(SUITE, &self.provider, &TestSigner(&self.key), self.credential()).expect("a KeyPackage");
        bundle.into_key_package()
    }

    /// GroupContext extensions: these external senders, this join policy (or any octets there) and these proposal types required.
    pub(crate) fn context(senders: &[&[u8]], policy: Option<&[u8]>, required: &[ProposalType]) -> Extensions<GroupContext> {
        let senders: Vec<Raw> = senders.iter().map(|sender| Raw(sender.to_vec())).collect();
        let senders = Vec::<ExternalSender>::tls_deserialize_exact(encode(&List::from(senders))).expect("external senders");
        let mut extensions = vec![Extension::ExternalSenders(senders)];
        let kind = ExtensionType::Unknown(JOIN_POLICY_EXTENSION);
        extensions.extend(policy.map(|octets| Extension::Unknown(JOIN_POLICY_EXTENSION, UnknownExtension(octets.to_vec()))));
        let kinds = if policy.is_some() { vec![kind] } else { Vec::new() };
        extensions.push(Extension::RequiredCapabilities(RequiredCapabilitiesExtension::new(&kinds, required, &[])));
        Extensions::from_vec(extensions).expect("extensions")
    }

    /// Makes the group and the request for it.
    pub(crate) fn create(&mut self, external_sender: &[u8]) -> ClientRequest {
        self.create_with(Self::context(&[external_sender], None, &[]), Self::capabilities())
    }

    /// As [`Self::create`], with a join policy.
    pub(crate) fn create_with_policy(&mut self, external_sender: &[u8], policy: JoinPolicy) -> ClientRequest {
        self.create_with(Self::context(&[external_sender], Some(&[policy.to_octet()]), &[]), Self::capabilities())
    }

    /// As [`Self::create`], with any context and leaf.
    pub(crate) fn create_with(&mut self, context: Extensions<GroupContext>, capabilities: Capabilities) -> ClientRequest {
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(SUITE)
            .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
            .capabilities(capabilities)
            .with_group_context_extensions(context)
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
    pub(crate) fn request(&self, sender_id: DsSenderId, request: DsRequest) -> ClientRequest {
        let message = DsMessage { sender_id, certificates: List::default(), request };
        Content::new(&self.hub, RequestId::random(), UnixMillis::now(), Service::Ds(message)).sign(&self.key)
    }

    /// A request of this client's user, signed by the user key.
    pub(crate) fn as_user(&self, request: DsRequest) -> ClientRequest {
        self.as_user_with(self.user_key_hash(), &self.chain[1], request)
    }

    /// As [`Self::as_user`], with any hash and certificate.
    pub(crate) fn as_user_with(&self, hash: [u8; 32], certificate: &[u8], request: DsRequest) -> ClientRequest {
        let sender_id = DsSenderId::UserKeyHash(hash.as_slice().into());
        let message = DsMessage { sender_id, certificates: vec![certificate.into()].into(), request };
        Content::new(&self.hub, RequestId::random(), UnixMillis::now(), Service::Ds(message)).sign(&self.user_key)
    }

    pub(crate) fn leaf_index(&self) -> u32 {
        self.group().own_leaf_index().u32()
    }

    pub(crate) fn as_leaf(&self, request: DsRequest) -> ClientRequest {
        self.request(DsSenderId::LeafIndex(self.leaf_index()), request)
    }

    pub(crate) fn group(&self) -> &MlsGroup {
        self.group.as_ref().expect("a member")
    }

    pub(crate) fn group_id(&self) -> Opaque {
        self.group_id.as_slice().into()
    }

    /// Builds a Commit without merging it.
    pub(crate) fn commit(&mut self, adds: &[KeyPackage], removes: &[u32], path: bool) -> TestCommit {
        self.make(Plan { adds, removes, without_path: !path, ..Plan::default() })
    }

    /// Builds a Commit as planned, with what was proposed, without merging it.
    pub(crate) fn make(&mut self, plan: Plan<'_>) -> TestCommit {
        let Self { provider, key, group, .. } = self;
        let mut leaf = LeafNodeParameters::builder();
        if let Some(capabilities) = plan.capabilities {
            leaf = leaf.with_capabilities(capabilities);
        }
        let mut builder = group
            .as_mut()
            .expect("a member")
            .commit_builder()
            .consume_proposal_store(!plan.without_proposed)
            .force_self_update(!plan.without_path)
            .leaf_node_parameters(leaf.build())
            .propose_adds(plan.adds.to_vec())
            .propose_removals(plan.removes.iter().map(|index| LeafNodeIndex::new(*index)))
            .add_proposals(plan.proposals);
        if let Some(context) = plan.context {
            builder = builder.propose_group_context_extensions(context).expect("extensions of a context");
        }
        let builder =
            builder.load_psks(provider.storage()).expect("no PSKs").use_ratchet_tree_extension(false).create_group_info(true);
        let signer = TestSigner(key);
        let built = match plan.leaf_of {
            None => builder.build(provider.rand(), provider.crypto(), &signer, |_| true),
            Some(other) => {
                let new = TestSigner(&other.key);
                let new = NewSignerBundle { signer: &new, credential_with_key: other.credential() };
                builder.build_with_new_signer(provider.rand(), provider.crypto(), &signer, new, |_| true)
            }
        };
        let bundle = built.expect("a Commit").stage_commit(provider).expect("a staged Commit");
        let (commit, welcome, info) = bundle.into_messages();
        TestCommit {
            update: GroupUpdate {
                commit: commit.to_bytes().expect("encodes").into(),
                group_info: info.expect("a GroupInfo").to_bytes().expect("encodes").into(),
            },
            welcome: welcome.map(|welcome| welcome.to_bytes().expect("encodes")),
        }
    }

    /// A Commit in a request of one of the types that carry nothing else, as this leaf.
    pub(crate) fn with_commit(&self, kind: fn(GroupCommit) -> DsRequest, commit: &TestCommit) -> ClientRequest {
        self.as_leaf(kind(GroupCommit { group_id: self.group_id(), group_update: commit.update.clone() }))
    }

    /// An external Commit with the tree and GroupInfo of the group. Removes the leaf with this client's key, if there is one. It is
    /// this client's state from now on.
    pub(crate) fn external_commit(&mut self, tree: &[u8], group_info: &[u8]) -> GroupUpdate {
        self.external_commit_with(tree, group_info, Self::capabilities())
    }

    /// As [`Self::external_commit`], with a leaf of these capabilities.
    pub(crate) fn external_commit_with(&mut self, tree: &[u8], group_info: &[u8], capabilities: Capabilities) -> GroupUpdate {
        let message = MlsMessageIn::tls_deserialize_exact(group_info).expect("decodes");
        let MlsMessageBodyIn::GroupInfo(info) = message.extract() else { unreachable!("a GroupInfo") };
        let tree = RatchetTreeIn::tls_deserialize_exact(tree).expect("a tree");
        let config = MlsGroupJoinConfig::builder().wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY).build();
        // A state of the same group from before makes room.
        self.provider = OpenMlsRustCrypto::default();
        let (group, bundle) = MlsGroup::external_commit_builder()
            .with_ratchet_tree(tree)
            .with_config(config)
            .build_group(&self.provider, info, self.credential())
            .expect("a group")
            .leaf_node_parameters(LeafNodeParameters::builder().with_capabilities(capabilities).build())
            .load_psks(self.provider.storage())
            .expect("no PSKs")
            .use_ratchet_tree_extension(false)
            .create_group_info(true)
            .build(self.provider.rand(), self.provider.crypto(), &TestSigner(&self.key), |_| true)
            .expect("an external Commit")
            .finalize(&self.provider)
            .expect("finalized");
        let (commit, _, info) = bundle.into_messages();
        self.group = Some(group);
        GroupUpdate {
            commit: commit.to_bytes().expect("encodes").into(),
            group_info: info.expect("a GroupInfo").to_bytes().expect("encodes").into(),
        }
    }

    /// The body of a request with an external Commit.
    pub(crate) fn joining(&self, group_update: GroupUpdate) -> GroupJoin {
        GroupJoin { group_id: self.group_id(), group_update, client_queue_config: self.queue() }
    }

    /// The MLSMessage of an Update of this client's leaf, perhaps with another client's key and credential.
    pub(crate) fn proposed_update(&mut self, leaf_of: Option<&TestClient>, capabilities: Capabilities) -> Vec<u8> {
        let Self { provider, key, group, .. } = self;
        let group = group.as_mut().expect("a member");
        let leaf = LeafNodeParameters::builder().with_capabilities(capabilities).build();
        let signer = TestSigner(key);
        let (message, _) = match leaf_of {
            None => group.propose_self_update(provider, &signer, leaf).expect("a proposal"),
            Some(other) => {
                let new = TestSigner(&other.key);
                let new = NewSignerBundle { signer: &new, credential_with_key: other.credential() };
                group.propose_self_update_with_new_signer(provider, &signer, new, leaf).expect("a proposal")
            }
        };
        message.to_bytes().expect("encodes")
    }

    /// The MLSMessage of a standalone Remove.
    pub(crate) fn proposed_remove(&mut self, leaf_index: u32) -> Vec<u8> {
        let Self { provider, key, group, .. } = self;
        let group = group.as_mut().expect("a member");
        let proposed = group.propose_remove_member(provider, &TestSigner(key), LeafNodeIndex::new(leaf_index));
        proposed.expect("a proposal").0.to_bytes().expect("encodes")
    }

    /// A propose with these proposals, as this leaf.
    pub(crate) fn propose(&self, proposals: Vec<Vec<u8>>) -> ClientRequest {
        let proposals = proposals.into_iter().map(Opaque::from).collect();
        self.as_leaf(DsRequest::Propose(crate::wire::ds::Propose { group_id: self.group_id(), proposals }))
    }

    /// Keeps a proposal of another member or of the DS for the next Commit.
    pub(crate) fn learn(&mut self, proposal: &[u8]) {
        let Self { provider, group, .. } = self;
        let group = group.as_mut().expect("a member");
        let message = MlsMessageIn::tls_deserialize_exact(proposal).expect("decodes");
        let message = message.try_into_protocol_message().expect("a handshake");
        let processed = group.process_message(provider, message).expect("valid for members, too");
        let ProcessedMessageContent::ProposalMessage(queued) = processed.into_content() else { unreachable!("a proposal") };
        group.store_pending_proposal(provider.storage(), *queued).expect("kept");
    }

    /// An encoded ExternalSender with this client's key.
    pub(crate) fn external_sender(&self) -> Vec<u8> {
        super::external_sender::encode_external_sender(self.key.public(), &self.chain).expect("encodes")
    }

    /// Forgets what was proposed.
    pub(crate) fn forget_proposals(&mut self) {
        let Self { provider, group, .. } = self;
        group.as_mut().expect("a member").clear_pending_proposals(provider.storage()).expect("cleared");
    }

    pub(crate) fn add(&mut self, adds: &[KeyPackage]) -> ClientRequest {
        let commit = self.commit(adds, &[], true);
        let welcomes = commit.welcome.into_iter().map(Opaque::from).collect();
        self.as_leaf(DsRequest::AddUsers(GroupAdd { group_id: self.group_id(), group_update: commit.update, welcomes }))
    }

    pub(crate) fn remove(&mut self, removes: &[u32]) -> ClientRequest {
        let group_update = self.commit(&[], removes, true).update;
        self.as_leaf(DsRequest::RemoveUsers(GroupCommit { group_id: self.group_id(), group_update }))
    }

    pub(crate) fn update(&mut self) -> ClientRequest {
        let group_update = self.commit(&[], &[], true).update;
        self.as_leaf(DsRequest::UpdateClient(GroupCommit { group_id: self.group_id(), group_update }))
    }

    pub(crate) fn message(&mut self, text: &str) -> ClientRequest {
        let Self { provider, key, group, .. } = self;
        let group = group.as_mut().expect("a member");
        let message = group.create_message(provider, &TestSigner(key), text.as_bytes()).expect("a message");
        let message = message.to_bytes().expect("encodes").into();
        self.as_leaf(DsRequest::SendMessage(SendMessage { group_id: self.group_id(), message }))
    }

    pub(crate) fn merge(&mut self) {
        let Self { provider, group, .. } = self;
        group.as_mut().expect("a member").merge_pending_commit(provider).expect("merges");
    }

    pub(crate) fn drop_pending(&mut self) {
        let Self { provider, group, .. } = self;
        group.as_mut().expect("a member").clear_pending_commit(provider.storage()).expect("cleared");
    }

    pub(crate) fn receive(&mut self, commit: &[u8]) {
        let Self { provider, group, .. } = self;
        let group = group.as_mut().expect("a member");
        let message = MlsMessageIn::tls_deserialize_exact(commit).expect("decodes");
        let message = message.try_into_protocol_message().expect("a handshake");
        let processed = group.process_message(provider, message).expect("valid for members, too");
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else { unreachable!("a Commit") };
        group.merge_staged_commit(provider, *staged).expect("merges");
    }

    pub(crate) fn join(&mut self, welcome: &[u8], tree: &[u8]) {
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
