//! How a cluster bears large numbers: keys, bytes, leases, watchers.
//!
//! Starts three members afresh for each, and prints what they cost: memory and disk, how long it takes to write, to
//! open again after a kill, to back up and to restore.
//!
//! ```sh
//! cargo build --release && cargo run --release --example scale -- target/release/pontoon
//! cargo run --release --example scale -- target/release/pontoon keys=5000000 leases=1000000
//! ```
//!
//! `keys`, `bytes`, `leases` and `watchers` replace a number; 0 leaves that part out.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use pontoon::pb::etcdserverpb::watch_client::WatchClient;
use pontoon::pb::etcdserverpb::watch_request::RequestUnion;
use pontoon::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest,
};

use crate::common::{Cluster, MEMBERS, client, endpoint};

/// Requests under way at once.
const AT_ONCE: usize = 256;
/// Bytes of a value where many keys are the point, and where many bytes are.
const SMALL: usize = 256;
const LARGE: usize = 16 << 10;
/// Watchers that share a stream.
const ON_A_STREAM: usize = 100;
/// Puts that all watchers hear of.
const HEARD: usize = 20;

/// What to try, and with what.
struct Plan {
    binary: PathBuf,
    keys: usize,
    bytes: usize,
    leases: usize,
    watchers: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let plan = Plan::from(std::env::args().skip(1))?;
    if plan.keys > 0 {
        println!("## {} keys of {SMALL} bytes", plan.keys);
        plan.store(plan.keys, SMALL).await?;
    }
    if plan.bytes > 0 {
        let count = plan.bytes.div_ceil(LARGE);
        println!("## {} MiB in {count} keys of {LARGE} bytes", plan.bytes >> 20);
        plan.store(count, LARGE).await?;
    }
    if plan.leases > 0 {
        println!("## {} leases", plan.leases);
        plan.leases().await?;
    }
    if plan.watchers > 0 {
        println!("## {} watchers on one member", plan.watchers);
        plan.watchers().await?;
    }
    Ok(())
}

