//! What goes between this member and each of the others.
//!
//! Only of members: whoever else says that it is one is not counted, and of one that was removed nothing is kept. So
//! there are no more labels on the page than the cluster has members.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{Counter, Histogram};

/// What is exchanged with one member.
#[derive(Debug)]
pub struct Exchange {
    /// Bytes of requests and answers to it.
    pub sent_bytes: Counter,
    /// Bytes of requests and answers from it.
    pub received_bytes: Counter,
    /// Requests to it for which no connection could be made, or whose connection broke.
    pub sent_failures: Counter,
    /// Requests of it that broke off.
    pub received_failures: Counter,
    /// How long a small question took, there and back: 0.1 ms to 3 s.
    pub round_trips: Histogram,
    /// How long the last one took, in microseconds.
    last_round_trip: AtomicU64,
    /// Whether it answered the last question.
    answers: AtomicBool,
    /// How often it stopped to answer.
    pub disconnections: Counter,
    /// Snapshots to it.
    pub snapshots_sent: Transfers,
    /// Snapshots from it.
    pub snapshots_received: Transfers,
}

/// Snapshots that went one way.
#[derive(Debug)]
pub struct Transfers {
    /// Those that arrived.
    pub succeeded: Counter,
    /// Those that did not.
    pub failed: Counter,
    /// How long those took that arrived: 0.1 s to 51 s.
    pub took: Histogram,
}

impl Transfers {
    fn new() -> Self {
        Transfers {
            succeeded: Counter::default(),
            failed: Counter::default(),
            took: Histogram::new(100_000, 10),
        }
    }

    /// One more, which took so long.
    pub fn count(&self, arrived: bool, took: Duration) {
        match arrived {
            true => {
                self.succeeded.increment();
                self.took.observe(took);
            }
            false => self.failed.increment(),
        }
    }
}

impl Exchange {
    fn new() -> Self {
        Exchange {
            sent_bytes: Counter::default(),
            received_bytes: Counter::default(),
            sent_failures: Counter::default(),
            received_failures: Counter::default(),
            round_trips: Histogram::new(100, 16),
            last_round_trip: AtomicU64::new(0),
            answers: AtomicBool::new(false),
            disconnections: Counter::default(),
            snapshots_sent: Transfers::new(),
            snapshots_received: Transfers::new(),
        }
    }

    /// A small question was answered after so long, or was not answered.
    pub fn asked(&self, answered_after: Option<Duration>) {
        if let Some(took) = answered_after {
            self.round_trips.observe(took);
            self.last_round_trip.store(took.as_micros() as u64, Relaxed);
        }
        let answered_before = self.answers.swap(answered_after.is_some(), Relaxed);
        if answered_before && answered_after.is_none() {
            self.disconnections.increment();
        }
    }

    /// How long the last question that was answered took, there and back.
    pub fn last_round_trip(&self) -> Option<Duration> {
        let micros = self.last_round_trip.load(Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    /// Whether it answered the last question.
    pub fn answers(&self) -> bool {
        self.answers.load(Relaxed)
    }
}

/// What is exchanged with each of the other members.
#[derive(Debug, Default)]
pub struct Traffic {
    others: ArcSwap<BTreeMap<u64, Arc<Exchange>>>,
}

impl Traffic {
    /// These are the others now. What was counted of those that stay stays.
    pub fn keep(&self, ids: &BTreeSet<u64>) {
        self.others.rcu(|known| {
            let exchange = |id: &u64| {
                known
                    .get(id)
                    .cloned()
                    .unwrap_or_else(|| Arc::new(Exchange::new()))
            };
            ids.iter()
                .map(|id| (*id, exchange(id)))
                .collect::<BTreeMap<_, _>>()
        });
    }

    /// What is exchanged with `id`, if that is a member.
    pub fn with(&self, id: u64) -> Option<Arc<Exchange>> {
        self.others.load().get(&id).cloned()
    }

    /// All of it, by the other's id.
    pub fn all(&self) -> Arc<BTreeMap<u64, Arc<Exchange>>> {
        self.others.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_are_counted_and_removed_ones_are_dropped() {
        let traffic = Traffic::default();
        traffic.keep(&BTreeSet::from([1, 2]));
        traffic.with(2).expect("a member").sent_bytes.add(7);
        assert!(traffic.with(3).is_none());
        traffic.keep(&BTreeSet::from([2, 3]));
        assert_eq!(traffic.with(2).expect("a member").sent_bytes.get(), 7);
        let ids: Vec<u64> = traffic.all().keys().copied().collect();
        assert_eq!(ids, [2, 3]);
    }

    #[test]
    fn a_member_that_stops_to_answer_is_counted_once() {
        let exchange = Exchange::new();
        exchange.asked(None);
        assert!(!exchange.answers());
        for answered in [Some(Duration::from_millis(1)), None, None] {
            exchange.asked(answered);
        }
        assert_eq!(exchange.disconnections.get(), 1);
        assert_eq!(
            exchange.round_trips.cumulative().last().map(|(_, count)| *count),
            Some(1)
        );
    }
}
