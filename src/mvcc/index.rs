//! The index: every key, in order, with its past.
//!
//! It is the largest thing in memory, so its nodes are full. Keys lie in *chunks*, sorted rows of up to [`FULL`], and a
//! map finds a chunk by a key that nothing in it is less than:
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
use super::history::History;
use super::key::Key;

/// Keys in a full chunk; so few in tests that there are many.
const FULL: usize = if cfg!(test) { 4 } else { 64 };
/// A chunk grows by so many places.
const STEP: usize = 8;

/// A key and its past.
type Item = (Key, History);

/// The map of all keys.
#[derive(Debug)]
pub struct Index {
    /// The first is that of the empty key; no other one is empty.
    chunks: BTreeMap<Key, Vec<Item>>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            chunks: BTreeMap::from([(Key::default(), Vec::new())]),
            len: 0,
        }
    }
}

/// Where a key is in a chunk, or would be.
fn place(chunk: &[Item], key: &[u8]) -> Result<usize, usize> {
    chunk.binary_search_by(|(other, _)| other[..].cmp(key))
}

/// Adds an item to a chunk. If there is no room, what is behind a place moves to another chunk, which is returned.
fn insert(chunk: &mut Vec<Item>, at: usize, item: Item) -> Option<Vec<Item>> {
    if chunk.len() < FULL {
        if chunk.len() == chunk.capacity() {
            let places = (chunk.len() / STEP + 1) * STEP;
            chunk.reserve_exact(places.min(FULL) - chunk.len());
        }
        chunk.insert(at, item);
        return None;
    }
    if at == FULL {
        return Some(vec![item]);
    }
    let mut behind = chunk.split_off(FULL / 2);
    chunk.shrink_to(FULL / 2 + STEP);
    match at.checked_sub(FULL / 2) {
        Some(at) => behind.insert(at, item),
        None => chunk.insert(at, item),
    }
    Some(behind)
}

impl Index {
    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The chunk that a key is in, if it is anywhere.
    fn chunk(&self, key: &[u8]) -> (&Key, &[Item]) {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let (first, chunk) = self.chunks.range::<[u8], _>(upto).next_back().expect(FIRST);
        (first, chunk)
    }

    fn chunk_mut(&mut self, key: &[u8]) -> &mut Vec<Item> {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.chunks.range_mut::<[u8], _>(upto).next_back().expect(FIRST).1
    }

    /// The past of a key.
    pub fn get(&self, key: &[u8]) -> Option<&History> {
        let (_, chunk) = self.chunk(key);
        place(chunk, key).ok().map(|at| &chunk[at].1)
    }

    /// Lets `change` change the past of a key, or give it one if it has none.
    pub fn change(&mut self, key: &[u8], change: impl FnOnce(Option<&mut History>) -> Option<History>) {
        let chunk = self.chunk_mut(key);
        match place(chunk, key) {
            Ok(at) => drop(change(Some(&mut chunk[at].1))),
            Err(at) => {
                let Some(history) = change(None) else { return };
                let behind = insert(chunk, at, (Key::from(key), history));
                self.chunks
                    .extend(behind.map(|behind| (behind[0].0.clone(), behind)));
                self.len += 1;
            }
        }
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &[u8]) {
        let chunk = self.chunk_mut(key);
        let Ok(at) = place(chunk, key) else { return };
        chunk.remove(at);
        if chunk.len() + 2 * STEP < chunk.capacity() {
            chunk.shrink_to(chunk.len() + STEP);
        }
        if chunk.is_empty() {
            let first = self.chunk(key).0.clone();
            if !first.is_empty() {
                self.chunks.remove(&first);
            }
        }
        self.len -= 1;
    }

    /// All keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &History)> {
        self.range((Bound::Unbounded, Bound::Unbounded))
    }

    /// The keys of a range, in order.
    pub fn range<'a>(&'a self, (start, end): Bounds<'a>) -> impl Iterator<Item = (&'a Key, &'a History)> {
        let (first, chunk) = self.chunk(begin(&start));
        let at = chunk.partition_point(|(key, _)| is_before(key, &start));
        let later = self
            .chunks
            .range::<[u8], _>((Bound::Excluded(&first[..]), Bound::Unbounded));
        let items = chunk[at..].iter().chain(later.flat_map(|(_, chunk)| chunk));
        items
            .take_while(move |(key, _)| match end {
                Bound::Unbounded => true,
                Bound::Included(end) => key[..] <= *end,
                Bound::Excluded(end) => key[..] < *end,
            })
            .map(|(key, history)| (key, history))
    }

    /// The keys from somewhere on, in order, to change their past.
    pub fn range_mut(&mut self, start: Bound<&[u8]>) -> impl Iterator<Item = (&Key, &mut History)> {
        let first = self.chunk(begin(&start)).0.clone();
        let chunks = self.chunks.range_mut(first..);
        chunks
            .flat_map(|(_, chunk)| chunk)
            .skip_while(move |(key, _)| is_before(key, &start))
            .map(|(key, history)| (&*key, history))
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

fn is_before(key: &[u8], start: &Bound<&[u8]>) -> bool {
    match start {
        Bound::Unbounded => false,
        Bound::Included(start) => key < *start,
        Bound::Excluded(start) => key <= *start,
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
                _ => format!("{:03}{}", number * 7 % 300, "x".repeat(number % 40))
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
                    .map(|(key, history)| (key.clone(), main(history)))
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
                    .map(|(key, history)| (key, main(history)))
                    .eq(upto.map(|(key, main)| (key, *main)))
            );
        }
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
