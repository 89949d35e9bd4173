//! Standalone proposals: those of members, and the Removes that the DS signs itself (S12, R10: signing is no part of the MLS
//! provider).

use openmls::prelude::{ContentType, MlsMessageBodyIn, PublicMessageIn, Sender};

use super::message::read;
use crate::base::crypto::SigningKey;
use crate::base::rule::answer;
use crate::wire::{ErrorCode, Opaque, Rejection, encode};

/// RFC 9420 §6: `mls10`, `mls_public_message`, `SenderType external`, `ContentType proposal`; §17.4: `remove`.
const MLS_10: [u8; 2] = [0, 1];
const PUBLIC_MESSAGE: [u8; 2] = [0, 1];
const SENDER_EXTERNAL: u8 = 2;
const CONTENT_PROPOSAL: u8 = 2;
const PROPOSAL_REMOVE: [u8; 2] = [0, 3];

/// The MLSMessage of an external Remove of `leaf_index` (RFC 9420 §12.1.8), signed by the DS's key. `sender_index`: its place in
/// external_senders.
pub fn external_remove(key: &SigningKey, group_id: &[u8], epoch: u64, sender_index: u32, leaf_index: u32) -> Vec<u8> {
    // version, wire_format, FramedContent: the FramedContentTBS of an external sender has no GroupContext behind it.
    let mut octets = [MLS_10, PUBLIC_MESSAGE].concat();
    octets.extend(encode(&Opaque::from(group_id)));
    octets.extend(epoch.to_be_bytes());
    octets.push(SENDER_EXTERNAL);
    octets.extend(sender_index.to_be_bytes());
    octets.extend(encode(&Opaque::default()));
    octets.push(CONTENT_PROPOSAL);
    octets.extend(PROPOSAL_REMOVE);
    octets.extend(leaf_index.to_be_bytes());
    let signature = key.sign_with_label("FramedContentTBS", &octets);
    octets.extend(encode(&Opaque::from(signature)));
    octets
}

/// A member's proposal as it was framed: not yet validated against a group.
pub struct FramedProposal {
    pub(super) message: PublicMessageIn,
    /// MLS group id.
    pub group_id: Vec<u8>,
    /// The epoch it was made in.
    pub epoch: u64,
    /// The proposer's leaf.
    pub proposer: u32,
}

/// Reads a proposal.
///
/// DS-081 (R1): a proposal is a PublicMessage of a member, with content type proposal.
pub fn framed_proposal(octets: &[u8]) -> Result<FramedProposal, Rejection> {
    let refused = || Rejection::from(answer("DS-081", ErrorCode::InvalidProposal, ErrorCode::Internal));
    let MlsMessageBodyIn::PublicMessage(message) = read(octets, ErrorCode::InvalidProposal)? else { return Err(refused()) };
    let Sender::Member(proposer) = message.sender() else { return Err(refused()) };
    if message.content_type() != ContentType::Proposal {
        return Err(refused());
    }
    Ok(FramedProposal {
        group_id: message.group_id().as_slice().to_vec(),
        epoch: message.epoch().as_u64(),
        proposer: proposer.u32(),
        message,
    })
}
