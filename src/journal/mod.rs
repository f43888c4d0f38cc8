//! What happened here that a person wants to know: elections, leaders, members, links, snapshots, slow disks.
//!
//! One record is all that is written of such a thing. The line in the log, the page that a member serves, `pontoon
//! events` and the tests all have it from here, so they can't tell different stories.
//!
//! ```text
//! 41  leader-lost     node1, leader of term 6, has been silent for 1.0 s
//! 42  campaign        asks whether it could lead in term 7
//! 43  vote            node1 does not answer: Connection refused
//! 44  vote            node3 would vote for it in term 7
//! ```
//!
//! **Bounded.** The newest [`KEPT`] records stay. What happens again and again while nothing changes, such as the
//! attempts of a member that is cut off, is told once by those who tell.
//!
//! **No part of any hot path.** What is recorded happens a few times an hour, in an election some dozen times a second.
//! How far things are (positions in the log, rates) is no event: who wants to know looks when it wants to.
//!
//! **Time** is the wall clock as it was when the member started, and what a monotonic clock says has passed since: the
//! order of the times is that of the records, whatever is done to the clock. A member that starts again begins a new
//! `run`, with records from 1 on.
//!
//! It holds no key and no value, so it may be shown to whoever may see the metrics.
//!
//! Files: [`event`] what can happen · [`words`] what is said of it.

pub mod event;
mod words;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use serde::Serialize;
use tokio::sync::watch;

pub use self::event::{Event, Id, Left, Loss, Role};

/// Records that are kept.
pub const KEPT: usize = 4096;

/// One event, and when it was.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Tells the member's runs apart.
    pub run: u64,
    /// Counts from 1 on in each run.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// The same as a line.
    pub says: String,
    /// What that means, for whoever does not know Raft.
    pub explain: &'static str,
}

/// The journal of one run of a member.
#[derive(Debug)]
pub struct Journal {
    run: u64,
    started: Instant,
    started_at: u64,
    kept: Mutex<Kept>,
    /// The newest record's number.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    records: VecDeque<Record>,
    last: u64,
    /// How members are called.
    names: BTreeMap<u64, String>,
}

impl Default for Journal {
    fn default() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Journal {
            // Within what a browser's numbers hold.
            run: rand::random::<u32>().into(),
            started: Instant::now(),
            started_at: since_1970.map_or(0, |since| since.as_millis() as u64),
            kept: Mutex::default(),
            newest: watch::channel(0).0,
        }
    }
}

impl Journal {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells this run from others.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// The time, as the records have it.
    pub fn now(&self) -> u64 {
        self.started_at + self.started.elapsed().as_millis() as u64
    }

    /// How members are called from now on. Those that are gone keep their names: there are records of them.
    pub fn call(&self, names: impl IntoIterator<Item = (u64, String)>) {
        let named = names.into_iter().filter(|(_, name)| !name.is_empty());
        self.kept().names.extend(named);
    }

    /// Writes down what happened, here and in the log.
    pub fn record(&self, event: Event) {
        let seq = {
            let mut kept = self.kept();
            let record = Record {
                run: self.run,
                seq: kept.last + 1,
                at: self.now(),
                says: words::says(&event, &kept.names),
                explain: words::explain(&event),
                event,
            };
            log(&record);
            kept.last = record.seq;
            if kept.records.len() == KEPT {
                kept.records.pop_front();
            }
            kept.records.push_back(record);
            kept.last
        };
        self.newest.send_replace(seq);
    }

    /// At most `most` records behind the one with the number `seq`: the newest of them, oldest first.
    pub fn after(&self, seq: u64, most: usize) -> Vec<Record> {
        let kept = self.kept();
        let new = usize::try_from(kept.last.saturating_sub(seq)).unwrap_or(usize::MAX);
        let count = new.min(most).min(kept.records.len());
        kept.records
            .range(kept.records.len() - count..)
            .cloned()
            .collect()
    }

    /// Changes with each record.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

fn log(record: &Record) {
    let kind = record.event.kind();
    match record.event.is_trouble() {
        true => tracing::warn!(target: "pontoon::journal", kind, "{}", record.says),
        false => tracing::info!(target: "pontoon::journal", kind, "{}", record.says),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(to: u64) -> Event {
        Event::Term { from: to - 1, to }
    }

    #[test]
    fn the_newest_records_are_kept_and_counted() {
        let journal = Journal::default();
        for number in 1..=KEPT as u64 + 10 {
            journal.record(term(number));
        }
        let all = journal.after(0, usize::MAX);
        assert_eq!((all.len(), all[0].seq), (KEPT, 11));
        assert!(all.windows(2).all(|pair| pair[0].at <= pair[1].at));
        let newest = KEPT as u64 + 10;
        assert_eq!(*journal.newest().borrow(), newest);
        let seqs = |after, most| -> Vec<u64> {
            let records = journal.after(after, most);
            records.iter().map(|record| record.seq).collect()
        };
        assert_eq!(seqs(newest - 2, 10), [newest - 1, newest]);
        assert_eq!(seqs(0, 1), [newest]);
        assert_eq!(seqs(newest, 10), [0; 0]);
        assert_eq!(seqs(newest + 5, 10), [0; 0], "as of another run");
    }

    #[test]
    fn members_are_called_by_their_names_as_soon_as_they_are_known() {
        let journal = Journal::default();
        let up = || Event::LinkUp { peer: Id(0xa1) };
        journal.record(up());
        journal.call([(0xa1, "node2".to_string()), (0xb2, String::new())]);
        journal.record(up());
        let says: Vec<String> = journal
            .after(0, 9)
            .into_iter()
            .map(|record| record.says)
            .collect();
        assert_eq!(says, ["a1 answers", "node2 answers"]);
    }

    #[test]
    fn a_record_is_flat_json_with_ids_as_clients_print_them() {
        let journal = Journal::default();
        journal.record(Event::LeaderLost {
            leader: Id(u64::MAX),
            term: 7,
            why: Loss::Silent,
            silent_ms: 1004,
        });
        let json = serde_json::to_value(&journal.after(0, 1)[0]).expect("JSON");
        assert_eq!(json["kind"], "leader-lost");
        assert_eq!(json["leader"], "ffffffffffffffff");
        assert_eq!(json["silent_ms"], 1004);
        assert_eq!(json["seq"], 1);
        assert!(json["at"].as_u64().is_some_and(|at| at > 1_600_000_000_000));
    }
}
