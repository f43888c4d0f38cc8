//! Makes answers comparable where the order is unspecified: pairs that are equal in what a range is sorted by.
//!
//! etcd's sort isn't stable, so equal pairs come in any order, and under a limit it is open which of them are
//! returned. Here equal pairs are put in key order; those that a limit may have cut into keep only what they were
//! sorted by.

use bytes::Bytes;
use pontoon::pb::etcdserverpb::range_request::SortTarget;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::response_op::Response as OpAnswer;
use pontoon::pb::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use pontoon::pb::mvccpb::KeyValue;

use super::rpc::{Answer, Request, Response};

/// The answer, with what is unspecified made the same.
pub fn settle(request: &Request, mut answer: Answer) -> Answer {
    match (request, &mut answer) {
        (Request::Range(request), Ok(Response::Range(response))) => settle_range(request, response),
        (Request::Txn(request), Ok(Response::Txn(response))) => settle_txn(request, response),
        _ => {}
    }
    answer
}

fn settle_txn(request: &TxnRequest, response: &mut TxnResponse) {
    let branch = if response.succeeded {
        &request.success
    } else {
        &request.failure
    };
    for (op, answer) in branch.iter().zip(&mut response.responses) {
        match (&op.request, &mut answer.response) {
            (Some(Op::RequestRange(request)), Some(OpAnswer::ResponseRange(response))) => {
                settle_range(request, response);
            }
            (Some(Op::RequestTxn(request)), Some(OpAnswer::ResponseTxn(response))) => {
                settle_txn(request, response);
            }
            _ => {}
        }
    }
}

fn settle_range(request: &RangeRequest, response: &mut RangeResponse) {
    if request.sort_target() == SortTarget::Key {
        return;
    }
    for run in response
        .kvs
        .chunk_by_mut(|a, b| rank(request, a) == rank(request, b))
    {
        run.sort_by(|a, b| a.key.cmp(&b.key));
    }
    if !response.more {
        return;
    }
    let Some(cut) = response.kvs.last().map(|last| rank(request, last)) else {
        return;
    };
    for kv in response
        .kvs
        .iter_mut()
        .rev()
        .take_while(|kv| rank(request, kv) == cut)
    {
        *kv = KeyValue::default();
    }
}

/// What the range is sorted by. With `keys_only` the value isn't there any more: all are taken as equal.
fn rank(request: &RangeRequest, kv: &KeyValue) -> (i64, Bytes) {
    match request.sort_target() {
        SortTarget::Key => (0, kv.key.clone()),
        SortTarget::Version => (kv.version, Bytes::new()),
        SortTarget::Create => (kv.create_revision, Bytes::new()),
        SortTarget::Mod => (kv.mod_revision, Bytes::new()),
        SortTarget::Value => (0, kv.value.clone()),
    }
}
