//! Defragmenting: the engine uses freed space again, but its files never shrink. So everything that is left is copied
//! into a fresh engine beside it, which then takes its place.
//!
//! Nothing stops meanwhile. The saver copies in slices, in key order; between slices it goes on saving and reclaiming,
//! and repeats each of those batches on the copy:
//!
//! ```text
//! copied up to here ──┐
//! b0002  b0107  b0214 │ b0318  b0402        a batch that changes b0107 and b0402 is made on both engines; b0402 is
//!                                           copied once more when the copy gets there, which does no harm
//! ```
//!
//! **Crashes.** The marks, without which an engine is not taken for a state, are put into the copy last, once all of
//! it is on disk. A kill before that leaves the old engine as it was; a kill after it, two engines of which each is
//! whole. What is not in use is removed at the next start.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};

use super::{Saver, Store};
use crate::storage::{Batch, Engine, Result, keys};

/// Bytes copied in one slice; so few in tests that a small state takes many.
const SLICE_BYTES: usize = if cfg!(test) { 500 } else { 1 << 20 };

/// A copy under way.
pub(super) struct Copy {
    to: Arc<dyn Engine>,
    /// Everything before this key is copied.
    from: Bytes,
    bytes_before: u64,
    is_whole: bool,
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.is_whole {
            self.to.discard();
        }
    }
}

/// What a defragmentation did, in bytes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defragmented {
    /// Before it.
    pub before: u64,
    /// After it.
    pub after: u64,
}

fn is_mark(key: &[u8]) -> bool {
    key == keys::STATE_MARK || key == keys::SHELL_MARK
}

impl Copy {
    /// Makes a change of the old engine on the copy too.
    pub(super) fn follow(&self, batch: &Batch) -> Result<()> {
        self.to.commit(batch.without(is_mark))
    }

    /// Copies the next slice; whether that was the last.
    fn step(&mut self, engine: &dyn Engine) -> Result<bool> {
        let mut batch = Batch::default();
        let (mut bytes, mut last) = (0, None);
        for pair in engine.scan(self.rest()) {
            let (key, value) = pair?;
            bytes += key.len() + value.len();
            last = Some(key.clone());
            if !is_mark(&key) {
                batch.put(key, value);
            }
            if bytes >= SLICE_BYTES {
                break;
            }
        }
        self.to.commit(batch)?;
        match last {
            Some(last) => {
                self.from = successor(&last);
                Ok(false)
            }
            None => Ok(true),
        }
    }

    fn rest(&self) -> Range<Bytes> {
        self.from.clone()..keys::END
    }
}

/// The key that follows on this one.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

impl Saver {
    /// Begins to copy everything into an empty engine, which takes the old one's place in the end. One at a time.
    pub fn defragment(&self, to: Arc<dyn Engine>) -> Result<()> {
        let bytes_before = self.store.size_on_disk()?;
        *self.copying() = Some(Copy {
            to,
            from: Bytes::new(),
            bytes_before,
            is_whole: false,
        });
        Ok(())
    }

    /// Whether a copy is under way.
    pub fn is_defragmenting(&self) -> bool {
        self.copying().is_some()
    }

    /// Copies a slice; with the last one the copy takes the old engine's place.
    pub fn defragment_step(&self) -> Result<Option<Defragmented>> {
        let mut copying = self.copying();
        let Some(copy) = copying.as_mut() else {
            return Ok(None);
        };
        if !copy.step(&*self.store.engine())? {
            return Ok(None);
        }
        finish(&self.store, copy)?;
        let done = Defragmented {
            before: copy.bytes_before,
            after: copy.to.size_on_disk()?,
        };
        *copying = None;
        Ok(Some(done))
    }

    pub(super) fn copying(&self) -> std::sync::MutexGuard<'_, Option<Copy>> {
        self.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn finish(store: &Store, copy: &mut Copy) -> Result<()> {
    let old = store.engine();
    let mut marks = Batch::default();
    for mark in [keys::STATE_MARK, keys::SHELL_MARK] {
        if let Some(value) = old.get(mark)? {
            marks.put(Bytes::from_static(mark), value);
        }
    }
    copy.to.flush()?;
    copy.to.commit(marks)?;
    copy.to.flush()?;
    copy.is_whole = true;
    store.set_engine(copy.to.clone());
    // Whoever reads from it finishes first.
    old.discard();
    Ok(())
}
