//! A client's frame, and the MLS objects in it.

#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| federation_tests::fuzzing::run("client_request", octets));
