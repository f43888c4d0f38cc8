//! The engine on one sled tree, and files of values beside it. The only file that names sled, and small, so that it can
//! be changed for another.
//!
//! Batches are atomic per tree, hence one tree. sled's own `flush` is no fsync (it calls `sync_file_range`), so
//! [`Engine::flush`] syncs sled's files itself: after a clean stop the state can be continued from. In between
//! nothing relies on it: the log replays what a crash takes.
//!
//! The tree has small values as they are. Of large ones it has the [`Place`] in the files of [`Values`]: sled's leaves
//! are small then, so that rewriting them costs little, all of them fit into memory, and a start that reads everything
//! fills no cache.
//!
//! ```text
//! tree value = 0, the value | 1, its place
//! ```
//!
//! **Whoever reads while a value moves** has a place in a file that goes. The file is read to the end once it was found;
//! if it is not found, the tree has another place by then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes};

use super::ahead::Ahead;
use super::values::{Place, Values};
use super::{Batch, Engine, Error, Lent, Names, Pair, Result};

/// The tree. Its name tells how values are kept in it: in what was written otherwise there is none of this name.
const TREE: &str = "small values, places of large";
/// Below the engine's directory.
const VALUES: &str = "values";
/// Values from this size on are kept in files.
const LARGE: usize = if cfg!(test) { 20 } else { 512 };
/// Records of a wasteful file that one commit looks at, beside its own work.
const MOVED_AT_ONCE: usize = if cfg!(test) { 4 } else { 512 };

const INLINE: u8 = 0;
const PLACE: u8 = 1;

/// How often, and after what pause, a locked database is tried again: for a second in all.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// One sled database.
pub(super) struct Sled {
    // Closed before its directory is removed.
    tree: sled::Tree,
    db: sled::Db,
    values: Values,
    /// Held while it is changed: up to where a wasteful file is looked through.
    moving: Mutex<Option<Moving>>,
    dir: Directory,
}

/// A file of values that is to go, and its first record that was not looked at.
struct Moving {
    file: u32,
    at: u64,
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
        let db = open_when_let_go(&config).map_err(failed)?;
        let tree = db.open_tree(TREE).map_err(failed)?;
        let values = Values::open(&dir.join(VALUES)).map_err(failed)?;
        for pair in &tree {
            if let Stored::At(place) = Stored::parse(&pair.map_err(failed)?.1)? {
                values.keep(&place).map_err(failed)?;
            }
        }
        Ok(Sled {
            tree,
            db,
            values,
            moving: Mutex::default(),
            dir: Directory {
                path: dir.to_path_buf(),
                is_discarded: AtomicBool::new(false),
            },
        })
    }

    /// The value of a key that had this in the tree; nothing if the key is gone by now.
    fn value(&self, key: &[u8], stored: sled::IVec) -> Result<Option<Bytes>> {
        self.value_by(|place| self.values.read(place), key, stored)
    }

    /// The same, by this way to read what lies in a file.
    fn value_by(
        &self,
        mut read: impl FnMut(&Place) -> std::io::Result<Option<Bytes>>,
        key: &[u8],
        mut stored: sled::IVec,
    ) -> Result<Option<Bytes>> {
        loop {
            let place = match Stored::parse(&stored)? {
                Stored::Inline(value) => return Ok(Some(Bytes::copy_from_slice(value))),
                Stored::At(place) => place,
            };
            if let Some(value) = read(&place).map_err(failed)? {
                return Ok(Some(value));
            }
            match self.tree.get(key).map_err(failed)? {
                None => return Ok(None),
                Some(now) if now == stored => {
                    return Err(Error::Corrupt("a file of values is gone".to_string()));
                }
                Some(now) => stored = now,
            }
        }
    }

    /// The place that the tree has for a key.
    fn place(&self, key: &[u8]) -> Result<Option<Place>> {
        match self.tree.get(key).map_err(failed)? {
            Some(stored) => Ok(Stored::parse(&stored)?.place()),
            None => Ok(None),
        }
    }

    /// Writes large values to the files, and their places to a change of the tree.
    fn append(&self, pairs: &[Pair], changes: &mut sled::Batch) -> Result<()> {
        let slices = pairs.iter().map(|(key, value)| (&key[..], &value[..]));
        let places = self.values.append(slices).map_err(failed)?;
        for ((key, _), place) in pairs.iter().zip(places) {
            let mut stored = Vec::with_capacity(1 + Place::BYTES);
            stored.put_u8(PLACE);
            place.encode(&mut stored);
            changes.insert(&key[..], stored);
        }
        Ok(())
    }

    /// Moves some of what is alive out of a wasteful file, if there is one; removes the file behind the last.
    fn move_some(&self, moving: &mut Option<Moving>) -> Result<bool> {
        let begin = || self.values.wasteful().map(|file| Moving { file, at: 0 });
        let Some(Moving { file, mut at }) = moving.take().or_else(begin) else {
            return Ok(false);
        };
        let (mut moved, mut left, mut is_done) = (Vec::new(), Vec::new(), false);
        for _ in 0..MOVED_AT_ONCE {
            let Some(found) = self.values.record(file, at).map_err(failed)? else {
                is_done = true;
                break;
            };
            at = found.next;
            let place = self.place(&found.key)?.filter(|place| found.is_at(place));
            let Some(place) = place else { continue };
            if let Some(value) = self.values.read(&place).map_err(failed)? {
                moved.push((found.key, value));
                left.push(place);
            }
        }
        let mut changes = sled::Batch::default();
        self.append(&moved, &mut changes)?;
        self.tree.apply_batch(changes).map_err(failed)?;
        left.iter().for_each(|place| self.values.release(place));
        if is_done {
            // Before the file goes, a kill must not bring places in it back.
            self.tree.flush().map_err(failed)?;
            self.values.remove(file).map_err(failed)?;
        } else {
            *moving = Some(Moving { file, at });
        }
        Ok(true)
    }
}

