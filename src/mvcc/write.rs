//! The writer's side: the changes of one command, all at one main revision.

use std::ops::Range;
use std::sync::RwLockWriteGuard;

use bytes::Bytes;

use super::block::Version;
use super::history::Meta;
use super::key::{Key, Name};
use super::{Inner, KeyRange, Revision, Store, Versions};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::storage::Result;

impl Store {
    /// Begins the changes of one command. They see each other; readers see nothing until [`Store::seal`].
    pub fn write(&self) -> Write<'_> {
        let inner = self.lock();
        let main = inner.revision + 1;
        Write {
            store: self,
            inner,
            main,
            sub: 0,
            events: Vec::new(),
        }
    }
}

/// One command's changes.
pub struct Write<'a> {
    store: &'a Store,
    inner: RwLockWriteGuard<'a, Inner>,
    main: i64,
    sub: u32,
    events: Vec<Event>,
}

impl Write<'_> {
    /// Sets a key.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: i64) {
        let (main, revision) = (self.main, self.next());
        let mut pair = KeyValue {
            key,
            value,
            lease,
            mod_revision: main,
            ..KeyValue::default()
        };
        let before = self.inner.push(&pair.key, main, |before| {
            let meta = Meta {
                revision,
                create_revision: before.map_or(main, |meta| meta.create_revision),
                version: before.map_or(1, |meta| meta.version + 1),
                lease,
            };
            (pair.create_revision, pair.version) = (meta.create_revision, meta.version);
            meta
        });
        self.add(revision, EventType::Put, pair, before);
    }

    /// Deletes a key, which exists.
    pub fn delete(&mut self, key: Bytes) {
        let (main, revision) = (self.main, self.next());
        let before = self.inner.push(&key, main, |_| Meta::tombstone(revision));
        let pair = KeyValue {
            key,
            mod_revision: main,
            ..KeyValue::default()
        };
        self.add(revision, EventType::Delete, pair, before);
    }

    /// The revision of the next change.
    fn next(&mut self) -> Revision {
        let revision = Revision {
            main: self.main,
            sub: self.sub,
        };
        self.sub += 1;
        revision
    }

    /// Adds a version that is in the index; `before` is what the key was.
    fn add(&mut self, revision: Revision, kind: EventType, kv: KeyValue, before: Option<Meta>) {
        self.events.push(Event {
            r#type: kind as i32,
            kv: Some(kv.clone()),
            prev_kv: None,
        });
        let version = Version {
            revision,
            tombstone: kind == EventType::Delete,
            kv,
        };
        let inner = &mut *self.inner;
        let lease = before.map_or(0, |meta| meta.lease);
        if lease != version.kv.lease {
            let key = Key::from(&version.kv.key[..]);
            inner.attached.moved(&key, lease, version.kv.lease);
        }
        inner.bytes += (version.kv.key.len() + version.kv.value.len()) as u64;
        inner.unsaved_bytes += version.size();
        inner.recent.push(version);
    }

    /// A key as it is now, without its value.
    pub fn meta(&self, key: &Bytes) -> Option<Meta> {
        self.inner.index.get(key)?.at(self.main)
    }

    /// A key as it is now.
    pub fn get(&self, key: &Bytes) -> Result<Option<KeyValue>> {
        self.meta(key).map(|meta| self.load(meta.revision)).transpose()
    }

    /// Whether anything was changed yet.
    pub fn has_changes(&self) -> bool {
        self.sub > 0
    }

    /// The keys attached to a lease now, in order.
    pub fn attached(&self, lease: i64) -> Vec<Bytes> {
        self.inner.attached.keys(lease).map(Key::to_bytes).collect()
    }

    /// Makes `revision` the compacted one. The caller has checked it.
    pub fn compact(&mut self, revision: i64) {
        self.inner.compacted = revision;
    }

    /// A small record.
    pub fn record(&self, key: &Bytes) -> Option<&Bytes> {
        self.inner.records.get(key)
    }

    /// The small records of a range.
    pub fn records(&self, range: Range<Bytes>) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.inner.records.range(range)
    }

    /// Sets or removes a small record.
    pub fn set_record(&mut self, key: Bytes, value: Option<Bytes>) {
        match &value {
            Some(value) => drop(self.inner.records.insert(key.clone(), value.clone())),
            None => drop(self.inner.records.remove(&key)),
        }
        self.inner.changed.insert(key, value);
    }

    /// Ends the command: the store's revision now, and what happened, in order.
    pub fn finish(mut self) -> (i64, Vec<Event>) {
        if self.has_changes() {
            self.inner.revision = self.main;
        }
        (self.inner.revision, std::mem::take(&mut self.events))
    }
}

impl Versions for Write<'_> {
    /// The command's own revision once it changed something.
    fn revision(&self) -> i64 {
        if self.has_changes() {
            self.main
        } else {
            self.main - 1
        }
    }

    fn compacted(&self) -> i64 {
        self.inner.compacted
    }

    fn find(&self, range: &KeyRange, main: i64, visit: &mut dyn FnMut(Name<'_>, &Meta)) {
        self.inner.find(range, main, visit);
    }

    fn each(&self, revisions: &[Revision], visit: &mut dyn FnMut(&KeyValue)) -> Result<()> {
        self.store.each(|| &*self.inner, revisions, visit)
    }
}
