//! Checker B: is each key, by itself, a linearizable register? Revisions are not believed.
//!
//! The search of Wing and Gong with Lowe's memory ("Testing for linearizability", 2017): try to line the operations
//! up one by one; any that began before the first end of those left may be next; a set of lined-up operations with
//! the same resulting value is tried once. Two things keep it small: a read that fits may always be lined up at once,
//! and what became of unknown writes is known from the store's past, so that none of them has to be guessed.
//!
//! Linearizability is local, so keys are checked one by one (a transaction over several keys counts as one operation
//! on each: that it is atomic is for checker A to say). The search can explode; it is bounded, and a history that
//! isn't decided within the bound counts as failed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use pontoon::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::response_op::Response as OpAnswer;
use pontoon::pb::etcdserverpb::{Compare, RangeRequest, RangeResponse, TxnRequest, TxnResponse};

use super::history::{Operation, Outcome};
use super::model::in_range;
use super::order::Places;
use super::rpc::{Request, Response};

/// Sets of lined-up operations that are looked at, for one key, before the search gives up.
const MAX_STATES: usize = 3_000_000;

/// A register's content: nothing, or a value.
type Value = Option<Bytes>;

/// One operation on one key: what it found there, and what it left.
#[derive(Debug, Clone)]
struct Step {
    start: u64,
    end: u64,
    /// The conditions that the value before must meet.
    expect: Vec<Expect>,
    /// The value after, if it changes.
    write: Option<Value>,
}

#[derive(Debug, Clone, PartialEq)]
enum Expect {
    Is(Value),
    IsNot(Value),
    Present,
}

impl Expect {
    fn holds(&self, value: &Value) -> bool {
        match self {
            Expect::Is(wanted) => value == wanted,
            Expect::IsNot(other) => value != other,
            Expect::Present => value.is_some(),
        }
    }
}

impl Step {
    fn fits(&self, value: &Value) -> bool {
        self.expect.iter().all(|expect| expect.holds(value))
    }

    fn finds(&self, value: &Value) -> bool {
        self.expect.contains(&Expect::Is(value.clone()))
    }
}

/// Checks every key. `places` tells which of the unknown writes were executed.
pub fn check(operations: &[Operation], places: &Places) -> Result<(), String> {
    let keys: BTreeSet<Bytes> = operations
        .iter()
        .flat_map(|operation| keys_of(&operation.request))
        .collect();
    let mut registers: BTreeMap<Bytes, Vec<Step>> = BTreeMap::new();
    for (operation, place) in operations.iter().zip(places) {
        for key in &keys {
            registers
                .entry(key.clone())
                .or_default()
                .extend(step_on(key, operation, *place));
        }
    }
    for (key, mut steps) in registers {
        bound_unknown(&mut steps);
        steps.sort_by_key(|step| step.start);
        search(&steps).map_err(|why| format!("key {key:?} is not linearizable: {why}"))?;
    }
    Ok(())
}

/// An unknown write was executed before the first operation that found its value had ended.
fn bound_unknown(steps: &mut [Step]) {
    for index in 0..steps.len() {
        let Some(value) = steps[index]
            .write
            .clone()
            .filter(|_| steps[index].end == u64::MAX)
        else {
            continue;
        };
        if value.is_some() {
            let found = steps
                .iter()
                .filter(|step| step.finds(&value))
                .map(|step| step.end)
                .min();
            steps[index].end = found.unwrap_or(u64::MAX).max(steps[index].start);
        }
    }
}

/// Operations lined up so far: all before `base`, and those in `beyond` (sorted).
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    base: usize,
    beyond: Vec<usize>,
    value: Value,
}

impl State {
    fn take(&mut self, index: usize, step: &Step) {
        let at = self.beyond.partition_point(|other| *other < index);
        self.beyond.insert(at, index);
        let run = self
            .beyond
            .iter()
            .enumerate()
            .take_while(|(at, index)| self.base + at == **index)
            .count();
        self.beyond.drain(..run);
        self.base += run;
        if let Some(value) = &step.write {
            self.value = value.clone();
        }
    }

