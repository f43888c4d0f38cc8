//! watch: once, interactively, and with a command for each event.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io::BufRead;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{ExitCode, Stdio};

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use super::args::{OPEN_END, flag, given_bytes, int, number, positional, prefix_range};
use super::ctl::Context;
use super::failed::{Failed, exit};
use super::format::{event_lines, quote, type_name};
use super::{output, words};
use crate::client::WatchError;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};
use crate::pb::mvccpb::Event;

/// Lines that were typed and not yet read. When it is full, typing waits.
const LINES: usize = 16;

const HELP: &str = "\
Prints each change as it happens, and goes on to another endpoint when one is lost: no change is \
missed, none comes twice.

Examples:
  pontoon watch greeting
  pontoon watch users/ --prefix --prev-kv
  pontoon watch config --rev 17                every change since revision 17, then those that come
  pontoon watch jobs/ --prefix -- ./handle     runs ./handle for each event

A command finds the event in ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and \
ETCD_WATCH_VALUE; the last three are quoted. If it fails, so does the watch.

With -i, lines are read from stdin:
  watch [OPTIONS] KEY [RANGE_END] [-- COMMAND…]
  progress

Without KEY, the range is that of ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END.";

/// The verb.
pub fn commands() -> Vec<Command> {
    vec![command()]
}

fn command() -> Command {
    let exec = Arg::new("exec")
        .value_name("COMMAND")
        .help("A command to run for each event")
        .value_parser(clap::value_parser!(OsString))
        .num_args(0..)
        .last(true);
    Command::new("watch")
        .about("Print changes as they happen")
        .arg(positional("key", "The key"))
        .arg(positional("range_end", "The key to stop before"))
        .arg(exec)
        .arg(flag("prefix", "All keys that begin with KEY"))
        .arg(flag("from-key", "All keys from KEY on"))
        .arg(number("rev", "Begin with this revision"))
        .arg(flag("prev-kv", "Print the pairs as they were before, too"))
        .arg(flag(
            "progress-notify",
            "Say from time to time how far the watch is, when nothing happens",
        ))
        .arg(flag("interactive", "Read watches from stdin").short('i'))
        .after_help(HELP)
}

/// Runs it.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    if matches.get_flag("interactive") {
        return interactive(context).await;
    }
    let separator = std::env::args_os().any(|arg| arg == "--");
    let target = Target::of(matches, separator)?;
    let (_progress, asked) = watch::channel(());
    match follow(context, target, asked).await {
        Err(End::Failed(failed)) => Err(failed),
        Err(End::Canceled) => {
            let message = "watch is canceled by the server";
            Err(Failed::new(exit::INTERRUPTED, message))
        }
        Ok(never) => match never {},
    }
}

/// What is watched, and what is run.
struct Target {
    request: WatchCreateRequest,
    exec: Vec<OsString>,
}

impl Target {
    fn of(matches: &ArgMatches, separator: bool) -> Result<Target, Failed> {
        let exec = matches.get_many::<OsString>("exec").unwrap_or_default().cloned();
        let exec: Vec<OsString> = exec.collect();
        if separator && exec.is_empty() {
            return Err(Failed::arguments(
                "bad number of arguments (found separator --, but no commands)",
            ));
        }
        let (key, range_end) = watched_range(matches)?;
        let request = WatchCreateRequest {
            key,
            range_end,
            start_revision: int(matches, "rev"),
            progress_notify: matches.get_flag("progress-notify"),
            prev_kv: matches.get_flag("prev-kv"),
            ..WatchCreateRequest::default()
        };
        Ok(Target { request, exec })
    }
}

/// From the arguments, or else from the environment.
fn watched_range(matches: &ArgMatches) -> Result<(Bytes, Bytes), Failed> {
    let from_environment = |name: &str| std::env::var_os(name).map(|value| Bytes::from(value.into_vec()));
    let (key, end) = match given_bytes(matches, "key") {
        Some(key) => (Some(key), given_bytes(matches, "range_end")),
        None => (
            from_environment("ETCDCTL_WATCH_KEY"),
            from_environment("ETCDCTL_WATCH_RANGE_END"),
        ),
    };
    let Some(key) = key else {
        return Err(Failed::arguments("bad number of arguments"));
    };
    match (matches.get_flag("prefix"), matches.get_flag("from-key"), end) {
        (true, true, _) | (true, _, Some(_)) | (_, true, Some(_)) => Err(Failed::arguments(
            "of RANGE_END, `--prefix` and `--from-key` only one can be given",
        )),
        (true, ..) => Ok(prefix_range(key)),
        (_, true, _) => Ok((prefix_range(key).0, OPEN_END)),
        (_, _, end) => Ok((key, end.unwrap_or_default())),
    }
}

