//! Handing a user key to a further device, or to oneself for bad times (S19, X6). Two lines to paste, and no node takes part:
//! the new device shows a request, a device that holds the user key answers with the key, sealed to the new device, and with the
//! certificate that the new device needs.
//!
//! `docs/protocol.md` has the formats.

use std::fmt;

use hpke_rs::{Hpke, HpkePrivateKey, HpkePublicKey, Mode};
use hpke_rs_crypto::types::{AeadAlgorithm, KdfAlgorithm, KemAlgorithm};
use hpke_rs_rust_crypto::HpkeRustCrypto;
use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use crate::base::bytes::{hex, unhex};
use crate::base::crypto::{SigningKey, sha256, verify_with_label};
use crate::base::{Domain, Fault};
use crate::wire::{Opaque, decode, encode};

const REQUEST_PREFIX: &str = "mimi-pair:";
const ANSWER_PREFIX: &str = "mimi-paired:";
const BACKUP_PREFIX: &str = "mimi-backup:";

/// The version of all three formats.
const VERSION: u16 = 1;

/// Label of the request's signature, and HPKE `info` of the answer.
const LABEL: &str = "MIMI pairing";

/// What a new device says of itself.
#[derive(Clone, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub(super) struct PairingContent {
    version: u16,
    /// The device's name.
    device: Opaque,
    /// Its client key, Ed25519.
    client_key: Opaque,
    /// What the answer is to be sealed to, X25519.
    hpke_key: Opaque,
}

/// A new device's request, signed with its client key.
#[derive(Clone, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub(super) struct PairingRequest {
    content: PairingContent,
    signature: Opaque,
}

/// HPKE of a [`Handover`] to the request's key; aad is the encoded request.
#[derive(TlsSize, TlsSerialize, TlsDeserializeBytes)]
struct PairingAnswer {
    version: u16,
    kem_output: Opaque,
    ciphertext: Opaque,
}

/// All that makes a client its user's. As a line of its own it is a backup.
#[derive(Clone, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub(super) struct UserSecrets {
    version: u16,
    domain: Opaque,
    /// SHA-256 of the SubjectPublicKeyInfo of the CA above the node's TLS certificate, as in an invitation.
    pub(super) tls_ca_spki_hash: [u8; 32],
    /// PKCS#8.
    pub(super) user_key: Opaque,
    /// DER.
    pub(super) user_certificate: Opaque,
}

/// What a device that holds the user key hands to a new one.
#[derive(Clone, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub(super) struct Handover {
    pub(super) user: UserSecrets,
    /// The new device's certificate, DER.
    pub(super) client_certificate: Opaque,
}

impl fmt::Debug for UserSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserSecrets(…)")
    }
}

/// Why a line is not what it should be, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct InvalidLine(&'static str);

const NO_REQUEST: InvalidLine = InvalidLine("not a pairing request: want the whole line that `device request` printed");
const NO_ANSWER: InvalidLine =
    InvalidLine("not the answer to this device's pairing request: want the whole line that `device add` printed");
const NO_BACKUP: InvalidLine = InvalidLine("not a backup: want the file that `backup` wrote");

fn octets_of(line: &str, prefix: &str) -> Option<Vec<u8>> {
    unhex(line.trim().strip_prefix(prefix)?)
}

fn hpke() -> Hpke<HpkeRustCrypto> {
    Hpke::new(Mode::Base, KemAlgorithm::DhKem25519, KdfAlgorithm::HkdfSha256, AeadAlgorithm::Aes128Gcm)
}

impl PairingRequest {
    /// Makes a request for `device`; also the private key that opens its answer.
    pub(super) fn new(device: &str, client_key: &SigningKey) -> Result<(Self, Vec<u8>), Fault> {
        let pair = hpke().generate_key_pair().map_err(|error| Fault::new(format!("could not make a key: {error:?}")))?;
        let (private_key, public_key) = pair.into_keys();
        let content = PairingContent {
            version: VERSION,
            device: device.as_bytes().into(),
            client_key: client_key.public().into(),
            hpke_key: public_key.as_slice().into(),
        };
        let signature = client_key.sign_with_label(LABEL, &encode(&content)).into();
        Ok((Self { content, signature }, private_key.as_slice().to_vec()))
    }

    /// The name that the new device wants.
    pub(super) fn device(&self) -> &str {
        std::str::from_utf8(&self.content.device).unwrap_or_default()
    }

    /// The new device's client key.
    pub(super) fn client_key(&self) -> &[u8] {
        &self.content.client_key
    }

    pub(super) fn encoded(&self) -> Vec<u8> {
        encode(self)
    }

    pub(super) fn decoded(octets: &[u8]) -> Result<Self, InvalidLine> {
        let request: Self = decode(octets).map_err(|_| NO_REQUEST)?;
        let content = &request.content;
        let is_good = content.version == VERSION
            && std::str::from_utf8(&content.device).is_ok()
            && verify_with_label(&content.client_key, LABEL, &encode(content), &request.signature);
        if is_good { Ok(request) } else { Err(NO_REQUEST) }
    }

    /// The line to paste.
    pub(super) fn line(&self) -> String {
        format!("{REQUEST_PREFIX}{}", hex(&self.encoded()))
    }

