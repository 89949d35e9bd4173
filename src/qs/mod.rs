//! The Queueing Service, pure: opening sealed queue informations and deciding about queues and KeyPackages (S14, R7, X3).

pub mod key_packages;
pub mod sealed;
