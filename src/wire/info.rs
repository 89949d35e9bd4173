//! What a domain publishes about itself: its AS roots, its QS keys and its DS's ExternalSender.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque};

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
}

/// An HPKE public key of a QS: X25519, HKDF-SHA256, AES-128-GCM.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct QsKey {
    /// Its number in sealed queue informations.
    pub key_id: u8,
    /// 32 octets.
    pub public_key: Opaque,
}
