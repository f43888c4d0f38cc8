//! Ordered bytes on disk.
//!
//! Two kinds of storage live here. The write-ahead log ([`wal`], over [`fs`]) and the snapshot files are the truth.
//! An [`Engine`] holds the applied state, ordered by key, and may lag or be thrown away: it changes only by whole
//! [`Batch`]es, so whatever survives a kill is one consistent point.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod ahead;
pub mod fs;
pub mod keys;
mod memory;
mod row;
mod sled;
mod values;
pub mod wal;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

pub use memory::Memory;
pub use row::Row;
pub use values::Place;

/// Something local failed: the disk, or what was read from it. Never an answer to a request; the member stops.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The engine failed.
    #[error("storage engine: {0}")]
    Engine(String),
    /// What was read is not what was written.
    #[error("corrupt state: {0}")]
    Corrupt(String),
}

/// What one storage operation returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A key and its value.
pub type Pair = (Bytes, Bytes);

/// A value that an engine lends: itself, or where it lies in a file that has another name too by then.
#[derive(Debug, Clone)]
pub enum Lent {
    /// A small one.
    Value(Bytes),
    /// A large one.
    At(Place),
}

/// Names, on a disk, for the files that an engine lends.
pub struct Names<'a> {
    /// The disk.
    pub fs: &'a dyn fs::Fs,
    /// By the number of a file.
    pub of: &'a dyn Fn(u32) -> PathBuf,
}

/// Ordered keys and values.
pub trait Engine: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// The last pair at or before `key` whose key is not before `from`.
    fn floor(&self, from: &[u8], key: &[u8]) -> Result<Option<Pair>>;

    /// The pairs of a range, in order. Values may share their memory with others: who keeps some copies them.
    fn scan(&self, range: Range<Bytes>) -> Box<dyn Iterator<Item = Result<Pair>> + '_>;

    /// The pairs of a range, in order, without a copy of what is large: the files in which that lies get second names, and
    /// are there as long as they have those. Their contents are on disk when this returns; their names may not be.
    fn lend(&self, range: Range<Bytes>, names: &Names<'_>) -> Result<Vec<(Bytes, Lent)>>;

    /// Applies all of the batch or, if the process is killed meanwhile, nothing of it.
    fn commit(&self, batch: Batch) -> Result<()>;

    /// Gives some of the space back that changes have left behind; whether there may be more.
    fn tidy(&self) -> Result<bool>;

    /// Makes everything committed survive a loss of power.
    fn flush(&self) -> Result<()>;

    /// Bytes used on disk.
    fn size_on_disk(&self) -> Result<u64>;

    /// Bytes of that in files which [`Engine::lend`] gives second names.
    fn lendable(&self) -> u64;

    /// Nobody needs what is in it any more: its files go once its last user is done.
    fn discard(&self);
}

