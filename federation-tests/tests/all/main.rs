//! System tests: real nodes, real clients, one binary.

mod client_crash;
mod crash;
mod network;
//! System tests: one module per topic. Each test opens with what it shows, what counts as failure and what does not.

mod idempotency;
mod racing;
mod refusals;
mod secrecy;
