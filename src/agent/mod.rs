//! Jobs: what is replicated when, what became of it, and whom to tell.
//!
//! `config` says what is wanted, `book` and `history` what happened, `run` does it once.

pub mod abort;
pub mod bench;
pub mod book;
pub mod changes;
pub mod config;
pub mod daemon;
pub mod due;
pub mod health;
pub mod history;
pub mod hooks;
pub mod idle;
pub mod ledger;
pub mod metrics;
pub mod notify;
pub mod outcome;
pub mod plan;
pub mod quiet;
pub mod round;
pub mod route;
pub mod run;
pub mod verify;
