//! The page that Prometheus reads: every metric of a member, by name, with its unit and meaning.
//!
//! The names are etcd's, so that its dashboards and alerts work; what etcd doesn't have begins with `pontoon_`. Values
//! are read when the page is asked for, but for what only [`Metrics`] counts. Names end with their unit; a duration is
//! in seconds, a size in bytes.

use std::fmt::{Display, Write};

use http::{HeaderValue, Response, header};
use http_body_util::Full;
use tonic::body::Body;

use crate::api::{CLUSTER_VERSION, ETCD_VERSION};
use crate::metrics::{CODES, Calls, Counter, Histogram, Metrics};
use crate::server::Server;

/// The page of `server`.
pub fn answer(server: &Server) -> Response<Body> {
    let mut page = Page(String::with_capacity(128 << 10));
    raft(&mut page, server);
    store(&mut page, server);
    watches(&mut page, server);
    disk(&mut page, server.metrics());
    requests(&mut page, server.metrics());
    build(&mut page, server);
    process(&mut page);
    let mut response = Response::new(Body::new(Full::from(page.0)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

/// The text, metric by metric.
struct Page(String);

impl Page {
    fn head(&mut self, kind: &str, name: &str, meaning: &str) {
        // Writing to memory does not fail.
        let _ = writeln!(self.0, "# HELP {name} {meaning}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, text)| format!("{label}=\"{}\"", escape(text)))
            .collect();
        let _ = match labels.is_empty() {
            true => writeln!(self.0, "{name} {value}"),
            false => writeln!(self.0, "{name}{{{}}} {value}", labels.join(",")),
        };
    }

    /// Goes up and down.
    fn gauge(&mut self, name: &str, meaning: &str, value: impl Display) {
        self.head("gauge", name, meaning);
        self.sample(name, &[], value);
    }

    /// Goes up.
    fn counter(&mut self, name: &str, meaning: &str, value: impl Display) {
        self.head("counter", name, meaning);
        self.sample(name, &[], value);
    }

    /// Always 1: what matters is the label.
    fn fact(&mut self, name: &str, meaning: &str, label: &str, text: &str) {
        self.head("gauge", name, meaning);
        self.sample(name, &[(label, text)], 1);
    }

    fn buckets(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let cumulative = histogram.cumulative();
        for (bound, count) in &cumulative {
            let bound = match bound.is_finite() {
                true => bound.to_string(),
                false => "+Inf".to_string(),
            };
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(&format!("{name}_bucket"), &labels, count);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum());
        let count = cumulative.last().map_or(0, |(_, count)| *count);
        self.sample(&format!("{name}_count"), labels, count);
    }
}

/// A label's text, as the format wants it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Consensus, as this member sees it.
fn raft(page: &mut Page, server: &Server) {
    let (status, metrics) = (server.replica().status(), server.metrics());
    let leads = status.leader == Some(server.member_id());
    page.gauge(
        "etcd_server_has_leader",
        "Whether this member knows a leader.",
        u8::from(status.leader.is_some()),
    );
    page.gauge(
        "etcd_server_is_leader",
        "Whether this member leads.",
        u8::from(leads),
    );
    page.gauge(
        "etcd_server_is_learner",
        "Whether this member has no vote.",
        u8::from(status.is_learner),
    );
    page.counter(
        "etcd_server_leader_changes_seen_total",
        "Leaders that followed another, as this member saw it.",
        metrics.leader_changes.get(),
    );
    page.gauge(
        "etcd_server_proposals_committed_total",
        "Index of the last entry that this member knows to be committed.",
        status.committed,
    );
    page.gauge(
        "etcd_server_proposals_applied_total",
        "Index of the last entry that is applied here.",
        status.applied,
    );
    page.gauge(
        "etcd_server_proposals_pending",
        "Proposals under way from this member.",
        server.in_flight(),
    );
    page.counter(
        "etcd_server_proposals_failed_total",
        "Proposals without an answer: no leader, a time-out, too many at once.",
        metrics.proposals_failed.get(),
    );
    page.counter(
        "etcd_server_read_indexes_failed_total",
        "Linearizable reads that could not be served in time.",
        metrics.read_indexes_failed.get(),
    );
    page.gauge("pontoon_raft_term", "Raft's term.", status.term);
    page.gauge(
        "pontoon_raft_last_index",
        "Index of the last entry in the log here.",
        status.last_index,
    );
    let members = server.members();
    let voters = members.iter().filter(|member| !member.is_learner).count();
    page.gauge("pontoon_members", "Members of the cluster.", members.len());
    page.gauge("pontoon_voters", "Members that vote.", voters);
}

/// The applied state.
fn store(page: &mut Page, server: &Server) {
    let reader = server.reader();
    page.gauge(
        "etcd_debugging_mvcc_current_revision",
        "Revision of the store.",
        reader.revision(),
    );
    page.gauge(
        "etcd_debugging_mvcc_compact_revision",
        "Revision below which history is compacted.",
        reader.compacted(),
    );
    page.gauge(
        "etcd_debugging_mvcc_keys_total",
        "Keys in the index: those that exist, and deleted ones not reclaimed yet.",
        reader.key_count(),
    );
    page.gauge(
        "etcd_server_quota_backend_bytes",
        "Size that the store may have, 0 for any.",
        server.space().quota(),
    );
    page.gauge(
        "etcd_mvcc_db_total_size_in_bytes",
        "Size of the store on disk.",
        reader.size_on_disk(),
    );
    page.gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Size of all keys and values that are kept, of every revision.",
        reader.logical_size(),
    );
}

/// Watches of what is applied here.
fn watches(page: &mut Page, server: &Server) {
    let counts = server.watches().counts();
    page.gauge(
        "etcd_debugging_mvcc_watch_stream_total",
        "Open streams of watches.",
        counts.streams,
    );
    page.gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", counts.watchers);
    page.gauge(
        "etcd_debugging_mvcc_slow_watcher_total",
        "Watchers that are behind and catch up.",
        counts.lagging,
    );
}

/// How long the disk takes.
fn disk(page: &mut Page, metrics: &Metrics) {
    for (name, meaning, histogram) in [
        (
            "etcd_disk_wal_fsync_duration_seconds",
            "How long the log took to be durable.",
            &metrics.wal_syncs,
        ),
        (
            "etcd_snap_fsync_duration_seconds",
            "How long snapshot files took to be durable.",
            &metrics.snapshot_syncs,
        ),
    ] {
        page.head("histogram", name, meaning);
        page.buckets(name, &[], histogram);
    }
    page.counter(
        "etcd_disk_wal_write_bytes_total",
        "Bytes written to the log.",
        metrics.wal_bytes.get(),
    );
}

/// What clients ask for.
fn requests(page: &mut Page, metrics: &Metrics) {
    let served = |path: &str| metrics.calls(path).map_or(0, |calls| calls.handled[0].get());
    for (name, meaning, path) in [
        (
            "etcd_mvcc_range_total",
            "Range requests served here.",
            "/etcdserverpb.KV/Range",
        ),
        (
            "etcd_mvcc_put_total",
            "Put requests served here.",
            "/etcdserverpb.KV/Put",
        ),
        (
            "etcd_mvcc_delete_total",
            "DeleteRange requests served here.",
            "/etcdserverpb.KV/DeleteRange",
        ),
        (
            "etcd_debugging_lease_granted_total",
            "LeaseGrant requests served here.",
            "/etcdserverpb.Lease/LeaseGrant",
        ),
        (
            "etcd_debugging_lease_revoked_total",
            "LeaseRevoke requests served here.",
            "/etcdserverpb.Lease/LeaseRevoke",
        ),
        (
            "etcd_mvcc_txn_total",
            "Txn requests served here.",
            "/etcdserverpb.KV/Txn",
        ),
    ] {
        page.counter(name, meaning, served(path));
    }
    page.counter(
        "etcd_server_health_success",
        "Good answers of /health.",
        metrics.health_successes.get(),
    );
    page.counter(
        "etcd_server_health_failures",
        "Bad answers of /health.",
        metrics.health_failures.get(),
    );
    page.counter(
        "etcd_network_client_grpc_received_bytes_total",
        "Bytes of messages from clients.",
        metrics.client_received_bytes.get(),
    );
    page.counter(
        "etcd_network_client_grpc_sent_bytes_total",
        "Bytes of messages to clients.",
        metrics.client_sent_bytes.get(),
    );
    let name = "etcd_server_client_requests_total";
    page.head("counter", name, "Calls by what clients say their version is.");
    for (version, [unary, streams]) in metrics.versions() {
        for (kind, count) in [("unary", unary), ("stream", streams)] {
            page.sample(name, &[("client_api_version", &version), ("type", kind)], count);
        }
    }
    calls(page, &metrics.all_calls());
}

/// A name, its meaning, and what it counts of a method.
type Column = (&'static str, &'static str, fn(&Calls) -> &Counter);

fn calls(page: &mut Page, all: &[&Calls]) {
    let kinds: [Column; 3] = [
        ("grpc_server_started_total", "Calls begun.", |calls| {
            &calls.started
        }),
        (
            "grpc_server_msg_received_total",
            "Messages from clients.",
            |calls| &calls.received,
        ),
        ("grpc_server_msg_sent_total", "Messages to clients.", |calls| {
            &calls.sent
        }),
    ];
    for (name, meaning, counter) in kinds {
        page.head("counter", name, meaning);
        for calls in all {
            page.sample(name, &labels(calls), counter(calls).get());
        }
    }
    let name = "grpc_server_handled_total";
    page.head("counter", name, "Calls ended, by their code.");
    for calls in all {
        for (code, count) in CODES.iter().zip(&calls.handled) {
            let labels = [&[("grpc_code", *code)][..], &labels(calls)].concat();
            page.sample(name, &labels, count.get());
        }
    }
    let name = "grpc_server_handling_seconds";
    let timed: Vec<_> = all
        .iter()
        .filter_map(|calls| Some((calls, calls.handling.as_ref()?)))
        .collect();
    if !timed.is_empty() {
        page.head(
            "histogram",
            name,
            "How long calls took; of streams, until their end.",
        );
    }
    for (calls, handling) in timed {
        page.buckets(name, &labels(calls), handling);
    }
}

fn labels(calls: &Calls) -> [(&str, &str); 3] {
    [
        ("grpc_method", &calls.method),
        ("grpc_service", &calls.service),
        ("grpc_type", calls.kind),
    ]
}

/// Who this is.
fn build(page: &mut Page, server: &Server) {
    page.fact(
        "etcd_server_id",
        "This member's id.",
        "server_id",
        &format!("{:x}", server.member_id()),
    );
    page.fact(
        "etcd_server_version",
        "The version of etcd that this member answers as.",
        "server_version",
        ETCD_VERSION,
    );
    page.fact(
        "etcd_cluster_version",
        "The version of etcd that the whole cluster answers as.",
        "cluster_version",
        CLUSTER_VERSION,
    );
    page.fact(
        "pontoon_version",
        "The version of this program.",
        "version",
        env!("CARGO_PKG_VERSION"),
    );
}

/// The process, as far as the kernel tells.
fn process(page: &mut Page) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    // In KiB.
    let memory = |name: &str| field(&status, name).map_or(0, |kib| kib * 1024);
    page.gauge(
        "process_resident_memory_bytes",
        "Memory in use.",
        memory("VmRSS:"),
    );
    page.gauge(
        "process_virtual_memory_bytes",
        "Memory mapped.",
        memory("VmSize:"),
    );
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count());
    let limits = read("/proc/self/limits");
    let most = field(&limits, "Max open files").unwrap_or(0);
    page.gauge("process_open_fds", "File descriptors in use.", open);
    page.gauge("process_max_fds", "File descriptors that may be used.", most);
    page.gauge("os_fd_used", "File descriptors in use.", open);
    page.gauge("os_fd_limit", "File descriptors that may be used.", most);
    let stat = read("/proc/self/stat");
    let ticks = ticks(&stat);
    page.counter(
        "process_cpu_seconds_total",
        "Time of processors used.",
        ticks.map_or(0.0, |(used, _)| used),
    );
    let booted = field(&read("/proc/stat"), "btime").unwrap_or(0) as f64;
    page.gauge(
        "process_start_time_seconds",
        "When the process was started, since 1970.",
        ticks.map_or(0.0, |(_, started)| booted + started),
    );
}

