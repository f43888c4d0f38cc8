//! lock and elect: what one client at a time has.
//!
//! Both hang on a [`Session`]: however this process ends, the lease ends soon after it, and with the lease what was
//! held. When it ends in an orderly way, by Ctrl-C too, the lease is revoked, and the next in the queue need not wait.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};
use rustix::process::{Pid, kill_process};
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::{bytes, flag, given_bytes, int, number, positional};
use super::ctl::Context;
use super::failed::{Failed, exit};
use super::format::pair_lines;
use super::output;
use crate::client::{ClientError, Session};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::pb::v3electionpb::{CampaignRequest, LeaderRequest};
use crate::pb::v3lockpb::LockRequest;

/// How long a candidate's lease lives, in seconds.
const ELECTION_TTL: i64 = 60;
/// Before another endpoint is asked, when the last could not serve.
const RETRY: Duration = Duration::from_millis(200);

const HELP_LOCK: &str = "\
Waits until the lock is free, takes it, prints its key and holds it until this is stopped. With a \
command: runs it while the lock is held, with the key in ETCD_LOCK_KEY and the revision in \
ETCD_LOCK_REV, and exits as the command does.

If the lock is lost, because no member could be reached for its time to live, the command is \
terminated: somebody else may have the lock by then.

Examples:
  pontoon lock backup -- ./backup.sh
  pontoon lock deploy --ttl 30 ./deploy --all";

const HELP_ELECT: &str = "\
With a proposal: waits until it is elected, prints its key and its value, and leads until this is \
stopped. Without, or with -l: prints who leads, and whoever leads next.

Examples:
  pontoon elect primary \"$(hostname)\"
  pontoon elect -l primary";

/// The verbs.
pub fn commands() -> Vec<Command> {
    let exec = Arg::new("exec")
        .value_name("COMMAND")
        .help("A command to run while the lock is held")
        .value_parser(clap::value_parser!(OsString))
        .num_args(0..)
        .trailing_var_arg(true);
    vec![
        Command::new("lock")
            .about("Hold a lock, or run a command under it")
            .arg(positional("name", "The lock").required(true))
            .arg(exec)
            .arg(
                number(
                    "ttl",
                    "How long the lock outlives a holder that is gone, in seconds [default: 10]",
                )
                .default_value("10"),
            )
            .after_help(HELP_LOCK),
        Command::new("elect")
            .about("Lead, or see who leads")
            .arg(positional("name", "The election").required(true))
            .arg(positional("proposal", "What the others are to see of a leader"))
            .arg(flag("listen", "See who leads").short('l'))
            .after_help(HELP_ELECT),
    ]
}

/// Runs one.
pub async fn run(context: &Context, verb: &str, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    if verb == "lock" {
        return lock(context, matches).await;
    }
    let proposal = given_bytes(matches, "proposal");
    match (matches.get_flag("listen"), proposal) {
        (true, Some(_)) => Err(Failed::arguments("proposal given but -l is set")),
        (_, None) => observe(context, matches).await,
        (_, Some(value)) => campaign(context, bytes(matches, "name"), value).await,
    }
}

async fn campaign(context: &Context, name: Bytes, value: Bytes) -> Result<ExitCode, Failed> {
    let mut signals = Signals::listen()?;
    let session = Session::open(context.client.clone(), ELECTION_TTL).await?;
    let lease = session.lease();
    let request = CampaignRequest { name, lease, value };
    let leading = async {
        let campaign = patiently(|| context.client.campaign(request.clone()));
        let elected = signals.unless_told(async { Ok(campaign.await?) }).await?;
        let leader = elected.leader.unwrap_or_default();
        print_held(context, &leader.key).await?;
        signals.told().await;
        Ok(ExitCode::SUCCESS)
    };
    let led = while_alive(&session, leading).await;
    released(session, led).await
}

async fn lock(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let (name, ttl) = (bytes(matches, "name"), int(matches, "ttl"));
    let command = matches.get_many::<OsString>("exec").unwrap_or_default().cloned();
    let command: Vec<OsString> = command.collect();
    let mut signals = Signals::listen()?;
    let session = Session::open(context.client.clone(), ttl).await?;
    let request = LockRequest {
        name,
        lease: session.lease(),
    };
    let locking = async {
        let locking = patiently(|| context.client.lock(request.clone()));
        signals.unless_told(async { Ok(locking.await?) }).await
    };
    let held = match while_alive(&session, locking).await {
        Err(failed) => Err(failed),
        Ok(owned) if command.is_empty() => {
            let holding = async {
                print_held(context, &owned.key).await?;
                signals.told().await;
                Ok(ExitCode::SUCCESS)
            };
            while_alive(&session, holding).await
        }
        Ok(owned) => {
            let revision = owned.header.as_ref().map_or(0, |header| header.revision);
            under_lock(&session, &mut signals, &command, &owned.key, revision).await
        }
    };
    released(session, held).await
}

