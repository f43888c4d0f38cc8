//! Opening a store from its engine, and moving it whole: to a snapshot, and from one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};

use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes, BytesMut};

use super::attached::Attached;
use super::block::{Block, Packing, Version};
use super::cache::Cache;
use super::gather::Gathered;
use super::history::Meta;
use super::pair::Skimmed;
use super::save::{decode_mark, encode_mark, put_marks};
use super::{Inner, Options, Revision, Sealed, Store, View};
use crate::storage::{Batch, Engine, Error, Lent, Names, Pair, Place, Result, keys};

/// Versions put into the engine in one batch while loading a snapshot.
const LOAD_BATCH: usize = 4 << 20;

impl Store {
    /// Opens what the engine holds; with the shell's mark of the last save, if there was one.
    pub fn open(engine: Arc<dyn Engine>, options: Options) -> Result<(Arc<Store>, Option<Bytes>)> {
        let mut inner = Inner::new();
        let mark = engine.get(keys::SHELL_MARK)?;
        if let Some(mark) = &mark {
            read_engine(&*engine, mark, &mut inner)?;
        }
        Ok((Store::with(inner, engine, options), mark))
    }

    fn with(inner: Inner, engine: Arc<dyn Engine>, options: Options) -> Arc<Store> {
        Arc::new(Store {
            inner: RwLock::new(inner),
            engine: ArcSwap::from_pointee(engine),
            cache: Mutex::new(Cache::new(options.cache_bytes)),
            options,
            pins: Mutex::new(BTreeMap::new()),
            hurried: AtomicBool::new(false),
        })
    }

    /// Rebuilds a store in an empty engine from the records of a [`SnapshotSource`].
    pub fn restore(
        engine: Arc<dyn Engine>,
        options: Options,
        records: impl Iterator<Item = std::io::Result<Bytes>>,
    ) -> Result<(Arc<Store>, Bytes)> {
        let mut loading = Loading {
            batch: Batch::default(),
            bytes: 0,
            sealed: None,
        };
        for record in records {
            let record =
                record.map_err(|error| Error::Engine(format!("cannot read the snapshot: {error}")))?;
            loading.take(&*engine, record)?;
        }
        let sealed = loading
            .sealed
            .ok_or_else(|| corrupt("the snapshot has no head"))?;
        // The marks last: an engine without them is not taken for a state.
        put_marks(&mut loading.batch, &sealed);
        engine.commit(loading.batch)?;
        let (store, _) = Store::open(engine, options)?;
        Ok((store, sealed.mark))
    }

    /// Everything as it is sealed now, for a snapshot; writes and reclaiming go on meanwhile.
    pub fn snapshot(self: &Arc<Self>) -> SnapshotSource {
        let view = self.view();
        let inner = self.read();
        let sealed = inner.sealed.clone();
        let until = Revision {
            main: view.revision,
            sub: u32::MAX,
        };
        let unsaved = inner.recent.range(inner.saved, until).cloned().collect();
        let records = inner
            .records
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        SnapshotSource {
            saved: inner.saved,
            engine: self.engine(),
            sealed,
            records,
            unsaved,
            view,
        }
    }
}

fn read_engine(engine: &dyn Engine, mark: &Bytes, inner: &mut Inner) -> Result<()> {
    let state_mark = engine
        .get(keys::STATE_MARK)?
        .ok_or_else(|| corrupt("the state's mark is missing"))?;
    let (revision, compacted) = decode_mark(state_mark)?;
    inner.revision = revision;
    inner.compacted = compacted;
    inner.sealed = Sealed {
        revision,
        compacted,
        mark: mark.clone(),
        unsaved: false,
    };
    let mut gathered = Gathered::default();
    for (number, block) in engine.scan(keys::blocks()).enumerate() {
        let (_, bytes) = block?;
        let length = bytes.len() as u64;
        for version in Block::parse(bytes)?.skim() {
            let (at, pair) = version?;
            gather(inner, &mut gathered, at, &pair)?;
        }
        if number == 0 {
            // The others are much like it.
            let blocks = engine.size_on_disk()? / length;
            gathered.make_room(usize::try_from(blocks).unwrap_or(usize::MAX));
        }
    }
    inner.index = gathered.index();
    drop(gathered);
    inner.attached = Attached::of(&inner.index);
    for range in keys::records() {
        for pair in engine.scan(range) {
            let (key, value) = pair?;
            inner.records.insert(key, Bytes::copy_from_slice(&value));
        }
    }
    Ok(())
}

