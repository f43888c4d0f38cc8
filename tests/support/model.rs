//! A sequential etcd on a `BTreeMap`: the oracle of the differential test and of the history checker.
//!
//! Every version of every key is kept for ever, so that a read at an old revision is a look-up, and compaction is
//! one number below which reads are refused. Written for clearness from etcd's documented behaviour, apart from the
//! server's code: the differential test runs it in step with a real etcd, which is what makes it worth trusting.
//!
//! Caveats: no leases (every lease is unknown), no auth; of the requests only a put is held to the size limit, and
//! without the few bytes that surround it in the log.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pontoon::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::response_op::Response as OpAnswer;
use pontoon::pb::etcdserverpb::{
    CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use pontoon::pb::mvccpb::KeyValue;
use prost::Message;
use tonic::Code;

use super::rpc::{Answer, Refusal, Request, Response, header};

/// etcd's default for `--max-txn-ops`.
const MAX_TXN_OPS: usize = 128;

/// etcd's default for `--max-request-bytes`.
const MAX_REQUEST_BYTES: usize = 3 << 19;

/// A key's versions, oldest first. A tombstone is a pair of version 0.
type Versions = Vec<KeyValue>;

/// The whole store.
#[derive(Debug, Clone)]
pub struct Model {
    keys: BTreeMap<Bytes, Versions>,
    revision: i64,
    compacted: i64,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            keys: BTreeMap::new(),
            revision: 1,
            compacted: -1,
        }
    }
}

