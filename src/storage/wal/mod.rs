//! The write-ahead log: what this member has promised, in one order, on disk.
//!
//! Vote, entries, truncations, purges and committed marks go into one sequence of segment files. [`Wal::append`]
//! returns once the entries can be read; one thread writes whatever has queued, syncs once for all of it, and then
//! calls back, in order. So many appends share one sync without waiting for each other.
//!
//! # Torn or corrupt?
//!
//! After a crash the end of the log may be torn: bytes of a batch whose sync never returned. Nobody was told of it, so
//! it is cut off. The same damage further up is corruption of what *was* promised, and cutting there would lose it
//! silently: the member must refuse to start. To tell one from the other,
//!
//! * every batch begins with a sync record: it says up to where the log was on disk before this batch was written;
//! * the next batch is written only after the last one's sync returned, so a sync record anywhere after a damaged
//!   place that vouches for it is proof of corruption; they are looked for beyond the damage;
//! * a segment is begun only when all before it is on disk: damage in any but the last segment is corruption;
//! * when nothing more comes, a sync record of its own soon vouches for the last batch;
//! * a clean close writes the `closed` file: where the log ends, and that nothing may follow. Then any bit that
//!   differs is found.
//!
//! What can't be told apart: damage to the last batch before a crash, within the moment until it is vouched for.
//!
//! # Failure
//!
//! A write or sync that failed is never tried again: after a failed sync the kernel may have dropped the pages and
//! call the next one good. Everything in the batch and everything later gets the error, and the member stops.
//!
//! # Bounds
//!
//! Entries' bytes are kept in memory while not on disk, and the newest on top of that up to `cache_bytes`. What is not
//! on disk yet is bounded by the proposals in flight, which the server limits, and on followers by openraft's pipeline.

mod io_thread;
mod record;
mod recovery;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;

use self::io_thread::{IoThread, Job};
use self::record::Record;
use super::Row;
use super::fs::{File, Fs};

/// Called once, with the outcome, on the log's thread.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;
/// Told of the first failure, on the log's thread.
pub type OnFailure = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// How the log is kept.
#[derive(Clone)]
pub struct WalOptions {
    /// Size of a segment file; a larger record gets a larger one.
    pub segment_bytes: u64,
    /// Bytes of entries kept in memory beyond those not on disk yet.
    pub cache_bytes: usize,
    /// Bytes written with one sync, about.
    pub max_batch_bytes: usize,
    /// Names a new log: a segment of another one is not taken for its own.
    pub log_id: u64,
    /// Whether there was a log here before: if it is gone it is not made anew, as the votes in it are gone too.
    pub must_exist: bool,
    /// Told of the first failure.
    pub stop: Option<OnFailure>,
}

impl Default for WalOptions {
    fn default() -> Self {
        WalOptions {
            segment_bytes: 16 << 20,
            cache_bytes: 32 << 20,
            max_batch_bytes: 4 << 20,
            log_id: 1,
            must_exist: false,
            stop: None,
        }
    }
}

/// Why a log does not open.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// What was promised is damaged. Nothing may be served or voted from it.
    #[error(
        "the log is corrupt: {what} ({file}, offset {offset}); do not delete anything by hand: \
         replace this member by one with an empty data directory, it catches up from the others"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// Written by another version.
    #[error(
        "the log has format {found}, this version of pontoon knows format {known}: use the newer version"
    )]
    Format {
        /// The format found.
        found: u32,
        /// The format known.
        known: u32,
    },
    /// The disk.
    #[error("cannot read or write the log: {0}")]
    Io(#[from] io::Error),
}

/// What the log holds. Entries are `first..=last`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogState {
    /// The last vote saved.
    pub vote: Option<Bytes>,
    /// The last committed mark saved.
    pub committed: Option<Bytes>,
    /// Up to where entries were purged, and the mark given then.
    pub purged: Option<(u64, Bytes)>,
    /// Index of the first entry, or of the next if there is none.
    pub first: u64,
    /// Index of the last entry.
    pub last: Option<u64>,
}

/// Where an entry stands, once it is on disk.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Names this append of the index: a truncated entry's place must not be taken for its successor's.
    append: u64,
    place: Option<Stored>,
}

/// Where an entry's record stands.
#[derive(Debug, Clone, Copy)]
struct Stored {
    segment: u64,
    offset: u64,
    length: u32,
    /// The chain before it, to check it alone.
    chain: u32,
}

/// The log in memory.
#[derive(Default)]
struct Index {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    first: u64,
    slots: Row<Slot>,
    appends: u64,
    /// The committed mark that is not on disk, and the last append before it.
    unsaved: Option<(Bytes, u64)>,
    /// The newest entries: there are many more places than entries in memory.
    cached: Row<Bytes>,
    cached_bytes: usize,
    files: BTreeMap<u64, Arc<dyn File>>,
    bytes_written: u64,
}

