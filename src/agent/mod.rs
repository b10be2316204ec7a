//! Jobs: what is replicated when, what became of it, and whom to tell.
