//! `mimi-node`: one node of a federated messaging network, serving one domain.
//!
//! # The layers
//!
//! Read top-down; each may import those it names, and a test (`src/tests/layers.rs`) reads this table and fails on any other import.
//!
//! | layer | is | may import |
//! |---|---|---|
//! | [`base`] | names, ids, time, limits, keys | – |
//! | [`identity`] | X.509: making and checking certificates and chains | base |
//! | [`wire`] | protocol structs, codec, the error-code table | base |
//! | [`mls`] | the server's only place that names OpenMLS | base, identity, wire |
//! | [`ds`] | Delivery Service, pure | base, identity, wire, mls |
//! | [`qs`] | Queueing Service, pure | base, identity, wire, mls |
//! | [`accounts`] | the domain's users (Authentication Service), pure | base, identity, wire, mls |
//! | [`storage`] | the one transaction runner, SQL by table | base, identity, wire, mls, ds, qs, accounts |
//! | [`transport`] | QUIC, TLS, streams, discovery | base, identity, wire |
//! | [`federation`] | peer pool, gate, backoff | base, identity, wire, transport |
//! | [`service`] | use cases: authenticate → route → decide → store → deliver | all above |
//! | [`node`] | configuration, wiring, start and stop | all above |
//! | [`client`] | client library (the member side of MLS) | base, identity, wire, transport |
//! | [`cli`] | the commands of `mimi-node` and `mimi-client` | all |
//!
//! # The path of a request
//!
//! `transport` accepts a stream and reads one bounded frame → `wire` decodes it → `service` authenticates it and compares its
//! destination with our domain (another one: `federation` carries it to the hub) → `ds`, `qs` or `accounts` decide, purely →
//! `storage` writes state, answer and deliveries in one transaction → the answer leaves, workers are woken.

pub mod accounts;
pub mod base;
pub mod cli;
pub mod client;
pub mod ds;
pub mod federation;
pub mod identity;
pub mod mls;
pub mod node;
pub mod qs;
pub mod service;
pub mod storage;
// Groups that no member holds the secrets of, for this crate's tests, too: what hostile clients send is made by hand.
#[cfg(test)]
#[path = "../federation-tests/src/synth/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod synth;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod wire;
