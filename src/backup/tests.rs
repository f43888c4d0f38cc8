//! A store and its backup say the same.

use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use super::*;
use crate::mvcc::{Options, Store, Version, records_of};
use crate::pb::etcdserverpb::Member;
use crate::pb::pontoon::command::{AuthStatus, LeaseRecord};
use crate::storage::{Memory, keys};

fn origin() -> Origin {
    let member = |id, is_learner| Member {
        id,
        name: format!("n{id}"),
        peer_ur_ls: vec!["http://127.0.0.1:2380".to_string()],
        is_learner,
        ..Member::default()
    };
    Origin {
        term: 3,
        index: 99,
        members: vec![member(1, false), member(10, false), member(2, true)],
    }
}

fn store() -> Arc<Store> {
    Store::open(Arc::new(Memory::default()), Options::default())
        .expect("opened")
        .0
}

/// Random changes; some saved, some reclaimed, some only in memory.
fn fill(store: &Arc<Store>, rng: &mut StdRng) {
    let saver = store.saver();
    let mut write = store.write();
    for id in [-5, 7, i64::MAX] {
        let lease = LeaseRecord {
            ttl: 60,
            remaining: id.clamp(0, 9),
            granted_at: RESTORED_AT,
        };
        write.set_record(keys::lease(id), Some(lease.encode_to_vec().into()));
    }
    let status = AuthStatus {
        enabled: true,
        revision: 8,
    };
    write.set_record(keys::auth_status(), Some(status.encode_to_vec().into()));
    write.set_record(keys::user("root"), Some(Bytes::from_static(b"\n\x04root")));
    write.set_record(keys::role("reader"), Some(Bytes::from_static(b"\n\x06reader")));
    write.finish();
    for _ in 0..300 {
        let mut write = store.write();
        for _ in 0..rng.random_range(1..4) {
            let key = Bytes::from(vec![b'a' + rng.random_range(0..20), rng.random_range(b'a'..b'd')]);
            match write.meta(&key).is_some() && rng.random_bool(0.3) {
                true => write.delete(key),
                false => write.put(key, Bytes::from(vec![rng.random(); rng.random_range(0..6000)]), 0),
            }
        }
        let (revision, _) = write.finish();
        if rng.random_bool(0.02) {
            let mut write = store.write();
            write.compact(rng.random_range(1..=revision));
            write.finish();
        }
        store.seal(Bytes::from_static(b"mark"));
        if rng.random_bool(0.1) {
            saver.save().expect("saved");
            while saver.sweep(10).expect("swept") {}
        }
    }
}

fn write(store: &Arc<Store>, path: &Path) {
    let file = std::fs::File::create(path).expect("created");
    let size = save(BufWriter::new(file), &store.snapshot(), &origin()).expect("saved");
    let mut bytes = std::fs::read(path).expect("read");
    assert_eq!(bytes.len() as u64, size);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    std::fs::write(path, bytes).expect("written");
}

fn restored(backup: &Backup) -> Arc<Store> {
    let (revision, _) = backup.revision().expect("read");
    let compacted = backup.compacted().expect("read");
    let versions = backup.versions().expect("read");
    let small = backup.small_records().expect("read");
    let records = records_of(revision, compacted, small, versions);
    Store::restore(Arc::new(Memory::default()), Options::default(), records)
        .expect("restored")
        .0
}

#[test]
fn a_restored_store_is_the_store() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("backup");
    for seed in 0..8 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let store = store();
        fill(&store, &mut rng);
        write(&store, &path);
        let backup = Backup::open(&path, false).expect("opened");
        let again = restored(&backup);
        let (view, other) = (store.view(), again.view());
        use crate::mvcc::Versions;
        assert_eq!(
            (view.revision(), view.compacted()),
            (other.revision(), other.compacted())
        );
        for revision in view.compacted().max(1)..=view.revision() {
            assert_eq!(
                view.hash(revision).expect("read"),
                other.hash(revision).expect("read"),
                "at {revision}"
            );
        }
        for space in keys::records() {
            assert_eq!(store.records(space.clone()), again.records(space));
        }
        assert_eq!(backup.status().expect("read").revision, view.revision());
        // A backup of the restored one is the same file: nothing is lost, and nothing of this member is in it.
        let twice = dir.path().join("twice");
        write(&again, &twice);
        assert!(std::fs::read(&path).expect("read") == std::fs::read(&twice).expect("read"));
    }
}

