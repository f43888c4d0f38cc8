//! Backups: the whole store in one file, of etcd's own format.
//!
//! A backup is what etcd's snapshots are: a bbolt database ([`bolt`]) laid out in etcd's buckets ([`save`] writes them,
//! [`load`] reads them), with a SHA-256 of it behind it. So etcd's tools read ours, and we read theirs: there is a way in
//! and a way out. (The snapshots of Raft are something else: `raft/snapshot/`.)
//!
//! ```text
//! file = database, a multiple of 512 bytes | SHA-256 of it, 32 bytes
//!
//! bucket           key                                       value
//! key              main u64, '_', sub u64 (, 't': deleted)   KeyValue; of a deleted one the key only
//! lease            id u64                                    id, TTL, remaining TTL
//! meta             scheduledCompactRev, finishedCompactRev   main u64, '_', sub u64
//!                  consistent_index, term, confState         where in Raft's log it was taken, and who voted
//! alarm            AlarmMember                               nothing
//! members          id, hexadecimal                           name and URLs, as JSON
//! cluster          clusterVersion                            3.5.0
//! auth             authEnabled, authRevision                 a byte, u64
//! authUsers        user name                                 authpb.User
//! authRoles        role name                                 authpb.Role
//! members_removed  id, hexadecimal                           "removed"
//! ```
//!
//! Numbers are big-endian. A restore takes keys, revisions, leases, users, roles and the compacted revision, and leaves
//! members, log position and alarms behind: they are of the old cluster.

pub mod bolt;
mod load;
mod save;
#[cfg(test)]
mod tests;

use std::io;

use bytes::{BufMut, Bytes, BytesMut};

pub use load::{Backup, Problem, RESTORED_AT, Status};
pub use save::{Origin, save};

use crate::mvcc::Revision;

const KEY: &str = "key";
const LEASE: &str = "lease";
const META: &str = "meta";
const AUTH: &str = "auth";
const AUTH_ENABLED: &str = "authEnabled";
const AUTH_REVISION: &str = "authRevision";
const ROLES: &str = "authRoles";
const USERS: &str = "authUsers";
const SCHEDULED: &str = "scheduledCompactRev";
const FINISHED: &str = "finishedCompactRev";
/// Behind the key of a version that is a deletion.
const TOMBSTONE: u8 = b't';
/// The checksum behind the database.
pub const CHECKSUM: usize = 32;
/// The database is a multiple of this long: by what is left over a reader knows whether a checksum follows.
pub const SECTOR: u64 = 512;

/// A lease as etcd stores it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Lease {
    /// Its id.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Granted, in seconds.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    /// Left at the last checkpoint, in seconds; 0: there was none.
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

fn revision_key(revision: Revision) -> BytesMut {
    let mut key = BytesMut::with_capacity(18);
    key.put_i64(revision.main);
    key.put_u8(b'_');
    key.put_u64(u64::from(revision.sub));
    key
}

/// The revision, and whether it is a deletion.
fn parse_revision_key(key: &[u8]) -> Option<(Revision, bool)> {
    let (main, rest) = key.split_at_checked(8)?;
    let (sub, rest) = rest.strip_prefix(b"_")?.split_at_checked(8)?;
    let main = i64::from_be_bytes(main.try_into().ok()?);
    let sub = u32::try_from(u64::from_be_bytes(sub.try_into().ok()?)).ok()?;
    let tombstone = match rest {
        [] => false,
        [TOMBSTONE] => true,
        _ => return None,
    };
    (main > 0).then_some((Revision { main, sub }, tombstone))
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the backup is damaged: {what}"),
    )
}
