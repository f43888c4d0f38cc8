//! The clock itself: when each lease ends, as one leader sees it in one term. Told the time by its caller.
//!
//! **Nobody's lease ends early.** A leader knows the leases from the log, not when they were renewed, as renewals are
//! not logged. So a new one gives each lease its whole TTL again, and one election timeout more, for the renewals that
//! its predecessor may have promised in its last moments (see [`super::leader`]).
//!
//! **Nor does it live for ever.** Elections alone would prolong a lease again and again. So the leader logs, once a
//! checkpoint interval, how much is left of each long lease that was not renewed meanwhile, and a new leader starts
//! from there. A renewal makes the checkpoint wrong: it is removed, through the log, *before* the renewal is promised.
//!
//! ```text
//! TTL 600 s, interval 60 s    0 ───── 60 ───── 120 ── 150 new leader ─────────────────────────────► ends
//! the log says                (600)   540      480    480 + one election timeout from 150 on
//! ```
//!
//! So an election prolongs a long lease by one interval at most. Leases of up to [`SHORT`] intervals are not worth it:
//! they would be prolonged by little more. Most leases are kept alive in a third of their TTL and never checkpointed
//! if they are short; a long one costs a log entry, shared with others, for each interval in which it is not renewed,
//! and one for a renewal after that.
//!
//! Memory: one place in a map and one in an ordered set for each lease. A renewal touches only the map: the lease is
//! looked at too early, once, and put further back.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::pb::pontoon::command::{LeaseExpire, LeaseRemaining};
use crate::state::{Lease, LeaseChange};

/// A lease of up to so many checkpoint intervals is not checkpointed.
const SHORT: u32 = 3;
/// How soon an expired lease is proposed to be revoked again, if it still is not.
const AGAIN: Duration = Duration::from_secs(1);

/// What does not change while a member runs.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What a new leader adds to each lease: one election timeout.
    pub extension: Duration,
    /// How often the time left of a lease is logged.
    pub checkpoint_interval: Duration,
}

/// The leases of one term.
pub struct Clock {
    term: u64,
    settings: Settings,
    leases: HashMap<i64, Timed>,
    /// When to look at each lease; may be earlier than needed, never later. One place for each.
    due: BTreeSet<(Instant, i64)>,
}

struct Timed {
    /// `remaining` is what the log says or is about to say.
    lease: Lease,
    deadline: Instant,
    /// When it was granted, renewed or checkpointed last.
    touched: Instant,
    /// Its place in `Clock::due`.
    due: Instant,
    /// Its revoke is proposed: too late to renew it.
    ending: bool,
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It has its whole TTL again, these seconds.
    Renewed(i64),
    /// There is no such lease.
    Unknown,
    /// It has expired, and is about to be revoked.
    Ending,
    /// The log holds a checkpoint of it, which must be removed first.
    Checkpointed,
}

/// What is to be proposed.
#[derive(Debug, Default, PartialEq)]
pub struct Due {
    /// Leases that have expired.
    pub expired: Vec<LeaseExpire>,
    /// Leases to be checkpointed.
    pub checkpoints: Vec<LeaseRemaining>,
}

impl Clock {
    /// The clock of a leader that takes over now, in `term`.
    pub fn new(term: u64, settings: Settings, leases: Vec<Lease>, now: Instant) -> Clock {
        let mut clock = Clock {
            term,
            settings,
            leases: HashMap::with_capacity(leases.len()),
            due: BTreeSet::new(),
        };
        for lease in leases {
            let left = lease.remaining.unwrap_or(lease.ttl);
            clock.insert(lease, now, now + seconds(left) + settings.extension);
        }
        clock
    }

    /// The term that it is of.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The log changed a lease. A change that the clock has seen already, or that is about an earlier grant of the id,
    /// does nothing.
    pub fn apply(&mut self, change: &LeaseChange, now: Instant) {
        match *change {
            LeaseChange::Granted(lease) => {
                if self.get(lease.id, lease.granted_at).is_none() {
                    self.remove(lease.id);
                    self.insert(lease, now, now + seconds(lease.ttl));
                }
            }
            LeaseChange::Revoked { id, granted_at } => {
                if self.get(id, granted_at).is_some() {
                    self.remove(id);
                }
            }
            LeaseChange::Checkpointed(lease) => {
                if let Some(timed) = self.get(lease.id, lease.granted_at) {
                    timed.lease.remaining = lease.remaining;
                }
            }
        }
    }

    fn get(&mut self, id: i64, granted_at: u64) -> Option<&mut Timed> {
        let timed = self.leases.get_mut(&id)?;
        (timed.lease.granted_at == granted_at).then_some(timed)
    }

