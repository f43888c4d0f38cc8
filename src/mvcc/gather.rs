//! Gathering: from versions in the order in which they came to be to the index, which has them by key.
//!
//! A start finds every version once. To put each into an index where its key belongs takes a search through memory that is
//! in no cache of the processor. To sort them takes a fifth of that: of each key eight bytes are looked at as one number,
//! and where these are equal, the next eight.
//!
//! ```text
//! keys     /jobs/a      /jobs/b      /jobs/a/1
//! first    "/jobs/a\0"  "/jobs/b\0"  "/jobs/a/"       sorted by it: /jobs/a  /jobs/a/1  /jobs/b
//! ```

use super::history::{History, Meta};
use super::index::Index;

/// Bytes of a key that are one number.
const WORD: usize = size_of::<u64>();
/// So few are compared as they are, and those that are alike for so long.
const FEW: usize = 16;
const LONG: usize = if cfg!(test) { 2 * WORD } else { 32 * WORD };

/// Versions without their values, in revision order.
#[derive(Debug, Default)]
pub struct Gathered {
    /// All keys, one behind the other, and where each ends.
    keys: Vec<u8>,
    ends: Vec<usize>,
    metas: Vec<Meta>,
}

/// A version's number, and some of its key.
type Item = (u64, usize);

impl Gathered {
    /// Adds the next version.
    pub fn add(&mut self, key: &[u8], meta: Meta) {
        self.keys.extend_from_slice(key);
        self.ends.push(self.keys.len());
        self.metas.push(meta);
    }

    /// Makes room for this many times as much as there is, if the system has it. A row that grows by halves is copied, and
    /// leaves as much memory behind as it has at the end; room that is not used costs nothing.
    pub fn make_room(&mut self, times: usize) {
        // Without it, they grow.
        let _ = self.keys.try_reserve(times.saturating_mul(self.keys.len()));
        let _ = self.ends.try_reserve(times.saturating_mul(self.ends.len()));
        let _ = self.metas.try_reserve(times.saturating_mul(self.metas.len()));
    }

    fn key(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.keys[start..self.ends[number]]
    }

    /// The index of them.
    pub fn index(&self) -> Index {
        let mut order: Vec<Item> = (0..self.metas.len()).map(|number| (0, number)).collect();
        self.sort(&mut order, 0);
        let of_one_key = order.chunk_by(|(_, one), (_, other)| self.key(*one) == self.key(*other));
        Index::of(of_one_key.map(|versions| {
            let number = |at: usize| versions[at].1;
            let mut history = History::new(self.metas[number(0)]);
            for at in 1..versions.len() {
                history.push(self.metas[number(at)]);
            }
            (self.key(number(0)), history)
        }))
    }

    /// Sorts versions whose keys are alike up to a length: by key, then as they came.
    fn sort(&self, items: &mut [Item], alike: usize) {
        let rest = |number: usize| self.key(number).get(alike..).unwrap_or_default();
        let are_alike = alike == LONG || items.iter().all(|(_, number)| rest(*number).is_empty());
        if are_alike || items.len() <= FEW {
            return items.sort_unstable_by(|(_, one), (_, other)| {
                let keys = self.key(*one).cmp(self.key(*other));
                keys.then(one.cmp(other))
            });
        }
        for (word, number) in &mut *items {
            *word = first_word(rest(*number));
        }
        items.sort_unstable();
        for equal in items.chunk_by_mut(|(one, _), (other, _)| one == other) {
            if equal.len() > 1 {
                self.sort(equal, alike + WORD);
            }
        }
    }
}

/// The first bytes as a number that is ordered as they are; what is missing counts as zeros.
fn first_word(bytes: &[u8]) -> u64 {
    let mut word = [0; WORD];
    let length = bytes.len().min(WORD);
    word[..length].copy_from_slice(&bytes[..length]);
    u64::from_be_bytes(word)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Bound;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::Revision;
    use super::*;

    fn meta(main: i64) -> Meta {
        Meta {
            revision: Revision { main, sub: 0 },
            create_revision: main,
            version: 1,
            lease: 0,
        }
    }

    /// Keys that are alike for long, that are the beginning of others, or differ by zeros at their end.
    fn key(rng: &mut StdRng) -> Vec<u8> {
        let mut key = b"/registry/pods/default/"[..rng.random_range(0..=23)].to_vec();
        let letters = [0, 0, b'a', b'b', 0xff];
        let length = rng.random_range(0..6);
        key.extend((0..length).map(|_| letters[rng.random_range(0..letters.len())]));
        key
    }

    #[test]
    fn the_index_has_what_was_gathered_in_order() {
        let seed = 5;
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for count in [0, 1, 5, 300, 20_000] {
            let (mut gathered, mut model) = (Gathered::default(), BTreeMap::<Vec<u8>, Vec<Meta>>::new());
            for main in 2..2 + count {
                let key = key(&mut rng);
                gathered.add(&key, meta(main));
                model.entry(key).or_default().push(meta(main));
            }
            let index = gathered.index();
            assert_eq!(index.len(), model.len());
            let found = index.range((Bound::Unbounded, Bound::Unbounded));
            let found =
                found.map(|(name, history)| (name.to_bytes().to_vec(), history.kept(0, <[Meta]>::to_vec)));
            assert!(found.eq(model.clone()));
            for (key, metas) in &model {
                assert_eq!(
                    index.get(key).and_then(|history| history.at(i64::MAX)),
                    metas.last().copied()
                );
            }
        }
    }
}
