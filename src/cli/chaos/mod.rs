//! `pontoon chaos`: breaks a cluster on purpose, measures how it goes on, and looks whether anything that was acknowledged
//! is lost.
//!
//! Writers and readers work all the time, through all members. When each writer had a write acknowledged the first round
//! begins: before that there is nothing to lose. In each round one member is broken; when writes are acknowledged again it
//! is put right, and when it has caught up the next round begins. At the end every acknowledged write is looked for on
//! every member. A read that saw less than was known before it began is stale.
//!
//! Nothing is waited for by time alone, and nothing stays broken: a round puts right what it broke however it ends.
//!
//! Files: [`fault`] what can be done · [`breaker`] who does it ([`template`], [`shell`]: by commands) · [`members`] who they
//! are · [`load`] what goes on meanwhile ([`keys`]) · [`ledger`] what was promised · [`round`] one round ([`until`]: waiting)
//! · [`times`] what the members' journals say of it · [`check`] looking for what was promised · [`summary`], [`report`] how
//! it is told.

mod breaker;
mod check;
mod fault;
mod keys;
mod ledger;
mod load;
mod members;
mod report;
mod round;
mod shell;
mod summary;
mod template;
mod times;
mod until;

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use self::breaker::Breaker;
use self::fault::{FAULTS, Fault};
use self::keys::Keys;
use self::ledger::Ledger;
use self::load::{Load, WRITERS};
use self::members::Members;
use self::report::{Promises, Report};
use self::round::{Round, Stage};
use self::template::Template;
use self::until::{Ended, Interrupts};
use super::args::{flag, parse_duration, text, value};
use super::cluster::DATA_DIR;
use super::cluster::remote::Control;
use super::ctl::Context;
use super::failed::{Failed, exit};
use super::format::Form;
use super::output;
use crate::client::Client;

/// How long the cluster may take to be whole before anything is broken.
const START: Duration = Duration::from_secs(10);
/// Voters without which the loss of one is the loss of a majority.
const FEWEST: usize = 3;

/// The options that are commands, and what each does to a member.
const COMMANDS: [(&str, &str); 7] = [
    ("kill-with", "Command that kills the member {name}"),
    ("stop-with", "Command that stops it in order"),
    ("restart-with", "Command that starts it again"),
    ("pause-with", "Command that makes it stand still"),
    ("resume-with", "Command that lets it go on"),
    ("cut-with", "Command that cuts it off from the others"),
    ("heal-with", "Command that connects it again"),
];

const HELP: &str = "\
Each round breaks one member, waits until writes are acknowledged again, puts it right and waits until it has caught up. \
Meanwhile 8 writers and 4 readers work through all members; at the end every acknowledged write is looked for on every \
member. Times are milliseconds from the fault: until a member missed the leader (detect), knew a new one (elect) and \
until the first write that began after it was acknowledged; from asking the member back until it had all of the \
leader's log applied (catch-up); and the longest time without an acknowledged write (pause). detect and elect are from \
the members' journals, which etcd's have not.

A cluster that `pontoon cluster` runs is found by its directory:
  pontoon chaos kill-leader --times 20
  pontoon chaos rolling-restart --cluster /tmp/pontoon-cluster -w json

Others take no faults from a client; commands break them, for which {name} is the member's name:
  pontoon chaos kill-leader --endpoints 127.0.0.1:2379,127.0.0.1:22379,127.0.0.1:32379 \\
    --kill-with 'docker compose kill -s KILL {name}' --restart-with 'docker compose start {name}'
What such a command leaves running should have its output elsewhere.

Exits with 0 if nothing was lost and no read was stale; with 1 if something was, or the cluster did not come back; \
with 2 if it could not begin; with 5 after Ctrl-C, which puts right what is broken, looks for what was acknowledged \
until then and removes the keys (a second one does not wait for that).";

