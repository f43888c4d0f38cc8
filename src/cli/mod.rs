//! The command line: the server, a cluster to try, and etcdctl's verbs.
//!
//! Data goes to stdout, everything else to stderr.

mod args;
mod auth;
mod bench;
mod browse;
mod chaos;
mod check;
mod cluster;
mod ctl;
mod docs;
mod doctor;
mod endpoint;
mod events;
mod explain;
mod failed;
mod format;
mod import;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod member;
mod mirror;
mod output;
mod password;
mod recover;
mod snapshot;
mod top;
mod txn;
mod watch;
mod words;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZero;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command};
use tokio::runtime::Runtime;

use crate::config::playground::{self, Playground};
use crate::config::{self, Values};
use failed::exit;

/// Parses the arguments and does what they say.
pub fn run() -> ExitCode {
    let given: Vec<OsString> = std::env::args_os().collect();
    let command = match ctl::is_etcdctl() {
        true => etcdctl_command(),
        false => command(),
    };
    let given = match command.find_subcommand("serve") {
        Some(serve) => args::with_two_dashes(serve, given),
        None => given,
    };
    let given = args::spelled_out(&command, given);
    let matches = match command.try_get_matches_from(given) {
        Ok(matches) => matches,
        Err(error) => {
            // Where help goes; an error here could not be told anyway.
            let _ = error.print();
            return ExitCode::from(usage_code(&error));
        }
    };
    abort_on_panic();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("pontoon: cannot start: {error}");
            return ExitCode::from(exit::ERROR);
        }
    };
    let code = runtime.block_on(dispatch(&matches));
    // A request that is still blocked in a thread must not hold up the exit.
    runtime.shutdown_background();
    code
}

/// One worker for each core but one, where the threads are that write, sync, save, and tell those who watch. A worker more
/// is a worker that is woken in vain. `TOKIO_WORKER_THREADS` says otherwise.
fn runtime() -> std::io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        builder.worker_threads(cores.saturating_sub(1).max(1));
    }
    builder.enable_all().build()
}

/// etcdctl's code for what was typed wrong: 128 for arguments, 1 for options and verbs that there are not.
fn usage_code(error: &clap::Error) -> u8 {
    let is_option = || match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => name.starts_with('-'),
        _ => false,
    };
    match error.kind() {
        _ if !error.use_stderr() => 0,
        ErrorKind::MissingRequiredArgument => exit::BAD_ARGUMENTS,
        ErrorKind::UnknownArgument if !is_option() => exit::BAD_ARGUMENTS,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => exit::BAD_ARGUMENTS,
        _ => exit::ERROR,
    }
}

fn command() -> Command {
    let serve = config::arguments(Command::new("serve").about("Run one member of a cluster"));
    let command = Command::new("pontoon")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A replicated key-value store that speaks the etcd v3 API")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve)
        .subcommand(cluster::command())
        .subcommand(recover::command());
    ctl::commands(command).subcommands(docs::commands())
}

/// The verbs that etcdctl has, and ours that go with them.
fn etcdctl_command() -> Command {
    let command = Command::new(ctl::ETCDCTL)
        .version(env!("CARGO_PKG_VERSION"))
        .about("A client of Pontoon and of etcd")
        .subcommand_required(true)
        .arg_required_else_help(true);
    ctl::commands(command).subcommands(docs::commands())
}

async fn dispatch(matches: &ArgMatches) -> ExitCode {
    let result = match matches.subcommand() {
        Some(("serve", matches)) => serve(matches).await,
        Some(("cluster", matches)) => cluster::run(matches).await,
        Some(("completion", matches)) => docs::completion(command(), matches),
        Some(("man", matches)) => docs::man(command(), matches),
        Some(("recover", matches)) => recover::run(matches),
        Some((verb, verb_matches)) => return ctl::run(matches, verb, verb_matches).await,
        None => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pontoon: {error:#}");
            match error.is::<crate::server::Removed>() {
                true => ExitCode::from(exit::REMOVED),
                false => ExitCode::from(exit::ERROR),
            }
        }
    }
}

async fn serve(matches: &ArgMatches) -> anyhow::Result<()> {
    if matches.get_flag("version") {
        println!("pontoon Version: {}", env!("CARGO_PKG_VERSION"));
        println!("etcd Version: {}", crate::api::ETCD_VERSION);
        return Ok(());
    }
    let values = Values::gather(matches, &|name| std::env::var(name).ok())?;
    if matches.get_flag("print-config") {
        print!("{values}");
        return Ok(());
    }
    let mut config = values.config()?;
    if let Ok(text) = std::env::var(playground::VARIABLE) {
        let playground = Playground::parse(&text, &config)?;
        config.http.control = Some(playground.control);
        config.detours = playground.detours;
    }
    start_logging(values.get("log-level"), values.get("log-format"))?;
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let unknown = config::unknown_variables(variables);
    for line in values.without_effect().into_iter().chain(unknown) {
        tracing::warn!("{line}");
    }
    crate::server::run(config).await
}

fn start_logging(level: &str, format: &str) -> anyhow::Result<()> {
    // etcd's names for levels above error.
    let level = match level {
        "dpanic" | "panic" | "fatal" => "error",
        level => level,
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) => filter,
        // openraft tells every step, and every request that its caller gave up, as an error; what matters of it we
        // see in its metrics and say ourselves.
        Err(_) if !level.contains(['=', ',']) => format!("{level},openraft=off,sled=warn,h2=warn"),
        Err(_) => level.to_string(),
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&filter)
        .map_err(|error| anyhow::anyhow!("--log-level {level:?}: {error}"))?;
    let pretty = match format {
        "auto" => std::io::stderr().is_terminal(),
        "pretty" | "console" => true,
        "json" => false,
        _ => anyhow::bail!("--log-format {format:?}: auto, pretty (or console) or json"),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match pretty {
        true => subscriber.with_target(false).init(),
        false => subscriber.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A panic in one task must end the process, however it was built: a member that half works is worse than one that
/// stopped, as the others do not take over from it.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
