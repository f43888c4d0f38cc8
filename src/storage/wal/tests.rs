//! The log against a simulated disk: crashes at every operation, every flipped bit, failing syncs, a full disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Done, Index, LogState, Wal, WalError, WalOptions, recovery};
use crate::storage::fs::{Disk, Fs, SimFs, crash_states};

fn dir() -> PathBuf {
    PathBuf::from("/wal")
}

/// Segments so small that every workload rolls through several.
fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 2048,
        cache_bytes: 1 << 20,
        ..WalOptions::default()
    }
}

fn open(fs: &SimFs) -> Wal {
    Wal::open(Arc::new(fs.clone()), &dir(), options()).expect("a sound log opens")
}

/// Opens without starting a thread: quick, for the many states of a crash.
fn recover(disk: Disk) -> Result<(Index, Disk), WalError> {
    let fs = SimFs::with(disk);
    let (_, index) = recovery::open(Arc::new(fs.clone()), &dir(), options())?;
    Ok((index, fs.disk()))
}

/// What the log must hold.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    vote: Option<Bytes>,
    purged: Option<u64>,
    entries: BTreeMap<u64, Bytes>,
}

impl Model {
    fn of(index: &Index) -> Model {
        let LogState {
            vote, purged, first, ..
        } = index.state();
        assert_eq!(index.cached.len(), index.slots.len(), "all are in memory");
        Model {
            vote,
            purged: purged.map(|(upto, _)| upto),
            entries: (first..).zip(index.cached.iter().cloned()).collect(),
        }
    }

    fn next(&self) -> u64 {
        let after_purged = self.purged.map_or(0, |upto| upto + 1);
        self.entries
            .last_key_value()
            .map_or(after_purged, |(last, _)| last + 1)
    }
}

#[derive(Debug, Clone)]
enum Op {
    Append(Vec<Bytes>),
    Vote(Bytes),
    Truncate(u64),
    Purge(u64),
    Committed(Bytes),
}

/// The states that the log goes through, record by record, while it does an operation.
fn states(model: &mut Model, op: &Op) -> Vec<Model> {
    match op {
        Op::Append(entries) => entries
            .iter()
            .map(|entry| {
                model.entries.insert(model.next(), entry.clone());
                model.clone()
            })
            .collect(),
        Op::Vote(vote) => {
            model.vote = Some(vote.clone());
            vec![model.clone()]
        }
        Op::Truncate(last) => {
            drop(model.entries.split_off(&(last + 1)));
            vec![model.clone()]
        }
        Op::Purge(upto) => {
            model.entries = model.entries.split_off(&(upto + 1));
            model.purged = Some(*upto);
            vec![model.clone()]
        }
        Op::Committed(_) => vec![],
    }
}

fn random_op(rng: &mut StdRng, model: &Model) -> Op {
    let next = model.next();
    let first = model.entries.keys().next().copied().unwrap_or(next);
    match rng.random_range(0..20) {
        0..12 => {
            let entry = |rng: &mut StdRng| Bytes::from(vec![rng.random(); rng.random_range(1..300)]);
            Op::Append((0..rng.random_range(1..4)).map(|_| entry(rng)).collect())
        }
        12..15 => Op::Vote(Bytes::from(rng.random::<u64>().to_string())),
        15..17 if next > first + 1 => Op::Truncate(rng.random_range(first..next - 1)),
        17 if next > first => Op::Purge(rng.random_range(first..next)),
        // Beyond the end: a snapshot was installed.
        18 if rng.random_bool(0.2) => Op::Purge(next + 3),
        _ => Op::Committed(Bytes::from(rng.random::<u64>().to_string())),
    }
}

fn start(wal: &Wal, next: u64, op: &Op) {
    let ignore = || Box::new(|_| {}) as Done;
    match op.clone() {
        Op::Append(entries) => wal.append((next..).zip(entries).collect(), ignore()),
        Op::Vote(vote) => wal.save_vote(vote, ignore()),
        Op::Truncate(last) => wal.truncate_after(Some(last)),
        Op::Purge(upto) => wal.purge(upto, Bytes::from(upto.to_string())),
        Op::Committed(mark) => wal.save_committed(mark),
    }
}

fn wait_durable(wal: &Wal) {
    let (tx, rx) = channel();
    wal.sync(Box::new(move |result| drop(tx.send(result))));
    rx.recv().expect("called back").expect("durable");
}

