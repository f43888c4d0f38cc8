//! The replicated state machine: pure, synchronous, deterministic.
//!
//! [`State::apply`] takes one committed command and answers it. Whether a command is accepted is decided from the
//! command and the state alone, never from who received it, the time, or how far this member has saved or reclaimed:
//! so every member decides alike. (etcd refuses some transactions only on the member that received them, and members
//! then differ: etcd-io/etcd#18667.)
//!
//! Two kinds of failure: an [`Error`] is the command's answer, the same everywhere; a [`storage::Error`] is local,
//! and stops the member.
//!
//! Changes are visible to a [`Reader`] once they are sealed, with the shell's mark on them (`raft/state_machine.rs`).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod alarm;
pub mod auth;
mod check;
mod chunks;
mod cluster;
mod counts;
mod lease;
mod range;
#[cfg(test)]
mod tests;
mod txn;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};

pub use check::{
    all_serializable, check_delete_range, check_put, check_range, check_txn, cost, is_read_only,
};
pub use chunks::{Chunks, is_in_key_order};
pub use cluster::{Seat, member_records};
pub use counts::Counts;
pub use lease::{Lease, LeaseChange, LeaseChanges};
pub use range::{EncodedRange, ReadError};

use self::auth::{Auth, Who};
use crate::error::Error;
use crate::mvcc::{KeyRange, Store, Versions, Write};
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmType, CompactionRequest, CompactionResponse, RangeRequest, RangeResponse,
    ResponseHeader, TxnRequest, TxnResponse,
};
use crate::pb::mvccpb::Event;
use crate::pb::pontoon::command::auth_change::Change;
use crate::pb::pontoon::command::command::Op;
use crate::pb::pontoon::command::reply::Response;
use crate::pb::pontoon::command::{AuthChange, Authenticated, Command, Done, Header, MemberRecord};
use crate::storage::{self, Engine, keys};

pub use crate::mvcc::{
    Changes, Defragmented, Options, Piece, Saver, SnapshotSource, View, records_of, with_mark,
};

/// etcd's default for a command that carries no limit.
const DEFAULT_TXN_OPS: u32 = 128;
/// To read so many keys takes some tens of microseconds; more take long.
const LONG_RANGE: usize = 64;

/// Where in the log a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Term of the leader that appended it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// What follows from one command.
#[derive(Debug)]
pub struct Outcome {
    /// For the proposer, if it waits on this member.
    pub response: Result<Response, Error>,
    /// What changed, in order; all at one main revision.
    pub events: Vec<Event>,
    /// The store's revision after the command.
    pub revision: i64,
    /// What the member must know of tokens.
    pub tokens: Option<TokenChange>,
    /// For the lease clock.
    pub leases: LeaseChanges,
    /// What was done to the store.
    pub counts: Counts,
}

/// Tokens are no part of the state: each member keeps them in memory, and learns of them from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenChange {
    /// A user got this token.
    Granted(Authenticated),
    /// All tokens of a user are void.
    Revoked(String),
    /// All tokens are void.
    AllRevoked,
}

/// Why a command is not carried out.
#[derive(Debug)]
enum Failure {
    /// Answered, alike on every member.
    Refused(Error),
    /// This member can't go on.
    Local(storage::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Refused(error)
    }
}

impl From<storage::Error> for Failure {
    fn from(error: storage::Error) -> Self {
        Failure::Local(error)
    }
}

/// The state, owned by whoever applies.
pub struct State {
    store: Arc<Store>,
    auth: Arc<Auth>,
    current: Arc<ArcSwap<Store>>,
    /// As sealed: what readers go by.
    current_auth: Arc<ArcSwap<Auth>>,
}

impl State {
    /// Opens what the engine holds; with the shell's mark of the last save, if there was one.
    pub fn open(engine: Arc<dyn Engine>, options: Options) -> storage::Result<(State, Option<Bytes>)> {
        let (store, mark) = Store::open(engine, options)?;
        Ok((State::with(store), mark))
    }

    /// Rebuilds the state in an empty engine from the records of a [`SnapshotSource`]; with the shell's mark.
    pub fn restore(
        engine: Arc<dyn Engine>,
        options: Options,
        records: impl Iterator<Item = std::io::Result<Bytes>>,
    ) -> storage::Result<(State, Bytes)> {
        let (store, mark) = Store::restore(engine, options, records)?;
        Ok((State::with(store), mark))
    }

