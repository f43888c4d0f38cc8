//! Views: the store as it was at one moment, for whoever reads it while writes go on.
//!
//! What a view sees is pinned: a sweep leaves it. No lock is held for longer than it takes to look at some keys.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::block::Version;
use super::history::Meta;
use super::key::{Key, Name};
use super::{KeyRange, Revision, Store, Versions};
use crate::pb::mvccpb::KeyValue;
use crate::storage::Result;

/// Keys looked at under one hold of the lock: a large range must not stop the writer.
pub(super) const CHUNK: usize = 1000;

impl Store {
    /// Pins what is visible now.
    pub fn view(self: &Arc<Self>) -> View {
        let inner = self.read();
        // Pinned under the lock, so that reclaiming can't slip in between.
        *self.pins().entry(inner.sealed.compacted).or_default() += 1;
        View {
            store: self.clone(),
            revision: inner.sealed.revision,
            compacted: inner.sealed.compacted,
        }
    }

    /// How many views there are.
    pub fn views(&self) -> usize {
        self.pins().values().sum()
    }
}

/// The store as it was at one moment, for as long as this is held.
pub struct View {
    pub(super) store: Arc<Store>,
    pub(super) revision: i64,
    pub(super) compacted: i64,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({}..={})", self.compacted, self.revision)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let mut pins = self.store.pins();
        if let Some(count) = pins.get_mut(&self.compacted) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.compacted);
            }
        }
    }
}

impl Versions for View {
    fn revision(&self) -> i64 {
        self.revision
    }

    fn compacted(&self) -> i64 {
        self.compacted
    }

    /// In chunks, so that the writer is never held up for long; what comes between chunks is newer than the view.
    fn find(&self, range: &KeyRange, main: i64, visit: &mut dyn FnMut(Name<'_>, &Meta)) {
        if let Some(key) = range.one() {
            return self.store.read().find_one(key, main, visit);
        }
        let mut rest = range.clone();
        loop {
            let inner = self.store.read();
            let Some(bounds) = rest.bounds() else { return };
            let mut looked_at = 0;
            let mut last = None;
            for (name, history) in inner.index.range(bounds).take(CHUNK) {
                if let Some(meta) = history.at(main) {
                    visit(name, &meta);
                }
                looked_at += 1;
                last = Some(name);
            }
            match last.filter(|_| looked_at == CHUNK) {
                Some(last) => rest = rest.after(last),
                None => return,
            }
        }
    }

    fn each(&self, revisions: &[Revision], visit: &mut dyn FnMut(&KeyValue)) -> Result<()> {
        self.store.each(|| self.store.read(), revisions, visit)
    }
}

impl View {
    /// Up to `count` keys of a range that exist at a main revision, in order; and what lies behind them, if there may be
    /// more.
    pub fn page(&self, range: &KeyRange, main: i64, count: usize) -> (Vec<(Bytes, Meta)>, Option<KeyRange>) {
        let inner = self.store.read();
        let Some(bounds) = range.bounds() else {
            return (Vec::new(), None);
        };
        let mut page = Vec::new();
        let mut last = None;
        // No more keys than these are looked at under one hold of the lock.
        for (name, history) in inner.index.range(bounds).take(count) {
            page.extend(history.at(main).map(|meta| (name.to_bytes(), meta)));
            last = Some(name);
        }
        (page, last.map(|last| range.after(last)))
    }

    /// Whether a version can be read, or watched from the compacted revision on.
    pub(super) fn keeps(&self, version: &Version) -> bool {
        // From the compacted revision on everything is kept: no need to look it up.
        version.revision.main >= self.compacted || self.is_oldest(version)
    }

    /// Whether it is what its key was at the compacted revision.
    fn is_oldest(&self, version: &Version) -> bool {
        let inner = self.store.read();
        let history = inner.index.get(&version.kv.key);
        history.is_some_and(|history| {
            history.kept(self.compacted, |kept| {
                kept.first()
                    .is_some_and(|oldest| oldest.revision == version.revision)
            })
        })
    }

    /// A checksum of everything that can be read at `main`, keys, values and past; equal on every member that has the
    /// same compacted revision, however far each has reclaimed. In chunks, as [`View::find`].
    pub fn hash(&self, main: i64) -> Result<u32> {
        let mut crc = 0;
        let mut after = None;
        loop {
            let chunk = self.kept_after(after, main);
            for (key, meta) in &chunk {
                crc = self.hash_version(crc, key, meta)?;
            }
            match chunk.into_iter().last() {
                Some((key, meta)) => after = Some((key, meta.revision)),
                None => return Ok(crc),
            }
        }
    }

    /// What `hash` covers next: versions in the order of keys, then revisions, from behind one of them. A key may have
    /// more versions than a chunk.
    fn kept_after(&self, after: Option<(Key, Revision)>, main: i64) -> Vec<(Key, Meta)> {
        let start = match &after {
            Some((key, _)) => Bound::Included(&key[..]),
            None => Bound::Unbounded,
        };
        let inner = self.store.read();
        let mut chunk = Vec::new();
        for (name, history) in inner.index.range((start, Bound::Unbounded)) {
            history.kept(self.compacted, |kept| {
                let done = match &after {
                    Some((last, revision)) if name.is(last) => {
                        kept.partition_point(|meta| meta.revision <= *revision)
                    }
                    _ => 0,
                };
                let readable = kept.partition_point(|meta| meta.revision.main <= main).max(done);
                let rest = kept[done..readable].iter().take(CHUNK - chunk.len());
                chunk.extend(rest.map(|meta| (name.to_key(), *meta)));
            });
            if chunk.len() == CHUNK {
                break;
            }
        }
        chunk
    }

    fn hash_version(&self, mut crc: u32, key: &[u8], meta: &Meta) -> Result<u32> {
        let numbers = [
            meta.revision.main,
            i64::from(meta.revision.sub),
            meta.create_revision,
            meta.version,
            meta.lease,
        ];
        crc = crc32c::crc32c_append(crc, key);
        for number in numbers {
            crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
        }
        match meta.is_tombstone() {
            true => Ok(crc),
            false => Ok(crc32c::crc32c_append(
                crc,
                &self.store.load_passing(meta.revision)?.value,
            )),
        }
    }
}
