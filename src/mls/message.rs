//! Reading MLSMessages as far as a server may: framing, never content.

use openmls::prelude::{
    ContentType, MlsMessageBodyIn, MlsMessageIn, ProposalOrRefIn, ProtocolMessage, PublicMessageIn, Sender, Welcome,
};
use tls_codec::{Deserialize as _, DeserializeBytes as _};

use crate::base::rule::{answer, on};
use crate::wire::{ErrorCode, Opaque, Rejection};

/// The frame of an application message (R1): all a server can see of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplicationFrame {
    /// MLS group id.
    pub group_id: Vec<u8>,
    /// The epoch it is encrypted in.
    pub epoch: u64,
}

/// Decodes exactly one MLSMessage.
pub(super) fn read(octets: &[u8], code: ErrorCode) -> Result<MlsMessageBodyIn, Rejection> {
    // The reader form: the other one panics in debug builds on truncated input.
    MlsMessageIn::tls_deserialize_exact(octets).map(MlsMessageIn::extract).map_err(|_| code.into())
}

/// Decodes a handshake in a PublicMessage.
pub(super) fn read_protocol(octets: &[u8]) -> Option<ProtocolMessage> {
    match read(octets, ErrorCode::Internal) {
        Ok(MlsMessageBodyIn::PublicMessage(message)) => Some(ProtocolMessage::from(message)),
        _ => None,
    }
}

/// Reads the frame of an application message.
///
/// DS-061 (R1): it is a PrivateMessage with content type application.
pub fn application_frame(octets: &[u8]) -> Result<ApplicationFrame, Rejection> {
    let refused = || Rejection::from(answer("DS-061", ErrorCode::InvalidMessage, ErrorCode::Internal));
    let MlsMessageBodyIn::PrivateMessage(message) = read(octets, refused().code)? else { return Err(refused()) };
    let message = ProtocolMessage::PrivateMessage(message);
    if on("DS-061") && message.content_type() != ContentType::Application {
        return Err(refused());
    }
    Ok(ApplicationFrame { group_id: message.group_id().as_slice().to_vec(), epoch: message.epoch().as_u64() })
}

/// A Commit as its sender framed it: not yet validated against a group.
pub struct FramedCommit {
    pub(super) message: PublicMessageIn,
    /// MLS group id.
    pub group_id: Vec<u8>,
    /// The epoch it was made in.
    pub epoch: u64,
    /// The committer's leaf; `None` for an external Commit.
    pub committer: Option<u32>,
    /// How many proposals it lists, by value and by reference.
    pub proposals: usize,
}

/// Reads a Commit.
///
/// DS-055 (R1): a Commit is a PublicMessage of a member or a new member, with content type commit.
pub fn framed_commit(octets: &[u8]) -> Result<FramedCommit, Rejection> {
    let refused = || Rejection::from(answer("DS-055", ErrorCode::InvalidCommit, ErrorCode::Internal));
    let MlsMessageBodyIn::PublicMessage(message) = read(octets, refused().code)? else { return Err(refused()) };
    let committer = match message.sender() {
        Sender::Member(index) => Some(index.u32()),
        Sender::NewMemberCommit => None,
        Sender::External(_) | Sender::NewMemberProposal => return Err(refused()),
    };
    if message.content_type() != ContentType::Commit {
        return Err(refused());
    }
    let proposals = listed_proposals(octets, &message).ok_or_else(refused)?;
    let (group_id, epoch) = (message.group_id().as_slice().to_vec(), message.epoch().as_u64());
    Ok(FramedCommit { group_id, epoch, committer, proposals, message })
}

/// How many proposals the Commit lists. OpenMLS keeps that to itself, and drops the second of two that are the same.
fn listed_proposals(octets: &[u8], message: &PublicMessageIn) -> Option<usize> {
    // version, wire_format, group_id, epoch (RFC 9420 §6).
    let (_, rest) = Opaque::tls_deserialize_bytes(octets.get(4..)?).ok()?;
    // SenderType, and a member's leaf_index.
    let sender = if matches!(message.sender(), Sender::Member(_)) { 5 } else { 1 };
    let (_, rest) = Opaque::tls_deserialize_bytes(rest.get(8 + sender..)?).ok()?;
    // content_type; a Commit begins with its proposals.
    let mut content = rest.get(1..)?;
    Vec::<ProposalOrRefIn>::tls_deserialize(&mut content).ok().map(|proposals| proposals.len())
}

/// The KeyPackageRefs that a Welcome is for, in its order (R6).
pub fn welcome_recipients(octets: &[u8]) -> Result<Vec<Vec<u8>>, Rejection> {
    match read(octets, ErrorCode::InvalidWelcome)? {
        MlsMessageBodyIn::Welcome(welcome) => Ok(references(&welcome)),
        _ => Err(ErrorCode::InvalidWelcome.into()),
    }
}

fn references(welcome: &Welcome) -> Vec<Vec<u8>> {
    welcome.secrets().iter().map(|secrets| secrets.new_member().as_slice().to_vec()).collect()
}
