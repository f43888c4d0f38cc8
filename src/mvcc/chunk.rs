//! A row of keys that stand one after the other in the index, each with its past.
//!
//! Keys that are neighbours begin alike, most of all where they are long: what they share is kept once, and what is left
//! is mostly so short that it lies in the row itself. So a search compares few bytes, and follows no pointer.
//!
//! ```text
//! prefix  /registry/pods/default/web-
//! items   1  10  11  2  3                   each with its history
//! ```
//!
//! A key that begins otherwise makes the prefix shorter; it becomes longer when a row is halved.

use std::ops::Range;

use super::history::History;
use super::key::{Key, Name};

/// Keys in a full chunk; so few in tests that there are many.
pub(super) const FULL: usize = if cfg!(test) { 4 } else { 64 };
/// A chunk grows by so many places.
const STEP: usize = 8;

/// What is left of a key behind the prefix, and the key's past.
type Item = (Key, History);

/// A sorted row.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    prefix: Box<[u8]>,
    items: Vec<Item>,
}

/// How many bytes are alike at the beginning.
fn alike(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

impl Chunk {
    fn of(key: &[u8], history: History) -> Chunk {
        Chunk {
            prefix: key.into(),
            items: vec![(Key::default(), history)],
        }
    }

    /// Of keys in order, at most [`FULL`].
    pub(super) fn of_sorted(keys: Vec<(&[u8], History)>) -> Chunk {
        let prefix = match &keys[..] {
            [(first, _), .., (last, _)] => &first[..alike(first, last)],
            [(one, _)] => one,
            [] => &[],
        };
        Chunk {
            prefix: prefix.into(),
            items: keys
                .into_iter()
                .map(|(key, history)| (Key::from(&key[prefix.len()..]), history))
                .collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// The key at a place.
    pub(super) fn name(&self, at: usize) -> Option<Name<'_>> {
        let (rest, _) = self.items.get(at)?;
        Some(Name::new(&self.prefix, rest))
    }

    /// Where a key is, or would be.
    pub(super) fn place(&self, key: &[u8]) -> Result<usize, usize> {
        match key.strip_prefix(&*self.prefix) {
            Some(rest) => self.items.binary_search_by(|(other, _)| other[..].cmp(rest)),
            // All of them begin with the prefix: all are on the same side.
            None if *key < *self.prefix => Err(0),
            None => Err(self.items.len()),
        }
    }

    pub(super) fn history(&self, at: usize) -> &History {
        &self.items[at].1
    }

    pub(super) fn history_mut(&mut self, at: usize) -> &mut History {
        &mut self.items[at].1
    }

    /// Keys and their past from one place to another.
    pub(super) fn items(&self, places: Range<usize>) -> impl Iterator<Item = (Name<'_>, &History)> {
        let items = self.items[places].iter();
        items.map(|(rest, history)| (Name::new(&self.prefix, rest), history))
    }

    /// The same, to change their past.
    pub(super) fn items_mut(
        &mut self,
        places: Range<usize>,
    ) -> impl Iterator<Item = (Name<'_>, &mut History)> {
        let prefix = &self.prefix;
        let items = self.items[places].iter_mut();
        items.map(|(rest, history)| (Name::new(prefix, rest), history))
    }

    /// Adds a key at its place. If there is no room, what is behind some place moves to another chunk, which is returned.
    pub(super) fn insert(&mut self, at: usize, key: &[u8], history: History) -> Option<Chunk> {
        if self.items.len() == FULL && at == FULL {
            return Some(Chunk::of(key, history));
        }
        if self.items.is_empty() {
            *self = Chunk::of(key, history);
            return None;
        }
        let mut behind = (self.items.len() == FULL).then(|| self.halve());
        match (at.checked_sub(FULL / 2), &mut behind) {
            (Some(at), Some(behind)) => behind.add(at, key, history),
            _ => self.add(at, key, history),
        }
        behind
    }

    fn add(&mut self, at: usize, key: &[u8], history: History) {
        self.shorten(alike(&self.prefix, key));
        if self.items.len() == self.items.capacity() {
            let places = (self.items.len() / STEP + 1) * STEP;
            self.items.reserve_exact(places.min(FULL) - self.items.len());
        }
        let rest = Key::from(&key[self.prefix.len()..]);
        self.items.insert(at, (rest, history));
    }

    /// Takes the second half out.
    fn halve(&mut self) -> Chunk {
        let mut behind = Chunk {
            prefix: self.prefix.clone(),
            items: self.items.split_off(FULL / 2),
        };
        self.items.shrink_to(FULL / 2 + STEP);
        self.lengthen();
        behind.lengthen();
        behind
    }

    /// Cuts the prefix to a length: what is cut off goes back into the keys.
    fn shorten(&mut self, length: usize) {
        if length == self.prefix.len() {
            return;
        }
        let (kept, cut) = self.prefix.split_at(length);
        for (rest, _) in &mut self.items {
            *rest = Key::from(&[cut, &rest[..]].concat()[..]);
        }
        self.prefix = kept.into();
    }

    /// Takes into the prefix what all keys begin with: the first and the last do, and others are between them.
    fn lengthen(&mut self) {
        let [(first, _), .., (last, _)] = &self.items[..] else {
            return;
        };
        let more = alike(first, last);
        self.prefix = [&*self.prefix, &first[..more]].concat().into();
        for (rest, _) in &mut self.items {
            *rest = Key::from(&rest[more..]);
        }
    }

    /// Removes what is at a place.
    pub(super) fn remove(&mut self, at: usize) {
        self.items.remove(at);
        if self.items.len() + 2 * STEP < self.items.capacity() {
            self.items.shrink_to(self.items.len() + STEP);
        }
    }

    /// How many keys stand before a key.
    pub(super) fn before(&self, key: &[u8]) -> usize {
        self.place(key).unwrap_or_else(|at| at)
    }

    /// How many keys stand before a key or are it.
    pub(super) fn upto(&self, key: &[u8]) -> usize {
        self.place(key).map_or_else(|at| at, |at| at + 1)
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.items.capacity()
    }

    #[cfg(test)]
    pub(super) fn prefix(&self) -> &[u8] {
        &self.prefix
    }
}
