//! Revisions over bytes: every state that the store ever had, until it is compacted.
//!
//! Each command that changes something makes one main revision; the changes inside it are numbered by a sub revision.
//! Every put or delete of a key adds a *version* at its revision; nothing is overwritten. A reader pins a [`View`] at
//! the published revision and reads versions at or below it, which never change: no lock is held while it reads, and
//! writes go on.
//!
//! ```text
//! main.sub   2.0        3.0        4.0  4.1          published: 4
//!            put a=1    put b=1    del a · put c=1   a view at 3 sees a=1 b=1, whatever comes later
//! ```
//!
//! **Where things are.** The [`index`] (key → [`history`]) is in memory, built by a scan at open ([`gather`]). Values are in *versions*:
//! the newest in memory, the rest in the engine, packed in [`block`]s by revision; [`loading`] finds them. [`save`] moves
//! them from one to the other, behind the writer's back, and reclaims what compaction freed; [`defrag`] gives the disk its
//! space back. [`attached`] finds the keys of a lease; [`view`] is how readers see all of it.
//!
//! **One writer.** [`Store::write`] is called by apply alone. What it changes is invisible until [`Store::seal`].
//!
//! **Compaction** is a number. It decides at once what may be read; reclaiming the space comes later and changes no
//! answer, so that members at different progress still answer alike.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod attached;
pub mod block;
mod cache;
mod changes;
mod chunk;
mod defrag;
mod gather;
pub mod history;
mod index;
mod key;
mod load;
mod loading;
pub mod pair;
mod recent;
mod save;
mod view;
mod write;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arc_swap::ArcSwap;
use bytes::Bytes;

use self::attached::Attached;
use self::cache::Cache;
use self::history::{History, Meta};
use self::index::Index;
use self::key::{Key, Name};
use self::recent::Recent;
use crate::pb::mvccpb::KeyValue;
use crate::storage::{Engine, Result};

pub use block::Version;
pub use changes::Changes;
pub use defrag::Defragmented;
pub use load::{Piece, SnapshotSource, records_of, small_record, with_mark};
pub use save::Saver;
pub use view::View;
pub use write::Write;

/// When a version came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision {
    /// Of the command: the store's revision.
    pub main: i64,
    /// Of the change within the command.
    pub sub: u32,
}

/// The revision of an empty store (etcd's).
const FIRST: i64 = 1;
/// The compacted revision while nothing was compacted (etcd's).
pub const NEVER_COMPACTED: i64 = -1;

/// Which keys a request is about, by etcd's conventions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    start: Bound<Bytes>,
    end: Bound<Bytes>,
}

/// From where to where a map is looked through.
type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

impl KeyRange {
    /// No `range_end`: one key. The single byte 0: all keys from `key` on. Else: up to, not including.
    pub fn new(key: &Bytes, range_end: &Bytes) -> KeyRange {
        let end = match &range_end[..] {
            [] => Bound::Included(key.clone()),
            [0] => Bound::Unbounded,
            _ => Bound::Excluded(range_end.clone()),
        };
        KeyRange {
            start: Bound::Included(key.clone()),
            end,
        }
    }

    /// Whether a key is in it.
    pub fn contains(&self, key: &Bytes) -> bool {
        use std::ops::RangeBounds;
        (self.start.clone(), self.end.clone()).contains(key)
    }

    /// The key, if it is about one.
    fn one(&self) -> Option<&Bytes> {
        match (&self.start, &self.end) {
            (Bound::Included(start), Bound::Included(end)) if start == end => Some(start),
            _ => None,
        }
    }

    /// As a map's range takes it, which panics on an inverted one.
    fn bounds(&self) -> Option<Bounds<'_>> {
        let inverted = match (&self.start, &self.end) {
            (Bound::Included(start), Bound::Excluded(end)) => start >= end,
            (Bound::Excluded(start), Bound::Excluded(end)) => start >= end,
            (Bound::Excluded(start), Bound::Included(end)) => start >= end,
            _ => false,
        };
        let (start, end) = (self.start.as_ref(), self.end.as_ref());
        (!inverted).then(|| (start.map(|key| &key[..]), end.map(|key| &key[..])))
    }

    fn after(&self, name: Name<'_>) -> KeyRange {
        KeyRange {
            start: Bound::Excluded(name.to_bytes()),
            end: self.end.clone(),
        }
    }
}

