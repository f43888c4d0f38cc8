//! What a member counts of its store and of leases: as much as etcd does for the same calls, and what is applied on every
//! member of the cluster.

use std::collections::BTreeMap;

use crate::differential::excluded;
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::etcd::Etcd;
use crate::support::from_env;
use crate::support::generate::{Generator, Near};
use crate::support::http::get;
use crate::support::leases::Leases;
use crate::support::model::Model;
use crate::support::process::wait_for;
use crate::support::rpc::{Client, Request, put_request};

/// What is compared.
const COUNTED: [&str; 6] = [
    "etcd_mvcc_range_total",
    "etcd_mvcc_put_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_txn_total",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_revoked_total",
];

/// Requests of each kind in a script; the seed sets where they begin.
const REQUESTS: usize = 400;

type Counts = BTreeMap<&'static str, u64>;

async fn counts(endpoint: &str) -> Counts {
    let page = get(endpoint, "/metrics").await.text();
    let value = |name: &str| {
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{name} is missing"))
    };
    COUNTED.iter().map(|name| (*name, value(name) as u64)).collect()
}

fn since(before: &Counts, now: &Counts) -> Counts {
    COUNTED
        .iter()
        .map(|name| (*name, now[name] - before[name]))
        .collect()
}

/// Random requests that the model answers too: those that write, or those that read.
fn requests(seed: u64, writes: bool) -> Vec<Request> {
    let mut generator = Generator::new(seed);
    let mut model = Model::default();
    let mut requests = Vec::new();
    while requests.len() < REQUESTS {
        let near = Near {
            revision: model.revision(),
            compacted: model.compacted(),
        };
        let request = generator.request(near);
        let is_wanted = (request.is_write() || matches!(request, Request::Compact(_))) == writes;
        if is_wanted && excluded(&request).is_none() {
            let _ = model.answer(&request);
            requests.push(request);
        }
    }
    requests
}

async fn send(endpoint: &str, requests: &[Request]) {
    let mut client = Client::new(endpoint);
    for request in requests {
        let _ = client.ask(request.clone()).await;
    }
}

/// Leases with several keys, one, and none; one that there is already, and one that there is not.
async fn end_leases(endpoint: &str) {
    let mut leases = Leases::new(endpoint);
    let mut client = Client::new(endpoint);
    for (id, keys) in [(91, 3), (92, 1), (93, 0)] {
        leases.grant(id, 600).await.expect("granted");
        leases.grant(id, 600).await.expect_err("there is one");
        for key in 0..keys {
            let mut put = put_request(format!("of {id}, {key}").as_bytes(), b"value");
            put.lease = id;
            client.call(Request::Put(put)).await.expect("put");
        }
    }
    for id in [91, 92, 93] {
        leases.revoke(id).await.expect("revoked");
        leases.revoke(id).await.expect_err("there is none");
    }
}

/// What one server has counted after each part of the script.
async fn run(endpoint: &str, seed: u64) -> [Counts; 3] {
    let start = counts(endpoint).await;
    send(endpoint, &requests(seed, true)).await;
    let written = counts(endpoint).await;
    end_leases(endpoint).await;
    let ended = counts(endpoint).await;
    send(endpoint, &requests(seed, false)).await;
    let read = counts(endpoint).await;
    [
        since(&start, &written),
        since(&written, &ended),
        since(&ended, &read),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_count_what_etcd_counts_of_the_same_calls() {
    let seed = from_env("PONTOON_SEED", 1);
    let cluster = Cluster::start(3).await;
    let endpoints: Vec<&str> = cluster
        .members
        .iter()
        .map(|member| member.client_url.as_str())
        .collect();
    let mut before = Vec::new();
    for endpoint in &endpoints {
        before.push(counts(endpoint).await);
    }
    let parts = run(endpoints[0], seed).await;
    println!(
        "seed {seed}: writes {:?}, leases {:?}, reads {:?}",
        parts[0], parts[1], parts[2]
    );
    for name in COUNTED {
        assert!(
            parts.iter().any(|part| part[name] > 0),
            "nothing was counted as {name}"
        );
    }
    // Reads are counted by who serves them, all else by everybody.
    let applied = |name: &str| parts[0][name] + parts[1][name];
    for (endpoint, before) in endpoints.iter().zip(&before).skip(1) {
        let what = format!("{endpoint} to count what was applied");
        let now = wait_for(PATIENCE, &what, || async {
            let now = since(before, &counts(endpoint).await);
            COUNTED
                .iter()
                .all(|name| now[name] >= applied(name))
                .then_some(now)
        })
        .await;
        for name in COUNTED {
            assert_eq!(now[name], applied(name), "{name} at {endpoint}, seed {seed}");
        }
    }
    for etcd in Etcd::one_of_each_version().await {
        let theirs = run(&etcd.endpoint, seed).await;
        assert_eq!(
            parts, theirs,
            "ours (left) and those of etcd {}, seed {seed}",
            etcd.version
        );
    }
}
