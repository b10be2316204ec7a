//! Jobs: what is replicated when, what became of it, and whom to tell.

pub mod book;
pub mod config;
pub mod outcome;
