//! What tests of `mimi-node` stand on, none of which trusts the node's own code:
//!
//! | module | is |
//! |---|---|
//! | [`checker`] | judges a run from the logs of its clients; reads them with its own types |
//! | [`dns`] | an authoritative DNS server whose answers a test changes while it runs |
//! | [`fault_proxy`] | a UDP link that loses, doubles, delays and reorders, from a seed |
//! | [`synth`] | an MLS group that makes commits a Delivery Service must accept, without any group secret |

pub mod checker;
pub mod dns;
pub mod fault_proxy;
pub mod synth;
