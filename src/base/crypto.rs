//! The few primitives outside MLS: SHA-256, random octets, Ed25519 and the SignWithLabel of RFC 9420 §5.1.2.

use std::fmt;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

use super::fault::{Context as _, Fault};
use super::secret::Secret;

/// SHA-256 of `octets`.
pub fn sha256(octets: &[u8]) -> [u8; 32] {
    Sha256::digest(octets).into()
}

/// Fresh random octets from the thread's cryptographic generator.
pub fn random<const N: usize>() -> [u8; N] {
    rand::random()
}

/// An Ed25519 key pair, kept as PKCS#8 (the form that certificates are made with).
pub struct SigningKey {
    pkcs8: Secret,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// A fresh key.
    pub fn generate() -> Result<Self, Fault> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new())
            .map_err(|_| Fault::new("the system's random generator failed"))?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// Reads a key from PKCS#8 DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, Fault> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).context("this is not an Ed25519 key in PKCS#8")?;
        Ok(Self { pkcs8: Secret::new(der.to_vec()), pair })
    }

    /// The private key as PKCS#8 DER.
    pub fn pkcs8(&self) -> &Secret {
        &self.pkcs8
    }

    /// The 32-octet public key.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// A plain Ed25519 signature (64 octets) over `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }

    /// RFC 9420 SignWithLabel(key, `label`, `content`).
    pub fn sign_with_label(&self, label: &str, content: &[u8]) -> Vec<u8> {
        self.sign(&sign_content(label, content))
    }
}

impl Clone for SigningKey {
    fn clone(&self) -> Self {
        Self::from_pkcs8(self.pkcs8.expose()).expect("a key that was read once can be read again")
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(public {})", super::bytes::hex(self.public()))
    }
}

/// RFC 9420 VerifyWithLabel for Ed25519: whether `signature` is `public_key`'s over `content` under `label`.
#[must_use]
pub fn verify_with_label(public_key: &[u8], label: &str, content: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(&sign_content(label, content), signature).is_ok()
}

/// `SignContent { opaque label<V> = "MLS 1.0 " + label; opaque content<V> }`.
fn sign_content(label: &str, content: &[u8]) -> Vec<u8> {
    let label = format!("MLS 1.0 {label}");
    let mut octets = Vec::with_capacity(label.len() + content.len() + 8);
    push_vector(&mut octets, label.as_bytes());
    push_vector(&mut octets, content);
    octets
}

/// Appends `opaque content<V>` with the variable-size length of RFC 9420 §2.1.2.
fn push_vector(octets: &mut Vec<u8>, content: &[u8]) {
    let length = u32::try_from(content.len()).expect("signed content is far below 2^30 octets");
    match length {
        0..64 => octets.push(length as u8),
        64..16_384 => octets.extend_from_slice(&(length as u16 | 0x4000).to_be_bytes()),
        _ => octets.extend_from_slice(&(length | 0x8000_0000).to_be_bytes()),
    }
    octets.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_labelled_signature_binds_key_label_and_content() {
        let (key, other) = (SigningKey::generate().expect("a key"), SigningKey::generate().expect("a key"));
        let signature = key.sign_with_label("MIMI ds", b"content");
        assert!(verify_with_label(key.public(), "MIMI ds", b"content", &signature));
        assert!(!verify_with_label(other.public(), "MIMI ds", b"content", &signature));
        assert!(!verify_with_label(key.public(), "MIMI qs", b"content", &signature));
        assert!(!verify_with_label(key.public(), "MIMI ds", b"contenT", &signature));
        assert!(!verify_with_label(&[], "MIMI ds", b"content", &signature));
        assert!(!verify_with_label(key.public(), "MIMI ds", b"content", &[]));
    }

    #[test]
    fn sign_content_uses_the_shortest_length() {
        let long = vec![7; 70];
        let octets = sign_content("x", &long);
        assert_eq!(&octets[..10], b"\x09MLS 1.0 x");
        assert_eq!(&octets[10..12], &[0x40, 70]);
    }
}
