//! Lease records: what the log says of leases. No clock is here.
//!
//! A lease exists from its grant to its revoke, whatever any clock says. Keys are attached to it by puts that name it;
//! its end deletes them, in key order, in one revision. How long it has to live is the leader's business
//! (`server/lessor`); the record keeps what the next leader must know: the TTL as granted and, for long leases that
//! are not kept alive, the seconds that were left at the last checkpoint.
//!
//! What the leader's clock decides carries the leader's term, and does nothing in an entry of another term. So a
//! decision that was made before the leader was deposed, and enters the log only after it was elected again, can't
//! undo what another leader has promised in between. It also names the grant that it is about, as the same id may
//! have been revoked and granted anew.

use bytes::Bytes;
use prost::Message;

use super::{Counts, Failure, Place, header};
use crate::error::Error;
use crate::mvcc::{Store, Versions, Write};
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse,
};
use crate::pb::pontoon::command::{LeaseCheckpoint, LeaseExpire, LeaseRecord};
use crate::storage::{self, keys};

/// A lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: i64,
    /// Seconds, as granted.
    pub ttl: i64,
    /// Seconds that were left at the last checkpoint, if one was taken since the lease was granted or last renewed.
    pub remaining: Option<i64>,
    /// Index of the log entry that granted it: tells it from others of the same id.
    pub granted_at: u64,
}

/// What a command did to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// It began.
    Granted(Lease),
    /// It ended.
    Revoked {
        /// Its id.
        id: i64,
        /// See [`Lease::granted_at`].
        granted_at: u64,
    },
    /// Its remaining time was recorded, or forgotten.
    Checkpointed(Lease),
}

/// Changes of leases by one command, in order.
pub type LeaseChanges = Vec<LeaseChange>;

/// The longest that a lease may last: etcd's limit, in seconds.
const MAX_TTL: i64 = 9_000_000_000;

/// Begins a lease. The proposer picked an id if the client did not, and raised a TTL that was too short.
pub fn grant(
    write: &mut Write<'_>,
    request: &LeaseGrantRequest,
    place: Place,
    changes: &mut LeaseChanges,
) -> Result<LeaseGrantResponse, Error> {
    if request.ttl > MAX_TTL {
        return Err(Error::LeaseTtlTooLarge);
    }
    if exists(write, request.id) {
        return Err(Error::LeaseExists);
    }
    let lease = Lease {
        id: request.id,
        ttl: request.ttl,
        remaining: None,
        granted_at: place.index,
    };
    set(write, &lease);
    changes.push(LeaseChange::Granted(lease));
    Ok(LeaseGrantResponse {
        header: header(write.revision()),
        id: request.id,
        ttl: request.ttl,
        error: String::new(),
    })
}

/// A client ends a lease.
pub fn revoke(
    write: &mut Write<'_>,
    request: &LeaseRevokeRequest,
    changes: &mut LeaseChanges,
    counts: &mut Counts,
) -> Result<LeaseRevokeResponse, Failure> {
    let lease = get(write, request.id)?.ok_or(Error::LeaseNotFound)?;
    end(write, &lease, changes, counts);
    Ok(LeaseRevokeResponse {
        header: header(write.revision()),
    })
}

/// The leader's clock ends a lease.
pub fn expire(
    write: &mut Write<'_>,
    request: &LeaseExpire,
    place: Place,
    changes: &mut LeaseChanges,
    counts: &mut Counts,
) -> storage::Result<()> {
    if request.term == place.term
        && let Some(lease) = granted(write, request.id, request.granted_at)?
    {
        end(write, &lease, changes, counts);
    }
    Ok(())
}

/// The leader's clock says what is left of leases.
pub fn checkpoint(
    write: &mut Write<'_>,
    request: &LeaseCheckpoint,
    place: Place,
    changes: &mut LeaseChanges,
) -> storage::Result<()> {
    if request.term != place.term {
        return Ok(());
    }
    for said in &request.leases {
        if let Some(mut lease) = granted(write, said.id, said.granted_at)? {
            lease.remaining = (said.seconds > 0).then_some(said.seconds);
            set(write, &lease);
            changes.push(LeaseChange::Checkpointed(lease));
        }
    }
    Ok(())
}

fn end(write: &mut Write<'_>, lease: &Lease, changes: &mut LeaseChanges, counts: &mut Counts) {
    for key in write.attached(lease.id) {
        counts.delete();
        write.delete(key);
    }
    write.set_record(keys::lease(lease.id), None);
    changes.push(LeaseChange::Revoked {
        id: lease.id,
        granted_at: lease.granted_at,
    });
}

/// Whether there is a lease of this id.
pub fn exists(write: &Write<'_>, id: i64) -> bool {
    write.record(&keys::lease(id)).is_some()
}

/// All leases, by id.
pub fn all(store: &Store) -> storage::Result<Vec<Lease>> {
    let records = store.records(keys::leases());
    records
        .into_iter()
        .map(|(key, value)| decode(keys::parse_lease(&key).unwrap_or(0), value))
        .collect()
}

fn get(write: &Write<'_>, id: i64) -> storage::Result<Option<Lease>> {
    let record = write.record(&keys::lease(id));
    record.map(|value| decode(id, value.clone())).transpose()
}

/// The lease of this id, if it is the one that this entry granted.
fn granted(write: &Write<'_>, id: i64, granted_at: u64) -> storage::Result<Option<Lease>> {
    Ok(get(write, id)?.filter(|lease| lease.granted_at == granted_at))
}

fn set(write: &mut Write<'_>, lease: &Lease) {
    let record = LeaseRecord {
        ttl: lease.ttl,
        remaining: lease.remaining.unwrap_or(0),
        granted_at: lease.granted_at,
    };
    write.set_record(keys::lease(lease.id), Some(Bytes::from(record.encode_to_vec())));
}

fn decode(id: i64, value: Bytes) -> storage::Result<Lease> {
    let record = LeaseRecord::decode(value)
        .map_err(|error| storage::Error::Corrupt(format!("lease {id:x}: {error}")))?;
    Ok(Lease {
        id,
        ttl: record.ttl,
        remaining: (record.remaining > 0).then_some(record.remaining),
        granted_at: record.granted_at,
    })
}
