//! Put, delete and transactions.
//!
//! A transaction goes in three steps: every compare, those of nested transactions too, is evaluated against the state
//! before it, which fixes the branches; then everything that those branches would be refused for is looked for; only
//! then anything is changed. So a refusal never leaves half a transaction behind, and all members agree on it, as the
//! answer depends on the entry and the state alone.

use std::cmp::Ordering;
use std::collections::VecDeque;

use bytes::Bytes;

use super::check::{check_delete_range, check_put, check_txn};
use super::range::{ReadError, range, revision_in_txn};
use super::{Counts, Failure, header, lease};
use crate::error::Error;
use crate::mvcc::history::Meta;
use crate::mvcc::{KeyRange, Versions, Write};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use crate::storage;

/// Sets a key.
pub fn put(write: &mut Write<'_>, request: &PutRequest, counts: &mut Counts) -> Result<PutResponse, Failure> {
    check_put(request)?;
    check_lease(write, request)?;
    if needs_key(request) && write.meta(&request.key).is_none() {
        counts.range();
        return Err(Error::KeyNotFound.into());
    }
    Ok(do_put(write, request, counts)?)
}

/// Deletes a range.
pub fn delete_range(
    write: &mut Write<'_>,
    request: &DeleteRangeRequest,
    counts: &mut Counts,
) -> Result<DeleteRangeResponse, Failure> {
    check_delete_range(request)?;
    Ok(do_delete_range(write, request, counts)?)
}

/// Compares, then one branch.
pub fn txn(
    write: &mut Write<'_>,
    request: &TxnRequest,
    max_ops: usize,
    counts: &mut Counts,
) -> Result<TxnResponse, Failure> {
    check_txn(request, max_ops)?;
    let mut path = path(write, request, counts)?;
    check_taken(write, request, &path, counts)?;
    counts.end_pass();
    let mut response = run(write, request, &mut path, counts)?;
    response.header = header(write.revision());
    Ok(response)
}

/// A transaction of ranges only.
pub fn read_txn(
    source: &impl Versions,
    request: &TxnRequest,
    counts: &mut Counts,
) -> Result<TxnResponse, ReadError> {
    let succeeded = holds(source, request, counts)?;
    let ops = branch(request, succeeded);
    let ranges = || ops.iter().filter_map(as_range);
    for request in ranges() {
        revision_in_txn(request, source)?;
    }
    let responses: Result<Vec<ResponseOp>, ReadError> = ranges()
        .map(|request| {
            counts.range();
            let mut response = range(source, request, revision_in_txn(request, source)?)?;
            response.header = header(source.revision());
            Ok(ResponseOp {
                response: Some(Response::ResponseRange(response)),
            })
        })
        .collect();
    Ok(TxnResponse {
        header: header(source.revision()),
        succeeded,
        responses: responses?,
    })
}

fn as_range(op: &RequestOp) -> Option<&RangeRequest> {
    match &op.request {
        Some(Request::RequestRange(request)) => Some(request),
        _ => None,
    }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded {
        &request.success
    } else {
        &request.failure
    }
}

/// Which branch is taken by the transaction and by each one nested in a branch that is taken, in the order of running.
type Path = VecDeque<bool>;

fn path(source: &impl Versions, request: &TxnRequest, counts: &mut Counts) -> storage::Result<Path> {
    let succeeded = holds(source, request, counts)?;
    let mut path = Path::from([succeeded]);
    for op in branch(request, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            path.extend(self::path(source, nested, counts)?);
        }
    }
    Ok(path)
}

fn holds(source: &impl Versions, request: &TxnRequest, counts: &mut Counts) -> storage::Result<bool> {
    for compare in &request.compare {
        counts.range();
        if !compare_holds(source, compare)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// With a range: for every key in it. An empty range is like a missing key, of which nothing can be said about the
/// value, and whose numbers are 0.
fn compare_holds(source: &impl Versions, compare: &Compare) -> storage::Result<bool> {
    let mut metas = Vec::new();
    let keys = KeyRange::new(&compare.key, &compare.range_end);
    source.find(&keys, source.revision(), &mut |_, meta| metas.push(*meta));
    let is_value = compare.target == CompareTarget::Value as i32;
    if metas.is_empty() {
        return Ok(!is_value && accepts(compare, number(None, compare).cmp(&wanted(compare))));
    }
    for meta in &metas {
        let ordering = match is_value {
            true => source.load(meta.revision)?.value.cmp(&wanted_value(compare)),
            false => number(Some(meta), compare).cmp(&wanted(compare)),
        };
        if !accepts(compare, ordering) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn accepts(compare: &Compare, ordering: Ordering) -> bool {
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        // As etcd does.
        Err(_) => true,
    }
}

/// The key's number that is compared; an unknown target counts as equal.
fn number(meta: Option<&Meta>, compare: &Compare) -> i64 {
    match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => meta.map_or(0, |meta| meta.version),
        Ok(CompareTarget::Create) => meta.map_or(0, |meta| meta.create_revision),
        Ok(CompareTarget::Mod) => meta.map_or(0, |meta| meta.revision.main),
        Ok(CompareTarget::Lease) => meta.map_or(0, |meta| meta.lease),
        Ok(CompareTarget::Value) | Err(_) => 0,
    }
}

/// The number that it is compared with; a union member that does not fit the target counts as 0.
fn wanted(compare: &Compare) -> i64 {
    match (CompareTarget::try_from(compare.target), &compare.target_union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(wanted)))
        | (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(wanted)))
        | (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(wanted)))
        | (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(wanted))) => *wanted,
        _ => 0,
    }
}

