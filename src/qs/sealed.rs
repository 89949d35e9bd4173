//! Sealed queue informations: HPKE base mode, X25519, HKDF-SHA256, AES-128-GCM (*Numbers* in `docs/protocol.md`).

use hpke_rs::{Hpke, HpkePrivateKey, Mode};
use hpke_rs_crypto::types::{AeadAlgorithm, KdfAlgorithm, KemAlgorithm};
use hpke_rs_rust_crypto::HpkeRustCrypto;

use crate::base::fault::{Context as _, Fault};
use crate::base::ids::QueueId;
use crate::base::limits::{INVITE_LIFETIME_MAX, QUEUE_INFORMATION_BYTES_MAX};
use crate::base::rule::{answer, on};
use crate::base::secret::Secret;
use crate::base::{Domain, UnixMillis};
use crate::wire::info::QsKey;
use crate::wire::qs::{Invite, QueueBinding, QueueInformation, SealedQueueInformation};
use crate::wire::{Opaque, decode};

/// HPKE `info` of a sealed queue information.
const INFO: &[u8] = b"MIMI queue info";

/// A QS's HPKE key pair.
#[derive(Clone, Debug)]
pub struct QsKeyPair {
    /// Its number in sealed queue informations.
    pub key_id: u8,
    /// X25519, 32 octets.
    pub private_key: Secret,
    /// X25519, 32 octets.
    pub public_key: Vec<u8>,
}

fn suite() -> Hpke<HpkeRustCrypto> {
    Hpke::new(Mode::Base, KemAlgorithm::DhKem25519, KdfAlgorithm::HkdfSha256, AeadAlgorithm::Aes128Gcm)
}

impl QsKeyPair {
    /// A fresh key pair.
    pub fn generate(key_id: u8) -> Result<Self, Fault> {
        let pair = suite().generate_key_pair().map_err(|error| Fault::new(format!("could not make an HPKE key: {error:?}")))?;
        let (private_key, public_key) = pair.into_keys();
        Ok(Self { key_id, private_key: Secret::new(private_key.as_slice().to_vec()), public_key: public_key.as_slice().to_vec() })
    }

    /// Reads a key pair that was stored as key id, private key, public key.
    pub fn from_record(record: &[u8]) -> Result<Self, Fault> {
        let (key_id, keys) = record.split_first().context("the QS key is empty")?;
        let (private_key, public_key) = keys.split_at_checked(32).context("the QS key is too short")?;
        Ok(Self { key_id: *key_id, private_key: Secret::new(private_key.to_vec()), public_key: public_key.to_vec() })
    }

    /// The key pair as it is stored.
    pub fn to_record(&self) -> Secret {
        Secret::new([&[self.key_id], self.private_key.expose(), &self.public_key].concat())
    }

    /// What the domain publishes of it.
    pub fn published(&self) -> QsKey {
        QsKey { key_id: self.key_id, public_key: Opaque::from(self.public_key.as_slice()) }
    }
}

/// QS-001 (S14): a sealed queue information opens with one of the QS's keys to a well-formed one; `None` when none of them does
/// that.
/// Costs an HPKE decapsulation: callers keep the result.
pub fn open(keys: &[QsKeyPair], sealed: &[u8]) -> Option<QueueInformation> {
    let refused = || {
        let anything =
            || QueueInformation { queue_id: QueueId([0; 16]), generation: 0, binding: QueueBinding::Hub(Opaque::default()) };
        answer("QS-001", None, Some(anything()))
    };
    try_open(keys, sealed).map_or_else(refused, Some)
}

fn try_open(keys: &[QsKeyPair], sealed: &[u8]) -> Option<QueueInformation> {
    if sealed.len() > QUEUE_INFORMATION_BYTES_MAX {
        return None;
    }
    let sealed: SealedQueueInformation = decode(sealed).ok()?;
    let key = keys.iter().find(|key| key.key_id == sealed.key_id)?;
    let private_key = HpkePrivateKey::new(key.private_key.expose().to_vec());
    let plain = suite().open(&sealed.kem_output, &private_key, INFO, &[], &sealed.ciphertext, None, None, None).ok()?;
    decode(&plain).ok()
}

/// QS-002 (X3): it is bound to the authenticated hub, or to an invite that has not expired, and does at last. Which group an
/// invite serves is decided with what it served before, see [`super::invites`].
pub fn may_be_used_by(information: &QueueInformation, hub: &Domain, now: UnixMillis) -> bool {
    let is_meant = match &information.binding {
        QueueBinding::Hub(bound) => bound[..] == *hub.as_bytes(),
        QueueBinding::Invite(invite) => invite_is_good(invite, now),
    };
    !on("QS-002") || is_meant
}

/// Whether an invite has not expired, and expires no later than a KeyPackage can.
pub fn invite_is_good(invite: &Invite, now: UnixMillis) -> bool {
    now.0 <= invite.expires_at_ms && invite.expires_at_ms <= now.plus(INVITE_LIFETIME_MAX).0
}

#[cfg(test)]
mod tests {
    use hpke_rs::HpkePublicKey;

    use super::*;
    use crate::base::ids::InviteId;
    use crate::wire::encode;

    fn seal(key: &QsKeyPair, info: &[u8], information: &QueueInformation) -> Vec<u8> {
        let public_key = HpkePublicKey::new(key.public_key.clone());
        let (kem_output, ciphertext) =
            suite().seal(&public_key, info, &[], &encode(information), None, None, None).expect("seals");
        encode(&SealedQueueInformation { key_id: key.key_id, kem_output: kem_output.into(), ciphertext: ciphertext.into() })
    }

    // covers QS-001, QS-002
    #[test]
    fn only_the_right_key_and_info_open_it_and_only_the_bound_hub_may_use_it() {
        let (key, other) = (QsKeyPair::generate(1).expect("a key"), QsKeyPair::generate(1).expect("a key"));
        let key = QsKeyPair::from_record(key.to_record().expose()).expect("round trip");
        let information = QueueInformation {
            queue_id: QueueId([7; 16]),
            generation: 1,
            binding: QueueBinding::Hub(b"a.test".as_slice().into()),
        };
        let sealed = seal(&key, INFO, &information);
        assert_eq!(open(std::slice::from_ref(&key), &sealed), Some(information.clone()));
        assert_eq!(open(&[other], &sealed), None);
        assert_eq!(open(&[], &sealed), None);
        assert_eq!(open(std::slice::from_ref(&key), &sealed[1..]), None);
        assert_eq!(open(std::slice::from_ref(&key), &seal(&key, b"other", &information)), None);
        let hub = |name: &str| name.parse::<Domain>().expect("a domain");
        let now = UnixMillis(1_000);
        assert!(may_be_used_by(&information, &hub("a.test"), now));
        assert!(!may_be_used_by(&information, &hub("b.test"), now));
        let invite = |expires_at_ms| QueueInformation {
            binding: QueueBinding::Invite(Invite { invite_id: InviteId([1; 16]), last_resort: 0, expires_at_ms }),
            ..information.clone()
        };
        assert!(may_be_used_by(&invite(1_000), &hub("b.test"), now));
        assert!(!may_be_used_by(&invite(999), &hub("b.test"), now), "expired");
        let latest = now.plus(INVITE_LIFETIME_MAX).0;
        assert!(may_be_used_by(&invite(latest), &hub("b.test"), now));
        assert!(!may_be_used_by(&invite(latest + 1), &hub("b.test"), now), "for longer than a KeyPackage lives");
    }
}
