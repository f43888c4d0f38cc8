//! Pairs that were read from the engine, in memory up to a bound.
//!
//! A version never changes, so what is here is never wrong and nobody has to be told of a write. It is a table of small
//! sets: a version is in the set that its revision leads to, or nowhere. Which ones leave, the *clock* decides (Corbató,
//! "A paging experiment with the Multics system", 1969): a hand goes round the table, and takes what was not read since
//! it was there last.
//!
//! ```text
//! set     0           1           2           3
//!         7.0* 12.0   -    -      5.1  -      9.0* 3.0        * was read: passed over once
//!                                 ▲ hand
//! ```

use super::Revision;
use crate::pb::mvccpb::KeyValue;

use bytes::{Bytes, BytesMut};

/// Places in a set.
const WAYS: usize = 8;
/// Bytes of a pair for which there is a place, so that small pairs find room too.
const PAIR: usize = 384;
/// What a pair takes beside its key and value: itself, two counts of who shares its bytes.
const BESIDE: usize = size_of::<KeyValue>() + 64;
/// A pair that would take more than this part of all room is not kept.
const LARGEST: usize = 16;
/// Spreads revisions, which are consecutive, over the sets (2^64 divided by the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A place for a pair.
#[derive(Debug, Default, Clone)]
struct Place {
    revision: Revision,
    /// Since the hand passed.
    was_read: bool,
    pair: Option<Box<KeyValue>>,
}

/// The table.
#[derive(Debug)]
pub struct Cache {
    /// None before there is something to keep.
    places: Vec<Place>,
    /// Bytes of the pairs, at most.
    bound: usize,
    bytes: usize,
    hand: usize,
}

/// Bytes that a pair takes in memory.
fn cost(pair: &KeyValue) -> usize {
    BESIDE + pair.key.len() + pair.value.len()
}

impl Cache {
    /// Keeps this many bytes of pairs.
    pub fn new(bound: usize) -> Cache {
        Cache {
            places: Vec::new(),
            bound,
            bytes: 0,
            hand: 0,
        }
    }

    /// The first place of the set that a revision leads to.
    fn set(&self, revision: Revision) -> usize {
        let number = (revision.main as u64).wrapping_add(u64::from(revision.sub) << 40);
        let sets = self.places.len() / WAYS;
        // The upper half of the product is spread best.
        ((number.wrapping_mul(SPREAD) >> 32) as usize % sets.max(1)) * WAYS
    }

    /// The pair of a version, if it is here.
    pub fn get(&mut self, revision: Revision) -> Option<&KeyValue> {
        let set = self.set(revision);
        let mut places = self.places.iter_mut().skip(set).take(WAYS);
        let place = places.find(|place| place.revision == revision)?;
        place.was_read = true;
        place.pair.as_deref()
    }

    /// Whether the pair of a version is here.
    pub fn has(&self, revision: Revision) -> bool {
        let mut places = self.places.iter().skip(self.set(revision)).take(WAYS);
        places.any(|place| place.revision == revision && place.pair.is_some())
    }

    /// Keeps a copy of a pair, which may share its bytes with others that nobody needs.
    pub fn add(&mut self, revision: Revision, pair: &KeyValue) {
        if cost(pair) > self.bound / LARGEST {
            return;
        }
        if self.places.is_empty() {
            let sets = (self.bound / PAIR / WAYS).max(1);
            self.places.resize(sets * WAYS, Place::default());
        }
        let set = self.set(revision);
        let at = self.room_in(set);
        self.empty(at);
        self.bytes += cost(pair);
        self.places[at] = Place {
            revision,
            was_read: false,
            pair: Some(Box::new(copy(pair))),
        };
        while self.bytes > self.bound {
            self.tick(at);
        }
    }

    /// A place of a set: a free one, or one that was not read lately, or any.
    fn room_in(&mut self, set: usize) -> usize {
        let places = &mut self.places[set..set + WAYS];
        let free = places.iter().position(|place| place.pair.is_none());
        let unread = || places.iter().position(|place| !place.was_read);
        if let Some(at) = free.or_else(unread) {
            return set + at;
        }
        places.iter_mut().for_each(|place| place.was_read = false);
        set
    }

