//! Connections to other domains' nodes: when to try ([`gate`], [`backoff`]), how to connect, and one shared connection per peer
//! ([`pool`]), and who is to be connected at all ([`policy`]). Frames are opaque here, but to [`diagnose`]; storage is never seen.
//!
//! ```text
//! request ─▶ pool ─▶ up? ───────────────────────────▶ stream ─▶ answer
//!                    └▶ gate: may we try? ─▶ dial: discovery ─▶ address policy, budget ─▶ TLS ─▶ hello ─▶ up
//! ```

pub mod backoff;
mod budget;
pub mod diagnose;
mod dial;
pub mod error;
pub mod gate;
pub mod hello;
mod live;
pub mod policy;
pub mod pool;
pub mod traffic;

pub use backoff::Backoff;
pub use diagnose::{Depth, Diagnosis};
pub use dial::DialSettings;
pub use error::{PeerError, Sent, Why};
pub use gate::{GateState, GateStatus};
pub use hello::{Greeting, Hello, answer_hello};
pub use live::PeerStream;
pub use policy::{EffectivePolicy, PeerOverride, PeerPolicies};
pub use pool::{PeerPool, PeerStatus};
pub use traffic::{Dialled, PeerTraffic, Traffic};

#[cfg(test)]
mod tests;