fn gather(inner: &mut Inner, gathered: &mut Gathered, revision: Revision, pair: &Skimmed<'_>) -> Result<()> {
    if revision.main > inner.revision || revision <= inner.saved {
        return Err(corrupt("versions are not in revision order"));
    }
    inner.saved = revision;
    inner.evicted = revision;
    inner.bytes += (pair.key.len() + pair.value.len()) as u64;
    let meta = Meta {
        revision,
        create_revision: pair.create_revision,
        version: pair.version,
        lease: pair.lease,
    };
    gathered.add(pair.key, meta);
    Ok(())
}

const HEAD: u8 = b'h';
const RECORD: u8 = b'r';
const BLOCK: u8 = b'b';

/// A record of a snapshot, or where most of it lies.
pub enum Piece {
    /// A record.
    Whole(Bytes),
    /// A record that is this byte, and behind it the value at a place.
    Apart(u8, Place),
}

/// A store to be put into a snapshot, record by record.
pub struct SnapshotSource {
    sealed: Sealed,
    records: Vec<Pair>,
    /// Versions up to here are in the engine, the later ones below.
    saved: Revision,
    unsaved: Vec<Version>,
    /// As it was when the snapshot began: it may be replaced meanwhile.
    engine: Arc<dyn Engine>,
    view: View,
}

impl SnapshotSource {
    /// The shell's mark of the sealed point.
    pub fn mark(&self) -> &Bytes {
        &self.sealed.mark
    }

    /// The newest revision in it.
    pub fn revision(&self) -> i64 {
        self.sealed.revision
    }

    /// Below this nothing in it can be read; −1 before any compaction.
    pub fn compacted(&self) -> i64 {
        self.sealed.compacted
    }

    /// The small records of a key space.
    pub fn small(&self, space: Range<Bytes>) -> impl Iterator<Item = &Pair> {
        self.records.iter().filter(move |(key, _)| space.contains(key))
    }

    /// The versions that can be read, in revision order: the same on every member, however far each has reclaimed.
    pub fn versions(&self) -> impl Iterator<Item = Result<Version>> + '_ {
        let saved = self.engine.scan(self.blocks()).flat_map(|pair| {
            match pair.and_then(|(_, block)| Block::parse(block)) {
                Ok(block) => block.versions().collect(),
                Err(error) => vec![Err(error)],
            }
        });
        let all = saved.chain(self.unsaved.iter().cloned().map(Ok));
        all.filter(|version| version.as_ref().map_or(true, |version| self.view.keeps(version)))
    }

    /// The records, all of them whole.
    #[cfg(test)]
    pub fn records(&self) -> impl Iterator<Item = Result<Bytes>> + '_ {
        let saved = self
            .engine
            .scan(self.blocks())
            .map(|pair| Ok(record(BLOCK, &[&pair?.1])));
        self.heads().map(Ok).chain(saved).chain(self.tail())
    }

    /// The records: a head, the small records, then blocks of versions in revision order. Large blocks are not copied:
    /// the engine lends their files, under these names.
    pub fn pieces<'a>(&'a self, names: &Names<'_>) -> Result<impl Iterator<Item = Result<Piece>> + use<'a>> {
        let lent = self.engine.lend(self.blocks(), names)?;
        let saved = lent.into_iter().map(|(_, lent)| match lent {
            Lent::Value(block) => Piece::Whole(record(BLOCK, &[&block])),
            Lent::At(place) => Piece::Apart(BLOCK, place),
        });
        let heads = self.heads().map(Piece::Whole);
        let tail = self.tail().map(|record| record.map(Piece::Whole));
        Ok(heads.chain(saved).map(Ok).chain(tail))
    }

    /// What stands before the blocks.
    fn heads(&self) -> impl Iterator<Item = Bytes> + '_ {
        let small = self.records.iter().map(|(key, value)| small_record(key, value));
        std::iter::once(self.head()).chain(small)
    }

    /// Blocks of what is not in the engine.
    fn tail(&self) -> impl Iterator<Item = Result<Bytes>> + '_ {
        packed(self.unsaved.iter().cloned().map(Ok))
    }

    fn head(&self) -> Bytes {
        head(self.sealed.revision, self.sealed.compacted, &self.sealed.mark)
    }

    /// The blocks in the engine that are in it: those saved since it began are in `unsaved`. No other is asked for, as an
    /// engine that lends does it by files.
    fn blocks(&self) -> Range<Bytes> {
        keys::blocks_until(self.saved.main, self.saved.sub)
    }
}