impl Model {
    /// The store's revision: that of the last write.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The last compacted revision, −1 if none.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Answers one request, and changes what it changes.
    pub fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::Range(r) => self.top_range(r).map(Response::Range),
            Request::Put(r) => self.top_put(r).map(Response::Put),
            Request::Delete(r) => self.top_delete(r).map(Response::Delete),
            Request::Txn(r) => self.top_txn(r).map(Response::Txn),
            Request::Compact(r) => self.compact(r.revision).map(Response::Compact),
        }
    }

    /// All pairs that exist now, in key order.
    pub fn pairs(&self) -> Vec<KeyValue> {
        self.find(b"\0", b"\0", self.revision)
    }

    /// Makes the next write follow `revision`.
    pub fn set_revision(&mut self, revision: i64) {
        self.revision = revision;
    }

    /// Forgets every write after `revision`.
    pub fn rollback(&mut self, revision: i64) {
        for versions in self.keys.values_mut() {
            while versions.pop_if(|kv| kv.mod_revision > revision).is_some() {}
        }
        self.revision = revision;
    }

    fn top_range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        check_key(&request.key)?;
        self.check_revision(request.revision)?;
        Ok(self.range(request, self.revision))
    }

    fn top_put(&mut self, request: &PutRequest) -> Result<PutResponse, Refusal> {
        check_put(request)?;
        if request.encoded_len() > MAX_REQUEST_BYTES {
            return Err(refusal(Code::InvalidArgument, "etcdserver: request is too large"));
        }
        self.check_lease(request)?;
        self.check_ignored(request)?;
        self.revision += 1;
        Ok(self.put(request, self.revision))
    }

    fn top_delete(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Refusal> {
        check_key(&request.key)?;
        let mut write = Write {
            begin: self.revision,
            changed: false,
        };
        let response = self.delete(request, &mut write);
        self.revision = write.current();
        Ok(response)
    }

    fn top_txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        check_txn(request, MAX_TXN_OPS)?;
        check_duplicates(&request.success)?;
        check_duplicates(&request.failure)?;
        let taken = self.take(request);
        self.check_taken(&taken, &|model, op| model.check_taken_put(op))?;
        self.check_taken(&taken, &|model, op| model.check_taken_range(op))?;
        let mut write = Write {
            begin: self.revision,
            changed: false,
        };
        let mut response = self.run(&taken, &mut write);
        self.revision = write.current();
        response.header = header(self.revision);
        Ok(response)
    }

    fn compact(&mut self, revision: i64) -> Result<CompactionResponse, Refusal> {
        if revision <= self.compacted {
            return Err(compacted());
        }
        if revision > self.revision {
            return Err(future());
        }
        self.compacted = revision;
        Ok(CompactionResponse {
            header: header(self.revision),
        })
    }

    // Reading.

    fn check_revision(&self, revision: i64) -> Result<(), Refusal> {
        if revision > self.revision {
            return Err(future());
        }
        if revision > 0 && revision < self.compacted {
            return Err(compacted());
        }
        Ok(())
    }

    /// The pairs of `[key, end)` as they were at `revision`.
    fn find(&self, key: &[u8], end: &[u8], revision: i64) -> Vec<KeyValue> {
        self.keys
            .iter()
            .filter(|(candidate, _)| in_range(candidate, key, end))
            .filter_map(|(_, versions)| versions.iter().rfind(|kv| kv.mod_revision <= revision))
            .filter(|kv| kv.version > 0)
            .cloned()
            .collect()
    }

    fn get(&self, key: &[u8]) -> Option<KeyValue> {
        self.find(key, b"", i64::MAX).pop()
    }

    fn range(&self, request: &RangeRequest, current: i64) -> RangeResponse {
        let revision = if request.revision > 0 {
            request.revision
        } else {
            current
        };
        let mut kvs = self.find(&request.key, &request.range_end, revision);
        let mut response = RangeResponse {
            header: header(current),
            count: kvs.len() as i64,
            ..Default::default()
        };
        if request.count_only {
            return response;
        }
        let limit = usize::try_from(request.limit)
            .ok()
            .filter(|limit| *limit > 0)
            .unwrap_or(usize::MAX);
        // With no order and no filter etcd reads one pair more than the limit, then sorts those few.
        if request.sort_order == SortOrder::None as i32 && !has_filter(request) {
            kvs.truncate(limit.saturating_add(1));
        }
        kvs.retain(|kv| passes(request, kv));
        sort(request, &mut kvs);
        response.more = kvs.len() > limit;
        kvs.truncate(limit);
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        response.kvs = kvs;
        response
    }

    // Writing.

    fn check_lease(&self, request: &PutRequest) -> Result<(), Refusal> {
        if request.lease != 0 {
            return Err(refusal(Code::NotFound, "etcdserver: requested lease not found"));
        }
        Ok(())
    }

    fn check_ignored(&self, request: &PutRequest) -> Result<(), Refusal> {
        if (request.ignore_value || request.ignore_lease) && self.get(&request.key).is_none() {
            return Err(key_not_found());
        }
        Ok(())
    }

    fn put(&mut self, request: &PutRequest, revision: i64) -> PutResponse {
        let before = self.get(&request.key);
        let kept = before.clone().unwrap_or_default();
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: if kept.version > 0 {
                kept.create_revision
            } else {
                revision
            },
            mod_revision: revision,
            version: kept.version + 1,
            value: if request.ignore_value {
                kept.value
            } else {
                request.value.clone()
            },
            lease: if request.ignore_lease {
                kept.lease
            } else {
                request.lease
            },
        };
        self.keys.entry(request.key.clone()).or_default().push(kv);
        PutResponse {
            header: header(revision),
            prev_kv: before.filter(|_| request.prev_kv),
        }
    }

    fn delete(&mut self, request: &DeleteRangeRequest, write: &mut Write) -> DeleteRangeResponse {
        let found = self.find(&request.key, &request.range_end, i64::MAX);
        write.changed |= !found.is_empty();
        for kv in &found {
            let tombstone = KeyValue {
                key: kv.key.clone(),
                mod_revision: write.begin + 1,
                ..Default::default()
            };
            self.keys.entry(kv.key.clone()).or_default().push(tombstone);
        }
        DeleteRangeResponse {
            header: header(write.current()),
            deleted: found.len() as i64,
            prev_kvs: if request.prev_kv { found } else { Vec::new() },
        }
    }

    // Transactions.

    /// Decides every branch, also the nested ones, on the state before the transaction.
    fn take<'a>(&self, request: &'a TxnRequest) -> Taken<'a> {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let branch = if succeeded {
            &request.success
        } else {
            &request.failure
        };
        let ops = branch.iter().map(|op| self.take_op(op)).collect();
        Taken { succeeded, ops }
    }

    fn take_op<'a>(&self, op: &'a RequestOp) -> TakenOp<'a> {
        match op.request.as_ref().expect("checked: every operation is set") {
            Op::RequestTxn(txn) => TakenOp::Txn(self.take(txn)),
            Op::RequestRange(range) => TakenOp::Range(range),
            Op::RequestPut(put) => TakenOp::Put(put),
            Op::RequestDeleteRange(delete) => TakenOp::Delete(delete),
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.find(&compare.key, &compare.range_end, i64::MAX);
        if found.is_empty() {
            return compare.target != CompareTarget::Value as i32 && holds_for(compare, &KeyValue::default());
        }
        found.iter().all(|kv| holds_for(compare, kv))
    }

    /// Runs a check over the taken operations in order, nested ones in place.
    fn check_taken(
        &self,
        taken: &Taken<'_>,
        check: &dyn Fn(&Model, &TakenOp<'_>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        taken.ops.iter().try_for_each(|op| match op {
            TakenOp::Txn(nested) => self.check_taken(nested, check),
            plain => check(self, plain),
        })
    }

    fn check_taken_put(&self, op: &TakenOp<'_>) -> Result<(), Refusal> {
        let TakenOp::Put(put) = op else { return Ok(()) };
        self.check_ignored(put)?;
        self.check_lease(put)
    }

    fn check_taken_range(&self, op: &TakenOp<'_>) -> Result<(), Refusal> {
        let TakenOp::Range(range) = op else { return Ok(()) };
        // Only here, not in a range of its own, does etcd hold a negative revision against the compacted one.
        if range.revision < 0 && range.revision < self.compacted {
            return Err(compacted());
        }
        self.check_revision(range.revision)
    }

    fn run(&mut self, taken: &Taken<'_>, write: &mut Write) -> TxnResponse {
        let responses = taken.ops.iter().map(|op| ResponseOp {
            response: Some(self.run_op(op, write)),
        });
        TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded: taken.succeeded,
            responses: responses.collect(),
        }
    }

    fn run_op(&mut self, op: &TakenOp<'_>, write: &mut Write) -> OpAnswer {
        match op {
            TakenOp::Range(range) => OpAnswer::ResponseRange(self.range(range, write.current())),
            TakenOp::Put(put) => {
                write.changed = true;
                OpAnswer::ResponsePut(self.put(put, write.begin + 1))
            }
            TakenOp::Delete(delete) => OpAnswer::ResponseDeleteRange(self.delete(delete, write)),
            TakenOp::Txn(nested) => OpAnswer::ResponseTxn(self.run(nested, write)),
        }
    }
}

