//! The keys of a queue, and the requests that ask for them.

use bytes::{BufMut, Bytes, BytesMut};

use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request as Op;
use crate::pb::etcdserverpb::response_op::Response as Answer;
use crate::pb::etcdserverpb::{Compare, RangeRequest, RequestOp, TxnResponse};
use crate::pb::mvccpb::KeyValue;

/// All keys of a queue begin with this.
pub(super) fn prefix(name: &Bytes) -> Bytes {
    let mut prefix = BytesMut::with_capacity(name.len() + 1);
    prefix.put_slice(name);
    prefix.put_u8(b'/');
    prefix.freeze()
}

/// Where a queue's keys end: '0' comes after '/'.
pub(super) fn end_of(prefix: &Bytes) -> Bytes {
    let mut end = BytesMut::from(&prefix[..prefix.len() - 1]);
    end.put_u8(b'/' + 1);
    end.freeze()
}

/// Where a lease stands in a queue.
pub(super) fn key_of(prefix: &Bytes, lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    let mut key = BytesMut::from(&prefix[..]);
    key.put_slice(format!("{sign}{:x}", lease.unsigned_abs()).as_bytes());
    key.freeze()
}

/// This key.
pub(super) fn exactly(key: &Bytes) -> RangeRequest {
    RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    }
}

/// The key that was created first.
pub(super) fn first_below(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: end_of(prefix),
        limit: 1,
        sort_target: SortTarget::Create as i32,
        sort_order: SortOrder::Ascend as i32,
        ..RangeRequest::default()
    }
}

/// The key that was created last, but not after `created`.
pub(super) fn last_below(prefix: &Bytes, created: i64) -> RangeRequest {
    RangeRequest {
        sort_order: SortOrder::Descend as i32,
        max_create_revision: created,
        ..first_below(prefix)
    }
}

/// Whether it is still the key that was created at this revision.
pub(super) fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

/// As a transaction has them.
pub(super) fn ops<const N: usize>(ops: [Op; N]) -> Vec<RequestOp> {
    ops.into_iter()
        .map(|op| RequestOp { request: Some(op) })
        .collect()
}

/// The first pair that each op found.
pub(super) fn pairs(txn: &TxnResponse) -> Vec<Option<KeyValue>> {
    let first = |answer: &Option<Answer>| match answer {
        Some(Answer::ResponseRange(range)) => range.kvs.first().cloned(),
        _ => None,
    };
    txn.responses.iter().map(|op| first(&op.response)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_etcds_recipes() {
        let prefix = prefix(&Bytes::from_static(b"job"));
        assert_eq!(&prefix[..], b"job/");
        assert_eq!(&end_of(&prefix)[..], b"job0");
        assert_eq!(&key_of(&prefix, 0x694d_7f1a)[..], b"job/694d7f1a");
        assert_eq!(&key_of(&prefix, i64::MIN)[..], b"job/-8000000000000000");
    }
}
