//! Members before they are in a tree: identities, leaves, KeyPackages.

use ed25519_dalek::SigningKey;
use rand::Rng as _;
use rand_chacha::ChaCha20Rng;

use super::encode::{Encoder, ref_hash, sign_with_label};

/// MLS 1.0.
pub(super) const PROTOCOL_VERSION: u16 = 1;

/// X25519, AES-128-GCM, SHA-256, Ed25519.
pub(super) const CIPHERSUITE: u16 = 1;

const CREDENTIAL_X509: u16 = 2;
const EXTENSION_EXTERNAL_SENDERS: u16 = 5;

/// How far in the past a KeyPackage's lifetime starts, so that clocks may differ.
const LIFETIME_BEFORE_S: u64 = 3_600;

/// How long a KeyPackage lives: a little less than the 84 days that implementations accept.
const LIFETIME_AFTER_S: u64 = 80 * 86_400;

/// An extension of a KeyPackage, GroupContext or GroupInfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The code point.
    pub kind: u16,
    /// The encoded content.
    pub data: Vec<u8>,
}

impl Extension {
    /// The GroupContext's `external_senders`: signature keys with their chains of certificates in DER, leaf first.
    pub fn external_senders(senders: &[(&[u8], &[Vec<u8>])]) -> Self {
        let list = senders.iter().fold(Encoder::new(), |list, (key, chain)| list.vector(key).raw(&x509_credential(chain)));
        Self { kind: EXTENSION_EXTERNAL_SENDERS, data: Encoder::new().vector(&list.finish()).finish() }
    }
}

/// `Extension extensions<V>`.
pub(super) fn encode_extensions(extensions: &[Extension]) -> Vec<u8> {
    let inner = extensions.iter().fold(Encoder::new(), |list, extension| list.u16(extension.kind).vector(&extension.data));
    Encoder::new().vector(&inner.finish()).finish()
}

/// A credential of certificates in DER, leaf first.
fn x509_credential(chain: &[Vec<u8>]) -> Vec<u8> {
    let certificates = chain.iter().fold(Encoder::new(), |list, certificate| list.vector(certificate));
    Encoder::new().u16(CREDENTIAL_X509).vector(&certificates.finish()).finish()
}

/// What leaves say they can do, besides MLS 1.0 and ciphersuite 1. The types that RFC 9420 makes default (§7.2) must not be listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Extension types.
    pub extensions: Vec<u16>,
    /// Proposal types.
    pub proposals: Vec<u16>,
    /// Credential types.
    pub credentials: Vec<u16>,
}

impl Default for Capabilities {
    /// X.509 credentials, and the private-use types 0xF0C0 of KeyPackages and 0xF0C1 of GroupContexts.
    fn default() -> Self {
        Self { extensions: vec![0xF0C0, 0xF0C1], proposals: Vec::new(), credentials: vec![CREDENTIAL_X509] }
    }
}

impl Capabilities {
    fn encode(&self) -> Vec<u8> {
        Encoder::new()
            .u16_vector(&[PROTOCOL_VERSION])
            .u16_vector(&[CIPHERSUITE])
            .u16_vector(&self.extensions)
            .u16_vector(&self.proposals)
            .u16_vector(&self.credentials)
            .finish()
    }
}

/// Who a member is.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    credential: Vec<u8>,
}

impl Identity {
    /// The holder of the Ed25519 key with this seed and of a chain of certificates in DER, leaf first. Nothing checks that they fit.
    pub fn new(seed: &[u8; 32], chain: &[Vec<u8>]) -> Self {
        Self { key: SigningKey::from_bytes(seed), credential: x509_credential(chain) }
    }

    /// The public signature key.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    pub(super) fn sign(&self, label: &str, content: &[u8]) -> [u8; 64] {
        sign_with_label(&self.key, label, content)
    }
}

/// Where a leaf comes from, and what depends on it (RFC 9420 §7.2).
pub(super) enum LeafSource<'a> {
    KeyPackage { not_before_s: u64, not_after_s: u64 },
    Update { group_id: &'a [u8], leaf_index: u32 },
    Commit { parent_hash: &'a [u8], group_id: &'a [u8], leaf_index: u32 },
}

/// A signed LeafNode with a fresh encryption key. Nobody has the private half: any 32 octets are an X25519 public key.
pub(super) fn leaf_node(
    identity: &Identity,
    capabilities: &Capabilities,
    source: &LeafSource<'_>,
    rng: &mut ChaCha20Rng,
) -> Vec<u8> {
    let leaf = Encoder::new()
        .vector(&rng.random::<[u8; 32]>())
        .vector(&identity.public_key())
        .raw(&identity.credential)
        .raw(&capabilities.encode());
    let leaf = match source {
        LeafSource::KeyPackage { not_before_s, not_after_s } => leaf.u8(1).u64(*not_before_s).u64(*not_after_s),
        LeafSource::Update { .. } => leaf.u8(2),
        LeafSource::Commit { parent_hash, .. } => leaf.u8(3).vector(parent_hash),
    };
    let leaf = leaf.raw(&encode_extensions(&[]));
    let to_sign = match source {
        LeafSource::KeyPackage { .. } => leaf.clone(),
        LeafSource::Update { group_id, leaf_index } | LeafSource::Commit { group_id, leaf_index, .. } => {
            leaf.clone().vector(group_id).u32(*leaf_index)
        }
    };
    leaf.vector(&identity.sign("LeafNodeTBS", &to_sign.finish())).finish()
}

/// A KeyPackage with the identity that it is for.
#[derive(Clone)]
pub struct KeyPackage {
    pub(super) identity: Identity,
    pub(super) capabilities: Capabilities,
    pub(super) leaf: Vec<u8>,
    octets: Vec<u8>,
}

impl KeyPackage {
    /// A fresh KeyPackage, valid for 80 days from `now_s` (seconds since 1970).
    pub fn new(
        identity: Identity,
        capabilities: Capabilities,
        extensions: &[Extension],
        now_s: u64,
        rng: &mut ChaCha20Rng,
    ) -> Self {
        let lifetime = (now_s.saturating_sub(LIFETIME_BEFORE_S), now_s.saturating_add(LIFETIME_AFTER_S));
        Self::living(identity, capabilities, extensions, lifetime, rng)
    }

    /// A fresh KeyPackage, valid from and until these seconds since 1970.
    pub fn living(
        identity: Identity,
        capabilities: Capabilities,
        extensions: &[Extension],
        (not_before_s, not_after_s): (u64, u64),
        rng: &mut ChaCha20Rng,
    ) -> Self {
        let leaf = leaf_node(&identity, &capabilities, &LeafSource::KeyPackage { not_before_s, not_after_s }, rng);
        let package = Encoder::new()
            .u16(PROTOCOL_VERSION)
            .u16(CIPHERSUITE)
            .vector(&rng.random::<[u8; 32]>())
            .raw(&leaf)
            .raw(&encode_extensions(extensions));
        let signature = identity.sign("KeyPackageTBS", &package.clone().finish());
        Self { identity, capabilities, leaf, octets: package.vector(&signature).finish() }
    }

    /// The encoded KeyPackage.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// The same as an MLSMessage.
    pub fn message(&self) -> Vec<u8> {
        Encoder::new().u16(PROTOCOL_VERSION).u16(5).raw(&self.octets).finish()
    }

    /// Its KeyPackageRef.
    pub fn reference(&self) -> [u8; 32] {
        ref_hash("KeyPackage Reference", &self.octets)
    }
}
