//! The directory of snapshots: which is current, and how others become so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::task::block_in_place;
use tonic::{Status, Streaming};

use super::file::{SnapshotFile, Unfinished, verify};
use super::format::{Writer, write};
use super::names::{SNAPSHOT, TEMPORARY, file_name, is_values, stem, values_name};
use crate::pb::pontoon::peer::{SnapshotChunk, SnapshotHead};
use crate::raft::entry::{decode_stored_membership, from_wire_log_id};
use crate::raft::{Snapshot, SnapshotMeta};
use crate::state::{Piece, SnapshotSource};
use crate::storage::Names;
use crate::storage::fs::{Fs, free_bytes};

/// Room that a snapshot leaves to the log: the segment that is written, and the next.
const BESIDE: u64 = 32 << 20;

/// The directory of snapshot files.
pub struct SnapshotStore {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    current: Mutex<Option<Snapshot>>,
    /// One file gets its name at a time.
    adopting: Mutex<()>,
    /// Tells temporary files apart.
    attempts: AtomicU64,
}

impl SnapshotStore {
    /// Finds the newest snapshot and verifies it. A damaged one is an error: the log before it is gone. Everything else,
    /// which a crash has left, is removed.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path) -> io::Result<Self> {
        fs.create_dir_all(dir)?;
        let names = fs.list(dir)?;
        // Names are in the order of the log.
        let newest = names.iter().rev().find(|name| name.ends_with(SNAPSHOT));
        let newest = newest.map(|name| verify(&fs, &dir.join(name))).transpose()?;
        let store = SnapshotStore {
            fs,
            dir: dir.to_path_buf(),
            current: Mutex::new(newest),
            adopting: Mutex::default(),
            attempts: AtomicU64::default(),
        };
        store.remove_others(names)?;
        Ok(store)
    }

    /// Removes what does not belong to the current snapshot.
    fn remove_others(&self, names: Vec<String>) -> io::Result<()> {
        let current = self.current().map(|current| current.snapshot);
        if current.is_some() {
            // Its name is durable before what it replaces goes: older ones, and the log before it.
            self.fs.sync_dir(&self.dir)?;
        }
        let is_kept = |path: &PathBuf| {
            let mut current = current.iter();
            current
                .any(|current| current.path == *path || current.beside.values().any(|beside| beside == path))
        };
        let paths = names.into_iter().map(|name| self.dir.join(name));
        let mut others = paths.filter(|path| !is_kept(path));
        others.try_for_each(|path| self.fs.remove(&path))
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<Snapshot> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Writes a snapshot. It is durable and current when this returns; the answer is a newer one if one has come.
    pub fn build(&self, meta: SnapshotMeta, source: SnapshotSource) -> io::Result<Snapshot> {
        if let Some(current) = self.current().filter(|_| self.is_current(&meta)) {
            return Ok(current);
        }
        // Of one that failed.
        self.remove_values(&meta)?;
        let unfinished = self.temporary(&meta);
        let pieces = source.pieces(&Names {
            fs: &*self.fs,
            of: &|number| self.dir.join(values_name(&meta, number)),
        });
        let mut writer = Writer::create(&*self.fs, &unfinished.path, &meta)?;
        for piece in pieces.map_err(io::Error::other)? {
            match piece.map_err(io::Error::other)? {
                Piece::Whole(record) => writer.record(&record)?,
                Piece::Apart(kind, place) => writer.apart(kind, &place)?,
            }
        }
        writer.finish()?;
        // The names of what it needs come before its own.
        self.fs.sync_dir(&self.dir)?;
        let adopted = self.adopt(&unfinished.path, &meta)?;
        if adopted.snapshot.path != self.dir.join(file_name(&meta)) {
            self.remove_values(&meta)?;
        }
        Ok(adopted)
    }

    /// Removes the files beside a snapshot that is not there.
    fn remove_values(&self, meta: &SnapshotMeta) -> io::Result<()> {
        let prefix = format!("{}.", stem(meta));
        for name in self.fs.list(&self.dir)? {
            let path = self.dir.join(&name);
            if name.starts_with(&prefix) && is_values(&path) {
                self.fs.remove(&path)?;
            }
        }
        Ok(())
    }

    /// Whether the disk has room for a snapshot of so many bytes, of which so many are in no file that it shares with the
    /// state; and for the log to go on meanwhile. A disk that does not tell has.
    pub fn has_room(&self, all: u64, own: u64) -> bool {
        let Ok(free) = free_bytes(&self.dir) else {
            return true;
        };
        let has = |bytes: u64| free >= bytes.saturating_add(BESIDE);
        has(all) || (has(own) && self.can_share().unwrap_or(false))
    }

    /// Whether files can have second names here. Not on every disk: then they are copied.
    fn can_share(&self) -> io::Result<bool> {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let path = |which: &str| self.dir.join(format!("{which}.{attempt}{TEMPORARY}"));
        let (one, other) = (path("one"), path("other"));
        drop(self.fs.create(&one)?);
        let linked = self.fs.link(&one, &other).is_ok();
        if linked {
            self.fs.remove(&other)?;
        }
        self.fs.remove(&one)?;
        Ok(linked)
    }

    /// Writes a snapshot of what is not this member's state yet. It is durable when this returns, but not current.
    pub fn prepare(
        &self,
        meta: SnapshotMeta,
        records: impl Iterator<Item = io::Result<Bytes>>,
    ) -> io::Result<Snapshot> {
        let unfinished = self.temporary(&meta);
        write(&*self.fs, &unfinished.path, &meta, records)?;
        let mut written = verify(&self.fs, &unfinished.path)?;
        written.snapshot.unfinished = Some(Arc::new(unfinished));
        Ok(written)
    }

    /// A file elsewhere on this disk that [`write()`] wrote, verified.
    pub fn open_file(&self, path: &Path) -> io::Result<SnapshotFile> {
        Ok(verify(&self.fs, path)?.snapshot)
    }

    /// Takes in a snapshot that a peer sends. The file is durable when this returns, but not current yet.
    pub async fn receive(
        &self,
        head: &SnapshotHead,
        first: SnapshotChunk,
        chunks: &mut Streaming<SnapshotChunk>,
    ) -> Result<Snapshot, Status> {
        let meta = SnapshotMeta {
            last_log_id: head.last.map(from_wire_log_id),
            last_membership: decode_stored_membership(head.membership.clone()).map_err(invalid)?,
        };
        let unfinished = self.temporary(&meta);
        let path = unfinished.path.clone();
        let file = self.fs.create(&path).map_err(local)?;
        let mut offset = 0;
        let mut next = Some(first);
        while let Some(chunk) = next {
            check_chunk(&chunk, offset, head.size)?;
            block_in_place(|| file.write_at(offset, &chunk.data)).map_err(local)?;
            offset += chunk.data.len() as u64;
            next = chunks.message().await?;
        }
        if offset != head.size {
            return Err(Status::data_loss(format!(
                "the snapshot ends at {offset} of {} bytes",
                head.size
            )));
        }
        block_in_place(|| file.sync_data()).map_err(local)?;
        let mut found = block_in_place(|| verify(&self.fs, &path)).map_err(invalid)?;
        if found.meta != meta {
            return Err(Status::data_loss("the snapshot is not what its sender says"));
        }
        found.snapshot.unfinished = Some(Arc::new(unfinished));
        Ok(found)
    }

    /// A snapshot became this member's state: its file, moved here if it is elsewhere, is the current one from now on.
    pub fn installed(&self, file: &SnapshotFile, meta: &SnapshotMeta) -> io::Result<()> {
        if self.is_current(meta) {
            return Ok(());
        }
        if file
            .unfinished
            .as_ref()
            .is_some_and(|file| file.path.parent() == Some(&self.dir))
        {
            return self.adopt(&file.path, meta).map(drop);
        }
        let copied = self.temporary(meta);
        file.copy_to(&self.fs, &copied.path)?;
        self.adopt(&copied.path, meta).map(drop)
    }

    /// Whether the current snapshot is this one, or newer.
    fn is_current(&self, meta: &SnapshotMeta) -> bool {
        self.current()
            .is_some_and(|current| current.meta.last_log_id >= meta.last_log_id)
    }

    fn temporary(&self, meta: &SnapshotMeta) -> Unfinished {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        Unfinished {
            fs: self.fs.clone(),
            path: self.dir.join(format!("{}.{attempt}{TEMPORARY}", file_name(meta))),
        }
    }

    /// Verifies a finished file, gives it its name, makes it current and removes the one it replaces; or answers the
    /// current one, if that is as new.
    fn adopt(&self, path: &Path, meta: &SnapshotMeta) -> io::Result<Snapshot> {
        let written = verify(&self.fs, path)?;
        let _one_at_a_time = self.adopting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = self.current().filter(|_| self.is_current(meta)) {
            return Ok(current);
        }
        let target = self.dir.join(file_name(meta));
        self.fs.rename(path, &target)?;
        self.fs.sync_dir(&self.dir)?;
        let snapshot = Snapshot {
            meta: meta.clone(),
            snapshot: written.snapshot.renamed(target),
        };
        let old = self
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(snapshot.clone());
        if let Some(old) = old.filter(|old| old.snapshot.path != snapshot.snapshot.path) {
            // One that is being sent stays readable until it is closed.
            let mut paths = std::iter::once(&old.snapshot.path).chain(old.snapshot.beside.values());
            paths.try_for_each(|path| self.fs.remove(path))?;
        }
        Ok(snapshot)
    }
}

