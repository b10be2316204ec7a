//! What the fuzzers do with a run of bytes: each module has `run`, which must not panic, whatever the bytes are.
//!
//! `tests/fuzz.rs` compiles the same files and replays the seeds and all that was ever found, so that no fuzzer is
//! needed to see that what was mended stays so.

pub mod bytes;
pub mod config;
pub mod journal;
pub mod manifest;
pub mod record;
pub mod session;
#[path = "../../tests/rig/sim.rs"]
pub mod sim;
pub mod stream;
pub mod token;
