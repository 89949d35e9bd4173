//! The member's side of MLS, on OpenMLS: provider, leaf key and credential, KeyPackages, making and reading messages.

use std::collections::HashMap;
use std::fmt::Display;

pub(super) use openmls::ciphersuite::hash_ref::ProposalRef;
use openmls::group::{
    CommitMessageBundle, GroupContext, GroupId, MlsGroup, MlsGroupCreateConfig, MlsGroupJoinConfig,
    PURE_PLAINTEXT_WIRE_FORMAT_POLICY, QueuedProposal, StagedCommit, StagedWelcome,
};
use openmls::prelude::{
    Capabilities, Ciphersuite, Credential, CredentialType, CredentialWithKey, Extension, ExtensionType, Extensions, KeyPackage,
    KeyPackageIn, KeyPackageRef, LeafNode, LeafNodeIndex, LeafNodeParameters, Lifetime, MlsMessageBodyIn, MlsMessageIn, Proposal,
    ProtocolVersion, RatchetTreeIn, RequiredCapabilitiesExtension, Sender, SenderRatchetConfiguration, UnknownExtension, Welcome,
};
use openmls_rust_crypto::RustCrypto;
use openmls_traits::OpenMlsProvider;
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::storage::StorageProvider as _;
use openmls_traits::types::SignatureScheme;
use tls_codec::{Deserialize as _, DeserializeBytes as _, Serialize as _};

use super::state::Values;
use super::storage::Storage;
use crate::base::crypto::SigningKey;
use crate::base::{ClientUri, Domain, Fault, GroupUri, UnixMillis, limits};
use crate::identity::chain::{AsRoots, claimed_client, claimed_validity_end, validate_client_chain};
use crate::wire::ds::ClientQueueConfig;
use crate::wire::{Opaque, encode};

/// The one ciphersuite of version 1, as MLS numbers it.
pub(super) const CIPHERSUITE_ID: u16 = 0x0001;

const CIPHERSUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

/// The private-use KeyPackage extension with the client's queue config.
const QUEUE_CONFIG_EXTENSION: u16 = 0xF0C0;

/// The private-use GroupContext extension that says who may join by themselves: one octet.
const JOIN_POLICY_EXTENSION: u16 = 0xF0C1;

/// The join policy under which users may join by themselves.
const JOIN_POLICY_OPEN: u8 = 1;

/// OpenMLS's provider: its RustCrypto, and a storage whose content this client writes to its own state file.
#[derive(Debug, Default)]
pub(super) struct Provider {
    crypto: RustCrypto,
    storage: Storage,
}

impl OpenMlsProvider for Provider {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = Storage;

    fn storage(&self) -> &Storage {
        &self.storage
    }

    fn crypto(&self) -> &RustCrypto {
        &self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        &self.crypto
    }
}

impl Provider {
    pub(super) fn with_values(values: Values) -> Self {
        let provider = Self::default();
        provider.replace_values(values);
        provider
    }

    /// Lets `f` see all of the storage.
    pub(super) fn values<T>(&self, f: impl FnOnce(&Values) -> T) -> T {
        // A writer that panicked left whole entries: the map itself is sound.
        f(&self.storage.memory.values.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Puts the storage back to what it was.
    pub(super) fn replace_values(&self, values: Values) {
        *self.storage.memory.values.write().unwrap_or_else(std::sync::PoisonError::into_inner) = values;
    }

    /// Whether the private keys of this KeyPackage are here.
    pub(super) fn has_key_package(&self, reference: &KeyPackageRef) -> bool {
        let bundle: Result<Option<openmls::prelude::KeyPackageBundle>, _> = self.storage.key_package(reference);
        matches!(bundle, Ok(Some(_)))
    }

    /// Forgets a KeyPackage that is no longer to be used.
    pub(super) fn forget_key_package(&self, reference: &KeyPackageRef) -> Result<(), Fault> {
        self.storage.delete_key_package(reference).map_err(failed("forget a KeyPackage"))
    }
}

pub(super) fn failed<E: Display>(what: &'static str) -> impl FnOnce(E) -> Fault {
    move |error| Fault::new(format!("could not {what}: {error}"))
}

/// A [`SigningKey`] as OpenMLS takes it.
pub(super) struct LeafSigner<'a>(&'a SigningKey);

impl Signer for LeafSigner<'_> {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(payload))
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// The client's leaf key and the chain that proves whose it is.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) key: SigningKey,
    /// DER: client certificate, user certificate.
    pub(super) chain: Vec<Vec<u8>>,
}