/// The verb.
pub fn command() -> Command {
    let faults = FAULTS.map(|fault| PossibleValue::new(fault.name).help(fault.about));
    let fault = Arg::new("fault")
        .value_name("FAULT")
        .help("What is done")
        .required(true)
        .value_parser(faults);
    let times = Arg::new("times")
        .long("times")
        .value_name("N")
        .help("How often; a rolling restart is one of all voters")
        .default_value("1")
        .value_parser(clap::value_parser!(u16).range(1..));
    let commands = COMMANDS.map(|(name, help)| value(name, help).value_name("CMD").conflicts_with("cluster"));
    Command::new("chaos")
        .about("Break members on purpose, measure how the cluster goes on, and look for lost writes")
        .arg(fault)
        .arg(times)
        .arg(
            value("cluster", "Directory of the `pontoon cluster` to break")
                .value_name("DIR")
                .default_value(DATA_DIR),
        )
        .args(commands)
        .arg(value("limit", "How long a failover, or a member's return, may take").default_value("60s"))
        .arg(value("prefix", "Where to write, below a part that is random").default_value("pontoon/chaos/"))
        .arg(flag("keep", "Leave the keys there"))
        .after_help(HELP)
}

/// Runs it.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    if !matches!(context.form, Form::Simple | Form::Json) {
        return Err(context.no_such_form());
    }
    let interrupts = Interrupts::listen().map_err(|error| Failed::error(error.to_string()))?;
    let fault = Fault::named(text(matches, "fault")).ok_or_else(|| Failed::arguments("FAULT: see --help"))?;
    let limit = parse_duration("limit", text(matches, "limit"))?;
    let (breaker, endpoints) = breaker(context, fault, matches).await?;
    let members = find(&endpoints, context, &interrupts).await?;
    let load = Load::start(
        Keys::below(text(matches, "prefix")),
        members.urls(),
        &context.options,
    )
    .await?;
    let stage = Stage {
        fault,
        breaker: &breaker,
        members: &members,
        load: &load,
        options: &context.options,
        limit,
        interrupts: &interrupts,
    };
    let times = matches.get_one::<u16>("times").copied().unwrap_or(1);
    let (rounds, ended) = play(&stage, usize::from(times), context.form).await;
    let last = interrupts.later();
    let finished = finish(context, &members, load, limit, &last, matches.get_flag("keep"));
    let (promises, not_whole) = tokio::select! {
        finished = finished => finished,
        () = last.next() => return Err(Failed::new(exit::INTERRUPTED, "interrupted: the keys that were written may be left")),
    };
    let report = Report {
        fault,
        members: members.all().iter().map(|member| member.name.clone()).collect(),
        rounds,
        ended: ended.or(not_whole),
        promises,
    };
    context.print(report.text().into_bytes(), &report)?;
    Ok(match (report.is_good(), report.is_interrupted()) {
        (true, _) => ExitCode::SUCCESS,
        (_, true) => ExitCode::from(exit::INTERRUPTED),
        _ => ExitCode::from(exit::ERROR),
    })
}

/// Who makes the faults, and where the members are.
async fn breaker(
    context: &Context,
    fault: Fault,
    matches: &ArgMatches,
) -> Result<(Breaker, Vec<String>), Failed> {
    let given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    if COMMANDS.iter().any(|(name, _)| given(name)) {
        let template = |(name, example): (&str, &str)| {
            let command = matches
                .get_one::<String>(name)
                .ok_or_else(|| format!("{} needs --{name}, such as --{name} '{example}'", fault.name))?;
            Template::parse(command).map_err(|why| format!("--{name}: {why}"))
        };
        let [strike, mend] = fault.act.options().map(template);
        let commands = Breaker::Commands {
            strike: strike.map_err(Failed::arguments)?,
            mend: mend.map_err(Failed::arguments)?,
        };
        return Ok((commands, context.client.endpoints().to_vec()));
    }
    let [(strike, _), (mend, _)] = fault.act.options();
    let others = format!("another cluster is broken by commands: --{strike} CMD --{mend} CMD (see --help)");
    if given("endpoints") && !given("cluster") {
        return Err(Failed::arguments(format!(
            "the members behind --endpoints take no faults from a client; {others}"
        )));
    }
    let dir = text(matches, "cluster");
    let unreachable = |error: anyhow::Error| {
        let next = "start one with: pontoon cluster, or name its directory with --cluster DIR";
        Failed::new(exit::BAD_CONNECTION, format!("{error:#}: {next}; {others}"))
    };
    let control = Control::of(dir.as_ref()).map_err(unreachable)?;
    let state = control.state().await.map_err(|error| {
        unreachable(error.context(format!("the `pontoon cluster` in {dir} does not answer")))
    })?;
    let members = state["members"].as_array().into_iter().flatten();
    let urls = members.filter_map(|member| member["url"].as_str().map(str::to_string));
    Ok((Breaker::Cluster(control), urls.collect()))
}

