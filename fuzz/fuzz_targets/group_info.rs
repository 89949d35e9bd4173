//! The GroupInfo of a new group.

#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| federation_tests::fuzzing::run("group_info", octets));
