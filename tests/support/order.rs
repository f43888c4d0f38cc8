//! Checker A: do the revisions tell a true story?
//!
//! Every answer carries a revision, so the store itself says in which order everything happened: a write at revision
//! r after all reads at r − 1 and before all at r. The checker takes it at its word and replays that order through the
//! sequential model; O(n log n), so that long histories are no problem. It fails if
//!
//! - an acknowledged write isn't in the store, or the store has a revision that nobody wrote (or wrote twice);
//! - any answer differs from the model's at its place, or the store's content from the model's;
//! - the order contradicts time: one operation had ended before another began, yet comes after it. That is a stale
//!   read, a revision going back, or a write that was overtaken by one begun after its end.
//!
//! A store that passes is strictly serializable for this history: the order is a witness. Serializable reads may be
//! stale, so they are held to the content alone.

use std::collections::BTreeMap;

use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::response_op::Response as OpAnswer;
use pontoon::pb::etcdserverpb::{RequestOp, TxnResponse};

use super::history::{Operation, Outcome, Past, only_reads};
use super::model::Model;
use super::rpc::{Request, Response};

/// Where each operation has its place: the revision it wrote, or read at; none if it was never executed.
pub type Places = Vec<Option<i64>>;

/// Checks a history against the store's past.
pub fn check(operations: &[Operation], past: &Past) -> Result<Places, String> {
    let mut replay = Replay::new(operations, past)?;
    for revision in 1..=past.last() {
        replay.step(revision)?;
    }
    check_time(operations, &replay.places)?;
    Ok(replay.places)
}

/// The replay under way.
struct Replay<'a> {
    operations: &'a [Operation],
    past: &'a Past,
    model: Model,
    writers: BTreeMap<i64, usize>,
    readers: BTreeMap<i64, Vec<usize>>,
    /// Writes of unknown outcome that nothing was found of yet, by start.
    open: Vec<usize>,
    places: Places,
}

impl<'a> Replay<'a> {
    fn new(operations: &'a [Operation], past: &'a Past) -> Result<Replay<'a>, String> {
        let mut replay = Replay {
            operations,
            past,
            model: Model::default(),
            writers: BTreeMap::new(),
            readers: BTreeMap::new(),
            open: Vec::new(),
            places: vec![None; operations.len()],
        };
        for (index, operation) in operations.iter().enumerate() {
            replay.sort_in(index, operation)?;
        }
        replay.open.sort_by_key(|index| operations[*index].start);
        Ok(replay)
    }

    fn sort_in(&mut self, index: usize, operation: &Operation) -> Result<(), String> {
        let response = match &operation.outcome {
            Outcome::Answered(response) => response,
            Outcome::Unknown if !only_reads(&operation.request) => {
                self.open.push(index);
                return Ok(());
            }
            Outcome::Unknown | Outcome::Refused => return Ok(()),
        };
        let revision = response.revision();
        if revision < 1 || revision > self.past.last() {
            let last = self.past.last();
            return Err(format!(
                "answered at revision {revision}, but the store is at {last}: {operation:?}"
            ));
        }
        self.places[index] = Some(revision);
        if !has_written(response) {
            self.readers.entry(revision).or_default().push(index);
        } else if let Some(other) = self.writers.insert(revision, index) {
            let other = &self.operations[other];
            return Err(format!(
                "two writes have revision {revision}: {operation:?} and {other:?}"
            ));
        }
        Ok(())
    }

    /// Replays the write at a revision and then the reads there.
    fn step(&mut self, revision: i64) -> Result<(), String> {
        match self.writers.get(&revision) {
            Some(&writer) => self.replay(writer, revision)?,
            None if revision == 1 => {}
            None => self.explain(revision)?,
        }
        if self.model.pairs() != self.past.at(revision) {
            let (ours, store) = (self.model.pairs(), self.past.at(revision));
            return Err(format!(
                "at revision {revision} the store holds {store:?}, not {ours:?}"
            ));
        }
        for reader in self.readers.remove(&revision).unwrap_or_default() {
            self.replay(reader, revision)?;
        }
        Ok(())
    }

    /// The model must give the recorded answer, and be at `revision` then.
    fn replay(&mut self, index: usize, revision: i64) -> Result<(), String> {
        let operation = &self.operations[index];
        let expected = self.model.answer(&operation.request);
        if expected.as_ref().ok() != operation.answer() || self.model.revision() != revision {
            return Err(format!(
                "at revision {revision} the answer should have been {expected:?}: {operation:?}"
            ));
        }
        Ok(())
    }

    /// Finds the write of unknown outcome that made this revision. Of several that could have, the one that began
    /// first: the others may still explain a later revision, and it contradicts time the least.
    fn explain(&mut self, revision: i64) -> Result<(), String> {
        let new: Vec<&[u8]> = self.new_values(revision).collect();
        for (at, &index) in self.open.iter().enumerate() {
            if !could_leave(&self.operations[index].request, &new) {
                continue;
            }
            let executed = self.model.answer(&self.operations[index].request).is_ok();
            if executed && self.model.revision() == revision && self.model.pairs() == self.past.at(revision) {
                self.places[index] = Some(revision);
                self.open.remove(at);
                return Ok(());
            }
            self.model.rollback(revision - 1);
        }
        let (before, now) = (self.past.at(revision - 1), self.past.at(revision));
        Err(format!(
            "nobody wrote revision {revision}: {before:?} became {now:?}"
        ))
    }

    /// The values that a revision brought.
    fn new_values(&self, revision: i64) -> impl Iterator<Item = &'a [u8]> {
        let pairs = self.past.at(revision).iter();
        pairs
            .filter(move |kv| kv.mod_revision == revision)
            .map(|kv| &kv.value[..])
    }
}

