//! The disk, timed: how long it takes to make the log durable is the first thing to know about a slow member.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::journal::event::Synced;
use crate::journal::{Event, Journal};
use crate::metrics::{Histogram, Metrics};
use crate::storage::fs::{File, Fs, RealFs};

/// As long as this should no disk take: a tenth of the default election timeout.
const SLOW: Duration = Duration::from_millis(100);
/// Slow ones are told no more often.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What was told of slow syncs.
#[derive(Default)]
struct Slow {
    /// When, and how many were not told since.
    told: Mutex<(Option<Instant>, u64)>,
}

impl Slow {
    fn tell(&self, journal: &Journal, is_wal: bool, took: Duration) {
        let more = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.0.is_some_and(|at| at.elapsed() < TELL_EVERY) {
                told.1 += 1;
                return;
            }
            told.0 = Some(Instant::now());
            std::mem::take(&mut told.1)
        };
        journal.record(Event::SlowSync {
            of: if is_wal { Synced::Log } else { Synced::Snapshot },
            took_ms: took.as_millis() as u64,
            more,
        });
    }
}

/// The disk of this machine, with a clock beside it.
pub struct TimedFs {
    /// Files below are the log's, others snapshots.
    wal_dir: PathBuf,
    metrics: Arc<Metrics>,
    slow: Arc<Slow>,
}

impl TimedFs {
    /// Tells `metrics`; the log is in `wal_dir`.
    pub fn new(wal_dir: PathBuf, metrics: Arc<Metrics>) -> Self {
        TimedFs {
            wal_dir,
            metrics,
            slow: Arc::default(),
        }
    }

    fn timed(&self, path: &Path, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(TimedFile {
            file,
            is_wal: path.starts_with(&self.wal_dir),
            metrics: self.metrics.clone(),
            slow: self.slow.clone(),
        })
    }
}

impl Fs for TimedFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealFs.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealFs.list(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(self.timed(path, RealFs.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(self.timed(path, RealFs.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }

    fn link(&self, path: &Path, other: &Path) -> io::Result<()> {
        RealFs.link(path, other)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFs.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealFs.sync_dir(dir)
    }
}

struct TimedFile {
    file: Box<dyn File>,
    is_wal: bool,
    metrics: Arc<Metrics>,
    slow: Arc<Slow>,
}

impl TimedFile {
    fn syncs(&self) -> &Histogram {
        match self.is_wal {
            true => &self.metrics.wal_syncs,
            false => &self.metrics.snapshot_syncs,
        }
    }
}

impl File for TimedFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        self.file.read_at(offset, length)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.is_wal {
            self.metrics.wal_bytes.add(data.len() as u64);
        }
        self.file.write_at(offset, data)
    }

    fn sync_data(&self) -> io::Result<()> {
        let began = Instant::now();
        let synced = self.file.sync_data();
        let took = began.elapsed();
        self.syncs().observe(took);
        if took >= SLOW {
            self.slow.tell(&self.metrics.journal, self.is_wal, took);
        }
        synced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_of_the_log_are_told_from_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let metrics = Arc::new(Metrics::new(false));
        let fs = TimedFs::new(dir.path().join("wal"), metrics.clone());
        fs.create_dir_all(&dir.path().join("wal")).expect("made");
        for (path, syncs) in [("wal/1", 2), ("snapshot", 1)] {
            let file = fs.create(&dir.path().join(path)).expect("a file");
            file.write_at(0, b"abc").expect("written");
            for _ in 0..syncs {
                file.sync_data().expect("synced");
            }
        }
        let count = |histogram: &Histogram| histogram.cumulative().last().map(|(_, count)| *count);
        assert_eq!(count(&metrics.wal_syncs), Some(2));
        assert_eq!(count(&metrics.snapshot_syncs), Some(1));
        assert_eq!(metrics.wal_bytes.get(), 3);
    }

    #[test]
    fn a_slow_disk_is_told_now_and_then() {
        let (slow, journal) = (Slow::default(), Journal::default());
        for _ in 0..3 {
            slow.tell(&journal, true, SLOW);
        }
        let records = journal.after(0, 9);
        assert_eq!(records.len(), 1);
        assert_eq!(
            records[0].says,
            "the disk was slow: 100 ms until the log was safe"
        );
        assert_eq!(slow.told.lock().expect("not poisoned").1, 2);
    }
}