/// The records of a snapshot of what no store holds yet: a backup that is restored. It carries no mark of the shell;
/// [`with_mark`] gives it one.
pub fn records_of(
    revision: i64,
    compacted: i64,
    small: Vec<Pair>,
    versions: impl Iterator<Item = std::io::Result<Version>>,
) -> impl Iterator<Item = std::io::Result<Bytes>> {
    let head = head(revision, compacted, &Bytes::new());
    let small = small.into_iter().map(|(key, value)| small_record(&key, &value));
    let records = std::iter::once(head).chain(small).map(Ok);
    records.chain(packed(versions))
}

/// A small record, for a snapshot.
pub fn small_record(key: &Bytes, value: &[u8]) -> Bytes {
    record(RECORD, &[&length(key), key, value])
}

/// The same head with another mark of the shell; other records as they are.
pub fn with_mark(record: Bytes, mark: &Bytes) -> Result<Bytes> {
    if record.first() != Some(&HEAD) {
        return Ok(record);
    }
    let sealed = parse_head(record.slice(1..))?;
    Ok(head(sealed.revision, sealed.compacted, mark))
}

/// Packs versions as they come.
fn packed<E>(
    versions: impl Iterator<Item = std::result::Result<Version, E>>,
) -> impl Iterator<Item = std::result::Result<Bytes, E>> {
    let (mut versions, mut packing) = (versions.fuse(), Packing::default());
    std::iter::from_fn(move || {
        while !packing.is_full() {
            match versions.next() {
                Some(Ok(version)) => packing.add(&version),
                Some(Err(error)) => return Some(Err(error)),
                None => break,
            }
        }
        packing.first()?;
        Some(Ok(record(BLOCK, &[&packing.take()])))
    })
}

fn head(revision: i64, compacted: i64, mark: &Bytes) -> Bytes {
    record(HEAD, &[&encode_mark(revision, compacted), mark])
}

fn length(key: &Bytes) -> [u8; 4] {
    (key.len() as u32).to_le_bytes()
}

fn record(kind: u8, parts: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    out.put_u8(kind);
    for part in parts {
        out.put_slice(part);
    }
    out.freeze()
}

struct Loading {
    batch: Batch,
    bytes: usize,
    sealed: Option<Sealed>,
}

impl Loading {
    fn take(&mut self, engine: &dyn Engine, record: Bytes) -> Result<()> {
        let kind = *record
            .first()
            .ok_or_else(|| corrupt("a snapshot record is empty"))?;
        let body = record.slice(1..);
        self.bytes += body.len();
        match kind {
            HEAD => self.sealed = Some(parse_head(body)?),
            RECORD => {
                let (key, value) = parse_record(body)?;
                self.batch.put(key, value);
            }
            BLOCK => {
                let first = Block::parse(body.clone())?.get(0)?.revision;
                self.batch.put(keys::block(first.main, first.sub), body);
            }
            _ => return Err(corrupt("a snapshot record is of unknown kind")),
        }
        if self.bytes > LOAD_BATCH {
            engine.commit(std::mem::take(&mut self.batch))?;
            self.bytes = 0;
        }
        Ok(())
    }
}

fn parse_head(mut body: Bytes) -> Result<Sealed> {
    if body.len() < 16 {
        return Err(corrupt("the snapshot's head is cut short"));
    }
    let (revision, compacted) = decode_mark(body.split_to(16))?;
    Ok(Sealed {
        revision,
        compacted,
        mark: body,
        unsaved: false,
    })
}

fn parse_record(body: Bytes) -> Result<Pair> {
    let short = || corrupt("a snapshot record is cut short");
    let length = body
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes)
        .ok_or_else(short)?;
    let end = 4 + length as usize;
    if body.len() < end {
        return Err(short());
    }
    Ok((body.slice(4..end), body.slice(end..)))
}

fn corrupt(what: &str) -> Error {
    Error::Corrupt(what.to_string())
}
