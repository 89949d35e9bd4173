//! The commands of `mimi-node` and `mimi-client`.

pub mod client;
