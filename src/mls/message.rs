//! Reading MLSMessages as far as a server may: framing, never content.

use openmls::prelude::{ContentType, MlsMessageBodyIn, MlsMessageIn, ProtocolMessage, PublicMessageIn, Sender, Welcome};
use tls_codec::Deserialize as _;

use crate::wire::{ErrorCode, Rejection};

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

/// Reads the frame of an application message; a handshake in a PrivateMessage is refused (R1).
pub fn application_frame(octets: &[u8]) -> Result<ApplicationFrame, Rejection> {
    match read(octets, ErrorCode::InvalidMessage)? {
        MlsMessageBodyIn::PrivateMessage(message) => {
            let message = ProtocolMessage::PrivateMessage(message);
            if message.content_type() != ContentType::Application {
                return Err(ErrorCode::InvalidMessage.into());
            }
            Ok(ApplicationFrame { group_id: message.group_id().as_slice().to_vec(), epoch: message.epoch().as_u64() })
        }
        _ => Err(ErrorCode::InvalidMessage.into()),
    }
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
}

/// Reads a Commit.
///
/// DS-055 (R1): a Commit is a PublicMessage of a member or a new member, with content type commit.
pub fn framed_commit(octets: &[u8]) -> Result<FramedCommit, Rejection> {
    let MlsMessageBodyIn::PublicMessage(message) = read(octets, ErrorCode::InvalidCommit)? else {
        return Err(ErrorCode::InvalidCommit.into());
    };
    let committer = match message.sender() {
        Sender::Member(index) => Some(index.u32()),
        Sender::NewMemberCommit => None,
        Sender::External(_) | Sender::NewMemberProposal => return Err(ErrorCode::InvalidCommit.into()),
    };
    if message.content_type() != ContentType::Commit {
        return Err(ErrorCode::InvalidCommit.into());
    }
    Ok(FramedCommit { group_id: message.group_id().as_slice().to_vec(), epoch: message.epoch().as_u64(), committer, message })
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
