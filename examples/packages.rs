//! Real input: every package that this machine's Debian index knows, written to a cluster that is being killed.
//!
//! Starts three members, writes each stanza of `apt-cache dumpavail` as `/packages/<name>` through all of them, kills
//! the leader twice on the way and then all three at once, and reads everything back through each member, byte for
//! byte. Prints counts, times, and how long writes stood still after each kill. Exits with 1 if anything is missing.
//!
//! ```sh
//! cargo build --release && cargo run --release --example packages -- target/release/pontoon
//! ```

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use pontoon::pb::etcdserverpb::{PutRequest, RangeRequest};

use crate::common::{Cluster, MEMBERS, client};

const WRITERS: usize = 96;
const PAGE: i64 = 1000;
/// A dead member is started again after this long.
const DOWN: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let binary = std::env::args()
        .nth(1)
        .context("usage: packages PATH-TO-PONTOON")?;
    let packages = Arc::new(packages()?);
    println!(
        "{} packages, {} bytes",
        packages.len(),
        packages.iter().map(|(_, v)| v.len()).sum::<usize>()
    );
    let dir = std::env::temp_dir().join(format!("pontoon-packages-{}", std::process::id()));
    let mut cluster = Cluster::start(PathBuf::from(binary), dir)?;
    cluster.wait_ready().await?;

    let started = Instant::now();
    let progress = Arc::new(Progress::default());
    let writers: Vec<_> = (0..WRITERS)
        .map(|at| tokio::spawn(write_all(at, packages.clone(), progress.clone())))
        .collect();
    for (share, what) in [(0.2, "leader"), (0.5, "leader"), (0.8, "all")] {
        let goal = (packages.len() as f64 * share) as usize;
        while progress.acknowledged.load(Ordering::Relaxed) < goal {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let victims = if what == "all" {
            (0..MEMBERS).collect()
        } else {
            vec![cluster.leader().await?]
        };
        let killed = Instant::now();
        victims.iter().try_for_each(|at| cluster.kill(*at))?;
        let down = if what == "all" { Duration::ZERO } else { DOWN };
        tokio::time::sleep(down).await;
        victims.iter().try_for_each(|at| cluster.run(*at))?;
        while progress
            .last()
            .is_none_or(|last| last < killed + Duration::from_millis(1))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!(
            "killed {what} after {:?}: writes stood still for {:?}",
            killed - started,
            progress.longest_gap()
        );
    }
    for writer in writers {
        writer.await??;
    }
    let took = started.elapsed();
    println!(
        "{} writes acknowledged in {took:.1?}, {:.0} a second",
        packages.len(),
        packages.len() as f64 / took.as_secs_f64()
    );
    let mut wrong = 0;
    for at in 0..MEMBERS {
        let started = Instant::now();
        let missing = compare(at, &packages).await?;
        println!(
            "member {}: {missing} missing or different, read in {:.1?}",
            at + 1,
            started.elapsed()
        );
        wrong += missing;
    }
    cluster.stop();
    Ok(if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Name and stanza of each package; of several versions, the last.
fn packages() -> anyhow::Result<Vec<(Bytes, Bytes)>> {
    let output = Command::new("apt-cache")
        .arg("dumpavail")
        .output()
        .context("apt-cache dumpavail")?;
    let text = Bytes::from(output.stdout);
    let mut packages = BTreeMap::new();
    let mut start = 0;
    while start < text.len() {
        let end = text[start..]
            .windows(2)
            .position(|two| two == b"\n\n")
            .map_or(text.len(), |at| start + at + 1);
        let stanza = text.slice(start..end);
        let name = stanza
            .strip_prefix(b"Package: ")
            .and_then(|rest| rest.split(|byte| *byte == b'\n').next());
        if let Some(name) = name {
            packages.insert(Bytes::from([b"/packages/", name].concat()), stanza.clone());
        }
        start = end + 1;
    }
    if packages.is_empty() {
        bail!("the package index is empty: apt-get update fills it");
    }
    Ok(packages.into_iter().collect())
}

/// When writes were acknowledged.
#[derive(Default)]
struct Progress {
    acknowledged: AtomicUsize,
    /// The last acknowledgement, and the longest pause since it was asked for.
    times: Mutex<(Option<Instant>, Duration)>,
}

impl Progress {
    fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut times = self.times.lock().expect("no writer panics");
        let gap = times.0.map_or(Duration::ZERO, |last| now - last);
        *times = (Some(now), times.1.max(gap));
    }

    fn last(&self) -> Option<Instant> {
        self.times.lock().expect("no writer panics").0
    }

    fn longest_gap(&self) -> Duration {
        std::mem::take(&mut self.times.lock().expect("no writer panics").1)
    }
}

/// Every so-manyth package, each through the next member. A write of unknown fate is made again: the same value, to a
/// key that nobody else writes.
async fn write_all(
    first: usize,
    packages: Arc<Vec<(Bytes, Bytes)>>,
    progress: Arc<Progress>,
) -> anyhow::Result<()> {
    let clients = (0..MEMBERS).map(client).collect::<anyhow::Result<Vec<_>>>()?;
    for (at, (key, value)) in packages.iter().enumerate().skip(first).step_by(WRITERS) {
        let mut turn = at / WRITERS + first;
        loop {
            let request = PutRequest {
                key: key.clone(),
                value: value.clone(),
                ..PutRequest::default()
            };
            match clients[turn % MEMBERS].put(request).await {
                Ok(_) => break progress.acknowledge(),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            turn += 1;
        }
    }
    Ok(())
}

/// How many packages a member lacks or has otherwise, by its own linearizable reads.
async fn compare(at: usize, packages: &[(Bytes, Bytes)]) -> anyhow::Result<usize> {
    let client = client(at)?;
    let mut found = BTreeMap::new();
    let mut key = Bytes::from_static(b"/packages/");
    loop {
        let range_end = Bytes::from_static(b"/packages0");
        let page = client
            .range(RangeRequest {
                key,
                range_end,
                limit: PAGE,
                ..RangeRequest::default()
            })
            .await?;
        let Some(last) = page.kvs.last() else { break };
        key = [&last.key[..], b"\0"].concat().into();
        found.extend(page.kvs.into_iter().map(|kv| (kv.key, kv.value)));
    }
    let different = packages
        .iter()
        .filter(|(key, value)| found.get(key) != Some(value))
        .count();
    Ok(different + found.len().saturating_sub(packages.len()))
}