/// A quick look before the model is asked: can this request have left just these new values?
fn could_leave(request: &Request, new: &[&[u8]]) -> bool {
    let puts =
        |op: &RequestOp| matches!(&op.request, Some(Op::RequestPut(put)) if new.contains(&&put.value[..]));
    match request {
        Request::Put(put) => new.contains(&&put.value[..]),
        Request::Delete(_) => new.is_empty(),
        Request::Txn(txn) => new.is_empty() || txn.success.iter().chain(&txn.failure).any(puts),
        Request::Range(_) | Request::Compact(_) => false,
    }
}

/// Whether an answer is that of a write which changed something.
fn has_written(response: &Response) -> bool {
    match response {
        Response::Put(_) => true,
        Response::Delete(delete) => delete.deleted > 0,
        Response::Txn(txn) => txn_has_written(txn),
        Response::Range(_) | Response::Compact(_) => false,
    }
}

fn txn_has_written(txn: &TxnResponse) -> bool {
    txn.responses
        .iter()
        .filter_map(|op| op.response.as_ref())
        .any(|op| match op {
            OpAnswer::ResponsePut(_) => true,
            OpAnswer::ResponseDeleteRange(delete) => delete.deleted > 0,
            OpAnswer::ResponseTxn(nested) => txn_has_written(nested),
            OpAnswer::ResponseRange(_) => false,
        })
}

/// No operation may come before one that had ended when it began.
fn check_time(operations: &[Operation], places: &Places) -> Result<(), String> {
    let mut placed: Vec<(i64, usize)> = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        let Some(revision) = places[index] else { continue };
        // Reads at a revision come after its write.
        let reads = operation.answer().is_some_and(|response| !has_written(response));
        if !operation.is_serializable() {
            placed.push((2 * revision + i64::from(reads), index));
        }
    }
    placed.sort_unstable();
    // The operation that began last, of all at earlier places.
    let mut latest: Option<usize> = None;
    for group in placed.chunk_by(|a, b| a.0 == b.0) {
        for (_, index) in group {
            let operation = &operations[*index];
            if let Some(earlier) = latest
                .map(|latest| &operations[latest])
                .filter(|it| it.start > operation.end)
            {
                return Err(format!(
                    "{operation:?} had ended before {earlier:?} began, which yet comes first"
                ));
            }
        }
        let started = group.iter().map(|(_, index)| *index).chain(latest);
        latest = started.max_by_key(|index| operations[*index].start);
    }
    Ok(())
}
