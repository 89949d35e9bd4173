//! One node: its configuration, how it is set up for the first time, how it starts and how it stops.

pub mod config;
pub mod init;
pub mod reload;
pub mod start;

pub use config::Config;
pub use start::Node;
