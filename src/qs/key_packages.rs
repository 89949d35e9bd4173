//! Which KeyPackages a client may publish (R7).

use crate::base::limits::{KEY_PACKAGE_REMAINING_MIN, KEY_PACKAGES_PER_CLIENT_MAX};
use crate::base::{Domain, UnixMillis};
use crate::identity::chain::{AsRoots, ClientIdentity, validate_client_chain};
use crate::mls::key_package::validate_key_package;
use crate::wire::keys::PublishKeyPackages;
use crate::wire::{ErrorCode, Opaque, Rejection};

/// A KeyPackage that may be stored and handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedKeyPackage {
    /// KeyPackageRef.
    pub reference: Vec<u8>,
    /// The MLSMessage as the client sent it.
    pub message: Vec<u8>,
    /// Handed out when no other is left, and kept.
    pub last_resort: bool,
    /// From then on it is not handed out.
    pub not_after: UnixMillis,
}

/// Validates what a client publishes. `roots`: this domain's own.
pub fn decide_publish(
    publisher: &ClientIdentity,
    body: &PublishKeyPackages,
    domain: &Domain,
    roots: &AsRoots,
    now: UnixMillis,
) -> Result<Vec<PublishedKeyPackage>, Rejection> {
    // QS-010: at most so many per client.
    if body.key_packages.len() > KEY_PACKAGES_PER_CLIENT_MAX {
        return Err(ErrorCode::TooLarge.into());
    }
    let ordinary = body.key_packages.iter().map(|message| (message, false));
    let last_resort = body.last_resort.iter().map(|message| (message, true));
    ordinary.chain(last_resort).map(|(message, last_resort)| check(publisher, message, last_resort, domain, roots, now)).collect()
}

fn check(
    publisher: &ClientIdentity,
    message: &Opaque,
    last_resort: bool,
    domain: &Domain,
    roots: &AsRoots,
    now: UnixMillis,
) -> Result<PublishedKeyPackage, Rejection> {
    let refused = || Rejection::from(ErrorCode::InvalidKeyPackage);
    // QS-011 (R7): valid as a KeyPackage.
    let key_package = validate_key_package(message)?;
    // QS-012 (R8): the publisher's own.
    let identity =
        validate_client_chain(&key_package.claim.chain, roots, now).map_err(|_| Rejection::from(ErrorCode::InvalidCredential))?;
    if identity.client != publisher.client || identity.public_key != key_package.claim.signature_key {
        return Err(ErrorCode::InvalidCredential.into());
    }
    // QS-013: marked as what it is published as.
    // QS-014 (R7): with enough of its lifetime left.
    if key_package.last_resort != last_resort || key_package.not_after <= now.plus(KEY_PACKAGE_REMAINING_MIN) {
        return Err(refused());
    }
    // QS-015 (S15): it says where its client's messages go, and that is here.
    let config = key_package.queue_config.ok_or(ErrorCode::InvalidQueueConfig)?;
    if config.qs_domain[..] != *domain.as_bytes() {
        return Err(ErrorCode::InvalidQueueConfig.into());
    }
    Ok(PublishedKeyPackage {
        reference: key_package.reference,
        message: message.to_vec(),
        last_resort,
        not_after: key_package.not_after,
    })
}
