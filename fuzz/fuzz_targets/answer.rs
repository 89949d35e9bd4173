//! What a client reads from its node.

#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| federation_tests::fuzzing::run("answer", octets));
