//! Reading a backup: ours, etcd's, or the database file of an etcd's data directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use super::bolt::{Bucket, Database};
use super::{
    AUTH, AUTH_ENABLED, AUTH_REVISION, CHECKSUM, FINISHED, KEY, LEASE, Lease, META, ROLES, SCHEDULED, SECTOR,
    USERS, damaged, parse_revision_key,
};
use crate::mvcc::{NEVER_COMPACTED, Revision, Version};
use crate::pb::mvccpb::KeyValue;
use crate::pb::pontoon::command::{AuthStatus, LeaseRecord};
use crate::storage::keys;

type Pair = (Bytes, Bytes);

/// The log's index of a restored state: whatever is granted later has a higher one.
pub const RESTORED_AT: u64 = 1;
/// Read at once while the checksum is computed.
const CHUNK: usize = 1 << 20;

/// Why a file is not taken for a backup.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// There is no checksum: of another make than a snapshot.
    #[error(
        "it carries no checksum: a file copied out of an etcd's data directory has none (--skip-hash-check takes it)"
    )]
    NoChecksum,
    /// What is in it is not what was written.
    #[error("its checksum is wrong: the file is damaged, or cut short")]
    Checksum,
    /// It can't be read, or has no sense.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What `snapshot status` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C of all names, keys and values: the same as etcd's tools compute.
    pub hash: u32,
    /// The newest revision.
    pub revision: i64,
    /// Pairs in all buckets.
    pub total_key: u64,
    /// Bytes of the database.
    pub total_size: u64,
}

/// An opened backup.
pub struct Backup {
    database: Database<(File, u64)>,
    buckets: BTreeMap<Bytes, Bucket>,
}

impl Backup {
    /// Opens a file; its checksum is looked at unless `skip_hash_check`, which also takes files without one.
    pub fn open(path: &Path, skip_hash_check: bool) -> Result<Backup, Problem> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let has_checksum = size % SECTOR == CHECKSUM as u64;
        let database = if has_checksum {
            size - CHECKSUM as u64
        } else {
            size
        };
        match (skip_hash_check, has_checksum) {
            (true, _) => {}
            (false, true) => check(&file, database)?,
            (false, false) => return Err(Problem::NoChecksum),
        }
        let database = Database::open((file, database))?;
        let buckets = database.buckets()?.into_iter().collect();
        Ok(Backup { database, buckets })
    }

    /// Reads everything, and tells what it is.
    pub fn status(&self) -> io::Result<Status> {
        let (mut hash, mut revision, mut total_key) = (0, 0, 0);
        for (name, bucket) in &self.buckets {
            hash = crc32c::crc32c_append(hash, name);
            for pair in self.database.pairs(bucket)? {
                let (key, value) = pair?;
                hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &key), &value);
                total_key += 1;
                if name == KEY {
                    revision = parse_revision_key(&key).map_or(revision, |(at, _)| at.main);
                }
            }
        }
        Ok(Status {
            hash,
            revision,
            total_key,
            total_size: self.database.size(),
        })
    }

    /// The newest revision, and how many versions there are. Compaction may have left nothing of the newest.
    pub fn revision(&self) -> io::Result<(i64, u64)> {
        let (mut newest, mut count) = (self.compacted()?.max(1), 0);
        for version in self.versions()? {
            newest = newest.max(version?.revision.main);
            count += 1;
        }
        Ok((newest, count))
    }

    /// Below this nothing can be read; −1 before any compaction. One that was begun counts as done.
    pub fn compacted(&self) -> io::Result<i64> {
        let mut compacted = NEVER_COMPACTED;
        for pair in self.pairs(META)? {
            let (key, value) = pair?;
            if key == SCHEDULED || key == FINISHED {
                let (revision, _) =
                    parse_revision_key(&value).ok_or_else(|| damaged("its compacted revision is none"))?;
                compacted = compacted.max(revision.main);
            }
        }
        Ok(compacted)
    }

    /// All versions of all keys, in revision order.
    pub fn versions(&self) -> io::Result<impl Iterator<Item = io::Result<Version>> + '_> {
        if !self.buckets.contains_key(KEY.as_bytes()) {
            return Err(damaged("it has no bucket of keys: it is no etcd's"));
        }
        let pairs = self.pairs(KEY)?;
        let mut last = Revision::default();
        Ok(pairs.map(move |pair| {
            let (key, value) = pair?;
            let version = version(&key, value)?;
            match version.revision > std::mem::replace(&mut last, version.revision) {
                true => Ok(version),
                false => Err(damaged("two versions have one revision")),
            }
        }))
    }

    /// Leases, users and roles, as the state keeps them (`storage/keys.rs`), in key order.
    pub fn small_records(&self) -> io::Result<Vec<Pair>> {
        let mut records = self.auth()?;
        for (bucket, key) in [(ROLES, keys::role as fn(&str) -> Bytes), (USERS, keys::user)] {
            for pair in self.pairs(bucket)? {
                let (name, record) = pair?;
                let name = std::str::from_utf8(&name).map_err(damaged)?;
                records.push((key(name), record));
            }
        }
        for pair in self.pairs(LEASE)? {
            records.push(lease(pair?.1)?);
        }
        records.sort();
        Ok(records)
    }

    /// Nothing if nobody ever made a user.
    fn auth(&self) -> io::Result<Vec<Pair>> {
        let mut status = AuthStatus::default();
        for pair in self.pairs(AUTH)? {
            let (key, value) = pair?;
            if key == AUTH_ENABLED {
                status.enabled = value == [1][..];
            } else if key == AUTH_REVISION {
                let revision = value[..].try_into().map_err(damaged)?;
                status.revision = u64::from_be_bytes(revision);
            }
        }
        let is_known = status != AuthStatus::default();
        let record = (keys::auth_status(), status.encode_to_vec().into());
        Ok(is_known.then_some(record).into_iter().collect())
    }

    /// A bucket's pairs; none if there is no such bucket.
    fn pairs(&self, name: &str) -> io::Result<impl Iterator<Item = io::Result<(Bytes, Bytes)>> + '_> {
        let pairs = self
            .buckets
            .get(name.as_bytes())
            .map(|bucket| self.database.pairs(bucket))
            .transpose()?;
        Ok(pairs.into_iter().flatten())
    }
}

