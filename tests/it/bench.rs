//! `pontoon bench` against real members: every workload does what its report says, and nothing fails.

use std::process::Output;

use pontoon::pb::etcdserverpb::{RangeRequest, RangeResponse};
use serde_json::Value;
use tokio::process::Command;

use crate::support::cluster::{BINARY, Cluster, Member};
use crate::support::rpc::{Request, Response, everything};

/// Operations of each run, and keys.
const TOTAL: u64 = 400;
const KEYS: &str = "200";

struct Bench {
    endpoints: String,
}

impl Bench {
    fn of(cluster: &Cluster) -> Bench {
        // As people type them.
        let address = |member: &Member| member.client_url.replace("http://", "");
        let endpoints: Vec<String> = cluster.members.iter().map(address).collect();
        Bench {
            endpoints: endpoints.join(","),
        }
    }

    /// Waited for without blocking: the members reach each other through this process.
    async fn output(&self, line: &str) -> Output {
        let common = [
            "--endpoints",
            &self.endpoints,
            "--key-space",
            KEYS,
            "--warmup",
            "0s",
        ];
        let mut command = Command::new(BINARY);
        command.arg("bench").args(line.split(' ')).args(common);
        command.output().await.expect("pontoon runs")
    }

    /// The report of a run of `TOTAL` operations by four clients.
    async fn report(&self, line: &str) -> Value {
        let output = self
            .output(&format!("{line} --clients 4 --total {TOTAL} -w json"))
            .await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {errors}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The same; all of them were answered, and none missed.
    async fn succeeds(&self, line: &str) -> Value {
        let report = self.report(line).await;
        assert_eq!(report["operations"], TOTAL, "{report:#}");
        assert_eq!(report["latency_ms"]["count"], TOTAL, "{report:#}");
        assert_eq!(report["errors"], serde_json::json!({}), "{report:#}");
        assert_eq!(report["missed"], 0, "{report:#}");
        report
    }
}

/// What a range over every key says, without them.
async fn all(cluster: &Cluster) -> RangeResponse {
    let request = RangeRequest {
        count_only: true,
        ..everything()
    };
    match cluster.client(0).call(Request::Range(request)).await {
        Ok(Response::Range(found)) => found,
        other => panic!("not a range: {other:?}"),
    }
}

async fn revision(cluster: &Cluster) -> i64 {
    Response::Range(all(cluster).await).revision()
}

#[tokio::test]
async fn every_workload_does_what_its_report_says() {
    let cluster = Cluster::start(3).await;
    let bench = Bench::of(&cluster);
    let before = revision(&cluster).await;
    bench.succeeds("put --distribution sequential --seed 3").await;
    assert_eq!(revision(&cluster).await - before, TOTAL as i64);
    assert_eq!(all(&cluster).await.count.to_string(), KEYS);

    // What is to be read is written first, once.
    bench.succeeds("get --preload all").await;
    let before = revision(&cluster).await;
    bench.succeeds("get --distribution zipf").await;
    bench.succeeds("get --consistency s --rate 4000").await;
    bench
        .succeeds("range --keys 50 --connections 5 --target leader")
        .await;
    assert_eq!(revision(&cluster).await, before);

    let mixed = bench.succeeds("mixed --reads 50 --seed 11").await;
    assert_eq!(mixed["settings"]["seed"], 11);
    let written = revision(&cluster).await - before;
    assert!((1..TOTAL as i64).contains(&written), "{written} of {TOTAL}");

    // Clients may lose to each other: what missed wrote nothing.
    let before = revision(&cluster).await;
    let swapped = bench.report("txn").await;
    assert_eq!(swapped["operations"], TOTAL, "{swapped:#}");
    let missed = swapped["missed"].as_i64().expect("a number");
    assert_eq!(
        revision(&cluster).await - before,
        TOTAL as i64 - missed,
        "{swapped:#}"
    );

    bench.succeeds("lease-grant --ttl 60").await;
    bench.succeeds("lease-keep-alive").await;
}

#[tokio::test]
async fn every_watcher_gets_every_event() {
    let cluster = Cluster::start(1).await;
    let report = Bench::of(&cluster)
        .report("watch --watchers 10 --streams 3")
        .await;
    let events = 10 * TOTAL;
    assert_eq!(report["writes"]["operations"], TOTAL, "{report:#}");
    assert_eq!(report["operations"], events, "{report:#}");
    assert_eq!(report["latency_ms"]["count"], events, "{report:#}");
    assert_eq!(report["events_missing"], 0, "{report:#}");
    assert_eq!(report["errors"], serde_json::json!({}), "{report:#}");
}

#[tokio::test]
async fn a_report_tells_what_the_servers_used() {
    let cluster = Cluster::start(1).await;
    let bench = Bench::of(&cluster);
    let process = cluster.members[0].process_id().expect("it runs");
    let report = bench.succeeds(&format!("put --pids {process}")).await;
    let servers = &report["servers"];
    assert_eq!(servers["processes"][0]["pid"], process);
    assert!(servers["resident_bytes"].as_u64() > Some(1 << 20), "{report:#}");

    let output = bench.output("put --total 20").await;
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && table.contains("errors |"), "{table}");
}

#[tokio::test]
async fn what_fails_is_counted_by_code_and_told() {
    let cluster = Cluster::start_with(1, &["--max-request-bytes", "1000"]).await;
    let output = Bench::of(&cluster)
        .output("put --total 3 --value-size 2000 -w json")
        .await;
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["operations"], 0, "{report:#}");
    assert_eq!(report["errors"]["InvalidArgument"], 3, "{report:#}");

    let output = Bench::of(&cluster)
        .output("put --total 3 --pids 4294967295")
        .await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read /proc/4294967295/stat"));
}
