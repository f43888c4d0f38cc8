//! What happens, counted where it happens.
//!
//! A member knows two kinds of numbers. What the state and Raft know anyway (revision, sizes, leader) is read when
//! somebody asks; what merely happens (requests, failures, durations) is gone unless it is counted. This module has
//! the second kind: atomics, so that nobody waits for anybody, all present from the start, so that a rate begins at
//! zero. Their names on the page that Prometheus reads, and those of the first kind, are in `http/metrics.rs`.
//!
//! No library: the names are etcd's, counters without `_total` and gauges with it among them, which
//! `prometheus-client` can't write, and the two kinds of counter below are all that is needed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::pb;

/// Only ever grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Some more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// So many.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How long something took, by upper bounds that double.
#[derive(Debug)]
pub struct Histogram {
    /// The first bound, in microseconds.
    first: u64,
    /// One for each bound, and one for what is above all of them.
    buckets: Box<[AtomicU64]>,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Bounds of `first_us` microseconds, twice that, and so on.
    pub fn new(first_us: u64, bounds: usize) -> Self {
        Histogram {
            first: first_us,
            buckets: (0..=bounds).map(|_| AtomicU64::new(0)).collect(),
            nanoseconds: AtomicU64::new(0),
        }
    }

    /// It took so long.
    pub fn observe(&self, took: Duration) {
        let last = self.buckets.len() - 1;
        let (mut at, mut bound) = (0, u128::from(self.first) * 1000);
        while at < last && took.as_nanos() > bound {
            at += 1;
            bound *= 2;
        }
        self.buckets[at].fetch_add(1, Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// How many took no longer than each bound (seconds); the last bound is infinite.
    pub fn cumulative(&self) -> Vec<(f64, u64)> {
        let mut seen = 0;
        let last = self.buckets.len() - 1;
        let bound = |at: usize| match at == last {
            true => f64::INFINITY,
            false => (self.first << at) as f64 / 1e6,
        };
        let upto = self.buckets.iter().enumerate().map(|(at, bucket)| {
            seen += bucket.load(Relaxed);
            (bound(at), seen)
        });
        upto.collect()
    }

    /// All of it together, in seconds.
    pub fn sum(&self) -> f64 {
        self.nanoseconds.load(Relaxed) as f64 / 1e9
    }
}

/// gRPC's status codes: 0 to 16.
pub const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The calls of one gRPC method.
#[derive(Debug)]
pub struct Calls {
    /// Package and service.
    pub service: String,
    /// The method's own name.
    pub method: String,
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`.
    pub kind: &'static str,
    /// Begun.
    pub started: Counter,
    /// Ended, by code.
    pub handled: [Counter; CODES.len()],
    /// Messages from clients.
    pub received: Counter,
    /// Messages to clients.
    pub sent: Counter,
    /// How long they took; only with `--metrics extensive`.
    pub handling: Option<Histogram>,
}

/// Everything that is counted. Shared by all parts of a member.
#[derive(Debug)]
pub struct Metrics {
    /// By the path that a client asks for.
    methods: HashMap<String, Arc<Calls>>,
    /// Calls by what clients say their version is: unary ones, then streams.
    versions: ArcSwap<BTreeMap<String, Arc<[Counter; 2]>>>,
    /// Bytes of messages from clients.
    pub client_received_bytes: Counter,
    /// Bytes of messages to clients.
    pub client_sent_bytes: Counter,
    /// Changes of the leader that this member saw.
    pub leader_changes: Counter,
    /// Proposals that got no answer, or a refusal for lack of a leader.
    pub proposals_failed: Counter,
    /// Read barriers that ran out of time.
    pub read_indexes_failed: Counter,
    /// How long the log took to be durable: 1 ms to 8 s.
    pub wal_syncs: Histogram,
    /// Bytes written to the log.
    pub wal_bytes: Counter,
    /// How long snapshot files took to be durable.
    pub snapshot_syncs: Histogram,
    /// Good answers of `/health`.
    pub health_successes: Counter,
    /// Bad answers of `/health`.
    pub health_failures: Counter,
}

/// Other versions of clients than the first so many are counted together.
const MOST_VERSIONS: usize = 32;

impl Metrics {
    /// All at zero; durations of calls too if `extensive`.
    pub fn new(extensive: bool) -> Self {
        let ours = |service: &prost_reflect::ServiceDescriptor| service.package_name().starts_with("pontoon");
        let services = pb::REFLECTION.services().filter(|service| !ours(service));
        let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
        Metrics {
            methods: methods
                .map(|method| (pb::path(&method), Arc::new(Calls::new(&method, extensive))))
                .collect(),
            versions: ArcSwap::default(),
            client_received_bytes: Counter::default(),
            client_sent_bytes: Counter::default(),
            leader_changes: Counter::default(),
            proposals_failed: Counter::default(),
            read_indexes_failed: Counter::default(),
            wal_syncs: Histogram::new(1000, 14),
            wal_bytes: Counter::default(),
            snapshot_syncs: Histogram::new(1000, 14),
            health_successes: Counter::default(),
            health_failures: Counter::default(),
        }
    }

    /// The calls of the method at `path`, if etcd's API has it.
    pub fn calls(&self, path: &str) -> Option<&Arc<Calls>> {
        self.methods.get(path)
    }

    /// The calls of all methods, in the order of their paths.
    pub fn all_calls(&self) -> Vec<&Calls> {
        let by_path: BTreeMap<&String, &Arc<Calls>> = self.methods.iter().collect();
        by_path.into_values().map(Arc::as_ref).collect()
    }

    /// One more call by a client of `version`.
    pub fn count_version(&self, version: &str, is_unary: bool) {
        let count = |counters: &[Counter; 2]| counters[usize::from(!is_unary)].increment();
        let known = self.versions.load();
        if let Some(counters) = known.get(version) {
            return count(counters);
        }
        let version = match known.len() < MOST_VERSIONS {
            true => version,
            false => "other",
        };
        self.versions.rcu(|known| {
            let mut more = BTreeMap::clone(known);
            more.entry(version.to_string()).or_default();
            more
        });
        if let Some(counters) = self.versions.load().get(version) {
            count(counters);
        }
    }

    /// Each version of clients with its unary calls and its streams.
    pub fn versions(&self) -> Vec<(String, [u64; 2])> {
        let versions = self.versions.load();
        let both = |counters: &[Counter; 2]| [counters[0].get(), counters[1].get()];
        versions
            .iter()
            .map(|(version, counters)| (version.clone(), both(counters)))
            .collect()
    }
}

impl Calls {
    fn new(method: &prost_reflect::MethodDescriptor, extensive: bool) -> Self {
        let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
            (false, false) => "unary",
            (true, false) => "client_stream",
            (false, true) => "server_stream",
            (true, true) => "bidi_stream",
        };
        Calls {
            service: method.parent_service().full_name().to_string(),
            method: method.name().to_string(),
            kind,
            started: Counter::default(),
            handled: Default::default(),
            received: Counter::default(),
            sent: Counter::default(),
            // 0.5 ms to 8 s.
            handling: extensive.then(|| Histogram::new(500, 15)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_and_with_each_bound() {
        let histogram = Histogram::new(1000, 3);
        for micros in [10, 1000, 1001, 4000, 4001, 9_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let expected = [(0.001, 2), (0.002, 3), (0.004, 4), (f64::INFINITY, 6)];
        assert_eq!(histogram.cumulative(), expected);
        assert!((histogram.sum() - 9.010_012).abs() < 1e-9, "{}", histogram.sum());
    }

    #[test]
    fn every_method_of_etcd_is_there_from_the_start_and_none_of_ours() {
        let metrics = Metrics::new(false);
        let calls = metrics.all_calls();
        assert_eq!(calls.len(), 49);
        assert!(
            calls
                .iter()
                .all(|calls| calls.service.starts_with("etcdserverpb.") || calls.service.starts_with("v3"))
        );
        let kind = |path| metrics.calls(path).map(|calls| calls.kind);
        assert_eq!(kind("/etcdserverpb.KV/Put"), Some("unary"));
        assert_eq!(kind("/etcdserverpb.Watch/Watch"), Some("bidi_stream"));
        assert_eq!(kind("/etcdserverpb.Maintenance/Snapshot"), Some("server_stream"));
    }

    #[test]
    fn client_versions_are_counted_apart_but_not_without_bound() {
        let metrics = Metrics::new(false);
        for n in 0..100 {
            metrics.count_version(&format!("v{n}"), true);
            metrics.count_version("3.5.9", false);
        }
        let versions: BTreeMap<_, _> = metrics.versions().into_iter().collect();
        assert_eq!(versions["3.5.9"], [0, 100]);
        assert!(versions.len() <= MOST_VERSIONS + 1);
        assert_eq!(versions.values().map(|both| both[0]).sum::<u64>(), 100);
    }
}
