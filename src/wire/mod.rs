//! The protocol's structs and their codec, in the TLS presentation language with RFC 9420's variable-size vectors, and the one
//! table of error codes. `docs/protocol.md` is the text to this code; the hex vectors in `vectors.txt` are its examples.
//!
//! Nothing here knows a socket, a database or a clock, and MLS objects are opaque octets, so that they go on byte for byte (R9).

pub mod accounts;
pub mod codec;
pub mod ds;
pub mod error;
pub mod info;
pub mod invitation;
pub mod keys;
pub mod peer;
pub mod probe;
#[cfg(test)]
mod properties;
pub mod qs;
pub mod receipt;
pub mod reply;
pub mod request;
#[cfg(test)]
mod samples;
mod signed;
#[cfg(test)]
mod vectors;

pub use codec::{DecodeError, List, Opaque, decode, encode};
pub use error::{ErrorCode, Rejection};
pub use invitation::Invitation;
pub use receipt::Receipt;
pub use reply::{Reply, Response};
pub use request::{ClientRequest, Content, Service};

/// The only version of the envelope so far. Nodes agree on theirs in `hello`: [`peer::PROTOCOL_VERSIONS`].
pub const VERSION: u16 = 1;
