//! The log's thread: gathers what has queued, writes it, syncs once, calls back.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::record::{HEAD, Head, Place, Record};
use super::{Done, Shared, Stored, WalOptions, segment_name};
use crate::storage::fs::{File, Fs};

/// Once the log has been idle for this long, a sync record of its own vouches for the last batch.
const IDLE: Duration = Duration::from_millis(50);
/// Files are zero-filled in slices of this size. Linux keeps what one write brought as one piece of its page cache, and
/// each later write of a few hundred bytes goes through all blocks of the piece that it falls in, again and again.
const ZEROS: usize = 16 << 10;
/// The file that a clean close leaves.
pub(super) const CLOSED: &str = "closed";
/// The same, while it is written.
pub(super) const CLOSING: &str = "closing";
/// The file that becomes the next segment.
pub(super) const SPARE: &str = "spare";

/// Work for the thread. An entry comes with the name of its append.
pub(super) struct Job {
    pub records: Vec<(Record, u64)>,
    pub done: Option<Done>,
    pub close: bool,
}

/// The segment that is written to.
pub(super) struct Tail {
    pub file: Arc<dyn File>,
    pub size: u64,
    /// Where the next record goes.
    pub at: Place,
    /// Up to where everything is on disk.
    pub durable: Place,
    pub chain: u32,
}

/// What the thread owns.
pub(super) struct IoThread {
    pub fs: Arc<dyn Fs>,
    pub dir: PathBuf,
    pub options: WalOptions,
    /// Names the log.
    pub log: u64,
    pub tail: Tail,
    /// Segments in order, each with the last index that was appended in it.
    pub segments: BTreeMap<u64, u64>,
    /// Whether the last batch is not vouched for yet.
    pub unvouched: bool,
    /// Makes the next segment's file, beside everything else.
    pub spare: Option<JoinHandle<io::Result<()>>>,
    /// The last append that was taken from the queue.
    pub appended: u64,
    /// What a new segment must repeat, as older ones go.
    pub kept: Kept,
    /// Whether it was told to close.
    pub closing: bool,
}

/// The newest of what older segments say, as it is on disk.
#[derive(Default)]
pub(super) struct Kept {
    pub vote: Option<Bytes>,
    pub purged: Option<(u64, Bytes)>,
    pub committed: Option<Bytes>,
}

impl Kept {
    pub(super) fn note(&mut self, record: &Record) {
        match record {
            Record::Vote(vote) => self.vote = Some(vote.clone()),
            Record::Purge(upto, _) if self.purged.as_ref().is_some_and(|(before, _)| before >= upto) => {}
            Record::Purge(upto, mark) => self.purged = Some((*upto, mark.clone())),
            Record::Committed(mark) => self.committed = Some(mark.clone()),
            Record::Sync(_) | Record::Entry(..) | Record::Truncate(_) => {}
        }
    }

    fn records(&self) -> Vec<(Record, u64)> {
        let purged = self.purged.clone().map(|(upto, mark)| Record::Purge(upto, mark));
        let vote = self.vote.clone().map(Record::Vote);
        let committed = self.committed.clone().map(Record::Committed);
        [purged, vote, committed]
            .into_iter()
            .flatten()
            .map(|record| (record, 0))
            .collect()
    }
}

/// A batch: the bytes to write, and where its entries will stand.
#[derive(Default)]
struct Batch {
    bytes: BytesMut,
    stored: Vec<(u64, u64, Stored)>,
    purges: bool,
}

impl IoThread {
    pub(super) fn spawn(
        mut self,
        shared: Arc<Shared>,
        queue: Receiver<Job>,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        std::thread::Builder::new()
            .name("wal".to_string())
            .spawn(move || {
                let result = self.run(&shared, &queue);
                if let Err(error) = &result {
                    self.fail(&queue, error);
                }
                // Nothing of this log touches the directory any more once the thread has ended.
                if let Some(spare) = self.spare.take() {
                    let _ = spare.join();
                }
                result
            })
    }