    fn with(store: Arc<Store>) -> State {
        let auth = Arc::new(Auth::load(&store));
        State {
            current: Arc::new(ArcSwap::new(store.clone())),
            current_auth: Arc::new(ArcSwap::new(auth.clone())),
            store,
            auth,
        }
    }

    /// Carries out one committed command. Readers see nothing of it before [`State::seal`].
    ///
    /// An error means that this member must stop.
    pub fn apply(&mut self, place: Place, command: &Command) -> storage::Result<Outcome> {
        let mut write = self.store.write();
        let (mut leases, mut counts) = (LeaseChanges::new(), Counts::default());
        let follows = (&mut leases, &mut counts);
        let response = match apply_op(&mut write, &mut self.auth, place, command, follows) {
            Ok(response) => Ok(response),
            Err(Failure::Refused(error)) => {
                // Commands are checked before they change anything; a half-made change must not become a revision.
                assert!(
                    !write.has_changes(),
                    "command {place:?} was refused after it changed something: {error}"
                );
                Err(error)
            }
            Err(Failure::Local(error)) => return Err(error),
        };
        let (revision, events) = write.finish();
        counts.end_pass();
        Ok(Outcome {
            tokens: token_change(command.op.as_ref(), &response),
            response,
            events,
            revision,
            leases,
            counts,
        })
    }

    /// Raft's membership changed to this: the members' records follow.
    pub fn set_membership(&mut self, seats: &[Seat]) {
        let mut write = self.store.write();
        cluster::set_membership(&mut write, seats);
        write.finish();
    }

    /// Makes everything applied so far visible, as one point with the shell's mark on it.
    pub fn seal(&mut self, mark: Bytes) {
        self.store.seal(mark);
        // After the data: who reads by an older auth can only see older data.
        if !Arc::ptr_eq(&self.auth, &self.current_auth.load()) {
            self.current_auth.store(self.auth.clone());
        }
    }

    /// Sees what is sealed, of this state and of those that replace it.
    pub fn reader(&self) -> Reader {
        Reader {
            current: self.current.clone(),
            auth: self.current_auth.clone(),
        }
    }

    /// For the one thread that saves behind apply.
    pub fn saver(&self) -> Saver {
        self.store.saver()
    }

    /// Makes everything saved survive a loss of power.
    pub fn flush(&self) -> storage::Result<()> {
        self.store.flush()
    }

    /// Everything as it is sealed now; writes go on meanwhile.
    pub fn snapshot(&self) -> SnapshotSource {
        self.store.snapshot()
    }

    /// Another state takes this one's place (a snapshot was installed). Reads under way finish on the old one.
    pub fn replace(&mut self, other: State) {
        self.store.discard();
        self.store = other.store;
        self.auth = other.auth;
        self.current.store(self.store.clone());
        self.current_auth.store(self.auth.clone());
    }
}

fn apply_op(
    write: &mut Write<'_>,
    auth: &mut Arc<Auth>,
    place: Place,
    command: &Command,
    (leases, counts): (&mut LeaseChanges, &mut Counts),
) -> Result<Response, Failure> {
    let none = Header::default();
    let header = command.header.as_ref().unwrap_or(&none);
    let who = Who {
        user: &header.user,
        revision: header.auth_revision,
        system: header.system,
    };
    let max_ops = match header.max_txn_ops {
        0 => DEFAULT_TXN_OPS,
        max_ops => max_ops,
    } as usize;
    auth.permit(&who, command.op.as_ref(), &|lease| write.attached(lease))?;
    alarm::admit(write, command.op.as_ref())?;
    match command.op.as_ref() {
        Some(Op::Alarm(request)) => Ok(Response::Alarm(alarm::apply(write, request))),
        Some(Op::Put(request)) => Ok(Response::Put(txn::put(write, request, counts)?)),
        Some(Op::DeleteRange(request)) => {
            Ok(Response::DeleteRange(txn::delete_range(write, request, counts)?))
        }
        Some(Op::Txn(request)) => Ok(Response::Txn(txn::txn(write, request, max_ops, counts)?)),
        Some(Op::Compact(request)) => Ok(Response::Compact(compact(write, request, counts)?)),
        Some(Op::SetMember(member)) => {
            cluster::set(write, member);
            Ok(Response::Done(Done {}))
        }
        Some(Op::UpdateMember(member)) => {
            cluster::update(write, member)?;
            Ok(Response::Done(Done {}))
        }
        Some(Op::ClaimMember(claim)) => {
            cluster::claim(write, claim)?;
            Ok(Response::Done(Done {}))
        }
        Some(Op::Auth(change)) => {
            Arc::make_mut(auth).change(write, change)?;
            Ok(Response::Done(Done {}))
        }
        Some(Op::Authenticate(request)) => Ok(Response::Authenticated(auth.authenticate(
            place.index,
            request,
            header.auth_revision,
        )?)),
        Some(Op::LeaseGrant(request)) => {
            Ok(Response::LeaseGrant(lease::grant(write, request, place, leases)?))
        }
        Some(Op::LeaseRevoke(request)) => Ok(Response::LeaseRevoke(lease::revoke(
            write, request, leases, counts,
        )?)),
        Some(Op::LeaseExpire(request)) => {
            lease::expire(write, request, place, leases, counts)?;
            Ok(Response::Done(Done {}))
        }
        Some(Op::LeaseCheckpoint(request)) => {
            lease::checkpoint(write, request, place, leases)?;
            Ok(Response::Done(Done {}))
        }
        // Of a newer version: nothing that this one knows how to do.
        None => Ok(Response::Done(Done {})),
    }
}