/// A request under way: it makes one new revision, if it changes anything.
struct Write {
    begin: i64,
    changed: bool,
}

impl Write {
    fn current(&self) -> i64 {
        self.begin + i64::from(self.changed)
    }
}

/// The branch that a transaction takes.
struct Taken<'a> {
    succeeded: bool,
    ops: Vec<TakenOp<'a>>,
}

enum TakenOp<'a> {
    Range(&'a RangeRequest),
    Put(&'a PutRequest),
    Delete(&'a DeleteRangeRequest),
    Txn(Taken<'a>),
}

fn refusal(code: Code, text: &str) -> Refusal {
    Refusal {
        code,
        text: text.to_string(),
    }
}

fn future() -> Refusal {
    refusal(
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    )
}

fn compacted() -> Refusal {
    refusal(
        Code::OutOfRange,
        "etcdserver: mvcc: required revision has been compacted",
    )
}

fn key_not_found() -> Refusal {
    refusal(Code::InvalidArgument, "etcdserver: key not found")
}

fn duplicate() -> Refusal {
    refusal(
        Code::InvalidArgument,
        "etcdserver: duplicate key given in txn request",
    )
}

/// Is `candidate` in the range that (key, end) means? No end: that key; `\0`: no upper bound.
pub fn in_range(candidate: &[u8], key: &[u8], end: &[u8]) -> bool {
    match end {
        [] => candidate == key,
        [0] => candidate >= key,
        _ => candidate >= key && candidate < end,
    }
}

fn has_filter(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let at_least = |bound: i64, revision: i64| bound == 0 || revision >= bound;
    let at_most = |bound: i64, revision: i64| bound == 0 || revision <= bound;
    at_least(request.min_mod_revision, kv.mod_revision)
        && at_most(request.max_mod_revision, kv.mod_revision)
        && at_least(request.min_create_revision, kv.create_revision)
        && at_most(request.max_create_revision, kv.create_revision)
}

/// Sorts as asked; equals stay in key order.
fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let by = |a: &KeyValue, b: &KeyValue| match request.sort_target() {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    match request.sort_order() {
        SortOrder::Descend => kvs.sort_by(|a, b| by(b, a)),
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(by),
    }
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let order = order_of(compare, kv);
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order == Ordering::Equal,
        Ok(CompareResult::NotEqual) => order != Ordering::Equal,
        Ok(CompareResult::Greater) => order == Ordering::Greater,
        Ok(CompareResult::Less) => order == Ordering::Less,
        Err(_) => true,
    }
}

/// How the stored pair stands to the given value. A value of another kind than the target counts as 0 or empty.
fn order_of(compare: &Compare, kv: &KeyValue) -> Ordering {
    use TargetUnion as U;
    let given = compare.target_union.clone();
    match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => {
            let given = if let Some(U::Value(value)) = given {
                value
            } else {
                Bytes::new()
            };
            kv.value.cmp(&given)
        }
        Ok(CompareTarget::Version) => kv
            .version
            .cmp(&if let Some(U::Version(v)) = given { v } else { 0 }),
        Ok(CompareTarget::Create) => kv
            .create_revision
            .cmp(&if let Some(U::CreateRevision(v)) = given {
                v
            } else {
                0
            }),
        Ok(CompareTarget::Mod) => {
            kv.mod_revision
                .cmp(&if let Some(U::ModRevision(v)) = given { v } else { 0 })
        }
        Ok(CompareTarget::Lease) => kv.lease.cmp(&if let Some(U::Lease(v)) = given { v } else { 0 }),
        Err(_) => Ordering::Equal,
    }
}

// What can be refused without looking at the store.

fn check_key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(refusal(Code::InvalidArgument, "etcdserver: key is not provided"));
    }
    Ok(())
}

