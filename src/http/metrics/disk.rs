//! How long the disk takes, for the log, for snapshots, and for the applied state.

use super::text::Page;
use crate::metrics::Metrics;

/// Adds it to the page.
pub fn write(page: &mut Page, metrics: &Metrics) {
    for (name, meaning, histogram) in [
        (
            "etcd_disk_wal_fsync_duration_seconds",
            "How long the log took to be durable.",
            &metrics.wal_syncs,
        ),
        (
            "etcd_disk_backend_commit_duration_seconds",
            "How long the engine took for a batch of what was applied; nobody waits for it.",
            &metrics.saves,
        ),
        (
            "etcd_disk_backend_snapshot_duration_seconds",
            "How long backups took to be written.",
            &metrics.backups,
        ),
        (
            "etcd_disk_backend_defrag_duration_seconds",
            "How long defragmenting took; the member serves meanwhile.",
            &metrics.defragmentations,
        ),
        (
            "etcd_mvcc_hash_duration_seconds",
            "How long checksums of everything took.",
            &metrics.hashes,
        ),
        (
            "etcd_mvcc_hash_rev_duration_seconds",
            "How long checksums of all keys at a revision took.",
            &metrics.revision_hashes,
        ),
        (
            "etcd_snap_fsync_duration_seconds",
            "How long snapshot files took to be durable.",
            &metrics.snapshot_syncs,
        ),
        (
            "etcd_debugging_snap_save_total_duration_seconds",
            "How long snapshots took to be made, and to be durable.",
            &metrics.snapshots_taken,
        ),
        (
            "etcd_snap_db_save_total_duration_seconds",
            "How long snapshots took to be received, and to be durable.",
            &metrics.snapshots_received,
        ),
    ] {
        page.histogram(name, meaning, histogram);
    }
    page.counter(
        "etcd_disk_wal_write_bytes_total",
        "Bytes written to the log.",
        metrics.wal_bytes.get(),
    );
}
