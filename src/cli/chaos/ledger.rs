//! What was promised: which writes were acknowledged, and what a read must not be older than.
//!
//! Writer `w` makes its writes one after another, numbered from 1 on. Each is one transaction that sets the writer's
//! counter to its number, if the counter is lower, and a key of its own:
//!
//! ```text
//! if counter w < 17   then   counter w = 17,  write w/17 = 17
//! ```
//!
//! A write that failed may have happened, or may happen yet: of such a one nothing is expected, neither that it is there
//! nor that it is not. That it can't come late and set the counter back is what the comparison is for; one that a later
//! one overtook does nothing.
//!
//! Memory holds a number for each writer and each write that is not acknowledged, not those that are.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// The writes of one writer.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The last one that was begun.
    last: u64,
    /// Those that are not acknowledged.
    open: BTreeSet<u64>,
}

impl Ledger {
    /// Begins a write; its number.
    pub fn begin(&mut self) -> u64 {
        self.last += 1;
        self.open.insert(self.last);
        self.last
    }

    /// A write was acknowledged.
    pub fn acknowledge(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// How many were.
    pub fn acknowledged(&self) -> u64 {
        self.last - self.unknown()
    }

    /// How many are of unknown fate.
    pub fn unknown(&self) -> u64 {
        self.open.len() as u64
    }

    /// The acknowledged ones that are not among those `found`.
    pub fn missing(&self, found: &BTreeSet<u64>) -> Vec<u64> {
        let expected = (1..=self.last).filter(|number| !self.open.contains(number));
        expected.filter(|number| !found.contains(number)).collect()
    }

    /// The last acknowledged one; 0 if there is none.
    pub fn highest(&self) -> u64 {
        let mut from_last = (1..=self.last).rev();
        from_last.find(|number| !self.open.contains(number)).unwrap_or(0)
    }
}

/// Of each counter, the highest value that was acknowledged or read so far: a read that begins now may not see less.
#[derive(Debug)]
pub struct Floors(Vec<AtomicU64>);

/// A linearizable read that saw less than was known before it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// Which counter.
    pub counter: usize,
    /// What was known.
    pub known: u64,
    /// What was read.
    pub read: u64,
}

impl Floors {
    /// For so many counters.
    pub fn new(counters: usize) -> Floors {
        Floors((0..counters).map(|_| AtomicU64::new(0)).collect())
    }

    /// What a read that begins now has to see at least.
    pub fn now(&self, counter: usize) -> u64 {
        self.0[counter].load(Ordering::SeqCst)
    }

    /// A value was acknowledged, or read.
    pub fn raise(&self, counter: usize, value: u64) {
        self.0[counter].fetch_max(value, Ordering::SeqCst);
    }

    /// Judges a read that began when `known` was the floor.
    pub fn judge(&self, counter: usize, known: u64, read: u64) -> Option<Stale> {
        self.raise(counter, read);
        (read < known).then_some(Stale { counter, known, read })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_has_to_be_there_and_nothing_else() {
        let mut ledger = Ledger::default();
        for number in 1..=5 {
            assert_eq!(ledger.begin(), number);
        }
        for number in [1, 2, 4] {
            ledger.acknowledge(number);
        }
        assert_eq!(
            (ledger.acknowledged(), ledger.unknown(), ledger.highest()),
            (3, 2, 4)
        );
        assert!(ledger.missing(&[1, 2, 4].into()).is_empty());
        assert!(ledger.missing(&[1, 2, 3, 4, 5].into()).is_empty());
        assert_eq!(ledger.missing(&[1, 3, 5].into()), [2, 4], "lost writes are seen");
        assert!(Ledger::default().missing(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_read_is_stale_if_it_sees_less_than_was_known_when_it_began() {
        let floors = Floors::new(2);
        floors.raise(0, 7);
        let known = floors.now(0);
        floors.raise(0, 9);
        assert_eq!(floors.judge(0, known, 7), None, "9 came while it was under way");
        let stale = Stale {
            counter: 0,
            known: 9,
            read: 8,
        };
        assert_eq!(floors.judge(0, floors.now(0), 8), Some(stale));
        assert_eq!(floors.judge(1, floors.now(1), 0), None, "another counter");
    }

    #[test]
    fn what_was_read_once_is_not_taken_back() {
        let floors = Floors::new(1);
        assert_eq!(floors.judge(0, floors.now(0), 12), None);
        assert!(floors.judge(0, floors.now(0), 11).is_some());
    }
}
