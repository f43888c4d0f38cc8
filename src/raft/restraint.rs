//! How much of the machine the work behind apply takes that nobody waits for.
//!
//! To reclaim what a compaction freed takes half a second of a core for some hundred thousand versions, and all members do
//! it at the same time. Where they share a machine with most of its load, that was a second without answers. So while a
//! member has other work, each slice is followed by a rest that is much longer. The rests become shorter the longer the work
//! lasts: a member that is busy all the time must reclaim as fast as it writes. They are short at once if somebody waits. A
//! member that is idle takes none.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Behind a slice of work comes a rest of so many times its length: at first, after some [`PATIENCE`], and after twice that.
const RESTS: [u32; 3] = [31, 15, 7];
const PATIENCE: Duration = Duration::from_secs(20);
/// But no longer than this.
const LONGEST: Duration = Duration::from_secs(1);
/// A member is busy if its other threads take more than one part in so many of a core.
const BUSY: u32 = 20;

/// When the next slice may be, for the one thread that works behind apply.
pub(super) struct Restraint {
    until: Instant,
    /// When there was nothing to do before.
    began: Instant,
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
            began: now,
            looked: now,
            others: others(),
        }
    }

    /// How much of the rest is left; none if the next slice may be.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// A slice took so long, and somebody waits for the end of the work, or not.
    pub fn worked(&mut self, slice: Duration, hurried: bool) {
        let (now, others) = (Instant::now(), others());
        let taken = others.saturating_sub(self.others);
        if is_busy(taken, now - self.looked) {
            let age = match hurried {
                true => Duration::MAX,
                false => now - self.began,
            };
            self.until = now + rest(slice, age);
        }
        (self.looked, self.others) = (now, others);
    }

    /// Nothing is left to do.
    pub fn done(&mut self) {
        self.began = Instant::now();
    }
}

/// Whether a member is, whose other threads took so much CPU time of a time that passed.
fn is_busy(taken: Duration, passed: Duration) -> bool {
    taken * BUSY > passed
}

/// How long the rest behind a slice is, if the work began so long ago.
fn rest(slice: Duration, age: Duration) -> Duration {
    let last = RESTS.len() - 1;
    let step = usize::try_from(age.as_secs() / PATIENCE.as_secs()).unwrap_or(last);
    (slice * RESTS[step.min(last)]).min(LONGEST)
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
    fn a_twentieth_of_a_core_makes_a_member_busy() {
        assert!(is_busy(6 * MS, 100 * MS));
        assert!(!is_busy(4 * MS, 100 * MS));
    }

    #[test]
    fn rests_are_much_longer_than_the_work_at_first_and_less_so_later() {
        assert_eq!(rest(4 * MS, Duration::ZERO), 124 * MS);
        assert_eq!(rest(4 * MS, PATIENCE), 60 * MS);
        for age in [2 * PATIENCE, 5 * PATIENCE, 1000 * PATIENCE, Duration::MAX] {
            assert_eq!(rest(4 * MS, age), 28 * MS);
        }
        assert_eq!(rest(400 * MS, 5 * PATIENCE), LONGEST);
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
        restraint.worked(LONGEST, false);
        assert!(!restraint.left().is_zero());
    }
}