/// What range, compare and hash read from: a [`View`], or a [`Write`] that sees its own changes.
pub trait Versions {
    /// The newest revision that it sees.
    fn revision(&self) -> i64;

    /// Below it nothing can be read.
    fn compacted(&self) -> i64;

    /// Calls `visit` with each key of the range that exists at a main revision, in key order.
    fn find(&self, range: &KeyRange, main: i64, visit: &mut dyn FnMut(Name<'_>, &Meta));

    /// Calls `visit` with the pair of each version that `find` gave, in the same order.
    fn each(&self, revisions: &[Revision], visit: &mut dyn FnMut(&KeyValue)) -> Result<()>;

    /// The pair of a version that `find` gave.
    fn load(&self, revision: Revision) -> Result<KeyValue> {
        let mut found = KeyValue::default();
        self.each(&[revision], &mut |pair| found = pair.clone())?;
        Ok(found)
    }
}

/// Sizes of what is kept in memory.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of versions kept in memory after they are saved: the newest are read most.
    pub recent_bytes: usize,
    /// Bytes of older ones kept in memory after they were read.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            recent_bytes: 64 << 20,
            cache_bytes: 32 << 20,
        }
    }
}

/// All revisions of all keys, and the small records that have none.
pub struct Store {
    inner: RwLock<Inner>,
    /// Replaced by one that holds the same when it is defragmented.
    engine: ArcSwap<Arc<dyn Engine>>,
    options: Options,
    cache: Mutex<Cache>,
    /// Revisions that views hold on to, with how many views each.
    pins: Mutex<BTreeMap<i64, usize>>,
    /// Somebody waits for a sweep's end.
    hurried: AtomicBool,
}

struct Inner {
    index: Index,
    /// Follows from the index, and is made from it at open.
    attached: Attached,
    recent: Recent,
    /// The newest saved revision: what is beyond is only in memory.
    saved: Revision,
    /// The newest revision that left memory: what is up to here is only in the engine.
    evicted: Revision,
    unsaved_bytes: usize,
    /// As the writer has it; readers see `sealed`.
    revision: i64,
    compacted: i64,
    /// Bytes of keys and values in all versions not yet reclaimed.
    bytes: u64,
    /// Up to here space is reclaimed.
    swept: i64,
    /// Small records without revisions (`keys::records`), all of them.
    records: BTreeMap<Bytes, Bytes>,
    /// Records changed since the last seal, and those sealed since the last save. Kept apart, as what is saved must be
    /// one sealed point: replaying "revoke lease 7" on a state that has forgotten the lease already, but not its keys,
    /// would keep the keys.
    changed: BTreeMap<Bytes, Option<Bytes>>,
    unsaved_records: BTreeMap<Bytes, Option<Bytes>>,
    sealed: Sealed,
}

/// A point between two commands: what readers see and what is saved.
#[derive(Debug, Clone)]
struct Sealed {
    revision: i64,
    compacted: i64,
    /// The shell's.
    mark: Bytes,
    /// Whether anything was sealed since the last save.
    unsaved: bool,
}

impl Inner {
    fn new() -> Self {
        Inner {
            index: Index::default(),
            attached: Attached::default(),
            recent: Recent::default(),
            saved: Revision::default(),
            evicted: Revision::default(),
            unsaved_bytes: 0,
            revision: FIRST,
            compacted: NEVER_COMPACTED,
            bytes: 0,
            swept: NEVER_COMPACTED,
            records: BTreeMap::new(),
            changed: BTreeMap::new(),
            unsaved_records: BTreeMap::new(),
            sealed: Sealed {
                revision: FIRST,
                compacted: NEVER_COMPACTED,
                mark: Bytes::new(),
                unsaved: false,
            },
        }
    }

