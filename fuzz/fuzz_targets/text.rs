//! Names, lines that people paste, and an operator's files.

#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| federation_tests::fuzzing::run("text", octets));
