//! create_group (S5, S6).

use super::credentials::{identify, queue_of};
use super::leaves::member;
use super::state::Head;
use super::{Hub, Outcome, Refusal, StateChange};
use crate::base::limits::{GROUP_INFO_OVERHEAD_BYTES_MAX, LEAF_NODE_BYTES_MAX};
use crate::base::rule::{answer, on};
use crate::base::{Domain, GroupUri};
use crate::identity::chain::claimed_client;
use crate::mls::Tree;
use crate::mls::key_package::validate_key_package;
use crate::wire::ds::{CreateGroup, DsMessage, DsSenderId};
use crate::wire::{ClientRequest, ErrorCode, Reply};

/// A new group: its state and what is written of it.
pub struct Created {
    /// The group.
    pub uri: GroupUri,
    /// Its tree.
    pub tree: Tree,
    /// The tree as a record.
    pub snapshot: Vec<u8>,
    /// Members, head and GroupInfo.
    pub outcome: Outcome,
    /// The creator's leaf key; with the request id it names the stored answer.
    pub sender_key: Vec<u8>,
}

/// Decides a create_group. That the group id is unused is for the caller and the transaction to check.
pub fn decide(
    hub: &Hub<'_>,
    request: &ClientRequest,
    message: &DsMessage,
    body: &CreateGroup,
    through: &Domain,
) -> Result<Created, Refusal> {
    // DS-032 (S6): the group id is a group URI of this domain.
    let uri =
        GroupUri::from_bytes(&body.group_id).map_err(|_| answer("DS-032", ErrorCode::InvalidGroupId, ErrorCode::Internal))?;
    if on("DS-032") && uri.hub() != hub.domain {
        return Err(ErrorCode::InvalidGroupId.into());
    }
    let info_bytes_max = hub.limits.context_extensions_bytes_max + GROUP_INFO_OVERHEAD_BYTES_MAX + LEAF_NODE_BYTES_MAX;
    // DS-058: a GroupInfo is not larger than one can be, before anything is decoded.
    if on("DS-058") && body.group_info.len() > info_bytes_max {
        return Err(ErrorCode::TooLarge.into());
    }
    let key_package = validate_key_package(&body.key_package)?;
    let is_named =
        matches!(&message.sender_id, DsSenderId::KeyPackageRef(reference) if reference[..] == key_package.reference[..]);
    // DS-031 (S2): the sender id names this KeyPackage.
    if on("DS-031") && !is_named {
        return Err(ErrorCode::NotAuthorized.into());
    }
    let sender_key = key_package.claim.signature_key.clone();
    // DS-033 (S3): the request is signed by the KeyPackage's leaf key.
    if on("DS-033") && !request.is_signed_by(&sender_key) {
        return Err(ErrorCode::BadSignature.into());
    }
    // DS-012: a domain speaks for its own users only. Compared first: a name that somebody merely claims must not make this hub look for that domain.
    if on("DS-012") && claimed_client(&key_package.claim.chain).is_ok_and(|claimed| claimed.domain() != through) {
        return Err(ErrorCode::WrongOrigin.into());
    }
    let identity = identify(hub, &key_package.claim)?;
    // DS-012: a domain speaks for its own users only.
    if on("DS-012") && identity.client.domain() != through {
        return Err(ErrorCode::WrongOrigin.into());
    }
    let created = Tree::create(&body.group_id, &body.group_info, hub.context_rules())?;
    // DS-035 (S6): its only leaf has the KeyPackage's credential and key.
    if on("DS-035") && created.leaf != key_package.claim {
        return Err(ErrorCode::InvalidGroupInfo.into());
    }
    let queue = queue_of(&identity.client, &body.client_queue_config)?;
    let creator = member(hub, identity, queue, 0, created.not_after.0);
    let head = Head {
        join_policy: created.context.join_policy,
        external_sender_index: created.context.external_sender_index,
        ..Head::default()
    };
    let change =
        StateChange { set: vec![(0, creator)], head, group_info: Some(body.group_info.to_vec()), ..StateChange::default() };
    Ok(Created {
        uri,
        tree: created.tree,
        snapshot: created.snapshot,
        outcome: Outcome { reply: Reply::Done, change: Some(change), fan_out: Vec::new() },
        sender_key,
    })
}
