//! Any bytes into `decoders::outer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshnet_fuzz::decoders::outer(bytes));