impl Leaf {
    pub(super) fn signer(&self) -> LeafSigner<'_> {
        LeafSigner(&self.key)
    }

    pub(super) fn credential(&self) -> CredentialWithKey {
        let content = self.chain.iter().flat_map(|der| encode(&Opaque::from(der.as_slice()))).collect();
        CredentialWithKey {
            credential: Credential::new(CredentialType::X509, content),
            signature_key: self.key.public().to_vec().into(),
        }
    }
}

/// Only what is not default: other libraries refuse a leaf that lists default types.
pub(super) fn capabilities() -> Capabilities {
    let extensions = [
        ExtensionType::Unknown(QUEUE_CONFIG_EXTENSION),
        ExtensionType::Unknown(JOIN_POLICY_EXTENSION),
        ExtensionType::LastResort,
    ];
    Capabilities::new(None, Some(&[CIPHERSUITE]), Some(&extensions), Some(&[]), Some(&[CredentialType::X509]))
}

fn ratchet_configuration() -> SenderRatchetConfiguration {
    SenderRatchetConfiguration::new(limits::CLIENT_OUT_OF_ORDER_MAX, limits::CLIENT_MISSING_MAX)
}

pub(super) fn join_config() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(false)
        .max_past_epochs(limits::CLIENT_PAST_EPOCHS_MAX)
        .sender_ratchet_configuration(ratchet_configuration())
        .build()
}

/// A kept KeyPackageRef as OpenMLS has it.
pub(super) fn key_package_ref(reference: &[u8]) -> Result<KeyPackageRef, Fault> {
    KeyPackageRef::tls_deserialize_exact(encode(&Opaque::from(reference))).map_err(failed("read a KeyPackageRef"))
}

/// A KeyPackage just made; its private keys are in the storage.
pub(super) struct NewKeyPackage {
    /// MLSMessage.
    pub(super) message: Vec<u8>,
    pub(super) reference: KeyPackageRef,
}

/// How long a KeyPackage that is made now will live, for its queue config.
pub(super) fn key_package_expiry(now: UnixMillis) -> UnixMillis {
    // OpenMLS's default lifetime begins an hour ago.
    now.plus(std::time::Duration::from_secs(Lifetime::default().not_after().saturating_sub(now.seconds())))
}

/// Makes a KeyPackage that carries `queue_config`.
pub(super) fn new_key_package(
    provider: &Provider,
    leaf: &Leaf,
    queue_config: &ClientQueueConfig,
    last_resort: bool,
) -> Result<NewKeyPackage, Fault> {
    let extension = Extension::Unknown(QUEUE_CONFIG_EXTENSION, UnknownExtension(encode(queue_config)));
    let extensions = Extensions::from_vec(vec![extension]).map_err(failed("make a KeyPackage"))?;
    let mut builder = KeyPackage::builder().leaf_node_capabilities(capabilities()).key_package_extensions(extensions);
    if last_resort {
        builder = builder.mark_as_last_resort();
    }
    let bundle = builder.build(CIPHERSUITE, provider, &leaf.signer(), leaf.credential()).map_err(failed("make a KeyPackage"))?;
    let key_package = bundle.into_key_package();
    let reference = key_package.hash_ref(provider.crypto()).map_err(failed("hash a KeyPackage"))?;
    let message = openmls::prelude::MlsMessageOut::from(key_package).to_bytes().map_err(failed("encode a KeyPackage"))?;
    Ok(NewKeyPackage { message, reference })
}

/// Reads one MLSMessage. The reader form of the codec: the other panics in debug builds on truncated input.
pub(super) fn read_message(octets: &[u8]) -> Result<MlsMessageBodyIn, String> {
    MlsMessageIn::tls_deserialize_exact(octets).map(MlsMessageIn::extract).map_err(|error| format!("malformed: {error}"))
}

