//! System tests: one module per topic. Each test opens with what it shows, what counts as failure and what does not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod abuse;
mod admin;
mod cli;
mod cli_devices;
mod client_crash;
mod compose;
mod corpus;
mod crash;
mod devices;
mod discovery;
mod docs;
mod doctor;
mod gathering;
mod idempotency;
mod identity;
mod knot;
mod lanes;
mod leaving;
mod network;
mod policy;
mod process;
mod proxying;
mod racing;
mod recovery;
mod refusals;
mod rollover;
mod secrecy;
mod tools;
mod versions;
