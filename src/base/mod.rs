//! Words that every layer uses: names, identifiers, time, limits, secrets, keys. Knows no protocol and no input or output.

pub mod bytes;
pub mod clock;
pub mod count;
pub mod crypto;
pub mod domain;
pub mod fault;
#[cfg(feature = "fault-points")]
pub mod fault_points;
pub mod ids;
pub mod limits;
pub mod rate;
pub mod rule;
pub mod secret;
pub mod uri;

pub use clock::UnixMillis;
pub use domain::Domain;
pub use fault::{Context, Fault};
pub use uri::{ClientUri, GroupUri, UserUri};
