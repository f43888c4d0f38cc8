//! `pontoon doctor`: what stands in the way of a cluster, or soon will, and what to do about it.
//!
//! It looks at the machine (disk, limits) and at the members, whom it finds by the endpoints, and changes nothing but for
//! a small file in `--data-dir`, which it removes. Each check ends as ok, warn (it works, and something is not as it
//! should be) or fail (it does not work). Nothing is guessed: what could not be looked at is said to be so.
//!
//! Files: [`machine`] what can be seen here · [`look`] asking the members · [`judge`] what their answers mean ·
//! [`finding`] how it is told.

mod finding;
mod judge;
mod look;
mod machine;

use std::path::Path;
use std::process::ExitCode;

use clap::{ArgMatches, Command};

use self::finding::{Findings, Verdict};
use super::args::{text, value};
use super::ctl::Context;
use super::endpoint::check_health;
use super::failed::{Failed, exit};

/// The verb.
pub fn command() -> Command {
    Command::new("doctor")
        .about("Look for what is wrong, or soon will be: disk, limits, clocks, quorum, versions; says what to do")
        .long_about(
            "Look for what is wrong, or soon will be, on this machine and in the cluster.\n\nEach check tells ok, warn or \
             fail, what was found, and what to do next. Exits with 1 if one fails. The members are found by \
             --endpoints; run it on a member's machine, with its --data-dir, to see its disk too.",
        )
        .arg(value(
            "data-dir",
            "A member's data directory, or where it is to be: its disk is tried with real syncs",
        ))
}

/// Looks, and tells.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let mut findings = vec![machine::open_files()];
    match text(matches, "data-dir") {
        "" => {}
        dir => {
            let dir = Path::new(dir).to_path_buf();
            let tried =
                tokio::task::spawn_blocking(move || [machine::sync(&dir), machine::space(&dir)]).await;
            findings.extend(tried.map_err(|error| Failed::error(error.to_string()))?);
        }
    }
    let cluster = look::members(context).await;
    if cluster.is_silent() {
        findings.push(machine::nobody(context.client.endpoints()).await);
    } else {
        let read = check_health(&context.client).await;
        findings.extend(judge::all(&cluster, &read));
    }
    let findings = Findings(findings);
    context.print(findings.lines().into_bytes(), &findings)?;
    Ok(match findings.worst() {
        Verdict::Fail => ExitCode::from(exit::ERROR),
        _ => ExitCode::SUCCESS,
    })
}
