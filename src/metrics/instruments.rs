//! What is counted with: a number that grows, and how long things take. Atomics, without order among them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Only ever grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Some more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// So many.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How long something took, by upper bounds that double.
#[derive(Debug)]
pub struct Histogram {
    /// The first bound, in microseconds.
    first: u64,
    /// One for each bound, and one for what is above all of them.
    buckets: Box<[AtomicU64]>,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Bounds of `first_us` microseconds, twice that, and so on.
    pub fn new(first_us: u64, bounds: usize) -> Self {
        Histogram {
            first: first_us,
            buckets: (0..=bounds).map(|_| AtomicU64::new(0)).collect(),
            nanoseconds: AtomicU64::new(0),
        }
    }

    /// It took so long.
    pub fn observe(&self, took: Duration) {
        let last = self.buckets.len() - 1;
        let (mut at, mut bound) = (0, u128::from(self.first) * 1000);
        while at < last && took.as_nanos() > bound {
            at += 1;
            bound *= 2;
        }
        self.buckets[at].fetch_add(1, Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// How many took no longer than each bound (seconds); the last bound is infinite.
    pub fn cumulative(&self) -> Vec<(f64, u64)> {
        let mut seen = 0;
        let last = self.buckets.len() - 1;
        let bound = |at: usize| match at == last {
            true => f64::INFINITY,
            false => (self.first << at) as f64 / 1e6,
        };
        let upto = self.buckets.iter().enumerate().map(|(at, bucket)| {
            seen += bucket.load(Relaxed);
            (bound(at), seen)
        });
        upto.collect()
    }

    /// All of it together, in seconds.
    pub fn sum(&self) -> f64 {
        self.nanoseconds.load(Relaxed) as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_and_with_each_bound() {
        let histogram = Histogram::new(1000, 3);
        for micros in [10, 1000, 1001, 4000, 4001, 9_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let expected = [(0.001, 2), (0.002, 3), (0.004, 4), (f64::INFINITY, 6)];
        assert_eq!(histogram.cumulative(), expected);
        assert!((histogram.sum() - 9.010_012).abs() < 1e-9, "{}", histogram.sum());
    }
}
