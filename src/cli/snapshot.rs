//! `pontoon snapshot`: backups to files, and what is in one.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::ctl::Context;
use super::failed::Failed;
use super::{format, output};
use crate::backup::{Backup, Problem, Status};

/// How long the stream may be silent: the other side writes the backup out before it sends any of it.
const SILENCE: Duration = Duration::from_secs(600);

/// The verb.
pub fn command() -> Command {
    let file = || {
        Arg::new("file")
            .value_name("FILE")
            .required(true)
            .help("The backup")
            .value_parser(clap::value_parser!(PathBuf))
    };
    Command::new("snapshot")
        .about("Back a cluster up, look at a backup, restore one")
        .subcommand_required(true)
        .subcommand(
            Command::new("save")
                .about("Write a backup of the first endpoint that answers to FILE")
                .arg(file()),
        )
        .subcommand(
            Command::new("status")
                .about("Check a backup, and tell what is in it")
                .arg(file()),
        )
}

/// Runs it.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match matches.subcommand() {
        Some(("save", matches)) => save(context, path(matches)).await?,
        Some((_, matches)) => status(context, path(matches))?,
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn path(matches: &ArgMatches) -> &Path {
    matches.get_one::<PathBuf>("file").expect("it is required")
}

/// Whatever goes wrong on the way: FILE is what it was, or a whole backup.
async fn save(context: &Context, file: &Path) -> Result<(), Failed> {
    let started = Instant::now();
    let part = PathBuf::from(format!("{}.part", file.display()));
    let saved = match receive(context, &part).await {
        Ok(()) => finish(&part, file).map_err(|why| Failed::error(format!("{}: {why}", file.display()))),
        Err(failed) => Err(failed),
    };
    let status = match saved {
        Ok(status) => status,
        Err(failed) => {
            // What is left of it is of no use; if it can't be removed, the next one overwrites it.
            let _ = std::fs::remove_file(&part);
            return Err(failed);
        }
    };
    output::say(format!(
        "revision {}, {} pairs, {} in {:.1?}; checksum and structure are right",
        status.revision,
        status.total_key,
        format::size(status.total_size as i64),
        started.elapsed()
    ));
    output::write(format!("Snapshot saved at {}\n", file.display()).as_bytes())
}

async fn receive(context: &Context, part: &Path) -> Result<(), Failed> {
    let cannot = |error: io::Error| Failed::error(format!("cannot write {}: {error}", part.display()));
    let mut stream = context.client.snapshot().await?;
    let mut file = File::create(part).map_err(cannot)?;
    let mut complete = false;
    loop {
        let message = tokio::time::timeout(SILENCE, stream.message()).await;
        let message = message.map_err(|_| Failed::error("the backup stopped coming"))?;
        let Some(message) = message.map_err(|status| Failed::error(status.message()))? else {
            break;
        };
        complete = message.remaining_bytes == 0;
        file.write_all(&message.blob).map_err(cannot)?;
    }
    match complete {
        true => file.sync_all().map_err(cannot),
        false => Err(Failed::error(
            "the backup is not complete: the stream ended early",
        )),
    }
}

/// Reads it back, whole, before it gets its name.
fn finish(part: &Path, file: &Path) -> Result<Status, Problem> {
    let status = Backup::open(part, false)?.status()?;
    std::fs::rename(part, file)?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(status)
}

fn status(context: &Context, file: &Path) -> Result<(), Failed> {
    let opened = match Backup::open(file, false) {
        Err(Problem::NoChecksum) => {
            output::say(format!("{}: there is no checksum to be compared", file.display()));
            Backup::open(file, true)
        }
        opened => opened,
    };
    let status = opened.and_then(|backup| Ok(backup.status()?));
    let status = status.map_err(|why| Failed::error(format!("{}: {why}", file.display())))?;
    let json = json!({
        "hash": status.hash,
        "revision": status.revision,
        "totalKey": status.total_key,
        "totalSize": status.total_size,
    });
    let row = vec![
        format!("{:x}", status.hash),
        status.revision.to_string(),
        status.total_key.to_string(),
        format::size(status.total_size as i64),
    ];
    let text = match context.form {
        format::Form::Simple => format!("{}\n", row.join(", ")),
        format::Form::Json => format!("{json}\n"),
        format::Form::Table => {
            let head = ["Hash", "Revision", "Total Keys", "Total Size"];
            format::table(&head, vec![row])
        }
        format::Form::Protobuf => return Err(context.no_such_form()),
        format::Form::Fields => format!(
            "\"Hash\" : {}\n\"Revision\" : {}\n\"Keys\" : {}\n\"Size\" : {}\n",
            status.hash, status.revision, status.total_key, status.total_size
        ),
    };
    output::write(text.as_bytes())
}
