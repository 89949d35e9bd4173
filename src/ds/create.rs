//! create_group (S5, S6).

use super::credentials::{identify, queue_of};
use super::state::Head;
use super::{Hub, Member, Outcome, Refusal, StateChange};
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
    let uri = GroupUri::from_bytes(&body.group_id).map_err(|_| ErrorCode::InvalidGroupId)?;
    if uri.hub() != hub.domain {
        return Err(ErrorCode::InvalidGroupId.into());
    }
    // DS-030 (S6): the KeyPackage is valid.
    let key_package = validate_key_package(&body.key_package)?;
    // DS-031 (S2): the sender named this KeyPackage.
    if !matches!(&message.sender_id, DsSenderId::KeyPackageRef(reference) if reference[..] == key_package.reference[..]) {
        return Err(ErrorCode::NotAuthorized.into());
    }
    let sender_key = key_package.claim.signature_key.clone();
    // DS-033 (S3): signed by the KeyPackage's leaf key.
    if !request.is_signed_by(&sender_key) {
        return Err(ErrorCode::BadSignature.into());
    }
    // Compared first: a name that somebody merely claims must not make this hub look for that domain.
    if claimed_client(&key_package.claim.chain).is_ok_and(|claimed| claimed.domain() != through) {
        return Err(ErrorCode::NotAuthorized.into());
    }
    let identity = identify(hub, &key_package.claim)?;
    // DS-012: a domain speaks for its own users only.
    if identity.client.domain() != through {
        return Err(ErrorCode::NotAuthorized.into());
    }
    // DS-034 (S6): the GroupInfo is valid, of epoch 0, with one leaf and the DS in its external_senders.
    let created = Tree::create(&body.group_id, &body.group_info, hub.external_sender)?;
    // DS-035 (S6): its only leaf has the KeyPackage's credential and key.
    if created.leaf != key_package.claim {
        return Err(ErrorCode::InvalidGroupInfo.into());
    }
    let queue = queue_of(&identity.client, &body.client_queue_config)?;
    let creator = Member { signature_key: sender_key.clone(), client: identity.client, queue, joined_epoch: 0 };
    let head = Head::default();
    let change = StateChange { set: vec![(0, creator)], removed: Vec::new(), head, group_info: Some(body.group_info.to_vec()) };
    Ok(Created {
        uri,
        tree: created.tree,
        snapshot: created.snapshot,
        outcome: Outcome { reply: Reply::Done, change: Some(change), fan_out: Vec::new() },
        sender_key,
    })
}