fn wanted_value(compare: &Compare) -> Bytes {
    match &compare.target_union {
        Some(TargetUnion::Value(wanted)) => wanted.clone(),
        _ => Bytes::new(),
    }
}

/// The ops that a path takes, in the order in which they run.
fn taken<'a>(request: &'a TxnRequest, path: &mut Path, ops: &mut Vec<&'a Request>) {
    let succeeded = path.pop_front().unwrap_or_default();
    for request in branch(request, succeeded)
        .iter()
        .filter_map(|op| op.request.as_ref())
    {
        match request {
            Request::RequestTxn(nested) => taken(nested, path, ops),
            other => ops.push(other),
        }
    }
}

/// Everything that the taken branches could be refused for: puts first, then ranges, as etcd does.
fn check_taken(
    write: &Write<'_>,
    request: &TxnRequest,
    path: &Path,
    counts: &mut Counts,
) -> Result<(), Failure> {
    let mut ops = Vec::new();
    taken(request, &mut path.clone(), &mut ops);
    for (at, op) in ops.iter().enumerate() {
        if let Request::RequestPut(put) = op {
            if needs_key(put) {
                counts.range();
            }
            if needs_key(put) && !exists_before(write, &ops[..at], &put.key) {
                return Err(Error::KeyNotFound.into());
            }
            check_lease(write, put)?;
        }
    }
    for op in &ops {
        if let Request::RequestRange(range) = op {
            revision_in_txn(range, write)?;
        }
    }
    Ok(())
}

/// Whether a key exists once these ops have run: the last one that touches it decides.
fn exists_before(write: &Write<'_>, ops: &[&Request], key: &Bytes) -> bool {
    for op in ops.iter().rev() {
        match op {
            Request::RequestPut(put) if put.key == *key => return true,
            Request::RequestDeleteRange(delete)
                if KeyRange::new(&delete.key, &delete.range_end).contains(key) =>
            {
                return false;
            }
            _ => {}
        }
    }
    write.meta(key).is_some()
}

fn needs_key(request: &PutRequest) -> bool {
    request.ignore_value || request.ignore_lease
}

fn check_lease(write: &Write<'_>, request: &PutRequest) -> Result<(), Error> {
    match request.lease == 0 || lease::exists(write, request.lease) {
        true => Ok(()),
        false => Err(Error::LeaseNotFound),
    }
}

fn run(
    write: &mut Write<'_>,
    request: &TxnRequest,
    path: &mut Path,
    counts: &mut Counts,
) -> storage::Result<TxnResponse> {
    let succeeded = path.pop_front().unwrap_or_default();
    let mut responses = Vec::new();
    for request in branch(request, succeeded)
        .iter()
        .filter_map(|op| op.request.as_ref())
    {
        responses.push(ResponseOp {
            response: Some(run_op(write, request, path, counts)?),
        });
    }
    // A nested answer's header is there, but empty.
    Ok(TxnResponse {
        header: Some(ResponseHeader::default()),
        succeeded,
        responses,
    })
}

fn run_op(
    write: &mut Write<'_>,
    request: &Request,
    path: &mut Path,
    counts: &mut Counts,
) -> storage::Result<Response> {
    Ok(match request {
        Request::RequestRange(request) => {
            counts.range();
            let at = if request.revision > 0 {
                request.revision
            } else {
                write.revision()
            };
            let mut response = range(write, request, at)?;
            response.header = header(write.revision());
            Response::ResponseRange(response)
        }
        Request::RequestPut(request) => Response::ResponsePut(do_put(write, request, counts)?),
        Request::RequestDeleteRange(request) => {
            Response::ResponseDeleteRange(do_delete_range(write, request, counts)?)
        }
        Request::RequestTxn(request) => Response::ResponseTxn(run(write, request, path, counts)?),
    })
}

fn do_put(write: &mut Write<'_>, request: &PutRequest, counts: &mut Counts) -> storage::Result<PutResponse> {
    if request.prev_kv || needs_key(request) {
        counts.range();
    }
    counts.put();
    let wants_old = request.prev_kv || request.ignore_value;
    let old = if wants_old { write.get(&request.key)? } else { None };
    let value = match &old {
        Some(old) if request.ignore_value => old.value.clone(),
        _ => request.value.clone(),
    };
    let lease = match request.ignore_lease {
        true => write.meta(&request.key).map_or(0, |meta| meta.lease),
        false => request.lease,
    };
    write.put(request.key.clone(), value, lease);
    Ok(PutResponse {
        header: header(write.revision()),
        prev_kv: old.filter(|_| request.prev_kv),
    })
}

fn do_delete_range(
    write: &mut Write<'_>,
    request: &DeleteRangeRequest,
    counts: &mut Counts,
) -> storage::Result<DeleteRangeResponse> {
    if request.prev_kv {
        counts.range();
    }
    counts.delete();
    let mut found = Vec::new();
    let keys = KeyRange::new(&request.key, &request.range_end);
    write.find(&keys, i64::MAX, &mut |name, meta| {
        found.push((name.to_bytes(), meta.revision));
    });
    let mut prev_kvs = Vec::new();
    if request.prev_kv {
        for (_, revision) in &found {
            prev_kvs.push(write.load(*revision)?);
        }
    }
    let deleted = found.len() as i64;
    for (key, _) in found {
        write.delete(key);
    }
    Ok(DeleteRangeResponse {
        header: header(write.revision()),
        deleted,
        prev_kvs,
    })
}