    pub(super) fn from_line(line: &str) -> Result<Self, InvalidLine> {
        Self::decoded(&octets_of(line, REQUEST_PREFIX).ok_or(NO_REQUEST)?)
    }

    /// A few characters that both devices show: equal ones mean that the line was not exchanged on the way.
    pub(super) fn code(&self) -> String {
        let [a, b, c, d, ..] = sha256(&self.encoded());
        format!("{}-{}", hex(&[a, b]), hex(&[c, d]))
    }

    /// The line that answers this request with `handover`.
    pub(super) fn answer(&self, handover: &Handover) -> Result<String, Fault> {
        let key = HpkePublicKey::new(self.content.hpke_key.to_vec());
        let (kem_output, ciphertext) = hpke()
            .seal(&key, LABEL.as_bytes(), &self.encoded(), &encode(handover), None, None, None)
            .map_err(|error| Fault::new(format!("could not seal to the new device: {error:?}")))?;
        let answer = PairingAnswer { version: VERSION, kem_output: kem_output.into(), ciphertext: ciphertext.into() };
        Ok(format!("{ANSWER_PREFIX}{}", hex(&encode(&answer))))
    }

    /// What `line` answers to this request.
    pub(super) fn open(&self, line: &str, private_key: &[u8]) -> Result<Handover, InvalidLine> {
        let answer: PairingAnswer = decode(&octets_of(line, ANSWER_PREFIX).ok_or(NO_ANSWER)?).map_err(|_| NO_ANSWER)?;
        if answer.version != VERSION {
            return Err(NO_ANSWER);
        }
        let key = HpkePrivateKey::new(private_key.to_vec());
        let opened =
            hpke().open(&answer.kem_output, &key, LABEL.as_bytes(), &self.encoded(), &answer.ciphertext, None, None, None);
        decode(&opened.map_err(|_| NO_ANSWER)?).map_err(|_| NO_ANSWER)
    }
}

impl UserSecrets {
    pub(super) fn new(domain: &Domain, tls_ca_spki_hash: [u8; 32], user_key: &[u8], user_certificate: &[u8]) -> Self {
        let (user_key, user_certificate) = (user_key.into(), user_certificate.into());
        Self { version: VERSION, domain: domain.as_bytes().into(), tls_ca_spki_hash, user_key, user_certificate }
    }

    /// The user's domain.
    pub(super) fn domain(&self) -> Option<Domain> {
        std::str::from_utf8(&self.domain).ok()?.parse().ok()
    }

    /// The line to keep: whoever has it is the user.
    pub(super) fn backup(&self) -> String {
        format!("{BACKUP_PREFIX}{}", hex(&encode(self)))
    }

    pub(super) fn from_backup(line: &str) -> Result<Self, InvalidLine> {
        let secrets: Self = decode(&octets_of(line, BACKUP_PREFIX).ok_or(NO_BACKUP)?).map_err(|_| NO_BACKUP)?;
        if secrets.version == VERSION { Ok(secrets) } else { Err(NO_BACKUP) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover() -> Handover {
        let user = UserSecrets::new(&"a.test".parse().expect("a domain"), [1; 32], b"user key", b"user certificate");
        Handover { user, client_certificate: b"client certificate".as_slice().into() }
    }

    #[test]
    fn only_the_device_that_asked_can_open_the_answer() {
        let key = SigningKey::generate().expect("a key");
        let (request, private_key) = PairingRequest::new("laptop", &key).expect("is made");
        let line = request.line();
        let read = PairingRequest::from_line(&format!(" {line}\n")).expect("is a request");
        assert!(read == request && read.code() == request.code());
        assert_eq!((read.device(), read.client_key()), ("laptop", key.public()));
        let answer = read.answer(&handover()).expect("is sealed");
        assert!(!answer.contains(&hex(b"user key")));
        assert!(request.open(&answer, &private_key).is_ok_and(|opened| opened == handover()));
        // Another device, or another request of the same one.
        let (other, other_key) = PairingRequest::new("laptop", &key).expect("is made");
        assert!(other.open(&answer, &other_key).is_err() && other.open(&answer, &private_key).is_err());
        assert_ne!(other.code(), request.code());
    }

    #[test]
    fn lines_that_were_cut_changed_or_mixed_up_are_refused() {
        let (request, private_key) = PairingRequest::new("laptop", &SigningKey::generate().expect("a key")).expect("is made");
        let (line, answer) = (request.line(), request.answer(&handover()).expect("is sealed"));
        let backup = handover().user.backup();
        assert!(UserSecrets::from_backup(&format!("{backup}\n")).is_ok_and(|secrets| secrets == handover().user));
        for bad in ["", "mimi-pair:", &answer, &backup, &line[..line.len() - 2], &line.replace("mimi-pair:", "mimi-pair:00")] {
            assert!(PairingRequest::from_line(bad).is_err(), "{bad}");
            assert!(request.open(bad, &private_key).is_err() || bad == answer, "{bad}");
            assert!(UserSecrets::from_backup(bad).is_err() || bad == backup, "{bad}");
        }
        // Another name under the same signature.
        let renamed = line.replace(&hex(b"laptop"), &hex(b"tablet"));
        assert!(renamed != line && PairingRequest::from_line(&renamed).is_err());
    }
}
