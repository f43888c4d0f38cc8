//! check perf, check datascale: whether a cluster is fast enough, and how much memory a load takes.
//!
//! Both write below a prefix that must be empty, at a given rate or a given number of pairs, with a bounded number of
//! requests under way; and delete what they wrote.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::args::{flag, parse_duration, prefix_range, text, value};
use super::ctl::Context;
use super::failed::{Failed, exit};
use super::output;
use crate::client::Client;
use crate::pb::etcdserverpb::{
    CompactionRequest, DefragmentRequest, DeleteRangeRequest, PutRequest, RangeRequest,
};

/// Bytes of a value.
const VALUE: usize = 1024;
/// The slowest request may take so long.
const SLOWEST: Duration = Duration::from_millis(500);
/// The standard deviation may be so many seconds.
const DEVIATION: f64 = 0.1;
/// So much of the rate asked for must be reached.
const ENOUGH: f64 = 0.9;
/// Requests under way in `check datascale`.
const DATASCALE_CLIENTS: u32 = 50;
/// Most bytes of an answer to `GET /metrics`.
const METRICS_LIMIT: u64 = 16 << 20;

/// A load of `check perf`.
#[derive(Clone, Copy)]
struct Load {
    /// Writes a second.
    rate: u32,
    /// Clients that write at the same time.
    clients: u32,
}

fn perf_load(name: &str) -> Option<Load> {
    let (rate, clients) = match name {
        "s" | "small" => (150, 50),
        "m" | "medium" => (1000, 200),
        "l" | "large" => (8000, 500),
        "xl" | "xLarge" => (15_000, 1000),
        _ => return None,
    };
    Some(Load { rate, clients })
}

/// Pairs that `check datascale` writes.
fn datascale_load(name: &str) -> Option<u32> {
    match name {
        "s" | "small" => Some(10_000),
        "m" | "medium" => Some(100_000),
        "l" | "large" => Some(1_000_000),
        "xl" | "xLarge" => Some(3_000_000),
        _ => None,
    }
}

const HELP_PERF: &str = "\
Loads: s 150 writes a second by 50 clients, m 1000 by 200, l 8000 by 500, xl 15000 by 1000. Values \
are of 1 KiB. It passes with nine tenths of that rate, no request slower than 0.5 s, and a standard \
deviation below 0.1 s; else it exits with 1.";

const HELP_DATASCALE: &str = "\
Loads: s 10 thousand pairs, m 100 thousand, l 1 million, xl 3 million, with values of 1 KiB. The \
memory is what the first endpoint's /metrics say before and after.";

/// The verbs.
pub fn commands() -> Vec<Command> {
    let common = |prefix: &'static str| -> Vec<Arg> {
        vec![
            value("load", "s, m, l or xl").default_value("s"),
            value("prefix", "Where to write; nothing may be there").default_value(prefix),
            flag("auto-compact", "Compact afterwards"),
            flag("auto-defrag", "Defragment afterwards"),
        ]
    };
    let perf = Command::new("perf")
        .about("Whether the cluster keeps up with a rate of writes, for a minute")
        .args(common("/pontoon-check-perf/"))
        .arg(value("duration", "How long").default_value("60s"))
        .after_help(HELP_PERF);
    let datascale = Command::new("datascale")
        .about("How much memory a number of pairs takes")
        .args(common("/pontoon-check-datascale/"))
        .after_help(HELP_DATASCALE);
    vec![
        Command::new("check")
            .about("Whether a cluster is good enough: perf, datascale")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(perf)
            .subcommand(datascale),
    ]
}

/// Runs one.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match matches.subcommand() {
        Some(("perf", matches)) => perf(context, matches).await,
        Some((_, matches)) => datascale(context, matches).await,
        None => Ok(ExitCode::SUCCESS),
    }
}

fn unknown_load(matches: &ArgMatches) -> Failed {
    Failed::feature(format!(
        "unknown load option {}: s, m, l or xl",
        text(matches, "load")
    ))
}

/// What the requests took, without keeping each.
#[derive(Default)]
struct Times {
    count: u64,
    sum: f64,
    squares: f64,
    slowest: Duration,
}