/// Ctrl-C, and the service manager's word to stop. Listened to before there is anything that must be released: until
/// then a signal just ends the process.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, Failed> {
        let listen =
            |kind| signal(kind).map_err(|error| Failed::error(format!("cannot listen to signals: {error}")));
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Ready when one has come.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// The work, unless a signal comes before it is done.
    async fn unless_told<T>(&mut self, work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
        tokio::select! {
            done = work => done,
            () = self.told() => Err(Failed::silent(exit::ERROR)),
        }
    }
}

/// The work, unless the session is lost before it is done.
async fn while_alive<T>(
    session: &Session,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    tokio::select! {
        done = work => done,
        () = session.lost() => Err(Failed::error("session expired")),
    }
}

/// Ends the session, whatever happened, and then says what happened.
async fn released(session: Session, outcome: Result<ExitCode, Failed>) -> Result<ExitCode, Failed> {
    if let Err(error) = session.close().await {
        output::say(format!("not released, but soon expired: {error}"));
    }
    outcome
}

/// Asks until some endpoint serves. What is asked must be harmless when asked twice.
async fn patiently<T, F>(ask: impl Fn() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    loop {
        match ask().await {
            Err(error) if may_recover(&error) => output::say(format!("trying again: {error}")),
            answer => return answer,
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn may_recover(error: &ClientError) -> bool {
    use tonic::Code::{Cancelled, Internal, Unavailable, Unknown};
    match error {
        ClientError::Unreachable { .. } => true,
        // A lease that is gone is "unknown" to etcd's lock service.
        ClientError::Server(status) if status.message().contains("lease not found") => false,
        ClientError::Server(status) => match status.code() {
            Unavailable | Cancelled | Internal => true,
            Unknown => status.message().contains("transport") || status.message().contains("h2 protocol"),
            _ => false,
        },
        _ => false,
    }
}

/// Prints the pair of the key that is held.
async fn print_held(context: &Context, key: &[u8]) -> Result<(), Failed> {
    let request = RangeRequest {
        key: key.to_vec().into(),
        ..RangeRequest::default()
    };
    let response = context.client.range(request).await?;
    context.print(pair_lines(&response.kvs, context.style), &response)
}

/// Runs a command while the session lives.
async fn under_lock(
    session: &Session,
    signals: &mut Signals,
    command: &[OsString],
    key: &[u8],
    revision: i64,
) -> Result<ExitCode, Failed> {
    let spawned = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .env("ETCD_LOCK_KEY", String::from_utf8_lossy(key).into_owned())
        .env("ETCD_LOCK_REV", revision.to_string())
        .spawn();
    let mut child = spawned.map_err(|error| {
        let name = command[0].to_string_lossy();
        Failed::error(format!("cannot run {name:?}: {error}"))
    })?;
    tokio::select! {
        status = child.wait() => return ended(status),
        () = session.lost() => {
            output::say("Error: session expired: the lock is lost, the command is terminated");
            terminate(&child);
        }
        // A terminal tells the command too; whoever told us alone meant both.
        () = signals.told() => terminate(&child),
    }
    ended(child.wait().await)
}

fn terminate(child: &Child) {
    let id = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(id) = id {
        // It may have ended meanwhile.
        let _ = kill_process(id, rustix::process::Signal::TERM);
    }
}

fn ended(status: std::io::Result<ExitStatus>) -> Result<ExitCode, Failed> {
    let status = status.map_err(|error| Failed::error(format!("cannot wait for the command: {error}")))?;
    let by_signal = || {
        status
            .signal()
            .map_or(i32::from(exit::ERROR), |signal| 128 + signal)
    };
    let code = status.code().unwrap_or_else(by_signal);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(exit::ERROR)))
}

/// Prints each leader, across the loss of endpoints.
async fn observe(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let name = bytes(matches, "name");
    let mut signals = Signals::listen()?;
    let observing = async {
        let mut last = 0;
        loop {
            let request = LeaderRequest { name: name.clone() };
            let mut leaders = patiently(|| context.client.observe(request.clone())).await?;
            while let Ok(Some(leader)) = leaders.message().await {
                let revision = leader.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                if std::mem::replace(&mut last, revision) == revision {
                    // Already shown, before the endpoint was lost.
                    continue;
                }
                let response = RangeResponse {
                    header: leader.header,
                    kvs: leader.kv.into_iter().collect(),
                    ..RangeResponse::default()
                };
                context.print(pair_lines(&response.kvs, context.style), &response)?;
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        outcome = observing => outcome,
        () = signals.told() => Ok(ExitCode::SUCCESS),
    }
}
