//! What can be said about a request without looking at the state: done where it arrives, and again when it is applied.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::error::Error;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::pb::pontoon::command::command::Op;

/// Checks a range.
pub fn check_range(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let known =
        SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if known {
        Ok(())
    } else {
        Err(Error::InvalidSortOption)
    }
}

/// Checks a put.
pub fn check_put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        Err(Error::EmptyKey)
    } else if request.ignore_value && !request.value.is_empty() {
        Err(Error::ValueProvided)
    } else if request.ignore_lease && request.lease != 0 {
        Err(Error::LeaseProvided)
    } else {
        Ok(())
    }
}

/// Checks a delete.
pub fn check_delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        Err(Error::EmptyKey)
    } else {
        Ok(())
    }
}

/// Checks a transaction, both branches of it and of those inside it.
pub fn check_txn(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    check_ops(request, max_ops)?;
    check_duplicates(&request.success)?;
    check_duplicates(&request.failure)?;
    Ok(())
}

fn check_ops(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    if ops > max_ops {
        return Err(Error::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    // What is nested may use what is left.
    let left = max_ops - ops;
    request
        .success
        .iter()
        .chain(&request.failure)
        .try_for_each(|op| check_op(op, left))
}

fn check_op(op: &RequestOp, max_ops: usize) -> Result<(), Error> {
    match &op.request {
        Some(Request::RequestRange(request)) => check_range(request),
        Some(Request::RequestPut(request)) => check_put(request),
        Some(Request::RequestDeleteRange(request)) => check_delete_range(request),
        Some(Request::RequestTxn(request)) => check_ops(request, max_ops),
        None => Err(Error::KeyNotFound),
    }
}

/// The keys that a list of ops puts, and the intervals that it deletes.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletes: Vec<(&'a Bytes, &'a Bytes)>,
}

impl Touched<'_> {
    /// As etcd does, a `range_end` of one zero byte is taken literally, that is, as an empty interval: "delete all
    /// from a on, put b" is accepted.
    fn deleted(&self, key: &Bytes) -> bool {
        self.deletes.iter().any(|(from, to)| match to.is_empty() {
            true => key == *from,
            false => *from <= key && key < *to,
        })
    }
}

/// No key may be put twice, or put where it is deleted, by ops that can happen together.
fn check_duplicates(ops: &[RequestOp]) -> Result<Touched<'_>, Error> {
    let mut touched = Touched::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(request)) = &op.request {
            touched.deletes.push((&request.key, &request.range_end));
        }
    }
    for op in ops {
        if let Some(Request::RequestTxn(request)) = &op.request {
            let then = check_duplicates(&request.success)?;
            let otherwise = check_duplicates(&request.failure)?;
            add_nested(&mut touched, then, otherwise)?;
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(request)) = &op.request {
            add_put(&mut touched, &request.key)?;
        }
    }
    Ok(touched)
}

/// The branches of one nested transaction exclude each other, so both may put a key.
fn add_nested<'a>(touched: &mut Touched<'a>, then: Touched<'a>, otherwise: Touched<'a>) -> Result<(), Error> {
    for key in &then.puts {
        add_put(touched, key)?;
    }
    for key in otherwise.puts {
        match then.puts.contains(key) {
            true if touched.deleted(key) => return Err(Error::DuplicateKey),
            true => {}
            false => add_put(touched, key)?,
        }
    }
    touched.deletes.extend(then.deletes);
    touched.deletes.extend(otherwise.deletes);
    Ok(())
}

fn add_put<'a>(touched: &mut Touched<'a>, key: &'a Bytes) -> Result<(), Error> {
    if touched.deleted(key) || !touched.puts.insert(key) {
        return Err(Error::DuplicateKey);
    }
    Ok(())
}

fn all_ops(request: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    request.success.iter().chain(&request.failure)
}

/// What a put costs beside its key and value, as etcd counts.
const PUT_OVERHEAD: u64 = 256;

/// What a lease costs, as etcd counts.
const LEASE_COST: u64 = 64;

/// Bytes that a command may add to the store, as etcd counts them: 0 for one that adds nothing. Of a transaction's
/// branches the larger counts, nested ones included.
pub fn cost(op: &Op) -> u64 {
    match op {
        Op::Put(request) => cost_of_put(request),
        Op::Txn(request) => cost_of_txn(request),
        Op::LeaseGrant(_) => LEASE_COST,
        _ => 0,
    }
}

fn cost_of_put(request: &PutRequest) -> u64 {
    PUT_OVERHEAD + (request.key.len() + request.value.len()) as u64
}

fn cost_of_txn(request: &TxnRequest) -> u64 {
    let branch = |ops: &[RequestOp]| -> u64 {
        let one = |op: &RequestOp| match &op.request {
            Some(Request::RequestPut(request)) => cost_of_put(request),
            Some(Request::RequestTxn(request)) => cost_of_txn(request),
            _ => 0,
        };
        ops.iter().map(one).sum()
    };
    branch(&request.success).max(branch(&request.failure))
}