impl Index {
    fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// The first entry whose bytes are in memory.
    fn cached_from(&self) -> u64 {
        self.next() - self.cached.len() as u64
    }

    fn push(&mut self, index: u64, bytes: Bytes) -> u64 {
        if self.slots.is_empty() {
            self.first = index;
        }
        assert_eq!(index, self.next(), "entries are contiguous");
        self.appends += 1;
        self.cached_bytes += bytes.len();
        self.cached.push_back(bytes);
        self.slots.push_back(Slot {
            append: self.appends,
            place: None,
        });
        self.appends
    }

    /// The mark that is not on disk, if it came behind no later append than that.
    fn take_committed(&mut self, appended: u64) -> Option<Bytes> {
        let (mark, _) = self.unsaved.take_if(|(_, after)| *after <= appended)?;
        Some(mark)
    }

    fn slot(&mut self, index: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.first)?;
        self.slots.get_mut(usize::try_from(at).ok()?)
    }

    /// The bytes of an entry, if they are in memory.
    fn bytes(&self, index: u64) -> Option<&Bytes> {
        let at = index.checked_sub(self.cached_from())?;
        self.cached.get(usize::try_from(at).ok()?)
    }

    /// Those of `from..to` that are in memory, up to the first that is not: as many as fit in `max_bytes`, and one at least.
    fn run(&self, from: u64, to: u64, max_bytes: usize) -> Vec<(u64, Bytes)> {
        let mut bytes = 0;
        let mut fits = |entry: &Bytes| {
            let is_first = bytes == 0;
            bytes += entry.len();
            is_first || bytes <= max_bytes
        };
        (from..to)
            .map_while(|index| {
                self.bytes(index)
                    .filter(|entry| fits(entry))
                    .map(|entry| (index, entry.clone()))
            })
            .collect()
    }

    /// Entries after `last` are gone.
    fn truncate(&mut self, last: Option<u64>) {
        let keep = last.map_or(0, |last| (last + 1).saturating_sub(self.first)) as usize;
        while self.slots.len() > keep {
            self.slots.pop_back();
            self.cached_bytes -= self.cached.pop_back().map_or(0, |bytes| bytes.len());
        }
    }

    /// Entries up to `upto` are gone; the log may end before that (a snapshot was installed).
    fn purge(&mut self, upto: u64, mark: Bytes) {
        if self.purged.as_ref().is_some_and(|(before, _)| *before >= upto) {
            return;
        }
        while self.first <= upto {
            if self.cached_from() == self.first {
                self.forget_oldest();
            }
            match self.slots.pop_front() {
                Some(_) => self.first += 1,
                None => self.first = upto + 1,
            }
        }
        self.purged = Some((upto, mark));
    }

    /// Lets go of the oldest bytes in memory that are on disk, down to the bound.
    fn shrink_cache(&mut self, bound: usize) {
        while self.cached_bytes > bound {
            let oldest = self.cached_from();
            if self.slot(oldest).is_none_or(|slot| slot.place.is_none()) {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        self.cached_bytes -= self.cached.pop_front().map_or(0, |bytes| bytes.len());
    }

    fn state(&self) -> LogState {
        LogState {
            vote: self.vote.clone(),
            committed: self.committed.clone(),
            purged: self.purged.clone(),
            first: self.first,
            last: self.next().checked_sub(1).filter(|_| !self.slots.is_empty()),
        }
    }
}

/// State shared by the handles and the thread.
struct Shared {
    index: Mutex<Index>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log. Cheap to clone; every clone is the same log.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    thread: Arc<Mutex<Option<JoinHandle<io::Result<()>>>>>,
    dir: PathBuf,
}

impl Wal {
    /// Opens the log in `dir`, or makes it. Whatever a crash left torn is cut off; corruption is refused.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, options: WalOptions) -> Result<Wal, WalError> {
        let (thread, index) = recovery::open(fs, dir, options)?;
        let shared = Arc::new(Shared {
            index: Mutex::new(index),
        });
        let (jobs, queue) = channel();
        let thread = IoThread::spawn(thread, shared.clone(), queue)?;
        Ok(Wal {
            shared,
            jobs,
            thread: Arc::new(Mutex::new(Some(thread))),
            dir: dir.to_path_buf(),
        })
    }

    /// What the log holds now, on disk or not yet.
    pub fn state(&self) -> LogState {
        self.shared.lock().state()
    }

    /// Appends entries, which follow on the last. They can be read when this returns; `done` is called when they are
    /// on disk.
    pub fn append(&self, entries: Vec<(u64, Bytes)>, done: Done) {
        let mut index = self.shared.lock();
        let entries = entries
            .into_iter()
            .map(|(at, bytes)| (Record::Entry(at, bytes.clone()), index.push(at, bytes)));
        let records = entries.collect();
        // Sent under the lock, so that the queue has the order of the calls.
        self.send(Job {
            records,
            done: Some(done),
            close: false,
        });
    }

    /// The last vote given to be saved, whether or not it is on disk yet.
    pub fn vote(&self) -> Option<Bytes> {
        self.shared.lock().vote.clone()
    }

    /// Saves the vote; `done` is called when it is on disk.
    pub fn save_vote(&self, vote: Bytes, done: Done) {
        let mut index = self.shared.lock();
        index.vote = Some(vote.clone());
        self.send(Job {
            records: vec![(Record::Vote(vote), 0)],
            done: Some(done),
            close: false,
        });
    }

    /// Entries after `last` are gone (`None`: all). What is appended later reaches the disk later.
    pub fn truncate_after(&self, last: Option<u64>) {
        let mut index = self.shared.lock();
        index.truncate(last);
        self.send(Job {
            records: vec![(Record::Truncate(last), 0)],
            done: None,
            close: false,
        });
    }

    /// Entries up to `upto` are gone, as a durable snapshot covers them.
    pub fn purge(&self, upto: u64, mark: Bytes) {
        let mut index = self.shared.lock();
        index.purge(upto, mark.clone());
        self.send(Job {
            records: vec![(Record::Purge(upto, mark), 0)],
            done: None,
            close: false,
        });
    }

    /// Saves how far entries are committed, with the next batch: nothing waits for it, and the thread is not woken.
    pub fn save_committed(&self, mark: Bytes) {
        let mut index = self.shared.lock();
        index.committed = Some(mark.clone());
        index.unsaved = Some((mark, index.appends));
    }

    /// Calls `done` when everything so far is on disk.
    pub fn sync(&self, done: Done) {
        let _in_order = self.shared.lock();
        self.send(Job {
            records: Vec::new(),
            done: Some(done),
            close: false,
        });
    }

    /// Entries from `from` up to, not including, `to`: as many as fit in `max_bytes`, and one at least.
    pub fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<(u64, Bytes)>> {
        let run = self.shared.lock().run(from, to, max_bytes);
        if !run.is_empty() {
            return Ok(run);
        }
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for index in from..to {
            let Some(entry) = self.read_one(index)? else { break };
            bytes += entry.len();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push((index, entry));
        }
        Ok(entries)
    }

    fn read_one(&self, index: u64) -> io::Result<Option<Bytes>> {
        let (stored, file) = {
            let mut log = self.shared.lock();
            if let Some(bytes) = log.bytes(index) {
                return Ok(Some(bytes.clone()));
            }
            let Some(stored) = log.slot(index).and_then(|slot| slot.place) else {
                return Ok(None);
            };
            (stored, log.files.get(&stored.segment).cloned())
        };
        let file = file.ok_or_else(|| self.damaged(stored, "its segment is gone"))?;
        let bytes = file.read_at(stored.offset, stored.length as usize)?;
        match Record::decode(&bytes, stored.chain) {
            Ok((Record::Entry(found, entry), _, _)) if found == index => Ok(Some(entry)),
            Ok(_) => Err(self.damaged(stored, "another record stands there")),
            Err(what) => Err(self.damaged(stored, what)),
        }
    }

    fn damaged(&self, at: Stored, what: &str) -> io::Error {
        let file = self.dir.join(segment_name(at.segment));
        let text = format!(
            "the log is corrupt: {what} ({}, offset {})",
            file.display(),
            at.offset
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
    }

    /// Bytes written since the log was opened.
    pub fn bytes_written(&self) -> u64 {
        self.shared.lock().bytes_written
    }

    /// Writes and syncs what is queued, marks the log as closed, and ends its thread.
    pub fn close(&self) -> io::Result<()> {
        self.send(Job {
            records: Vec::new(),
            done: None,
            close: true,
        });
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("the log's thread panicked")),
        }
    }

    /// A queue without a thread behind it means that the log failed or was closed: the job is told so.
    fn send(&self, job: Job) {
        if let Err(refused) = self.jobs.send(job)
            && let Some(done) = refused.0.done
        {
            done(Err(io::Error::other("the write-ahead log is closed")));
        }
    }
}

/// Name of a segment's file.
fn segment_name(number: u64) -> String {
    format!("{number:016x}.wal")
}

/// Reads what [`segment_name`] wrote.
fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}
