//! System tests: nodes and clients as processes, over real sockets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cli;
mod docs;
mod process;
