//! What tests of `mimi-node` stand on, and the testbed. The checker, the proxy and the forger trust none of the node's code.
//!
//! | module | is |
//! |---|---|
//! | [`world`] | domains on this machine, each with node, database, certificates and loopback address; their DNS |
//! | [`conversation`] | the scripted conversation across all of them |
//! | [`testbed`] | the conversation to look at and to join |
//! | [`compose`] | the same on separate hosts: the image and the containers of `docker-compose.yml` |
//! | [`checker`] | judges a run from the logs of its clients; reads them with its own types |
//! | [`dns`] | an authoritative DNS server whose answers a test changes while it runs |
//! | [`fault_proxy`] | a UDP link that loses, doubles, delays and reorders, from a seed |
//! | [`links`] | such a link between each two nodes, to cut one domain off |
//! | [`leftovers`] | logs what is still queued when a run ends |
//! | [`hub`] | a Delivery Service without network and storage, for benches and fuzzers |
//! | [`fuzzing`] | what fuzzers feed, and how their corpus is made |
//! | [`people`] | users whose every octet a test chooses, and their forged groups |
//! | [`receiver`] | a peer that takes lane frames, or does not, as a test wants |
//! | [`raw`] | bare connections to a node's ports, with any certificate |
//! | [`stage`] | running nodes, and proof that a refused request changed nothing |
//! | [`tables`] | what is in a node's database, to compare |
//! | [`synth`] | an MLS group that makes commits a Delivery Service must accept, without any group secret |

pub mod checker;
pub mod compose;
pub mod conversation;
pub mod dns;
pub mod fault_proxy;
pub mod fuzzing;
pub mod hub;
pub mod leftovers;
pub mod links;
pub mod people;
pub mod raw;
pub mod receiver;
pub mod stage;
pub mod synth;
pub mod tables;
pub mod testbed;
pub mod world;