/// A new group with one member, and its GroupInfo (MLSMessage, with the tree).
pub(super) fn create_group(
    provider: &Provider,
    leaf: &Leaf,
    group: &GroupUri,
    external_sender: &[u8],
) -> Result<(MlsGroup, Vec<u8>), Fault> {
    let sender = openmls::prelude::ExternalSender::tls_deserialize_exact(external_sender)
        .map_err(failed("read the Delivery Service's ExternalSender"))?;
    let extensions = Extensions::single(Extension::ExternalSenders(vec![sender])).map_err(failed("set up the group"))?;
    let config = MlsGroupCreateConfig::builder()
        .ciphersuite(CIPHERSUITE)
        .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(false)
        .max_past_epochs(limits::CLIENT_PAST_EPOCHS_MAX)
        .sender_ratchet_configuration(ratchet_configuration())
        .capabilities(capabilities())
        .with_group_context_extensions(extensions)
        .build();
    let id = GroupId::from_slice(&group.to_bytes());
    let made = MlsGroup::new_with_group_id(provider, &leaf.signer(), &config, id, leaf.credential())
        .map_err(failed("set up the group"))?;
    let info = made.export_group_info(provider.crypto(), &leaf.signer(), true).map_err(failed("export the GroupInfo"))?;
    let info = info.to_bytes().map_err(failed("encode the GroupInfo"))?;
    Ok((made, info))
}

/// What goes to the hub for one Commit.
#[derive(Clone, Debug)]
pub(super) struct NewCommit {
    /// MLSMessage.
    pub(super) commit: Vec<u8>,
    /// MLSMessage.
    pub(super) group_info: Vec<u8>,
    /// MLSMessage; there when someone is added.
    pub(super) welcome: Option<Vec<u8>>,
}

/// What a Commit does beside committing all that is pending.
#[derive(Default)]
pub(super) struct Change {
    pub(super) adds: Vec<KeyPackage>,
    pub(super) removes: Vec<LeafNodeIndex>,
    pub(super) extensions: Option<Extensions<GroupContext>>,
    /// Whether it has a path in any case.
    pub(super) update: bool,
}

/// Makes a Commit of `change` and all pending proposals; it stays pending.
pub(super) fn commit(provider: &Provider, leaf: &Leaf, group: &mut MlsGroup, change: Change) -> Result<NewCommit, Fault> {
    // A leaf that gets new keys gets the certificates that there are by now, too.
    let outdated = group.own_leaf_node().is_some_and(|own| *own.credential() != leaf.credential().credential);
    let mut builder = group
        .commit_builder()
        .consume_proposal_store(true)
        .force_self_update(change.update)
        .propose_adds(change.adds)
        .propose_removals(change.removes);
    if change.update && outdated {
        builder = builder.leaf_node_parameters(LeafNodeParameters::builder().with_credential_with_key(leaf.credential()).build());
    }
    if let Some(extensions) = change.extensions {
        builder = builder.propose_group_context_extensions(extensions).map_err(failed("change the group's extensions"))?;
    }
    let bundle = builder
        .load_psks(provider.storage())
        .map_err(failed("begin a Commit"))?
        .use_ratchet_tree_extension(false)
        .create_group_info(true)
        .build(provider.rand(), provider.crypto(), &leaf.signer(), |_| true)
        .map_err(failed("make a Commit"))?
        .stage_commit(provider)
        .map_err(failed("stage a Commit"))?;
    NewCommit::new(bundle)
}

impl NewCommit {
    pub(super) fn new(bundle: CommitMessageBundle) -> Result<Self, Fault> {
        let (commit, welcome, group_info) = bundle.into_messages();
        let group_info = group_info.ok_or_else(|| Fault::new("OpenMLS made no GroupInfo for a Commit"))?;
        Ok(Self {
            commit: commit.to_bytes().map_err(failed("encode a Commit"))?,
            group_info: group_info.to_bytes().map_err(failed("encode a GroupInfo"))?,
            welcome: welcome.map(|welcome| welcome.to_bytes()).transpose().map_err(failed("encode a Welcome"))?,
        })
    }
}

/// The group's extensions with its join policy changed.
pub(super) fn with_join_policy(group: &MlsGroup, open: bool) -> Result<Extensions<GroupContext>, Fault> {
    let mut extensions = group.extensions().clone();
    let policy_type = ExtensionType::Unknown(JOIN_POLICY_EXTENSION);
    let required = extensions.required_capabilities();
    let (mut types, proposals, credentials) = required.map_or_else(Default::default, |required| {
        (required.extension_types().to_vec(), required.proposal_types().to_vec(), required.credential_types().to_vec())
    });
    if !types.contains(&policy_type) {
        types.push(policy_type);
    }
    // OpenMLS wants every member to be known to understand an extension that is not a default one.
    let required = RequiredCapabilitiesExtension::new(&types, &proposals, &credentials);
    extensions.add_or_replace(Extension::RequiredCapabilities(required)).map_err(failed("set the join policy"))?;
    let policy = UnknownExtension(vec![if open { JOIN_POLICY_OPEN } else { 0 }]);
    extensions.add_or_replace(Extension::Unknown(JOIN_POLICY_EXTENSION, policy)).map_err(failed("set the join policy"))?;
    Ok(extensions)
}

