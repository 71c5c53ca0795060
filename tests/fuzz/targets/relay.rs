//! Any bytes into `decoders::relay`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshnet_fuzz::decoders::relay(bytes));
