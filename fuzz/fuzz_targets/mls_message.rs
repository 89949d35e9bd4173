//! MLSMessages, as far as a server reads them.

#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| federation_tests::fuzzing::run("mls_message", octets));