/// Whether users may join the group by themselves.
pub(super) fn is_open(group: &MlsGroup) -> bool {
    let policy = group.extensions().unknown(JOIN_POLICY_EXTENSION);
    policy.is_some_and(|policy| policy.0 == [JOIN_POLICY_OPEN])
}

/// The leaves that pending proposals of the Delivery Service remove (S13).
pub(super) fn pending_removes(group: &MlsGroup) -> Vec<LeafNodeIndex> {
    let removed = |proposal: &QueuedProposal| match (proposal.proposal(), proposal.sender()) {
        (Proposal::Remove(remove), Sender::External(_)) => Some(remove.removed()),
        _ => None,
    };
    group.pending_proposals().filter_map(removed).collect()
}

/// A proposal of ours.
pub(super) struct NewProposal {
    /// MLSMessage.
    pub(super) message: Vec<u8>,
    pub(super) reference: ProposalRef,
}

/// Proposes new keys for the own leaf.
pub(super) fn propose_update(provider: &Provider, leaf: &Leaf, group: &mut MlsGroup) -> Result<NewProposal, Fault> {
    let parameters =
        LeafNodeParameters::builder().with_credential_with_key(leaf.credential()).with_capabilities(capabilities()).build();
    let (message, reference) =
        group.propose_self_update(provider, &leaf.signer(), parameters).map_err(failed("propose an Update"))?;
    Ok(NewProposal { message: message.to_bytes().map_err(failed("encode a proposal"))?, reference })
}

/// Encrypts `text` for the group's present epoch (MLSMessage).
pub(super) fn encrypt(provider: &Provider, leaf: &Leaf, group: &mut MlsGroup, text: &[u8]) -> Result<Vec<u8>, Fault> {
    let message = group.create_message(provider, &leaf.signer(), text).map_err(failed("encrypt a message"))?;
    message.to_bytes().map_err(failed("encode a message"))
}

/// Reads and checks a claimed KeyPackage (MLSMessage) as RFC 9420 §10.1 wants it; its credential is the caller's business.
pub(super) fn read_key_package(provider: &Provider, octets: &[u8]) -> Result<KeyPackage, String> {
    let MlsMessageBodyIn::KeyPackage(unchecked) = read_message(octets)? else { return Err("not a KeyPackage".into()) };
    let checked: KeyPackage =
        KeyPackageIn::validate(unchecked, provider.crypto(), ProtocolVersion::Mls10).map_err(|error| error.to_string())?;
    if checked.ciphersuite() != CIPHERSUITE {
        return Err("of another ciphersuite".into());
    }
    checked.life_time().validate().map_err(|error| error.to_string())?;
    Ok(checked)
}

/// The reference of the KeyPackage of ours that `welcome` is for.
pub(super) fn own_reference(provider: &Provider, welcome: &Welcome) -> Option<KeyPackageRef> {
    welcome.secrets().iter().map(|secret| secret.new_member()).find(|reference| provider.has_key_package(reference))
}

/// Opens `welcome` with `tree` (RFC 9420 ratchet_tree). **Consumes the KeyPackage's keys**, also when it fails: keep the
/// storage's content until it is known what comes of it.
pub(super) fn stage_welcome(provider: &Provider, welcome: Welcome, tree: &[u8]) -> Result<StagedWelcome, String> {
    let tree = RatchetTreeIn::tls_deserialize_exact(tree).map_err(|error| format!("malformed ratchet tree: {error}"))?;
    StagedWelcome::build_from_welcome(provider, &join_config(), welcome)
        .map_err(|error| error.to_string())?
        .with_ratchet_tree(tree)
        // Leaves already in the tree were checked when they came in; an expired one is the hub's to remove.
        .skip_lifetime_validation()
        .replace_old_group()
        .build()
        .map_err(|error| error.to_string())
}

/// The certificates (DER) of an X.509 credential, leaf first.
pub(super) fn chain_of(credential: &Credential) -> Result<Vec<Vec<u8>>, String> {
    if credential.credential_type() != CredentialType::X509 {
        return Err("the credential is not X.509".into());
    }
    let (mut rest, mut chain) = (credential.serialized_content(), Vec::new());
    while !rest.is_empty() {
        let (der, after) = Opaque::tls_deserialize_bytes(rest).map_err(|_| "the credential is malformed".to_owned())?;
        chain.push(der.into_vec());
        rest = after;
    }
    Ok(chain)
}

