//! Requests between nodes (C3, C4, S14–S16, X7, X8, X10), on a connection whose both ends are authenticated.

use std::fmt;

use serde::{Deserialize, Serialize};
use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque, decode, encode};
use super::error::{ErrorCode, Rejection};
use super::info::DomainInfo;
use super::probe::ProbeReport;
use super::qs::{Delivery, QueueingServiceResponse};
use super::signed::signed_by_as_root;
use crate::base::crypto::{SigningKey, verify_with_label};
use crate::base::ids::Incarnation;

const STATUS_LABEL: &str = "MIMI credential status";

/// The major version that the ALPN `mimi-fed/1` stands for.
pub const MAJOR: u8 = 1;

/// The versions of the protocol between nodes that this node speaks, best first.
pub const PROTOCOL_VERSIONS: [ProtocolVersion; 1] = [ProtocolVersion { major: MAJOR, minor: 0 }];

/// How many types of [`PeerRequest`] this version knows; their numbers begin at 0.
pub const PEER_REQUEST_TYPES: u8 = 7;

/// A request of one node to another.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum PeerRequest {
    /// The first request on a connection (X7).
    #[tls_codec(discriminant = 0)]
    Hello(Hello),
    /// An encoded ClientRequest whose destination is the receiver (S16).
    Proxy(Opaque),
    /// Frames of several lanes (S14).
    Lanes(List<LaneBatch>),
    /// The receiver's own [`DomainInfo`].
    DomainInfo,
    /// Revoked keys (X1).
    CredentialStatus(CredentialStatusRequest),
    /// Connect back and tell what you saw (X10).
    ProbeBack,
    /// The sender's own list has changed (X1): to the hubs that deliver to its users.
    CredentialStatusPush(CredentialStatus),
}

impl PeerRequest {
    /// Reads a request. One of a type that only a later minor version has is `unsupported`, which its sender may count on;
    /// whatever else cannot be read is `malformed`.
    pub fn read(frame: &[u8]) -> Result<Self, Rejection> {
        match frame.first() {
            Some(later) if *later >= PEER_REQUEST_TYPES => Err(ErrorCode::Unsupported.into()),
            _ => Ok(decode(frame)?),
        }
    }
}

/// The answer to a [`PeerRequest`].
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum PeerResponse {
    /// The receiver's own hello.
    #[tls_codec(discriminant = 0)]
    Hello(Hello),
    /// The encoded Response, to be handed on unchanged.
    Proxy(Opaque),
    /// One answer per lane, in the order of the batches.
    Lanes(List<LaneAnswer>),
    /// As asked.
    DomainInfo(DomainInfo),
    /// As asked.
    CredentialStatus(CredentialStatus),
    /// As asked: what came of connecting back.
    ProbeBack(ProbeReport),
    /// The request as a whole was refused.
    Error(Rejection),
    /// Done, nothing more to say: for `credential_status_push`.
    Done,
}

/// `hello` (X7), from both sides, checked against the certificate.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Hello {
    /// The sender's domain: the one of this connection.
    pub domain: Opaque,
    /// Protocol versions it speaks, best first.
    pub versions: List<ProtocolVersion>,
    /// What it accepts.
    pub limits: PeerLimits,
    /// Its clock, in milliseconds since 1970.
    pub server_time_ms: u64,
    /// What later minor versions say in `hello`. Of unknown types nothing is taken.
    pub extensions: List<HelloExtension>,
}

/// A version of the protocol between nodes. Nodes of different majors do not understand each other; a minor adds what others may
/// pass over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[serde(try_from = "String", into = "String")]
pub struct ProtocolVersion {
    /// As in the ALPN.
    pub major: u8,
    /// Counts additions.
    pub minor: u8,
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<ProtocolVersion> for String {
    fn from(version: ProtocolVersion) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for ProtocolVersion {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let numbers = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        numbers.map(|(major, minor)| Self { major, minor }).ok_or("want a version such as 1.0")
    }
}

impl ProtocolVersion {
    /// The version that a connection of [`MAJOR`] has: the highest that both sides speak.
    pub fn in_common(ours: &[Self], theirs: &[Self]) -> Option<Self> {
        let common = ours.iter().filter(|version| version.major == MAJOR && theirs.contains(version));
        common.max_by_key(|version| version.minor).copied()
    }
}

/// An addition to `hello`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct HelloExtension {
    /// Which; none is defined so far.
    pub extension_type: u16,
    /// By type.
    pub data: Opaque,
}

/// What the sender of a `hello` accepts.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct PeerLimits {
    /// The largest frame, in octets without its length prefix.
    pub frame_bytes_max: u32,
    /// The most frames in one `lanes` request.
    pub lane_frames_max: u32,
}

