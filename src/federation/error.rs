//! [`PeerError`]: why a peer gave no answer, and whether it can have acted on the request.

use std::fmt;
use std::time::Instant;

use quinn::{ConnectionError, ReadError, WriteError};

use crate::base::{Domain, limits};
use crate::transport::{CloseCode, DiscoveryError, FrameError};

/// Why a peer gave no answer; each kind is another thing to do for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The peer's SRV name does not exist.
    NoSuchDomain,
    /// The peer's domain has no SRV record, or its targets no address.
    NoRecords,
    /// The peer's domain says in DNS that it does not federate.
    RefusesFederation,
    /// The name server failed.
    DnsFailure,
    /// The name server did not answer in time.
    DnsTimedOut,
    /// No address of the peer could be connected to, or none is in a family this node has.
    Unreachable,
    /// Every address of the peer is one that this node does not dial (`transport::addresses`).
    ForbiddenAddress,
    /// The peer's node answered that it takes no connection now.
    Refused,
    /// The peer was silent, or its answer took too long.
    TimedOut,
    /// A certificate was refused, ours by the peer or the peer's by us.
    Certificate,
    /// The other side speaks another protocol: no ALPN, or no version in `hello`, in common.
    Protocol,
    /// The `hello`s do not fit, or one names the wrong domain.
    HelloRefused,
    /// The peer's policy, or its view of who we are, does not allow us.
    Denied,
    /// The peer failed lately, for `cause`; nobody tries it before `until`.
    BackingOff {
        /// When it may be tried again.
        until: Instant,
        /// Why it failed last.
        cause: Box<Why>,
    },
    /// An operator of this node has put the peer on hold.
    Held,
    /// An operator of this node does not federate with the peer.
    DeniedHere,
    /// We have used up what the peer allows us, went on, and are refused for a while.
    OverLimits,
    /// The connection ended, or the peer gave up the request, before its answer.
    Closed,
    /// The answer, or the request in the peer's eyes, is over its limit.
    TooLarge,
    /// This node failed, or is shutting down.
    Local,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchDomain => "the domain does not exist in DNS",
            Self::NoRecords => "the domain has no federation records in DNS",
            Self::RefusesFederation => "the domain does not federate",
            Self::DnsFailure => "DNS failed",
            Self::DnsTimedOut => "DNS timed out",
            Self::Unreachable => "unreachable",
            Self::ForbiddenAddress => "its addresses are not dialled",
            Self::Refused => "connection refused",
            Self::TimedOut => "timed out",
            Self::Certificate => "certificate refused",
            Self::Protocol => "no protocol in common",
            Self::HelloRefused => "hello refused",
            Self::Denied => "denied by the peer",
            Self::BackingOff { cause, .. } => return write!(f, "not tried again yet after: {cause}"),
            Self::Held => "held by this node's operator",
            Self::DeniedHere => "denied by this node's operator",
            Self::OverLimits => "refused for a while by the peer: over its limits",
            Self::Closed => "connection closed",
            Self::TooLarge => "too large",
            Self::Local => "this node cannot",
        })
    }
}

impl Why {
    /// One word for it, for programs. Of a back-off, that of its cause.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoSuchDomain => "no_such_domain",
            Self::NoRecords => "no_records",
            Self::RefusesFederation => "refuses_federation",
            Self::DnsFailure => "dns_failure",
            Self::DnsTimedOut => "dns_timed_out",
            Self::Unreachable => "unreachable",
            Self::ForbiddenAddress => "forbidden_address",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Certificate => "certificate",
            Self::Protocol => "protocol",
            Self::HelloRefused => "hello_refused",
            Self::Denied => "denied",
            Self::BackingOff { cause, .. } => cause.name(),
            Self::OverLimits => "over_limits",
            Self::Held => "held",
            Self::DeniedHere => "denied_here",
            Self::Closed => "closed",
            Self::TooLarge => "too_large",
            Self::Local => "local",
        }
    }
}

/// Whether a failed request can have had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The peer cannot have received the whole request, or says that it did not look at it.
    NotSent,
    /// The peer may have acted on it: only the same request, repeated, tells.
    OutcomeUnknown,
}

/// A request to a peer got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerError {
    /// Which peer.
    pub peer: Domain,
    /// Why.
    pub why: Why,
    /// Whether the request can have had an effect.
    pub sent: Sent,
    /// What happened in detail, one line, for the operator of this node.
    pub detail: String,
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.peer, self.why)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        if self.sent == Sent::OutcomeUnknown {
            f.write_str("; whether the request had an effect is not known")?;
        }
        Ok(())
    }
}

impl std::error::Error for PeerError {}

impl PeerError {
    /// A failure before the request can have left this node.
    pub(super) fn not_sent(peer: &Domain, why: Why, detail: impl Into<String>) -> Self {
        Self::new(peer, why, Sent::NotSent, detail)
    }

