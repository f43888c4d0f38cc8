//! Random KV requests, valid and invalid, from a seed.
//!
//! What makes random requests find differences is that they meet: so there are a dozen keys, short values, and
//! revisions near the interesting ones (now, the compacted one, and just beside both).

use bytes::Bytes;
use pontoon::pb::etcdserverpb::compare::TargetUnion;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::rpc::Request;

/// Neighbours in order: a key and its successor, bytes 0x00 and 0xff, common prefixes.
const KEYS: [&[u8]; 11] = [
    b"\0",
    b"\0a",
    b"a",
    b"a\0",
    b"a\xff",
    b"b",
    b"ba",
    b"bb",
    b"c",
    b"\xff",
    b"\xff\xff",
];

/// Ends of ranges that are not keys.
const ENDS: [&[u8]; 4] = [b"\0", b"\0", b"d", b"\x01"];

const VALUES: [&[u8]; 8] = [b"", b"0", b"1", b"2", b"10", b"x", b"\0", b"\xff"];

/// Above the default limit of 1.5 MiB, below what the transport lets through.
const OVERSIZED: usize = 1_700_000;

/// Nested transactions stop here.
const MAX_DEPTH: usize = 3;

/// What the store is known to be at, so that revisions can be chosen near it.
#[derive(Debug, Clone, Copy)]
pub struct Near {
    pub revision: i64,
    pub compacted: i64,
}

/// The source of requests.
pub struct Generator {
    rng: StdRng,
    /// What puts are given, now and then.
    leases: Vec<i64>,
}

impl Generator {
    pub fn new(seed: u64) -> Generator {
        Generator::with_leases(seed, &[4711])
    }

    /// Puts are given these leases, which may exist or not.
    pub fn with_leases(seed: u64, leases: &[i64]) -> Generator {
        Generator {
            rng: StdRng::seed_from_u64(seed),
            leases: leases.to_vec(),
        }
    }

    /// A key and a range's end: one key, a range, an empty one, or all.
    pub fn span(&mut self) -> (Bytes, Bytes) {
        (self.key(), self.end())
    }

    /// The next request.
    pub fn request(&mut self, near: Near) -> Request {
        match self.rng.random_range(0..1000) {
            0..300 => Request::Range(self.range(near)),
            300..560 => Request::Put(self.put()),
            560..660 => Request::Delete(self.delete()),
            660..972 => Request::Txn(self.txn(near, 0)),
            972..999 => Request::Compact(self.compact(near)),
            _ => Request::Put(self.oversized()),
        }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    fn pick(&mut self, from: &[&[u8]]) -> Bytes {
        Bytes::copy_from_slice(from.choose(&mut self.rng).expect("a list with elements"))
    }

    fn key(&mut self) -> Bytes {
        if self.one_in(60) {
            Bytes::new()
        } else {
            self.pick(&KEYS)
        }
    }

    fn end(&mut self) -> Bytes {
        match self.rng.random_range(0..4) {
            0 => Bytes::new(),
            1 => self.pick(&ENDS),
            _ => self.pick(&KEYS),
        }
    }

    fn value(&mut self) -> Bytes {
        self.pick(&VALUES)
    }

    /// Mostly a revision that can be read; sometimes one too old, too new, or absurd.
    fn revision(&mut self, near: Near) -> i64 {
        let floor = near.compacted.max(1);
        match self.rng.random_range(0..20) {
            0 => near.revision + 1,
            1 => near.revision,
            2 => near.compacted,
            3 => near.compacted - 1,
            4 => near.compacted + 1,
            5 => *[-1, i64::MAX, i64::MIN, near.revision + 1000]
                .choose(&mut self.rng)
                .expect("not empty"),
            6 | 7 => 0,
            _ => self.rng.random_range(floor..=near.revision.max(floor)),
        }
    }

    fn limit(&mut self) -> i64 {
        match self.rng.random_range(0..12) {
            0..4 => 0,
            4 => -1,
            5 => i64::MAX,
            6 => i64::MIN,
            _ => self.rng.random_range(1..6),
        }
    }

    /// A bound of one of the four revision filters: mostly none.
    fn bound(&mut self, near: Near) -> i64 {
        if self.one_in(8) { self.revision(near) } else { 0 }
    }

    fn range(&mut self, near: Near) -> RangeRequest {
        RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: self.limit(),
            revision: if self.one_in(2) { self.revision(near) } else { 0 },
            sort_order: self.rng.random_range(0..3),
            sort_target: self.rng.random_range(0..5),
            serializable: self.one_in(3),
            keys_only: self.one_in(6),
            count_only: self.one_in(10),
            min_mod_revision: self.bound(near),
            max_mod_revision: self.bound(near),
            min_create_revision: self.bound(near),
            max_create_revision: self.bound(near),
        }
    }

