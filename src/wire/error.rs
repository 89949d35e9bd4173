//! The one table of error codes, and [`Rejection`]: what the *other* side did wrong, as it is told.

use std::time::Duration;

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque, decode, encode};
use crate::base::UnixMillis;

/// Whether sending again can help, and what must change first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request will be refused again.
    Never,
    /// A new request may pass, made from newer state (the detail helps).
    AfterChange,
    /// The same request, later, with the same request id.
    Later,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal, $retry:ident;)*) => {
        /// The codes of [`Rejection`]: the draft's own for `create_group` (S5), and the common ones from 16 on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, TlsSize, TlsSerialize, TlsDeserializeBytes)]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[$doc])* $name = $value,)*
        }

        impl ErrorCode {
            /// Every code, in the order of their values.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The code's name as it stands in `docs/protocol.md` and in JSON output.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whether sending again can help.
            pub fn retry(self) -> Retry {
                match self { $(Self::$name => Retry::$retry,)* }
            }
        }
    };
}

error_codes! {
    /// The group id is empty, taken, malformed or of another domain (S6).
    InvalidGroupId = 0, "invalid_group_id", Never;
    /// A KeyPackage is not valid (S6, R7).
    InvalidKeyPackage = 1, "invalid_key_package", Never;
    /// A GroupInfo is not valid or not the Commit's (S6, R5).
    InvalidGroupInfo = 2, "invalid_group_info", Never;
    /// The octets are not one well-formed request.
    Malformed = 16, "malformed", Never;
    /// The version is not one this node speaks.
    UnsupportedVersion = 17, "unsupported_version", Never;
    /// This hub has no such group.
    UnknownGroup = 18, "unknown_group", Never;
    /// The group was deleted (S7).
    GroupDeleted = 19, "group_deleted", Never;
    /// The hub was restored from a backup; members hand in Commits (X9). Detail: [`CurrentEpoch`].
    GroupFrozen = 20, "group_frozen", AfterChange;
    /// The sender may not ask this, or not through this node.
    NotAuthorized = 21, "not_authorized", Never;
    /// The signature is not the named sender's.
    BadSignature = 22, "bad_signature", Never;
    /// The request id was used for other content, or issued_at is too far off. Detail: [`ServerTime`].
    ReplayedOrStale = 23, "replayed_or_stale", AfterChange;
    /// The group is in another epoch. Detail: [`WrongEpoch`].
    WrongEpoch = 24, "wrong_epoch", AfterChange;
    /// The DS's Removes must be committed first (S13). Detail: [`PendingProposals`].
    PendingProposals = 25, "pending_proposals", AfterChange;
    /// The Commit is not valid, or not of the request's type.
    InvalidCommit = 26, "invalid_commit", Never;
    /// The Welcomes are not for exactly the Commit's Adds (R6).
    InvalidWelcome = 27, "invalid_welcome", Never;
    /// A proposal is not valid.
    InvalidProposal = 28, "invalid_proposal", Never;
    /// A certificate chain does not prove the name it claims (R8).
    InvalidCredential = 29, "invalid_credential", Never;
    /// A queue config is malformed or of another domain than its leaf (S15).
    InvalidQueueConfig = 30, "invalid_queue_config", Never;
    /// Over a limit.
    TooLarge = 31, "too_large", Never;
    /// Too many requests. Detail: [`RetryAfter`].
    RateLimited = 32, "rate_limited", Later;
    /// The destination did not answer. Detail: [`UnreachableDomain`].
    UnreachableDomain = 33, "unreachable_domain", Later;
    /// This node failed; its operator's log says why.
    Internal = 34, "internal", Later;
    /// A request type or feature that this node does not offer.
    Unsupported = 35, "unsupported", Never;
    /// There is no such queue, or it is not the sender's.
    UnknownQueue = 36, "unknown_queue", Never;
    /// There is no such user, or none of its clients has a KeyPackage to give.
    UnknownUser = 37, "unknown_user", Never;
    /// The invitation token is unknown, used or expired.
    InvalidToken = 38, "invalid_token", Never;
    /// A lane frame repeats a sequence with other content (X8).
    LaneConflict = 39, "lane_conflict", Never;
    /// The message is not a well-framed application message of this group (R1, R2).
    InvalidMessage = 40, "invalid_message", Never;
    /// The node is stopping.
    ShuttingDown = 41, "shutting_down", Later;
    /// What a peer says or passes on is of another domain than the peer.
    WrongOrigin = 43, "wrong_origin", Never;
    /// A hub sends for a group of another hub.
    WrongHub = 44, "wrong_hub", Never;
    /// A proxied request is for another domain than the one it was brought to, and is not proxied again.
    SecondHop = 45, "second_hop", Never;
}

