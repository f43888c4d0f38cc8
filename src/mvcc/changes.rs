//! What happened in an interval of revisions, for those who watch: read back from the versions.
//!
//! Versions lie in revision order, the newest in memory and the rest in blocks in the engine, so this is a scan, not a
//! walk over the keys. It ends between two revisions: what one command changed is never torn apart.
//!
//! ```text
//! engine             | memory                        evicted: 3.0, the newest version that is in the engine alone
//! 2.0   3.0          | 4.0  4.1  5.0                 changes(from 3) reads 3.0 from the engine, then on from memory
//! ```
//!
//! Whatever happened at or after the compacted revision is there, however far a member has saved or reclaimed.

use super::block::{Block, Version};
use super::view::CHUNK;
use super::{KeyRange, Revision, Versions, View};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::storage::{Result, keys};

use bytes::Bytes;

/// Events of consecutive revisions, each revision whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// In order. None has its previous pair yet.
    pub events: Vec<Event>,
    /// The last main revision that they tell of: there are no others up to here.
    pub last: i64,
}

impl Version {
    fn into_event(self) -> Event {
        let kind = match self.tombstone {
            true => EventType::Delete,
            false => EventType::Put,
        };
        Event {
            r#type: kind as i32,
            kv: Some(self.kv),
            prev_kv: None,
        }
    }
}

impl View {
    /// What happened from main revision `from` on, which is not compacted: all of it, or about `enough` bytes and at
    /// least one revision.
    pub fn changes(&self, from: i64, enough: usize) -> Result<Changes> {
        let mut versions: Vec<Version> = Vec::new();
        let mut bytes = 0;
        let mut after = Revision {
            main: from.max(1) - 1,
            sub: u32::MAX,
        };
        let mut last = self.revision;
        while let Some(more) = self.versions_after(after)? {
            after = more.last().map_or(after, |version| version.revision);
            bytes += more.iter().map(Version::size).sum::<usize>();
            versions.extend(more);
            if bytes >= enough && versions[0].revision.main < after.main {
                // The newest revision may go on in what is not read yet.
                versions.truncate(versions.partition_point(|version| version.revision.main < after.main));
                last = after.main - 1;
                break;
            }
        }
        Ok(Changes {
            events: versions.into_iter().map(Version::into_event).collect(),
            last,
        })
    }

    /// The pair that a key had before main revision `main`; none if that is compacted.
    pub fn before(&self, key: &Bytes, main: i64) -> Result<Option<KeyValue>> {
        if main - 1 < self.compacted {
            return Ok(None);
        }
        let mut found = None;
        self.find(&KeyRange::new(key, &Bytes::new()), main - 1, &mut |_, meta| {
            found = Some(meta.revision)
        });
        found.map(|revision| self.load(revision)).transpose()
    }

    /// Some of the versions beyond `after`, the next ones, in order; none if there are no more.
    fn versions_after(&self, mut after: Revision) -> Result<Option<Vec<Version>>> {
        let end = Revision {
            main: self.revision,
            sub: u32::MAX,
        };
        loop {
            let evicted = {
                let inner = self.store.read();
                if after >= inner.evicted {
                    let next = inner.recent.range(after, end).take(CHUNK);
                    let next: Vec<Version> = next.cloned().collect();
                    return Ok((!next.is_empty()).then_some(next));
                }
                inner.evicted
            };
            let next = self.saved_versions(after, evicted.min(end))?;
            if !next.is_empty() {
                return Ok(Some(next));
            }
            // Nothing is left of what was there. More may have left memory meanwhile: look again.
            after = evicted;
        }
    }

