//! Two members that save, reclaim, restart and take snapshots at different times must answer alike, always.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Options, Saver, State};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use crate::pb::pontoon::command::{Command, Reply, command::Op, reply::Response};
use crate::storage::{Engine, Memory};

fn key(rng: &mut StdRng) -> Bytes {
    Bytes::from(vec![b'a' + rng.random_range(0..12)])
}

fn put(rng: &mut StdRng) -> PutRequest {
    PutRequest {
        key: key(rng),
        value: Bytes::from(vec![rng.random(); rng.random_range(0..400)]),
        prev_kv: rng.random(),
        ignore_lease: rng.random_bool(0.1),
        ..PutRequest::default()
    }
}

fn delete(rng: &mut StdRng) -> DeleteRangeRequest {
    let range_end = if rng.random_bool(0.3) {
        key(rng)
    } else {
        Bytes::new()
    };
    DeleteRangeRequest {
        key: key(rng),
        range_end,
        prev_kv: rng.random(),
    }
}

fn range(rng: &mut StdRng, revision: i64) -> RangeRequest {
    let revision = if rng.random() {
        rng.random_range(-1..revision + 2)
    } else {
        0
    };
    RangeRequest {
        key: key(rng),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..RangeRequest::default()
    }
}

fn op(rng: &mut StdRng, revision: i64) -> Op {
    match rng.random_range(0..20) {
        0..10 => Op::Put(put(rng)),
        10..13 => Op::DeleteRange(delete(rng)),
        13..19 => {
            let mut one = |_| {
                let request = match rng.random_range(0..3) {
                    0 => Request::RequestPut(put(rng)),
                    1 => Request::RequestDeleteRange(delete(rng)),
                    _ => Request::RequestRange(range(rng, revision)),
                };
                RequestOp {
                    request: Some(request),
                }
            };
            Op::Txn(TxnRequest {
                success: (0..3).map(&mut one).collect(),
                ..TxnRequest::default()
            })
        }
        _ => Op::Compact(CompactionRequest {
            revision: rng.random_range(0..revision + 1),
            physical: false,
        }),
    }
}

/// One member: its state, and the engine behind it.
struct Member {
    engine: Arc<dyn Engine>,
    state: State,
    saver: Saver,
}

impl Member {
    fn new(engine: Arc<dyn Engine>, state: State) -> Member {
        Member {
            engine,
            saver: state.saver(),
            state,
        }
    }

    fn blank() -> Member {
        let engine: Arc<dyn Engine> = Arc::new(Memory::default());
        let (state, _) = State::open(engine.clone(), options()).expect("opened");
        Member::new(engine, state)
    }

    fn apply(&mut self, index: u64, command: &Command) -> Vec<u8> {
        let outcome = self.state.apply(index, command).expect("nothing local fails");
        self.state.seal(Bytes::from(index.to_string()));
        let response = outcome
            .response
            .unwrap_or_else(|error| Response::Error(error.text().to_string()));
        let mut answer = Reply {
            response: Some(response),
        }
        .encode_to_vec();
        answer.extend(outcome.events.iter().flat_map(Message::encode_to_vec));
        answer
    }

    /// Killed and started again: what the engine lacks is applied again from the log.
    fn restart(self, log: &[Command]) -> Member {
        let engine = self.engine;
        let (state, mark) = State::open(engine.clone(), options()).expect("opened");
        let mut member = Member::new(engine, state);
        let saved = mark.map_or(0, |mark| {
            std::str::from_utf8(&mark)
                .expect("a number")
                .parse()
                .expect("a number")
        });
        for (at, command) in log.iter().enumerate().skip(saved) {
            member.apply(at as u64 + 1, command);
        }
        member
    }

    /// Loses its disk and gets a snapshot of itself.
    fn reinstall(mut self) -> Member {
        let records: Vec<_> = self
            .state
            .snapshot()
            .records()
            .map(|r| Ok(r.expect("readable")))
            .collect();
        let engine: Arc<dyn Engine> = Arc::new(Memory::default());
        let (state, _) = State::restore(engine.clone(), options(), records.into_iter()).expect("restored");
        let saver = state.saver();
        self.state.replace(state);
        Member {
            engine,
            saver,
            state: self.state,
        }
    }
}

/// So little memory that most reads go to the engine.
fn options() -> Options {
    Options { recent_bytes: 1000 }
}

#[test]
fn members_that_save_and_restart_at_different_times_answer_alike() {
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut steady, mut restless) = (Member::blank(), Member::blank());
        let mut log = Vec::new();
        for index in 1..=500 {
            let command = Command {
                header: None,
                op: Some(op(&mut rng, steady.state.reader().revision())),
            };
            log.push(command.clone());
            assert_eq!(
                steady.apply(index, &command),
                restless.apply(index, &command),
                "seed {seed}, entry {index}"
            );
            match rng.random_range(0..40) {
                0..8 => drop(restless.saver.save().expect("saved")),
                8..12 => drop(restless.saver.sweep(3).expect("swept")),
                12 => restless = restless.restart(&log),
                13 => restless = restless.reinstall(),
                14 => while restless.saver.sweep(100).expect("swept") {},
                _ => {}
            }
            if index % 50 == 0 {
                let (one, other) = (steady.state.reader(), restless.state.reader());
                for revision in one.compacted().max(1)..=one.revision() {
                    let hash = |reader: &super::Reader| reader.hash_kv(revision).expect("readable");
                    assert_eq!(
                        hash(&one),
                        hash(&other),
                        "seed {seed}, entry {index}, revision {revision}"
                    );
                }
            }
        }
    }
}

#[test]
fn reclaiming_frees_what_compaction_left_behind() {
    let mut member = Member::blank();
    for index in 1..=1000 {
        let request = PutRequest {
            key: Bytes::from(vec![b'k', (index % 10) as u8]),
            value: Bytes::from(vec![0; 1000]),
            ..PutRequest::default()
        };
        member.apply(
            index,
            &Command {
                header: None,
                op: Some(Op::Put(request)),
            },
        );
    }
    member.saver.save().expect("saved");
    let before = (
        member.state.reader().logical_size(),
        member.engine.size_on_disk().expect("a size"),
    );
    let compact = CompactionRequest {
        revision: 1000,
        physical: true,
    };
    // A view from before keeps what it may read.
    let view = member.state.reader().view();
    member.apply(
        1001,
        &Command {
            header: None,
            op: Some(Op::Compact(compact)),
        },
    );
    while member.saver.sweep(100).expect("swept") {}
    assert_eq!(member.state.reader().logical_size(), before.0);
    drop(view);
    while member.saver.sweep(100).expect("swept") {}
    let after = (
        member.state.reader().logical_size(),
        member.engine.size_on_disk().expect("a size"),
    );
    assert!(
        after.0 < before.0 / 50 && after.1 < before.1 / 20,
        "{before:?} to {after:?}"
    );
    assert_eq!(member.state.reader().swept(), 1000);
}
