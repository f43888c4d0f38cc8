//! What was asked for: the workloads and their options.

use std::time::Duration;

use bytes::Bytes;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::super::args::{flag, parse_duration, text, value};
use super::super::failed::Failed;
use super::keys::{Distribution, Space};
use super::schedule::{End, Length};

/// Most clients, connections, watchers.
const MANY: u64 = 100_000;
/// Most keys: eight bytes are kept for each by `txn`.
const MOST_KEYS: u64 = 1_000_000_000;

const HELP: &str = "\
Each client has one request under way. With --rate operations begin when they are due, whether or not \
earlier ones are answered, and their latency counts from when they were due; what was due and found no \
free client is reported as not started.

Examples:
  pontoon bench put --clients 128 --endpoints 127.0.0.1:2379,127.0.0.1:22379,127.0.0.1:32379
  pontoon bench get --consistency s --rate 5000 --clients 64 --duration 30s --seconds
  pontoon bench mixed --reads 50 --distribution zipf --pids $(pgrep -d, -x etcd) -w json";

const HELP_KEYS: &str = "Keys and values";
const HELP_LOAD: &str = "Load";
const HELP_REPORT: &str = "Report";

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Write a key.
    Put,
    /// Read a key.
    Get,
    /// Read so many keys that follow each other.
    Range {
        /// How many.
        keys: u64,
    },
    /// Write a key if its revision is the one last seen.
    Txn,
    /// Read a key or write one.
    Mixed {
        /// Reads in a hundred.
        reads: u32,
    },
    /// Write a key that is watched.
    Watch {
        /// How many watch it.
        watchers: u64,
        /// gRPC streams that the watchers share.
        streams: u64,
    },
    /// Make leases.
    LeaseGrant,
    /// Renew a lease of one's own.
    LeaseKeepAlive,
}

/// Keys that are written before the load begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Preload {
    /// Those that will be read, unless they are there.
    Auto,
    /// All.
    All,
    /// None.
    None,
}

/// All that was asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The workload's name.
    pub name: String,
    /// What it does.
    pub work: Work,
    /// Requests under way at the same time, at most.
    pub clients: u64,
    /// HTTP/2 connections; none: as many as threads times endpoints.
    pub connections: Option<u64>,
    /// Threads of this process that drive them.
    pub threads: u64,
    /// Operations a second; none for a closed loop.
    pub rate: Option<f64>,
    /// How long it runs.
    pub length: Length,
    /// The keys.
    pub space: Space,
    /// Bytes of a value.
    pub value_size: usize,
    /// How keys are drawn.
    pub distribution: Distribution,
    /// How it is called.
    pub distribution_name: String,
    /// Where chance begins.
    pub seed: u64,
    /// Whether reads may be stale.
    pub serializable: bool,
    /// Seconds that a lease lives.
    pub ttl_s: i64,
    /// Whether only the leader is asked.
    pub leader_only: bool,
    /// What is written first.
    pub preload: Preload,
    /// The servers' process ids.
    pub pids: Vec<u32>,
    /// Whether each second is reported.
    pub seconds: bool,
}

/// The verb.
pub fn command() -> Command {
    let consistency = || {
        value(
            "consistency",
            "l: linearizable; s: serializable, from any one member",
        )
        .default_value("l")
        .value_parser(PossibleValuesParser::new(["l", "s"]))
    };
    let ttl = || count("ttl", "Seconds that a lease lives", "60", 1..=86_400);
    let one = |name: &'static str, about: &'static str| Command::new(name).about(about);
    let workloads = [
        one("put", "Write keys"),
        one("get", "Read keys").arg(consistency()),
        one("range", "Read many keys that follow each other")
            .arg(count("keys", "How many a request reads", "1000", 1..=MOST_KEYS))
            .arg(consistency()),
        one(
            "txn",
            "Compare-and-swap: write keys whose revision is the one last seen",
        ),
        one("mixed", "Read keys, and write some")
            .arg(count("reads", "Reads in a hundred operations", "90", 0..=100))
            .arg(consistency()),
        one(
            "watch",
            "Write one key, and count its events on their way to many watchers",
        )
        .arg(count("watchers", "How many watch it", "1000", 1..=MANY))
        .arg(count(
            "streams",
            "gRPC streams that the watchers share; 0: one for each",
            "0",
            0..=MANY,
        )),
        one("lease-grant", "Make leases, which run out by themselves").arg(ttl()),
        one(
            "lease-keep-alive",
            "Renew leases, one for each client, each on a stream of its own",
        )
        .arg(ttl()),
    ];
    Command::new("bench")
        .about("Load an etcd v3 endpoint and measure it: put, get, range, txn, mixed, watch, leases")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(HELP)
        .subcommands(workloads.map(|workload| workload.args(options()).args_override_self(true)))
}

