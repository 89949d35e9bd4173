//! Which keys of a domain are no longer good (X1).

use std::collections::HashSet;

use super::ClientIdentity;
use crate::base::UnixMillis;
use crate::base::crypto::sha256;

/// What a SubjectPublicKeyInfo with an Ed25519 key begins with (RFC 8410).
const ED25519_SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// SHA-256 of the SubjectPublicKeyInfo (DER) of a raw Ed25519 key: how `user_key_hash` (S2) and `credential_status` (X1) name a
/// key.
pub fn key_hash(public_key: &[u8]) -> [u8; 32] {
    sha256(&[&ED25519_SPKI_PREFIX, public_key].concat())
}

/// The revoked keys of one domain, user and client keys alike, by their [`key_hash`], and how long that is worth something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokedKeys {
    hashes: HashSet<[u8; 32]>,
    good_until: UnixMillis,
}

impl RevokedKeys {
    /// A list that is to be asked for again after `good_until`.
    pub fn new(hashes: impl IntoIterator<Item = [u8; 32]>, good_until: UnixMillis) -> Self {
        Self { hashes: hashes.into_iter().collect(), good_until }
    }

    /// The same list, good for longer.
    #[must_use]
    pub fn good_for(&self, good_until: UnixMillis) -> Self {
        Self { good_until, ..self.clone() }
    }

    /// Until when the list need not be asked for again.
    pub fn good_until(&self) -> UnixMillis {
        self.good_until
    }

    /// Whether the list need not be asked for again yet.
    pub fn is_fresh(&self, now: UnixMillis) -> bool {
        now <= self.good_until
    }

    /// Whether the key with this hash is revoked.
    pub fn contains(&self, key_hash: &[u8; 32]) -> bool {
        self.hashes.contains(key_hash)
    }

    /// Whether the client's key or its user's is revoked.
    pub fn revokes(&self, identity: &ClientIdentity) -> bool {
        self.contains(&identity.user_key_hash) || self.contains(&key_hash(&identity.public_key))
    }

    /// The hashes, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.hashes.iter()
    }
}
