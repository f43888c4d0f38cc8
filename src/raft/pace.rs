//! How long it takes to apply entries: a look at the clock before each run of them, and one after.
//!
//! A run is what is sealed and answered together, so its last entry is answered when its time ends. It is too slow if
//! one of its entries is, or if reading them back from the log is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metrics::Metrics;

/// etcd's limit.
const SLOW: Duration = Duration::from_millis(100);
/// A member that is slow for long says so this often.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Counts runs of entries, and tells of those that are too slow.
pub struct Pace {
    metrics: Arc<Metrics>,
    told: Option<Instant>,
    /// Slow runs since it was told.
    untold: u64,
}

impl Pace {
    /// Counts in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Pace {
            metrics,
            told: None,
            untold: 0,
        }
    }

    /// A run of so many entries, the last one at `index`, took from `began` to `now`; whether that is told.
    pub fn applied(&mut self, began: Instant, now: Instant, entries: usize, index: u64) -> bool {
        let took = now.saturating_duration_since(began);
        self.metrics.applies.observe(took);
        if took <= SLOW {
            return false;
        }
        self.metrics.applies_slow.increment();
        if self.told.is_some_and(|told| now < told + TELL_EVERY) {
            self.untold += 1;
            return false;
        }
        tracing::warn!(
            ?took,
            expected = ?SLOW,
            entries,
            index,
            not_told = self.untold,
            "apply request took too long"
        );
        (self.told, self.untold) = (Some(now), 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_runs_are_all_counted_and_told_once_a_second() {
        let metrics = Arc::new(Metrics::default());
        let mut pace = Pace::new(metrics.clone());
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut run = |began, ended| pace.applied(at(began), at(ended), 3, 7);
        assert!(!run(0, 100), "not too slow yet");
        assert!(run(100, 300));
        assert!(!run(300, 500));
        assert!(!run(500, 1299));
        assert!(run(1100, 1300));
        assert_eq!(metrics.applies_slow.get(), 4);
        assert_eq!(
            metrics.applies.cumulative().last().map(|(_, count)| *count),
            Some(5)
        );
    }
}