/// Whether a transaction consists of ranges only and needs no log entry.
pub fn is_read_only(request: &TxnRequest) -> bool {
    all_ops(request).all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether all ranges of a read-only transaction may be answered locally.
pub fn all_serializable(request: &TxnRequest) -> bool {
    all_ops(request).all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> RequestOp {
        let request = PutRequest {
            key: Bytes::from_static(key.as_bytes()),
            ..PutRequest::default()
        };
        RequestOp {
            request: Some(Request::RequestPut(request)),
        }
    }

    fn delete(key: &'static str, range_end: &'static str) -> RequestOp {
        let (key, range_end) = (
            Bytes::from_static(key.as_bytes()),
            Bytes::from_static(range_end.as_bytes()),
        );
        let request = DeleteRangeRequest {
            key,
            range_end,
            prev_kv: false,
        };
        RequestOp {
            request: Some(Request::RequestDeleteRange(request)),
        }
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestTxn(TxnRequest {
                compare: vec![],
                success,
                failure,
            })),
        }
    }

    fn check(success: Vec<RequestOp>) -> Result<(), Error> {
        check_txn(
            &TxnRequest {
                compare: vec![],
                success,
                failure: vec![],
            },
            128,
        )
    }

    #[test]
    fn a_key_is_put_once_by_ops_that_happen_together() {
        let duplicate = Err(Error::DuplicateKey);
        assert_eq!(check(vec![put("a"), put("b")]), Ok(()));
        assert_eq!(check(vec![put("a"), put("a")]), duplicate);
        assert_eq!(check(vec![put("a"), nested(vec![put("a")], vec![])]), duplicate);
        assert_eq!(check(vec![nested(vec![put("a")], vec![put("a")])]), Ok(()));
        assert_eq!(
            check(vec![
                nested(vec![put("a")], vec![]),
                nested(vec![], vec![put("a")])
            ]),
            duplicate
        );
    }

    #[test]
    fn a_key_is_not_put_where_it_is_deleted() {
        let duplicate = Err(Error::DuplicateKey);
        assert_eq!(check(vec![delete("a", "c"), put("b")]), duplicate);
        assert_eq!(check(vec![put("b"), delete("b", "")]), duplicate);
        assert_eq!(check(vec![delete("a", "c"), put("c")]), Ok(()));
        assert_eq!(check(vec![delete("a", "c"), delete("b", "d")]), Ok(()));
        assert_eq!(
            check(vec![delete("a", "c"), nested(vec![put("b")], vec![])]),
            duplicate
        );
        assert_eq!(
            check(vec![nested(vec![delete("a", "c")], vec![]), put("b")]),
            duplicate
        );
        // Of two nested transactions the earlier may put what the later deletes, not the other way round.
        let (puts, deletes) = (
            nested(vec![put("b")], vec![]),
            nested(vec![], vec![delete("a", "c")]),
        );
        assert_eq!(check(vec![puts.clone(), deletes.clone()]), Ok(()));
        assert_eq!(check(vec![deletes, puts]), duplicate);
        // etcd's quirk.
        assert_eq!(check(vec![delete("a", "\0"), put("b")]), Ok(()));
    }

    #[test]
    fn nested_transactions_share_the_budget() {
        let ops = |count: usize| (0..count).map(|_| delete("a", "")).collect::<Vec<_>>();
        let txn = |outer: usize, inner: usize| {
            let mut success = ops(outer - 1);
            success.push(nested(ops(inner), vec![]));
            check_txn(
                &TxnRequest {
                    compare: vec![],
                    success,
                    failure: vec![],
                },
                10,
            )
        };
        assert_eq!(txn(6, 4), Ok(()));
        assert_eq!(txn(6, 5), Err(Error::TooManyOps));
    }

    #[test]
    fn only_what_adds_data_costs_and_the_larger_branch_counts() {
        let txn = |success, failure| {
            cost(&Op::Txn(TxnRequest {
                compare: vec![],
                success,
                failure,
            }))
        };
        assert_eq!(txn(vec![put("abc")], vec![]), 256 + 3);
        assert_eq!(txn(vec![put("a")], vec![put("bc"), put("d")]), 2 * 256 + 3);
        assert_eq!(
            txn(vec![delete("a", "c")], vec![nested(vec![], vec![put("b")])]),
            256 + 1
        );
        assert_eq!(txn(vec![delete("a", "c")], vec![]), 0);
        assert_eq!(cost(&Op::DeleteRange(DeleteRangeRequest::default())), 0);
    }

    #[test]
    fn malformed_ops_are_refused() {
        assert_eq!(check(vec![RequestOp { request: None }]), Err(Error::KeyNotFound));
        assert_eq!(check(vec![put("")]), Err(Error::EmptyKey));
        let mut range = RangeRequest {
            key: Bytes::from_static(b"a"),
            sort_target: 9,
            ..RangeRequest::default()
        };
        assert_eq!(check_range(&range), Err(Error::InvalidSortOption));
        range.sort_target = 4;
        assert_eq!(check_range(&range), Ok(()));
    }
}
