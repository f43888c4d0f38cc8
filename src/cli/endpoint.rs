//! endpoint status, health, hashkv; health.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{ArgMatches, Command};
use tonic::Code;

use super::args::{flag, int, number};
use super::ctl::Context;
use super::failed::{Failed, exit};
use super::format::{Endpoints, Form, Hash, Health, Status, alarm_name};
use super::output;
use crate::client::{Client, ClientError};
use crate::pb::etcdserverpb::{AlarmRequest, HashKvRequest, RangeRequest};

/// The verbs.
pub fn commands() -> Vec<Command> {
    let cluster = flag(
        "cluster",
        "Ask all members of the cluster, at the addresses they advertise",
    );
    vec![
        Command::new("endpoint")
            .about("The endpoints, one by one: status, health, hashkv")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .arg(cluster.global(true))
            .subcommand(Command::new("status").about("Version, size, leader and log of each"))
            .subcommand(Command::new("health").about("Whether each can commit; exits with 1 if one can't"))
            .subcommand(
                Command::new("hashkv")
                    .about("A checksum of the pairs of each: equal, unless members have parted")
                    .arg(number("rev", "Up to this revision; all if it is not given")),
            ),
        Command::new("health").about("Whether the member here is healthy, by its exit code"),
    ]
}

/// Runs one.
pub async fn run(context: &Context, verb: &str, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match matches.subcommand() {
        _ if verb == "health" => own_health(context).await,
        Some(("health", matches)) => health(context, matches).await,
        Some(("hashkv", matches)) => hash_kv(context, matches).await,
        Some((_, matches)) => status(context, matches).await,
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The endpoints given, or with `--cluster` those that the members advertise.
pub async fn endpoints(context: &Context, matches: &ArgMatches) -> Result<Vec<String>, Failed> {
    if !matches.get_flag("cluster") {
        return Ok(context.client.endpoints().to_vec());
    }
    let members = context.client.member_list().await?.members;
    Ok(members
        .into_iter()
        .flat_map(|member| member.client_ur_ls)
        .collect())
}

fn code(failed: bool) -> ExitCode {
    ExitCode::from(if failed { exit::ERROR } else { 0 })
}

async fn status(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let (mut answers, mut failed) = (Vec::new(), false);
    for endpoint in endpoints(context, matches).await? {
        match context.client.of(&endpoint)?.status().await {
            Ok(response) => answers.push(Status { endpoint, response }),
            Err(error) => {
                output::say(format!(
                    "Failed to get the status of endpoint {endpoint} ({error})"
                ));
                failed = true;
            }
        }
    }
    let answers = Endpoints(answers);
    context.print(answers.lines(), &answers)?;
    Ok(code(failed))
}

async fn hash_kv(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let (mut answers, mut failed) = (Vec::new(), false);
    let revision = int(matches, "rev");
    for endpoint in endpoints(context, matches).await? {
        match context
            .client
            .of(&endpoint)?
            .hash_kv(HashKvRequest { revision })
            .await
        {
            Ok(response) => answers.push(Hash { endpoint, response }),
            Err(error) => {
                output::say(format!("Failed to get the hash of endpoint {endpoint} ({error})"));
                failed = true;
            }
        }
    }
    let answers = Endpoints(answers);
    context.print(answers.lines(), &answers)?;
    Ok(code(failed))
}

/// As etcdctl does: a read that needs a quorum, and no alarm. To be refused for one's name is to be answered.
pub async fn check_health(client: &Client) -> Result<(), String> {
    let request = RangeRequest {
        key: Bytes::from_static(b"health"),
        ..RangeRequest::default()
    };
    let denied = |error: &ClientError| error.code() == Some(Code::PermissionDenied);
    match client.range(request).await {
        Err(error) if !denied(&error) => return Err(error.to_string()),
        _ => {}
    }
    match client.alarm(AlarmRequest::default()).await {
        Ok(response) if response.alarms.is_empty() => Ok(()),
        Ok(response) => {
            let names = response
                .alarms
                .iter()
                .map(|alarm| format!("{} ", alarm_name(alarm)));
            Err(format!("Active Alarm(s): {}", names.collect::<String>()))
        }
        Err(error) if denied(&error) => Ok(()),
        Err(_) => Err("Unable to fetch the alarm list".to_string()),
    }
}

async fn health(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let (mut answers, mut healthy) = (Vec::new(), true);
    for endpoint in endpoints(context, matches).await? {
        let started = Instant::now();
        let error = check_health(&context.client.of(&endpoint)?)
            .await
            .err()
            .unwrap_or_default();
        let took = format!("{:?}", started.elapsed());
        healthy &= error.is_empty();
        let answer = Health {
            endpoint,
            error,
            took,
        };
        if context.form == Form::Simple {
            say_health(&answer)?;
        }
        answers.push(answer);
    }
    let answers = Endpoints(answers);
    context.print(Vec::new(), &answers)?;
    if !healthy {
        output::say("Error: unhealthy cluster");
    }
    Ok(code(!healthy))
}

fn say_health(health: &Health) -> Result<(), Failed> {
    let Health {
        endpoint,
        error,
        took,
    } = health;
    if error.is_empty() {
        return output::line(format!(
            "{endpoint} is healthy: successfully committed proposal: took = {took}"
        ));
    }
    output::say(format!(
        "{endpoint} is unhealthy: failed to commit proposal: {error}"
    ));
    Ok(())
}

/// For the health checks of containers.
async fn own_health(context: &Context) -> Result<ExitCode, Failed> {
    let started = Instant::now();
    let took = |started: Instant| -> Duration { started.elapsed() };
    match check_health(&context.client).await {
        Ok(()) => output::line(format!("healthy: took {:?}", took(started)))?,
        Err(error) => {
            output::say(format!("unhealthy: {error}"));
            return Ok(code(true));
        }
    }
    Ok(ExitCode::SUCCESS)
}
