//! Jobs: what is replicated when, what became of it, and whom to tell.
//!
//! Begun: what agent.toml says, what is remembered of jobs and pairs, and what a run comes to. No command reads or
//! writes any of it yet; a scheduler runs `clone` meanwhile (docs/OPERATING.md).

pub mod book;
pub mod config;
pub mod due;
pub mod health;
pub mod hooks;
pub mod metrics;
pub mod notify;
pub mod outcome;
