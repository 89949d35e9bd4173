//! The commands of `mimi-node` and `mimi-client`: arguments in, one plain sentence and an exit code out.

pub mod client;
pub mod node;

mod certs;
mod roots;
mod users;