    /// The operations that may be next: begun before the first end of all that are left.
    fn candidates(&self, steps: &[Step]) -> Vec<usize> {
        let mut first_end = u64::MAX;
        let mut found = Vec::new();
        for (index, step) in steps.iter().enumerate().skip(self.base) {
            if step.start > first_end {
                break;
            }
            if self.beyond.binary_search(&index).is_err() {
                first_end = first_end.min(step.end);
                found.push(index);
            }
        }
        found
    }

    fn count(&self) -> usize {
        self.base + self.beyond.len()
    }
}

fn search(steps: &[Step]) -> Result<(), String> {
    let mut seen = HashSet::new();
    let mut stack = vec![State {
        base: 0,
        beyond: Vec::new(),
        value: None,
    }];
    let mut furthest = stack[0].clone();
    while let Some(mut state) = stack.pop() {
        let mut candidates = state.candidates(steps);
        let is_read = |index: &usize| steps[*index].write.is_none() && steps[*index].fits(&state.value);
        if let Some(read) = candidates.iter().copied().find(is_read) {
            state.take(read, &steps[read]);
            stack.push(state);
            continue;
        }
        if state.base == steps.len() {
            return Ok(());
        }
        if state.count() > furthest.count() {
            furthest = state.clone();
        }
        if !seen.insert(state.clone()) {
            continue;
        }
        if seen.len() > MAX_STATES {
            return Err(format!("undecided after {MAX_STATES} states"));
        }
        candidates.retain(|index| steps[*index].write.is_some() && steps[*index].fits(&state.value));
        // The one that ends first is tried first: it is the likeliest.
        candidates.sort_by_key(|index| std::cmp::Reverse(steps[*index].end));
        for index in candidates {
            let mut next = state.clone();
            next.take(index, &steps[index]);
            stack.push(next);
        }
    }
    let left = furthest
        .candidates(steps)
        .into_iter()
        .map(|index| &steps[index])
        .collect::<Vec<_>>();
    let (count, value) = (furthest.count(), &furthest.value);
    Err(format!(
        "after {count} operations the value is {value:?} and none of these can follow: {left:?}"
    ))
}

/// Keys that a request names by themselves.
fn keys_of(request: &Request) -> Vec<Bytes> {
    match request {
        Request::Range(range) if range.range_end.is_empty() => vec![range.key.clone()],
        Request::Put(put) => vec![put.key.clone()],
        Request::Delete(delete) if delete.range_end.is_empty() => vec![delete.key.clone()],
        Request::Txn(txn) => {
            let named = txn.compare.iter().map(|compare| compare.key.clone());
            named
                .chain(
                    txn.success
                        .iter()
                        .filter_map(|op| op.request.as_ref())
                        .filter_map(key_of_op),
                )
                .collect()
        }
        _ => Vec::new(),
    }
}

fn key_of_op(op: &Op) -> Option<Bytes> {
    match op {
        Op::RequestPut(put) => Some(put.key.clone()),
        Op::RequestDeleteRange(delete) => Some(delete.key.clone()),
        Op::RequestRange(_) | Op::RequestTxn(_) => None,
    }
}

/// What an operation did to one key, if it was executed and touches it.
fn step_on(key: &Bytes, operation: &Operation, place: Option<i64>) -> Option<Step> {
    let (expect, write) = match (&operation.outcome, &operation.request) {
        (Outcome::Answered(_), _) if operation.is_serializable() => return None,
        (Outcome::Answered(response), request) => answered(key, request, response)?,
        (Outcome::Unknown, request) if place.is_some() => executed(key, request)?,
        (Outcome::Unknown | Outcome::Refused, _) => return None,
    };
    Some(Step {
        start: operation.start,
        end: operation.end,
        expect,
        write,
    })
}