    /// The versions beyond `after`, up to `until`, of the first block in the engine that has any.
    fn saved_versions(&self, after: Revision, until: Revision) -> Result<Vec<Version>> {
        let engine = self.store.engine();
        let all = keys::blocks();
        let before = engine.floor(&all.start, &keys::block(after.main, after.sub))?;
        let start = before.map_or(all.start, |(key, _)| key);
        for pair in engine.scan(start..all.end) {
            let (key, bytes) = pair?;
            let first = keys::parse_block(&key).map(|(main, sub)| Revision { main, sub });
            if first.is_none_or(|first| first > until) {
                break;
            }
            let wanted = |version: &Result<Version>| match version {
                Ok(version) => after < version.revision && version.revision <= until,
                Err(_) => true,
            };
            let block = Block::parse(bytes)?;
            let versions: Vec<Version> = block.versions().filter(wanted).collect::<Result<_>>()?;
            if !versions.is_empty() {
                return Ok(versions);
            }
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::mvcc::{Options, Saver, Store};
    use crate::storage::{Engine, Memory};

    /// So little memory that most versions are in the engine.
    fn options() -> Options {
        Options {
            recent_bytes: 3000,
            cache_bytes: 2000,
        }
    }

    /// A store, and everything that ever happened in it.
    struct World {
        engine: Arc<dyn Engine>,
        store: Arc<Store>,
        saver: Saver,
        past: Vec<Event>,
        states: BTreeMap<i64, BTreeMap<Bytes, KeyValue>>,
    }

    fn open(engine: Arc<dyn Engine>) -> (Arc<Store>, Saver) {
        let (store, _) = Store::open(engine, options()).expect("opened");
        let saver = store.saver();
        (store, saver)
    }

    impl World {
        fn new() -> World {
            let engine: Arc<dyn Engine> = Arc::new(Memory::default());
            let (store, saver) = open(engine.clone());
            World {
                engine,
                store,
                saver,
                past: Vec::new(),
                states: BTreeMap::from([(1, BTreeMap::new())]),
            }
        }

        /// One command: puts and deletes of a few keys, now and then of many.
        fn command(&mut self, rng: &mut StdRng) {
            let mut write = self.store.write();
            let changes = match rng.random_bool(0.05) {
                true => 40,
                false => rng.random_range(0..4),
            };
            for _ in 0..changes {
                let key = Bytes::from(vec![rng.random_range(b'a'..b'h')]);
                match rng.random_bool(0.4) && write.meta(&key).is_some() {
                    true => write.delete(key),
                    false => write.put(key, vec![rng.random(); rng.random_range(0..300)].into(), 0),
                }
            }
            let (revision, events) = write.finish();
            self.store.seal(Bytes::from_static(b"mark"));
            let mut state = self.states.values().next_back().cloned().unwrap_or_default();
            for event in &events {
                let kv = event.kv.clone().expect("an event has a pair");
                match event.r#type() {
                    EventType::Put => state.insert(kv.key.clone(), kv),
                    EventType::Delete => state.remove(&kv.key),
                };
            }
            self.states.insert(revision, state);
            self.past.extend(events);
        }

        fn compact(&mut self, rng: &mut StdRng) {
            let view = self.store.view();
            if view.compacted() < view.revision() {
                let mut write = self.store.write();
                write.compact(rng.random_range(view.compacted() + 1..=view.revision()));
                write.finish();
                self.store.seal(Bytes::from_static(b"mark"));
            }
        }

        fn restart(&mut self) {
            self.saver.save().expect("saved");
            (self.store, self.saver) = open(self.engine.clone());
        }

        fn move_by_snapshot(&mut self) {
            let records: Vec<_> = self
                .store
                .snapshot()
                .records()
                .map(|record| Ok(record.expect("read")))
                .collect();
            self.engine = Arc::new(Memory::default());
            let (store, _) =
                Store::restore(self.engine.clone(), options(), records.into_iter()).expect("restored");
            self.saver = store.saver();
            self.store = store;
        }

        /// Whatever part is asked for, it is what happened.
        fn check(&self, rng: &mut StdRng) {
            let view = self.store.view();
            let from = rng.random_range(view.compacted().max(0)..=view.revision() + 1);
            let enough = rng.random_range(1..8000);
            let changes = view.changes(from, enough).expect("read");
            let main = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            let happened = |last| -> Vec<Event> {
                let within = |event: &&Event| (from..=last).contains(&main(event));
                self.past.iter().filter(within).cloned().collect()
            };
            assert_eq!(
                changes.events,
                happened(changes.last),
                "from {from}, enough {enough}"
            );
            let is_all = changes.last == view.revision();
            assert!(is_all || changes.last >= from, "at least one revision");
            for event in &changes.events {
                let kv = event.kv.as_ref().expect("an event has a pair");
                let before = view.before(&kv.key, kv.mod_revision).expect("read");
                let state = self.states.get(&(kv.mod_revision - 1));
                match kv.mod_revision > view.compacted() {
                    true => assert_eq!(before.as_ref(), state.and_then(|state| state.get(&kv.key))),
                    false => assert_eq!(before, None),
                }
            }
        }
    }

    #[test]
    fn an_interval_is_what_happened_in_it_wherever_it_lies() {
        for seed in 0..20 {
            println!("seed {seed}");
            let mut rng = StdRng::seed_from_u64(seed);
            let mut world = World::new();
            for _ in 0..400 {
                match rng.random_range(0..20) {
                    0..12 => world.command(&mut rng),
                    12 => world.compact(&mut rng),
                    13 | 14 => drop(world.saver.save().expect("saved")),
                    15..18 => drop(world.saver.sweep(rng.random_range(1..10)).expect("swept")),
                    18 => world.restart(),
                    _ => world.move_by_snapshot(),
                }
                world.check(&mut rng);
            }
            assert!(world.past.len() > 200);
        }
    }

    #[test]
    fn a_delete_at_the_compacted_revision_is_still_told() {
        let mut world = World::new();
        let key = Bytes::from_static(b"k");
        for step in 0..3 {
            let mut write = world.store.write();
            match step {
                0 => write.put(key.clone(), Bytes::new(), 0),
                1 => write.delete(key.clone()),
                _ => write.compact(3),
            }
            write.finish();
            world.store.seal(Bytes::from_static(b"mark"));
        }
        world.saver.save().expect("saved");
        while world.saver.sweep(10).expect("swept") {}
        assert_eq!(world.store.swept(), 3);
        let told = |world: &World| world.store.view().changes(3, 1).expect("read").events.len();
        assert_eq!(told(&world), 1);
        world.restart();
        assert_eq!(told(&world), 1);
    }
}
