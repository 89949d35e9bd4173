//! The Queueing Service, pure: sealed queue informations, queues, lanes and KeyPackages (S14, R7, X3, X4, X8).
//!
//! | file | decides |
//! |---|---|
//! | [`sealed`] | what a sealed queue information opens to, and which hub may use it |
//! | [`invites`] | which group may use an invite |
//! | [`queue`] | what an arrival does to a queue: an entry, a marker, or nothing |
//! | [`lanes`] | which frames of a lane are taken |
//! | [`owner`] | who may ask what of a queue |
//! | [`key_packages`], [`claims`] | which KeyPackages are published, and who gets one |

pub mod claims;
pub mod invites;
pub mod key_packages;
pub mod lanes;
pub mod owner;
pub mod queue;
pub mod sealed;
