//! Any bytes into `decoders::control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshnet_fuzz::decoders::control(bytes));
