//! When a snapshot is due.
//!
//! It costs little (`raft/snapshot/`), but a member that was away should rather be sent the end of the log than all of the
//! state. So one is taken when the log has grown by some of the state's size since the last; when the last keeps as much
//! on the disk that the state has left behind; or after so many entries, where that is asked for. One that is refused, as
//! the disk has no room for it, is asked for again after as much again, not at each look.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;

use super::snapshot::SnapshotStore;
use super::{LogId, Raft};
use crate::storage::wal::Wal;

/// Less than this is not worth a snapshot, nor is less than a quarter of the last one.
const LEAST_BYTES: u64 = 64 << 20;
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);
/// The state has left behind what it will if nothing was added for so many looks. A file goes when the last that it has is
/// reclaimed, and a member that has other work comes to the next some seconds later (`raft/restraint.rs`).
const AT_REST: u32 = 30;

/// What is there at one look.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Bytes that were ever written to the log.
    written: u64,
    applied: u64,
    /// Where the last snapshot ends.
    last: Option<LogId>,
    /// Bytes of everything in it.
    size: u64,
    /// Bytes on the disk that are there for it alone.
    alone: u64,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
struct Due {
    count: u64,
    /// What was there when a snapshot was asked for last.
    asked: Seen,
    /// The last snapshot, and what it alone took when it was seen first, or when another was asked for.
    first: (Option<LogId>, u64),
    /// What it alone took at the last look, and at how many looks before.
    alone: (u64, u32),
}

impl Due {
    fn is_due(&mut self, seen: &Seen) -> bool {
        if self.first.0 != seen.last {
            self.first = (seen.last, seen.alone);
        }
        let limit = LEAST_BYTES.max(seen.size / 4);
        let covered = seen.last.map_or(0, |log_id| log_id.index);
        let by_log = seen.written - self.asked.written > limit;
        self.alone = match self.alone {
            (alone, looks) if alone == seen.alone => (alone, looks.saturating_add(1)),
            _ => (seen.alone, 0),
        };
        // While the state goes on leaving files, the next snapshot would soon be in the same case.
        let by_waste = self.alone.1 >= AT_REST && seen.alone.saturating_sub(self.first.1) > limit;
        let counted_from = match self.asked.last == seen.last {
            // What was asked for has not come.
            true => covered.max(self.asked.applied),
            false => covered,
        };
        let by_count = self.count > 0 && seen.applied.saturating_sub(counted_from) >= self.count;
        let is_due = (by_log || by_waste || by_count) && seen.applied > covered;
        if is_due {
            self.asked = *seen;
            self.first.1 = seen.alone;
        }
        is_due
    }
}

/// Asks for snapshots when they are due, for as long as Raft runs; after `count` entries too, if that is not 0.
pub(super) async fn take_snapshots(raft: Raft, wal: Wal, snapshots: Arc<SnapshotStore>, count: u64) {
    let mut due = Due {
        count,
        ..Due::default()
    };
    loop {
        tokio::time::sleep(LOOK).await;
        let metrics = raft.metrics().borrow_watched().clone();
        if metrics.running_state.is_err() {
            return;
        }
        let current = snapshots.current();
        let current = current.as_ref();
        let seen = Seen {
            written: wal.bytes_written(),
            applied: metrics.last_applied.map_or(0, |log_id| log_id.index),
            last: current.and_then(|current| current.meta.last_log_id),
            size: current.map_or(0, |current| current.snapshot.size()),
            alone: current.map_or(0, |current| current.snapshot.bytes_alone()),
        };
        if due.is_due(&seen) && raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::entry::new_log_id;

    const MIB: u64 = 1 << 20;

    /// Of a state of this many MiB, at entry 100; the last snapshot is of entry 50.
    fn seen(size: u64, written: u64, alone: u64) -> Seen {
        Seen {
            written: written * MIB,
            applied: 100,
            last: Some(new_log_id(1, 1, 50)),
            size: size * MIB,
            alone: alone * MIB,
        }
    }

    /// How often one is due while the last one alone takes so many MiB, at so many looks.
    fn dues(due: &mut Due, alone: u64, looks: u32) -> usize {
        let looks = (0..looks).filter(|_| due.is_due(&seen(100, 0, alone)));
        looks.count()
    }

    #[test]
    fn it_is_when_the_log_has_grown_by_some_of_the_state() {
        let mut due = Due::default();
        assert!(!due.is_due(&seen(10, 64, 0)));
        assert!(due.is_due(&seen(10, 65, 0)));
        // It was asked for: the log grows anew.
        assert!(!due.is_due(&seen(10, 100, 0)));
        assert!(!due.is_due(&seen(1000, 300, 0)));
        assert!(due.is_due(&seen(1000, 316, 0)));
    }

    #[test]
    fn it_is_when_the_last_keeps_much_of_what_the_state_left_and_that_is_over() {
        let mut due = Due::default();
        // From the first: not left behind since.
        for alone in [500, 550, 600, 650] {
            assert_eq!(dues(&mut due, alone, AT_REST), 0);
        }
        assert_eq!(dues(&mut due, 650, 3 * AT_REST), 1);
    }

    #[test]
    fn it_is_after_so_many_entries_and_never_without_any() {
        let mut due = Due {
            count: 50,
            ..Due::default()
        };
        assert!(due.is_due(&seen(0, 0, 0)));
        let nothing_new = Seen {
            applied: 50,
            ..seen(0, 1000, 0)
        };
        assert!(!due.is_due(&nothing_new));
    }

    /// It is asked for, and none is there at the next look.
    #[test]
    fn one_that_is_refused_is_due_after_as_much_again() {
        let mut by_count = Due {
            count: 50,
            ..Due::default()
        };
        let at = |applied| Seen {
            applied,
            ..seen(0, 0, 0)
        };
        let due = [100, 100, 149, 150, 150].map(|applied| by_count.is_due(&at(applied)));
        assert_eq!(due, [true, false, false, true, false]);

        let mut by_waste = Due::default();
        let due = [0, 65, 65, 129, 130].map(|alone| dues(&mut by_waste, alone, AT_REST + 1));
        assert_eq!(due, [0, 1, 0, 0, 1]);
    }

    #[test]
    fn after_one_that_is_taken_entries_are_counted_from_its_end() {
        let mut due = Due {
            count: 50,
            ..Due::default()
        };
        assert!(due.is_due(&seen(0, 0, 0)));
        let at = |last, applied| Seen {
            applied,
            last: Some(new_log_id(1, 1, last)),
            ..seen(0, 0, 0)
        };
        // Entries were applied before it was begun.
        assert!(!due.is_due(&at(110, 159)));
        assert!(due.is_due(&at(110, 160)));
        // It is still written when the next is due, which comes to nothing then.
        assert!(due.is_due(&at(110, 210)));
        assert!(due.is_due(&at(160, 211)));
    }
}