/// Lets go of a log without closing it. Two must never be open on one directory, so its thread is waited for.
fn leave(wal: Wal) {
    let thread = wal.thread.lock().expect("not poisoned").take();
    drop(wal);
    if let Some(thread) = thread {
        thread.join().expect("no panic").expect("no failure");
    }
}

/// Runs random operations in groups; a group is acknowledged when it is durable. Returns, for each group, the states
/// that the log may have after it was begun.
fn workload(fs: &SimFs, rng: &mut StdRng, groups: u64, reopen: bool) -> Vec<Vec<Model>> {
    let mut wal = open(fs);
    let mut model = Model::default();
    let mut through = vec![vec![model.clone()]];
    for group in 1..=groups {
        let mut passed = vec![model.clone()];
        for _ in 0..rng.random_range(1..4) {
            let op = random_op(rng, &model);
            let next = model.next();
            passed.extend(states(&mut model, &op));
            start(&wal, next, &op);
        }
        wait_durable(&wal);
        fs.mark(group);
        through.push(passed);
        if reopen && rng.random_bool(0.3) {
            match rng.random_bool(0.5) {
                true => wal.close().expect("closed"),
                false => leave(wal),
            }
            wal = open(fs);
        }
    }
    through
}

/// Design rule: nothing acknowledged is lost, whatever a disk keeps of what was not synced; and no mere crash is taken
/// for corruption.
#[test]
fn no_crash_loses_what_was_acknowledged() {
    let mut count = 0;
    for seed in 0..450 {
        let mut rng = StdRng::seed_from_u64(seed);
        let fs = SimFs::default();
        fs.record();
        let through = workload(&fs, &mut rng, 12, seed % 2 == 0);
        count += crash_states(&fs.recorded(), &Disk::default(), 4, |disk, mark| {
            let (index, after) =
                recover(disk).unwrap_or_else(|error| panic!("seed {seed}, after {mark}: {error}"));
            let found = Model::of(&index);
            let acknowledged = through[mark as usize].last();
            let begun = through.get(mark as usize + 1).into_iter().flatten();
            assert!(
                acknowledged.into_iter().chain(begun).any(|model| *model == found),
                "seed {seed}, after {mark}: {found:?}"
            );
            let (again, _) =
                recover(after).unwrap_or_else(|error| panic!("seed {seed}, opened again: {error}"));
            assert_eq!(Model::of(&again), found, "seed {seed}: opening changes nothing");
        });
    }
    println!("{count} states");
    assert!(count >= 100_000, "only {count} states were tried");
}

/// A log that a crash has left is a log like any other: it goes on, older segments go, and what they said is kept.
#[test]
fn a_log_that_came_back_from_a_crash_forgets_nothing_either() {
    let mut count = 0;
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let fs = SimFs::default();
        fs.record();
        workload(&fs, &mut rng, 12, false);
        let mut state = 0;
        crash_states(&fs.recorded(), &Disk::default(), 2, |disk, _| {
            state += 1;
            if state % 5 == seed % 5 {
                go_on_after_a_crash(disk, seed);
                count += 1;
            }
        });
    }
    println!("{count} second lives");
    assert!(count > 1000, "only {count} were lived");
}