/// The first number behind `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Seconds of processor time used, and seconds after boot when the process was started.
fn ticks(stat: &str) -> Option<(f64, f64)> {
    // Behind the program's name, which may hold anything; a tick is 1/100 s wherever Linux runs.
    let rest: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let tick = |at: usize| rest.get(at)?.parse::<f64>().ok();
    Some(((tick(11)? + tick(12)?) / 100.0, tick(19)? / 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page(String::new());
        page.gauge("a_bytes", "How \"big\".", 7);
        page.fact("b", "Who.", "name", "x\"\\\n");
        let histogram = Histogram::new(500, 2);
        histogram.observe(std::time::Duration::from_millis(1));
        page.head("histogram", "c_seconds", "Long.");
        page.buckets("c_seconds", &[("k", "v")], &histogram);
        let expected = "# HELP a_bytes How \"big\".\n# TYPE a_bytes gauge\na_bytes 7\n\
            # HELP b Who.\n# TYPE b gauge\nb{name=\"x\\\"\\\\\\n\"} 1\n\
            # HELP c_seconds Long.\n# TYPE c_seconds histogram\n\
            c_seconds_bucket{k=\"v\",le=\"0.0005\"} 0\nc_seconds_bucket{k=\"v\",le=\"0.001\"} 1\n\
            c_seconds_bucket{k=\"v\",le=\"+Inf\"} 1\nc_seconds_sum{k=\"v\"} 0.001\nc_seconds_count{k=\"v\"} 1\n";
        assert_eq!(page.0, expected);
    }

    #[test]
    fn every_method_is_counted_from_zero() {
        let mut page = Page(String::new());
        requests(&mut page, &Metrics::new(true));
        let sample = "grpc_server_handled_total{grpc_code=\"Unavailable\",grpc_method=\"Watch\",\
            grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 0\n";
        assert!(page.0.contains(sample), "{}", page.0);
        assert!(page.0.contains("grpc_server_handling_seconds_bucket"));
    }

    #[test]
    fn the_kernel_is_understood() {
        let stat = "42 (a (odd) name) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0 1234 1 1";
        assert_eq!(ticks(stat), Some((3.0, 12.34)));
        assert_eq!(field("Name: x\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(
            field(
                "Max open files            1024                 4096 files\n",
                "Max open files"
            ),
            Some(1024)
        );
    }
}
