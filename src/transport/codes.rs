//! [`CloseCode`]: the one table of QUIC application error codes, for CONNECTION_CLOSE, RESET_STREAM and STOP_SENDING
//! (RFC 9000 §20.2; *Transport* in `docs/protocol.md`).

use std::fmt;

use quinn::VarInt;

use crate::base::limits;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// Why a connection or stream was ended, as its QUIC application error code says. An unknown code of a peer is kept as
        /// a number (see [`CloseCode::describe`]) and treated as [`CloseCode::Internal`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum CloseCode {
            $($(#[$doc])* $name = $value,)*
        }

        impl CloseCode {
            /// Every code, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The code that `number` stands for, if it is in the table.
            pub fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($value => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The code in words, as in "shutting down".
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    /// Connection: nothing more to do. Stream: no more is wanted. Not an error.
    Done = 0, "done";
    /// Connection: the node is stopping; connect again later.
    ShuttingDown = 1, "shutting down";
    /// What arrived cannot be read as this protocol.
    ProtocolViolation = 2, "protocol violation";
    /// A frame is over the limit for its place.
    TooLarge = 3, "frame too large";
    /// The other side was silent, or slower than a deadline allows.
    TimedOut = 4, "timed out";
    /// The certificate shown does not allow this.
    NotAuthorized = 5, "not authorized";
    /// The `hello` names a domain that the certificate does not, or one that is not ours.
    WrongDomain = 6, "wrong domain";
    /// This node's policy does not accept the peer, or no longer does.
    Denied = 7, "denied by policy";
    /// The two `hello`s do not fit.
    HelloRefused = 8, "hello refused";
    /// The closing node failed; the fault is in its log.
    Internal = 9, "internal error";
    /// Neither side can tell which protocol the connection speaks (no ALPN was agreed).
    NoAlpn = 10, "no application protocol agreed";
    /// Connection: another one to the same node is used instead.
    Superseded = 11, "superseded by another connection";
    /// Stream: the request was not looked at and may be sent again as it is.
    NotProcessed = 12, "not processed";
    /// Stream: whoever asked no longer waits for the answer.
    Cancelled = 13, "cancelled";
    /// Connection and stream: the peer went on after it was told to wait, and is refused for a while.
    OverLimits = 14, "over its limits";
    /// The two `hello`s have no version in common; the reason names both sides' versions.
    NoVersion = 15, "no protocol version in common";
}

impl CloseCode {
    /// The code as QUIC carries it.
    pub fn number(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// A code received, in words, unknown ones included.
    pub fn describe(number: VarInt) -> String {
        match Self::from_number(number.into_inner()) {
            Some(code) => code.text().to_owned(),
            None => format!("unknown code {number}"),
        }
    }

    /// Closes `connection` with this code and `reason`, cut to [`limits::REASON_BYTES_MAX`]; the reason is for the other
    /// side's operator and must tell no secret.
    pub fn close(self, connection: &quinn::Connection, reason: &str) {
        let end = reason.floor_char_boundary(limits::REASON_BYTES_MAX);
        connection.close(self.number(), &reason.as_bytes()[..end]);
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_back_from_its_number() {
        for (index, code) in CloseCode::ALL.iter().enumerate() {
            assert_eq!(code.number().into_inner(), index as u64, "the table has no holes");
            assert_eq!(CloseCode::from_number(index as u64), Some(*code));
        }
        assert_eq!(CloseCode::from_number(CloseCode::ALL.len() as u64), None);
        assert_eq!(CloseCode::describe(VarInt::from_u32(4_000)), "unknown code 4000");
    }
}