impl Times {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum += took.as_secs_f64();
        self.squares += took.as_secs_f64().powi(2);
        self.slowest = self.slowest.max(took);
    }

    fn join(self, other: Times) -> Times {
        Times {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
            slowest: self.slowest.max(other.slowest),
        }
    }

    fn deviation(&self) -> f64 {
        let count = self.count.max(1) as f64;
        let mean = self.sum / count;
        (self.squares / count - mean * mean).max(0.0).sqrt()
    }
}

/// A line for each judgement; true if all are good.
fn verdict(times: &Times, rate: u32, elapsed: Duration) -> (bool, String) {
    let throughput = times.count as f64 / elapsed.as_secs_f64();
    let slowest = times.slowest.as_secs_f64();
    let deviation = times.deviation();
    let fast = throughput >= f64::from(rate) * ENOUGH;
    let (prompt, even) = (times.slowest < SLOWEST, deviation < DEVIATION);
    let mut said = match fast {
        true => format!("PASS: Throughput is {throughput:.0} writes/s\n"),
        false => format!("FAIL: Throughput too low: {throughput:.0} writes/s\n"),
    };
    said += &match prompt {
        true => format!("PASS: Slowest request took {slowest:.6}s\n"),
        false => format!("Slowest request took too long: {slowest:.6}s\n"),
    };
    said += &match even {
        true => format!("PASS: Stddev is {deviation:.6}s\n"),
        false => format!("Stddev too high: {deviation:.6}s\n"),
    };
    let passed = fast && prompt && even;
    (passed, said + if passed { "PASS\n" } else { "FAIL\n" })
}

async fn perf(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let load = perf_load(text(matches, "load")).ok_or_else(|| unknown_load(matches))?;
    let duration = parse_duration("duration", text(matches, "duration"))?;
    let scratch = Scratch::of(context, matches).await?;
    let start = Instant::now();
    let end = start + duration;
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..load.clients {
        let client = Client::with(context.client.endpoints(), context.options.clone())?;
        let prefix = scratch.prefix.clone();
        writers.spawn(async move {
            let mut times = Times::default();
            for turn in 0_u32.. {
                // Each has its own turns, so that the rate is even.
                let at = f64::from(number) + f64::from(turn) * f64::from(load.clients);
                let due = start + Duration::from_secs_f64(at / f64::from(load.rate));
                if due.max(Instant::now()) >= end {
                    break;
                }
                tokio::time::sleep_until(due).await;
                let sent = Instant::now();
                client.put(pair(&prefix, &format!("{number}/{turn}"))).await?;
                times.add(sent.elapsed());
            }
            Ok::<Times, Failed>(times)
        });
    }
    let mut times = Times::default();
    let mut failed = None;
    while let Some(writer) = writers.join_next().await {
        match writer {
            Ok(Ok(own)) => times = times.join(own),
            Ok(Err(error)) => failed = Some(error),
            Err(error) => failed = Some(Failed::error(error.to_string())),
        }
    }
    let elapsed = start.elapsed();
    scratch.clean().await?;
    if let Some(failed) = failed {
        return Err(failed);
    }
    let (passed, said) = verdict(&times, load.rate, elapsed);
    output::write(said.as_bytes())?;
    Ok(ExitCode::from(if passed { 0 } else { exit::ERROR }))
}

fn pair(prefix: &Bytes, name: &str) -> PutRequest {
    PutRequest {
        key: [prefix, name.as_bytes()].concat().into(),
        value: vec![b'x'; VALUE].into(),
        ..PutRequest::default()
    }
}

/// A prefix of one's own, empty before and after.
struct Scratch<'a> {
    context: &'a Context,
    prefix: Bytes,
    compact: bool,
    defrag: bool,
}

