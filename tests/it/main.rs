//! The test binary: each case is a module, what they share is in `tests/support`.

#[path = "../support/mod.rs"]
mod support;

mod architecture;
mod checkers;
mod crash;
mod differential;
mod failover;
mod readme;