fn options() -> Vec<Arg> {
    let under =
        |heading: &'static str, args: Vec<Arg>| args.into_iter().map(move |arg| arg.help_heading(heading));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let load = vec![
        count(
            "clients",
            "Clients, each with one request under way",
            "1",
            1..=MANY,
        ),
        count(
            "connections",
            "HTTP/2 connections that the clients share; 0: one for each thread and endpoint",
            "0",
            0..=MANY,
        ),
        count(
            "threads",
            "Threads that drive them; 0: one for each core",
            "0",
            0..=1024,
        )
        .help(format!(
            "Threads that drive them; 0: one for each core (here {threads})"
        )),
        value("rate", "Open loop: begin so many operations a second").value_parser(value_parser!(f64)),
        value("warmup", "How long to run before measuring").default_value("2s"),
        value("duration", "How long to measure").default_value("10s"),
        count(
            "total",
            "Measure so many operations instead (watch: writes)",
            "0",
            0..=u64::MAX / 2,
        )
        .hide_default_value(true),
        value("target", "all endpoints in turn, or the leader alone")
            .default_value("all")
            .value_parser(PossibleValuesParser::new(["all", "leader"])),
    ];
    let keys = vec![
        value("key-prefix", "What all keys begin with").default_value("/bench/"),
        count("key-size", "Bytes of a key", "32", 1..=1 << 16),
        count("value-size", "Bytes of a value", "256", 0..=1 << 30),
        count("key-space", "How many keys there are", "100000", 1..=MOST_KEYS),
        value(
            "distribution",
            "How keys are drawn: uniform, sequential, or zipf (a few are hot)",
        )
        .default_value("uniform")
        .value_parser(PossibleValuesParser::new(["uniform", "sequential", "zipf"])),
        value(
            "skew",
            "With zipf, the n-th hottest key is drawn as often as 1/n^skew",
        )
        .default_value("0.99")
        .value_parser(value_parser!(f64)),
        value(
            "preload",
            "Keys to write first: auto (those to be read, unless they are there), all, none",
        )
        .default_value("auto")
        .value_parser(PossibleValuesParser::new(["auto", "all", "none"])),
        value("seed", "Where chance begins; chosen and told if it is not given")
            .value_parser(value_parser!(u64)),
    ];
    let report = vec![
        value(
            "pids",
            "The servers' process ids, comma-separated: adds their CPU, memory and written bytes",
        )
        .alias("pid")
        .value_delimiter(',')
        .action(ArgAction::Append)
        .value_parser(value_parser!(u32)),
        flag("seconds", "Report each second too"),
    ];
    under(HELP_LOAD, load)
        .chain(under(HELP_KEYS, keys))
        .chain(under(HELP_REPORT, report))
        .collect()
}

/// `--name N`.
fn count(
    name: &'static str,
    help: &'static str,
    default: &'static str,
    range: std::ops::RangeInclusive<u64>,
) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("N")
        .help(help)
        .default_value(default)
        .value_parser(value_parser!(u64).range(range))
}

/// A [`count`]; zero where the workload has no such option.
fn number(matches: &ArgMatches, name: &str) -> u64 {
    matches.try_get_one(name).ok().flatten().copied().unwrap_or(0)
}

fn size(matches: &ArgMatches, name: &str) -> usize {
    usize::try_from(number(matches, name)).unwrap_or(usize::MAX)
}

impl Plan {
    /// Reads the options of a workload.
    pub fn new(name: &str, matches: &ArgMatches) -> Result<Plan, Failed> {
        let plan = Plan {
            name: name.to_string(),
            work: work(name, matches),
            clients: number(matches, "clients"),
            connections: Some(number(matches, "connections")).filter(|count| *count > 0),
            threads: threads(number(matches, "threads")),
            rate: rate(matches)?,
            length: length(matches)?,
            space: space(matches)?,
            value_size: size(matches, "value-size"),
            distribution: distribution(matches)?,
            distribution_name: text(matches, "distribution").to_string(),
            seed: matches.get_one("seed").copied().unwrap_or_else(rand::random),
            serializable: matches
                .try_get_one::<String>("consistency")
                .is_ok_and(|given| given.is_some_and(|given| given == "s")),
            ttl_s: i64::try_from(number(matches, "ttl")).unwrap_or(i64::MAX),
            leader_only: text(matches, "target") == "leader",
            preload: match text(matches, "preload") {
                "all" => Preload::All,
                "none" => Preload::None,
                _ => Preload::Auto,
            },
            pids: matches.get_many("pids").unwrap_or_default().copied().collect(),
            seconds: matches.get_flag("seconds"),
        };
        if let Work::Range { keys } = plan.work
            && keys > plan.space.size
        {
            let reason = format!("--keys {keys}: there are only --key-space {}", plan.space.size);
            return Err(Failed::arguments(reason));
        }
        Ok(plan)
    }

