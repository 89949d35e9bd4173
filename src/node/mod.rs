//! One node: its configuration, how it is set up for the first time, how it starts and how it stops, and what its operator can
//! see and do meanwhile.

pub mod admin;
pub mod config;
pub mod doctor;
pub mod init;
mod metrics;
pub mod reload;
pub mod start;

pub use config::Config;
pub use start::Node;
