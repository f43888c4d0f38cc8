//! Two members that save, reclaim, restart and take snapshots at different times must answer alike, always.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Options, Place, Saver, State};
use crate::error::Error;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};
use crate::pb::pontoon::command::{
    Command, LeaseCheckpoint, LeaseExpire, LeaseRemaining, Reply, command::Op, reply::Response,
};
use crate::storage::{Engine, Memory};

fn key(rng: &mut StdRng) -> Bytes {
    Bytes::from(vec![b'a' + rng.random_range(0..12)])
}

fn put(rng: &mut StdRng) -> PutRequest {
    PutRequest {
        key: key(rng),
        value: Bytes::from(vec![rng.random(); rng.random_range(0..400)]),
        prev_kv: rng.random(),
        ..lease_of_put(rng)
    }
}

/// Mostly none: most of the few leases do not exist at a given time, and one that does not refuses the put.
fn lease_of_put(rng: &mut StdRng) -> PutRequest {
    let (lease, ignore_lease) = match rng.random_range(0..10) {
        0..5 => (0, false),
        5..9 => (lease_id(rng), false),
        _ => (0, true),
    };
    PutRequest {
        lease,
        ignore_lease,
        ..PutRequest::default()
    }
}

fn lease_id(rng: &mut StdRng) -> i64 {
    [-5, 1, 2, i64::MAX][rng.random_range(0..4)]
}

/// The term in which an index was appended: leaders change now and then.
fn term(index: u64) -> u64 {
    1 + index / 100
}

/// A lease and its grant, mostly one that exists, and a term, mostly the present one.
fn lease_decision(rng: &mut StdRng, state: &State, index: u64) -> (u64, i64, u64) {
    let leases = state.reader().leases().expect("readable");
    let (id, granted_at) = match leases.get(rng.random_range(0..4)) {
        Some(lease) => (lease.id, lease.granted_at),
        None => (lease_id(rng), rng.random_range(0..=index)),
    };
    (term(index) - u64::from(rng.random_bool(0.2)), id, granted_at)
}

