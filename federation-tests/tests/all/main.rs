//! System tests: real nodes, real clients, one binary.

mod client_crash;
mod crash;
mod network;
