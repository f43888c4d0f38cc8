//! What is written, and where: below a prefix that no other run has.
//!
//! ```text
//! pontoon/chaos/5b1f09aa/counter/03          000000000017
//! pontoon/chaos/5b1f09aa/write/03/000000000017
//! ```

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::cli::args::prefix_end;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};

/// Pairs of one answer.
const PAGE: i64 = 2000;

/// The keys of one run.
pub struct Keys {
    prefix: String,
}

/// As text that sorts as numbers do.
fn digits(number: u64) -> String {
    format!("{number:012}")
}

impl Keys {
    /// Below `prefix`, and a part that is random.
    pub fn below(prefix: &str) -> Keys {
        let run = rand::random::<u32>();
        Keys {
            prefix: format!("{prefix}{run:08x}/"),
        }
    }

    /// What all of them begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn counter_key(&self, writer: usize) -> Bytes {
        format!("{}counter/{writer:02}", self.prefix).into()
    }

    fn writes(&self, writer: usize) -> String {
        format!("{}write/{writer:02}/", self.prefix)
    }

    /// A counter begins.
    pub fn first(&self, writer: usize) -> PutRequest {
        put(self.counter_key(writer), digits(0))
    }

    /// One write.
    pub fn write(&self, writer: usize, number: u64) -> TxnRequest {
        let counter = self.counter_key(writer);
        let own = format!("{}{}", self.writes(writer), digits(number));
        let is_lower = Compare {
            result: CompareResult::Less as i32,
            target: CompareTarget::Value as i32,
            key: counter.clone(),
            range_end: Bytes::new(),
            target_union: Some(TargetUnion::Value(digits(number).into())),
        };
        let puts = [put(counter, digits(number)), put(own.into(), String::new())];
        let request = |put| RequestOp {
            request: Some(Request::RequestPut(put)),
        };
        TxnRequest {
            compare: vec![is_lower],
            success: puts.map(request).into(),
            failure: Vec::new(),
        }
    }

    /// Reads a counter, linearizably.
    pub fn counter(&self, writer: usize) -> RangeRequest {
        RangeRequest {
            key: self.counter_key(writer),
            ..RangeRequest::default()
        }
    }

    /// A counter's value; 0 if there is none.
    pub fn number(value: &[u8]) -> u64 {
        std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    }

    /// A page of a writer's writes, from behind one of them.
    pub fn page(&self, writer: usize, behind: u64, serializable: bool) -> RangeRequest {
        let writes = self.writes(writer);
        RangeRequest {
            key: format!("{writes}{}", digits(behind + 1)).into(),
            range_end: prefix_end(writes.as_bytes()),
            limit: PAGE,
            serializable,
            keys_only: true,
            ..RangeRequest::default()
        }
    }

    /// The numbers of the writes on a page.
    pub fn numbers(page: &RangeResponse) -> BTreeSet<u64> {
        let keys = page.kvs.iter().map(|kv| &kv.key);
        keys.filter_map(|key| Some(Keys::number(key.rsplit(|byte| *byte == b'/').next()?)))
            .collect()
    }

    /// Removes all of them.
    pub fn remove(&self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.prefix.clone().into(),
            range_end: prefix_end(self.prefix.as_bytes()),
            ..DeleteRangeRequest::default()
        }
    }
}

fn put(key: Bytes, value: String) -> PutRequest {
    PutRequest {
        key,
        value: value.into(),
        ..PutRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb::KeyValue;

    #[test]
    fn what_is_written_is_read_back() {
        let keys = Keys::below("a/");
        let txn = keys.write(3, 17);
        let writes: Vec<&PutRequest> = txn
            .success
            .iter()
            .filter_map(|op| match &op.request {
                Some(Request::RequestPut(put)) => Some(put),
                _ => None,
            })
            .collect();
        assert_eq!(writes[0].key, keys.counter(3).key);
        assert_eq!(Keys::number(&writes[0].value), 17);
        let pair = KeyValue {
            key: writes[1].key.clone(),
            ..KeyValue::default()
        };
        let page = RangeResponse {
            kvs: vec![pair],
            ..RangeResponse::default()
        };
        assert_eq!(Keys::numbers(&page), [17].into());
        let request = keys.page(3, 16, true);
        assert!(request.key <= writes[1].key && writes[1].key < request.range_end);
        assert!(keys.page(3, 17, true).key > writes[1].key);
        let removed = keys.remove();
        let is_removed = |key: &Bytes| removed.key <= *key && *key < removed.range_end;
        assert!(writes.iter().all(|put| is_removed(&put.key)));
    }
}
