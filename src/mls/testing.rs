//! Real MLS members with X.509 credentials, for the unit tests of the layers above. The one place besides the parent that
//! names OpenMLS on the server's side.

use openmls::prelude::*;
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::types::SignatureScheme;
use tls_codec::Deserialize as _;

use super::QUEUE_CONFIG_EXTENSION;
use crate::base::crypto::SigningKey;
use crate::base::ids::RequestId;
use crate::base::{ClientUri, Domain, GroupUri, UnixMillis, UserUri};
use crate::identity::AsRoot;
use crate::identity::issue::{issue_client, user_csr};
use crate::wire::ds::*;
use crate::wire::{ClientRequest, Content, List, Opaque, Service, encode};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

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
    provider: OpenMlsRustCrypto,
    group: Option<MlsGroup>,
    hub: Domain,
    group_id: Vec<u8>,
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

    pub(crate) fn queue(&self) -> ClientQueueConfig {
        ClientQueueConfig { qs_domain: self.uri.domain().as_bytes().into(), client_queue_information: self.uri.to_bytes().into() }
    }

    fn capabilities() -> Capabilities {
        let extensions = [ExtensionType::Unknown(QUEUE_CONFIG_EXTENSION), ExtensionType::LastResort];
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

    /// Makes the group and the request for it.
    pub(crate) fn create(&mut self, external_sender: &[u8]) -> ClientRequest {
        let senders = Vec::<ExternalSender>::tls_deserialize_exact(encode(&List::from(vec![Raw(external_sender.to_vec())])));
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
    pub(crate) fn request(&self, sender_id: DsSenderId, request: DsRequest) -> ClientRequest {
        let message = DsMessage { sender_id, certificates: List::default(), request };
        Content::new(&self.hub, RequestId::random(), UnixMillis::now(), Service::Ds(message)).sign(&self.key)
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