fn check_chunk(chunk: &SnapshotChunk, offset: u64, size: u64) -> Result<(), Status> {
    if crc32c::crc32c(&chunk.data) != chunk.crc {
        return Err(Status::data_loss(format!(
            "the snapshot was damaged on its way at {offset}"
        )));
    }
    if chunk.offset != offset || offset + chunk.data.len() as u64 > size {
        return Err(Status::invalid_argument("the snapshot's chunks are out of order"));
    }
    Ok(())
}

fn invalid(error: io::Error) -> Status {
    Status::data_loss(error.to_string())
}

fn local(error: io::Error) -> Status {
    Status::internal(format!("cannot store the snapshot: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::fs::{RealFs, SimFs};

    #[test]
    fn there_is_room_or_there_is_not_and_a_disk_that_does_not_tell_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = SnapshotStore::open(Arc::new(RealFs), dir.path()).expect("a store");
        assert!(store.has_room(0, 0));
        assert!(!store.has_room(u64::MAX, u64::MAX));
        assert!(
            store.has_room(u64::MAX, 0),
            "it shares what it does not have room for"
        );
        assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 0);
        let nowhere = SnapshotStore::open(Arc::new(SimFs::default()), Path::new("/s")).expect("a store");
        assert!(nowhere.has_room(u64::MAX, u64::MAX));
    }
}
