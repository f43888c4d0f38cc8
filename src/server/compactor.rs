//! Automatic compaction: the past goes by itself, by age or by count.
//!
//! [`Schedule`] is the clock's part, driven with `now` and the store's revision, so that a test needs no time:
//!
//! * **periodic**: the revision is noted ten times a period (at least every 6 minutes). Once a whole period has passed,
//!   and then once a period (at least hourly), everything older than a period is compacted away.
//! * **revision**: now and then (every 5 minutes), everything but the newest so many revisions.
//!
//! Every member keeps its own notes, so that a new leader need not begin anew; only the leader compacts, through the
//! log, as if a client had asked for it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Server;
use crate::config::Retention;
use crate::error::Error;
use crate::pb::etcdserverpb::CompactionRequest;
use crate::pb::pontoon::command::command::Op;

/// A long period is looked at this often nevertheless.
const LONGEST: Duration = Duration::from_secs(3600);
/// Notes in a period.
const NOTES: u32 = 10;

/// When to compact to which revision.
#[derive(Debug)]
pub struct Schedule {
    retention: Retention,
    /// When a compaction was due last, or the schedule began.
    last: Duration,
    /// The revision compacted to last.
    compacted: i64,
    /// Periodic: when the store was at which revision, of the last period.
    notes: VecDeque<(Duration, i64)>,
}

impl Schedule {
    /// Begins at `now`, a time since any fixed moment.
    pub fn new(retention: Retention, now: Duration) -> Schedule {
        Schedule {
            retention,
            last: now,
            compacted: 0,
            notes: VecDeque::new(),
        }
    }

    /// How long to wait between two calls of [`Schedule::tick`].
    pub fn pause(&self) -> Duration {
        match self.retention {
            Retention::Period(period) => (period.min(LONGEST) / NOTES).max(Duration::from_millis(1)),
            Retention::Revisions { every, .. } => every,
        }
    }

    /// The store is at `revision` now: the revision to compact to, if that is due.
    pub fn tick(&mut self, now: Duration, revision: i64) -> Option<i64> {
        match self.retention {
            Retention::Period(period) => self.tick_period(now, revision, period),
            Retention::Revisions { keep, .. } => Some(revision - keep).filter(|to| self.is_new(*to)),
        }
    }

    fn tick_period(&mut self, now: Duration, revision: i64, period: Duration) -> Option<i64> {
        self.notes.push_back((now, revision));
        let horizon = now.checked_sub(period)?;
        // The newest note that is a period old, and those after it.
        while self.notes.get(1).is_some_and(|(at, _)| *at <= horizon) {
            self.notes.pop_front();
        }
        let (at, to) = *self.notes.front()?;
        let is_due = at <= horizon && now - self.last >= period.min(LONGEST);
        (is_due && self.is_new(to)).then_some(to)
    }

    /// Nothing can be compacted below revision 1, nor twice.
    fn is_new(&self, to: i64) -> bool {
        to > 0 && to > self.compacted
    }

    /// It is compacted to `revision`.
    pub fn done(&mut self, now: Duration, revision: i64) {
        self.last = now;
        self.compacted = revision;
    }
}

/// Compacts by the schedule while this member leads. Ends with the server.
pub async fn run(server: Server, retention: Retention) {
    let began = Instant::now();
    let mut schedule = Schedule::new(retention, Duration::ZERO);
    loop {
        tokio::time::sleep(schedule.pause()).await;
        let Some(revision) = schedule.tick(began.elapsed(), server.reader().revision()) else {
            continue;
        };
        if !server.replica().leads() {
            continue;
        }
        let request = CompactionRequest {
            revision,
            physical: false,
        };
        match server.propose(Op::Compact(request)).await {
            // Somebody else compacted further: just as well.
            Ok(_) | Err(Error::Compacted) => {
                tracing::info!(revision, "compacted automatically");
                schedule.done(began.elapsed(), revision);
            }
            Err(error) => {
                tracing::warn!(%error, revision, "cannot compact automatically now; trying again soon")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;

    /// Ticks as often as the schedule asks, with a new revision each second; when it compacted, and to what.
    fn compactions(retention: Retention, seconds: u64) -> Vec<(u64, i64)> {
        let mut schedule = Schedule::new(retention, Duration::ZERO);
        let (mut now, mut found) = (Duration::ZERO, Vec::new());
        while now.as_secs() < seconds {
            now += schedule.pause();
            if let Some(to) = schedule.tick(now, now.as_secs() as i64) {
                schedule.done(now, to);
                found.push((now.as_secs(), to));
            }
        }
        found
    }

    #[test]
    fn a_period_is_kept_and_the_first_compaction_waits_for_a_whole_one() {
        let period = Retention::Period(Duration::from_secs(10 * MINUTE));
        // The first note is a pause old, so the first compaction comes a pause after the first period.
        assert_eq!(
            compactions(period, 35 * MINUTE),
            [(11 * MINUTE, 60), (21 * MINUTE, 11 * 60), (31 * MINUTE, 21 * 60)]
        );
    }

    #[test]
    fn a_long_period_is_compacted_hourly() {
        let period = Retention::Period(Duration::from_secs(24 * 60 * MINUTE));
        let found = compactions(period, 27 * 60 * MINUTE);
        let hours: Vec<u64> = found.iter().map(|(at, _)| at / (60 * MINUTE)).collect();
        assert_eq!(hours, [24, 25, 26]);
        assert!(
            found.iter().all(|(at, to)| at - *to as u64 == 24 * 60 * MINUTE),
            "{found:?}"
        );
    }

    #[test]
    fn the_newest_revisions_are_kept() {
        let retention = Retention::Revisions {
            keep: 1000,
            every: Duration::from_secs(5 * MINUTE),
        };
        assert_eq!(
            compactions(retention, 25 * MINUTE),
            [(20 * MINUTE, 200), (25 * MINUTE, 500)]
        );
    }

    #[test]
    fn an_idle_store_is_not_compacted_again_and_a_failed_attempt_is_repeated() {
        let mut schedule = Schedule::new(Retention::Period(Duration::from_secs(10)), Duration::ZERO);
        let mut tick = |second: u64| schedule.tick(Duration::from_secs(second), 7);
        assert_eq!((1..=10).filter_map(&mut tick).count(), 0);
        // Not done: again at the next tick.
        assert_eq!((tick(11), tick(12)), (Some(7), Some(7)));
        schedule.done(Duration::from_secs(12), 7);
        assert_eq!(
            (13..60)
                .filter_map(|at| schedule.tick(Duration::from_secs(at), 7))
                .count(),
            0
        );
    }
}