    /// Mostly none, unless there are several to choose from.
    fn lease(&mut self) -> i64 {
        let one_in = if self.leases.len() > 1 { 5 } else { 30 };
        match self.one_in(one_in) {
            true => *self.leases.choose(&mut self.rng).expect("not empty"),
            false => 0,
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.one_in(10);
        let ignore_lease = self.one_in(10);
        PutRequest {
            key: self.key(),
            value: if ignore_value && !self.one_in(5) {
                Bytes::new()
            } else {
                self.value()
            },
            lease: self.lease(),
            prev_kv: self.one_in(2),
            ignore_value,
            ignore_lease,
        }
    }

    fn oversized(&mut self) -> PutRequest {
        PutRequest {
            key: self.key(),
            value: vec![b'x'; OVERSIZED].into(),
            ..Default::default()
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.key(),
            range_end: self.end(),
            prev_kv: self.one_in(2),
        }
    }

    fn compact(&mut self, near: Near) -> CompactionRequest {
        CompactionRequest {
            revision: self.revision(near),
            physical: self.one_in(2),
        }
    }

    fn txn(&mut self, near: Near, depth: usize) -> TxnRequest {
        if depth == 0 && self.one_in(60) {
            return self.wide_txn(near);
        }
        let ranges_only = self.one_in(6);
        TxnRequest {
            compare: self.some(3, |g| g.compare(near)),
            success: self.some(4, |g| g.op(near, depth, ranges_only)),
            failure: self.some(4, |g| g.op(near, depth, ranges_only)),
        }
    }

    fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Generator) -> T) -> Vec<T> {
        let count = self.rng.random_range(0..=most);
        (0..count).map(|_| make(self)).collect()
    }

    /// At the limit of operations, or one beyond; the limit is shared with nested transactions.
    fn wide_txn(&mut self, near: Near) -> TxnRequest {
        let count = *[127, 128, 129].choose(&mut self.rng).expect("not empty");
        let mut success: Vec<RequestOp> = (0..count).map(|_| self.op(near, MAX_DEPTH, true)).collect();
        if self.one_in(2) {
            let nested = self.txn(near, MAX_DEPTH);
            success[0] = RequestOp {
                request: Some(Op::RequestTxn(nested)),
            };
        }
        TxnRequest {
            success,
            ..Default::default()
        }
    }

    fn op(&mut self, near: Near, depth: usize, ranges_only: bool) -> RequestOp {
        let request = match self.rng.random_range(0..100) {
            0 => return RequestOp { request: None },
            1..30 => Op::RequestRange(self.range(near)),
            _ if ranges_only => Op::RequestRange(self.range(near)),
            30..60 => Op::RequestPut(self.put()),
            60..80 => Op::RequestDeleteRange(self.delete()),
            _ if depth < MAX_DEPTH => Op::RequestTxn(self.txn(near, depth + 1)),
            _ => Op::RequestPut(self.put()),
        };
        RequestOp {
            request: Some(request),
        }
    }

    fn compare(&mut self, near: Near) -> Compare {
        let target_union = match self.rng.random_range(0..6) {
            0 => None,
            1 => Some(TargetUnion::Version(self.rng.random_range(0..4))),
            2 => Some(TargetUnion::CreateRevision(self.revision(near))),
            3 => Some(TargetUnion::ModRevision(self.revision(near))),
            4 => Some(TargetUnion::Value(self.value())),
            _ => Some(TargetUnion::Lease(self.rng.random_range(0..2))),
        };
        // Mostly the target that fits the value; sometimes any, sometimes one that does not exist.
        let target = match (&target_union, self.rng.random_range(0..10)) {
            (_, 0) => self.rng.random_range(0..7),
            (None, _) => self.rng.random_range(0..5),
            (Some(TargetUnion::Version(_)), _) => 0,
            (Some(TargetUnion::CreateRevision(_)), _) => 1,
            (Some(TargetUnion::ModRevision(_)), _) => 2,
            (Some(TargetUnion::Value(_)), _) => 3,
            (Some(TargetUnion::Lease(_)), _) => 4,
        };
        let result = if self.one_in(20) {
            9
        } else {
            self.rng.random_range(0..4)
        };
        let range_end = if self.one_in(3) { self.end() } else { Bytes::new() };
        Compare {
            result,
            target,
            key: self.key(),
            range_end,
            target_union,
        }
    }
}
