//! The engine on one sled tree. The only file that names sled, and small, so that it can be changed for another.
//!
//! Batches are atomic per tree, hence one tree. sled's own `flush` is no fsync (it calls `sync_file_range`), so
//! [`Engine::flush`] syncs sled's files itself: after a clean stop the state can be continued from. In between
//! nothing relies on it: the log replays what a crash takes.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{Batch, Engine, Error, Pair, Result};

/// How often, and after what pause, a locked database is tried again: for a second in all.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// One sled database.
pub(super) struct Sled {
    // Closed before its directory is removed.
    db: sled::Db,
    dir: Directory,
}

/// Where it is; removed in the end if it was discarded.
struct Directory {
    path: PathBuf,
    is_discarded: AtomicBool,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.is_discarded.load(Ordering::Relaxed) {
            // If it can't be removed now, the next start does.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

impl Sled {
    /// Opens or makes the database in `dir`.
    pub(super) fn open(dir: &Path, cache: u64) -> Result<Self> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(cache)
            .flush_every_ms(Some(1000));
        Ok(Sled {
            db: open_when_let_go(&config).map_err(failed)?,
            dir: Directory {
                path: dir.to_path_buf(),
                is_discarded: AtomicBool::new(false),
            },
        })
    }
}

/// sled lets go of its files a moment after its last handle is gone, from a thread of its own: a database that was
/// closed just now may still be locked.
fn open_when_let_go(config: &sled::Config) -> sled::Result<sled::Db> {
    for _ in 0..LOCK_TRIES {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
    config.open()
}

impl Engine for Sled {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.db.get(key).map_err(failed)?.map(to_bytes))
    }

    fn floor(&self, from: &[u8], key: &[u8]) -> Result<Option<Pair>> {
        if from > key {
            return Ok(None);
        }
        let last = self
            .db
            .range(from..=key)
            .next_back()
            .transpose()
            .map_err(failed)?;
        Ok(last.map(|(key, value)| (to_bytes(key), to_bytes(value))))
    }

    fn scan(&self, range: Range<Bytes>) -> Box<dyn Iterator<Item = Result<Pair>> + '_> {
        let pairs = self.db.range(&range.start[..]..&range.end[..]);
        Box::new(pairs.map(|pair| {
            pair.map(|(key, value)| (to_bytes(key), to_bytes(value)))
                .map_err(failed)
        }))
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        let mut changes = sled::Batch::default();
        for (key, value) in batch.changes {
            match value {
                Some(value) => changes.insert(&key[..], &value[..]),
                None => changes.remove(&key[..]),
            }
        }
        self.db.apply_batch(changes).map_err(failed)
    }

    fn flush(&self) -> Result<()> {
        self.db.flush().map_err(failed)?;
        sync_tree(&self.dir.path).map_err(failed)
    }

    fn size_on_disk(&self) -> Result<u64> {
        self.db.size_on_disk().map_err(failed)
    }

    fn discard(&self) {
        self.dir.is_discarded.store(true, Ordering::Relaxed);
    }
}

/// Syncs every file below, and the directories themselves.
fn sync_tree(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => sync_tree(&path)?,
            false => File::open(&path)?.sync_all()?,
        }
    }
    File::open(dir)?.sync_all()
}

fn to_bytes(value: sled::IVec) -> Bytes {
    Bytes::copy_from_slice(&value)
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Engine(error.to_string())
}