    /// Whether keys are read that something must have written.
    pub fn reads(&self) -> bool {
        matches!(
            self.work,
            Work::Get | Work::Range { .. } | Work::Txn | Work::Mixed { .. }
        )
    }

    /// How many numbers keys are drawn from: a range begins where it has its keys before it.
    pub fn drawn_from(&self) -> u64 {
        match self.work {
            Work::Range { keys } => self.space.size - keys + 1,
            _ => self.space.size,
        }
    }
}

fn work(name: &str, matches: &ArgMatches) -> Work {
    match name {
        "put" => Work::Put,
        "get" => Work::Get,
        "range" => Work::Range {
            keys: number(matches, "keys"),
        },
        "txn" => Work::Txn,
        "mixed" => Work::Mixed {
            reads: u32::try_from(number(matches, "reads")).unwrap_or(100),
        },
        "watch" => {
            let watchers = number(matches, "watchers");
            let streams = match number(matches, "streams") {
                0 => watchers,
                streams => streams.min(watchers),
            };
            Work::Watch { watchers, streams }
        }
        "lease-grant" => Work::LeaseGrant,
        _ => Work::LeaseKeepAlive,
    }
}

fn threads(given: u64) -> u64 {
    match given {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
        threads => threads,
    }
}

fn rate(matches: &ArgMatches) -> Result<Option<f64>, Failed> {
    match matches.get_one::<f64>("rate") {
        Some(rate) if *rate > 0.0 && *rate <= 1e9 => Ok(Some(*rate)),
        Some(rate) => Err(Failed::arguments(format!(
            "--rate {rate}: operations a second, above 0"
        ))),
        None => Ok(None),
    }
}

fn length(matches: &ArgMatches) -> Result<Length, Failed> {
    let end = match number(matches, "total") {
        0 => End::After(parse_duration("duration", text(matches, "duration"))?),
        total => End::Total(total),
    };
    if end == End::After(Duration::ZERO) {
        return Err(Failed::arguments("--duration 0s: nothing would be measured"));
    }
    Ok(Length {
        warmup: parse_duration("warmup", text(matches, "warmup"))?,
        end,
    })
}

fn space(matches: &ArgMatches) -> Result<Space, Failed> {
    let prefix = Bytes::from(text(matches, "key-prefix").to_string());
    let (key_size, keys) = (size(matches, "key-size"), number(matches, "key-space"));
    Space::new(prefix, key_size, keys).ok_or_else(|| {
        let reason = format!("--key-size {key_size} is too short for {keys} keys behind the prefix");
        Failed::arguments(reason)
    })
}

fn distribution(matches: &ArgMatches) -> Result<Distribution, Failed> {
    let skew = matches.get_one("skew").copied().unwrap_or_default();
    match text(matches, "distribution") {
        "sequential" => Ok(Distribution::Sequential),
        "zipf" if (0.0..=100.0).contains(&skew) => Ok(Distribution::Zipf { skew }),
        "zipf" => Err(Failed::arguments(format!("--skew {skew}: from 0 to 100"))),
        _ => Ok(Distribution::Uniform),
    }
}

/// What a command line asks for, for tests.
#[cfg(test)]
pub fn plan(line: &str) -> Result<Plan, Failed> {
    let words = std::iter::once("bench").chain(line.split(' '));
    let matches = command().get_matches_from(words);
    let (name, matches) = matches.subcommand().expect("a workload");
    Plan::new(name, matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_defaults() {
        let plan = plan("put").expect("no option is needed");
        assert_eq!((plan.clients, plan.connections, plan.rate), (1, None, None));
        assert_eq!((plan.value_size, plan.space.size), (256, 100_000));
        assert_eq!(plan.length.end, End::After(Duration::from_secs(10)));
        assert!(!plan.serializable && !plan.leader_only && !plan.reads());
    }

    #[test]
    fn workloads_have_options_of_their_own() {
        let work = |line: &str| plan(line).expect("good options").work;
        assert_eq!(work("mixed --reads 50"), Work::Mixed { reads: 50 });
        assert_eq!(work("range --keys 10"), Work::Range { keys: 10 });
        let (watchers, streams) = (7, 7);
        assert_eq!(work("watch --watchers 7"), Work::Watch { watchers, streams });
        assert_eq!(
            plan("range --keys 10 --key-space 10").expect("good").drawn_from(),
            1
        );
        assert!(plan("get --consistency s").expect("good").serializable);
        assert_eq!(plan("put --pids 1,2 --pid 3").expect("good").pids, [1, 2, 3]);
        assert_eq!(plan("put --total 5").expect("good").length.end, End::Total(5));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "put --rate 0",
            "put --rate nan",
            "put --duration 0s",
            "put --key-size 8",
            "range --keys 11 --key-space 10",
            "get --distribution zipf --skew=-1",
        ] {
            assert!(plan(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }
}
