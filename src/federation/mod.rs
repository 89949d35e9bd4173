//! Connections to other domains' nodes: when to try ([`gate`], [`backoff`]), how to connect, and one shared connection per peer
//! ([`pool`]). Frames are opaque here; storage is never seen.
//!
//! ```text
//! request ─▶ pool ─▶ up? ───────────────────────────▶ stream ─▶ answer
//!                    └▶ gate: may we try? ─▶ dial: discovery ─▶ TLS ─▶ hello ─▶ up
//! ```

pub mod backoff;
mod dial;
pub mod error;
pub mod gate;
pub mod hello;
pub mod pool;

pub use error::{PeerError, Sent, Why};
pub use hello::{Hello, answer_hello};
pub use pool::{PeerPool, PeerStream};

#[cfg(test)]
mod tests;