fn lease_op(rng: &mut StdRng, state: &State, index: u64) -> Op {
    match rng.random_range(0..10) {
        0..5 => Op::LeaseGrant(LeaseGrantRequest {
            ttl: rng.random_range(2..1000),
            id: lease_id(rng),
        }),
        5 => Op::LeaseRevoke(LeaseRevokeRequest { id: lease_id(rng) }),
        6..8 => {
            let (term, id, granted_at) = lease_decision(rng, state, index);
            Op::LeaseExpire(LeaseExpire { term, id, granted_at })
        }
        _ => {
            let (term, id, granted_at) = lease_decision(rng, state, index);
            let seconds = rng.random_range(0..500);
            let one = LeaseRemaining {
                id,
                granted_at,
                seconds,
            };
            Op::LeaseCheckpoint(LeaseCheckpoint {
                term,
                leases: vec![one],
            })
        }
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

/// Any action on any kind, those that do not exist too; but for CORRUPT, after which nothing can be read.
fn alarm(rng: &mut StdRng) -> AlarmRequest {
    AlarmRequest {
        action: rng.random_range(0..4),
        member_id: rng.random_range(0..3),
        alarm: [0, 1, 3][rng.random_range(0..3)],
    }
}

fn op(rng: &mut StdRng, state: &State, index: u64) -> Op {
    let revision = state.reader().revision();
    match rng.random_range(0..25) {
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
        19..23 => lease_op(rng, state, index),
        23 => Op::Alarm(alarm(rng)),
        _ => Op::Compact(CompactionRequest {
            revision: rng.random_range(0..revision + 1),
            physical: false,
        }),
    }
}

/// One member: its state, and the engine behind it.
struct Member {
    engine: Arc<dyn Engine>,
    /// That a defragmentation copies to.
    copy: Arc<dyn Engine>,
    state: State,
    saver: Saver,
}

impl Member {
    fn new(engine: Arc<dyn Engine>, state: State) -> Member {
        Member {
            engine,
            copy: Arc::new(Memory::default()),
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
        let place = Place {
            term: term(index),
            index,
        };
        let outcome = self.state.apply(place, command).expect("nothing local fails");
        self.state.seal(Bytes::from(index.to_string()));
        let response = outcome
            .response
            .unwrap_or_else(|error| Response::Error(error.text().to_string()));
        let mut answer = Reply {
            response: Some(response),
        }
        .encode_to_vec();
        answer.extend(outcome.events.iter().flat_map(Message::encode_to_vec));
        answer.extend(format!("{:?}", outcome.leases).into_bytes());
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

    /// A slice of a defragmentation, begun if none is under way.
    fn defragment(&mut self) {
        if !self.saver.is_defragmenting() {
            self.copy = Arc::new(Memory::default());
            self.saver.defragment(self.copy.clone()).expect("begun");
        } else if self.saver.defragment_step().expect("copied").is_some() {
            self.engine = self.copy.clone();
        }
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
            copy: Arc::new(Memory::default()),
            saver,
            state: self.state,
        }
    }
}

/// So little memory that most reads go to the engine.
fn options() -> Options {
    Options {
        recent_bytes: 1000,
        cache_bytes: 2000,
    }
}

/// Each lease with its keys, looked at from both sides.
fn attached(reader: &super::Reader) -> Vec<(super::Lease, Vec<Bytes>)> {
    let everything = RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..RangeRequest::default()
    };
    let kvs = reader.range(&everything).expect("readable").kvs;
    let leases = reader.leases().expect("readable");
    for kv in kvs.iter().filter(|kv| kv.lease != 0) {
        assert!(
            leases.iter().any(|lease| lease.id == kv.lease),
            "{kv:?} has no lease"
        );
    }
    let with_keys = leases.into_iter().map(|lease| {
        let named = kvs.iter().filter(|kv| kv.lease == lease.id);
        let named: Vec<Bytes> = named.map(|kv| kv.key.clone()).collect();
        let (keys, revision) = reader.attached(lease.id);
        assert_eq!((&keys, revision), (&named, reader.revision()));
        (lease, keys)
    });
    with_keys.collect()
}

/// A range in every order, whole or cut, is the same as structures and as bytes, wherever its pairs are.
fn check_ranges(one: &super::Reader, other: &super::Reader, rng: &mut StdRng) {
    for (target, order) in (0..5).flat_map(|target| (0..3).map(move |order| (target, order))) {
        let request = RangeRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            sort_target: target,
            sort_order: order,
            limit: rng.random_range(0..12),
            keys_only: rng.random_bool(0.2),
            count_only: rng.random_bool(0.1),
            ..RangeRequest::default()
        };
        let mut expected = one.range(&request).expect("readable");
        let revision = expected.header.take().map(|header| header.revision);
        assert_eq!(other.range(&request).expect("readable").kvs, expected.kvs);
        for reader in [one, other] {
            let (at, encoded) = reader.encoded_range(&request, BytesMut::new()).expect("readable");
            let decoded = RangeResponse {
                more: encoded.more,
                count: encoded.count,
                ..RangeResponse::decode(encoded.kvs).expect("whole")
            };
            assert_eq!((Some(at), decoded), (revision, expected.clone()), "{request:?}");
        }
    }
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
                op: Some(op(&mut rng, &steady.state, index)),
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
                15..24 => restless.defragment(),
                14 => while restless.saver.sweep(100).expect("swept") {},
                _ => {}
            }
            if index % 50 == 0 {
                let (one, other) = (steady.state.reader(), restless.state.reader());
                assert_eq!(attached(&one), attached(&other), "seed {seed}, entry {index}");
                check_ranges(&one, &other, &mut rng);
                assert_eq!(one.alarms(), other.alarms(), "seed {seed}, entry {index}");
                assert_eq!(one.hash().expect("readable"), other.hash().expect("readable"));
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
        member.state.reader().size_in_use(),
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
    assert_eq!(member.state.reader().size_in_use(), before.0);
    drop(view);
    while member.saver.sweep(100).expect("swept") {}
    let after = (
        member.state.reader().size_in_use(),
        member.engine.size_on_disk().expect("a size"),
    );
    assert!(
        after.0 < before.0 / 50 && after.1 < before.1 / 20,
        "{before:?} to {after:?}"
    );
    assert_eq!(member.state.reader().swept(), 1000);
}

/// Applies commands one by one, each in an entry of its own, all in the first term.
fn applied(member: &mut Member, ops: Vec<Op>) -> Vec<Result<Response, crate::error::Error>> {
    let apply = |(at, op): (usize, Op)| {
        let place = Place {
            term: 1,
            index: at as u64 + 1,
        };
        let command = Command {
            header: None,
            op: Some(op),
        };
        let outcome = member.state.apply(place, &command).expect("nothing local fails");
        member.state.seal(Bytes::new());
        outcome.response
    };
    ops.into_iter().enumerate().map(apply).collect()
}

fn attach(key: &'static str, lease: i64) -> Op {
    Op::Put(PutRequest {
        key: Bytes::from_static(key.as_bytes()),
        lease,
        ..PutRequest::default()
    })
}

fn grant(id: i64) -> Op {
    Op::LeaseGrant(LeaseGrantRequest { ttl: 10, id })
}

#[test]
fn the_end_of_a_lease_deletes_its_keys_in_order_in_one_revision() {
    let mut member = Member::blank();
    let answers = applied(
        &mut member,
        vec![
            grant(7),
            attach("b", 7),
            attach("a", 7),
            attach("c", 7),
            attach("c", 0),
        ],
    );
    assert!(answers.iter().all(Result::is_ok));
    let command = Command {
        header: None,
        op: Some(Op::LeaseRevoke(LeaseRevokeRequest { id: 7 })),
    };
    let place = Place { term: 1, index: 6 };
    let outcome = member.state.apply(place, &command).expect("nothing local fails");
    let deleted: Vec<_> = outcome
        .events
        .iter()
        .filter_map(|event| event.kv.clone())
        .collect();
    let named: Vec<_> = deleted.iter().map(|kv| (&kv.key[..], kv.mod_revision)).collect();
    assert_eq!(named, [(&b"a"[..], 6), (&b"b"[..], 6)]);
    assert_eq!(outcome.revision, 6);
    assert_eq!(
        outcome.leases,
        [super::LeaseChange::Revoked { id: 7, granted_at: 1 }]
    );
}

#[test]
fn a_lease_is_granted_once_and_named_only_while_it_exists() {
    use crate::error::Error;
    let mut member = Member::blank();
    let answers = applied(
        &mut member,
        vec![
            attach("a", 7),
            grant(7),
            grant(7),
            attach("a", 7),
            Op::LeaseRevoke(LeaseRevokeRequest { id: 7 }),
            Op::LeaseRevoke(LeaseRevokeRequest { id: 7 }),
            attach("a", 7),
            grant(7),
        ],
    );
    let errors: Vec<_> = answers.into_iter().map(Result::err).collect();
    let (unknown, taken) = (Some(Error::LeaseNotFound), Some(Error::LeaseExists));
    assert_eq!(errors, [unknown, None, taken, None, None, unknown, unknown, None]);
}

#[test]
fn what_a_clock_decided_holds_in_its_own_term_and_for_its_own_grant() {
    let mut member = Member::blank();
    let expire = |term, granted_at| {
        Op::LeaseExpire(LeaseExpire {
            term,
            id: 7,
            granted_at,
        })
    };
    let left = |member: &Member| member.state.reader().leases().expect("readable").len();
    applied(
        &mut member,
        vec![grant(7), expire(2, 1), expire(0, 1), expire(1, 9)],
    );
    assert_eq!(left(&member), 1);
    applied(&mut member, vec![expire(1, 1)]);
    assert_eq!(left(&member), 0);
}

fn set_alarm(action: AlarmAction, member_id: u64, alarm: AlarmType) -> Op {
    Op::Alarm(AlarmRequest {
        action: action as i32,
        member_id,
        alarm: alarm as i32,
    })
}

/// The alarms in an answer, as (member, kind).
fn told(answer: &Result<Response, Error>) -> Vec<(u64, AlarmType)> {
    match answer {
        Ok(Response::Alarm(answer)) => answer
            .alarms
            .iter()
            .map(|alarm| (alarm.member_id, alarm.alarm()))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn alarms_are_listed_raised_and_cleared_as_etcd_does() {
    use AlarmAction::{Activate, Deactivate, Get};
    use AlarmType::{Corrupt, None, Nospace};
    let mut member = Member::blank();
    type Step<'a> = (AlarmAction, u64, AlarmType, &'a [(u64, AlarmType)]);
    let script: &[Step<'_>] = &[
        (Get, 0, None, &[]),
        (Activate, 7, None, &[]),
        (Activate, 7, Nospace, &[(7, Nospace)]),
        (Activate, 7, Nospace, &[(7, Nospace)]),
        (Activate, 0, Corrupt, &[(0, Corrupt)]),
        (Get, 9, None, &[(7, Nospace), (0, Corrupt)]),
        (Get, 9, Corrupt, &[(0, Corrupt)]),
        (Deactivate, 8, Nospace, &[]),
        (Deactivate, 7, None, &[]),
        (Deactivate, 7, Nospace, &[(7, Nospace)]),
        (Deactivate, 7, Nospace, &[]),
        (Get, 0, None, &[(0, Corrupt)]),
    ];
    for (action, id, alarm, expected) in script {
        let answer = applied(&mut member, vec![set_alarm(*action, *id, *alarm)]);
        assert_eq!(told(&answer[0]), *expected, "{action:?} {id} {alarm:?}");
    }
}

#[test]
fn an_alarm_refuses_what_it_must_and_nothing_else() {
    let (put, delete) = (
        PutRequest {
            key: Bytes::from_static(b"a"),
            ..PutRequest::default()
        },
        DeleteRangeRequest {
            key: Bytes::from_static(b"a"),
            ..DeleteRangeRequest::default()
        },
    );
    let txn = |request| {
        Op::Txn(TxnRequest {
            failure: vec![RequestOp {
                request: Some(request),
            }],
            ..TxnRequest::default()
        })
    };
    let compact = Op::Compact(CompactionRequest {
        revision: 2,
        physical: false,
    });
    // The put is in the branch that is not taken: the transaction is refused nevertheless, as in etcd.
    let ops = || {
        vec![
            Op::Put(put.clone()),
            txn(Request::RequestPut(put.clone())),
            Op::DeleteRange(delete.clone()),
            txn(Request::RequestDeleteRange(delete.clone())),
            compact.clone(),
        ]
    };
    let refusals = |alarm| {
        let mut member = Member::blank();
        applied(&mut member, vec![Op::Put(put.clone())]);
        applied(&mut member, vec![set_alarm(AlarmAction::Activate, 1, alarm)]);
        let answers: Vec<_> = applied(&mut member, ops()).into_iter().map(Result::err).collect();
        let read = member.state.reader().range(&RangeRequest::default());
        (answers, read.is_ok())
    };
    let (full, corrupt) = (Some(Error::NoSpace), Some(Error::Corrupt));
    assert_eq!(
        refusals(AlarmType::Nospace),
        (vec![full, full, None, None, None], true)
    );
    assert_eq!(refusals(AlarmType::Corrupt), (vec![corrupt; 5], false));
    assert_eq!(refusals(AlarmType::None), (vec![None; 5], true));
}

#[test]
fn a_range_is_long_by_what_is_in_it() {
    let mut member = Member::blank();
    let put = |at: usize| {
        Op::Put(PutRequest {
            key: Bytes::from(format!("k{at:02}")),
            ..PutRequest::default()
        })
    };
    applied(&mut member, (0..65).map(put).collect());
    let is_long = |key: &'static str, range_end: &'static str| {
        member.state.reader().is_long(&RangeRequest {
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(range_end.as_bytes()),
            limit: 1,
            ..RangeRequest::default()
        })
    };
    assert!(is_long("k", "l"), "all are counted, whatever the limit");
    assert!(is_long("k", "\0"));
    for (key, range_end) in [("k00", ""), ("k01", "l"), ("k2", "k3"), ("l", "k"), ("", "")] {
        assert!(!is_long(key, range_end), "{key} to {range_end}");
    }
}