/// Read off the command and its answer, so that it is the same wherever the command is applied.
fn token_change(op: Option<&Op>, response: &Result<Response, Error>) -> Option<TokenChange> {
    if let Ok(Response::Authenticated(granted)) = response {
        return Some(TokenChange::Granted(granted.clone()));
    }
    let Some(Op::Auth(AuthChange { change })) = op.filter(|_| response.is_ok()) else {
        return None;
    };
    match change.as_ref()? {
        Change::UserDelete(request) => Some(TokenChange::Revoked(request.name.clone())),
        Change::UserChangePassword(request) => Some(TokenChange::Revoked(request.name.clone())),
        Change::Disable(_) => Some(TokenChange::AllRevoked),
        _ => None,
    }
}

fn compact(
    write: &mut Write<'_>,
    request: &CompactionRequest,
    counts: &mut Counts,
) -> Result<CompactionResponse, Failure> {
    if request.revision <= write.compacted() {
        return Err(Error::Compacted.into());
    }
    if request.revision > write.revision() {
        return Err(Error::FutureRevision.into());
    }
    write.compact(request.revision);
    counts.range();
    Ok(CompactionResponse {
        header: header(write.revision()),
    })
}

/// The state knows the revision; the service fills in the rest.
fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

/// Reads of the sealed state. Cheap to clone, and stays valid when a snapshot is installed.
#[derive(Clone)]
pub struct Reader {
    current: Arc<ArcSwap<Store>>,
    auth: Arc<ArcSwap<Auth>>,
}

impl Reader {
    /// The store as it is now, for as long as the view is held.
    pub fn view(&self) -> View {
        self.current.load_full().view()
    }

    /// Users and roles. Ask for it after the view that it guards: then it is as new as the data, or newer.
    pub fn auth(&self) -> Arc<Auth> {
        self.auth.load_full()
    }

    /// The newest revision that can be read.
    pub fn revision(&self) -> i64 {
        self.view().revision()
    }

    /// Below this nothing can be read; −1 before any compaction.
    pub fn compacted(&self) -> i64 {
        self.view().compacted()
    }

    /// Whether a read of this range takes long. Its limit does not matter: all of it is counted.
    pub fn is_long(&self, request: &RangeRequest) -> bool {
        let keys = KeyRange::new(&request.key, &request.range_end);
        !request.range_end.is_empty() && self.current.load().has_more(&keys, LONG_RANGE)
    }

