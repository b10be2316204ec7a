//! Feeds what libFuzzer makes up to `blockferry_fuzz::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockferry_fuzz::record::run(data));
