//! alarm list, alarm disarm, defrag, move-leader.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::args::{flag, member_id, text, value, word};
use super::ctl::Context;
use super::endpoint::endpoints;
use super::failed::{Failed, exit};
use super::format::alarm_lines;
use super::output;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmRequest, AlarmResponse, DefragmentRequest, MoveLeaderRequest};

/// The verbs.
pub fn commands() -> Vec<Command> {
    vec![
        Command::new("alarm")
            .about("What is wrong with the cluster: list, disarm")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(Command::new("list").about("List the alarms"))
            .subcommand(Command::new("disarm").about("Clear all alarms, once their causes are gone")),
        Command::new("defrag")
            .about("Give back the space that compaction freed")
            .arg(flag(
                "cluster",
                "On all members of the cluster, at the addresses they advertise",
            ))
            .arg(
                value(
                    "data-dir",
                    "Not served: members reclaim their space while they run",
                )
                .hide(true),
            ),
        Command::new("move-leader")
            .about("Hand the leadership to another member; give all members as --endpoints")
            .arg(
                word(
                    "id",
                    "That member, by its id in hexadecimal, as `member list` shows it",
                )
                .required(true),
            ),
    ]
}

/// Runs one.
pub async fn run(context: &Context, verb: &str, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match (verb, matches.subcommand()) {
        ("alarm", Some(("disarm", _))) => disarm(context).await,
        ("alarm", _) => {
            let response = context.client.alarm(AlarmRequest::default()).await?;
            context.print(alarm_lines(&response), &response)?;
            Ok(ExitCode::SUCCESS)
        }
        ("defrag", _) => defrag(context, matches).await,
        _ => move_leader(context, matches).await,
    }
}

/// One request for each alarm there is; prints those that were cleared.
async fn disarm(context: &Context) -> Result<ExitCode, Failed> {
    let active = context.client.alarm(AlarmRequest::default()).await?;
    let mut cleared = AlarmResponse::default();
    for alarm in active.alarms {
        let request = AlarmRequest {
            action: AlarmAction::Deactivate as i32,
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        cleared.alarms.extend(context.client.alarm(request).await?.alarms);
    }
    context.print(alarm_lines(&cleared), &cleared)?;
    Ok(ExitCode::SUCCESS)
}

async fn defrag(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    if !text(matches, "data-dir").is_empty() {
        let reason = "--data-dir: not served, as members reclaim their space while they run";
        return Err(Failed::feature(reason));
    }
    let mut failed = false;
    for endpoint in endpoints(context, matches).await? {
        match context
            .client
            .of(&endpoint)?
            .defragment(DefragmentRequest {})
            .await
        {
            Ok(_) => output::line(format!("Finished defragmenting etcd member[{endpoint}]"))?,
            Err(error) => {
                output::say(format!("Failed to defragment etcd member[{endpoint}] ({error})"));
                failed = true;
            }
        }
    }
    Ok(ExitCode::from(if failed { exit::ERROR } else { 0 }))
}

/// The leader alone can hand over: it is looked for among the endpoints.
async fn move_leader(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let target_id = member_id(text(matches, "id"))?;
    for endpoint in context.client.endpoints() {
        let client = context.client.of(endpoint)?;
        let Ok(status) = client.status().await else {
            continue;
        };
        let member_id = status.header.as_ref().map_or(0, |header| header.member_id);
        if member_id != status.leader {
            continue;
        }
        let response = client.move_leader(MoveLeaderRequest { target_id }).await?;
        let said = format!("Leadership transferred from {member_id:x} to {target_id:x}");
        context.print_line(said, &response)?;
        return Ok(ExitCode::SUCCESS);
    }
    let asked = context.client.endpoints().join(", ");
    Err(Failed::arguments(format!(
        "no leader endpoint given at [{asked}]"
    )))
}
