//! How much of the machine the work behind apply takes that nobody waits for.
//!
//! To reclaim what a compaction freed takes a second of a core for some hundred thousand versions, and all members do it at
//! the same time. Where they share a machine with half its load, that was a second without answers. So while a member
//! has other work, each slice is followed by a rest several times as long; one that is idle takes none.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Behind a slice of work comes a rest of so many times its length.
const RESTS: u32 = 7;
/// But no longer than this.
const LONGEST: Duration = Duration::from_secs(1);
/// A member is busy if its other threads take more than one part in so many of a core.
const BUSY: u32 = 20;

/// When the next slice may be, for the one thread that works behind apply.
pub(super) struct Restraint {
    until: Instant,
    looked: Instant,
    /// CPU time that the other threads had taken by then.
    others: Duration,
}

impl Restraint {
    /// For the thread that calls.
    pub fn new() -> Self {
        let now = Instant::now();
        Restraint {
            until: now,
            looked: now,
            others: others(),
        }
    }

    /// How much of the rest is left; none if the next slice may be.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// A slice took so long.
    pub fn worked(&mut self, slice: Duration) {
        let (now, others) = (Instant::now(), others());
        let taken = others.saturating_sub(self.others);
        self.until = now + rest(slice, taken, now - self.looked);
        (self.looked, self.others) = (now, others);
    }
}

/// How long the rest behind a slice is, if the other threads took so much CPU time of a time that passed.
fn rest(slice: Duration, taken: Duration, passed: Duration) -> Duration {
    match taken * BUSY > passed {
        true => (slice * RESTS).min(LONGEST),
        false => Duration::ZERO,
    }
}

/// CPU time that the threads but this one have taken.
fn others() -> Duration {
    let taken = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    taken(ClockId::ProcessCPUTime).saturating_sub(taken(ClockId::ThreadCPUTime))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_busy_member_rests_longer_than_it_works_and_an_idle_one_never() {
        assert_eq!(rest(4 * MS, 6 * MS, 100 * MS), 28 * MS);
        assert_eq!(rest(4 * MS, 4 * MS, 100 * MS), Duration::ZERO);
        assert_eq!(rest(400 * MS, 150 * MS, 100 * MS), LONGEST);
    }

    #[test]
    fn only_what_the_others_take_makes_a_member_busy() {
        let work = |limit: Duration| {
            let began = clock_gettime(ClockId::ThreadCPUTime);
            let taken = || clock_gettime(ClockId::ThreadCPUTime) - began;
            while Duration::try_from(taken()).is_ok_and(|taken| taken < limit) {}
        };
        let before = others();
        std::thread::scope(|scope| drop(scope.spawn(|| work(30 * MS))));
        assert!(others() - before >= 30 * MS);
        let mut restraint = Restraint::new();
        std::thread::scope(|scope| drop(scope.spawn(|| work(30 * MS))));
        restraint.worked(LONGEST);
        assert!(!restraint.left().is_zero());
    }
}