    fn empty(&mut self, at: usize) {
        if let Some(pair) = std::mem::take(&mut self.places[at]).pair {
            self.bytes -= cost(&pair);
        }
    }

    /// The hand moves on by one place, and takes what it finds, but for what was just put there.
    fn tick(&mut self, newest: usize) {
        let at = self.hand;
        self.hand = (at + 1) % self.places.len();
        match self.places[at].was_read {
            true => self.places[at].was_read = false,
            false if at != newest => self.empty(at),
            false => {}
        }
    }
}

/// The same pair, with bytes of its own.
fn copy(pair: &KeyValue) -> KeyValue {
    let mut bytes = BytesMut::with_capacity(pair.key.len() + pair.value.len());
    bytes.extend_from_slice(&pair.key);
    bytes.extend_from_slice(&pair.value);
    let mut value: Bytes = bytes.freeze();
    let key = value.split_to(pair.key.len());
    KeyValue { key, value, ..*pair }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn revision(main: i64) -> Revision {
        Revision {
            main,
            sub: (main % 3) as u32,
        }
    }

    fn pair(main: i64) -> KeyValue {
        KeyValue {
            key: Bytes::from(format!("key {main}")),
            value: Bytes::from(vec![b'v'; (main * 37 % 700) as usize]),
            mod_revision: main,
            ..KeyValue::default()
        }
    }

    fn kept(cache: &Cache) -> usize {
        cache
            .places
            .iter()
            .filter_map(|place| place.pair.as_deref())
            .map(cost)
            .sum()
    }

    /// Whatever is asked for is what was put in, or nothing; and it is never more than it may be.
    #[test]
    fn what_is_there_is_what_was_put_in() {
        let seed = 3;
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut cache = Cache::new(40 << 10);
        let (mut hits, mut asked) = (0, 0);
        for _ in 0..20_000 {
            let main = rng.random_range(2..200);
            match cache.get(revision(main)) {
                Some(found) => {
                    assert_eq!(*found, pair(main));
                    hits += 1;
                }
                None => cache.add(revision(main), &pair(main)),
            }
            asked += 1;
            assert_eq!(cache.bytes, kept(&cache));
            assert!(cache.bytes <= 40 << 10);
        }
        assert!(hits > asked / 10 && hits < asked, "{hits} of {asked}");
    }

    #[test]
    fn what_is_read_stays_while_others_pass_through() {
        let mut cache = Cache::new(64 << 10);
        cache.add(revision(2), &pair(2));
        for main in 3..5000 {
            cache.add(revision(main), &pair(main));
            assert_eq!(cache.get(revision(2)), Some(&pair(2)), "after {main}");
        }
        assert_eq!(cache.get(revision(3)), None);
    }

    #[test]
    fn a_pair_is_not_kept_if_it_takes_too_much_room() {
        let mut cache = Cache::new(8 << 10);
        let large = KeyValue {
            value: Bytes::from(vec![0; 1 << 10]),
            ..pair(2)
        };
        cache.add(revision(2), &large);
        assert!(!cache.has(revision(2)) && cache.bytes == 0);
        let mut none = Cache::new(0);
        none.add(revision(2), &pair(2));
        assert_eq!(none.get(revision(2)), None);
    }

    #[test]
    fn a_kept_pair_shares_no_bytes() {
        let block = Bytes::from(vec![b'x'; 4 << 10]);
        let slice = KeyValue {
            key: block.slice(..3),
            value: block.slice(5..9),
            mod_revision: 2,
            ..KeyValue::default()
        };
        let mut cache = Cache::new(64 << 10);
        cache.add(revision(2), &slice);
        drop(slice);
        assert!(block.is_unique());
        let found = cache.get(revision(2)).expect("kept");
        assert_eq!((&found.key[..], &found.value[..]), (&b"xxx"[..], &b"xxxx"[..]));
    }
}
