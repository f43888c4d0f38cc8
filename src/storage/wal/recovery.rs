//! Reading a log back: what it holds, what a crash tore, and what must be refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::io_thread::{CLOSED, CLOSING, IoThread, Kept, SPARE, Tail, encode_closed, zero_filled};
use super::record::{FORMAT, HEAD, Head, HeadError, Place, RECORD_HEAD, Record, durable_mark_after};
use super::{Index, Shared, Stored, WalError, WalOptions, parse_segment_name, segment_name};
use crate::storage::fs::{File, Fs};

/// The number of a log's first segment.
const FIRST_SEGMENT: u64 = 1;

/// Opens the log in `dir`, or makes it.
pub(super) fn open(fs: Arc<dyn Fs>, dir: &Path, options: WalOptions) -> Result<(IoThread, Index), WalError> {
    fs.create_dir_all(dir)?;
    let names = fs.list(dir)?;
    // Unfinished, of another run.
    for name in names
        .iter()
        .filter(|name| [SPARE, CLOSING].contains(&name.as_str()))
    {
        fs.remove(&dir.join(name))?;
    }
    let numbers: Vec<u64> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    let closed = match names.iter().any(|name| name == CLOSED) {
        true => Some(read_whole(&*fs.open(&dir.join(CLOSED))?)?),
        false => None,
    };
    let mut replay = Replay {
        fs: fs.clone(),
        dir: dir.to_path_buf(),
        closed,
        index: Index::default(),
        kept: Kept::default(),
        segments: BTreeMap::new(),
        missing_before: None,
        cache_bytes: options.cache_bytes,
    };
    let (log, tail) = match numbers.is_empty() {
        true => replay.create(&options)?,
        false => replay.read_segments(&numbers)?,
    };
    replay.check_complete()?;
    if replay.closed.is_some() {
        // Before anything else is written: from here on the log is open.
        fs.remove(&dir.join(CLOSED))?;
        fs.sync_dir(dir)?;
    }
    let Replay {
        index,
        kept,
        segments,
        dir,
        ..
    } = replay;
    let thread = IoThread {
        fs,
        dir,
        options,
        log,
        tail,
        segments,
        unvouched: false,
        spare: None,
        appended: 0,
        kept,
        closing: false,
    };
    vouch_for_what_was_read(thread, index)
}

/// What was read may be in the machine's memory only: have it on disk, and say so in the log, before relying on it.
///
/// The last segment also repeats what older ones say of vote, purge and commit: a crash may have come after it was
/// begun and before they were carried on to it, and the older ones may be removed soon.
fn vouch_for_what_was_read(mut thread: IoThread, index: Index) -> Result<(IoThread, Index), WalError> {
    thread.tail.file.sync_data()?;
    thread.tail.durable = thread.tail.at;
    let shared = Shared {
        index: std::sync::Mutex::new(index),
    };
    thread.vouch(&shared)?;
    thread.carry_on(&shared)?;
    let index = shared
        .index
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok((thread, index))
}

struct Replay {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    closed: Option<Bytes>,
    index: Index,
    kept: Kept,
    segments: BTreeMap<u64, u64>,
    /// Entries before this one are in no segment: they must turn out to be purged.
    missing_before: Option<u64>,
    cache_bytes: usize,
}

/// One segment while it is read.
struct Segment {
    number: u64,
    log: u64,
    bytes: Bytes,
    is_last: bool,
}

impl Replay {
    fn create(&mut self, options: &WalOptions) -> Result<(u64, Tail), WalError> {
        if self.closed.is_some() || options.must_exist {
            return Err(self.corrupt("", 0, "its segments are gone"));
        }
        let spare = self.dir.join(SPARE);
        let file: Arc<dyn File> = zero_filled(&*self.fs, &spare, options.segment_bytes)?.into();
        let head = Head {
            log: options.log_id,
            number: FIRST_SEGMENT,
            chain: 0,
            size: options.segment_bytes,
        };
        file.write_at(0, &head.encode())?;
        file.sync_data()?;
        self.fs
            .rename(&spare, &self.dir.join(segment_name(FIRST_SEGMENT)))?;
        self.fs.sync_dir(&self.dir)?;
        self.index.files.insert(FIRST_SEGMENT, file.clone());
        self.segments.insert(FIRST_SEGMENT, 0);
        let at = Place {
            segment: FIRST_SEGMENT,
            offset: HEAD,
        };
        Ok((
            head.log,
            Tail {
                file,
                size: head.size,
                at,
                durable: at,
                chain: 0,
            },
        ))
    }