    /// Adds a key's newest version to the index, made from what the key is at `main`; tells what that was.
    fn push(&mut self, key: &Bytes, main: i64, make: impl FnOnce(Option<&Meta>) -> Meta) -> Option<Meta> {
        let mut before = None;
        self.index.change(key, |found| match found {
            Some(history) => {
                before = history.at(main);
                history.push(make(before.as_ref()));
                None
            }
            None => Some(History::new(make(None))),
        });
        before
    }

    fn find(&self, range: &KeyRange, main: i64, visit: &mut dyn FnMut(Name<'_>, &Meta)) {
        if let Some(key) = range.one() {
            return self.find_one(key, main, visit);
        }
        let Some(bounds) = range.bounds() else { return };
        for (name, history) in self.index.range(bounds) {
            if let Some(meta) = history.at(main) {
                visit(name, &meta);
            }
        }
    }

    fn find_one(&self, key: &Bytes, main: i64, visit: &mut dyn FnMut(Name<'_>, &Meta)) {
        if let Some(meta) = self.index.get(key).and_then(|history| history.at(main)) {
            visit(Name::whole(key), &meta);
        }
    }
}

impl Store {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn pins(&self) -> MutexGuard<'_, BTreeMap<i64, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine.load())
    }

    fn set_engine(&self, engine: Arc<dyn Engine>) {
        self.engine.store(Arc::new(engine));
    }

    /// Makes everything saved survive a loss of power.
    pub fn flush(&self) -> Result<()> {
        self.engine().flush()
    }

    /// Another store takes this one's place: what it has on disk goes with its last view.
    pub fn discard(&self) {
        self.engine().discard();
    }

    /// Makes everything written so far visible, as one point, with the shell's mark on it.
    pub fn seal(&self, mark: Bytes) {
        let mut inner = self.lock();
        let mut changed = std::mem::take(&mut inner.changed);
        inner.unsaved_records.append(&mut changed);
        inner.sealed = Sealed {
            revision: inner.revision,
            compacted: inner.compacted,
            mark,
            unsaved: true,
        };
    }

    /// Bytes of keys and values in all versions.
    pub fn bytes(&self) -> u64 {
        self.read().bytes
    }

    /// Up to which revision compaction has reclaimed space.
    pub fn swept(&self) -> i64 {
        self.read().swept
    }

    /// Lets sweeps know that somebody waits for their end; to be said again while that is so.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// Bytes of versions that are only in memory.
    pub fn unsaved_bytes(&self) -> usize {
        self.read().unsaved_bytes
    }

    /// Bytes that the engine takes on disk.
    pub fn size_on_disk(&self) -> Result<u64> {
        self.engine().size_on_disk()
    }

    /// Bytes of that which a snapshot shares.
    pub fn lendable(&self) -> u64 {
        self.engine().lendable()
    }

    /// Keys that exist now, or existed since the last compaction.
    pub fn key_count(&self) -> usize {
        self.read().index.len()
    }

    /// A small record.
    pub fn record(&self, key: &Bytes) -> Option<Bytes> {
        self.read().records.get(key).cloned()
    }

    /// The small records of a range.
    pub fn records(&self, range: std::ops::Range<Bytes>) -> Vec<(Bytes, Bytes)> {
        self.read()
            .records
            .range(range)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// The keys attached to a lease, in order, and the revision at which they are: the writer's, which may not be
    /// sealed yet.
    pub fn attached(&self, lease: i64) -> (Vec<Bytes>, i64) {
        let inner = self.read();
        (
            inner.attached.keys(lease).map(Key::to_bytes).collect(),
            inner.revision,
        )
    }

    /// Whether more keys than so many are in a range, those included that are deleted and not reclaimed yet.
    pub fn has_more(&self, range: &KeyRange, count: usize) -> bool {
        let inner = self.read();
        range
            .bounds()
            .is_some_and(|bounds| inner.index.range(bounds).nth(count).is_some())
    }

    /// Whether there is a small record in a range.
    pub fn has_record(&self, range: std::ops::Range<Bytes>) -> bool {
        self.read().records.range(range).next().is_some()
    }
}
