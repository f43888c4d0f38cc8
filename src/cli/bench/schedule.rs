//! When operations begin.
//!
//! **Closed loop.** Each client begins its next operation when the last one is answered: how much is asked depends on how
//! fast the servers are. **Open loop.** Operations are due at a rate, come what may: the n-th at `n / rate`. A client
//! takes the next one that is due; if all clients wait for answers, it is begun late. Its latency counts from when it was
//! due, so a server that stands still for a second is charged for everything that was due in that second, not for the few
//! operations that happened to be under way ("coordinated omission").
//!
//! ```text
//!  begin            from                                until
//!    |    warm-up    |             measured               |
//!    0    1    2    3    4    5    6    7    8    9   10       operations due, open loop
//! ```
//!
//! What was due before `until` and not begun by then, as all clients were busy, is counted as not started.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// How a load begins and ends.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Before anything is measured.
    pub warmup: Duration,
    /// What is measured.
    pub end: End,
}

/// When a load ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum End {
    /// After this time.
    After(Duration),
    /// After so many measured operations.
    Total(u64),
}

/// The measured part of a load.
#[derive(Debug, Clone, Copy)]
pub struct Interval {
    /// Its beginning.
    pub from: Instant,
    /// Its end; none if it ends with its last operation.
    pub until: Option<Instant>,
}

/// Hands out the operations of a load to its clients.
pub struct Schedule {
    begin: Instant,
    /// What is measured.
    pub interval: Interval,
    total: Option<u64>,
    /// Operations of a closed loop that were taken since `from`; of an open loop, all.
    taken: AtomicU64,
    pace: Option<Pace>,
}

/// An open loop.
struct Pace {
    /// Operations a second.
    rate: f64,
    /// How many there are in all, with those of the warm-up.
    count: u64,
    /// One for each operation that is due and not taken.
    due: Semaphore,
    begun: AtomicU64,
}

impl Schedule {
    /// Begins now; with a rate, [`Schedule::pace`] must run.
    pub fn begin(length: Length, rate: Option<f64>) -> Schedule {
        let begin = Instant::now();
        let from = begin + length.warmup;
        let (until, total) = match length.end {
            End::After(duration) => (Some(from + duration), None),
            End::Total(total) => (None, Some(total)),
        };
        let pace = rate.map(|rate| Pace {
            rate,
            count: count(rate, length),
            due: Semaphore::new(0),
            begun: AtomicU64::new(0),
        });
        Schedule {
            begin,
            interval: Interval { from, until },
            total,
            taken: AtomicU64::new(0),
            pace,
        }
    }

    /// Waits for the next operation and says when it begins, or was to begin; none if there are no more.
    pub async fn next(&self) -> Option<Instant> {
        let Some(pace) = &self.pace else {
            return self.next_of_closed_loop();
        };
        pace.due.acquire().await.ok()?.forget();
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        let is_over = self.interval.until.is_some_and(|until| Instant::now() >= until);
        if number >= pace.count || is_over {
            return None;
        }
        pace.begun.fetch_add(1, Ordering::Relaxed);
        Some(self.begin + due_at(pace.rate, number))
    }

    fn next_of_closed_loop(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.interval.until.is_some_and(|until| now >= until) {
            return None;
        }
        match self.total {
            Some(total) if now >= self.interval.from => {
                let number = self.taken.fetch_add(1, Ordering::Relaxed);
                (number < total).then_some(now)
            }
            _ => Some(now),
        }
    }

