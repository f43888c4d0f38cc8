//! Saving behind the writer, and reclaiming what compaction freed.
//!
//! A save takes one sealed point and commits everything up to it in one engine batch: the new versions packed in
//! blocks, the changed records, the state's mark and the shell's. Whatever a kill leaves in the engine is therefore
//! one sealed point; the log replays the rest.
//!
//! Reclaiming (a *sweep*) first takes versions that nobody can read any more out of the index, then rewrites the blocks
//! that held them, both in slices. A crash in between only means that the next open sweeps again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::block::{self, Block, Packing, Version};
use super::defrag::Copy;
use super::key::Key;
use super::{NEVER_COMPACTED, Revision, Sealed, Store};
use crate::storage::{Batch, Error, Result, keys};

/// Versions packed or evicted under one hold of the lock.
const AT_ONCE: usize = 200;
/// Blocks rewritten in one slice of a sweep.
const BLOCKS_PER_SLICE: usize = 64;

/// Saves a store, from one background thread.
pub struct Saver {
    pub(super) store: Arc<Store>,
    sweep: Mutex<Option<Sweep>>,
    /// Versions that sweeps have forgotten, and that nobody was told of.
    reclaimed: AtomicU64,
    /// A defragmentation under way.
    pub(super) copying: Mutex<Option<Copy>>,
}

/// A sweep under way.
enum Sweep {
    /// Walking the index; up to this key it is done.
    Index {
        compacted: i64,
        after: Bound<Key>,
        gone: Vec<Revision>,
    },
    /// Rewriting the blocks that held these versions.
    Blocks {
        compacted: i64,
        gone: Vec<Revision>,
        next: usize,
    },
}

/// What one save writes, but for the versions.
struct Unsaved {
    records: BTreeMap<Bytes, Option<Bytes>>,
    sealed: Sealed,
}

/// Versions that are in a batch, all those that are not saved up to the last of them.
#[derive(Default)]
struct Packed {
    last: Option<Revision>,
    bytes: usize,
}

