//! The commands of `mimi-node` and `mimi-client`: arguments in, one plain sentence and an exit code out.

pub mod client;
mod doctor;
pub mod node;

mod admin;
mod certs;
mod lanes;
mod peers;
mod table;
mod users;