/// Changes that are made together. A later change of a key in one batch wins.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<(Bytes, Option<Bytes>)>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.changes.push((key, Some(value)));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Bytes) {
        self.changes.push((key, None));
    }

    /// The same changes, but for those of some keys.
    pub fn without(&self, left_out: impl Fn(&[u8]) -> bool) -> Batch {
        let kept = self.changes.iter().filter(|(key, _)| !left_out(key));
        Batch {
            changes: kept.cloned().collect(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Opens the engine kept in `dir`, or makes it, with this many bytes of cache.
pub fn open_engine(dir: &Path, cache: u64) -> Result<Arc<dyn Engine>> {
    Ok(Arc::new(sled::Sled::open(dir, cache)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// sled and a map in step, through random batches and reopens.
    #[test]
    fn sled_does_what_a_map_does() {
        let seed = 7;
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let memory = Memory::default();
        let mut sled = open_engine(dir.path(), 1 << 20).expect("opened");
        for round in 0..60 {
            for engine in [&memory as &dyn Engine, &*sled] {
                let mut same = StdRng::seed_from_u64(round);
                let mut batch = Batch::default();
                for _ in 0..same.random_range(0..20) {
                    let key = Bytes::from(vec![b'k', same.random_range(0..40)]);
                    match same.random_bool(0.7) {
                        true => batch.put(key, Bytes::from(vec![same.random(); same.random_range(0..50)])),
                        false => batch.delete(key),
                    }
                }
                engine.commit(batch).expect("committed");
            }
            if rng.random_bool(0.1) {
                drop(sled);
                sled = open_engine(dir.path(), 1 << 20).expect("reopened");
            }
            let whole = || Bytes::from_static(b"k")..Bytes::from_static(b"l");
            let pairs =
                |engine: &dyn Engine| engine.scan(whole()).collect::<Result<Vec<_>>>().expect("scanned");
            assert_eq!(pairs(&memory), pairs(&*sled));
            let key = [b'k', rng.random_range(0..40)];
            assert_eq!(memory.get(&key).expect("read"), sled.get(&key).expect("read"));
            assert_eq!(
                memory.floor(b"k\x03", &key).expect("read"),
                sled.floor(b"k\x03", &key).expect("read")
            );
        }
        sled.flush().expect("flushed");
        assert!(sled.size_on_disk().expect("a size") > 0);
        let reading = sled.clone();
        sled.discard();
        drop(sled);
        assert!(reading.get(b"k").is_ok() && dir.path().exists());
        drop(reading);
        assert!(!dir.path().exists());
    }

    /// Two of twenty values change all the time, so that files with others in them are emptied while these are read.
    #[test]
    fn values_are_read_while_they_move() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let engine = open_engine(dir.path(), 1 << 20).expect("opened");
        let keys: Vec<Bytes> = (0..20).map(|number| Bytes::from(vec![b'k', number])).collect();
        let write = |keys: &[Bytes], round: u8| {
            let mut batch = Batch::default();
            for key in keys {
                batch.put(key.clone(), [&key[1..], &[round; 40]].concat().into());
            }
            engine.commit(batch).expect("committed");
        };
        write(&keys, 0);
        let read = || {
            let last = engine.floor(b"k", &keys[19]).expect("read").expect("it is there");
            let pairs = engine.scan(Bytes::from_static(b"k")..Bytes::from_static(b"l"));
            let pairs: Vec<Pair> = pairs.collect::<Result<_>>().expect("scanned");
            assert_eq!(pairs.len(), keys.len());
            for (key, value) in pairs.iter().chain([&last]) {
                assert_eq!((value.len(), value[0]), (41, key[1]));
            }
        };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..400).for_each(|round| write(&keys[18..], round as u8)));
            while !writer.is_finished() {
                read();
            }
        });
        read();
        let files = std::fs::read_dir(dir.path().join("values"))
            .expect("listed")
            .count();
        assert!(files < 8, "{files} files are left of 20 and more");
    }

    /// Under other names, or as copies where a disk has no other names for them.
    #[test]
    fn what_an_engine_lends_stays_when_it_has_let_go_of_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let beside = dir.path().join("beside");
        std::fs::create_dir(&beside).expect("made");
        let sled = open_engine(&dir.path().join("engine"), 1 << 20).expect("opened");
        let write = |engine: &dyn Engine, round: u8| {
            let mut batch = Batch::default();
            for number in 0..60 {
                let size = 10 * usize::from(number % 9);
                batch.put(vec![b'k', number].into(), vec![number + round; size].into());
            }
            engine.commit(batch).expect("committed");
        };
        let memory: Arc<dyn Engine> = Arc::new(Memory::default());
        let other = fs::SimFs::default();
        let disks: [(&Arc<dyn Engine>, &dyn fs::Fs); 3] =
            [(&sled, &fs::RealFs), (&sled, &other), (&memory, &other)];
        for (at, (engine, disk)) in disks.into_iter().enumerate() {
            let name = |number: u32| beside.join(format!("{at} {number}"));
            let names = Names { fs: disk, of: &name };
            write(&**engine, 0);
            let range = || Bytes::from_static(b"k")..Bytes::from_static(b"l");
            let pairs: Vec<Pair> = engine.scan(range()).collect::<Result<_>>().expect("scanned");
            let lent = engine.lend(range(), &names).expect("lent");
            (1..9).for_each(|round| write(&**engine, round));
            let mut apart = 0;
            let lent = lent.into_iter().map(|(key, lent)| match lent {
                Lent::Value(value) => (key, value),
                Lent::At(place) => {
                    apart += 1;
                    let file = disk.open(&name(place.file())).expect("it is there");
                    (key, place.read(&*file).expect("as it was"))
                }
            });
            assert!(lent.eq(pairs));
            assert!(apart > 30);
            let all = engine.size_on_disk().expect("it tells");
            assert!(0 < engine.lendable() && engine.lendable() <= all);
        }
    }

    #[test]
    fn space_is_given_back_while_nothing_is_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let engine = open_engine(dir.path(), 1 << 20).expect("opened");
        let mut batch = Batch::default();
        (0..90).for_each(|number| batch.put(vec![b'k', number].into(), vec![number; 200].into()));
        engine.commit(batch).expect("committed");
        let values = || {
            std::fs::read_dir(dir.path().join("values"))
                .expect("listed")
                .count()
        };
        let before = values();
        let mut batch = Batch::default();
        (0..90)
            .filter(|number| number % 4 > 0)
            .for_each(|number| batch.delete(vec![b'k', number].into()));
        engine.commit(batch).expect("committed");
        while engine.tidy().expect("tidied") {}
        assert!(2 * values() < before, "{} of {before} files are left", values());
        let left = engine.scan(Bytes::from_static(b"k")..Bytes::from_static(b"l"));
        assert_eq!(
            left.filter(|pair| pair.as_ref().is_ok_and(|(_, value)| value.len() == 200))
                .count(),
            23
        );
    }
}
