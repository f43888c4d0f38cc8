//! Log and snapshots together, after a crash at any moment: what one lets go of, the other has.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, RaftSnapshotBuilder};
use prost::Message;

use super::{put, state_machine};
use crate::pb::pontoon::command::Command;
use crate::raft::entry::{encode_log_id, new_log_id};
use crate::raft::log_store::LogStore;
use crate::raft::snapshot::SnapshotStore;
use crate::raft::state_machine::StateMachine;
use crate::raft::{Entry, LogId, Snapshot, SnapshotMeta};
use crate::state::{Options, Place, State};
use crate::storage::fs::{Disk, Fs, RealFs, SimFs, crash_states};
use crate::storage::open_engine;
use crate::storage::wal::{Wal, WalOptions};

fn open_wal(fs: &SimFs) -> Wal {
    let options = WalOptions {
        segment_bytes: 2048,
        ..WalOptions::default()
    };
    Wal::open(Arc::new(fs.clone()), &PathBuf::from("/wal"), options).expect("a sound log")
}

/// Appends blank entries of a term, durably.
fn append(wal: &Wal, term: u64, indexes: std::ops::RangeInclusive<u64>) {
    let entry = |index| {
        let payload = EntryPayload::Normal(super::command(put(index as u32, term as u32)));
        let mut entry = Entry::new(new_log_id(term, 1, index), payload);
        (index, entry.encoded())
    };
    let (tx, rx) = channel();
    let done = Box::new(move |result| drop(tx.send(result)));
    wal.append(indexes.map(entry).collect(), done);
    rx.recv().expect("called back").expect("durable");
}

async fn snapshot(machine: &mut StateMachine) -> Snapshot {
    let mut builder = machine.get_snapshot_builder().await;
    builder.build_snapshot().await.expect("built")
}

fn at(snapshot: &Snapshot) -> LogId {
    snapshot.meta.last_log_id.expect("of some entry")
}

/// What a member finds when it starts again.
struct Found {
    snapshot: Option<LogId>,
    first: u64,
    last: Option<u64>,
    last_id: Option<LogId>,
}

