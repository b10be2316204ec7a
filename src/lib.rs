//! blockferry: a block-device snapshot replicator whose replica is always exactly some complete generation.
//!
//! The floor plan. Imports only go down, and rooms on one floor do not know each other
//! (`tests/tidy.rs` reads the `use` lines and names the pair that breaks this).
//!
//! | floor | rooms | business |
//! |---|---|---|
//! | 6 | [`cli`] | words typed by a person |
//! | 5 | [`agent`], [`serve`] | decides when and how often; lets paired hosts in |
//! | 4 | [`attempt`] | one attempt from lock to summary |
//! | 3 | [`sender`], [`receiver`] | one snapshot in, one delta out; one delta in, one generation out |
//! | 2 | [`disk`], [`transport`], [`lvm`], [`state`] | a device, a stream, a snapshot, what we remember |
//! | 1 | [`format`](mod@format), [`ring`], [`schedule`], [`program`] | what bytes mean; asking the kernel to move them; when; other programs |
//! | 0 | [`error`], [`limits`], [`extent`], [`digest`], [`identity`], [`pin`], [`progress`], [`failpoint`], [`settings`], [`log`], [`part`] | words |
//!
//! The data goes one way:
//! reader → hasher → comparer → compressor → framer → transport → deframer → journal → applier → committer.

// What comes from disk or network never panics. Tests may: clippy.toml.
#![deny(clippy::unwrap_used)]

pub mod agent;
pub mod attempt;
pub mod cli;
pub mod digest;
pub mod disk;
pub mod error;
pub mod extent;
pub mod failpoint;
pub mod format;
pub mod identity;
pub mod limits;
pub mod log;
pub mod lvm;
pub mod part;
pub mod pin;
pub mod program;
pub mod progress;
pub mod receiver;
pub mod ring;
pub mod schedule;
pub mod sender;
pub mod serve;
pub mod settings;
pub mod state;
pub mod transport;
