//! The server's only place that names OpenMLS: public group state, handshake validation, KeyPackages, credentials.
//!
//! Nothing here holds a group secret, and its crypto provider can hash and verify and nothing else (R10). Which of the checks are
//! OpenMLS's and which are ours is told at each one; the rules' numbers are those of `docs/rules.md`.

pub mod changes;
pub mod credential;
pub mod external_sender;
pub mod group;
mod group_info;
pub mod key_package;
pub mod message;
pub mod policy;
pub mod proposal;
mod provider;
#[cfg(test)]
pub(crate) mod testing;

pub use group::{StagedUpdate, Tree};
pub use key_package::ValidKeyPackage;
pub use policy::JoinPolicy;

/// MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519, the one mandatory ciphersuite (*Numbers* in `docs/protocol.md`).
pub const CIPHERSUITE: u16 = 0x0001;

/// The KeyPackage extension that carries an encoded ClientQueueConfig: private use, see *Numbers* in `docs/protocol.md`.
pub const QUEUE_CONFIG_EXTENSION: u16 = 0xF0C0;

/// The GroupContext extension with the group's join policy: private use, see *Numbers* in `docs/protocol.md`.
pub const JOIN_POLICY_EXTENSION: u16 = 0xF0C1;
