//! Which keys a load touches: their names, how they are drawn, and what is written to them.
//!
//! Keys are numbers below the size of the key space, written behind a prefix, with zeros before them, so that their order
//! is that of the numbers and all have one length: key 17 of `/bench/`, 12 bytes long, is `/bench/00017`.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use rand_distr::{Distribution as _, Zipf};

/// Bytes from which values are cut, beyond the length of one: so many different values there are.
const POOL: usize = 64 << 10;
/// A prime above every key space: numbers multiplied by it, modulo the space, are a permutation of it.
const SCATTER: u64 = 2_654_435_761;

/// The keys of a load.
#[derive(Debug, Clone)]
pub struct Space {
    prefix: Bytes,
    digits: usize,
    /// How many keys there are.
    pub size: u64,
}

impl Space {
    /// Keys of `key_size` bytes below `prefix`; none if they are too short for that many.
    pub fn new(prefix: Bytes, key_size: usize, size: u64) -> Option<Space> {
        let digits = key_size.checked_sub(prefix.len())?;
        // The end of a range is the number behind the last.
        let fits = size.to_string().len() <= digits;
        fits.then_some(Space { prefix, digits, size })
    }

    /// A key's name.
    pub fn name(&self, mut number: u64) -> Bytes {
        let mut name = vec![b'0'; self.prefix.len() + self.digits];
        name[..self.prefix.len()].copy_from_slice(&self.prefix);
        for digit in name[self.prefix.len()..].iter_mut().rev() {
            *digit += (number % 10) as u8;
            number /= 10;
        }
        name.into()
    }

    /// The number of a key with this name, if it is one of these.
    pub fn number(&self, name: &[u8]) -> Option<u64> {
        let digits = name.strip_prefix(&self.prefix[..])?;
        let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (digits.len() == self.digits && number < self.size).then_some(number)
    }

    /// Key and range end of so many keys from `first` on.
    pub fn range(&self, first: u64, count: u64) -> (Bytes, Bytes) {
        (self.name(first), self.name(first + count))
    }
}

/// How keys are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Each as often as any other.
    Uniform,
    /// In their order, again and again; the clients share one pass.
    Sequential,
    /// The n-th most popular key as often as `1 / n^skew`; the popular ones are scattered over the space.
    Zipf {
        /// The exponent.
        skew: f64,
    },
}

/// Draws keys for one client: the same ones for the same seed.
pub struct Draw {
    rng: StdRng,
    size: u64,
    source: Source,
}

enum Source {
    Uniform,
    Sequential { next: u64, step: u64 },
    Zipf(Zipf<f64>),
}

impl Draw {
    /// For one of several clients, from `size` numbers; none if they can't be distributed so.
    pub fn new(distribution: Distribution, size: u64, seed: u64, client: u64, clients: u64) -> Option<Draw> {
        let source = match distribution {
            Distribution::Uniform => Source::Uniform,
            Distribution::Sequential => Source::Sequential {
                next: client % size,
                step: clients,
            },
            Distribution::Zipf { skew } => Source::Zipf(Zipf::new(size as f64, skew).ok()?),
        };
        // Far apart, so that clients of neighbouring seeds have nothing in common either.
        let own = seed ^ client.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Some(Draw {
            rng: StdRng::seed_from_u64(own),
            size,
            source,
        })
    }

    /// The next number, below `size`.
    pub fn next(&mut self) -> u64 {
        match &mut self.source {
            Source::Uniform => self.rng.random_range(0..self.size),
            Source::Sequential { next, step } => {
                let number = *next;
                *next = (number + *step) % self.size;
                number
            }
            Source::Zipf(zipf) => {
                let rank = zipf.sample(&mut self.rng) as u64 - 1;
                rank * SCATTER % self.size
            }
        }
    }

    /// Whether it is one of `percent` in a hundred.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// A value.
    pub fn value(&mut self, values: &Values) -> Bytes {
        let at = self.rng.random_range(0..POOL);
        values.0.slice(at..at + values.1)
    }
}

