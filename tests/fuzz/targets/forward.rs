//! Any bytes into `forward::inbound`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshnet_fuzz::forward::inbound(bytes));
