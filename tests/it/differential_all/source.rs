//! Where the calls come from: drawn at random, from few keys, leases and addresses, so that they meet.

use pontoon::pb::etcdserverpb::WatchCreateRequest;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::server::Call;
use crate::differential::excluded;
use crate::support::generate::{Generator, Near};

/// The leases that are granted and asked for; few, so that calls meet.
pub const LEASES: [i64; 6] = [1, 2, 3, 7, 4711, i64::MAX];
/// Long enough that none runs out in a test, or too long.
const TTLS: [i64; 4] = [1_000, 5_000, 20_000, 10_000_000_000];
/// Granted and revoked at once: the shortest run out soon.
const ANY_TTLS: [i64; 4] = [1_000, 1, 0, -1];
/// An address where no member is.
const NOBODY: &str = "http://127.0.0.1:9";

/// Makes calls.
pub struct Source {
    pub rng: StdRng,
    pub kv: Generator,
    pub compacted: i64,
}

impl Source {
    pub fn near(&self, revision: i64) -> Near {
        Near {
            revision,
            compacted: self.compacted,
        }
    }

    pub fn kv(&mut self, revision: i64) -> Call {
        loop {
            let request = self.kv.request(self.near(revision));
            if excluded(&request).is_none() {
                return Call::Kv(request);
            }
        }
    }

    pub fn lease(&mut self) -> i64 {
        *LEASES.choose(&mut self.rng).expect("not empty")
    }

    pub fn call(&mut self, revision: i64) -> Call {
        match self.rng.random_range(0..100) {
            0..14 => self.lease_call(),
            14..16 => Call::HashKv(self.hash_revision(revision)),
            16 => Call::Members {
                linearizable: self.rng.random(),
            },
            17 => self.member_call(),
            18 => Call::MoveLeader(self.rng.random_range(0..3)),
            19 => self.maintenance_call(),
            _ => self.kv(revision),
        }
    }

    fn lease_call(&mut self) -> Call {
        let id = self.lease();
        match self.rng.random_range(0..14) {
            0..4 => Call::Grant {
                id,
                ttl: *TTLS.choose(&mut self.rng).expect("not empty"),
            },
            4 => Call::GrantAny {
                ttl: *ANY_TTLS.choose(&mut self.rng).expect("not empty"),
            },
            5..8 => Call::Revoke(id),
            8..11 => Call::TimeToLive {
                id,
                keys: self.rng.random(),
            },
            11 => Call::Leases,
            _ => Call::KeepAlive(id),
        }
    }

    fn maintenance_call(&mut self) -> Call {
        match self.rng.random_range(0..8) {
            0 => Call::Defragment,
            _ => Call::Status,
        }
    }

    fn member_call(&mut self) -> Call {
        match self.rng.random_range(0..8) {
            0 | 1 => Call::AddLearner(NOBODY),
            2 => Call::AddLearner("http://no-port"),
            3 => Call::AddItself,
            4 => Call::PromoteLearner,
            5 => Call::UpdateNobody(NOBODY),
            _ => Call::RemoveLearner,
        }
    }

    /// Not the compacted one: etcd before 3.5.6 refuses it, later ones and we hash it.
    pub fn hash_revision(&mut self, revision: i64) -> i64 {
        match self.rng.random_range(0..6) {
            1 => revision + 1,
            2 => self.compacted - 1,
            3..6 if revision > self.compacted => self.rng.random_range(self.compacted + 1..=revision),
            _ => 0,
        }
    }

    pub fn watch(&mut self, revision: i64) -> WatchCreateRequest {
        let (key, range_end) = self.kv.span();
        let start_revision = match self.rng.random_range(0..8) {
            0..3 => 0,
            3 => revision + self.rng.random_range(1..4),
            // Not negative: etcd before 3.6 takes that for the oldest there is, later ones and we refuse it.
            4 => (self.compacted - 1).max(0),
            // Nor the compacted one: etcd tells of the deletions there only until it has cleaned up.
            _ if self.compacted < revision => self.rng.random_range(self.compacted + 1..=revision),
            _ => 0,
        };
        let filters = match self.rng.random_range(0..6) {
            0 => vec![0],
            1 => vec![1],
            _ => vec![],
        };
        WatchCreateRequest {
            key,
            range_end,
            start_revision,
            prev_kv: self.rng.random(),
            fragment: self.rng.random(),
            progress_notify: false,
            watch_id: *[0, 0, 5].choose(&mut self.rng).expect("not empty"),
            filters,
        }
    }
}
