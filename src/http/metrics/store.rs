//! The applied state, and what happens to it.

use super::text::Page;
use crate::metrics::Metrics;
use crate::pb::etcdserverpb::AlarmType;
use crate::server::Server;

/// Adds it to the page.
pub fn write(page: &mut Page, server: &Server) {
    sizes(page, server);
    alarms(page, server);
    watches(page, server);
    leases(page, server.metrics());
}

fn sizes(page: &mut Page, server: &Server) {
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
    // Under both of the names that etcd has had for it.
    for name in [
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_debugging_mvcc_db_total_size_in_bytes",
    ] {
        page.gauge(name, "Size of the store.", reader.size());
    }
    page.gauge(
        "etcd_disk_defrag_inflight",
        "Whether the store is being defragmented.",
        u8::from(server.replica().is_defragmenting()),
    );
    page.gauge(
        "etcd_debugging_auth_revision",
        "Revision of users and roles.",
        reader.auth().revision(),
    );
    page.gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Size of all keys and values that are kept, of every revision.",
        reader.size_in_use(),
    );
    page.gauge(
        "etcd_mvcc_db_open_read_transactions",
        "Views of the store that are held: what they see is not reclaimed.",
        reader.open_views(),
    );
    page.counter(
        "etcd_debugging_mvcc_db_compaction_keys_total",
        "Versions of keys that were reclaimed after a compaction.",
        server.metrics().versions_reclaimed.get(),
    );
}

fn alarms(page: &mut Page, server: &Server) {
    page.head(
        "gauge",
        "pontoon_alarm",
        "Whether an alarm of this type is raised, by any member.",
    );
    for alarm in [AlarmType::Nospace, AlarmType::Corrupt] {
        let is_raised = u8::from(server.reader().has_alarm(alarm));
        page.sample("pontoon_alarm", &[("type", alarm.as_str_name())], is_raised);
    }
}

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
    page.gauge(
        "etcd_debugging_mvcc_pending_events_total",
        "Events on their way to clients.",
        counts.pending,
    );
    page.counter(
        "etcd_debugging_mvcc_events_total",
        "Events that were put on their way to clients.",
        server.metrics().watch_events.get(),
    );
}

fn leases(page: &mut Page, metrics: &Metrics) {
    for (name, meaning, counter) in [
        (
            "etcd_debugging_lease_granted_total",
            "Leases that began.",
            &metrics.leases_granted,
        ),
        (
            "etcd_debugging_lease_revoked_total",
            "Leases that ended: revoked by clients, or as their time was up.",
            &metrics.leases_revoked,
        ),
        (
            "etcd_debugging_lease_renewed_total",
            "Renewals that this member promised, as the leader.",
            &metrics.leases_renewed,
        ),
        (
            "etcd_debugging_server_lease_expired_total",
            "Leases that this member ended, as the leader, as their time was up.",
            &metrics.leases_expired,
        ),
    ] {
        page.counter(name, meaning, counter.get());
    }
}
