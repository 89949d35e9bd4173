//! Random 16-octet identifiers, each a type of its own so that they cannot be mixed up.

use super::bytes::hex;
use super::crypto::random;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, tls_codec::TlsSize,
            tls_codec::TlsSerialize, tls_codec::TlsDeserializeBytes,
        )]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A fresh random value.
            pub fn random() -> Self {
                Self(random())
            }

            /// Reads the value back from storage; `None` unless there are exactly 16 octets.
            pub fn from_bytes(octets: &[u8]) -> Option<Self> {
                octets.try_into().ok().map(Self)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }
    };
}

id!(
    /// Names one request of one sender; a retry repeats it (see *Idempotency* in `docs/protocol.md`).
    RequestId
);
id!(
    /// Names a queue within its Queueing Service.
    QueueId
);
id!(
    /// One life of a lane; new after any restore (X8).
    Incarnation
);
id!(
    /// Names an invitation to be added to a group, before the hub is known (X3).
    InviteId
);
