//! Everything at once, by chance: whatever happens in whatever order, each watcher gets what it was promised.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Client, World, bytes, put, revision, short, small, watch};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchResponse,
};
use crate::pb::mvccpb::Event;
use crate::pb::pontoon::command::command::Op;
use crate::raft::feed::News;
use crate::state::State;
use crate::storage::Memory;

/// What a watcher of the random test was promised, and what it got.
struct Watched {
    request: WatchCreateRequest,
    next: i64,
    got: Vec<Event>,
    /// The revision up to which it was told everything.
    told: i64,
    is_over: bool,
}

impl Watched {
    fn take(&mut self, response: &WatchResponse, compacted: i64) {
        assert!(!self.is_over, "after the end: {}", short(response));
        let main = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        for event in &response.events {
            assert!(
                main(event) > self.told,
                "twice, torn or out of order: {}",
                short(response)
            );
            self.got.push(event.clone());
        }
        assert!(response.events.is_sorted_by_key(main));
        let last = response.events.last().map_or(0, main);
        if response.canceled {
            assert!(response.compact_revision == 0 || response.compact_revision <= compacted);
            self.is_over = true;
        } else {
            assert!(revision(response) >= last);
            self.told = self.told.max(last);
        }
    }

    /// What it got is what it asked for of the past, all of it or up to where it was cancelled.
    fn check(&self, past: &[Event], compacted: i64) {
        let keys = crate::mvcc::KeyRange::new(&self.request.key, &self.request.range_end);
        let wanted = past.iter().filter(|event| {
            let kv = event.kv.as_ref().expect("a pair");
            let filtered = self.request.filters.contains(&event.r#type);
            kv.mod_revision >= self.next && keys.contains(&kv.key) && !filtered
        });
        let mut wanted = wanted.peekable();
        for got in &self.got {
            let wanted = wanted.next().expect("no more happened");
            assert_eq!((got.r#type, &got.kv), (wanted.r#type, &wanted.kv));
            match (&got.prev_kv, self.request.prev_kv) {
                (before @ Some(_), true) => assert_eq!(before, &wanted.prev_kv),
                (Some(_), false) => panic!("nobody asked for the pair from before"),
                (None, true) => {
                    let main = got.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                    assert!(wanted.prev_kv.is_none() || main - 1 < compacted);
                }
                (None, false) => {}
            }
        }
        assert!(self.is_over || wanted.peek().is_none(), "something is missing");
    }
}

fn random_op(rng: &mut StdRng, revision: i64) -> Op {
    let key = |rng: &mut StdRng| char::from(rng.random_range(b'a'..b'h')).to_string();
    let value = |rng: &mut StdRng| {
        let length = if rng.random_bool(0.1) { 200_000 } else { 100 };
        vec![b'x'; rng.random_range(0..length)]
    };
    let delete = |rng: &mut StdRng| DeleteRangeRequest {
        key: bytes(&key(rng)),
        range_end: if rng.random() {
            Bytes::new()
        } else {
            bytes(&key(rng))
        },
        prev_kv: false,
    };
    match rng.random_range(0..10) {
        0..5 => Op::Put(put(&key(rng), value(rng))),
        5 | 6 => Op::DeleteRange(delete(rng)),
        7 | 8 => {
            let mut ops = vec![Request::RequestDeleteRange(DeleteRangeRequest {
                key: bytes("a"),
                range_end: bytes("\0"),
                prev_kv: false,
            })];
            // Puts beside a delete of everything are allowed: two changes of one key at one revision.
            ops.extend(["a", "c", "e"].map(|key| Request::RequestPut(put(key, value(rng)))));
            ops.rotate_left(rng.random_range(0..2));
            let op = |request| RequestOp {
                request: Some(request),
            };
            Op::Txn(TxnRequest {
                success: ops.into_iter().map(op).collect(),
                ..TxnRequest::default()
            })
        }
        _ => Op::Compact(CompactionRequest {
            revision: rng.random_range(revision / 2..=revision),
            physical: false,
        }),
    }
}

fn random_watch(rng: &mut StdRng, revision: i64) -> WatchCreateRequest {
    let key = |rng: &mut StdRng| char::from(rng.random_range(b'a'..b'h')).to_string();
    let ends = ["".to_string(), "\0".to_string(), key(rng)];
    WatchCreateRequest {
        filters: [vec![], vec![], vec![0], vec![1]][rng.random_range(0..4)].clone(),
        prev_kv: rng.random(),
        ..watch(
            &key(rng),
            &ends[rng.random_range(0..3)],
            [0, rng.random_range(1..=revision + 5)][rng.random_range(0..2)],
        )
    }
}

/// Writers, compaction, saving, reclaiming, snapshots, jumps, slow clients and watchers of all kinds, in any order.
#[test]
fn every_watcher_gets_its_events_in_order_once_and_completely() {
    let mut events = 0;
    for seed in 0..30 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        let clients: Vec<Client> = (0..4).map(|_| world.open()).collect();
        let mut watched: BTreeMap<(usize, i64), Watched> = BTreeMap::new();
        let mut done: Vec<Watched> = Vec::new();
        let mut waiting: Vec<VecDeque<WatchCreateRequest>> = vec![VecDeque::new(); clients.len()];
        for _ in 0..600 {
            let revision_now = world.state.reader().revision();
            let who = rng.random_range(0..clients.len());
            match rng.random_range(0..24) {
                0..9 => drop(world.apply(random_op(&mut rng, revision_now))),
                9..12 => world.tell(),
                12..15 => drop(world.hub.catch_up(world.now).expect("read")),
                15 => {
                    let request = random_watch(&mut rng, revision_now);
                    waiting[who].push_back(request.clone());
                    world.create(&clients[who], request);
                }
                16 => world.hub.cancel(clients[who].stream, rng.random_range(0..20)),
                17 => drop(world.saver.save().expect("saved")),
                18 => drop(world.saver.sweep(5).expect("swept")),
                19 => {
                    world.untold.clear();
                    world.hub.tell(News::Jump(revision_now), world.now).expect("told");
                }
                20 => install_snapshot(&mut world, revision_now),
                21 => world.hub.progress(clients[who].stream),
                _ => {
                    let limit = rng.random_range(0..20);
                    let taken: Vec<_> = std::iter::from_fn(|| clients[who].take_one())
                        .take(limit)
                        .collect();
                    let mut judge = Judge {
                        who,
                        waiting: &mut waiting[who],
                        watched: &mut watched,
                        done: &mut done,
                    };
                    taken.iter().for_each(|response| judge.take(response, &world));
                }
            }
        }
        for _ in 0..1000 {
            world.settle();
            for (who, client) in clients.iter().enumerate() {
                let mut judge = Judge {
                    who,
                    waiting: &mut waiting[who],
                    watched: &mut watched,
                    done: &mut done,
                };
                client
                    .take()
                    .iter()
                    .for_each(|response| judge.take(response, &world));
            }
        }
        let compacted = world.state.reader().compacted();
        done.extend(watched.into_values());
        events += done.iter().map(|watched| watched.got.len()).sum::<usize>();
        done.iter()
            .for_each(|watched| watched.check(&world.past, compacted));
    }
    assert!(events > 3000, "{events} events are too few to mean anything");
}

fn install_snapshot(world: &mut World, revision: i64) {
    let records: Vec<_> = world
        .state
        .snapshot()
        .records()
        .map(|record| Ok(record.expect("read")))
        .collect();
    world.engine = Arc::new(Memory::default());
    let (state, _) = State::restore(world.engine.clone(), small(), records.into_iter()).expect("restored");
    world.saver = state.saver();
    world.state.replace(state);
    world.untold.clear();
    world.hub.tell(News::Jump(revision), world.now).expect("told");
}

/// Sorts one client's answers by watcher.
struct Judge<'a> {
    who: usize,
    waiting: &'a mut VecDeque<WatchCreateRequest>,
    watched: &'a mut BTreeMap<(usize, i64), Watched>,
    done: &'a mut Vec<Watched>,
}

impl Judge<'_> {
    fn take(&mut self, response: &WatchResponse, world: &World) {
        let at = (self.who, response.watch_id);
        if response.created {
            let request = self.waiting.pop_front().expect("answers come in order");
            if response.canceled {
                return;
            }
            let next = match request.start_revision {
                0 => revision(response) + 1,
                start => start,
            };
            let new = Watched {
                request,
                next,
                got: Vec::new(),
                told: next - 1,
                is_over: false,
            };
            assert!(
                self.watched.insert(at, new).is_none(),
                "an id in use was given out"
            );
            return;
        }
        if response.watch_id == -1 {
            // Everything up to here has come: nothing older may follow.
            let mine = self.watched.iter_mut().filter(|((who, _), _)| *who == self.who);
            mine.for_each(|(_, watched)| watched.told = watched.told.max(revision(response)));
            return;
        }
        let watched = self.watched.get_mut(&at).expect("a watcher that was created");
        watched.take(response, world.state.reader().compacted());
        if watched.is_over {
            self.done.extend(self.watched.remove(&at));
        }
    }
}
