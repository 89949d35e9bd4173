//! What a domain publishes about itself: its AS roots, its QS keys and its DS's ExternalSender.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque, encode};
use super::signed::signed_by_as_root;
use crate::base::crypto::{SigningKey, verify_with_label};

const STATEMENT_LABEL: &str = "MIMI AS roots";

/// `info`, asked of the client's own node, which answers for other domains from what it has pinned or fetches now.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct InfoRequest {
    /// The domain asked about.
    pub domain: Opaque,
}

/// `domain_info`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DomainInfo {
    /// Whose information this is.
    pub domain: Opaque,
    /// AS root certificates (DER).
    pub as_roots: List<Opaque>,
    /// Keys to seal queue information to; the first is the one to use.
    pub qs_keys: List<QsKey>,
    /// RFC 9420 ExternalSender of the domain's DS, as it must stand in `external_senders` (S12).
    pub external_sender: Opaque,
    /// The node's clock, in milliseconds since 1970.
    pub server_time_ms: u64,
    /// How `as_roots` came to be what they are, oldest first (X2); the last one names exactly them. Empty while they are the
    /// domain's first.
    pub root_statements: List<RootStatement>,
}

/// The AS roots of a domain from now on, as one of those before says (X2).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct RootStatement {
    /// The domain.
    pub domain: Opaque,
    /// Grows with each statement.
    pub version: u64,
    /// All AS root certificates (DER) that are good from now on; the last one issues.
    pub as_roots: List<Opaque>,
    /// SHA-256 of the SubjectPublicKeyInfo of every TLS CA that clients are to trust for the domain's node. Empty: those of their
    /// invitations.
    pub tls_ca_hashes: List<Opaque>,
    /// SignWithLabel(key of an AS root of before, "MIMI AS roots", all of the above).
    pub signature: Opaque,
}

signed_by_as_root!(RootStatement, STATEMENT_LABEL);

/// An HPKE public key of a QS: X25519, HKDF-SHA256, AES-128-GCM.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct QsKey {
    /// Its number in sealed queue informations.
    pub key_id: u8,
    /// 32 octets.
    pub public_key: Opaque,
}