fn check_put(request: &PutRequest) -> Result<(), Refusal> {
    check_key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(refusal(Code::InvalidArgument, "etcdserver: value is provided"));
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(refusal(Code::InvalidArgument, "etcdserver: lease is provided"));
    }
    Ok(())
}

fn check_txn(request: &TxnRequest, budget: usize) -> Result<(), Refusal> {
    let widest = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let Some(left) = budget.checked_sub(widest) else {
        return Err(refusal(
            Code::InvalidArgument,
            "etcdserver: too many operations in txn request",
        ));
    };
    request
        .compare
        .iter()
        .try_for_each(|compare| check_key(&compare.key))?;
    request
        .success
        .iter()
        .chain(&request.failure)
        .try_for_each(|op| check_op(op, left))
}

fn check_op(op: &RequestOp, budget: usize) -> Result<(), Refusal> {
    match &op.request {
        Some(Op::RequestRange(range)) => check_key(&range.key),
        Some(Op::RequestPut(put)) => check_put(put),
        Some(Op::RequestDeleteRange(delete)) => check_key(&delete.key),
        Some(Op::RequestTxn(txn)) => check_txn(txn, budget),
        None => Err(key_not_found()),
    }
}

/// What a branch puts and deletes, with all that is nested in it.
#[derive(Default)]
struct Touched {
    puts: BTreeSet<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

impl Touched {
    /// Taken literally, as etcd does: an end of `\0` is not "no upper bound" here but an empty interval.
    fn deletes_key(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|(from, end)| {
            if end.is_empty() {
                from == key
            } else {
                from <= key && key < end
            }
        })
    }

    fn put(&mut self, key: &Bytes) -> Result<(), Refusal> {
        if self.deletes_key(key) || !self.puts.insert(key.clone()) {
            return Err(duplicate());
        }
        Ok(())
    }
}

/// etcd's duplicate-key rule for one branch: its deletes, then its nested transactions in order, then its puts.
fn check_duplicates(branch: &[RequestOp]) -> Result<Touched, Refusal> {
    let mut touched = Touched::default();
    for op in branch {
        if let Some(Op::RequestDeleteRange(delete)) = &op.request {
            touched
                .deletes
                .push((delete.key.clone(), delete.range_end.clone()));
        }
    }
    for op in branch {
        if let Some(Op::RequestTxn(txn)) = &op.request {
            add_nested(&mut touched, txn)?;
        }
    }
    for op in branch {
        if let Some(Op::RequestPut(put)) = &op.request {
            touched.put(&put.key)?;
        }
    }
    Ok(touched)
}

/// Only one of the two branches is taken, so both may put one key; their deletes count from here on.
fn add_nested(touched: &mut Touched, txn: &TxnRequest) -> Result<(), Refusal> {
    let success = check_duplicates(&txn.success)?;
    let failure = check_duplicates(&txn.failure)?;
    success.puts.iter().try_for_each(|key| touched.put(key))?;
    failure
        .puts
        .difference(&success.puts)
        .try_for_each(|key| touched.put(key))?;
    touched.deletes.extend(success.deletes);
    touched.deletes.extend(failure.deletes);
    Ok(())
}
