//! The index: every key, in order, with its past.
//!
//! It is the largest thing in memory, so its nodes are full. Keys lie in [`chunk`](super::chunk)s, sorted rows of up to
//! [`FULL`], and a map finds a chunk by a key that nothing in it is less than:
//!
//! ```text
//! map      ""            "c"              "k"
//! chunks   a  aa  b      d  e  f  ff      k  l
//! ```
//!
//! A full chunk is halved, but when a key comes behind its last: the key then begins the next one. So keys that come in
//! order, as names made of numbers or of times do, leave full chunks behind. A map of single keys would leave its nodes
//! half empty.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::Bounds;
use super::chunk::{Chunk, FULL};
use super::history::History;
use super::key::{Key, Name};

/// The map of all keys.
#[derive(Debug)]
pub struct Index {
    /// The first is that of the empty key; no other one is empty.
    chunks: BTreeMap<Key, Chunk>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            chunks: BTreeMap::from([(Key::default(), Chunk::default())]),
            len: 0,
        }
    }
}

impl Index {
    /// Of keys in order, each once, with their past: all chunks are full, but for the last.
    pub fn of<'a>(keys: impl Iterator<Item = (&'a [u8], History)>) -> Index {
        let (mut keys, mut chunks, mut len) = (keys.peekable(), Vec::new(), 0);
        while let Some((first, _)) = keys.peek() {
            let first = if len == 0 {
                Key::default()
            } else {
                Key::from(*first)
            };
            let chunk = Chunk::of_sorted(keys.by_ref().take(FULL).collect());
            len += chunk.len();
            chunks.push((first, chunk));
        }
        match len {
            0 => Index::default(),
            _ => Index {
                chunks: chunks.into_iter().collect(),
                len,
            },
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The chunk that a key is in, if it is anywhere.
    fn chunk(&self, key: &[u8]) -> (&Key, &Chunk) {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.chunks.range::<[u8], _>(upto).next_back().expect(FIRST)
    }

    fn chunk_mut(&mut self, key: &[u8]) -> &mut Chunk {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.chunks.range_mut::<[u8], _>(upto).next_back().expect(FIRST).1
    }

    /// The past of a key.
    pub fn get(&self, key: &[u8]) -> Option<&History> {
        let (_, chunk) = self.chunk(key);
        chunk.place(key).ok().map(|at| chunk.history(at))
    }

    /// Lets `change` change the past of a key, or give it one if it has none.
    pub fn change(&mut self, key: &[u8], change: impl FnOnce(Option<&mut History>) -> Option<History>) {
        let chunk = self.chunk_mut(key);
        match chunk.place(key) {
            Ok(at) => drop(change(Some(chunk.history_mut(at)))),
            Err(at) => {
                let Some(history) = change(None) else { return };
                let behind = chunk.insert(at, key, history);
                let behind = behind.and_then(|behind| Some((behind.name(0)?.to_key(), behind)));
                self.chunks.extend(behind);
                self.len += 1;
            }
        }
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &[u8]) {
        let chunk = self.chunk_mut(key);
        let Ok(at) = chunk.place(key) else { return };
        chunk.remove(at);
        if chunk.len() == 0 {
            let first = self.chunk(key).0.clone();
            if !first.is_empty() {
                self.chunks.remove(&first);
            }
        }
        self.len -= 1;
    }

    /// All keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Name<'_>, &History)> {
        self.range((Bound::Unbounded, Bound::Unbounded))
    }

    /// The keys of a range, in order.
    pub fn range<'a>(&'a self, (start, end): Bounds<'a>) -> impl Iterator<Item = (Name<'a>, &'a History)> {
        let (first, chunk) = self.chunk(begin(&start));
        // Of chunks that begin behind the end nothing is wanted.
        let last = match end {
            Bound::Included(end) | Bound::Excluded(end) => Bound::Included(end.max(first)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let later = self.chunks.range::<[u8], _>((Bound::Excluded(&first[..]), last));
        let from = before(chunk, &start);
        let first = std::iter::once((from, chunk));
        let chunks = first.chain(later.map(|(_, chunk)| (0, chunk)));
        chunks.flat_map(move |(from, chunk)| {
            let to = match end {
                Bound::Unbounded => chunk.len(),
                Bound::Included(end) => chunk.upto(end),
                Bound::Excluded(end) => chunk.before(end),
            };
            chunk.items(from..to.max(from))
        })
    }

    /// The keys from somewhere on, in order, to change their past.
    pub fn range_mut(&mut self, start: Bound<&[u8]>) -> impl Iterator<Item = (Name<'_>, &mut History)> {
        let (first, chunk) = self.chunk(begin(&start));
        let (first, from) = (first.clone(), before(chunk, &start));
        let chunks = self.chunks.range_mut(first..);
        chunks.enumerate().flat_map(move |(number, (_, chunk))| {
            let from = if number == 0 { from } else { 0 };
            chunk.items_mut(from..chunk.len())
        })
    }
}

/// Why there is a chunk for every key.
const FIRST: &str = "the first chunk is that of the empty key";

/// A key that no key of a range is less than.
fn begin<'a>(start: &Bound<&'a [u8]>) -> &'a [u8] {
    match start {
        Bound::Included(key) | Bound::Excluded(key) => key,
        Bound::Unbounded => &[],
    }
}