fn start_again(disk: Disk) -> Found {
    let fs = SimFs::with(disk);
    let snapshots = SnapshotStore::open(Arc::new(fs.clone()), &PathBuf::from("/snapshots")).expect("sound");
    let wal = open_wal(&fs);
    let log = LogStore::new(wal.clone());
    let snapshot = snapshots.current();
    if let Some(snapshot) = &snapshot {
        let records = snapshot.snapshot.records().expect("readable");
        records.for_each(|record| drop(record.expect("whole")));
        log.agree_with(&at(snapshot)).expect("readable");
    }
    let mut files = fs.list(&PathBuf::from("/snapshots")).expect("readable");
    files.retain(|name| name.ends_with(".snapshot"));
    assert!(files.len() <= 1, "only the newest stays: {files:?}");
    let state = wal.state();
    let last_id = state.last.and_then(|last| log.log_id_at(last).expect("readable"));
    Found {
        snapshot: snapshot.as_ref().map(at),
        first: state.first,
        last: state.last,
        last_id,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_purged_only_behind_a_snapshot_that_stays() {
    let fs = SimFs::default();
    fs.record();
    let wal = open_wal(&fs);
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let mut machine = state_machine(shared);
    let mut next = 0;
    for _ in 0..15 {
        append(&wal, 1, next..=next + 9);
        let ops = (next..next + 10).map(|index| put(index as u32, 1));
        next = super::apply_from(&mut machine, next, ops).await + 1;
        fs.mark(next);
        let upto = at(&snapshot(&mut machine).await);
        wal.purge(upto.index, encode_log_id(&upto));
    }
    append(&wal, 1, next..=next);
    drop(wal);
    let count = crash_states(&fs.recorded(), &Disk::default(), 4, |disk, acknowledged| {
        let found = start_again(disk);
        let covered = found.snapshot.map_or(0, |at| at.index + 1);
        assert!(
            found.first <= covered,
            "after {acknowledged}: the snapshot ends before {covered}, the log begins at {}",
            found.first
        );
        let end = found.last.map_or(0, |last| last + 1).max(covered);
        assert!(end >= acknowledged, "after {acknowledged}: all ends before {end}");
    });
    println!("{count} states");
    assert!(count > 1000);
}

/// The snapshot's file is durable before the log is told that what it replaces is gone: a crash in between leaves both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_an_installed_snapshot_replaced_do_not_come_back() {
    let mut sender = state_machine(Arc::new(SimFs::default()));
    let apply = |index| (new_log_id(2, 1, index), put(index as u32, 2));
    super::apply_entries(&mut sender, (0..=15).map(apply)).await;
    let sent = snapshot(&mut sender).await;

    let fs = SimFs::default();
    fs.record();
    let wal = open_wal(&fs);
    append(&wal, 1, 0..=20);
    let mut machine = state_machine(Arc::new(fs.clone()));
    machine
        .install_snapshot(&sent.meta, sent.snapshot.clone())
        .await
        .expect("installed");
    fs.mark(1);
    wal.truncate_after(None);
    wal.purge(15, encode_log_id(&at(&sent)));
    append(&wal, 2, 16..=17);
    fs.mark(2);
    drop(wal);
    let count = crash_states(&fs.recorded(), &Disk::default(), 4, |disk, mark| {
        let found = start_again(disk);
        assert!(mark == 0 || found.snapshot == Some(at(&sent)));
        assert!(mark < 2 || found.last_id == Some(new_log_id(2, 1, 17)));
        // What openraft starts with: never a log that has something else where the snapshot ends, or beyond.
        if let (Some(snapshot), Some(last)) = (found.snapshot, found.last_id) {
            assert!(
                last >= snapshot || last.index < snapshot.index,
                "{last} beside {snapshot}"
            );
        }
    });
    println!("{count} states");
    assert!(count > 50);
}

/// A kill just after a snapshot got its name, and a power cut after the next start.
#[test]
fn a_snapshot_that_was_found_stays() {
    let fs = SimFs::default();
    fs.record();
    let dir = PathBuf::from("/snapshots");
    let open = |fs: &SimFs| SnapshotStore::open(Arc::new(fs.clone()), &dir).expect("sound");
    let at = new_log_id(1, 1, 9);
    let meta = SnapshotMeta {
        last_log_id: Some(at),
        ..SnapshotMeta::default()
    };
    let written = open(&fs).prepare(meta, std::iter::empty()).expect("written");
    let unnamed = dir.join(written.snapshot.name());
    fs.rename(&unnamed, &dir.join("9.snapshot")).expect("renamed");
    assert!(open(&fs).current().is_some());
    fs.mark(1);
    crash_states(&fs.recorded(), &Disk::default(), 4, |disk, found| {
        let current = open(&SimFs::with(disk)).current();
        assert!(found == 0 || current.is_some_and(|snapshot| self::at(&snapshot) == at));
    });
}

#[test]
fn a_snapshot_that_comes_to_nothing_leaves_nothing() {
    let fs = SimFs::default();
    let dir = PathBuf::from("/snapshots");
    let left = fs.create(&dir.join("0-0.7.new")).expect("made");
    left.write_at(0, &Bytes::from_static(b"half a snapshot"))
        .expect("written");
    SnapshotStore::open(Arc::new(fs.clone()), &dir).expect("sound");
    assert!(fs.list(&dir).expect("readable").is_empty());
}

/// Most of a snapshot lies in files beside it: they are there whenever it is, and go with it.
#[test]
fn a_snapshot_has_what_it_needs_beside_it() {
    let (fs, dir) = (SimFs::default(), PathBuf::from("/snapshots"));
    fs.record();
    let open = |fs: &SimFs| SnapshotStore::open(Arc::new(fs.clone()), &dir).expect("sound");
    let store = open(&fs);
    let (mut state, _) = State::open(super::memory(), Options::default()).expect("opened");
    let saver = state.saver();
    let (mut sizes, mut readers) = (Vec::new(), Vec::new());
    for index in 1..=4 {
        for key in 0..5 {
            let command = Command::decode(super::command(put(key, index as u32)).0).expect("a command");
            state.apply(Place { term: 1, index }, &command).expect("applied");
        }
        state.seal(Bytes::from(vec![index as u8; 3]));
        saver.save().expect("saved");
        let meta = SnapshotMeta {
            last_log_id: Some(new_log_id(1, 1, index)),
            ..SnapshotMeta::default()
        };
        let built = store.build(meta, state.snapshot()).expect("built");
        sizes.push(built.snapshot.size());
        readers.push(built.snapshot.records().expect("opened"));
        fs.mark(index);
    }
    // Who reads from one that is replaced meanwhile reads it to the end.
    for records in readers {
        let read: Vec<Bytes> = records.collect::<Result<_, _>>().expect("whole");
        assert!(read.len() > 1);
    }
    let count = crash_states(&fs.recorded(), &Disk::default(), 4, |disk, made| {
        let fs = SimFs::with(disk);
        let current = open(&fs).current();
        let index = current.as_ref().map_or(0, |snapshot| at(snapshot).index);
        assert!(index >= made, "{index} was found, {made} was made");
        let names = fs.list(&dir).expect("readable");
        assert_eq!(names.len(), if index == 0 { 0 } else { 2 }, "{names:?}");
        let Some(current) = current else { return };
        let records = current.snapshot.records().expect("opened");
        let records = records.map(|record| record.expect("whole"));
        let (restored, mark) =
            State::restore(super::memory(), Options::default(), records.map(Ok)).expect("restored");
        assert_eq!(mark, vec![index as u8; 3]);
        assert_eq!(restored.reader().revision(), 1 + 5 * index as i64);
        // A copy has everything in its one file, of which the size is that told.
        let fs: Arc<dyn Fs> = Arc::new(fs);
        let copy = PathBuf::from("/copy");
        current.snapshot.copy_to(&fs, &copy).expect("copied");
        let length = fs.open(&copy).expect("opened").length().expect("known");
        assert_eq!(length, sizes[index as usize - 1]);
    });
    println!("{count} states");
    assert!(count > 50);
}

/// A build takes a moment, in which the engine begins other files: they are no part of it, and would never go.
#[test]
fn what_is_saved_while_a_snapshot_is_built_leaves_no_file_with_it() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (engine, dir) = (root.path().join("engine"), root.path().join("snapshots"));
    let store = SnapshotStore::open(Arc::new(RealFs), &dir).expect("sound");
    let engine = open_engine(&engine, 1 << 20).expect("opened");
    let (mut state, _) = State::open(engine, Options::default()).expect("opened");
    let saver = state.saver();
    let mut sources = Vec::new();
    for index in 1..=8 {
        for key in 0..60 {
            let command = Command::decode(super::command(put(key, index as u32)).0).expect("a command");
            state.apply(Place { term: 1, index }, &command).expect("applied");
        }
        state.seal(Bytes::new());
        sources.push(state.snapshot());
        saver.save().expect("saved");
    }
    for (index, source) in (1..).zip(sources) {
        let meta = SnapshotMeta {
            last_log_id: Some(new_log_id(1, 1, index)),
            ..SnapshotMeta::default()
        };
        let built = store.build(meta, source).expect("built");
        let name = built.snapshot.name();
        let stem = name.strip_suffix(".snapshot").expect("it has its name");
        let mut names = RealFs.list(&dir).expect("readable");
        names.retain(|name| !name.starts_with(stem));
        assert!(names.is_empty(), "{names:?} are left beside {stem}");
    }
}