    fn insert(&mut self, lease: Lease, now: Instant, deadline: Instant) {
        let mut timed = Timed {
            lease,
            deadline,
            touched: now,
            due: deadline,
            ending: false,
        };
        timed.due = timed.next(&self.settings);
        self.due.insert((timed.due, lease.id));
        self.leases.insert(lease.id, timed);
    }

    fn remove(&mut self, id: i64) {
        if let Some(timed) = self.leases.remove(&id) {
            self.due.remove(&(timed.due, id));
        }
    }

    /// Gives a lease its whole TTL again, from now.
    pub fn renew(&mut self, id: i64, now: Instant) -> Renewal {
        let Some(timed) = self.leases.get_mut(&id) else {
            return Renewal::Unknown;
        };
        if timed.ending || timed.deadline <= now {
            return Renewal::Ending;
        }
        if timed.lease.remaining.is_some() {
            return Renewal::Checkpointed;
        }
        timed.touched = now;
        timed.deadline = timed.deadline.max(now + seconds(timed.lease.ttl));
        Renewal::Renewed(timed.lease.ttl)
    }

    /// Those of these leases of which the log holds a checkpoint, as a checkpoint that removes it.
    pub fn checkpointed(&self, ids: &[i64]) -> Vec<LeaseRemaining> {
        ids.iter()
            .filter_map(|id| self.leases.get(id))
            .filter(|timed| timed.lease.remaining.is_some())
            .map(|timed| timed.said(0))
            .collect()
    }

    /// Whole seconds left, and seconds as granted.
    pub fn times(&self, id: i64, now: Instant) -> Option<(i64, i64)> {
        let timed = self.leases.get(&id)?;
        let left = timed.deadline.saturating_duration_since(now).as_secs() as i64;
        Some((left.min(timed.lease.ttl), timed.lease.ttl))
    }

    /// All ids, those that expire first first.
    pub fn by_expiry(&self) -> Vec<i64> {
        let mut leases: Vec<(Instant, i64)> = self
            .leases
            .iter()
            .map(|(id, timed)| (timed.deadline, *id))
            .collect();
        leases.sort_unstable();
        leases.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether any lease is to be looked at.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due.first().is_some_and(|(due, _)| *due <= now)
    }

    /// What is to be proposed now, no more than so many of each; what is left comes at the next call. Leases that have
    /// expired can't be renewed from here on.
    pub fn take_due(&mut self, now: Instant, most_expired: usize, most_checkpoints: usize) -> Due {
        let mut found = Due::default();
        while let Some((due, id)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            if found.expired.len() == most_expired || found.checkpoints.len() == most_checkpoints {
                break;
            }
            self.due.remove(&(due, id));
            let timed = self.leases.get_mut(&id).expect("each place is that of a lease");
            if timed.deadline <= now {
                timed.ending = true;
                timed.due = now + AGAIN;
                found.expired.push(LeaseExpire {
                    term: self.term,
                    id,
                    granted_at: timed.lease.granted_at,
                });
            } else {
                if timed.checkpoint_due(&self.settings).is_some_and(|at| at <= now) {
                    let left = timed.deadline.saturating_duration_since(now);
                    // Rounded up: never early.
                    let left = (left.as_millis().div_ceil(1000) as i64).min(timed.lease.ttl);
                    timed.lease.remaining = Some(left);
                    timed.touched = now;
                    found.checkpoints.push(timed.said(left));
                }
                timed.due = timed.next(&self.settings);
            }
            self.due.insert((timed.due, id));
        }
        found
    }
}

impl Timed {
    /// When to look at it next.
    fn next(&self, settings: &Settings) -> Instant {
        let checkpoint = self.checkpoint_due(settings);
        checkpoint.map_or(self.deadline, |at| at.min(self.deadline))
    }

    fn checkpoint_due(&self, settings: &Settings) -> Option<Instant> {
        let is_long = seconds(self.lease.ttl) > SHORT * settings.checkpoint_interval;
        is_long.then(|| self.touched + settings.checkpoint_interval)
    }

    fn said(&self, seconds: i64) -> LeaseRemaining {
        LeaseRemaining {
            id: self.lease.id,
            granted_at: self.lease.granted_at,
            seconds,
        }
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        extension: Duration::from_secs(1),
        checkpoint_interval: Duration::from_secs(60),
    };

    const NONE: [i64; 0] = [];

    fn lease(id: i64, ttl: i64) -> Lease {
        Lease {
            id,
            ttl,
            remaining: None,
            granted_at: 100 + id as u64,
        }
    }

    fn granted(leases: &[Lease], now: Instant) -> Clock {
        let mut clock = Clock::new(3, SETTINGS, Vec::new(), now);
        for lease in leases {
            clock.apply(&LeaseChange::Granted(*lease), now);
        }
        clock
    }