impl<'a> Scratch<'a> {
    async fn of(context: &'a Context, matches: &ArgMatches) -> Result<Scratch<'a>, Failed> {
        let prefix = Bytes::from(text(matches, "prefix").to_string());
        let (key, range_end) = prefix_range(prefix.clone());
        let request = RangeRequest {
            key,
            range_end,
            count_only: true,
            ..RangeRequest::default()
        };
        if context.client.range(request).await?.count > 0 {
            let name = String::from_utf8_lossy(&prefix);
            let reason = format!("prefix {name:?} has keys. Delete with `del --prefix {name}` first");
            return Err(Failed::input(reason));
        }
        Ok(Scratch {
            context,
            prefix,
            compact: matches.get_flag("auto-compact"),
            defrag: matches.get_flag("auto-defrag"),
        })
    }

    async fn clean(&self) -> Result<(), Failed> {
        let client = &self.context.client;
        let (key, range_end) = prefix_range(self.prefix.clone());
        let request = DeleteRangeRequest {
            key,
            range_end,
            prev_kv: false,
        };
        let deleted = client.delete_range(request).await?;
        if self.compact {
            let revision = deleted.header.as_ref().map_or(0, |header| header.revision);
            output::line(format!("Compacting with revision {revision}"))?;
            let physical = true;
            client.compact(CompactionRequest { revision, physical }).await?;
            output::line(format!("Compacted with revision {revision}"))?;
        }
        if self.defrag {
            for endpoint in client.endpoints() {
                client.of(endpoint)?.defragment(DefragmentRequest {}).await?;
                output::line(format!("Defragmented {endpoint:?}"))?;
            }
        }
        Ok(())
    }
}

async fn datascale(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let pairs = datascale_load(text(matches, "load")).ok_or_else(|| unknown_load(matches))?;
    let endpoint = &context.client.endpoints()[0];
    let scratch = Scratch::of(context, matches).await?;
    let before = resident_memory(endpoint).await?;
    let next = AtomicU64::new(0);
    let write = async || -> Result<(), Failed> {
        let client = context.client.of(endpoint)?;
        while let number @ 0.. = next.fetch_add(1, Ordering::Relaxed)
            && number < u64::from(pairs)
        {
            client.put(pair(&scratch.prefix, &format!("{number:08}"))).await?;
        }
        Ok(())
    };
    let writers = (0..DATASCALE_CLIENTS).map(|_| write());
    let written = futures::future::try_join_all(writers).await;
    let after = resident_memory(endpoint).await;
    scratch.clean().await?;
    written?;
    let used = after? - before;
    if used < 0.0 {
        output::line(format!(
            "FAIL: less memory is in use than before: {:.2} MB.",
            used / 1e6
        ))?;
        return Ok(ExitCode::from(exit::ERROR));
    }
    output::line(format!(
        "PASS: Approximate system memory used : {:.2} MB.",
        used / 1e6
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Bytes of memory that the process behind an endpoint has.
async fn resident_memory(endpoint: &str) -> Result<f64, Failed> {
    let failed = |why: String| {
        Failed::error(format!(
            "cannot read the memory in use from {endpoint}/metrics: {why}"
        ))
    };
    let address = endpoint.trim_start_matches("http://").trim_end_matches('/');
    let fetch = async {
        let mut stream = TcpStream::connect(address).await?;
        // By HTTP/1.0, whose answer ends with the connection.
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(METRICS_LIMIT).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), fetch).await;
    let answer = answer.map_err(|_| failed("no answer in 5s".to_string()))?;
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&answer);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    let value = line.and_then(|value| value.trim().parse().ok());
    value.ok_or_else(|| failed("it does not say process_resident_memory_bytes".to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_passes_or_fails() {
        let mut times = Times::default();
        (0..150).for_each(|_| times.add(Duration::from_millis(2)));
        let (passed, said) = verdict(&times, 150, Duration::from_secs(1));
        assert!(passed, "{said}");
        assert!(said.starts_with("PASS: Throughput is 150 writes/s\n"), "{said}");
        assert!(!verdict(&times, 200, Duration::from_secs(1)).0);
        times.add(Duration::from_millis(600));
        let (passed, said) = verdict(&times, 150, Duration::from_secs(1));
        assert!(
            !passed && said.contains("too long: 0.600000s") && said.ends_with("FAIL\n"),
            "{said}"
        );
    }

    #[test]
    fn the_deviation_is_that_of_the_times() {
        let mut times = Times::default();
        times.add(Duration::from_secs(1));
        times.add(Duration::from_secs(3));
        assert!((times.deviation() - 1.0).abs() < 1e-9);
    }
}