/// Compares the checksum behind the first `size` bytes with that of the bytes.
fn check(file: &File, size: u64) -> Result<(), Problem> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut chunk[..length], offset)?;
        hash.update(&chunk[..length]);
        offset += length as u64;
    }
    let mut written = [0; CHECKSUM];
    file.read_exact_at(&mut written, size)?;
    match hash.finalize()[..] == written {
        true => Ok(()),
        false => Err(Problem::Checksum),
    }
}

fn lease(value: Bytes) -> io::Result<Pair> {
    let lease = Lease::decode(value).map_err(damaged)?;
    if lease.id == 0 || lease.ttl <= 0 || lease.remaining_ttl < 0 {
        return Err(damaged("a lease has no id or no time"));
    }
    let record = LeaseRecord {
        ttl: lease.ttl,
        remaining: lease.remaining_ttl,
        granted_at: RESTORED_AT,
    };
    Ok((keys::lease(lease.id), record.encode_to_vec().into()))
}

fn version(key: &Bytes, value: Bytes) -> io::Result<Version> {
    let (revision, tombstone) =
        parse_revision_key(key).ok_or_else(|| damaged("a version has no revision"))?;
    let mut kv = KeyValue::decode(value).map_err(damaged)?;
    if tombstone {
        // etcd stores the key alone.
        kv = KeyValue {
            key: kv.key,
            mod_revision: revision.main,
            ..KeyValue::default()
        };
    }
    let sound = tombstone
        || kv.mod_revision == revision.main
            && (1..=revision.main).contains(&kv.create_revision)
            && kv.version > 0;
    match sound && !kv.key.is_empty() {
        true => Ok(Version {
            revision,
            tombstone,
            kv,
        }),
        false => Err(damaged(format_args!(
            "the version at revision {}.{} contradicts itself",
            revision.main, revision.sub
        ))),
    }
}
