//! Who signed a request, and through whom it came (S2, S3, S16).

use super::GroupState;
use crate::base::{ClientUri, Domain};
use crate::wire::ds::{DsMessage, DsSenderId};
use crate::wire::{ClientRequest, ErrorCode, Rejection};

/// A request whose signature a member's leaf key (or a pending joiner's) verified. Decisions take nothing less.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// The sender's leaf.
    pub leaf_index: u32,
    /// The sender.
    pub client: ClientUri,
    /// The sender named its KeyPackage: it has not spoken as a member yet.
    pub as_joiner: bool,
    /// The key that verified; with the request id it names the stored answer.
    pub key: Vec<u8>,
    /// The key is the one that the leaf had before: good for repeating the request that replaced it, and for nothing else.
    pub repeats_only: bool,
}

/// Verifies a request to an existing group. `through` is the authenticated domain of the node that sent it: our own for our
/// clients, a peer's for a proxied one.
pub fn authenticate(
    state: &GroupState,
    request: &ClientRequest,
    message: &DsMessage,
    through: &Domain,
) -> Result<Authenticated, Rejection> {
    let (leaf_index, as_joiner) = match &message.sender_id {
        DsSenderId::LeafIndex(index) => (*index, false),
        DsSenderId::KeyPackageRef(reference) => {
            let joiner = state.head.joiners.iter().find(|joiner| joiner.key_package_ref[..] == reference[..]);
            (joiner.ok_or(ErrorCode::NotAuthorized)?.leaf_index, true)
        }
        // User-level requests are a later part.
        DsSenderId::UserKeyHash(_) => return Err(ErrorCode::Unsupported.into()),
    };
    // DS-010: the leaf is a member's.
    let member = state.members.get(&leaf_index).ok_or(ErrorCode::NotAuthorized)?;
    // DS-011 (S3): signed by that leaf's key.
    let previous = member.previous_key.as_ref().filter(|key| request.is_signed_by(key));
    let key = match previous {
        None if request.is_signed_by(&member.signature_key) => &member.signature_key,
        None => return Err(ErrorCode::BadSignature.into()),
        Some(key) => key,
    };
    // DS-012: a domain speaks for its own users only.
    if member.client.domain() != through {
        return Err(ErrorCode::NotAuthorized.into());
    }
    let repeats_only = previous.is_some();
    Ok(Authenticated { leaf_index, client: member.client.clone(), as_joiner, key: key.clone(), repeats_only })
}