/// How many keys of a chunk stand before a range.
fn before(chunk: &Chunk, start: &Bound<&[u8]>) -> usize {
    match start {
        Bound::Unbounded => 0,
        Bound::Included(start) => chunk.before(start),
        Bound::Excluded(start) => chunk.upto(start),
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::Revision;
    use super::super::history::Meta;
    use super::*;

    fn history(main: i64) -> History {
        History::new(Meta {
            revision: Revision { main, sub: 0 },
            create_revision: main,
            version: 1,
            lease: 0,
        })
    }

    fn main(history: &History) -> i64 {
        history.at(i64::MAX).map_or(0, |meta| meta.revision.main)
    }

    fn add(index: &mut Index, key: &[u8], main: i64) {
        index.change(key, |found| match found {
            Some(found) => {
                *found = history(main);
                None
            }
            None => Some(history(main)),
        });
    }

    fn is_before(key: &[u8], start: &Bound<&[u8]>) -> bool {
        match start {
            Bound::Unbounded => false,
            Bound::Included(start) => key < *start,
            Bound::Excluded(start) => key <= *start,
        }
    }

    fn bound(rng: &mut StdRng, keys: &[&'static [u8]]) -> Bound<&'static [u8]> {
        let key = keys[rng.random_range(0..keys.len())];
        match rng.random_range(0..3) {
            0 => Bound::Included(key),
            1 => Bound::Excluded(key),
            _ => Bound::Unbounded,
        }
    }

    /// The same as an ordered map, through additions, changes and removals, few and many keys.
    #[test]
    fn an_index_does_what_a_map_does() {
        let seed = 11;
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let keys: Vec<&'static [u8]> = (0..300)
            .map(|number| match number {
                0 => &[][..],
                _ => format!(
                    "{:03}/{}{}",
                    number % 20,
                    "x".repeat(number % 40),
                    number * 7 % 300
                )
                .into_bytes()
                .leak(),
            })
            .collect();
        let (mut index, mut model) = (Index::default(), BTreeMap::<Key, i64>::new());
        for step in 1..6000 {
            let key = keys[rng.random_range(0..keys.len())];
            match rng.random_bool(if step / 1000 % 2 == 0 { 0.8 } else { 0.2 }) {
                true => {
                    add(&mut index, key, step);
                    model.insert(Key::from(key), step);
                }
                false => {
                    index.remove(key);
                    model.remove(key);
                }
            }
            assert_eq!(index.len(), model.len());
            assert_eq!(index.get(key).map(main), model.get(key).copied());
            let (start, end) = (bound(&mut rng, &keys), bound(&mut rng, &keys));
            let within = |key: &Key| !is_before(key, &start);
            let from = model.iter().filter(|(key, _)| within(key));
            assert!(
                index
                    .range_mut(start)
                    .map(|(name, history)| (name.to_key(), main(history)))
                    .eq(from.clone().map(|(key, main)| (key.clone(), *main)))
            );
            let upto = from.filter(|(key, _)| match end {
                Bound::Unbounded => true,
                Bound::Included(end) => key[..] <= *end,
                Bound::Excluded(end) => key[..] < *end,
            });
            assert!(
                index
                    .range((start, end))
                    .map(|(name, history)| (name.to_key(), main(history)))
                    .eq(upto.map(|(key, main)| (key.clone(), *main)))
            );
        }
        let prefixes = index.chunks.values().map(|chunk| chunk.prefix().len());
        assert!(prefixes.max() > Some(4), "neighbours begin alike");
        assert!(index.chunks.len() > 5 && index.chunks.values().all(|chunk| chunk.len() <= FULL));
    }

    #[test]
    fn keys_in_order_leave_full_chunks_and_removed_ones_leave_none() {
        let mut index = Index::default();
        let key = |number: usize| format!("{number:04}").into_bytes();
        for number in 0..100 * FULL {
            add(&mut index, &key(number), 1);
        }
        assert_eq!(index.chunks.len(), 100);
        assert!(index.chunks.values().all(|chunk| chunk.capacity() == FULL));
        for number in 0..100 * FULL {
            index.remove(&key(number));
        }
        assert_eq!((index.chunks.len(), index.len()), (1, 0));
    }
}