/// Why one watch is over.
enum End {
    /// By the server; it has been said why.
    Canceled,
    /// By an error.
    Failed(Failed),
}

impl From<Failed> for End {
    fn from(failed: Failed) -> End {
        End::Failed(failed)
    }
}

async fn follow(
    context: &Context,
    target: Target,
    mut progress: watch::Receiver<()>,
) -> Result<Infallible, End> {
    let canceled = |error: WatchError| canceled(context, error);
    let mut watcher = context.client.watch(target.request).await.map_err(canceled)?;
    loop {
        let response = tokio::select! {
            response = watcher.next() => response.map_err(canceled)?,
            Ok(()) = progress.changed() => {
                watcher.request_progress();
                continue;
            }
        };
        show(context, &response)?;
        if !target.exec.is_empty() {
            for event in &response.events {
                execute(&target.exec, &response, event).await?;
            }
        }
    }
}

/// Says why a watch is over, and prints the response that says it.
fn canceled(context: &Context, error: WatchError) -> End {
    let reason = error.to_string();
    match error {
        WatchError::Client(error) => End::Failed(error.into()),
        WatchError::Compacted(response) | WatchError::Canceled(response) => {
            output::say(format!("watch was canceled ({reason})"));
            match context.print(Vec::new(), response.as_ref()) {
                Ok(()) => End::Canceled,
                Err(failed) => End::Failed(failed),
            }
        }
    }
}

fn show(context: &Context, response: &WatchResponse) -> Result<(), Failed> {
    if response.events.is_empty() {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        output::line(format!("progress notify: {revision}"))?;
    }
    let lines = response
        .events
        .iter()
        .flat_map(|event| event_lines(event, context.style));
    context.print(lines.collect(), response)
}

/// Runs the command for one event.
async fn execute(command: &[OsString], response: &WatchResponse, event: &Event) -> Result<(), Failed> {
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    let pair = event.kv.clone().unwrap_or_default();
    let status = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", quote(type_name(event).as_bytes()))
        .env("ETCD_WATCH_KEY", quote(&pair.key))
        .env("ETCD_WATCH_VALUE", quote(&pair.value))
        .stdin(Stdio::null())
        .status()
        .await;
    let error = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    let words = command.iter().map(|word| quote(word.as_bytes()));
    let words: Vec<String> = words.collect();
    output::say(format!("command [{}] error ({error})", words.join(" ")));
    Err(Failed::silent(exit::ERROR))
}

/// Watches that are read from stdin, all at the same time.
async fn interactive(context: &Context) -> Result<ExitCode, Failed> {
    let mut lines = stdin_lines();
    let (progress, asked) = watch::channel(());
    let mut watches = FuturesUnordered::new();
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            Some(ended) = watches.next() => match ended {
                Err(End::Failed(failed)) => return Err(failed),
                Err(End::Canceled) => continue,
                Ok::<Infallible, _>(never) => match never {},
            },
        };
        let Some(line) = line else {
            return Err(Failed::input("error reading watch request line: EOF"));
        };
        let words: Vec<OsString> = words::split(&line).into_iter().map(OsString::from_vec).collect();
        let text = String::from_utf8_lossy(&line);
        match words.first().map(|word| word.as_bytes()) {
            Some(b"progress") => drop(progress.send(())),
            Some(b"watch") => match read_watch(&words) {
                Ok(target) => watches.push(follow(context, target, asked.clone())),
                Err(reason) => output::say(format!("Invalid command {text} ({reason})")),
            },
            Some(_) => output::say(format!("Invalid command {text} (only support watch)")),
            None => output::say(format!("Invalid command: {text} (watch and progress supported)")),
        }
    }
}

fn read_watch(words: &[OsString]) -> Result<Target, String> {
    let matches = command().try_get_matches_from(words).map_err(|error| {
        let text = error.to_string();
        text.lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_string()
    })?;
    let separator = words.iter().any(|word| word == OsStr::new("--"));
    Target::of(&matches, separator).map_err(|failed| failed.message)
}

/// Reading a terminal blocks: a thread of its own does it.
fn stdin_lines() -> mpsc::Receiver<Vec<u8>> {
    let (sender, lines) = mpsc::channel(LINES);
    std::thread::spawn(move || {
        let stdin = std::io::stdin().lock();
        for line in stdin.split(b'\n').map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