/// What was found at a key, and what was left there.
type Effect = (Vec<Expect>, Option<Value>);

fn answered(key: &Bytes, request: &Request, response: &Response) -> Option<Effect> {
    match (request, response) {
        (Request::Range(request), Response::Range(response)) => {
            Some((vec![found_by_range(key, request, response)?], None))
        }
        (Request::Put(put), Response::Put(_)) if put.key == *key => {
            Some((vec![], Some(Some(put.value.clone()))))
        }
        (Request::Delete(delete), Response::Delete(response)) if delete.key == *key => {
            assert!(
                delete.range_end.is_empty(),
                "the workload deletes keys one by one"
            );
            match response.deleted {
                0 => Some((vec![Expect::Is(None)], None)),
                _ => Some((vec![Expect::Present], Some(None))),
            }
        }
        (Request::Txn(request), Response::Txn(response)) => answered_txn(key, request, response),
        _ => None,
    }
}

fn found_by_range(key: &Bytes, request: &RangeRequest, response: &RangeResponse) -> Option<Expect> {
    assert!(
        request.revision == 0 && request.limit == 0,
        "the workload reads whole ranges, and now"
    );
    let value = response
        .kvs
        .iter()
        .find(|kv| kv.key == *key)
        .map(|kv| kv.value.clone());
    in_range(key, &request.key, &request.range_end).then_some(Expect::Is(value))
}

fn answered_txn(key: &Bytes, request: &TxnRequest, response: &TxnResponse) -> Option<Effect> {
    let mut expect = Vec::new();
    if response.succeeded || request.compare.len() == 1 {
        expect.extend(
            request
                .compare
                .iter()
                .filter_map(|compare| told(key, compare, response.succeeded)),
        );
    }
    let branch = if response.succeeded {
        &request.success
    } else {
        &request.failure
    };
    for (op, answer) in branch.iter().zip(&response.responses) {
        if let (Some(Op::RequestRange(request)), Some(OpAnswer::ResponseRange(response))) =
            (&op.request, &answer.response)
        {
            expect.extend(found_by_range(key, request, response));
        }
    }
    let write = written_by(key, branch.iter().filter_map(|op| op.request.as_ref()));
    (!expect.is_empty() || write.is_some()).then_some((expect, write))
}

/// What the outcome of a comparison tells about the value.
fn told(key: &Bytes, compare: &Compare, held: bool) -> Option<Expect> {
    let equal = compare.result == CompareResult::Equal as i32;
    let value = compare.target == CompareTarget::Value as i32;
    match &compare.target_union {
        Some(TargetUnion::Value(wanted)) if compare.key == *key && equal && value => {
            let wanted = Some(wanted.clone());
            Some(if held {
                Expect::Is(wanted)
            } else {
                Expect::IsNot(wanted)
            })
        }
        _ => None,
    }
}

fn written_by<'a>(key: &Bytes, ops: impl Iterator<Item = &'a Op>) -> Option<Value> {
    let written = |op: &Op| match op {
        Op::RequestPut(put) if put.key == *key => Some(Some(put.value.clone())),
        Op::RequestDeleteRange(delete) if in_range(key, &delete.key, &delete.range_end) => Some(None),
        _ => None,
    };
    ops.filter_map(written).last()
}

/// An unknown write that was executed: it took its success branch, as only that one writes.
fn executed(key: &Bytes, request: &Request) -> Option<Effect> {
    match request {
        Request::Put(put) if put.key == *key => Some((vec![], Some(Some(put.value.clone())))),
        Request::Delete(delete) if delete.key == *key => Some((vec![Expect::Present], Some(None))),
        Request::Txn(txn) => {
            let expect: Vec<Expect> = txn
                .compare
                .iter()
                .filter_map(|compare| told(key, compare, true))
                .collect();
            let write = written_by(key, txn.success.iter().filter_map(|op| op.request.as_ref()));
            (!expect.is_empty() || write.is_some()).then_some((expect, write))
        }
        _ => None,
    }
}