impl Saver {
    /// Saves what is sealed; whether there was anything.
    pub fn save(&self) -> Result<bool> {
        let Some(unsaved) = self.take() else {
            return Ok(false);
        };
        let mut batch = Batch::default();
        let packed = self.pack(unsaved.sealed.revision, &mut batch);
        for (key, value) in unsaved.records {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        put_marks(&mut batch, &unsaved.sealed);
        self.commit(batch)?;
        self.saved(&packed);
        Ok(true)
    }

    /// Bytes of keys and values in all versions.
    pub fn logical_bytes(&self) -> u64 {
        self.store.bytes()
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        if let Some(copy) = &*self.copying() {
            copy.follow(&batch)?;
        }
        self.store.engine().commit(batch)
    }

    /// Bytes of versions that are only in memory.
    pub fn unsaved_bytes(&self) -> usize {
        self.store.unsaved_bytes()
    }

    fn take(&self) -> Option<Unsaved> {
        let mut inner = self.store.lock();
        if !inner.sealed.unsaved {
            return None;
        }
        inner.sealed.unsaved = false;
        Some(Unsaved {
            records: std::mem::take(&mut inner.unsaved_records),
            sealed: inner.sealed.clone(),
        })
    }

    /// Packs the versions up to a sealed revision into blocks, straight from memory: what is not saved stays there, and
    /// only this thread saves. So the lock is held for some at a time.
    fn pack(&self, revision: i64, batch: &mut Batch) -> Packed {
        let until = Revision {
            main: revision,
            sub: u32::MAX,
        };
        let (mut packing, mut packed) = (Packing::default(), Packed::default());
        loop {
            let inner = self.store.read();
            let mut count = 0;
            let after = packed.last.unwrap_or(inner.saved);
            for version in inner.recent.range(after, until).take(AT_ONCE) {
                packing.add(version);
                packed.last = Some(version.revision);
                packed.bytes += version.size();
                count += 1;
                if packing.is_full() {
                    put_block(batch, &mut packing);
                }
            }
            if count < AT_ONCE {
                break;
            }
        }
        put_block(batch, &mut packing);
        packed
    }

    /// Lets go of what need not be in memory any more, some at a time.
    fn saved(&self, packed: &Packed) {
        {
            let mut inner = self.store.lock();
            inner.saved = packed.last.map_or(inner.saved, |last| last.max(inner.saved));
            inner.unsaved_bytes = inner.unsaved_bytes.saturating_sub(packed.bytes);
        }
        while self.evict_some() {}
    }

    /// Whether there is more to evict.
    fn evict_some(&self) -> bool {
        let mut inner = self.store.lock();
        let inner = &mut *inner;
        for _ in 0..AT_ONCE {
            if inner.recent.bytes() <= self.store.options.recent_bytes {
                return false;
            }
            match inner.recent.pop(inner.saved) {
                Some(oldest) => inner.evicted = oldest,
                None => return false,
            }
        }
        true
    }

    /// Does one slice of reclaiming, about `keys` keys; whether there is more to do.
    pub fn sweep(&self, keys: usize) -> Result<bool> {
        let mut sweep = self.sweep.lock().unwrap_or_else(PoisonError::into_inner);
        let step = match sweep.take() {
            Some(step) => step,
            None => match self.begin() {
                Some(step) => step,
                None => return Ok(false),
            },
        };
        *sweep = match step {
            Sweep::Index {
                compacted,
                after,
                gone,
            } => Some(self.sweep_index(compacted, after, gone, keys)),
            Sweep::Blocks {
                compacted,
                gone,
                next,
            } => self.sweep_blocks(compacted, gone, next)?,
        };
        Ok(sweep.is_some())
    }

    /// Has the engine give back some space that a sweep has left behind; whether there may be more.
    pub fn tidy(&self) -> Result<bool> {
        self.store.engine().tidy()
    }

    /// Whether somebody waited for a sweep's end since the last call.
    pub fn take_hurried(&self) -> bool {
        self.store.hurried.swap(false, Ordering::Relaxed)
    }

    /// How many versions sweeps have forgotten since the last call.
    pub fn take_reclaimed(&self) -> u64 {
        self.reclaimed.swap(0, Ordering::Relaxed)
    }

    /// A sweep up to the compacted revision, or to the oldest that a view still reads from, or to the newest saved:
    /// a version that is saved after it was forgotten would never be found again.
    fn begin(&self) -> Option<Sweep> {
        let inner = self.store.read();
        let pinned = self.store.pins().keys().next().copied();
        let compacted = pinned.map_or(inner.sealed.compacted, |pinned| {
            pinned.min(inner.sealed.compacted)
        });
        let saved = match inner.unsaved_bytes {
            0 => i64::MAX,
            _ => inner.saved.main,
        };
        let compacted = compacted.min(saved);
        let due = compacted > inner.swept;
        due.then(|| Sweep::Index {
            compacted,
            after: Bound::Unbounded,
            gone: Vec::new(),
        })
    }

    fn sweep_index(&self, compacted: i64, after: Bound<Key>, mut gone: Vec<Revision>, keys: usize) -> Sweep {
        let mut inner = self.store.lock();
        let mut empty = Vec::new();
        let (mut last, mut looked_at) = (None, 0);
        for (name, history) in inner
            .index
            .range_mut(after.as_ref().map(|key| &key[..]))
            .take(keys)
        {
            history.compact(compacted, &mut gone);
            if history.is_empty() {
                empty.push(name.to_key());
            }
            looked_at += 1;
            if looked_at == keys {
                last = Some(name.to_key());
            }
        }
        for key in empty {
            inner.index.remove(&key);
        }
        match last {
            Some(last) => Sweep::Index {
                compacted,
                after: Bound::Excluded(last),
                gone,
            },
            None => {
                drop(inner);
                self.reclaimed.fetch_add(gone.len() as u64, Ordering::Relaxed);
                gone.sort_unstable();
                Sweep::Blocks {
                    compacted,
                    gone,
                    next: 0,
                }
            }
        }
    }

    fn sweep_blocks(&self, compacted: i64, gone: Vec<Revision>, mut next: usize) -> Result<Option<Sweep>> {
        let mut batch = Batch::default();
        let (begun, mut freed) = (next, 0);
        for _ in 0..BLOCKS_PER_SLICE {
            let Some(revision) = gone.get(next) else { break };
            let first = keys::blocks().start;
            let at = self
                .store
                .engine()
                .floor(&first, &keys::block(revision.main, revision.sub))?;
            let Some((key, bytes)) = at else {
                next += 1;
                continue;
            };
            let (kept, last, bytes) = without(&Block::parse(bytes)?, &gone)?;
            freed += bytes;
            match kept.is_empty() {
                true => batch.delete(key),
                false => batch.put(key, block::encode(&kept)),
            }
            // Everything up to the block's last version is done; at least the one looked for.
            next = gone.partition_point(|revision| *revision <= last).max(next + 1);
        }
        if !batch.is_empty() {
            self.commit(batch)?;
        }
        let mut inner = self.store.lock();
        inner.bytes = inner.bytes.saturating_sub(freed);
        // They are saved, all of them, and may leave memory.
        gone[begun..next]
            .iter()
            .for_each(|revision| inner.recent.forget(*revision));
        if next < gone.len() {
            return Ok(Some(Sweep::Blocks {
                compacted,
                gone,
                next,
            }));
        }
        inner.swept = compacted;
        Ok(None)
    }
}

/// The versions of a block that stay, the block's last revision, and the bytes of those that go.
fn without(block: &Block, gone: &[Revision]) -> Result<(Vec<Version>, Revision, u64)> {
    let (mut kept, mut last, mut freed) = (Vec::new(), Revision::default(), 0);
    for version in block.versions() {
        let version = version?;
        last = version.revision;
        match gone.binary_search(&version.revision) {
            Ok(_) => freed += (version.kv.key.len() + version.kv.value.len()) as u64,
            Err(_) => kept.push(version),
        }
    }
    Ok((kept, last, freed))
}

/// Puts a block into a batch, if there is anything in it.
fn put_block(batch: &mut Batch, packing: &mut Packing) {
    if let Some(first) = packing.first() {
        batch.put(keys::block(first.main, first.sub), packing.take());
    }
}

pub(super) fn put_marks(batch: &mut Batch, sealed: &Sealed) {
    batch.put(
        Bytes::from_static(keys::STATE_MARK),
        encode_mark(sealed.revision, sealed.compacted),
    );
    batch.put(Bytes::from_static(keys::SHELL_MARK), sealed.mark.clone());
}

pub(super) fn encode_mark(revision: i64, compacted: i64) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    out.put_i64_le(revision);
    out.put_i64_le(compacted);
    out.freeze()
}