    fn read_segments(&mut self, numbers: &[u64]) -> Result<(u64, Tail), WalError> {
        let mut before: Option<(u64, Tail)> = None;
        for (at, number) in numbers.iter().enumerate() {
            let is_last = at + 1 == numbers.len();
            before = Some(self.read_segment(*number, is_last, before)?);
        }
        let (log, tail) = before.ok_or_else(|| self.corrupt("", 0, "no segment"))?;
        self.check_closed(log, &tail)?;
        Ok((log, tail))
    }

    fn read_segment(
        &mut self,
        number: u64,
        is_last: bool,
        before: Option<(u64, Tail)>,
    ) -> Result<(u64, Tail), WalError> {
        let name = segment_name(number);
        let file: Arc<dyn File> = self.fs.open(&self.dir.join(&name))?.into();
        let bytes = read_whole(&*file)?;
        let head = Head::decode(&bytes).map_err(|error| match error {
            HeadError::Format(found) => WalError::Format { found, known: FORMAT },
            HeadError::Damaged(what) => self.corrupt(&name, 0, what),
        })?;
        self.check_head(&name, &head, number, bytes.len() as u64, before.as_ref())?;
        self.index.files.insert(number, file.clone());
        self.segments.insert(number, 0);
        let segment = Segment {
            number,
            log: head.log,
            bytes,
            is_last,
        };
        let (end, chain) = self.read_records(&segment, head.chain)?;
        self.check_rest(&segment, &*file, end)?;
        let at = Place {
            segment: number,
            offset: end,
        };
        Ok((
            head.log,
            Tail {
                file,
                size: head.size,
                at,
                durable: at,
                chain,
            },
        ))
    }

    fn check_head(
        &self,
        name: &str,
        head: &Head,
        number: u64,
        length: u64,
        before: Option<&(u64, Tail)>,
    ) -> Result<(), WalError> {
        if head.number != number {
            return Err(self.corrupt(name, 0, "it holds another segment than its name says"));
        }
        if head.size != length {
            return Err(self.corrupt(name, 0, "the file has another length than it was made with"));
        }
        let Some((log, tail)) = before else { return Ok(()) };
        if head.log != *log {
            return Err(self.corrupt(name, 0, "it belongs to another log"));
        }
        if number != tail.at.segment + 1 {
            return Err(self.corrupt(name, 0, "the segment before it is missing"));
        }
        if head.chain != tail.chain {
            return Err(self.corrupt(name, 0, "it does not continue where the segment before it ends"));
        }
        Ok(())
    }

    /// Replays records up to the first place where there is none; its offset, and the chain there.
    fn read_records(&mut self, segment: &Segment, mut chain: u32) -> Result<(u64, u32), WalError> {
        let mut offset = HEAD as usize;
        loop {
            let rest = segment.bytes.slice(offset..);
            let ends = rest.iter().take(RECORD_HEAD).all(|byte| *byte == 0);
            if ends {
                return Ok((offset as u64, chain));
            }
            let (record, length, next) = match Record::decode(&rest, chain) {
                Ok(read) => read,
                Err(what) => {
                    self.refuse_unless_torn(segment, offset as u64, what)?;
                    return Ok((offset as u64, chain));
                }
            };
            let stored = Stored {
                segment: segment.number,
                offset: offset as u64,
                length: length as u32,
                chain,
            };
            self.replay(&segment.number, stored, record)?;
            offset += length;
            chain = next;
        }
    }

