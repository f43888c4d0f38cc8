//! A cluster whose first state is a backup that was restored.
//!
//! A restore leaves a member with a state that belongs to no cluster: a snapshot file without a log position and
//! without members. When the members have met (`server/bootstrap`), *one* of them, the founder, makes it the
//! beginning of the cluster's log: the same records, now as a snapshot of the entry 1 in term 1, with all the members as
//! voters. It installs that as if a leader before it, member 0 which there never is, had sent it. From then on Raft
//! knows nothing special: the founder asks for votes; the others have empty logs, so they vote for it; the log before
//! its snapshot is gone, so it sends them the snapshot, as to any member that is far behind.
//!
//! So the state of every member is the founder's, whatever stands in the others' files: they can't differ. That the
//! others have restored the same is checked all the same, as whoever gave them another file meant something else by it.
//!
//! ```text
//! founder   snapshot at 1 {a,b,c}   vote in term 2   2 blank …
//! others    nothing                 vote             snapshot at 1, 2 blank …
//! ```
//!
//! A founder that is stopped on the way begins anew: until its snapshot is installed nobody else has heard of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::path::Path;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::entry::new_log_id;
use super::membership::seats;
use super::replica::Replica;
use super::snapshot::{self, SnapshotFile};
use super::state_machine::Mark;
use super::{Node, SnapshotMeta, StoredMembership, Vote};
use crate::backup::RESTORED_AT;
use crate::state;
use crate::storage::fs::Fs;

/// The term and the leader that a restored state seems to come from.
const TERM: u64 = 1;
const NOBODY: u64 = 0;

/// Writes a state that belongs to no cluster yet. It is on disk when this returns; returned is the SHA-256 of its
/// contents, in hexadecimal.
pub fn write(
    fs: &dyn Fs,
    path: &Path,
    records: impl Iterator<Item = io::Result<Bytes>>,
) -> io::Result<String> {
    let mut hash = Sha256::new();
    let hashed = records.inspect(|record| {
        if let Ok(record) = record {
            hash.update((record.len() as u64).to_le_bytes());
            hash.update(record);
        }
    });
    snapshot::write(fs, path, &SnapshotMeta::default(), hashed)?;
    Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

impl Replica {
    /// Founds a cluster of these members that begins with the state at `path`. Only on an empty log.
    pub async fn found_restored(&self, members: BTreeMap<u64, Node>, path: &Path) -> Result<(), String> {
        let path = path.to_path_buf();
        let snapshots = self.snapshots().clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let meta = meta(members)?;
            let records = records(&snapshots.open_file(&path)?, &meta)?;
            snapshots.prepare(meta, records)
        });
        let prepared = prepared.await.map_err(|error| error.to_string())?;
        let snapshot = prepared.map_err(|error| format!("cannot use the restored state: {error}"))?;
        // Above what this member may have voted for while it was blank.
        let voted = self.vote().map_err(|error| error.to_string())?;
        let term = TERM.max(voted.map_or(0, |vote| vote.leader_id.term + 1));
        let vote = Vote::new_committed(term, NOBODY);
        let installed = self.raft().install_full_snapshot(vote, snapshot).await;
        installed.map(drop).map_err(|fatal| fatal.to_string())
    }
}

fn meta(members: BTreeMap<u64, Node>) -> io::Result<SnapshotMeta> {
    let voters: BTreeSet<u64> = members.keys().copied().collect();
    let membership = openraft::Membership::new(vec![voters], members).map_err(io::Error::other)?;
    let log_id = new_log_id(TERM, NOBODY, RESTORED_AT);
    Ok(SnapshotMeta {
        last_log_id: Some(log_id),
        last_membership: StoredMembership::new(Some(log_id), membership),
    })
}

/// The restored records, marked with their place in the log, and those of the members.
fn records(
    restored: &SnapshotFile,
    meta: &SnapshotMeta,
) -> io::Result<impl Iterator<Item = io::Result<Bytes>> + use<>> {
    let mark = Mark {
        applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
    }
    .encode();
    let marked = restored
        .records()?
        .map(move |record| state::with_mark(record?, &mark).map_err(io::Error::other));
    let members = state::member_records(&seats(meta.last_membership.membership()));
    Ok(marked.chain(members.into_iter().map(Ok)))
}
