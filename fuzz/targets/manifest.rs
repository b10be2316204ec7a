//! Feeds what libFuzzer makes up to `blockferry_fuzz::manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockferry_fuzz::manifest::run(data));
