//! `/metrics`: etcd's names, and numbers that say what happens.

use std::collections::{BTreeMap, BTreeSet};

use pontoon::pb::etcdserverpb::cluster_client::ClusterClient;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::{
    CompactionRequest, DefragmentRequest, HashKvRequest, HashRequest, MemberRemoveRequest, SnapshotRequest,
};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::etcd::Etcd;
use crate::support::http::{Answer, ask, get};
use crate::support::leases::Leases;
use crate::support::process::{free_port, wait_for};
use crate::support::proxy::Link;
use crate::support::rpc::{Request, channel};
use crate::support::watcher::{WatchStream, watch_all};

/// The samples of a page, by name and labels.
fn samples(answer: &Answer) -> BTreeMap<String, f64> {
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let text = answer.text();
    let mut samples = BTreeMap::new();
    let mut described = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            described = rest.split(' ').nth(1).expect("a name").to_string();
            continue;
        }
        let (name, value) = line
            .rsplit_once(' ')
            .unwrap_or_else(|| panic!("no sample: {line}"));
        assert!(name.starts_with(&described), "{line} stands under {described}");
        let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let earlier = samples.insert(name.to_string(), value);
        assert_eq!(earlier, None, "{name} is there twice");
    }
    samples
}

/// What etcd's dashboard and alerts ask for, as far as it is a sample without labels.
const ON_DASHBOARDS: &[&str] = &[
    "etcd_server_has_leader",
    "etcd_server_is_leader",
    "etcd_server_is_learner",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_pending",
    "etcd_server_proposals_failed_total",
    "etcd_server_read_indexes_failed_total",
    "etcd_server_slow_read_indexes_total",
    "etcd_server_slow_apply_total",
    "etcd_server_apply_duration_seconds_count",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_quota_backend_bytes",
    "etcd_server_health_success",
    "etcd_server_health_failures",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_keys_total",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_disk_wal_fsync_duration_seconds_count",
    "etcd_disk_wal_write_bytes_total",
    "etcd_disk_backend_commit_duration_seconds_count",
    "etcd_disk_backend_snapshot_duration_seconds_count",
    "etcd_disk_backend_defrag_duration_seconds_count",
    "etcd_mvcc_hash_duration_seconds_count",
    "etcd_mvcc_db_open_read_transactions",
    "etcd_debugging_mvcc_events_total",
    "etcd_debugging_mvcc_pending_events_total",
    "etcd_debugging_mvcc_db_compaction_keys_total",
    "etcd_debugging_mvcc_put_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_debugging_server_lease_expired_total",
    "etcd_mvcc_put_total",
    "etcd_mvcc_range_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_txn_total",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_cpu_seconds_total",
    "process_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
    "os_fd_used",
    "os_fd_limit",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_is_seen_while_it_is_raised() {
    let cluster = Cluster::start(1).await;
    let url = &cluster.members[0].client_url;
    let alarm = async || {
        let page = samples(&get(url, "/metrics").await);
        ["NOSPACE", "CORRUPT"].map(|kind| page[&format!("pontoon_alarm{{type=\"{kind}\"}}")])
    };
    assert_eq!(alarm().await, [0.0, 0.0]);
    for (action, raised) in [("ACTIVATE", 1.0), ("DEACTIVATE", 0.0)] {
        let asked = format!(r#"{{"action":"{action}","memberID":"1","alarm":"NOSPACE"}}"#);
        let answer = ask(url, "POST", "/v3/maintenance/alarm", &[], asked.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(alarm().await, [raised, 0.0], "{action}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_etcds_names_and_move() {
    let port = free_port();
    let metrics_url = format!("http://127.0.0.1:{port}");
    let flags = ["--listen-metrics-urls", &metrics_url, "--metrics", "extensive"];
    let cluster = Cluster::start_with(1, &flags).await;
    let url = &cluster.members[0].client_url;
    let before = samples(&get(url, "/metrics").await);
    for name in ON_DASHBOARDS {
        assert!(before.contains_key(*name), "{name} is missing");
    }
    let client = cluster.client(0);
    for n in 0..10 {
        let mut client = client.clone();
        client.put(&format!("k{n}"), "value").await.expect("put");
    }
    // On the metrics port too, where there is nothing else.
    let after = samples(&get(&metrics_url, "/metrics").await);
    assert_eq!(get(&metrics_url, "/health").await.status, 200);
    assert_eq!(get(&metrics_url, "/kv/k1").await.status, 404);
    assert_eq!(get(&metrics_url, "/v3/kv/range").await.status, 404);
    let grew = |name: &str| after[name] - before[name];
    let put = r#"grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary""#;
    for (name, by) in [
        ("etcd_mvcc_put_total".to_string(), 10.0),
        ("etcd_debugging_mvcc_put_total".to_string(), 10.0),
        ("etcd_debugging_mvcc_current_revision".to_string(), 10.0),
        ("etcd_debugging_mvcc_keys_total".to_string(), 10.0),
        (format!("grpc_server_started_total{{{put}}}"), 10.0),
        (format!("grpc_server_msg_received_total{{{put}}}"), 10.0),
        (format!("grpc_server_msg_sent_total{{{put}}}"), 10.0),
        (
            format!(r#"grpc_server_handled_total{{grpc_code="OK",{put}}}"#),
            10.0,
        ),
        (format!("grpc_server_handling_seconds_count{{{put}}}"), 10.0),
        ("etcd_server_has_leader".to_string(), 0.0),
    ] {
        assert!((grew(&name) - by).abs() < 0.5, "{name} grew by {}", grew(&name));
    }
    for name in [
        "etcd_network_client_grpc_sent_bytes_total",
        "etcd_server_proposals_applied_total",
        "etcd_server_apply_duration_seconds_count",
        "etcd_disk_wal_fsync_duration_seconds_count",
        "etcd_disk_wal_write_bytes_total",
    ] {
        assert!(grew(name) > 9.0, "{name} grew by {}", grew(name));
    }
    assert!(after["etcd_server_has_leader"] > 0.5 && after["process_resident_memory_bytes"] > 1e6);
    let unknown = r#"etcd_server_client_requests_total{client_api_version="unknown",type="unary"}"#;
    assert!(after[unknown] > 9.0);
    assert!(
        after
            .keys()
            .any(|name| name.starts_with("etcd_server_version{server_version=\"3.5."))
    );
}

/// The samples of one member's page.
async fn page(cluster: &Cluster, member: usize) -> BTreeMap<String, f64> {
    samples(&get(&cluster.members[member].client_url, "/metrics").await)
}

/// Waits until a sample of a member's page satisfies `wanted`.
async fn await_sample(cluster: &Cluster, member: usize, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    let what = format!("{name} of {}", cluster.members[member].name);
    wait_for(PATIENCE, &what, || async {
        let value = page(cluster, member).await.get(name).copied();
        value.filter(|value| wanted(*value))
    })
    .await
}

/// Names that a page describes, and the kind of each.
fn described(page: &str) -> BTreeMap<String, String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let pair = |line: &str| {
        let (name, kind) = line.split_once(' ').expect("a name and a kind");
        (name.to_string(), kind.to_string())
    };
    types.map(pair).collect()
}

/// What etcd's pages have and ours does not, and why.
const NOT_OURS: &[(&str, &str)] = &[
    ("etcd_server_go_version", "there is no Go here"),
    (
        "etcd_debugging_store_",
        "of the store of API v2, which is not served",
    ),
    ("etcd_grpc_proxy_", "of etcd's gRPC proxy, another program"),
    (
        "etcd_debugging_disk_backend_commit_",
        "steps of a commit of bbolt: ours has other steps",
    ),
    (
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        "reclaiming goes on behind the writer, which does not pause",
    ),
    (
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
        "the index is walked in slices: nobody pauses for all of it",
    ),
    (
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        "reclaiming takes turns with saves: its duration says nothing of its cost",
    ),
    (
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "etcd_network_client_grpc_received_bytes_total and etcd_disk_wal_write_bytes_total tell it",
    ),
    (
        "etcd_debugging_lease_ttl_total",
        "no duration but what clients ask for; pontoon lease list has each",
    ),
    (
        "etcd_debugging_snap_save_marshalling_duration_seconds",
        "a snapshot is written as it is encoded, in one step",
    ),
    (
        "etcd_snap_db_fsync_duration_seconds",
        "counted with all snapshot files in etcd_snap_fsync_duration_seconds",
    ),
    (
        "etcd_server_learner_promote_",
        "grpc_server_handled_total of MemberPromote tells it",
    ),
    (
        "etcd_server_snapshot_apply_in_progress_total",
        "etcd_network_snapshot_receive_success tells that one came",
    ),
];

/// Kinds that differ, and why.
const OTHER_KINDS: &[(&str, &str)] = &[(
    "etcd_disk_wal_write_bytes_total",
    "it only grows: a counter, which etcd calls a gauge",
)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcds_page_has_ours_has_or_there_is_a_reason() {
    let cluster = Cluster::start(1).await;
    let ours = described(&get(&cluster.members[0].client_url, "/metrics").await.text());
    let reason = |name: &str| {
        let known = NOT_OURS.iter().find(|(absent, _)| name.starts_with(absent));
        known.map(|(_, why)| *why)
    };
    let there_after_all: Vec<&String> = ours.keys().filter(|name| reason(name).is_some()).collect();
    assert!(there_after_all.is_empty(), "{there_after_all:?}");
    for etcd in Etcd::one_of_each_version().await {
        let theirs = described(&get(&etcd.endpoint, "/metrics").await.text());
        let is_etcds = |name: &&String| name.starts_with("etcd_") || name.starts_with("grpc_");
        assert!(
            theirs.keys().filter(is_etcds).count() > 50,
            "etcd {}",
            etcd.version
        );
        let mut missing = BTreeSet::new();
        for (name, kind) in theirs.iter().filter(|(name, _)| is_etcds(name)) {
            match (ours.get(name), reason(name)) {
                (Some(our_kind), _) => {
                    let may_differ = OTHER_KINDS.iter().any(|(other, _)| other == name);
                    assert!(
                        our_kind == kind || may_differ,
                        "{name} is a {our_kind}, etcd has a {kind}"
                    );
                }
                (None, Some(why)) => println!("etcd {} has {name}: {why}", etcd.version),
                (None, None) => drop(missing.insert(name)),
            }
        }
        assert!(missing.is_empty(), "etcd {} has {missing:#?}", etcd.version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_count_what_they_exchange_with_those_that_are_members() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let ids = ids(&cluster).await;
    for member in 0..3 {
        for other in (0..3).filter(|other| *other != member) {
            let (me, it) = (&ids[member], &ids[other]);
            for name in [
                format!("etcd_network_peer_sent_bytes_total{{To=\"{it}\"}}"),
                format!("etcd_network_peer_received_bytes_total{{From=\"{it}\"}}"),
                format!("etcd_network_peer_round_trip_time_seconds_count{{To=\"{it}\"}}"),
                format!("etcd_network_active_peers{{Local=\"{me}\",Remote=\"{it}\"}}"),
            ] {
                await_sample(&cluster, member, &name, |value| value > 0.0).await;
            }
        }
    }
    // What is written goes to the followers, and comes there from the leader.
    let gone = (leader + 1) % 3;
    let to = format!("etcd_network_peer_sent_bytes_total{{To=\"{}\"}}", ids[gone]);
    let from = format!(
        "etcd_network_peer_received_bytes_total{{From=\"{}\"}}",
        ids[leader]
    );
    let (sent, received) = (
        page(&cluster, leader).await[&to],
        page(&cluster, gone).await[&from],
    );
    let value = "x".repeat(100_000);
    for _ in 0..5 {
        cluster.client(leader).put("key", &value).await.expect("a put");
    }
    await_sample(&cluster, leader, &to, |now| now > sent + 500_000.0).await;
    await_sample(&cluster, gone, &from, |now| now > received + 500_000.0).await;

    cluster.kill(gone);
    let (me, it) = (&ids[leader], &ids[gone]);
    let pair = format!("{{Local=\"{me}\",Remote=\"{it}\"}}");
    let active = format!("etcd_network_active_peers{pair}");
    await_sample(&cluster, leader, &active, |active| active < 0.5).await;
    let after = page(&cluster, leader).await;
    assert!(after[&format!("etcd_network_disconnected_peers_total{pair}")] > 0.5);
    assert!(after[&format!("etcd_network_peer_sent_failures_total{{To=\"{it}\"}}")] > 0.5);
    assert!(after["etcd_server_heartbeat_send_failures_total"] > 0.5);

    let remove = MemberRemoveRequest {
        id: u64::from_str_radix(it, 16).expect("an id"),
    };
    let mut client = ClusterClient::new(channel(&cluster.members[leader].client_url));
    client.member_remove(remove).await.expect("removed");
    wait_for(PATIENCE, "the removed member to leave the page", || async {
        let page = get(&cluster.members[leader].client_url, "/metrics").await.text();
        (!page.contains(it.as_str())).then_some(())
    })
    .await;
}

/// The members' ids, in hex.
async fn ids(cluster: &Cluster) -> Vec<String> {
    let mut ids = Vec::new();
    for member in 0..cluster.members.len() {
        let status = cluster.status(member).await.expect("a status");
        ids.push(format!("{:x}", status.header.expect("a header").member_id));
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_counted_where_they_end() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut leases = Leases::new(&cluster.members[leader].client_url);
    for (id, ttl) in [(1, 600), (2, 600), (3, 1)] {
        leases.grant(id, ttl).await.expect("granted");
    }
    leases.keep_alive(&[1, 2]).await.expect("renewed");
    leases.revoke(1).await.expect("revoked");
    await_sample(
        &cluster,
        leader,
        "etcd_debugging_server_lease_expired_total",
        |n| n > 0.5,
    )
    .await;
    let page_of_leader = page(&cluster, leader).await;
    let count = |name: &str| page_of_leader[name] as u64;
    assert_eq!(count("etcd_debugging_server_lease_expired_total"), 1);
    assert_eq!(count("etcd_debugging_lease_renewed_total"), 2);
    // Every member sees them begin and end; only the leader ends them.
    for member in 0..3 {
        await_sample(&cluster, member, "etcd_debugging_lease_revoked_total", |n| {
            n > 1.5
        })
        .await;
        let page = page(&cluster, member).await;
        assert_eq!(page["etcd_debugging_lease_granted_total"] as u64, 3);
        assert_eq!(page["etcd_debugging_lease_revoked_total"] as u64, 2);
    }
    let follower = page(&cluster, (leader + 1) % 3).await;
    assert_eq!(follower["etcd_debugging_server_lease_expired_total"] as u64, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_does_is_counted_and_timed() {
    let cluster = Cluster::start(1).await;
    let url = cluster.members[0].client_url.clone();
    let mut stream = WatchStream::open(&url).await.expect("a stream");
    stream.create(watch_all(0)).await;
    let mut client = cluster.client(0);
    let mut last = 0;
    for n in 0..20 {
        last = client.put("key", &n.to_string()).await.expect("a put");
    }
    stream.events(20).await;
    let compact = CompactionRequest {
        revision: last,
        physical: false,
    };
    client.call(Request::Compact(compact)).await.expect("compacted");
    let mut maintenance = MaintenanceClient::new(channel(&url));
    maintenance.hash(HashRequest {}).await.expect("a hash");
    let hash_kv = HashKvRequest { revision: 0 };
    maintenance.hash_kv(hash_kv).await.expect("a hash");
    maintenance.defragment(DefragmentRequest {}).await.expect("done");
    let mut backup = maintenance
        .snapshot(SnapshotRequest {})
        .await
        .expect("a backup")
        .into_inner();
    while backup.message().await.expect("a piece").is_some() {}

    await_sample(&cluster, 0, "etcd_debugging_mvcc_db_compaction_keys_total", |n| {
        n > 18.5
    })
    .await;
    let page = page(&cluster, 0).await;
    for (name, least) in [
        ("etcd_debugging_mvcc_events_total", 20),
        ("etcd_disk_backend_commit_duration_seconds_count", 1),
        ("etcd_disk_backend_defrag_duration_seconds_count", 1),
        ("etcd_disk_backend_snapshot_duration_seconds_count", 1),
        ("etcd_mvcc_hash_duration_seconds_count", 1),
        ("etcd_mvcc_hash_rev_duration_seconds_count", 1),
    ] {
        assert!(page[name] as u64 >= least, "{name} is {}", page[name]);
    }
    assert_eq!(page["etcd_debugging_mvcc_pending_events_total"] as u64, 0);
    assert_eq!(page["etcd_disk_defrag_inflight"] as u64, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_waits_for_a_member_that_is_cut_off() {
    /// Entries that are kept in the log behind a snapshot, and some more.
    const ENTRIES: usize = 13_000;
    /// Heartbeats that fail meanwhile.
    const HEARTBEATS: f64 = 40.0;
    let cluster = Cluster::start_with(3, &["--snapshot-count", "1000"]).await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    cluster.set_link(behind, Link::Cut);
    let writers = (0..64).map(|writer| {
        let mut client = cluster.client(leader);
        async move {
            for n in 0..=ENTRIES / 64 {
                client
                    .put(&format!("key {writer}"), &n.to_string())
                    .await
                    .expect("a put");
            }
        }
    });
    futures::future::join_all(writers).await;
    let log_of_leader = || std::fs::read_to_string(cluster.members[leader].log_file()).expect("a log");
    let waits = "a snapshot waits for a member that does not answer";
    wait_for(PATIENCE, "a snapshot to wait", || async {
        log_of_leader().contains(waits).then_some(())
    })
    .await;
    let failures = "etcd_server_heartbeat_send_failures_total";
    let before = page(&cluster, leader).await[failures];
    await_sample(&cluster, leader, failures, |now| now > before + HEARTBEATS).await;
    let log = log_of_leader();
    let tries = log.matches("sending a snapshot").count();
    let waited = log.matches(waits).count();
    println!("{HEARTBEATS} heartbeats later: {tries} tries, {waited} times waited");
    // One may be under way when the link is cut, and after a while it is tried anyway.
    assert!(tries <= 3 && waited <= 4, "{tries} tries, {waited} times waited");

    cluster.set_link(behind, Link::Up);
    let sent = format!(
        "etcd_network_snapshot_send_success{{To=\"{}\"}}",
        ids(&cluster).await[behind]
    );
    await_sample(&cluster, leader, &sent, |sent| sent > 0.5).await;
    await_sample(
        &cluster,
        behind,
        "etcd_snap_db_save_total_duration_seconds_count",
        |n| n > 0.5,
    )
    .await;
    let revision = "etcd_debugging_mvcc_current_revision";
    let now = page(&cluster, leader).await[revision];
    await_sample(&cluster, behind, revision, |there| there >= now).await;
}