    /// Damage is a torn end only if it may be part of a batch that nobody was told of.
    fn refuse_unless_torn(&self, segment: &Segment, offset: u64, what: &str) -> Result<(), WalError> {
        let place = Place {
            segment: segment.number,
            offset,
        };
        let vouched = durable_mark_after(&segment.bytes, segment.number, segment.log, offset)
            .is_some_and(|mark| mark > place);
        if !segment.is_last || self.closed.is_some() || vouched {
            return Err(self.corrupt(&segment_name(segment.number), offset, what));
        }
        Ok(())
    }

    /// What stands beyond the end is zeros, or torn: then it is made zeros.
    fn check_rest(&self, segment: &Segment, file: &dyn File, end: u64) -> Result<(), WalError> {
        let rest = &segment.bytes[end as usize..];
        let Some(last) = rest.iter().rposition(|byte| *byte != 0) else {
            return Ok(());
        };
        self.refuse_unless_torn(segment, end, "there are bytes beyond the log's end")?;
        tracing::warn!(
            segment = segment.number,
            offset = end,
            bytes = last + 1,
            "cutting off the log's torn end"
        );
        file.write_at(end, &vec![0; last + 1])?;
        Ok(file.sync_data()?)
    }

    fn replay(&mut self, segment: &u64, stored: Stored, record: Record) -> Result<(), WalError> {
        self.kept.note(&record);
        match record {
            Record::Sync(_) => {}
            Record::Vote(vote) => self.index.vote = Some(vote),
            Record::Committed(mark) => self.index.committed = Some(mark),
            Record::Truncate(last) => self.index.truncate(last),
            Record::Purge(upto, mark) => self.index.purge(upto, mark),
            Record::Entry(index, bytes) => {
                let last = self.segments.entry(*segment).or_default();
                *last = (*last).max(index);
                self.replay_entry(index, &bytes, stored)?;
            }
        }
        Ok(())
    }

    fn replay_entry(&mut self, index: u64, bytes: &[u8], stored: Stored) -> Result<(), WalError> {
        let next = self.index.next();
        if index < self.index.first {
            // Purged by a record before it; only the entries behind it count.
            return Ok(());
        }
        if index < next {
            let name = segment_name(stored.segment);
            return Err(self.corrupt(&name, stored.offset, "an entry stands where another one is"));
        }
        if index > next {
            // Segments before this one are gone, as what they held was purged, by a record that is still to come.
            self.index.truncate(None);
            self.missing_before = Some(index);
        }
        // A copy: its segment is in memory as a whole only while it is replayed.
        self.index.push(index, Bytes::copy_from_slice(bytes));
        if let Some(slot) = self.index.slot(index) {
            slot.place = Some(stored);
        }
        self.index.shrink_cache(self.cache_bytes);
        Ok(())
    }

    fn check_complete(&self) -> Result<(), WalError> {
        let Some(missing_before) = self.missing_before else {
            return Ok(());
        };
        let purged = self.index.purged.as_ref().map_or(0, |(upto, _)| upto + 1);
        match missing_before <= purged {
            true => Ok(()),
            false => Err(self.corrupt(
                "",
                0,
                &format!("entries {purged} to {} are missing", missing_before - 1),
            )),
        }
    }

    fn check_closed(&self, log: u64, tail: &Tail) -> Result<(), WalError> {
        match &self.closed {
            Some(closed) if *closed != encode_closed(log, tail.at, tail.chain) => {
                Err(self.corrupt(CLOSED, 0, "the log does not end where it was closed"))
            }
            _ => Ok(()),
        }
    }

    fn corrupt(&self, file: &str, offset: u64, what: &str) -> WalError {
        WalError::Corrupt {
            file: self.dir.join(file).display().to_string(),
            offset,
            what: what.to_string(),
        }
    }
}

fn read_whole(file: &dyn File) -> std::io::Result<Bytes> {
    let length = usize::try_from(file.length()?).map_err(std::io::Error::other)?;
    file.read_at(0, length)
}
