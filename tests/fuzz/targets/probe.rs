//! Any bytes into `decoders::probe`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshnet_fuzz::decoders::probe(bytes));