    /// The ids that have expired.
    fn expired(clock: &mut Clock, now: Instant) -> Vec<i64> {
        let due = clock.take_due(now, 10, 10);
        due.expired.iter().map(|expire| expire.id).collect()
    }

    fn after(now: Instant, millis: u64) -> Instant {
        now + Duration::from_millis(millis)
    }

    fn revoked(lease: Lease) -> LeaseChange {
        LeaseChange::Revoked {
            id: lease.id,
            granted_at: lease.granted_at,
        }
    }

    #[test]
    fn a_lease_expires_when_its_ttl_is_over_and_not_before() {
        let now = Instant::now();
        let mut clock = granted(&[lease(1, 5), lease(2, 9)], now);
        assert_eq!(clock.times(1, after(now, 1500)), Some((3, 5)));
        assert!(!clock.is_due(after(now, 4999)));
        assert_eq!(expired(&mut clock, after(now, 4999)), NONE);
        assert_eq!(expired(&mut clock, after(now, 5000)), [1]);
        assert_eq!(clock.renew(1, after(now, 5000)), Renewal::Ending);
        assert_eq!(clock.times(1, after(now, 5000)), Some((0, 5)));
        assert_eq!(
            expired(&mut clock, after(now, 5500)),
            NONE,
            "once, while its revoke is under way"
        );
        assert_eq!(
            expired(&mut clock, after(now, 6000)),
            [1],
            "again, as it is still there"
        );
        clock.apply(&revoked(lease(1, 5)), now);
        assert_eq!(clock.renew(1, after(now, 6000)), Renewal::Unknown);
        assert_eq!(expired(&mut clock, after(now, 9000)), [2]);
    }

    #[test]
    fn a_renewed_lease_has_its_whole_ttl_again() {
        let now = Instant::now();
        let mut clock = granted(&[lease(1, 5)], now);
        assert_eq!(clock.renew(1, after(now, 4000)), Renewal::Renewed(5));
        assert_eq!(expired(&mut clock, after(now, 8999)), NONE);
        assert_eq!(expired(&mut clock, after(now, 9000)), [1]);
    }

    #[test]
    fn a_renewal_after_the_deadline_is_too_late_even_if_nobody_looked_yet() {
        let now = Instant::now();
        let mut clock = granted(&[lease(1, 5)], now);
        assert_eq!(clock.renew(1, after(now, 5000)), Renewal::Ending);
    }

    #[test]
    fn a_new_leader_extends_every_lease() {
        let now = Instant::now();
        let mut checkpointed = lease(2, 1000);
        checkpointed.remaining = Some(30);
        let mut clock = Clock::new(4, SETTINGS, vec![lease(1, 5), checkpointed], now);
        assert_eq!(
            clock.times(1, now),
            Some((5, 5)),
            "no more than was granted is shown"
        );
        assert_eq!(expired(&mut clock, after(now, 5999)), NONE);
        assert_eq!(expired(&mut clock, after(now, 6000)), [1]);
        clock.apply(&revoked(lease(1, 5)), after(now, 6100));
        assert_eq!(expired(&mut clock, after(now, 30_999)), NONE);
        assert_eq!(expired(&mut clock, after(now, 31_000)), [2]);
    }

    #[test]
    fn a_renewal_of_an_extended_lease_does_not_shorten_it() {
        let now = Instant::now();
        let mut clock = Clock::new(4, SETTINGS, vec![lease(1, 5)], now);
        assert_eq!(clock.renew(1, after(now, 100)), Renewal::Renewed(5));
        assert_eq!(expired(&mut clock, after(now, 5999)), NONE);
        assert_eq!(expired(&mut clock, after(now, 6000)), [1]);
    }

    #[test]
    fn what_is_left_of_a_long_lease_is_logged_once_an_interval() {
        let now = Instant::now();
        let mut clock = granted(&[lease(1, 600), lease(2, 180)], now);
        assert_eq!(clock.take_due(after(now, 59_000), 10, 10), Due::default());
        let said = clock.take_due(after(now, 60_500), 10, 10);
        let expected = LeaseRemaining {
            id: 1,
            granted_at: 101,
            seconds: 540,
        };
        assert_eq!((said.expired, said.checkpoints), (vec![], vec![expected]));
        assert_eq!(clock.take_due(after(now, 120_000), 10, 10), Due::default());
        assert_eq!(clock.take_due(after(now, 120_500), 10, 10).checkpoints.len(), 1);
    }

