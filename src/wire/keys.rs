//! Publishing and claiming KeyPackages (R7).

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque};

/// A request about KeyPackages, signed by a client key.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct KeysMessage {
    /// The asking client's chain (client, user; DER).
    pub certificates: List<Opaque>,
    /// What is asked.
    pub request: KeysRequest,
}

/// The operations on KeyPackages.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum KeysRequest {
    /// Adds KeyPackages of the asking client.
    #[tls_codec(discriminant = 0)]
    Publish(PublishKeyPackages),
    /// How many of the asking client's are left.
    Count,
    /// One KeyPackage of each client of a user; asked of the user's domain.
    Claim(ClaimKeyPackages),
}

/// `publish`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct PublishKeyPackages {
    /// MLSMessages with KeyPackages, each handed out once.
    pub key_packages: List<Opaque>,
    /// MLSMessage with a KeyPackage that has the last_resort extension; replaces the one before.
    pub last_resort: Option<Opaque>,
}

/// `claim`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ClaimKeyPackages {
    /// The user's URI.
    pub user: Opaque,
    /// MLS ciphersuite.
    pub ciphersuite: u16,
}

/// One claimed KeyPackage.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ClaimedKeyPackage {
    /// The client's URI.
    pub client: Opaque,
    /// MLSMessage with the KeyPackage.
    pub key_package: Opaque,
}

/// Answer to `count`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct KeyPackageCount {
    /// KeyPackages that can still be handed out, the last-resort one not counted.
    pub available: u32,
    /// 1 when a last-resort KeyPackage is there, else 0.
    pub last_resort: u8,
}