/// Values of one length that can't be compressed: cut from a pool, so that none is copied.
#[derive(Clone)]
pub struct Values(Bytes, usize);

impl Values {
    /// Values of `size` bytes.
    pub fn new(size: usize, seed: u64) -> Values {
        let mut pool = vec![0; POOL + size];
        StdRng::seed_from_u64(seed).fill_bytes(&mut pool);
        Values(pool.into(), size)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn space(key_size: usize, size: u64) -> Option<Space> {
        Space::new(Bytes::from_static(b"/b/"), key_size, size)
    }

    fn draw(distribution: Distribution, client: u64) -> Draw {
        Draw::new(distribution, 1000, 7, client, 4).expect("it can be distributed so")
    }

    fn numbers(distribution: Distribution, client: u64, count: usize) -> Vec<u64> {
        let mut draw = draw(distribution, client);
        (0..count).map(|_| draw.next()).collect()
    }

    #[test]
    fn names_have_one_length_and_the_order_of_their_numbers() {
        let space = space(8, 10_000).expect("they fit");
        assert_eq!(space.name(17), "/b/00017");
        assert!(space.name(99) < space.name(100));
        assert_eq!(space.number(b"/b/00017"), Some(17));
        for other in ["/b/0017", "/b/10000", "/c/00017", "/b/0001x"] {
            assert_eq!(space.number(other.as_bytes()), None, "{other}");
        }
        assert_eq!(space.range(9_999, 1).1, "/b/10000");
    }

    #[test]
    fn keys_that_are_too_short_are_refused() {
        assert!(space(8, 99_999).is_some());
        assert!(space(8, 100_000).is_none());
        assert!(space(2, 1).is_none());
    }

    #[test]
    fn clients_share_one_pass_through_the_keys() {
        let all: BTreeSet<u64> = (0..4)
            .flat_map(|client| numbers(Distribution::Sequential, client, 250))
            .collect();
        assert_eq!(all.len(), 1000);
        assert_eq!(numbers(Distribution::Sequential, 1, 3), [1, 5, 9]);
    }

    #[test]
    fn what_is_drawn_depends_on_seed_and_client_alone() {
        let zipf = Distribution::Zipf { skew: 0.99 };
        for distribution in [Distribution::Uniform, zipf] {
            assert_eq!(numbers(distribution, 1, 50), numbers(distribution, 1, 50));
            assert_ne!(numbers(distribution, 1, 50), numbers(distribution, 2, 50));
        }
    }

    #[test]
    fn few_keys_are_popular_and_scattered() {
        let mut times = vec![0; 1000];
        for number in numbers(Distribution::Zipf { skew: 0.99 }, 0, 20_000) {
            times[usize::try_from(number).expect("small")] += 1;
        }
        let second = usize::try_from(SCATTER % 1000).expect("small");
        // A seventh of all, and half of that.
        assert!((2000..4000).contains(&times[0]), "{}", times[0]);
        assert!((1000..2000).contains(&times[second]), "{}", times[second]);
        let mut uniform = BTreeSet::from_iter(numbers(Distribution::Uniform, 0, 20_000));
        assert_eq!(uniform.len(), 1000);
        assert_eq!(uniform.pop_last(), Some(999));
    }

    #[test]
    fn scattering_moves_each_key_to_a_place_of_its_own() {
        for size in [1, 10, 1000, 65_536] {
            let places: BTreeSet<u64> = (0..size).map(|rank| rank * SCATTER % size).collect();
            assert_eq!(places.len() as u64, size);
        }
    }

    #[test]
    fn values_have_the_length_asked_for() {
        let values = Values::new(300, 1);
        let mut draw = draw(Distribution::Uniform, 0);
        let (one, other) = (draw.value(&values), draw.value(&values));
        assert_eq!((one.len(), other.len()), (300, 300));
        assert_ne!(one, other);
        assert!(draw.value(&Values::new(0, 1)).is_empty());
    }
}
