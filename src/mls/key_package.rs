//! KeyPackages as a server sees them (R7, S6).

use openmls::prelude::{Capabilities, ExtensionType, KeyPackage, MlsMessageBodyIn, ProposalType, ProtocolVersion};

use super::credential::LeafClaim;
use super::message::read;
use super::provider::VerifyOnly;
use super::{CIPHERSUITE, QUEUE_CONFIG_EXTENSION};
use crate::base::UnixMillis;
use crate::base::limits::KEY_PACKAGE_BYTES_MAX;
use crate::base::rule::{answer, on};
use crate::wire::ds::ClientQueueConfig;
use crate::wire::{ErrorCode, Rejection, decode};

/// A KeyPackage whose signatures, lifetime, extensions and capabilities are in order. Its credential is still a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidKeyPackage {
    /// KeyPackageRef (RFC 9420 §5.2).
    pub reference: Vec<u8>,
    /// Who it says it is of.
    pub claim: LeafClaim,
    /// Where its client wants its messages, when the extension is there.
    pub queue_config: Option<ClientQueueConfig>,
    /// Whether it may be handed out more than once.
    pub last_resort: bool,
    /// The end of its lifetime.
    pub not_after: UnixMillis,
}

/// Validates the MLSMessage of a KeyPackage (RFC 9420 §10.1). OpenMLS compares the lifetime with the system's clock.
pub fn validate_key_package(octets: &[u8]) -> Result<ValidKeyPackage, Rejection> {
    // DS-027: a KeyPackage is not larger than one can be.
    if on("DS-027") && octets.len() > KEY_PACKAGE_BYTES_MAX {
        return Err(ErrorCode::TooLarge.into());
    }
    // DS-030 (S6): the KeyPackage is valid.
    let refused = || Rejection::from(answer("DS-030", ErrorCode::InvalidKeyPackage, ErrorCode::Internal));
    let MlsMessageBodyIn::KeyPackage(key_package) = read(octets, refused().code)? else { return Err(refused()) };
    let key_package = key_package.validate(&VerifyOnly, ProtocolVersion::Mls10).map_err(|_| refused())?;
    examine(&key_package)
}

/// What the server needs to know of a KeyPackage that OpenMLS has validated, and the checks OpenMLS leaves to it.
pub(super) fn examine(key_package: &KeyPackage) -> Result<ValidKeyPackage, Rejection> {
    let refused = || Rejection::from(ErrorCode::InvalidKeyPackage);
    // DS-046 (R3): capabilities list no default extension or proposal type.
    if on("DS-046") && !capabilities_are_interoperable(key_package.leaf_node().capabilities()) {
        return Err(refused());
    }
    if u16::from(key_package.ciphersuite()) != CIPHERSUITE {
        return Err(refused());
    }
    // DS-029 (R7): a KeyPackage's lifetime is of acceptable length (RFC 9420 §7.2); OpenMLS knows the limit and does not ask.
    if on("DS-029") && !key_package.life_time().has_acceptable_range() {
        return Err(refused());
    }
    let reference = key_package.hash_ref(&VerifyOnly).map_err(|_| refused())?;
    let queue_config = match key_package.extensions().unknown(QUEUE_CONFIG_EXTENSION) {
        Some(extension) => Some(decode::<ClientQueueConfig>(&extension.0).map_err(|_| refused())?),
        None => None,
    };
    Ok(ValidKeyPackage {
        reference: reference.as_slice().to_vec(),
        claim: LeafClaim::of(key_package.leaf_node())?,
        queue_config,
        last_resort: key_package.last_resort(),
        not_after: UnixMillis(key_package.life_time().not_after().saturating_mul(1000)),
    })
}

/// Whether a leaf's capabilities list no default type (RFC 9420 §7.2): other libraries refuse a leaf that does, and then the
/// whole group's tree.
pub(super) fn capabilities_are_interoperable(capabilities: &Capabilities) -> bool {
    let extension_is_default = |kind: &ExtensionType| matches!(u16::from(*kind), 1..=5);
    let proposal_is_default = |kind: &ProposalType| matches!(u16::from(*kind), 1..=7);
    !capabilities.extensions().iter().any(extension_is_default) && !capabilities.proposals().iter().any(proposal_is_default)
}