    fn run(&mut self, shared: &Shared, queue: &Receiver<Job>) -> io::Result<()> {
        loop {
            let first = match queue.recv_timeout(IDLE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    self.idle(shared)?;
                    match queue.recv() {
                        Ok(job) => job,
                        Err(_) => return Ok(()),
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let jobs = self.gather(first, queue);
            self.commit(shared, jobs)?;
            if self.closing {
                return self.close(shared);
            }
        }
    }

    /// The job and what has queued behind it, up to the bound.
    fn gather(&mut self, first: Job, queue: &Receiver<Job>) -> Vec<Job> {
        let size = |job: &Job| job.records.iter().map(|(record, _)| record.len()).sum::<usize>();
        let mut bytes = size(&first);
        self.closing = first.close;
        let mut jobs = vec![first];
        while bytes < self.options.max_batch_bytes && !self.closing {
            let Ok(job) = queue.try_recv() else { break };
            bytes += size(&job);
            self.closing = job.close;
            jobs.push(job);
        }
        jobs
    }

    /// Writes and syncs the jobs' records, then calls back. On failure everybody in the batch is told.
    fn commit(&mut self, shared: &Shared, jobs: Vec<Job>) -> io::Result<()> {
        let (mut records, mut dones) = (Vec::new(), Vec::new());
        for job in jobs {
            records.extend(job.records);
            dones.extend(job.done);
        }
        if records.is_empty() && dones.is_empty() {
            return Ok(());
        }
        let appends = records.iter().map(|(_, append)| *append);
        self.appended = appends.fold(self.appended, u64::max);
        records.extend(self.committed(shared));
        let result = self.write(shared, &records);
        for done in dones {
            done(result.as_ref().map_err(copy).copied());
        }
        result
    }

    /// The committed mark that waits for a batch, if all that it speaks of is on disk before it.
    fn committed(&self, shared: &Shared) -> Option<(Record, u64)> {
        let mark = shared.lock().take_committed(self.appended)?;
        Some((Record::Committed(mark), 0))
    }

    fn write(&mut self, shared: &Shared, records: &[(Record, u64)]) -> io::Result<()> {
        let mut rest = records;
        while !rest.is_empty() {
            let fitting = self.fitting(rest);
            if fitting == 0 {
                self.roll(shared, rest[0].0.len() as u64)?;
                continue;
            }
            let (now, later) = rest.split_at(fitting);
            self.write_batch(shared, now)?;
            rest = later;
        }
        Ok(())
    }

    /// How many of the records fit into the segment, behind a sync record and with room for a last one.
    fn fitting(&self, records: &[(Record, u64)]) -> usize {
        let sync = 2 * Record::Sync(self.tail.durable).len() as u64;
        let mut room = self.tail.size.saturating_sub(self.tail.at.offset + sync);
        let fits = |(record, _): &&(Record, u64)| {
            let length = record.len() as u64;
            let fits = length <= room;
            room = room.saturating_sub(length);
            fits
        };
        records.iter().take_while(fits).count()
    }

    fn write_batch(&mut self, shared: &Shared, records: &[(Record, u64)]) -> io::Result<()> {
        let mut batch = Batch::default();
        let (mut chain, mut at) = (self.tail.chain, self.tail.at);
        self.put(
            &mut batch,
            &Record::Sync(self.tail.durable),
            0,
            &mut chain,
            &mut at,
        );
        for (record, append) in records {
            self.put(&mut batch, record, *append, &mut chain, &mut at);
        }
        self.tail.file.write_at(self.tail.at.offset, &batch.bytes)?;
        self.tail.file.sync_data()?;
        self.tail.chain = chain;
        self.tail.at = at;
        self.tail.durable = at;
        self.unvouched = true;
        for (record, _) in records {
            self.kept.note(record);
        }
        self.settle(shared, &batch);
        if self.spare.is_none() && self.tail.at.offset > self.tail.size / 2 {
            self.make_spare()?;
        }
        if batch.purges {
            self.drop_purged(shared)
        } else {
            Ok(())
        }
    }

    fn put(&mut self, batch: &mut Batch, record: &Record, append: u64, chain: &mut u32, at: &mut Place) {
        let before = *chain;
        *chain = record.encode(&mut batch.bytes, before, self.log, *at);
        if let Record::Entry(index, _) = record {
            let (segment, offset, length) = (at.segment, at.offset, record.len() as u32);
            batch.stored.push((
                *index,
                append,
                Stored {
                    segment,
                    offset,
                    length,
                    chain: before,
                },
            ));
            let last = self.segments.entry(segment).or_default();
            *last = (*last).max(*index);
        }
        batch.purges |= matches!(record, Record::Purge(..));
        at.offset += record.len() as u64;
    }

    /// Tells the index where the entries stand, so that their bytes may leave memory.
    fn settle(&self, shared: &Shared, batch: &Batch) {
        let mut index = shared.lock();
        index.bytes_written += batch.bytes.len() as u64;
        for (at, append, stored) in &batch.stored {
            // Truncated meanwhile, perhaps.
            if let Some(slot) = index.slot(*at).filter(|slot| slot.append == *append) {
                slot.place = Some(*stored);
            }
        }
        index.shrink_cache(self.options.cache_bytes);
    }

    /// The next segment: everything before it is on disk, and it begins with what older ones need not be kept for.
    fn roll(&mut self, shared: &Shared, record: u64) -> io::Result<()> {
        let number = self.tail.at.segment + 1;
        let carried = self.kept.records();
        let carried_bytes: usize = carried.iter().map(|(record, _)| record.len()).sum();
        let needed = HEAD + record + carried_bytes as u64 + 1024;
        let file: Arc<dyn File> = self.spare(needed)?.into();
        let size = file.length()?;
        let head = Head {
            log: self.log,
            number,
            chain: self.tail.chain,
            size,
        };
        file.write_at(0, &head.encode())?;
        file.sync_data()?;
        self.fs
            .rename(&self.dir.join(SPARE), &self.dir.join(segment_name(number)))?;
        self.fs.sync_dir(&self.dir)?;
        shared.lock().files.insert(number, file.clone());
        self.segments.insert(number, 0);
        let at = Place {
            segment: number,
            offset: HEAD,
        };
        self.tail = Tail {
            file,
            size,
            at,
            durable: at,
            chain: head.chain,
        };
        self.write_batch(shared, &carried)
    }

    /// A file of zeros for the next segment: the one that is being made, if it is large enough.
    fn spare(&mut self, needed: u64) -> io::Result<Box<dyn File>> {
        let path = self.dir.join(SPARE);
        if let Some(making) = self.spare.take() {
            making
                .join()
                .map_err(|_| io::Error::other("making a segment panicked"))??;
            if needed <= self.options.segment_bytes {
                return self.fs.open(&path);
            }
        }
        zero_filled(&*self.fs, &path, needed.max(self.options.segment_bytes))
    }

    fn make_spare(&mut self) -> io::Result<()> {
        let (fs, path, size) = (self.fs.clone(), self.dir.join(SPARE), self.options.segment_bytes);
        let make = move || zero_filled(&*fs, &path, size).map(drop);
        self.spare = Some(
            std::thread::Builder::new()
                .name("wal-spare".to_string())
                .spawn(make)?,
        );
        Ok(())
    }

    /// Removes the oldest segments whose entries are all purged. Their votes and marks were carried on.
    fn drop_purged(&mut self, shared: &Shared) -> io::Result<()> {
        let first = self.kept.purged.as_ref().map_or(0, |(upto, _)| upto + 1);
        let current = self.tail.at.segment;
        let mut dropped = false;
        while let Some(oldest) = self.segments.first_entry() {
            if *oldest.key() == current || *oldest.get() >= first {
                break;
            }
            let (number, _) = oldest.remove_entry();
            shared.lock().files.remove(&number);
            self.fs.remove(&self.dir.join(segment_name(number)))?;
            // One by one: a crash must leave no gap in the middle.
            self.fs.sync_dir(&self.dir)?;
            dropped = true;
        }
        if dropped {
            tracing::debug!(first, "removed purged segments of the log");
        }
        Ok(())
    }

    /// Nothing to do for a moment: vouch for the last batch.
    fn idle(&mut self, shared: &Shared) -> io::Result<()> {
        if self.unvouched {
            self.vouch(shared)?;
        }
        Ok(())
    }

    pub(super) fn vouch(&mut self, shared: &Shared) -> io::Result<()> {
        let committed = Vec::from_iter(self.committed(shared));
        let room = self.tail.size - self.tail.at.offset;
        let needed: usize = committed.iter().map(|(record, _)| record.len()).sum();
        if room >= (needed + Record::Sync(self.tail.durable).len()) as u64 {
            self.write_batch(shared, &committed)?;
        }
        self.unvouched = false;
        Ok(())
    }

    /// Repeats in the last segment what older ones say and must not be forgotten.
    pub(super) fn carry_on(&mut self, shared: &Shared) -> io::Result<()> {
        let carried = self.kept.records();
        self.write(shared, &carried)
    }

    fn close(&mut self, shared: &Shared) -> io::Result<()> {
        self.vouch(shared)?;
        if let Some(making) = self.spare.take() {
            making
                .join()
                .map_err(|_| io::Error::other("making a segment panicked"))??;
        }
        let closed = encode_closed(self.log, self.tail.at, self.tail.chain);
        let temporary = self.dir.join(CLOSING);
        let file = self.fs.create(&temporary)?;
        file.write_at(0, &closed)?;
        file.sync_data()?;
        self.fs.sync_dir(&self.dir)?;
        self.fs.rename(&temporary, &self.dir.join(CLOSED))?;
        self.fs.sync_dir(&self.dir)
    }

    /// After a failure: everybody who waits, and everybody who comes until the log is closed, is told.
    fn fail(&self, queue: &Receiver<Job>, error: &io::Error) {
        if let Some(stop) = &self.options.stop {
            stop(error);
        }
        let mut closing = self.closing;
        while let Some(job) = next(queue, closing) {
            if let Some(done) = job.done {
                done(Err(copy(error)));
            }
            closing |= job.close;
        }
    }
}

/// The next job; of a log that was told to close, only what is in the queue.
fn next(queue: &Receiver<Job>, closing: bool) -> Option<Job> {
    match closing {
        true => queue.try_recv().ok(),
        false => queue.recv().ok(),
    }
}

fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// Makes a file of zeros, all of it on disk: later syncs then have no metadata to write.
pub(super) fn zero_filled(fs: &dyn Fs, path: &std::path::Path, size: u64) -> io::Result<Box<dyn File>> {
    if fs.remove(path).is_ok() {
        tracing::debug!(path = %path.display(), "replacing an unfinished segment");
    }
    let file = fs.create(path)?;
    let zeros = vec![0; ZEROS.min(size as usize)];
    let mut at = 0;
    while at < size {
        let length = (size - at).min(zeros.len() as u64);
        file.write_at(at, &zeros[..length as usize])?;
        at += length;
    }
    file.sync_data()?;
    // Before it is renamed: or a crash could give the new name to an older file of this one.
    fs.sync_dir(path.parent().unwrap_or(path))?;
    Ok(file)
}

const CLOSED_MAGIC: &[u8; 8] = b"\xf0closed\x01";

/// Where a cleanly closed log ends.
pub(super) fn encode_closed(log: u64, end: Place, chain: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(40);
    out.put_slice(CLOSED_MAGIC);
    for number in [log, end.segment, end.offset] {
        out.put_u64_le(number);
    }
    out.put_u32_le(chain);
    let crc = crc32c::crc32c(&out);
    out.put_u32_le(crc);
    out.freeze()
}
