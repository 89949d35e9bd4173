//! The Delivery Service as a machine: octets choose who asks what, and what is spoilt of it.

#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| federation_tests::fuzzing::run("delivery_service", octets));