impl Plan {
    fn from(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Plan> {
        let binary = arguments
            .next()
            .context("usage: scale PATH-TO-PONTOON [keys=N] …")?;
        let mut plan = Plan {
            binary: PathBuf::from(binary),
            keys: 1_000_000,
            bytes: 1 << 30,
            leases: 100_000,
            watchers: 10_000,
        };
        for argument in arguments {
            let (name, number) = argument.split_once('=').context("an option is NAME=NUMBER")?;
            let number = number.parse().with_context(|| format!("{argument}: no number"))?;
            match name {
                "keys" => plan.keys = number,
                "bytes" => plan.bytes = number,
                "leases" => plan.leases = number,
                "watchers" => plan.watchers = number,
                _ => bail!("{name}: not known"),
            }
        }
        Ok(plan)
    }

    async fn cluster(&self) -> anyhow::Result<Cluster> {
        let dir = std::env::temp_dir().join(format!("pontoon-scale-{}", std::process::id()));
        let cluster = Cluster::start(self.binary.clone(), dir)?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Writes `count` keys, opens the cluster again, backs it up and restores it.
    async fn store(&self, count: usize, size: usize) -> anyhow::Result<()> {
        let mut cluster = self.cluster().await?;
        let before = cluster.memory()?;
        let clients = (0..MEMBERS).map(client).collect::<anyhow::Result<Vec<_>>>()?;
        let began = Instant::now();
        stream::iter(0..count)
            .map(|at| {
                let client = &clients[at % MEMBERS];
                async move { client.put(pair(at, size)).await.map(drop) }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let took = began.elapsed();
        println!(
            "written in {took:.1?}: {:.0} a second",
            count as f64 / took.as_secs_f64()
        );
        per(&cluster, &before, count, "key")?;
        for at in 0..MEMBERS {
            println!("disk, member {at}: {} MiB", size_of(&cluster.data_dir(at))? >> 20);
        }

        (0..MEMBERS).try_for_each(|at| cluster.kill(at))?;
        let began = Instant::now();
        (0..MEMBERS).try_for_each(|at| cluster.run(at))?;
        cluster.wait_ready().await?;
        println!(
            "all killed; linearizable reads on every member after {:.2?}",
            began.elapsed()
        );
        per(&cluster, &before, count, "key")?;

        let (file, restored) = (cluster.dir().join("backup.db"), cluster.dir().join("restored"));
        let began = Instant::now();
        self.run(
            &[
                "--endpoints",
                &endpoint(0),
                "--command-timeout",
                "600s",
                "snapshot",
                "save",
            ],
            &[&file],
        )?;
        println!(
            "backed up in {:.1?}: {} MiB",
            began.elapsed(),
            file.metadata()?.len() >> 20
        );
        let began = Instant::now();
        self.run(
            &["snapshot", "restore", "--name", "n0", "--data-dir"],
            &[&restored, &file],
        )?;
        println!("restored in {:.1?}", began.elapsed());
        (0..MEMBERS).try_for_each(|at| cluster.kill(at))?;
        let began = Instant::now();
        cluster.run_on(0, &restored, true)?;
        let client = client(0)?;
        let found = loop {
            match client.range(everything()).await {
                Ok(found) => break found.count,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            ensure!(
                cluster.is_running(0)?,
                "the restored member ended: its log says why"
            );
        };
        println!(
            "the restored member counts {found} keys after {:.2?}",
            began.elapsed()
        );
        ensure!(found == count as i64, "{count} keys were written");
        cluster.stop();
        Ok(())
    }

    async fn leases(&self) -> anyhow::Result<()> {
        let mut cluster = self.cluster().await?;
        let before = cluster.memory()?;
        let clients = (0..MEMBERS).map(client).collect::<anyhow::Result<Vec<_>>>()?;
        let began = Instant::now();
        stream::iter(1..=self.leases)
            .map(|id| {
                let grant = LeaseGrantRequest {
                    id: id as i64,
                    ttl: 3600,
                };
                let client = &clients[id % MEMBERS];
                async move { client.lease_grant(grant).await.map(drop) }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let took = began.elapsed();
        println!(
            "granted in {took:.1?}: {:.0} a second",
            self.leases as f64 / took.as_secs_f64()
        );
        per(&cluster, &before, self.leases, "lease")?;
        let (leader, began) = (cluster.leader().await?, Instant::now());
        cluster.kill(leader)?;
        let other = client((leader + 1) % MEMBERS)?;
        let last = LeaseTimeToLiveRequest {
            id: self.leases as i64,
            keys: false,
        };
        while other.lease_time_to_live(last).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!(
            "leader killed; the next one tells what is left of them after {:.2?}",
            began.elapsed()
        );
        cluster.stop();
        Ok(())
    }

    /// All watch all keys of the first member; another member is written to.
    async fn watchers(&self) -> anyhow::Result<()> {
        let mut cluster = self.cluster().await?;
        let before = cluster.memory()?;
        let streams = self.watchers.div_ceil(ON_A_STREAM);
        let mut open = Vec::with_capacity(streams);
        for _ in 0..streams {
            open.push(Watchers::open().await?);
        }
        per(&cluster, &before, streams * ON_A_STREAM, "watcher")?;
        let began = Instant::now();
        let hearing: Vec<_> = open
            .into_iter()
            .map(|watchers| tokio::spawn(watchers.hear()))
            .collect();
        let writer = client(1)?;
        for at in 0..HEARD {
            writer.put(pair(at, SMALL)).await?;
        }
        for hearing in hearing {
            hearing.await??;
        }
        let (took, events) = (began.elapsed(), streams * ON_A_STREAM * HEARD);
        println!(
            "{HEARD} puts heard by all in {took:.2?}: {:.0} events a second",
            events as f64 / took.as_secs_f64()
        );
        cluster.stop();
        Ok(())
    }

    fn run(&self, arguments: &[&str], paths: &[&Path]) -> anyhow::Result<()> {
        let output = Command::new(&self.binary).args(arguments).args(paths).output()?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// Watchers that share a stream.
struct Watchers {
    responses: tonic::Streaming<pontoon::pb::etcdserverpb::WatchResponse>,
    /// The stream ends with it.
    _requests: tokio::sync::mpsc::Sender<WatchRequest>,
}

impl Watchers {
    async fn open() -> anyhow::Result<Watchers> {
        let (requests, queue) = tokio::sync::mpsc::channel(ON_A_STREAM);
        for _ in 0..ON_A_STREAM {
            let create = WatchCreateRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                ..WatchCreateRequest::default()
            };
            let create = WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(create)),
            };
            requests.send(create).await?;
        }
        let mut client = WatchClient::connect(format!("http://{}", endpoint(0))).await?;
        let queue = tokio_stream::wrappers::ReceiverStream::new(queue);
        let mut responses = client.watch(queue).await?.into_inner();
        for _ in 0..ON_A_STREAM {
            let created = responses.message().await?.context("the stream ended")?;
            ensure!(
                created.created,
                "a watcher is created before it hears of anything"
            );
        }
        Ok(Watchers {
            responses,
            _requests: requests,
        })
    }

    async fn hear(mut self) -> anyhow::Result<()> {
        let mut left = ON_A_STREAM * HEARD;
        while left > 0 {
            let response = self.responses.message().await?.context("the stream ended")?;
            left -= response.events.len();
        }
        Ok(())
    }
}

fn pair(at: usize, size: usize) -> PutRequest {
    // Not alike, so that nothing can be saved by packing.
    let mut seed = at as u64;
    let value = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u8
    });
    PutRequest {
        key: Bytes::from(format!("/scale/{at:012}")),
        value: value.take(size).collect(),
        ..PutRequest::default()
    }
}

fn everything() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        count_only: true,
        ..RangeRequest::default()
    }
}

/// Prints what the members' memory grew by.
fn per(cluster: &Cluster, before: &[u64], count: usize, what: &str) -> anyhow::Result<()> {
    for (at, (before, now)) in before.iter().zip(cluster.memory()?).enumerate() {
        println!(
            "memory, member {at}: {} MiB, {} bytes a {what}",
            now >> 20,
            now.saturating_sub(*before) / count as u64
        );
    }
    Ok(())
}

/// Bytes that a directory takes on the disk. What its owner removes meanwhile takes none.
fn size_of(dir: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let gone = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(0),
        _ => Err(error),
    };
    let mut size = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        size += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of(&entry.path()).or_else(gone)?,
            Ok(metadata) => metadata.blocks() * 512,
            Err(error) => gone(error)?,
        };
    }
    Ok(size)
}
