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
}

/// Who signed a request.
#[derive(Clone, Debug)]
pub enum Sender {
    /// A member, or a pending joiner.
    Member(Authenticated),
    /// Whoever had this key before a Commit removed its leaf or replaced the key: what was signed with it and accepted then may
    /// be repeated; anything else gets this refusal.
    Former {
        /// The key that verified; with the request id it names the stored answer.
        key: Vec<u8>,
        /// The answer to what is no repeat.
        refused: ErrorCode,
    },
}

impl Sender {
    /// The key that verified.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Member(member) => &member.key,
            Self::Former { key, .. } => key,
        }
    }
}

/// Verifies a request to an existing group. `through` is the authenticated domain of the node that sent it: our own for our
/// clients, a peer's for a proxied one.
pub fn authenticate(
    state: &GroupState,
    request: &ClientRequest,
    message: &DsMessage,
    through: &Domain,
) -> Result<Sender, Rejection> {
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
    let Some(member) = state.members.get(&leaf_index) else {
        return former(state, request, leaf_index, through, ErrorCode::NotAuthorized);
    };
    // DS-011 (S3): signed by that leaf's key.
    if !request.is_signed_by(&member.signature_key) {
        return former(state, request, leaf_index, through, ErrorCode::BadSignature);
    }
    // DS-012: a domain speaks for its own users only.
    if member.client.domain() != through {
        return Err(ErrorCode::NotAuthorized.into());
    }
    let key = member.signature_key.clone();
    Ok(Sender::Member(Authenticated { leaf_index, client: member.client.clone(), as_joiner, key }))
}

/// As [`authenticate`] by the keys that the leaf had before; `refused` when it is none of them.
fn former(
    state: &GroupState,
    request: &ClientRequest,
    leaf_index: u32,
    through: &Domain,
    refused: ErrorCode,
) -> Result<Sender, Rejection> {
    let mut of_leaf = state.head.former_keys.iter().rev().filter(|former| former.leaf_index == leaf_index);
    match of_leaf.find(|former| former.client.domain() == through && request.is_signed_by(&former.key)) {
        Some(former) => Ok(Sender::Former { key: former.key.clone(), refused }),
        None => Err(refused.into()),
    }
}