/// Why a request was refused. Nothing changed, except where the detail says that the outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes, thiserror::Error)]
#[error("{}", self.describe())]
pub struct Rejection {
    /// Which.
    pub code: ErrorCode,
    /// By code; else empty.
    pub detail: Opaque,
}

/// Detail of [`ErrorCode::GroupFrozen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct CurrentEpoch {
    /// The epoch that was restored.
    pub epoch: u64,
}

/// Detail of [`ErrorCode::ReplayedOrStale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ServerTime {
    /// The node's clock, in milliseconds since 1970.
    pub server_time_ms: u64,
}

/// Detail of [`ErrorCode::WrongEpoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct WrongEpoch {
    /// The group's epoch now.
    pub current_epoch: u64,
    /// SHA-256 of the Commit accepted at the asked epoch, so that a committer whose answer was lost knows whether it won.
    pub accepted_commit_hash: Option<[u8; 32]>,
}

/// Detail of [`ErrorCode::PendingProposals`].
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct PendingProposals {
    /// MLSMessages with the DS's Remove proposals.
    pub proposals: List<Opaque>,
}

/// Detail of [`ErrorCode::RateLimited`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct RetryAfter {
    /// Wait at least this long, in milliseconds.
    pub retry_after_ms: u64,
}

/// Detail of [`ErrorCode::UnreachableDomain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct UnreachableDomain {
    /// What went wrong.
    pub why: UnreachableReason,
    /// Whether the request may have been acted on.
    pub sent: Sent,
}

/// Why a domain could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum UnreachableReason {
    /// DNS says that the domain does not exist.
    NoSuchDomain = 0,
    /// The domain has no SRV record for federation, or its targets no address.
    DoesNotFederate = 1,
    /// DNS did not answer, or answered with a failure.
    DnsFailure = 2,
    /// No address of it could be connected to.
    Refused = 3,
    /// It did not answer in time.
    TimedOut = 4,
    /// Its certificate, or ours, was refused.
    Certificate = 5,
    /// Policy, here or there, forbids it.
    Denied = 6,
    /// An earlier try failed a moment ago; the next one is due later.
    BackingOff = 7,
    /// An operator of the asked node has it send nothing there for now.
    Held = 8,
    /// DNS points only at addresses that the asked node does not dial.
    ForbiddenAddress = 9,
    /// The domain says in DNS that it does not federate: an SRV record with target `.`.
    RefusesFederation = 10,
    /// The asked node has used up what it may there, went on, and is refused for a while.
    OverLimits = 11,
}

/// Whether a proxied request may have reached its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum Sent {
    /// Certainly not.
    NotSent = 0,
    /// Perhaps; a retry with the same request id finds out.
    OutcomeUnknown = 1,
}

impl Rejection {
    /// A rejection without detail.
    pub fn new(code: ErrorCode) -> Self {
        Self { code, detail: Opaque::default() }
    }

    /// [`ErrorCode::WrongEpoch`].
    pub fn wrong_epoch(current_epoch: u64, accepted_commit_hash: Option<[u8; 32]>) -> Self {
        Self::with(ErrorCode::WrongEpoch, &WrongEpoch { current_epoch, accepted_commit_hash })
    }