fn go_on_after_a_crash(disk: Disk, seed: u64) {
    let (index, after) = recover(disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let mut model = Model::of(&index);
    let fs = SimFs::with(after);
    let wal = open(&fs);
    let entry = Bytes::from(vec![7; 100]);
    for op in [Op::Append(vec![entry; 2]), Op::Purge(model.next())] {
        start(&wal, model.next(), &op);
        states(&mut model, &op);
        wait_durable(&wal);
    }
    drop(wal);
    let found = Model::of(
        &recover(fs.disk())
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"))
            .0,
    );
    assert_eq!(found, model, "seed {seed}, after a second life");
}

fn last_segment(disk: &Disk) -> (usize, Arc<Vec<u8>>) {
    let mut segments = disk.names.iter().filter(|(name, _)| name.extension().is_some());
    let (_, file) = segments.next_back().expect("a segment");
    (*file, disk.files[file].clone())
}

/// A disk with a log of several segments, and the model of it.
fn sound_log(close: bool) -> (Disk, Model) {
    let fs = SimFs::default();
    let mut rng = StdRng::seed_from_u64(3);
    let mut model = Model::default();
    let wal = open(&fs);
    for _ in 0..30 {
        let op = random_op(&mut rng, &model);
        start(&wal, model.next(), &op);
        states(&mut model, &op);
        wait_durable(&wal);
    }
    match close {
        true => wal.close().expect("closed"),
        // Long enough idle to be vouched for: one more sync record, found on the disk.
        false => {
            let settled = last_segment(&fs.disk()).1;
            while last_segment(&fs.disk()).1 == settled {
                std::thread::yield_now();
            }
        }
    }
    (fs.disk(), model)
}

fn flip(disk: &Disk, file: usize, bit: usize) -> Disk {
    let mut flipped = disk.clone();
    let mut bytes = disk.files[&file].to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    flipped.files.insert(file, Arc::new(bytes));
    flipped
}

#[test]
fn every_flipped_bit_of_a_closed_log_is_found() {
    let (disk, model) = sound_log(true);
    assert_eq!(Model::of(&recover(disk.clone()).expect("sound").0), model);
    assert!(
        disk.names.len() > 2,
        "several segments, and the mark of the close"
    );
    // A spare segment is no part of the log.
    for (name, file) in disk.names.iter().filter(|(name, _)| !name.ends_with("spare")) {
        for bit in 0..disk.files[file].len() * 8 {
            let found = recover(flip(&disk, *file, bit));
            let refused = matches!(found, Err(WalError::Corrupt { .. } | WalError::Format { .. }));
            assert!(refused, "bit {bit} of {}", name.display());
        }
    }
}

#[test]
fn every_flipped_bit_below_the_durable_mark_is_found() {
    let (disk, model) = sound_log(false);
    let (last, bytes) = last_segment(&disk);
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("written") + 1;
    // The last batch only vouches for what is before it, and carries a committed mark perhaps: damage to itself costs
    // nothing.
    let vouching = end - 100;
    for bit in 0..end * 8 {
        match recover(flip(&disk, last, bit)) {
            Err(_) => {}
            Ok((index, _)) if bit / 8 >= vouching => assert_eq!(Model::of(&index), model, "bit {bit}"),
            Ok(_) => panic!("bit {bit} is not found"),
        }
    }
}

#[test]
fn missing_swapped_and_shortened_segments_are_found() {
    let (disk, _) = sound_log(true);
    let names: Vec<&PathBuf> = disk
        .names
        .keys()
        .filter(|name| name.extension().is_some())
        .collect();
    assert!(names.len() >= 2);
    for name in &names {
        let mut missing = disk.clone();
        missing.names.remove(*name);
        assert!(recover(missing).is_err(), "{} is missing", name.display());
        let mut shorter = disk.clone();
        let file = disk.names[*name];
        let bytes = &disk.files[&file];
        shorter
            .files
            .insert(file, Arc::new(bytes[..bytes.len() - 1].to_vec()));
        assert!(recover(shorter).is_err(), "{} is shortened", name.display());
    }
    let mut swapped = disk.clone();
    swapped.names.insert(names[0].clone(), disk.names[names[1]]);
    swapped.names.insert(names[1].clone(), disk.names[names[0]]);
    assert!(recover(swapped).is_err());
}

/// Appends one entry, and waits for the outcome.
fn append(wal: &Wal, index: u64) -> std::io::Result<()> {
    let (tx, rx) = channel();
    wal.append(
        vec![(index, Bytes::from(index.to_string()))],
        Box::new(move |result| drop(tx.send(result))),
    );
    rx.recv().expect("called back")
}

#[test]
fn a_failed_sync_stops_the_log_for_good() {
    let fs = SimFs::default();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let stop = Arc::new(move |error: &std::io::Error| tell.lock().expect("sound").push(error.to_string()));
    let options = WalOptions {
        stop: Some(stop),
        ..options()
    };
    let wal = Wal::open(Arc::new(fs.clone()), &dir(), options).expect("opened");
    (0..3).for_each(|index| append(&wal, index).expect("durable"));
    fs.fail_sync_after(0);
    assert!(append(&wal, 3).is_err());
    // The disk may sync again: what it dropped is dropped all the same.
    fs.fail_sync_after(u32::MAX);
    assert!(append(&wal, 4).is_err());
    assert_eq!(told.lock().expect("sound").len(), 1);
    drop(wal);
    let entries = Model::of(&recover(fs.disk()).expect("sound").0).entries;
    assert!((0..3).all(|index| entries.contains_key(&index)));
}

#[test]
fn a_log_that_cannot_be_closed_says_so() {
    let fs = SimFs::default();
    let wal = open(&fs);
    append(&wal, 0).expect("durable");
    let other = wal.clone();
    fs.fail_sync_after(0);
    assert!(wal.close().is_err());
    assert!(append(&other, 1).is_err(), "it is closed all the same");
}

#[test]
fn a_full_disk_stops_the_log_and_loses_nothing() {
    let fs = SimFs::default();
    let wal = open(&fs);
    append(&wal, 0).expect("durable");
    fs.set_room(3000);
    let acknowledged = (1..200).take_while(|index| append(&wal, *index).is_ok()).count() as u64;
    assert!(acknowledged < 199, "the disk must fill up");
    drop(wal);
    fs.set_room(1 << 20);
    let entries = Model::of(&recover(fs.disk()).expect("sound").0).entries;
    assert!((0..=acknowledged).all(|index| entries.contains_key(&index)));
}

#[test]
fn entries_are_read_from_memory_and_from_disk_alike() {
    let fs = SimFs::default();
    let options = WalOptions {
        cache_bytes: 100,
        ..options()
    };
    let wal = Wal::open(Arc::new(fs.clone()), &dir(), options).expect("opened");
    (0..200).for_each(|index| append(&wal, index).expect("durable"));
    let read = wal.read(0, 200, 1 << 20).expect("read");
    assert_eq!(read.len(), 200);
    assert!(read.iter().all(|(index, bytes)| *bytes == index.to_string()));
    assert_eq!(wal.read(5, 200, 1).expect("read").len(), 1, "one at least");
    assert_eq!(wal.read(200, 300, 1 << 20).expect("read"), []);
    // Damage on the disk is found when it is read, too.
    let first = *fs.disk().names.values().next().expect("a segment");
    let damaged = flip(&fs.disk(), first, 8 * 180);
    let file = fs
        .open(fs.disk().names.keys().next().expect("a segment"))
        .expect("opened");
    file.write_at(0, &damaged.files[&first]).expect("written");
    assert!((0..200).any(|index| wal.read(index, index + 1, 1).is_err()));
}

#[test]
fn purged_segments_are_removed_and_their_vote_is_kept() {
    let fs = SimFs::default();
    let wal = open(&fs);
    wal.save_vote(Bytes::from_static(b"vote"), Box::new(|_| {}));
    (0..300).for_each(|index| append(&wal, index).expect("durable"));
    let before = fs.disk().names.len();
    wal.purge(290, Bytes::from_static(b"mark"));
    wait_durable(&wal);
    append(&wal, 300).expect("durable");
    assert!(fs.disk().names.len() < before / 2);
    drop(wal);
    let state = recover(fs.disk()).expect("sound").0.state();
    assert_eq!((state.first, state.last), (291, Some(300)));
    assert_eq!(state.vote, Some(Bytes::from_static(b"vote")));
    assert_eq!(state.purged, Some((290, Bytes::from_static(b"mark"))));
}

#[test]
fn a_log_that_is_gone_is_not_made_anew() {
    let fs = SimFs::default();
    let again = WalOptions {
        must_exist: true,
        ..options()
    };
    let reopen = |options| Wal::open(Arc::new(fs.clone()), &dir(), options);
    let gone =
        |result| matches!(result, Err(WalError::Corrupt { what, .. }) if what.contains("segments are gone"));
    assert!(gone(reopen(again.clone())));
    open(&fs).close().expect("closed");
    reopen(again).expect("there").close().expect("closed");
    let segments = fs.list(&dir()).expect("readable");
    for name in segments.iter().filter(|name| name.ends_with(".wal")) {
        fs.remove(&dir().join(name)).expect("removed");
    }
    assert!(gone(reopen(options())), "it was closed");
}

#[test]
fn a_committed_mark_waits_for_what_it_speaks_of() {
    let mut index = Index::default();
    let append = index.push(1, Bytes::from_static(b"entry"));
    let mark = Bytes::from_static(b"1 is committed");
    index.unsaved = Some((mark.clone(), append));
    assert_eq!(index.take_committed(append - 1), None);
    assert_eq!(index.take_committed(append), Some(mark));
    assert_eq!(index.take_committed(append), None, "it is written once");
}
