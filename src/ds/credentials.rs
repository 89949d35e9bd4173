//! Whose leaf is it: every credential is checked when its leaf enters (R8).

use super::{Hub, Refusal};
use crate::base::rule::{answer, on};
use crate::base::{ClientUri, Domain};
use crate::identity::chain::{AsRoots, ClientIdentity, claimed_client, validate_client_chain};
use crate::identity::{ChainError, RevokedKeys};
use crate::mls::credential::LeafClaim;
use crate::wire::ds::ClientQueueConfig;
use crate::wire::{ErrorCode, Rejection};

use super::state::QueueAddress;
use crate::base::limits::QUEUE_INFORMATION_BYTES_MAX;

/// What a credential of `domain` is checked against; it is asked for where it is not known, or no longer fresh (X1).
pub(super) fn known<'a>(hub: &Hub<'a>, domain: &Domain) -> Result<(&'a AsRoots, &'a RevokedKeys), Refusal> {
    match (hub.roots.get(domain), hub.revoked.get(domain)) {
        (Some(roots), Some(revoked)) if revoked.is_fresh(hub.now) => Ok((roots, revoked)),
        _ => Err(Refusal::NeedsRoots(vec![domain.clone()])),
    }
}

/// A chain may lead to a root that its domain has introduced since it was asked last (X2): then it is asked again, and the request
/// decided anew.
pub(super) fn perhaps_unknown_root(hub: &Hub<'_>, roots: &AsRoots, error: &ChainError) -> Option<Refusal> {
    let ask = error.may_be_of_an_unknown_root() && roots.may_be_outdated(hub.now);
    ask.then(|| Refusal::NeedsRoots(vec![roots.domain().clone()]))
}

/// DS-020 (R8): the chain leads to an AS root of the domain in the client's name, is valid now, and certifies the leaf's key.
pub(super) fn identify(hub: &Hub<'_>, claim: &LeafClaim) -> Result<ClientIdentity, Refusal> {
    let refused = || Rejection::from(answer("DS-020", ErrorCode::InvalidCredential, ErrorCode::Internal));
    let claimed = claimed_client(&claim.chain).map_err(|_| refused())?;
    let (roots, revoked) = known(hub, claimed.domain())?;
    let identity = match validate_client_chain(&claim.chain, roots, hub.now) {
        Ok(identity) => identity,
        Err(error) => return Err(perhaps_unknown_root(hub, roots, &error).unwrap_or_else(|| refused().into())),
    };
    if identity.public_key != claim.signature_key {
        return Err(refused().into());
    }
    // DS-019 (X1): no leaf enters with a revoked key, its own or its user's.
    if on("DS-019") && revoked.revokes(&identity) {
        return Err(ErrorCode::InvalidCredential.into());
    }
    Ok(identity)
}

/// DS-021: that holds for every leaf that enters; roots that are not pinned yet are asked for, all at once.
pub(super) fn identify_all<'a>(
    hub: &Hub<'_>,
    claims: impl IntoIterator<Item = &'a LeafClaim>,
) -> Result<Vec<ClientIdentity>, Refusal> {
    let mut missing: Vec<Domain> = Vec::new();
    let mut identities = Vec::new();
    for claim in claims {
        match identify(hub, claim) {
            Ok(identity) => identities.push(identity),
            Err(Refusal::NeedsRoots(domains)) if on("DS-021") => missing.extend(domains),
            Err(rejected) => return Err(rejected),
        }
    }
    missing.sort();
    missing.dedup();
    if missing.is_empty() { Ok(identities) } else { Err(Refusal::NeedsRoots(missing)) }
}

/// DS-022 (S15): the queue is in the domain of the leaf's credential, and its information is there and not too large.
pub(super) fn queue_of(client: &ClientUri, config: &ClientQueueConfig) -> Result<QueueAddress, Rejection> {
    let domain = Domain::from_bytes(&config.qs_domain)
        .map_err(|_| Rejection::from(answer("DS-022", ErrorCode::InvalidQueueConfig, ErrorCode::Internal)))?;
    let information = config.client_queue_information.to_vec();
    let bounded = !information.is_empty() && information.len() <= QUEUE_INFORMATION_BYTES_MAX;
    if on("DS-022") && (&domain != client.domain() || !bounded) {
        return Err(ErrorCode::InvalidQueueConfig.into());
    }
    Ok(QueueAddress { domain, information })
}