pub(super) fn decode_mark(mut bytes: Bytes) -> Result<(i64, i64)> {
    if bytes.len() != 16 {
        return Err(Error::Corrupt(
            "the state's mark has the wrong length".to_string(),
        ));
    }
    let (revision, compacted) = (bytes.get_i64_le(), bytes.get_i64_le());
    match revision >= 1 && (NEVER_COMPACTED..=revision).contains(&compacted) {
        true => Ok((revision, compacted)),
        false => Err(Error::Corrupt(format!(
            "the state's mark says revision {revision}, compacted {compacted}"
        ))),
    }
}

impl Store {
    /// For the one thread that saves this store.
    pub fn saver(self: &Arc<Self>) -> Saver {
        Saver {
            store: self.clone(),
            sweep: Mutex::new(None),
            reclaimed: AtomicU64::new(0),
            copying: Mutex::new(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Options;
    use crate::mvcc::write::Write;
    use crate::storage::Memory;

    #[test]
    fn what_a_sweep_forgets_leaves_memory_with_its_blocks() {
        let (store, _) = Store::open(Arc::new(Memory::default()), Options::default()).expect("opened");
        let saver = store.saver();
        let change = |make: &dyn Fn(&mut Write<'_>)| {
            let mut write = store.write();
            make(&mut write);
            write.finish();
            store.seal(Bytes::from_static(b"mark"));
        };
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from(vec![0; 300]));
        for _ in 0..2000 {
            change(&|write| write.put(key.clone(), value.clone(), 0));
        }
        let revision = store.view().revision;
        change(&|write| write.compact(revision));
        saver.save().expect("saved");
        let held = || {
            let inner = store.read();
            inner.recent.range(Revision::default(), inner.saved).count()
        };
        assert_eq!(held(), 2000);
        let mut slices = 0;
        while saver.sweep(10).expect("swept") {
            slices += 1;
        }
        assert_eq!(held(), 1, "the newest");
        assert!(slices > 1, "they went some at a time");
    }
}