    #[test]
    fn a_checkpoint_is_removed_before_a_renewal() {
        let now = Instant::now();
        let mut clock = granted(&[lease(1, 600)], now);
        clock.take_due(after(now, 60_000), 10, 10);
        // Not applied yet, but on its way.
        assert_eq!(clock.renew(1, after(now, 61_000)), Renewal::Checkpointed);
        let mut noted = lease(1, 600);
        noted.remaining = Some(540);
        clock.apply(&LeaseChange::Checkpointed(noted), after(now, 61_000));
        let remove = clock.checkpointed(&[1, 2]);
        assert_eq!(
            remove
                .iter()
                .map(|said| (said.id, said.seconds))
                .collect::<Vec<_>>(),
            [(1, 0)]
        );
        clock.apply(&LeaseChange::Checkpointed(lease(1, 600)), after(now, 62_000));
        assert_eq!(clock.renew(1, after(now, 62_000)), Renewal::Renewed(600));
        assert_eq!(clock.take_due(after(now, 121_999), 10, 10), Due::default());
        assert_eq!(clock.take_due(after(now, 122_000), 10, 10).checkpoints.len(), 1);
    }

    #[test]
    fn changes_that_come_twice_or_too_late_do_nothing() {
        let now = Instant::now();
        let mut clock = Clock::new(4, SETTINGS, vec![lease(1, 5)], now);
        clock.renew(1, after(now, 3000));
        clock.apply(&LeaseChange::Granted(lease(1, 5)), after(now, 3000));
        let earlier = LeaseChange::Revoked { id: 1, granted_at: 7 };
        clock.apply(&earlier, after(now, 3000));
        assert_eq!(expired(&mut clock, after(now, 7999)), NONE);
        assert_eq!(expired(&mut clock, after(now, 8000)), [1]);
    }

    #[test]
    fn leases_are_listed_by_expiry() {
        let now = Instant::now();
        let mut clock = granted(&[lease(1, 50), lease(2, 20), lease(3, 20)], now);
        clock.renew(2, after(now, 5000));
        assert_eq!(clock.by_expiry(), [3, 2, 1]);
    }

    #[test]
    fn no_more_expire_at_once_than_is_allowed() {
        let now = Instant::now();
        let leases: Vec<Lease> = (1..=25).map(|id| lease(id, 5)).collect();
        let mut clock = granted(&leases, now);
        let late = after(now, 5000);
        let counts: Vec<usize> = (0..4).map(|_| expired(&mut clock, late).len()).collect();
        assert_eq!(counts, [10, 10, 5, 0]);
    }

    #[test]
    fn the_longest_lease_has_a_deadline() {
        let now = Instant::now();
        let clock = granted(&[lease(1, 9_000_000_000)], now);
        assert_eq!(clock.times(1, now), Some((9_000_000_000, 9_000_000_000)));
    }

    /// A model: leases renewed at random, by leaders that change at random. Whatever happens, no lease ends before its
    /// TTL has passed since its last renewal, and each ends when nobody renews it any more.
    #[test]
    fn no_lease_ends_early_whatever_leaders_do() {
        use rand::rngs::StdRng;
        use rand::{Rng, SeedableRng};
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut now = Instant::now();
            let mut log: HashMap<i64, Lease> = (1..=8)
                .map(|id| (id, lease(id, rng.random_range(2..700))))
                .collect();
            let mut promised: HashMap<i64, Instant> = log
                .iter()
                .map(|(id, lease)| (*id, now + seconds(lease.ttl)))
                .collect();
            let mut clock = granted(&log.values().copied().collect::<Vec<_>>(), now);
            let mut term = 3;
            while !log.is_empty() {
                now += Duration::from_millis(rng.random_range(1..20_000));
                let due = clock.take_due(now, 2, 2);
                let mut changes = Vec::new();
                for said in due.checkpoints {
                    let noted = log.get_mut(&said.id).expect("it exists");
                    noted.remaining = Some(said.seconds);
                    changes.push(LeaseChange::Checkpointed(*noted));
                }
                for expire in due.expired {
                    assert!(
                        promised[&expire.id] <= now,
                        "seed {seed}: lease {} ends early",
                        expire.id
                    );
                    // Some of these proposals are lost.
                    if rng.random_bool(0.7) {
                        changes.push(revoked(log.remove(&expire.id).expect("it exists")));
                    }
                }
                changes.iter().for_each(|change| clock.apply(change, now));
                let id = rng.random_range(1..=8);
                if term < 40 && clock.renew(id, now) == Renewal::Checkpointed {
                    let noted = log.get_mut(&id).expect("it exists");
                    noted.remaining = None;
                    clock.apply(&LeaseChange::Checkpointed(*noted), now);
                }
                if term < 40
                    && let Renewal::Renewed(ttl) = clock.renew(id, now)
                {
                    promised.insert(id, now + seconds(ttl));
                }
                if term < 60 && rng.random_bool(0.2) {
                    term += 1;
                    clock = Clock::new(term, SETTINGS, log.values().copied().collect(), now);
                }
            }
        }
    }
}
