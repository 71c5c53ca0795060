//! Any bytes into `decoders::inner`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshnet_fuzz::decoders::inner(bytes));