/// Frames of one lane: (hub, remote domain, group) in one incarnation (X8).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct LaneBatch {
    /// The group; must be of the sending domain.
    pub group_id: Opaque,
    /// The lane's life.
    pub incarnation: Incarnation,
    /// Frames in strict order.
    pub frames: List<LaneFrame>,
}

/// The draft's QueueingServiceRequest for all of a message's recipients in one domain (S14).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct LaneFrame {
    /// 1, 2, 3, … without gaps in each incarnation.
    pub lane_sequence: u64,
    /// A Commit's or Welcome's new epoch; else the epoch of the message.
    pub epoch: u64,
    /// client_queue_information of each recipient.
    pub recipients: List<Opaque>,
    /// The message, once.
    pub delivery: Delivery,
}

/// What came of one [`LaneBatch`].
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct LaneAnswer {
    /// The batch's group.
    pub group_id: Opaque,
    /// The batch's incarnation.
    pub incarnation: Incarnation,
    /// What came of it.
    pub result: LaneResult,
}

/// `LaneAnswer::result`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum LaneResult {
    /// All frames are in their queues, durably.
    #[tls_codec(discriminant = 0)]
    Accepted(List<FrameAnswer>),
    /// The receiver has not seen what lies before; it wants this lane_sequence next.
    Gap(u64),
    /// The lane as a whole was refused.
    Refused(Rejection),
}

/// The answers for one frame.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct FrameAnswer {
    /// The frame.
    pub lane_sequence: u64,
    /// One per recipient, in their order.
    pub responses: List<QueueingServiceResponse>,
}

/// `credential_status` asks for what came after a known version (X1).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct CredentialStatusRequest {
    /// The newest version the asker has; 0 for none.
    pub known_version: u64,
}

/// `credential_status` (X1): a numbered list of revoked keys, signed by the AS.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct CredentialStatus {
    /// The list's domain.
    pub domain: Opaque,
    /// Grows with each change.
    pub version: u64,
    /// After this, in milliseconds since 1970, ask again.
    pub next_update_ms: u64,
    /// SHA-256 of revoked keys' SubjectPublicKeyInfo.
    pub revoked: List<Opaque>,
    /// SignWithLabel(AS root key, "MIMI credential status", all of the above).
    pub signature: Opaque,
}

signed_by_as_root!(CredentialStatus, STATUS_LABEL);

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(text: &[(u8, u8)]) -> Vec<ProtocolVersion> {
        text.iter().map(|(major, minor)| ProtocolVersion { major: *major, minor: *minor }).collect()
    }

    #[test]
    fn the_highest_version_in_common_is_the_connections() {
        for (ours, theirs, common) in [
            (&[(1, 0)][..], &[(1, 0)][..], Some("1.0")),
            (&[(1, 1), (1, 0)], &[(1, 0)], Some("1.0")),
            (&[(1, 0)], &[(1, 9), (1, 3), (1, 0)], Some("1.0")),
            // Whatever order they are listed in.
            (&[(1, 0), (1, 2), (1, 1)], &[(1, 1), (1, 0), (1, 2)], Some("1.2")),
            (&[(1, 2)], &[(1, 1), (1, 0)], None),
            // Of another major nothing is spoken on a connection of this ALPN.
            (&[(2, 0), (1, 0)], &[(2, 0), (1, 0)], Some("1.0")),
            (&[(2, 0)], &[(2, 0)], None),
            (&[(1, 0)], &[], None),
        ] {
            let found = ProtocolVersion::in_common(&versions(ours), &versions(theirs));
            assert_eq!(found.map(|version| version.to_string()).as_deref(), common, "{ours:?} {theirs:?}");
            assert_eq!(found, ProtocolVersion::in_common(&versions(theirs), &versions(ours)), "both sides find the same");
        }
    }

    #[test]
    fn a_request_of_a_later_version_is_unsupported_and_garbage_is_malformed() {
        let code = |frame: &[u8]| PeerRequest::read(frame).map_err(|rejection| rejection.code);
        assert_eq!(code(&[PEER_REQUEST_TYPES]), Err(ErrorCode::Unsupported));
        assert_eq!(code(&[0xff, 1, 2, 3]), Err(ErrorCode::Unsupported));
        assert_eq!(code(&[]), Err(ErrorCode::Malformed));
        assert_eq!(code(&[3, 0]), Err(ErrorCode::Malformed), "an octet too many");
        assert_eq!(code(&[3]), Ok(PeerRequest::DomainInfo));
        // The type before the first unknown one is known: it fails for want of a body only.
        assert_eq!(code(&[PEER_REQUEST_TYPES - 1]), Err(ErrorCode::Malformed));
    }
}
