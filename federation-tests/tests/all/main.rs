//! System tests: one module per topic. Each test opens with what it shows, what counts as failure and what does not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cli;
mod client_crash;
mod crash;
mod docs;
mod idempotency;
mod identity;
mod network;
mod process;
mod racing;
mod refusals;
mod secrecy;
