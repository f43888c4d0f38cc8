//! `pontoon`: a server of the store, a client to it, and a cluster to try.

use std::process::ExitCode;

fn main() -> ExitCode {
    pontoon::cli::run()
}
