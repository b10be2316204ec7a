//! The whole line through the real binary: what arrives, how much of it travelled, what is refused,
//! and what an interruption costs.

#[path = "../rig/ferry.rs"]
mod ferry;
#[path = "../rig/link.rs"]
mod link;
#[path = "../rig/loops.rs"]
mod loops;

mod amounts;
mod devices;
mod guards;
mod interruption;
mod locks;
mod memory;
mod remembered;
mod round_trips;
mod verify;
