//! Requests between nodes (C3, C4, S14–S16, X7, X8, X10), on a connection whose both ends are authenticated.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque, encode};
use super::error::Rejection;
use super::info::DomainInfo;
use super::qs::{Delivery, QueueingServiceResponse};
use crate::base::crypto::{SigningKey, verify_with_label};
use crate::base::ids::Incarnation;

const STATUS_LABEL: &str = "MIMI credential status";

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
    /// As asked: a text for people.
    ProbeBack(Opaque),
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
    pub versions: List<u16>,
    /// What it accepts.
    pub limits: PeerLimits,
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

impl CredentialStatus {
    /// What is signed: the encoding up to where the signature begins.
    fn signed_octets(&self) -> Vec<u8> {
        let unsigned = Self { signature: Opaque::default(), ..self.clone() };
        let mut octets = encode(&unsigned);
        // An empty vector is a single octet.
        octets.pop();
        octets
    }

    /// The list with the signature of an AS root's key.
    #[must_use]
    pub fn sign(self, key: &SigningKey) -> Self {
        let signature = key.sign_with_label(STATUS_LABEL, &self.signed_octets()).into();
        Self { signature, ..self }
    }

    /// Whether `public_key` (an AS root's, Ed25519) signed this list.
    #[must_use]
    pub fn is_signed_by(&self, public_key: &[u8]) -> bool {
        verify_with_label(public_key, STATUS_LABEL, &self.signed_octets(), &self.signature)
    }
}