/// What the tree has for a key.
enum Stored<'a> {
    Inline(&'a [u8]),
    At(Place),
}

impl Stored<'_> {
    fn parse(bytes: &[u8]) -> Result<Stored<'_>> {
        let stored = match bytes.split_first() {
            Some((&INLINE, value)) => Some(Stored::Inline(value)),
            Some((&PLACE, place)) => Place::decode(place).map(Stored::At),
            _ => None,
        };
        stored.ok_or_else(|| Error::Corrupt("the tree has neither a value nor a place".to_string()))
    }

    fn place(&self) -> Option<Place> {
        match self {
            Stored::Inline(_) => None,
            Stored::At(place) => Some(*place),
        }
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
        match self.tree.get(key).map_err(failed)? {
            Some(stored) => self.value(key, stored),
            None => Ok(None),
        }
    }

    fn floor(&self, from: &[u8], key: &[u8]) -> Result<Option<Pair>> {
        if from > key {
            return Ok(None);
        }
        loop {
            let last = self.tree.range(from..=key).next_back();
            let Some((key, stored)) = last.transpose().map_err(failed)? else {
                return Ok(None);
            };
            // If it went meanwhile, another one is the last.
            if let Some(value) = self.value(&key, stored)? {
                return Ok(Some((to_bytes(key), value)));
            }
        }
    }

    fn scan(&self, range: Range<Bytes>) -> Box<dyn Iterator<Item = Result<Pair>> + '_> {
        let pairs = self.tree.range(&range.start[..]..&range.end[..]);
        let mut ahead = Ahead::default();
        Box::new(pairs.filter_map(move |pair| {
            let loaded = pair.map_err(failed).and_then(|(key, stored)| {
                let read = |place: &Place| self.values.read_on(place, &mut ahead);
                let value = self.value_by(read, &key, stored)?;
                Ok(value.map(|value| (to_bytes(key), value)))
            });
            loaded.transpose()
        }))
    }

    fn lend(&self, range: Range<Bytes>, names: &Names<'_>) -> Result<Vec<(Bytes, Lent)>> {
        let (mut lent, mut files) = (Vec::new(), BTreeSet::new());
        {
            // No file goes meanwhile.
            let _still = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
            for pair in self.tree.range(&range.start[..]..&range.end[..]) {
                let (key, stored) = pair.map_err(failed)?;
                let value = match Stored::parse(&stored)? {
                    Stored::Inline(value) => Lent::Value(Bytes::copy_from_slice(value)),
                    Stored::At(place) => {
                        files.insert(place.file());
                        Lent::At(place)
                    }
                };
                lent.push((to_bytes(key), value));
            }
            let mut files = files.iter();
            files
                .try_for_each(|file| self.values.link(*file, names))
                .map_err(failed)?;
        }
        let sync = |file: &u32| names.fs.open(&(names.of)(*file))?.sync_data();
        files.iter().try_for_each(sync).map_err(failed)?;
        Ok(lent)
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        let mut moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut changes, mut replaced) = (sled::Batch::default(), Vec::new());
        let mut large = Vec::new();
        // The last change of a key, and its value is written once.
        let last: BTreeMap<Bytes, Option<Bytes>> = batch.changes.into_iter().collect();
        for (key, value) in last {
            replaced.extend(self.place(&key)?);
            match value {
                Some(value) if value.len() >= LARGE => large.push((key, value)),
                Some(value) => changes.insert(&key[..], [&[INLINE], &value[..]].concat()),
                None => changes.remove(&key[..]),
            }
        }
        self.append(&large, &mut changes)?;
        self.tree.apply_batch(changes).map_err(failed)?;
        replaced.iter().for_each(|place| self.values.release(place));
        self.move_some(&mut moving).map(drop)
    }

    fn tidy(&self) -> Result<bool> {
        let mut moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        self.move_some(&mut moving)
    }

    fn flush(&self) -> Result<()> {
        self.tree.flush().map_err(failed)?;
        sync_tree(&self.dir.path).map_err(failed)
    }

    fn size_on_disk(&self) -> Result<u64> {
        Ok(self.db.size_on_disk().map_err(failed)? + self.values.size())
    }

    fn lendable(&self) -> u64 {
        self.values.size()
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
