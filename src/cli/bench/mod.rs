//! `pontoon bench`: loads an etcd v3 endpoint, ours or etcd's, and measures it.
//!
//! ```text
//! Plan ──► Lanes: threads and their connections ──► prepare: keys that must be there
//!            │
//!            ├─► Clients ◄── Schedule: when operations begin
//!            │      ├─────► Caller: a connection, and what is called on it; wire: what it answers
//!            │      └─────► Measured: how they ended, what they took
//!            └─► here: each second, the servers' CPU, the end ──► Report
//! ```
//!
//! A load generator that costs as much as the servers on its machine hides what they do, so it is a client of its own: h2
//! without what tonic puts around it ([`caller`]), answers that are looked at and not built ([`wire`]), threads that share
//! nothing ([`connections`]).
//!
//! Memory is bounded by the number of clients and threads, not by that of operations; `txn` keeps a revision of each key.

mod caller;
mod connections;
mod fan_out;
mod keys;
mod load;
mod measured;
mod plan;
mod prepare;
mod processes;
mod report;
mod schedule;
mod wire;
mod work;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use clap::ArgMatches;

use super::ctl::Context;
use super::failed::{Failed, exit};
use super::format::{Answer, Form};
use connections::Lanes;
use fan_out::FanOut;
use keys::Values;
use load::Load;
use plan::{Plan, Work};
use processes::Usage;
use report::Report;
use work::Shared;

pub use plan::command;

/// Runs a workload.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let Some((name, matches)) = matches.subcommand() else {
        return Ok(ExitCode::SUCCESS);
    };
    let plan = Plan::new(name, matches)?;
    // What can't be read or printed is told before anything takes its time.
    Usage::of_all(&plan.pids)?;
    if matches!(context.form, Form::Fields | Form::Protobuf) {
        return Err(context.no_such_form());
    }
    let endpoints = match plan.leader_only {
        true => vec![leader(context).await?],
        false => context.client.endpoints().to_vec(),
    };
    let lanes = Lanes::open(context, &plan, &endpoints).await?;
    let shared = Arc::new(share(context, plan.clone()));
    prepare::prepare(&lanes, &shared).await?;
    let load = Load::begin(&lanes, shared).await?;
    let report = Report {
        plan,
        endpoints,
        connections: lanes.connections,
        found: load.finish(context.options.timeout).await?,
    };
    let table = report.table().unwrap_or_default();
    context.print(table.into_bytes(), &report)?;
    Ok(ExitCode::from(match report.found.measured.answered {
        0 => exit::ERROR,
        _ => 0,
    }))
}

/// The endpoint of the member that leads.
async fn leader(context: &Context) -> Result<String, Failed> {
    for endpoint in context.client.endpoints() {
        let status = context.client.of(endpoint)?.status().await?;
        let own = status.header.as_ref().map_or(0, |header| header.member_id);
        if status.leader == own && own != 0 {
            return Ok(endpoint.clone());
        }
    }
    Err(Failed::error("none of the endpoints leads: name all members"))
}

fn share(context: &Context, plan: Plan) -> Shared {
    let revisions = match plan.work {
        Work::Txn => plan.space.size,
        _ => 0,
    };
    let fan_out = match plan.work {
        Work::Watch { watchers, .. } => Some(Arc::new(FanOut::new(watchers))),
        _ => None,
    };
    Shared {
        values: Values::new(plan.value_size, plan.seed),
        timeout: context.options.timeout,
        revisions: (0..revisions).map(|_| AtomicI64::new(0)).collect(),
        fan_out,
        plan,
    }
}
