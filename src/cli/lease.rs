//! lease grant, revoke, timetolive, list, keep-alive.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Command};

use super::args::{decimal, flag, lease_id, text, word};
use super::ctl::Context;
use super::failed::{Failed, exit};
use super::output;
use crate::client::ClientError;
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
};

/// Between two attempts to renew, when one failed.
const RETRY: Duration = Duration::from_millis(200);

/// The verbs.
pub fn commands() -> Vec<Command> {
    let id = || word("id", "The lease, in hexadecimal").required(true);
    vec![
        Command::new("lease")
            .about("Leases, with which keys vanish together: grant, revoke, timetolive, list, keep-alive")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(
                Command::new("grant")
                    .about("Make a lease")
                    .arg(word("ttl", "How long it lives unless it is renewed, in seconds").required(true)),
            )
            .subcommand(
                Command::new("revoke")
                    .about("End a lease; its keys are deleted, in one revision")
                    .arg(id()),
            )
            .subcommand(
                Command::new("timetolive")
                    .about("How long a lease still lives")
                    .arg(id())
                    .arg(flag("keys", "And which keys are attached to it")),
            )
            .subcommand(Command::new("list").about("List the leases"))
            .subcommand(
                Command::new("keep-alive")
                    .about("Renew a lease, again and again until it is gone or this is stopped")
                    .arg(id())
                    .arg(flag("once", "Renew it once")),
            ),
    ]
}

/// Runs one.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match matches.subcommand() {
        Some(("grant", matches)) => grant(context, matches).await?,
        Some(("revoke", matches)) => revoke(context, matches).await?,
        Some(("timetolive", matches)) => time_to_live(context, matches).await?,
        Some(("keep-alive", matches)) => keep_alive(context, matches).await?,
        _ => list(context).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn id(matches: &ArgMatches) -> Result<i64, Failed> {
    lease_id(text(matches, "id"))
}

async fn grant(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let ttl = decimal(matches, "ttl", "TTL")?;
    let request = LeaseGrantRequest { ttl, id: 0 };
    let response = context.client.lease_grant(request).await?;
    let said = format!("lease {:016x} granted with TTL({}s)", response.id, response.ttl);
    context.print_line(said, &response)
}

async fn revoke(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let id = id(matches)?;
    let revoked = context.client.lease_revoke(LeaseRevokeRequest { id }).await;
    let response = revoked.map_err(|error| match error {
        ClientError::Server(status) => {
            Failed::error(format!("failed to revoke lease ({})", status.message()))
        }
        error => error.into(),
    })?;
    context.print_line(format!("lease {id:016x} revoked"), &response)
}

async fn time_to_live(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let (id, keys) = (id(matches)?, matches.get_flag("keys"));
    let response = context
        .client
        .lease_time_to_live(LeaseTimeToLiveRequest { id, keys })
        .await?;
    if response.granted_ttl == 0 && response.ttl == -1 {
        return context.print_line(format!("lease {id:016x} already expired"), &response);
    }
    let mut said = format!(
        "lease {id:016x} granted with TTL({}s), remaining({}s)",
        response.granted_ttl, response.ttl
    );
    if keys {
        let keys = response.keys.iter().map(|key| String::from_utf8_lossy(key));
        said += &format!(", attached keys([{}])", keys.collect::<Vec<_>>().join(" "));
    }
    context.print_line(said, &response)
}

async fn list(context: &Context) -> Result<(), Failed> {
    let response = context.client.lease_leases(LeaseLeasesRequest {}).await?;
    let ids = response.leases.iter().map(|lease| format!("{:016x}\n", lease.id));
    let said = format!(
        "found {} leases\n{}",
        response.leases.len(),
        ids.collect::<String>()
    );
    context.print(said.into_bytes(), &response)
}

async fn keep_alive(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let (id, once) = (id(matches)?, matches.get_flag("once"));
    loop {
        let response = match context.client.lease_keep_alive_once(id).await {
            Ok(response) => response,
            // Another member may serve in time.
            Err(error @ (ClientError::Server(_) | ClientError::Unreachable { .. }))
                if !once && may_recover(&error) =>
            {
                output::say(format!("not renewed yet: {error}"));
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match (response.ttl, once) {
            (..=0, true) => {
                let gone = "etcdserver: requested lease not found";
                return Err(Failed::new(exit::BAD_CONNECTION, gone));
            }
            (..=0, false) => return output::line(format!("lease {id:016x} expired or revoked.")),
            (ttl, _) => {
                context.print_line(format!("lease {id:016x} keepalived with TTL({ttl})"), &response)?
            }
        }
        if once {
            return Ok(());
        }
        let third = Duration::from_secs(response.ttl.unsigned_abs()) / 3;
        tokio::time::sleep(third).await;
    }
}

fn may_recover(error: &ClientError) -> bool {
    use tonic::Code::{Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
    match error.code() {
        Some(code) => matches!(
            code,
            Unavailable | DeadlineExceeded | Unknown | Internal | Cancelled
        ),
        None => true,
    }
}
