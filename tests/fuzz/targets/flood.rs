//! Any bytes into `decoders::flood`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshnet_fuzz::decoders::flood(bytes));
