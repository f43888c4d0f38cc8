//! `pontoon`: a server of the store, a client to it, and a cluster to try.

use std::process::ExitCode;

/// Many small pieces that live as long as a request: where glibc's allocator takes a tenth of a member's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pontoon::cli::run()
}
