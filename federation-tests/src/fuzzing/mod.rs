//! What fuzzers feed: every decoder that octets of another node, a client or a file reach, and the Delivery Service as a machine.
//!
//! Each target takes octets and panics if something is wrong. `fuzz/` wraps them for libFuzzer, and the corpus there is replayed by
//! an ordinary test. What counts as wrong, besides a panic inside: a decoder that accepts two encodings of one value, a text form
//! that does not come back, a refused request that changes a group, and a group whose record and tree disagree.

mod decoders;
mod machine;
pub mod seeds;

/// A target's name, which is that of its corpus and of its program, and what it does with octets.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 11] = [
    ("answer", decoders::answer),
    ("certificate", decoders::certificate),
    ("client_request", decoders::client_request),
    ("delivery_service", machine::delivery_service),
    ("details", decoders::details),
    ("group_info", decoders::group_info),
    ("key_package", decoders::key_package),
    ("mls_message", decoders::mls_message),
    ("peer", decoders::peer),
    ("record", decoders::record),
    ("text", decoders::text),
];

/// Runs the target with this name. Panics when there is none.
pub fn run(name: &str, octets: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).expect("a target");
    target(octets);
}
