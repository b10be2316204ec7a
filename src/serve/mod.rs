//! The receiver as a daemon: what it serves and to whom, pairing, and one thread for each session.

pub mod config;
mod daemon;
mod descriptors;
mod lanes;
pub mod pairing;
mod refusals;
mod served;
mod sessions;

pub use daemon::{Daemon, Milestone, serve_one};
