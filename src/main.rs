//! Parse, dispatch, print the error chain once, exit.

fn main() {}