/// The members, all there and with a leader: what is broken before it begins tells nothing.
async fn find(endpoints: &[String], context: &Context, interrupts: &Interrupts) -> Result<Members, Failed> {
    let endpoints_list = endpoints.join(",");
    let not_whole = |why: String| {
        let next =
            format!("nothing was broken; what is wrong says: pontoon doctor --endpoints {endpoints_list}");
        Failed::new(exit::BAD_CONNECTION, format!("{why}; {next}"))
    };
    let members = Members::find(endpoints, &context.options)
        .await
        .map_err(not_whole)?;
    if members.voters().len() < FEWEST {
        return Err(Failed::new(
            exit::BAD_CONNECTION,
            format!(
                "with {} voters none may be lost: it takes a cluster of {FEWEST}, as of: pontoon cluster",
                members.voters().len()
            ),
        ));
    }
    let what = "a leader that all members follow";
    match interrupts
        .until(START, what, async || members.whole().await)
        .await
    {
        Ok(_) => Ok(members),
        Err(Ended::Interrupted) => Err(Failed::silent(exit::INTERRUPTED)),
        Err(Ended::Failed(why)) => Err(not_whole(why)),
    }
}

/// Plays all rounds, and says what each found.
async fn play(stage: &Stage<'_>, times: usize, form: Form) -> (Vec<Round>, Option<Ended>) {
    // Where programs read the answer, people may still look on.
    let tell = |line: String| match form {
        Form::Simple => output::line(line).unwrap_or_default(),
        _ => output::say(line),
    };
    tell(report::head());
    let mut rounds = Vec::new();
    if let Err(ended) = stage.begin().await {
        return (rounds, Some(ended));
    }
    for number in 0..stage.fault.rounds(times, stage.members.voters().len()) {
        match stage.round(number).await {
            Ok(round) => {
                tell(report::line(number, stage.fault, &round));
                rounds.push(round);
            }
            Err(ended) => return (rounds, Some(ended)),
        }
    }
    (rounds, None)
}

/// Waits until all members are back, ends the load, looks for what was promised and removes it.
async fn finish(
    context: &Context,
    members: &Members,
    load: Load,
    limit: Duration,
    interrupts: &Interrupts,
    keep: bool,
) -> (Promises, Option<Ended>) {
    let whole = async || members.whole().await;
    let what = "all members to be back";
    let back = interrupts.until(limit, what, whole).await;
    let load = load.end().await;
    // What was acknowledged last may not be applied everywhere.
    let back = match back {
        Ok(_) => interrupts.until(limit, what, whole).await,
        late => late,
    };
    let (lost, mut ended) = match check::lost(&load, members, &context.options).await {
        Ok(lost) => (Some(lost), None),
        Err(why) => (None, Some(Ended::Failed(why))),
    };
    ended = back.err().or(ended);
    let count = |of: fn(&Ledger) -> u64| (0..WRITERS).map(|writer| of(&load.ledger(writer))).sum();
    let promises = Promises {
        acknowledged: count(Ledger::acknowledged),
        unknown: count(Ledger::unknown),
        lost,
        reads: load.reads(),
        stale: load.stale(),
    };
    match keep {
        true => output::say(format!("the keys are below {}", load.keys.prefix())),
        false => remove(context, members, &load.keys).await,
    }
    (promises, ended)
}

async fn remove(context: &Context, members: &Members, keys: &Keys) {
    let removed = async {
        let client = Client::with(&members.urls(), context.options.clone())?;
        client.delete_range(keys.remove()).await
    };
    if let Err(error) = removed.await {
        let prefix = keys.prefix();
        output::say(format!(
            "the keys could not be removed ({error}); do it with: pontoon del --prefix {prefix}"
        ));
    }
}
