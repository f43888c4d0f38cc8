//! `pontoon snapshot`: backups to files, and what is in one.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use super::ctl::Context;
use super::failed::Failed;
use super::{format, output};
use crate::backup::{Backup, Problem, Status};
use crate::config;
use crate::server::restore::Restore;

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
        .subcommand(restore_command().arg(file()))
}

fn restore_command() -> Command {
    let value =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("VALUE").help(help);
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("restore")
        .about("Make the data directory of a member of a new cluster that begins with a backup")
        .arg(value("name", "The member's name").default_value("default"))
        .arg(value(
            "data-dir",
            "The directory to be made [default: NAME.pontoon]",
        ))
        .arg(value(
            "initial-cluster",
            "All members of the new cluster, name=url,name=url [default: whatever it is started with]",
        ))
        .arg(value(
            "initial-cluster-token",
            "The new cluster's token [default: whatever it is started with]",
        ))
        .arg(value(
            "initial-advertise-peer-urls",
            "This member's peer URLs, as in --initial-cluster",
        ))
        .arg(flag(
            "skip-hash-check",
            "Do without the checksum: a database file of an etcd's data directory has none",
        ))
        .arg(
            value(
                "bump-revision",
                "Raise the newest revision by so much, above what clients may have seen",
            )
            .value_parser(clap::value_parser!(u32))
            .default_value("0"),
        )
        .arg(flag(
            "mark-compacted",
            "Make all before the newest revision unreadable, so that watchers from there start anew",
        ))
}

/// Runs it.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match matches.subcommand() {
        Some(("save", matches)) => save(context, path(matches)).await?,
        Some(("status", matches)) => status(context, path(matches))?,
        Some((_, matches)) => restore(matches)?,
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

fn restore(matches: &ArgMatches) -> Result<(), Failed> {
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let bump = matches.get_one::<u32>("bump-revision").copied().unwrap_or(0);
    let mark_compacted = matches.get_flag("mark-compacted");
    if (bump > 0) != mark_compacted {
        return Err(Failed::arguments(
            "--bump-revision and --mark-compacted go together: clients that have seen later revisions must start anew",
        ));
    }
    let name = text("name");
    let own = text("initial-advertise-peer-urls");
    let initial_cluster = members(&name, &text("initial-cluster"), &own)?;
    let data_dir = match text("data-dir") {
        dir if dir.is_empty() => PathBuf::from(format!("{name}.pontoon")),
        dir => PathBuf::from(dir),
    };
    let restore = Restore {
        file: path(matches).to_path_buf(),
        skip_hash_check: matches.get_flag("skip-hash-check"),
        data_dir: data_dir.clone(),
        name: name.clone(),
        initial_cluster,
        token: text("initial-cluster-token"),
        bump_revision: i64::from(bump),
        mark_compacted,
    };
    let done = restore
        .run()
        .map_err(|error| Failed::error(format!("{error:#}")))?;
    let compacted = match done.compacted {
        0.. => format!(", compacted at {}", done.compacted),
        _ => String::new(),
    };
    let dir = data_dir.display();
    let text = format!(
        "restored {} versions up to revision {}{compacted} into {dir}\nstart it with: pontoon serve --name {name} \
         --data-dir {dir} …; the cluster begins when all its members have started\n",
        done.versions, done.revision,
    );
    output::write(text.as_bytes())
}

/// The members as `pontoon serve` will have them; nothing, if none are given.
fn members(name: &str, initial_cluster: &str, own: &str) -> Result<String, Failed> {
    if initial_cluster.is_empty() {
        return Ok(String::new());
    }
    let members = config::parse_initial_cluster(initial_cluster)
        .map_err(|error| Failed::arguments(format!("--initial-cluster: {error:#}")))?;
    let Some(urls) = members.get(name) else {
        return Err(Failed::arguments(format!(
            "--initial-cluster: this member, --name {name:?}, is not in it"
        )));
    };
    match own.is_empty() || own.split(',').eq(urls.iter().map(String::as_str)) {
        true => Ok(config::initial_cluster_text(&members)),
        false => Err(Failed::arguments(format!(
            "--initial-advertise-peer-urls {own} is not what --initial-cluster says of {name:?}"
        ))),
    }
}
