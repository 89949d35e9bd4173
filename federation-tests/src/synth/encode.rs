//! The TLS presentation language, as far as RFC 9420 uses it, and its labelled hashes and signatures.

use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256};

/// A growing struct.
#[derive(Clone, Default)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(super) fn u16(self, value: u16) -> Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// Octets that are encoded already.
    pub(super) fn raw(mut self, octets: &[u8]) -> Self {
        self.0.extend_from_slice(octets);
        self
    }

    /// `opaque octets<V>` (RFC 9420 §2.1.2): the shortest length form.
    pub(super) fn vector(mut self, octets: &[u8]) -> Self {
        let length = u32::try_from(octets.len()).expect("no test makes a vector of 2^30 octets");
        match length {
            0..64 => self.0.push(length as u8),
            64..16_384 => self.0.extend_from_slice(&(length as u16 | 0x4000).to_be_bytes()),
            _ => self.0.extend_from_slice(&(length | 0x8000_0000).to_be_bytes()),
        }
        self.raw(octets)
    }

    /// A vector of 16-bit numbers.
    pub(super) fn u16_vector(self, values: &[u16]) -> Self {
        let octets: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
        self.vector(&octets)
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// SHA-256.
pub(super) fn hash(octets: &[u8]) -> [u8; 32] {
    Sha256::digest(octets).into()
}

/// RefHash (RFC 9420 §5.2).
pub(super) fn ref_hash(label: &str, value: &[u8]) -> [u8; 32] {
    hash(&Encoder::new().vector(format!("MLS 1.0 {label}").as_bytes()).vector(value).finish())
}

/// SignWithLabel (RFC 9420 §5.1.2).
pub(super) fn sign_with_label(key: &SigningKey, label: &str, content: &[u8]) -> [u8; 64] {
    let content = Encoder::new().vector(format!("MLS 1.0 {label}").as_bytes()).vector(content).finish();
    key.sign(&content).to_bytes()
}