#[test]
fn compaction_leaves_its_own_revision_and_the_deletes_in_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("backup");
    let store = store();
    let key = Bytes::from_static(b"k");
    let mut put = store.write();
    put.put(key.clone(), Bytes::new(), 0);
    put.finish();
    let mut delete = store.write();
    delete.delete(key);
    let (revision, _) = delete.finish();
    store.write().compact(revision);
    store.seal(Bytes::new());
    write(&store, &path);
    let backup = Backup::open(&path, false).expect("opened");
    let versions: io::Result<Vec<Version>> = backup.versions().expect("read").collect();
    let left = versions.expect("read");
    assert!(left.len() == 1 && left[0].tombstone && left[0].revision.main == revision);
    assert_eq!(backup.revision().expect("read"), (revision, 1));
    assert_eq!(backup.compacted().expect("read"), revision);
}

#[test]
fn damage_is_told_from_a_missing_checksum() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("backup");
    let store = store();
    fill(&store, &mut StdRng::seed_from_u64(1));
    write(&store, &path);
    let whole = std::fs::read(&path).expect("read");
    let problem = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        Backup::open(&path, false).err()
    };
    assert!(problem(&whole).is_none());
    for at in (0..whole.len()).step_by(whole.len() / 50) {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        assert!(matches!(problem(&flipped), Some(Problem::Checksum)), "byte {at}");
    }
    assert!(matches!(
        problem(&whole[..whole.len() - CHECKSUM]),
        Some(Problem::NoChecksum)
    ));
    assert!(matches!(
        problem(&whole[..whole.len() / 2]),
        Some(Problem::NoChecksum | Problem::Checksum)
    ));
    assert!(matches!(problem(b""), Some(Problem::NoChecksum)));
    std::fs::write(&path, &whole[..whole.len() - CHECKSUM]).expect("written");
    assert!(Backup::open(&path, true).is_ok());
    std::fs::write(&path, b"no backup").expect("written");
    assert!(matches!(Backup::open(&path, true), Err(Problem::Io(_))));
}

#[test]
fn a_version_that_contradicts_itself_is_refused() {
    let kv = |key: &'static [u8], create_revision, mod_revision, version| crate::pb::mvccpb::KeyValue {
        key: Bytes::from_static(key),
        create_revision,
        mod_revision,
        version,
        ..Default::default()
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("backup");
    let read = |key: Bytes, kv: crate::pb::mvccpb::KeyValue| {
        let mut writer =
            bolt::Writer::new(BufWriter::new(std::fs::File::create(&path).expect("created"))).expect("begun");
        let pair = (key, kv.encode_to_vec().into());
        writer.bucket(KEY, std::iter::once(Ok(pair))).expect("written");
        writer.finish().expect("written");
        let backup = Backup::open(&path, true).expect("opened");
        backup
            .versions()
            .expect("begun")
            .collect::<io::Result<Vec<Version>>>()
    };
    let at = |main| revision_key(Revision { main, sub: 0 }).freeze();
    assert!(read(at(5), kv(b"k", 4, 5, 2)).is_ok());
    assert!(read(at(5), kv(b"k", 4, 6, 2)).is_err());
    assert!(read(at(5), kv(b"k", 6, 5, 2)).is_err());
    assert!(read(at(5), kv(b"k", 5, 5, 0)).is_err());
    assert!(read(at(5), kv(b"", 5, 5, 1)).is_err());
    assert!(read(at(0), kv(b"k", 0, 0, 1)).is_err());
    assert!(read(Bytes::from_static(b"strange"), kv(b"k", 5, 5, 1)).is_err());
}