    /// Hands out the operations of an open loop as they fall due. Blocks its thread: a sleep of the operating system is a
    /// twentieth as late as one of the runtime's, whose clock has steps of a millisecond.
    pub fn pace(&self, clients: usize) {
        let Some(pace) = &self.pace else { return };
        let mut handed_out = 0;
        while handed_out < pace.count {
            let due = due_by(pace.rate, self.begin.elapsed()).min(pace.count);
            pace.due.add_permits((due - handed_out) as usize);
            handed_out = due;
            let next = self.begin + due_at(pace.rate, due);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        // So that each client learns that there are no more.
        pace.due.add_permits(clients);
    }

    /// Operations of an open loop that were due and not begun.
    pub fn not_started(&self) -> u64 {
        let begun = |pace: &Pace| pace.count - pace.begun.load(Ordering::Relaxed);
        self.pace.as_ref().map_or(0, begun)
    }
}

/// How many operations an open loop has, with those of its warm-up.
fn count(rate: f64, length: Length) -> u64 {
    match length.end {
        End::After(duration) => due_by(rate, length.warmup + duration),
        End::Total(total) => due_by(rate, length.warmup) + total,
    }
}

/// When the operation of this number is due.
fn due_at(rate: f64, number: u64) -> Duration {
    Duration::from_secs_f64(number as f64 / rate)
}

/// How many operations are due before this time.
fn due_by(rate: f64, time: Duration) -> u64 {
    (time.as_secs_f64() * rate).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TIME: Duration = Duration::ZERO;
    const AN_HOUR: Duration = Duration::from_secs(3600);

    fn length(warmup: Duration, end: End) -> Length {
        Length { warmup, end }
    }

    #[test]
    fn operations_are_due_at_even_distances() {
        assert_eq!(due_at(1000.0, 0), NO_TIME);
        assert_eq!(due_at(1000.0, 2500), Duration::from_millis(2500));
        assert_eq!(due_by(1000.0, NO_TIME), 0);
        // Number 0 at once, number 1 after a millisecond.
        assert_eq!(due_by(1000.0, Duration::from_micros(1)), 1);
        assert_eq!(due_by(1000.0, Duration::from_micros(1001)), 2);
        assert_eq!(due_by(0.5, Duration::from_secs(3)), 2);
    }

    #[test]
    fn what_is_measured_comes_after_the_warm_up() {
        let second = Duration::from_secs(1);
        assert_eq!(count(10.0, length(second, End::After(3 * second))), 40);
        assert_eq!(count(10.0, length(second, End::Total(3))), 13);
    }

    #[tokio::test]
    async fn a_closed_loop_ends_with_its_total() {
        let schedule = Schedule::begin(length(NO_TIME, End::Total(3)), None);
        let mut begun = 0;
        while let Some(at) = schedule.next().await {
            assert!(at >= schedule.interval.from);
            begun += 1;
        }
        assert_eq!(begun, 3);
    }

    #[tokio::test]
    async fn the_warm_up_does_not_count_towards_the_total() {
        let schedule = Schedule::begin(length(AN_HOUR, End::Total(1)), None);
        for _ in 0..10 {
            assert!(schedule.next().await.is_some());
        }
    }

    #[tokio::test]
    async fn a_closed_loop_ends_with_its_time() {
        let schedule = Schedule::begin(length(NO_TIME, End::After(NO_TIME)), None);
        assert!(schedule.next().await.is_none());
    }

    #[tokio::test]
    async fn an_open_loop_counts_from_when_an_operation_was_due() {
        let schedule = Schedule::begin(length(NO_TIME, End::Total(20)), Some(10_000.0));
        schedule.pace(2);
        for number in 0..20 {
            let due = schedule.begin + due_at(10_000.0, number);
            assert_eq!(schedule.next().await, Some(due));
        }
        // Both clients learn that there are no more.
        assert_eq!(schedule.next().await, None);
        assert_eq!(schedule.next().await, None);
        assert_eq!(schedule.not_started(), 0);
    }

    #[tokio::test]
    async fn what_nobody_was_free_for_is_counted() {
        let length = length(NO_TIME, End::After(Duration::from_millis(5)));
        let schedule = Schedule::begin(length, Some(1000.0));
        schedule.pace(1);
        // It is over, as it took its time to pace.
        std::thread::sleep(Duration::from_millis(6));
        assert_eq!(schedule.next().await, None);
        assert_eq!(schedule.not_started(), 5);
    }
}
