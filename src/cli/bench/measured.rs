//! What was measured: how many operations ended how, and how long they took, in memory that does not grow.
//!
//! Two rules say what belongs to the measured interval. An operation is **counted** if it ended in it, so that throughput
//! and the servers' CPU are those of one span of time. Its **latency** is recorded if it began (was due) in it, and is
//! waited for if it ends later: what was slow at the end is not left out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tonic::Code;

use super::schedule::Interval;

/// Latencies are kept in nanoseconds, in steps of half a microsecond at least and a thousandth at most, up to ten minutes.
const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 600_000_000_000;
const DIGITS: u8 = 3;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it was to do.
    Done,
    /// It was answered, but the key was not there, or the comparison did not hold.
    Missed,
    /// It failed, or nobody knows.
    Failed(Code),
}

/// Counts and latencies of one thread, or, added up, of all.
#[derive(Clone)]
pub struct Measured {
    latencies: Histogram<u64>,
    /// Operations that were answered, with those that missed.
    pub answered: u64,
    /// Those that missed.
    pub missed: u64,
    /// Those that failed, by code.
    pub errors: BTreeMap<String, u64>,
}

impl Default for Measured {
    fn default() -> Measured {
        Measured {
            latencies: Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, DIGITS)
                .expect("these bounds are in order"),
            answered: 0,
            missed: 0,
            errors: BTreeMap::new(),
        }
    }
}

impl Measured {
    /// Adds an operation.
    pub fn record(&mut self, interval: &Interval, begun: Instant, ended: Instant, outcome: Outcome) {
        let began_inside = begun >= interval.from;
        let ended_inside = match interval.until {
            Some(until) => ended >= interval.from && ended <= until,
            None => began_inside,
        };
        match outcome {
            Outcome::Failed(code) if began_inside => {
                *self.errors.entry(format!("{code:?}")).or_default() += 1;
            }
            Outcome::Failed(_) => {}
            answer => {
                self.answered += u64::from(ended_inside);
                self.missed += u64::from(ended_inside && answer == Outcome::Missed);
                if began_inside {
                    let took = ended.saturating_duration_since(begun).as_nanos();
                    self.latencies
                        .saturating_record(u64::try_from(took).unwrap_or(u64::MAX));
                }
            }
        }
    }

    /// Adds what another measured.
    pub fn add(&mut self, other: &Measured) {
        self.latencies
            .add(&other.latencies)
            .expect("all have the same bounds");
        self.answered += other.answered;
        self.missed += other.missed;
        for (code, count) in &other.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
    }

    /// What was measured since the last time.
    pub fn take(&mut self) -> Measured {
        let taken = self.clone();
        self.latencies.reset();
        (self.answered, self.missed) = (0, 0);
        self.errors.clear();
        taken
    }

    /// How many failed.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// How many latencies there are.
    pub fn recorded(&self) -> u64 {
        self.latencies.len()
    }

    /// So many of a hundred took no longer than this, in milliseconds.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        self.latencies.value_at_percentile(percent) as f64 / 1e6
    }

    /// In milliseconds.
    pub fn mean_ms(&self) -> f64 {
        self.latencies.mean() / 1e6
    }

    /// In milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.latencies.max() as f64 / 1e6
    }
}

/// Operations a second.
pub fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn near(value: f64, expected: f64) -> bool {
        (value / expected - 1.0).abs() < 0.002
    }

    #[test]
    fn threads_add_up() {
        let from = Instant::now();
        let interval = Interval { from, until: None };
        let (mut one, mut other) = (Measured::default(), Measured::default());
        for ms in 1..=100 {
            let part = if ms % 2 == 0 { &mut one } else { &mut other };
            part.record(&interval, from, from + ms * MS, Outcome::Done);
        }
        other.record(&interval, from, from + MS, Outcome::Failed(Code::Unavailable));
        other.record(&interval, from, from + MS, Outcome::Missed);
        one.add(&other);
        assert_eq!((one.answered, one.missed, one.failed()), (101, 1, 1));
        assert_eq!(one.errors["Unavailable"], 1);
        assert!(near(one.percentile_ms(50.0), 50.0), "{}", one.percentile_ms(50.0));
        assert!(near(one.percentile_ms(99.0), 99.0));
        assert!(near(one.max_ms(), 100.0));
    }

    #[test]
    fn what_was_taken_is_not_there_again() {
        let from = Instant::now();
        let interval = Interval { from, until: None };
        let mut measured = Measured::default();
        measured.record(&interval, from, from + MS, Outcome::Done);
        assert_eq!(measured.take().recorded(), 1);
        assert_eq!((measured.recorded(), measured.answered), (0, 0));
    }

    #[test]
    fn counted_is_what_ended_inside_timed_what_began_inside() {
        let from = Instant::now() + 100 * MS;
        let until = Some(from + 100 * MS);
        let interval = Interval { from, until };
        let mut measured = Measured::default();
        let mut record = |begun: Instant, ended: Instant| {
            measured.record(&interval, begun, ended, Outcome::Done);
            (measured.answered, measured.recorded())
        };
        assert_eq!(record(from - 9 * MS, from - MS), (0, 0));
        assert_eq!(record(from - MS, from + MS), (1, 0));
        assert_eq!(record(from, from + MS), (2, 1));
        assert_eq!(record(from + 99 * MS, from + 102 * MS), (2, 2));
    }

    #[test]
    fn what_takes_for_ever_is_recorded_as_the_longest() {
        let from = Instant::now();
        let interval = Interval { from, until: None };
        let mut measured = Measured::default();
        measured.record(&interval, from, from + 3_600_000 * MS, Outcome::Done);
        assert!(near(measured.max_ms(), 600_000.0), "{}", measured.max_ms());
    }
}
