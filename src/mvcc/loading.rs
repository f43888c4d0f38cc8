//! Loading: from versions that were found to their pairs, wherever these are.
//!
//! ```text
//! the newest, in memory  ──►  read before, in the cache  ──►  a block of the engine
//! ```
//!
//! Many are loaded together: under few holds of the lock, and each block is read once, as keys that were written one
//! after the other lie in the same. Pairs are shown, not given, as an answer is encoded from where they are.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::Deref;

use smallvec::SmallVec;

use super::block::{Block, Version};
use super::{Inner, Revision, Store};
use crate::pb::mvccpb::KeyValue;
use crate::storage::{Engine, Error, Result, keys};

/// Versions looked for under one hold of the lock: a large range must not stop the writer.
const AT_ONCE: usize = 200;

/// Versions that are looked up, and touched, before the first of them is shown.
const AHEAD: usize = 16;
/// Bytes that the processor fetches at once, and how many times of a value: it goes on by itself.
const LINE: usize = 64;
const LINES: usize = 16;

/// Pairs that were read from the engine for those who wait for them.
type Loaded = BTreeMap<Revision, KeyValue>;
/// Versions that are in memory, or not.
type LookedUp<'a> = SmallVec<[Option<&'a Version>; AHEAD]>;

impl Store {
    /// Shows the pairs of versions, in the order in which they are named. `lock` is how the caller looks at what is in
    /// memory.
    pub(super) fn each<G: Deref<Target = Inner>>(
        &self,
        lock: impl Fn() -> G,
        mut revisions: &[Revision],
        visit: &mut dyn FnMut(&KeyValue),
    ) -> Result<()> {
        let mut loaded = Loaded::new();
        while !revisions.is_empty() {
            let (next, rest) = revisions.split_at(revisions.len().min(AT_ONCE));
            let shown = self.show(&lock(), next, &mut loaded, visit);
            if shown == next.len() {
                revisions = rest;
                continue;
            }
            revisions = &revisions[shown..];
            // What is not in memory was saved before it left, so it is in the engine.
            let missing = self.missing(&lock(), &next[shown..]);
            loaded = self.read_blocks(missing)?;
        }
        Ok(())
    }

    /// Shows pairs up to the first that is not in memory; how many.
    fn show(
        &self,
        inner: &Inner,
        revisions: &[Revision],
        loaded: &mut Loaded,
        visit: &mut dyn FnMut(&KeyValue),
    ) -> usize {
        let mut cache = None;
        let mut shown = 0;
        for some in revisions.chunks(AHEAD) {
            let found: LookedUp<'_> = some.iter().map(|revision| inner.recent.get(*revision)).collect();
            touch(&found);
            for (revision, found) in some.iter().zip(found) {
                if let Some(version) = found {
                    visit(&version.kv);
                } else if let Some(pair) = loaded.remove(revision) {
                    visit(&pair);
                } else if let Some(pair) = cache.get_or_insert_with(|| self.cache()).get(*revision) {
                    visit(pair);
                } else {
                    return shown;
                }
                shown += 1;
            }
        }
        shown
    }

    /// Those that have to be read from the engine, the first of them in any case.
    fn missing(&self, inner: &Inner, revisions: &[Revision]) -> Vec<Revision> {
        let cache = self.cache();
        let mut missing: Vec<Revision> = revisions.iter().take(1).copied().collect();
        let later = revisions.iter().skip(1);
        missing.extend(
            later.filter(|revision| inner.recent.get(**revision).is_none() && !cache.has(**revision)),
        );
        missing
    }

    fn read_blocks(&self, mut revisions: Vec<Revision>) -> Result<Loaded> {
        // Those of one block stand together then.
        revisions.sort_unstable();
        let engine = self.engine();
        let mut blocks = Blocks::new(&*engine);
        let find = |revision: &Revision| Ok((*revision, blocks.find(*revision)?.kv));
        let loaded: Loaded = revisions.iter().map(find).collect::<Result<_>>()?;
        let mut cache = self.cache();
        for (revision, pair) in &loaded {
            cache.add(*revision, pair);
        }
        Ok(loaded)
    }

    /// The pair of a version, for whoever reads everything once: it takes no place in the cache.
    pub(super) fn load_passing(&self, revision: Revision) -> Result<KeyValue> {
        if let Some(version) = self.read().recent.get(revision) {
            return Ok(version.kv.clone());
        }
        Ok(Blocks::new(&*self.engine()).find(revision)?.kv)
    }
}

/// Has the processor fetch pairs into its caches: those that nothing depends on it fetches together, and the time of a
/// range is mostly that of waiting for memory.
fn touch(found: &LookedUp<'_>) {
    if found.len() < 2 {
        return;
    }
    let versions = || found.iter().copied().flatten();
    black_box(versions().fold(0, |sum, version| sum ^ version.kv.value.len()));
    // The key stands before the value where a put brought both, and the value's last line begins where none of its own does.
    let lines = versions().flat_map(|version| {
        let KeyValue { key, value, .. } = &version.kv;
        let within = value.iter().step_by(LINE).take(LINES);
        within.chain(key.first()).chain(value.last())
    });
    black_box(lines.fold(0, |sum, byte| sum ^ byte));
}

/// The blocks of an engine, of which the last one read is kept.
struct Blocks<'a> {
    engine: &'a dyn Engine,
    last: Option<Block>,
}

impl<'a> Blocks<'a> {
    fn new(engine: &'a dyn Engine) -> Blocks<'a> {
        Blocks { engine, last: None }
    }

    /// The version of a revision, which is there.
    fn find(&mut self, revision: Revision) -> Result<Version> {
        if let Some(block) = &self.last
            && let Some(version) = block.find(revision)?
        {
            return Ok(version);
        }
        let missing = || {
            let Revision { main, sub } = revision;
            Error::Corrupt(format!("no version at revision {main}.{sub}"))
        };
        let (first, last) = (keys::blocks().start, keys::block(revision.main, revision.sub));
        let (_, bytes) = self.engine.floor(&first, &last)?.ok_or_else(missing)?;
        let block = Block::parse(bytes)?;
        let version = block.find(revision)?.ok_or_else(missing)?;
        self.last = Some(block);
        Ok(version)
    }
}
