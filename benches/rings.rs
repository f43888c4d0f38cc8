//! What the inner rings cost, each without those around it: the codec of an entry, an append to the log, apply, a range.
//!
//! `cargo bench` runs all, `cargo bench apply` some. Values have 256 bytes.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use pontoon::pb::etcdserverpb::{CompactionRequest, PutRequest, RangeRequest};
use pontoon::pb::pontoon::command::{Command, command::Op};
use pontoon::raft::entry::new_log_id;
use pontoon::raft::{CommandBytes, Entry};
use pontoon::state::{Options, Place, Saver, State};
use pontoon::storage::Memory;
use pontoon::storage::fs::RealFs;
use pontoon::storage::wal::{Wal, WalOptions};
use prost::Message;

/// Keys in the store.
const KEYS: u64 = 100_000;
/// Keys that are sealed together.
const BATCH: u64 = 100;

fn key(number: u64) -> Bytes {
    format!("/bench/{number:025}").into()
}

/// A put; the keys come in no order.
fn put(number: u64) -> Command {
    let put = PutRequest {
        key: key(number.wrapping_mul(2_654_435_761) % KEYS),
        value: vec![number as u8; 256].into(),
        ..PutRequest::default()
    };
    Command {
        op: Some(Op::Put(put)),
        ..Command::default()
    }
}

fn entry(index: u64) -> Entry {
    let command = CommandBytes(put(index).encode_to_vec().into());
    Entry::new(new_log_id(1, 1, index), EntryPayload::Normal(command))
}

/// A state that grows by puts, at whose indexes they stand.
struct Store {
    state: State,
    index: u64,
}

impl Store {
    fn open() -> Store {
        let engine = Arc::new(Memory::default());
        let (state, _) = State::open(engine, Options::default()).expect("an empty engine opens");
        Store { state, index: 0 }
    }

    fn apply(&mut self, commands: &[Command]) {
        for command in commands {
            self.index += 1;
            let place = Place {
                term: 1,
                index: self.index,
            };
            let outcome = self.state.apply(place, command);
            black_box(outcome.expect("memory does not fail"));
        }
        self.state.seal(Bytes::new());
    }

    /// What a thread of the member does behind apply: saves what is sealed and, now and then, forgets old versions.
    fn tidy_up(&mut self, saver: &Saver) {
        saver.save().expect("memory does not fail");
        if self.index % KEYS < BATCH {
            let revision = self.state.reader().revision();
            let compact = CompactionRequest {
                revision,
                physical: false,
            };
            let compact = Command {
                op: Some(Op::Compact(compact)),
                ..Command::default()
            };
            self.apply(&[compact]);
            while saver.sweep(1000).expect("memory does not fail") {}
        }
    }

    fn filled() -> Store {
        let mut store = Store::open();
        let mut commands = Vec::new();
        for number in 0..KEYS {
            commands.push(put(number));
            if commands.len() as u64 == BATCH {
                store.apply(&commands);
                commands.clear();
            }
        }
        store.state.saver().save().expect("memory does not fail");
        store
    }
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    group.bench_function("encode an entry", |bench| {
        bench.iter_batched(
            || put(1),
            |command| {
                let command = CommandBytes(command.encode_to_vec().into());
                Entry::new(new_log_id(1, 1, 1), EntryPayload::Normal(command)).encoded()
            },
            BatchSize::SmallInput,
        );
    });
    let encoded = entry(1).encoded();
    group.bench_function("decode an entry", |bench| {
        bench.iter(|| {
            let entry = Entry::decode(encoded.clone()).expect("it was encoded so");
            match entry.payload {
                EntryPayload::Normal(command) => Command::decode(command.0).expect("it was encoded so"),
                _ => Command::default(),
            }
        });
    });
}

/// Appends by one caller, which waits until they are on disk.
fn log(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on a disk");
    let wal = Wal::open(Arc::new(RealFs), dir.path(), WalOptions::default()).expect("an empty log opens");
    let mut next = 1;
    let mut group = criterion.benchmark_group("log");
    for count in [1, BATCH] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("append and sync {count}"), |bench| {
            bench.iter(|| {
                let indexes = next..next + count;
                next += count;
                let entries = indexes.map(|index| (index, entry(index).encoded())).collect();
                let (sender, receiver) = channel();
                wal.append(
                    entries,
                    Box::new(move |result| {
                        let _ = sender.send(result);
                    }),
                );
                receiver.recv().expect("it is answered").expect("it is on disk");
            });
        });
    }
    group.finish();
    wal.close().expect("it closes");
}

fn apply(criterion: &mut Criterion) {
    let mut store = Store::filled();
    let saver = store.state.saver();
    // All keys in turn, so that none is at hand because it was just written.
    let commands: Vec<Command> = (0..KEYS).map(put).collect();
    let mut batches = commands.chunks(BATCH as usize).cycle();
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("puts, sealed in batches of 100", |bench| {
        bench.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                let batch = batches.next().unwrap_or_default();
                let start = Instant::now();
                store.apply(batch);
                took += start.elapsed();
                store.tidy_up(&saver);
            }
            took
        });
    });
}

fn range(criterion: &mut Criterion) {
    let store = Store::filled();
    let reader = store.state.reader();
    let mut group = criterion.benchmark_group("range");
    for count in [1, 1000] {
        let request = RangeRequest {
            key: key(500),
            range_end: key(500 + count),
            ..RangeRequest::default()
        };
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{count} keys, encoded"), |bench| {
            bench.iter(|| {
                reader
                    .encoded_range(&request, BytesMut::new())
                    .expect("it is readable")
            });
        });
    }
}

criterion_group!(rings, codec, log, apply, range);
criterion_main!(rings);
