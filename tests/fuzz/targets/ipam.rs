//! Any bytes into `decoders::ipam`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshnet_fuzz::decoders::ipam(bytes));