    /// A range, with a header that has the revision only.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        self.check_trusted()?;
        let view = self.view();
        let at = range::revision_of(request, &view)?;
        let mut response = range::range(&view, request, at)?;
        response.header = header(view.revision());
        Ok(response)
    }

    /// The same, but encoded, its pairs appended to `kvs`; and the revision for its header.
    pub fn encoded_range(
        &self,
        request: &RangeRequest,
        kvs: BytesMut,
    ) -> Result<(i64, EncodedRange), ReadError> {
        self.check_trusted()?;
        let view = self.view();
        let at = range::revision_of(request, &view)?;
        Ok((view.revision(), range::encode_range(&view, request, at, kvs)?))
    }

    /// The same in chunks; the request has passed [`is_in_key_order`].
    pub fn range_chunks(&self, request: &RangeRequest) -> Result<Chunks, ReadError> {
        self.check_trusted()?;
        Chunks::new(self.view(), request)
    }

    /// A transaction that only reads, and what it did, also if it is refused.
    pub fn read_txn(&self, request: &TxnRequest) -> (Result<TxnResponse, ReadError>, Counts) {
        let mut counts = Counts::default();
        let answer = match self.check_trusted() {
            Ok(()) => txn::read_txn(&self.view(), request, &mut counts),
            Err(error) => Err(error.into()),
        };
        counts.end_pass();
        (answer, counts)
    }

    /// Nothing is read from a state that is known to be corrupt.
    fn check_trusted(&self) -> Result<(), Error> {
        match self.has_alarm(AlarmType::Corrupt) {
            true => Err(Error::Corrupt),
            false => Ok(()),
        }
    }

    /// Checksum of all that can be read at `revision` (0: now), the compacted revision, and the revision.
    pub fn hash_kv(&self, revision: i64) -> Result<(u32, i64, i64), ReadError> {
        let view = self.view();
        let request = RangeRequest {
            revision,
            ..RangeRequest::default()
        };
        let at = range::revision_of(&request, &view)?;
        Ok((view.hash(at)?, view.compacted(), at))
    }

    /// Checksum of all that is replicated as it is now: keys, values, their past, and the small records. Never 0.
    pub fn hash(&self) -> Result<u32, ReadError> {
        let view = self.view();
        let mut crc = view.hash(view.revision())?;
        for range in keys::records() {
            for (key, value) in self.current.load().records(range) {
                crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, &key), &value);
            }
        }
        Ok(crc.max(1))
    }

    /// All alarms, by kind, then by member.
    pub fn alarms(&self) -> Vec<AlarmMember> {
        alarm::alarms(&self.current.load())
    }

    /// Whether any member has an alarm of this kind.
    pub fn has_alarm(&self, alarm: AlarmType) -> bool {
        alarm::is_active(&self.current.load(), alarm)
    }

    /// Whether alarms stand against a command now: it would be refused when applied, unless they are cleared first.
    pub fn admit(&self, op: &Op) -> Result<(), Error> {
        alarm::admit_early(&self.current.load(), op)
    }

    /// The members, by id.
    pub fn members(&self) -> Vec<MemberRecord> {
        cluster::members(&self.current.load())
    }

    /// All leases, by id.
    pub fn leases(&self) -> storage::Result<Vec<Lease>> {
        lease::all(&self.current.load())
    }

    /// The keys attached to a lease, in order, and the revision at which they are, which may not be readable yet.
    pub fn attached(&self, lease: i64) -> (Vec<Bytes>, i64) {
        self.current.load().attached(lease)
    }

    /// Whether there was such a member, which was removed.
    pub fn is_removed(&self, id: u64) -> bool {
        cluster::is_removed(&self.current.load(), id)
    }

    /// Bytes that the store takes: on disk, and applied but not there yet.
    pub fn size(&self) -> u64 {
        self.size_on_disk() + self.unsaved_bytes()
    }

    /// Bytes of it that are in use: all keys and values that are kept, of every revision.
    pub fn size_in_use(&self) -> u64 {
        self.current.load().bytes().min(self.size())
    }

    /// Bytes of a snapshot of it, at most: all of them, and those that are in no file which it shares.
    pub fn snapshot_bytes(&self) -> (u64, u64) {
        let all = self.size_in_use();
        (
            all,
            all.min(self.size().saturating_sub(self.current.load().lendable())),
        )
    }

    /// Bytes that are applied, but not in the engine yet.
    pub fn unsaved_bytes(&self) -> u64 {
        self.current.load().unsaved_bytes() as u64
    }

    /// Bytes that the engine takes on disk; 0 if it can't tell.
    fn size_on_disk(&self) -> u64 {
        self.current.load().size_on_disk().unwrap_or(0)
    }

    /// Up to which revision this member has reclaimed what compaction freed.
    pub fn swept(&self) -> i64 {
        self.current.load().swept()
    }

    /// Lets the member know that somebody waits for it to reclaim; to be said again while that is so.
    pub fn hurry_reclaiming(&self) {
        self.current.load().hurry();
    }

    /// Views that are held now.
    pub fn open_views(&self) -> usize {
        self.current.load().views()
    }

    /// Keys in the index: those that exist, and deleted ones that are not reclaimed yet.
    pub fn key_count(&self) -> usize {
        self.current.load().key_count()
    }
}
