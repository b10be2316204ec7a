//! Feeds what libFuzzer makes up to `blockferry_fuzz::journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockferry_fuzz::journal::run(data));
