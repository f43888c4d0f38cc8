//! openraft's log storage over our write-ahead log.
//!
//! Vote, entries, truncations, purges and committed marks go through one queue into one file sequence, so their
//! order on disk is their order here; Raft's safety needs no more and no less. `append` returns once the entries
//! are readable; the callback fires when they are durable, and the log calls back in order.
//!
//! What waits for the disk: `append`'s callback and `save_vote`. What does not: `truncate_after` and `purge` (a
//! later append or vote makes them durable first, being in the same queue) and `save_committed` (losing it only
//! means that a restart applies less before it hears from a leader).

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use futures::Stream;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use super::entry::{decode_log_id, decode_vote, encode_log_id, encode_vote};
use super::{Entry, LogId, Types, Vote};
use crate::storage::wal::Wal;

/// Bytes of entries that one read hands to replication or apply: below the peers' message limit, large enough
/// that catching up is not bound by round trips.
const READ_BYTES: usize = 1 << 20;

/// The Raft log of this member. Cheap to clone; every clone is the same log.
#[derive(Clone)]
pub struct LogStore {
    wal: Wal,
}

impl LogStore {
    /// The Raft log kept in `wal`.
    pub fn new(wal: Wal) -> Self {
        LogStore { wal }
    }

    /// The vote that this member holds. One that is being saved counts: nothing is granted by it before it was given to be
    /// saved here.
    pub fn vote(&self) -> io::Result<Option<Vote>> {
        self.wal.vote().map(|vote| decode_vote(&vote)).transpose()
    }

    /// The log id of an entry, or of the place that the log was purged to.
    pub fn log_id_at(&self, index: u64) -> io::Result<Option<LogId>> {
        let purged = self.wal.state().purged.filter(|(upto, _)| *upto == index);
        match purged {
            Some((_, mark)) => decode_log_id(&mark).map(Some),
            None => Ok(self.read(index, index + 1)?.first().map(|entry| entry.log_id())),
        }
    }

    /// Makes the log one that goes on from a snapshot. Its file is on disk before the log is told to let go of what the
    /// snapshot replaces; a crash in between leaves entries that never were committed where others are, or a log that
    /// ends before the snapshot does.
    pub fn agree_with(&self, snapshot: &LogId) -> io::Result<()> {
        match self.log_id_at(snapshot.index)? {
            Some(found) if found != *snapshot => {
                tracing::warn!(
                    index = snapshot.index,
                    "dropping entries that a snapshot replaced"
                );
                self.wal.truncate_after(snapshot.index.checked_sub(1));
            }
            _ => {}
        }
        let state = self.wal.state();
        if state.last.map_or(state.first, |last| last + 1) <= snapshot.index {
            self.wal.purge(snapshot.index, encode_log_id(snapshot));
        }
        Ok(())
    }

    /// Those entries of `from..to` that are in the log, as many as one read hands out.
    pub fn entries(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let (from, to) = self.bounds(&(from..to));
        match from < to {
            true => self.read(from, to),
            false => Ok(Vec::new()),
        }
    }

    fn read(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        self.wal
            .read(from, to, READ_BYTES)?
            .into_iter()
            .map(|(_, bytes)| Entry::decode(bytes))
            .collect()
    }

    fn read_all(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut next = from;
        while next < to {
            let chunk = self.read(next, to)?;
            let Some(last) = chunk.last() else { break };
            next = last.index() + 1;
            entries.extend(chunk);
        }
        Ok(entries)
    }

    /// The given range as `from..to`, cut to what the log holds.
    fn bounds(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let state = self.wal.state();
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let end = state.last.map_or(state.first, |last| last + 1);
        (from.max(state.first), to.min(end))
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.bounds(&range);
        self.read_all(from, to)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end)
    }

    /// In slices, so that applying a long log after a restart does not hold it in memory at once.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.bounds(&range);
        let log = self.clone();
        let slices = futures::stream::try_unfold(from, move |next| {
            let log = log.clone();
            async move {
                if next >= to {
                    return Ok::<_, io::Error>(None);
                }
                let entries = log.read(next, to)?;
                let Some(last) = entries.last() else {
                    return Ok(None);
                };
                let next = last.index() + 1;
                Ok(Some((futures::stream::iter(entries.into_iter().map(Ok)), next)))
            }
        });
        Box::pin(futures::TryStreamExt::try_flatten(slices))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.vote()
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.wal.state();
        let purged = state.purged.map(|(_, mark)| decode_log_id(&mark)).transpose()?;
        let last = match state.last {
            Some(last) => self.read(last, last + 1)?.last().map(|entry| entry.log_id()),
            None => purged,
        };
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        self.wal
            .save_vote(encode_vote(vote), Box::new(move |result| drop(tx.send(result))));
        rx.await
            .map_err(|_| io::Error::other("the write-ahead log stopped"))?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(log_id) = committed {
            self.wal.save_committed(encode_log_id(&log_id));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.wal
            .state()
            .committed
            .map(|mark| decode_log_id(&mark))
            .transpose()
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<(u64, Bytes)> = entries
            .into_iter()
            .map(|mut entry| (entry.index(), entry.encoded()))
            .collect();
        self.wal
            .append(entries, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.wal.truncate_after(last.map(|log_id| log_id.index));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.wal.purge(log_id.index, encode_log_id(&log_id));
        Ok(())
    }
}