    pub(super) fn new(peer: &Domain, why: Why, sent: Sent, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(limits::REASON_BYTES_MAX));
        Self { peer: peer.clone(), why, sent, detail }
    }

    /// Discovery found nobody.
    pub(super) fn discovery(peer: &Domain, error: &DiscoveryError) -> Self {
        let why = match error {
            DiscoveryError::NoSuchDomain { .. } => Why::NoSuchDomain,
            DiscoveryError::NoRecords { .. } => Why::NoRecords,
            DiscoveryError::RefusesFederation { .. } => Why::RefusesFederation,
            DiscoveryError::ServerFailure { .. } => Why::DnsFailure,
            DiscoveryError::TimedOut { .. } => Why::DnsTimedOut,
        };
        Self::not_sent(peer, why, error.to_string())
    }

    /// A connection could not be made, or ended.
    pub(super) fn connection(peer: &Domain, error: &ConnectionError, sent: Sent) -> Self {
        let (why, detail) = connection_failure(error);
        Self::new(peer, why, sent, detail)
    }

    /// A frame could not be read or written.
    pub(super) fn frame(peer: &Domain, error: &FrameError, sent: Sent) -> Self {
        let refused = |code: quinn::VarInt| {
            let why = match CloseCode::from_number(code.into_inner()) {
                Some(CloseCode::TooLarge) => Why::TooLarge,
                Some(CloseCode::TimedOut) => Why::TimedOut,
                Some(CloseCode::NotAuthorized | CloseCode::WrongDomain | CloseCode::Denied) => Why::Denied,
                Some(CloseCode::OverLimits) => Why::OverLimits,
                _ => Why::Closed,
            };
            // The codes by which a peer says that it did not look at a request.
            let untouched = [CloseCode::NotProcessed, CloseCode::OverLimits].iter().any(|known| code == known.number());
            let sent = if untouched { Sent::NotSent } else { sent };
            Self::new(peer, why, sent, format!("the peer ended the stream: {}", CloseCode::describe(code)))
        };
        match error {
            FrameError::Read(ReadError::ConnectionLost(error)) | FrameError::Write(WriteError::ConnectionLost(error)) => {
                Self::connection(peer, error, sent)
            }
            FrameError::Read(ReadError::Reset(code)) | FrameError::Write(WriteError::Stopped(code)) => refused(*code),
            FrameError::TimedOut => Self::new(peer, Why::TimedOut, sent, "no answer in time"),
            FrameError::TooLarge { .. } => Self::new(peer, Why::TooLarge, sent, error.to_string()),
            FrameError::Truncated { .. } | FrameError::Read(_) | FrameError::Write(_) => {
                Self::new(peer, Why::Closed, sent, error.to_string())
            }
        }
    }
}

/// Which kind of failure it is that a connection was closed with this code, by either side.
pub(super) fn closed_with(code: CloseCode) -> Why {
    match code {
        CloseCode::HelloRefused | CloseCode::WrongDomain => Why::HelloRefused,
        CloseCode::NotAuthorized | CloseCode::Denied => Why::Denied,
        CloseCode::OverLimits => Why::OverLimits,
        CloseCode::NoAlpn | CloseCode::NoVersion => Why::Protocol,
        CloseCode::ShuttingDown => Why::Refused,
        CloseCode::TimedOut => Why::TimedOut,
        _ => Why::Closed,
    }
}

/// TLS alerts travel as QUIC error 0x100 + alert (RFC 9001 §4.8), ours as well as the peer's.
const TLS_ALERT: u64 = 0x100;

/// Which kind of failure it is that a connection could not be made or ended, and what to tell the operator.
pub(super) fn connection_failure(error: &ConnectionError) -> (Why, String) {
    let by_code = |code: u64| match code.checked_sub(TLS_ALERT) {
        // bad_certificate … unknown_ca, access_denied, bad_certificate_status_response, unknown_psk…, certificate_required.
        Some(42..=49 | 51 | 113 | 116) => Why::Certificate,
        Some(120) => Why::Protocol,
        _ if code == u64::from(quinn::TransportErrorCode::CONNECTION_REFUSED) => Why::Refused,
        _ => Why::Closed,
    };
    match error {
        ConnectionError::TransportError(error) => (by_code(u64::from(error.code)), format!("this node refused: {error}")),
        ConnectionError::ConnectionClosed(close) => (by_code(u64::from(close.error_code)), closed_by_peer(close)),
        ConnectionError::ApplicationClosed(close) => {
            let why = CloseCode::from_number(close.error_code.into_inner()).map_or(Why::Closed, closed_with);
            let reason = String::from_utf8_lossy(&close.reason);
            (why, format!("the peer closed the connection: {}: {reason}", CloseCode::describe(close.error_code)))
        }
        ConnectionError::VersionMismatch => (Why::Protocol, "the peer speaks another version of QUIC".to_owned()),
        ConnectionError::TimedOut => (Why::TimedOut, "the peer is silent".to_owned()),
        ConnectionError::Reset => (Why::Closed, "the peer no longer knows the connection, as after a restart".to_owned()),
        ConnectionError::LocallyClosed => (Why::Closed, "this node closed the connection".to_owned()),
        ConnectionError::CidsExhausted => (Why::Local, "this node has no connection ids left".to_owned()),
    }
}

fn closed_by_peer(close: &quinn::ConnectionClose) -> String {
    let alert = match u64::from(close.error_code).checked_sub(TLS_ALERT) {
        Some(116) => "the peer got no certificate from us",
        Some(48) => "the peer does not trust the CA of our certificate",
        Some(45) => "our certificate has expired, as the peer sees it",
        Some(44) => "our certificate is revoked",
        Some(43) => "our certificate is for another purpose (extended key usage)",
        Some(42 | 46) => "the peer does not accept our certificate",
        Some(120) => "the peer speaks another protocol (ALPN)",
        _ => "the peer closed the connection",
    };
    format!("{alert}: {close}")
}