/// The client that a credential names. Only for credentials that were checked when they entered the group.
pub(super) fn client_of(credential: &Credential) -> Result<ClientUri, String> {
    claimed_client(&chain_of(credential)?).map_err(|error| error.to_string())
}

/// A leaf's credential and key, apart from OpenMLS's several types that have them.
pub(super) struct LeafClaim {
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) key: Vec<u8>,
}

impl LeafClaim {
    pub(super) fn new(credential: &Credential, key: &[u8]) -> Result<Self, String> {
        Ok(Self { chain: chain_of(credential)?, key: key.to_vec() })
    }

    pub(super) fn of_leaf(leaf: &LeafNode) -> Result<Self, String> {
        Self::new(leaf.credential(), leaf.signature_key().as_slice())
    }

    /// The domain whose roots must vouch for it.
    pub(super) fn domain(&self) -> Result<Domain, String> {
        claimed_client(&self.chain).map(|client| client.domain().clone()).map_err(|error| error.to_string())
    }

    /// Checks the chain, and that the leaf's key is the certificate's (R8).
    pub(super) fn check(&self, roots: &AsRoots, now: UnixMillis) -> Result<ClientUri, String> {
        let identity = validate_client_chain(&self.chain, roots, now).map_err(|error| error.to_string())?;
        if identity.public_key == self.key {
            Ok(identity.client)
        } else {
            Err(format!("the leaf of {} has another key than its certificate", identity.client))
        }
    }

    /// As [`LeafClaim::check`] for a leaf that was in the tree before: its chain may have expired since it came in.
    pub(super) fn check_existing(&self, roots: &AsRoots, now: UnixMillis) -> Result<ClientUri, String> {
        let end = claimed_validity_end(&self.chain).map_err(|error| error.to_string())?;
        self.check(roots, now.min(end))
    }
}

/// The leaves that `staged` brings in, each with the leaf index it replaces: an Update's, the committer's, or none.
pub(super) fn entering_leaves(
    staged: &StagedCommit,
    committer: Option<LeafNodeIndex>,
) -> Result<Vec<(LeafClaim, Option<LeafNodeIndex>)>, String> {
    let mut leaves = Vec::new();
    for add in staged.add_proposals() {
        leaves.push((LeafClaim::of_leaf(add.add_proposal().key_package().leaf_node())?, None));
    }
    for update in staged.update_proposals() {
        let Sender::Member(index) = update.sender() else {
            return Err("an Update whose sender is no member".into());
        };
        leaves.push((LeafClaim::of_leaf(update.update_proposal().leaf_node())?, Some(*index)));
    }
    if let Some(leaf) = staged.update_path_leaf_node() {
        leaves.push((LeafClaim::of_leaf(leaf)?, committer));
    }
    Ok(leaves)
}

/// The encoded entries of the group's `external_senders`.
pub(super) fn external_senders(extensions: &Extensions<GroupContext>) -> Vec<Vec<u8>> {
    let senders = extensions.external_senders().map(Vec::as_slice).unwrap_or_default();
    senders.iter().filter_map(|sender| sender.tls_serialize_detached().ok()).collect()
}

/// The signature key of an encoded ExternalSender.
pub(super) fn external_sender_key(sender: &[u8]) -> Option<Vec<u8>> {
    Opaque::tls_deserialize_bytes(sender).ok().map(|(key, _)| key.into_vec())
}

/// The members' clients, in the order of their leaves.
pub(super) fn members(group: &MlsGroup) -> Vec<(LeafNodeIndex, ClientUri)> {
    let leaves = group.treesync().full_leaves();
    leaves.filter_map(|(index, leaf)| client_of(leaf.credential()).ok().map(|client| (index, client))).collect()
}

/// Has the message secrets that changed since the last time written to the storage.
pub(super) fn write_message_secrets<'a>(
    provider: &Provider,
    groups: impl Iterator<Item = &'a mut MlsGroup>,
) -> Result<(), Fault> {
    let mut named = HashMap::new();
    for group in groups {
        named.insert(Storage::name_of(group.group_id()).map_err(failed("name a group"))?, group);
    }
    provider.storage.catch_up(|name| {
        // A group that is gone has none.
        let Some(group) = named.get_mut(name) else { return Ok(()) };
        // The policy stays what it is: what counts is that OpenMLS writes the secrets with it.
        let policy = group.past_epoch_deletion_policy().clone();
        group.set_past_epoch_deletion_policy(provider, policy).map_err(failed("write message secrets"))
    })
}
