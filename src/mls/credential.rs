//! X.509 credentials in MLS leaves (R8, S20): certificates out of a credential, and into one.

use openmls::prelude::{Credential, CredentialType, LeafNode};
use tls_codec::{DeserializeBytes as _, Size as _};

use crate::base::limits::{CERTIFICATE_BYTES_MAX, CHAIN_CERTIFICATES_MAX, LEAF_NODE_BYTES_MAX};
use crate::base::rule::{answer, on};
use crate::wire::{ErrorCode, Opaque, Rejection, encode};

/// Who a leaf says it is. Nothing in here is checked against an AS root yet: that is `ds::credentials`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafClaim {
    /// The leaf's signature key (Ed25519, 32 octets).
    pub signature_key: Vec<u8>,
    /// Certificates (DER), client first, then user.
    pub chain: Vec<Vec<u8>>,
}

impl LeafClaim {
    /// Reads key and chain from a leaf. OpenMLS accepts garbage as a chain; [`certificates`] does not.
    pub(super) fn of(leaf: &LeafNode) -> Result<Self, Rejection> {
        // DS-028: a leaf node is not larger than one needs to be; the tree of all of them has to fit a frame.
        if on("DS-028") && leaf.tls_serialized_len() > LEAF_NODE_BYTES_MAX {
            return Err(ErrorCode::TooLarge.into());
        }
        Ok(Self { signature_key: leaf.signature_key().as_slice().to_vec(), chain: certificates(leaf.credential())? })
    }
}

/// The certificates of an X.509 credential: RFC 9420 §5.3 `Certificate certificates<V>`, whose outer length OpenMLS takes off.
fn certificates(credential: &Credential) -> Result<Vec<Vec<u8>>, Rejection> {
    // DS-026 (R8): a credential is X.509, with a chain of bounded length and size.
    let refused = || Rejection::from(answer("DS-026", ErrorCode::InvalidCredential, ErrorCode::Internal));
    if credential.credential_type() != CredentialType::X509 {
        return Err(refused());
    }
    let mut rest = credential.serialized_content();
    let mut chain = Vec::new();
    while !rest.is_empty() {
        let (certificate, after) = Opaque::tls_deserialize_bytes(rest).map_err(|_| refused())?;
        rest = after;
        chain.push(certificate.into_vec());
        if chain.len() > CHAIN_CERTIFICATES_MAX || chain.last().is_some_and(|last| last.len() > CERTIFICATE_BYTES_MAX) {
            return Err(refused());
        }
    }
    if chain.is_empty() { Err(refused()) } else { Ok(chain) }
}

/// An X.509 credential with these certificates (DER), leaf first.
pub(super) fn x509(chain: &[Vec<u8>]) -> Credential {
    let content = chain.iter().flat_map(|certificate| encode(&Opaque::from(certificate.as_slice()))).collect();
    Credential::new(CredentialType::X509, content)
}