    /// [`ErrorCode::ReplayedOrStale`].
    pub fn replayed_or_stale(now: UnixMillis) -> Self {
        Self::with(ErrorCode::ReplayedOrStale, &ServerTime { server_time_ms: now.0 })
    }

    /// [`ErrorCode::PendingProposals`], with MLSMessages of the DS's Removes.
    pub fn pending_proposals(proposals: List<Opaque>) -> Self {
        Self::with(ErrorCode::PendingProposals, &PendingProposals { proposals })
    }

    /// [`ErrorCode::RateLimited`]: the sender is to wait this long, at least a millisecond.
    pub fn rate_limited(wait: Duration) -> Self {
        let retry_after_ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
        Self::with(ErrorCode::RateLimited, &RetryAfter { retry_after_ms })
    }

    /// [`ErrorCode::UnreachableDomain`].
    pub fn unreachable(why: UnreachableReason, sent: Sent) -> Self {
        Self::with(ErrorCode::UnreachableDomain, &UnreachableDomain { why, sent })
    }

    /// The detail of a [`ErrorCode::WrongEpoch`].
    pub fn as_wrong_epoch(&self) -> Option<WrongEpoch> {
        self.detail_of(ErrorCode::WrongEpoch)
    }

    /// The detail of a [`ErrorCode::ReplayedOrStale`].
    pub fn as_replayed_or_stale(&self) -> Option<ServerTime> {
        self.detail_of(ErrorCode::ReplayedOrStale)
    }

    /// The detail of a [`ErrorCode::RateLimited`].
    pub fn as_rate_limited(&self) -> Option<RetryAfter> {
        self.detail_of(ErrorCode::RateLimited)
    }

    /// The detail of a [`ErrorCode::UnreachableDomain`].
    pub fn as_unreachable(&self) -> Option<UnreachableDomain> {
        self.detail_of(ErrorCode::UnreachableDomain)
    }

    fn with<T: tls_codec::Serialize>(code: ErrorCode, detail: &T) -> Self {
        Self { code, detail: encode(detail).into() }
    }

    fn detail_of<T: tls_codec::DeserializeBytes>(&self, code: ErrorCode) -> Option<T> {
        if self.code == code { decode(&self.detail).ok() } else { None }
    }

    fn describe(&self) -> String {
        let name = self.code.name();
        if let Some(detail) = self.as_wrong_epoch() {
            format!("{name}: the group is in epoch {}", detail.current_epoch)
        } else if let Some(detail) = self.as_unreachable() {
            format!("{name}: {:?}, {:?}", detail.why, detail.sent)
        } else {
            name.to_owned()
        }
    }
}

impl From<ErrorCode> for Rejection {
    fn from(code: ErrorCode) -> Self {
        Self::new(code)
    }
}

impl From<super::codec::DecodeError> for Rejection {
    fn from(_: super::codec::DecodeError) -> Self {
        Self::new(ErrorCode::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_values_and_details_round_trip() {
        assert_eq!(ErrorCode::InvalidGroupInfo as u16, 2, "the draft's value (S5)");
        assert!(ErrorCode::ALL.windows(2).all(|pair| pair[0] < pair[1]), "in order, none twice");
        let rejection = Rejection::wrong_epoch(7, Some([3; 32]));
        let detail = decode::<Rejection>(&encode(&rejection)).expect("round trip").as_wrong_epoch().expect("its own detail");
        assert_eq!((detail.current_epoch, detail.accepted_commit_hash), (7, Some([3; 32])));
        assert!(rejection.as_unreachable().is_none());
        assert!(decode::<ErrorCode>(&[0xff, 0xff]).is_err());
        let wait = |micros| Rejection::rate_limited(Duration::from_micros(micros)).as_rate_limited().expect("its detail");
        assert_eq!((wait(0).retry_after_ms, wait(1_500_001).retry_after_ms), (1, 1_501), "never too short, never none");
    }
}
