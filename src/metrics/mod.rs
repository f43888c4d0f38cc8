//! What happens, counted where it happens.
//!
//! A member knows two kinds of numbers. What the state and Raft know anyway (revision, sizes, leader) is read when
//! somebody asks; what merely happens (requests, failures, durations) is gone unless it is counted. This module has
//! the second kind: atomics, so that nobody waits for anybody, all present from the start, so that a rate begins at
//! zero. Their names on the page that Prometheus reads, and those of the first kind, are in `http/metrics`.
//!
//! No library: the names are etcd's, counters without `_total` and gauges with it among them, which
//! `prometheus-client` can't write, and the two kinds of [`instruments`] are all that is needed.
//!
//! Files: [`instruments`] what is counted with · [`calls`] of clients · [`traffic`] between members.

pub mod calls;
pub mod instruments;
pub mod traffic;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use self::calls::{CODES, Calls};
pub use self::instruments::{Counter, Histogram};
use self::traffic::Traffic;
use crate::journal::Journal;
use crate::pb;

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
    /// What goes between this member and the others.
    pub traffic: Traffic,
    /// What happened that is worth a line.
    pub journal: Journal,
    /// Changes of the leader that this member saw.
    pub leader_changes: Counter,
    /// Proposals that got no answer, or a refusal for lack of a leader.
    pub proposals_failed: Counter,
    /// Heartbeats of this member, as the leader, that were not answered in time.
    pub heartbeats_failed: Counter,
    /// Read barriers that ran out of time.
    pub read_indexes_failed: Counter,
    /// Questions for a read index that had to be asked again.
    pub read_indexes_slow: Counter,
    /// How long runs of entries took to be applied: 0.1 ms to 52 s.
    pub applies: Histogram,
    /// Those that took too long.
    pub applies_slow: Counter,
    /// How long the log took to be durable: 1 ms to 8 s.
    pub wal_syncs: Histogram,
    /// Bytes written to the log.
    pub wal_bytes: Counter,
    /// How long snapshot files took to be durable.
    pub snapshot_syncs: Histogram,
    /// How long snapshots took to be made, and to be durable.
    pub snapshots_taken: Histogram,
    /// How long snapshots took to be received, and to be durable: 0.1 s to 51 s.
    pub snapshots_received: Histogram,
    /// How long the engine took for a batch of what was applied: 1 ms to 8 s.
    pub saves: Histogram,
    /// How long backups took to be written: 10 ms to 655 s.
    pub backups: Histogram,
    /// How long defragmenting took: 0.1 s to 410 s.
    pub defragmentations: Histogram,
    /// How long checksums of everything took: 10 ms to 164 s.
    pub hashes: Histogram,
    /// How long checksums of all keys at a revision took: 10 ms to 164 s.
    pub revision_hashes: Histogram,
    /// Ranges of the store: of reads that this member served, and of commands that it applied.
    pub ranges: Counter,
    /// Puts that this member applied.
    pub puts: Counter,
    /// Deletes that this member applied.
    pub deletes: Counter,
    /// Passes over the store of more than one range, put or delete.
    pub txns: Counter,
    /// Versions that were reclaimed after a compaction.
    pub versions_reclaimed: Counter,
    /// Events that were put on their way to clients.
    pub watch_events: Counter,
    /// Leases that began.
    pub leases_granted: Counter,
    /// Leases that ended, whatever ended them.
    pub leases_revoked: Counter,
    /// Renewals that this member promised, as the leader.
    pub leases_renewed: Counter,
    /// Leases that this member ended, as the leader, as their time was up.
    pub leases_expired: Counter,
    /// Good answers of `/health`.
    pub health_successes: Counter,
    /// Bad answers of `/health`.
    pub health_failures: Counter,
}

/// Other versions of clients than the first so many are counted together.
const MOST_VERSIONS: usize = 32;

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new(false)
    }
}

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
            traffic: Traffic::default(),
            journal: Journal::default(),
            leader_changes: Counter::default(),
            proposals_failed: Counter::default(),
            heartbeats_failed: Counter::default(),
            read_indexes_failed: Counter::default(),
            read_indexes_slow: Counter::default(),
            applies: Histogram::new(100, 20),
            applies_slow: Counter::default(),
            wal_syncs: Histogram::new(1000, 14),
            wal_bytes: Counter::default(),
            snapshot_syncs: Histogram::new(1000, 14),
            snapshots_taken: Histogram::new(1000, 14),
            snapshots_received: Histogram::new(100_000, 10),
            saves: Histogram::new(1000, 14),
            backups: Histogram::new(10_000, 17),
            defragmentations: Histogram::new(100_000, 13),
            hashes: Histogram::new(10_000, 15),
            revision_hashes: Histogram::new(10_000, 15),
            ranges: Counter::default(),
            puts: Counter::default(),
            deletes: Counter::default(),
            txns: Counter::default(),
            versions_reclaimed: Counter::default(),
            watch_events: Counter::default(),
            leases_granted: Counter::default(),
            leases_revoked: Counter::default(),
            leases_renewed: Counter::default(),
            leases_expired: Counter::default(),
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

#[cfg(test)]
mod tests {
    use super::*;

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
