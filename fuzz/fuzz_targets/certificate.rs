//! X.509 certificates, alone and in chains.

#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| federation_tests::fuzzing::run("certificate", octets));
