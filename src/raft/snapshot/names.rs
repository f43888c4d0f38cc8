//! What the files of a snapshot are called.

use std::path::Path;

use crate::raft::SnapshotMeta;

/// A file that is not whole yet ends with this.
pub const TEMPORARY: &str = ".new";
/// A snapshot ends with this.
pub const SNAPSHOT: &str = ".snapshot";
const VALUES: &str = ".values";

/// What names of everything that belongs to one begin with; in the order of the log.
pub fn stem(meta: &SnapshotMeta) -> String {
    let (term, index) = meta
        .last_log_id
        .map_or((0, 0), |log_id| (log_id.leader_id.term, log_id.index));
    format!("{term:016x}-{index:016x}")
}

/// A snapshot's file.
pub fn file_name(meta: &SnapshotMeta) -> String {
    stem(meta) + SNAPSHOT
}

/// A file that records of a snapshot lie in.
pub fn values_name(meta: &SnapshotMeta, number: u32) -> String {
    format!("{}.{number:08x}{VALUES}", stem(meta))
}

/// Whether it is such a file.
pub fn is_values(path: &Path) -> bool {
    path.to_string_lossy().ends_with(VALUES)
}
