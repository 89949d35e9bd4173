//! Who signed a request, and through whom it came (S2, S3, S16).

use super::credentials::{known, perhaps_unknown_root};
use super::{GroupState, Hub, Refusal};
use crate::base::rule::{answer, on};
use crate::base::{ClientUri, Domain, UserUri};
use crate::identity::chain::{claimed_user, validate_user_chain};
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

/// A request that was signed with the key of a user certificate (S20).
#[derive(Clone, Debug)]
pub struct AuthenticatedUser {
    /// The user.
    pub user: UserUri,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub key_hash: [u8; 32],
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
    /// A user, who need not be a member.
    User(AuthenticatedUser),
}

impl Sender {
    /// The key that verified.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Member(member) => &member.key,
            Self::Former { key, .. } => key,
            Self::User(user) => &user.key,
        }
    }

    /// The member that asks as one, by its leaf.
    pub(super) fn leaf(&self) -> Result<&Authenticated, Rejection> {
        match self {
            // DS-018 (S2): the sender id is of a kind that may ask this.
            Self::Member(member) if !on("DS-018") || !member.as_joiner => Ok(member),
            Self::Former { refused, .. } => Err((*refused).into()),
            _ => Err(wrong_kind()),
        }
    }

    /// The pending joiner that asks by its KeyPackageRef.
    pub(super) fn joiner(&self) -> Result<&Authenticated, Rejection> {
        match self {
            Self::Member(member) if !on("DS-018") || member.as_joiner => Ok(member),
            Self::Former { refused, .. } => Err((*refused).into()),
            _ => Err(wrong_kind()),
        }
    }

    /// The user that asks by its key's hash.
    pub(super) fn user(&self) -> Result<&AuthenticatedUser, Rejection> {
        match self {
            Self::User(user) => Ok(user),
            Self::Former { refused, .. } => Err((*refused).into()),
            Self::Member(_) => Err(wrong_kind()),
        }
    }
}

/// DS-018 (S2): the sender id is of a kind that may ask this.
fn wrong_kind() -> Rejection {
    answer("DS-018", ErrorCode::NotAuthorized, ErrorCode::Internal).into()
}

/// Verifies a request to an existing group. `through` is the authenticated domain of the node that sent it: our own for our
/// clients, a peer's for a proxied one.
pub fn authenticate(
    hub: &Hub<'_>,
    state: &GroupState,
    request: &ClientRequest,
    message: &DsMessage,
    through: &Domain,
) -> Result<Sender, Refusal> {
    let sender = identify(hub, state, request, message, through);
    // DS-017 (S7): a deleted group takes nothing. Whoever repeats what was accepted before still finds its answer; nobody else has
    // anything to ask of a group that is gone.
    if state.head.closed_at_ms.is_some() && on("DS-017") {
        return sender.map_err(|_| ErrorCode::GroupDeleted.into());
    }
    sender
}

fn identify(
    hub: &Hub<'_>,
    state: &GroupState,
    request: &ClientRequest,
    message: &DsMessage,
    through: &Domain,
) -> Result<Sender, Refusal> {
    let (leaf_index, as_joiner) = match &message.sender_id {
        DsSenderId::LeafIndex(index) => (*index, false),
        DsSenderId::KeyPackageRef(reference) => {
            let joiner = state.head.joiners.iter().find(|joiner| joiner.key_package_ref[..] == reference[..]);
            (joiner.ok_or(ErrorCode::NotAuthorized)?.leaf_index, true)
        }
        DsSenderId::UserKeyHash(_) => return Ok(Sender::User(authenticate_user(hub, request, message, through)?)),
    };
    // DS-010: the leaf that a request names is a member's.
    let Some(member) = state.members.get(&leaf_index) else {
        let refused = answer("DS-010", ErrorCode::NotAuthorized, ErrorCode::Internal);
        return former(state, request, leaf_index, through, refused);
    };
    // DS-011 (S3): the request is signed by the key that its sender id names.
    if on("DS-011") && !request.is_signed_by(&member.signature_key) {
        return former(state, request, leaf_index, through, ErrorCode::BadSignature);
    }
    // DS-012: a domain speaks for its own users only.
    if on("DS-012") && member.client.domain() != through {
        return Err(ErrorCode::WrongOrigin.into());
    }
    let key = member.signature_key.clone();
    Ok(Sender::Member(Authenticated { leaf_index, client: member.client.clone(), as_joiner, key }))
}

/// As [`identify`] by the keys that the leaf had before; `refused` when it is none of them.
fn former(
    state: &GroupState,
    request: &ClientRequest,
    leaf_index: u32,
    through: &Domain,
    refused: ErrorCode,
) -> Result<Sender, Refusal> {
    let mut of_leaf = state.head.former_keys.iter().rev().filter(|former| former.leaf_index == leaf_index);
    match of_leaf.find(|former| former.client.domain() == through && request.is_signed_by(&former.key)) {
        Some(former) => Ok(Sender::Former { key: former.key.clone(), refused }),
        None => Err(refused.into()),
    }
}

/// Verifies a request of a user, by the certificate that it brings (S20). Needs no group: this is all that list_groups is asked.
pub fn authenticate_user(
    hub: &Hub<'_>,
    request: &ClientRequest,
    message: &DsMessage,
    through: &Domain,
) -> Result<AuthenticatedUser, Refusal> {
    let DsSenderId::UserKeyHash(hash) = &message.sender_id else { return Err(wrong_kind().into()) };
    let chain: Vec<Vec<u8>> = message.certificates.iter().map(|certificate| certificate.to_vec()).collect();
    // DS-015 (S20): the user's certificate leads to an AS root of its domain and is valid now.
    let invalid = || Rejection::from(answer("DS-015", ErrorCode::InvalidCredential, ErrorCode::Internal));
    let claimed = claimed_user(&chain).map_err(|_| invalid())?;
    // DS-012: a domain speaks for its own users only. Asked first: a name that somebody merely claims must not make this hub look for that
    // domain.
    if on("DS-012") && claimed.domain() != through {
        return Err(ErrorCode::WrongOrigin.into());
    }
    let (roots, revoked) = known(hub, claimed.domain())?;
    let identity = match validate_user_chain(&chain, roots, hub.now) {
        Ok(identity) => identity,
        Err(error) => return Err(perhaps_unknown_root(hub, roots, &error).unwrap_or_else(|| invalid().into())),
    };
    // DS-014 (S2): user_key_hash is that of the certificate beside it.
    if on("DS-014") && identity.user_key_hash[..] != hash[..] {
        return Err(ErrorCode::NotAuthorized.into());
    }
    // DS-011 (S3): the request is signed by the key that its sender id names.
    if on("DS-011") && !request.is_signed_by(&identity.public_key) {
        return Err(ErrorCode::BadSignature.into());
    }
    // DS-016 (X1): a revoked user key asks nothing.
    if on("DS-016") && revoked.contains(&identity.user_key_hash) {
        return Err(ErrorCode::InvalidCredential.into());
    }
    Ok(AuthenticatedUser { user: identity.user, key_hash: identity.user_key_hash, key: identity.public_key })
}
