//! Who watches what, and how far each has been told.
//!
//! A watcher is *synced* or it *lags*. The synced ones are in the live index, and are handed each event as it is told
//! by apply. Those that lag want what is in the past: they began there, or their client was too slow, or the store
//! jumped. They are read to from the store, a slice at a time, until they have reached the present.
//!
//! ```text
//!                   next = 3                revision = 7 (all synced watchers were handed everything up to here)
//! 2    3    4    5    6    7 │ 8  live ──► synced watchers
//!      └── catching up ──►   │
//! ```
//!
//! Three rules make every watcher's events ordered, unique and complete:
//!
//! * A watcher's `next` is the first revision that it was not handed. Whatever hands it events, skips what is before
//!   and moves it on, under the hub's lock.
//! * It becomes synced only when `next` is beyond the hub's revision, in the same hold of the lock.
//! * Events of one revision are handed over together, or not at all: then it lags, from that revision on.
//!
//! Whether a client may watch is looked at again whenever users or roles have changed, before anything more is handed
//! over: nobody is told what was written after the right to see it was taken away.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::fan_out::{Interest, Parcel, Parcels, Sent, fan_out};
use super::index::{Index, Keys};
use super::message::{Message, fragments};
use super::outbox::{Alarm, Offered, Outbox};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::mvcc::Versions;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};
use crate::raft::feed::{Feed, News};
use crate::server::auth::Caller;
use crate::state::auth::{Access, Auth, Who};
use crate::state::{Changes, Reader};
use crate::storage;

/// Bytes of versions that are read from the store in one slice.
const SLICE_BYTES: usize = 1 << 20;
/// A watcher not further behind than this many revisions takes its last step in one hold of the lock, so that it does
/// not run after a busy writer for ever.
const LAST_STEP: i64 = 1000;
/// Watchers on one member at most: more are refused.
const MAX_WATCHERS: usize = 1 << 20;

/// Refuses a watch whose range holds no key.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
/// Refuses a watch id that the stream has already.
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// Settings of the hub.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// `--watch-progress-notify-interval`.
    pub progress_interval: Duration,
    /// Messages of watchers that asked for fragments are cut to about so many bytes.
    pub fragment_bytes: usize,
}

/// All streams and watchers of a member.
pub struct Hub {
    state: Mutex<State>,
    reader: Reader,
    /// Told whether there is anybody to tell.
    feed: Feed,
    metrics: Arc<Metrics>,
    options: Options,
    /// Rung when there is something to catch up on.
    pub(super) alarm: Arc<Alarm>,
    /// Where the streams' tasks run; none without tokio.
    runtime: Option<Handle>,
}

/// Numbers are chosen here, and looked up for each event of each watcher: a hash that nobody attacks can be cheap.
type Numbered<T> = HashMap<u64, T, foldhash::fast::RandomState>;

struct State {
    streams: Numbered<Stream>,
    watchers: Numbered<Watcher>,
    /// The live index.
    synced: Index,
    /// Those that lag, the longest waiting first; and some that are gone.
    lagging: VecDeque<u64>,
    /// Everything up to here was handed to the synced watchers.
    revision: i64,
    next_number: u64,
    closed: bool,
    /// Users and roles that all watchers were held against.
    auth: Arc<Auth>,
}

struct Stream {
    outbox: Arc<Outbox>,
    /// By the id that the client knows.
    watchers: BTreeMap<i64, u64>,
    /// The next id that is chosen here.
    next_id: i64,
    lagging: usize,
}

struct Watcher {
    stream: u64,
    owner: Owner,
    outbox: Arc<Outbox>,
    id: i64,
    keys: Keys,
    interest: Interest,
    fragment: bool,
    /// When it is told of the progress next, if nothing happens.
    progress: Option<Instant>,
    is_synced: bool,
}

/// How many there are.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Open streams.
    pub streams: usize,
    /// Watchers on them.
    pub watchers: usize,
    /// Watchers that catch up.
    pub lagging: usize,
    /// Events on their way to clients.
    pub pending: usize,
}

/// For whom a watcher is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The member itself, or a service that has looked at the client's rights.
    Member,
    /// A client, by its user's name; empty if it did not say, or did not have to.
    User(String),
}

impl From<&Caller> for Owner {
    fn from(caller: &Caller) -> Owner {
        Owner::User(caller.who().user.to_string())
    }
}

impl Owner {
    fn may_watch(&self, keys: &Keys, auth: &Auth) -> Result<(), Error> {
        let Owner::User(user) = self else {
            return Ok(());
        };
        let who = Who {
            user,
            revision: auth.revision(),
            system: false,
        };
        let (key, range_end) = keys.as_range();
        auth.permit_keys(&who, Access::Read, key, &range_end)
    }
}

/// An error as etcd writes it into the reason of a cancel.
fn reason(error: Error) -> String {
    format!("rpc error: code = {:?} desc = {error}", error.code())
}

/// Watchers that are read to together.
struct Group {
    index: Index,
    interests: Numbered<Interest>,
    /// In the order in which they wait.
    numbers: Vec<u64>,
}

impl Hub {
    /// No watchers yet.
    pub fn new(reader: Reader, feed: Feed, metrics: Arc<Metrics>, options: Options) -> Hub {
        let state = State {
            streams: Numbered::default(),
            watchers: Numbered::default(),
            synced: Index::default(),
            lagging: VecDeque::new(),
            revision: reader.revision(),
            next_number: 0,
            closed: false,
            auth: reader.auth(),
        };
        Hub {
            state: Mutex::new(state),
            reader,
            feed,
            metrics,
            options,
            alarm: Arc::default(),
            runtime: Handle::try_current().ok(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream: its number, and where its messages come out.
    pub fn open(&self) -> (u64, Arc<Outbox>) {
        let mut state = self.lock();
        let outbox = Arc::new(Outbox::new(self.alarm.clone()));
        if state.closed {
            outbox.end(Error::Stopped);
        }
        let number = state.number();
        let stream = Stream {
            outbox: outbox.clone(),
            watchers: BTreeMap::new(),
            next_id: 0,
            lagging: 0,
        };
        state.streams.insert(number, stream);
        (number, outbox)
    }

    /// Streams, watchers, and those of them that are behind.
    pub fn counts(&self) -> Counts {
        let state = self.lock();
        Counts {
            streams: state.streams.len(),
            watchers: state.watchers.len(),
            lagging: state.lagging.len(),
            pending: state.streams.values().map(|stream| stream.outbox.events()).sum(),
        }
    }

    /// Whether there are no streams, no watchers, and no traces of any.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.streams.is_empty()
            && state.watchers.is_empty()
            && state.synced.is_empty()
            && state.lagging.is_empty()
    }

    /// The client is gone.
    pub fn forget(&self, stream: u64) {
        let mut state = self.lock();
        let Some(gone) = state.streams.remove(&stream) else {
            return;
        };
        for number in gone.watchers.into_values() {
            state.drop_watcher(number);
        }
        self.feed.set_audience(!state.watchers.is_empty());
    }

    /// Ends every stream, and those to come.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for stream in state.streams.values() {
            stream.outbox.end(Error::Stopped);
        }
    }

    /// Adds a watcher, or says why not. An owner that is an error is refused for it.
    pub fn create(
        &self,
        stream: u64,
        owner: Result<Owner, Error>,
        request: &WatchCreateRequest,
        now: Instant,
    ) {
        let mut state = self.lock();
        self.hold_against_auth(&mut state);
        // From here on everything is told. Under the lock, so that it is not between this revision and the watcher's entry.
        self.feed.set_audience(true);
        let revision = self.reader.revision().max(state.revision);
        let mut answer = WatchResponse {
            created: true,
            ..WatchResponse::default()
        };
        let Some(outbox) = state.streams.get(&stream).map(|stream| stream.outbox.clone()) else {
            return;
        };
        match state.check(stream, owner, request) {
            Ok(mut watcher) => {
                answer.watch_id = watcher.id;
                outbox.push(Message::control(revision, answer));
                if request.start_revision == 0 {
                    watcher.interest.next = revision + 1;
                }
                if request.progress_notify {
                    watcher.progress = Some(self.next_progress(now));
                }
                if state.add(watcher, revision) {
                    self.alarm.ring();
                }
            }
            Err(reason) => {
                answer.watch_id = -1;
                answer.canceled = true;
                answer.cancel_reason = reason;
                outbox.push(Message::control(revision, answer));
            }
        }
        self.feed.set_audience(!state.watchers.is_empty());
    }

    /// Removes a watcher, and says so; an unknown one is not answered.
    pub fn cancel(&self, stream: u64, id: i64) {
        let mut state = self.lock();
        let revision = self.reader.revision().max(state.revision);
        if let Some(outbox) = state.remove(stream, id) {
            outbox.push(Message::control(revision, canceled(id)));
        }
        self.feed.set_audience(!state.watchers.is_empty());
    }

    /// Tells a stream how far all of its watchers were told everything, unless there is none, or one of them lags; or one
    /// waits for what this member has yet to reach: it was told of later things elsewhere, and would be set back.
    pub fn progress(&self, stream: u64) {
        let state = self.lock();
        let Some(stream) = state.streams.get(&stream) else {
            return;
        };
        let is_ahead = |number: &u64| {
            let watcher = state.watchers.get(number);
            watcher.is_some_and(|watcher| watcher.interest.next > state.revision + 1)
        };
        let can_tell = stream.lagging == 0 && !stream.watchers.is_empty();
        if can_tell && !stream.watchers.values().any(is_ahead) {
            let head = WatchResponse {
                watch_id: -1,
                ..WatchResponse::default()
            };
            stream.outbox.push(Message::control(state.revision, head));
        }
    }

    /// If users or roles have changed, ends the watches that their owners may not have any more.
    fn hold_against_auth(&self, state: &mut State) {
        let auth = self.reader.auth();
        if Arc::ptr_eq(&auth, &state.auth) {
            return;
        }
        let revision = self.reader.revision().max(state.revision);
        let refusal = |watcher: &Watcher| {
            let error = watcher.owner.may_watch(&watcher.keys, &auth).err()?;
            Some((watcher.stream, watcher.id, error))
        };
        let mut refused: Vec<_> = state.watchers.values().filter_map(refusal).collect();
        refused.sort_unstable();
        for (stream, id, error) in refused {
            if let Some(outbox) = state.remove(stream, id) {
                let head = WatchResponse {
                    cancel_reason: reason(error),
                    ..canceled(id)
                };
                outbox.push(Message::control(revision, head));
            }
        }
        state.auth = auth;
    }

    /// Hands live events to the synced watchers.
    pub fn tell(&self, news: News, now: Instant) -> storage::Result<()> {
        let mut state = self.lock();
        self.hold_against_auth(&mut state);
        match news {
            News::Changes(changes, view) if changes.last > state.revision => {
                let known = changes
                    .events
                    .partition_point(|event| mod_revision(event) <= state.revision);
                let parcels = {
                    let interest = |number| state.watchers.get(&number).map(|watcher| &watcher.interest);
                    fan_out(&changes.events[known..], &state.synced, &interest, &view)?
                };
                let mut told = Told::default();
                for (number, parcels) in parcels {
                    self.hand_over(&mut state, number, parcels, changes.last, now, &mut told);
                }
                state.revision = changes.last;
                drop(state);
                self.announce(told);
            }
            // Read from the store before.
            News::Changes(..) => {}
            News::Jump(revision) => {
                state.jump(revision);
                self.alarm.ring();
            }
        }
        Ok(())
    }

    /// Reads one slice of the past for those that lag; whether there may be more to do at once.
    pub fn catch_up(&self, now: Instant) -> storage::Result<bool> {
        let mut state = self.lock();
        let Some(group) = state.pick() else {
            return Ok(false);
        };
        let from = group.first();
        if state.revision - from <= LAST_STEP {
            let read = self.read(&group)?;
            self.finish(&mut state, group, read, now);
        } else {
            drop(state);
            let read = self.read(&group)?;
            self.finish(&mut self.lock(), group, read, now);
        }
        Ok(true)
    }

    fn read(&self, group: &Group) -> storage::Result<Read> {
        let view = self.reader.view();
        let compacted = view.compacted();
        let first = group.interests.values().map(|interest| interest.next);
        let Some(from) = first.filter(|next| *next >= compacted).min() else {
            return Ok(Read::nothing(compacted));
        };
        let Changes { events, last } = view.changes(from, SLICE_BYTES)?;
        let interest = |number| {
            group
                .interests
                .get(&number)
                .filter(|interest| interest.next >= compacted)
        };
        let parcels = fan_out(&events, &group.index, &interest, &view)?;
        Ok(Read {
            parcels,
            last,
            compacted,
        })
    }

    fn finish(&self, state: &mut State, group: Group, mut read: Read, now: Instant) {
        self.hold_against_auth(state);
        let mut told = Told::default();
        for number in group.numbers {
            // Cancelled meanwhile, perhaps.
            let Some(watcher) = state.watchers.get_mut(&number) else {
                continue;
            };
            if watcher.interest.next < read.compacted {
                let (stream, id) = (watcher.stream, watcher.id);
                if let Some(outbox) = state.remove(stream, id) {
                    let head = WatchResponse {
                        compact_revision: read.compacted.max(1),
                        ..canceled(id)
                    };
                    outbox.push(Message::control(0, head));
                }
                continue;
            }
            let parcels = read.parcels.take(number);
            if self.hand_over(state, number, parcels, read.last, now, &mut told) {
                state.reached(number, read.last);
            } else {
                state.lagging.push_back(number);
            }
        }
        self.announce(told);
    }

    /// Puts a watcher's events on their way; whether there was room for all of them. If not it lags, from the first
    /// revision that there was no room for.
    fn hand_over(
        &self,
        state: &mut State,
        number: u64,
        parcels: Sent,
        last: i64,
        now: Instant,
        told: &mut Told,
    ) -> bool {
        let Some(watcher) = state.watchers.get_mut(&number) else {
            return true;
        };
        if watcher.progress.is_some() && !parcels.is_empty() {
            watcher.progress = Some(self.next_progress(now));
        }
        let mut left = parcels.into_iter().peekable();
        while let Some(parcel) = left.next() {
            let (first, revision) = match left.peek() {
                Some(_) => (parcel.first, parcel.last),
                None => (parcel.first, last),
            };
            if !watcher.send(revision, parcel, self.options.fragment_bytes, told) {
                watcher.interest.next = first;
                state.fall_back(number);
                self.alarm.ring();
                return false;
            }
        }
        true
    }

    /// Wakes the streams. Where they run that is cheap; from this thread each would cost a lock, and a call of the system
    /// perhaps.
    fn announce(&self, told: Told) {
        self.metrics.watch_events.add(told.events);
        match &self.runtime {
            Some(runtime) if told.outboxes.len() > 1 => drop(runtime.spawn(async move { told.announce() })),
            _ => told.announce(),
        }
    }

    /// Tells idle watchers that asked for it how far they are.
    pub fn tick(&self, now: Instant) {
        let mut state = self.lock();
        self.hold_against_auth(&mut state);
        let state = &mut *state;
        for watcher in state.watchers.values_mut() {
            let is_due = watcher.progress.is_some_and(|due| due <= now);
            // One that waits for a future revision would be set back by an earlier one.
            let is_there = watcher.is_synced && watcher.interest.next <= state.revision + 1;
            if is_due && is_there && watcher.outbox.has_room() {
                let head = WatchResponse {
                    watch_id: watcher.id,
                    ..WatchResponse::default()
                };
                watcher.outbox.push(Message::control(state.revision, head));
                watcher.progress = Some(self.next_progress(now));
            }
        }
    }

    /// A tenth at random, so that watchers made together don't all answer together.
    fn next_progress(&self, now: Instant) -> Instant {
        now + self
            .options
            .progress_interval
            .mul_f64(1.0 + rand::random_range(0.0..0.1))
    }
}

/// What was put on its way.
#[derive(Default)]
struct Told {
    /// Those that got something which their streams don't know of yet: each stream is woken once, for all of it.
    outboxes: Vec<Arc<Outbox>>,
    events: u64,
}

impl Told {
    fn announce(self) {
        self.outboxes.iter().for_each(|outbox| outbox.announce());
    }
}

/// What was read for a group.
struct Read {
    parcels: Parcels,
    /// Up to here.
    last: i64,
    /// Watchers below are too late.
    compacted: i64,
}

impl Read {
    fn nothing(compacted: i64) -> Read {
        Read {
            parcels: Parcels::default(),
            last: 0,
            compacted,
        }
    }
}

impl Group {
    fn first(&self) -> i64 {
        let nexts = self.interests.values().map(|interest| interest.next);
        nexts.min().unwrap_or(i64::MAX)
    }
}

fn mod_revision(event: &crate::pb::mvccpb::Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn canceled(id: i64) -> WatchResponse {
    WatchResponse {
        watch_id: id,
        canceled: true,
        ..WatchResponse::default()
    }
}

impl Watcher {
    /// Puts a parcel on its way, if there is room; whether there was.
    fn send(&self, revision: i64, parcel: Parcel, fragment_bytes: usize, told: &mut Told) -> bool {
        let events = parcel.events.len() as u64;
        let offered = match self.fragment {
            true => self
                .outbox
                .offer(fragments(revision, self.id, parcel.events, fragment_bytes)),
            false => self
                .outbox
                .offer([Message::events(revision, self.id, parcel.events)]),
        };
        match offered {
            Offered::NoRoom => return false,
            Offered::First => told.outboxes.push(self.outbox.clone()),
            Offered::Behind => {}
        }
        told.events += events;
        true
    }
}

impl State {
    /// Of a stream or watcher; never used again.
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// A new watcher, not added yet; or why it is refused.
    fn check(
        &mut self,
        number: u64,
        owner: Result<Owner, Error>,
        request: &WatchCreateRequest,
    ) -> Result<Watcher, String> {
        let owner = owner.map_err(reason)?;
        let keys = Keys::new(&request.key, &request.range_end).ok_or(EMPTY_RANGE)?;
        owner.may_watch(&keys, &self.auth).map_err(reason)?;
        if request.start_revision < 0 {
            return Err(Error::Compacted.text().to_string());
        }
        let stream = self.streams.get_mut(&number);
        let stream = stream.filter(|_| self.watchers.len() < MAX_WATCHERS);
        let stream = stream.ok_or(Error::TooManyRequests.text())?;
        let id = match request.watch_id {
            0 => stream.free_id(),
            taken if stream.watchers.contains_key(&taken) => return Err(DUPLICATE_ID.to_string()),
            id => id,
        };
        let has_filter = |filter: FilterType| request.filters.contains(&(filter as i32));
        let interest = Interest {
            next: request.start_revision,
            no_put: has_filter(FilterType::Noput),
            no_delete: has_filter(FilterType::Nodelete),
            prev_kv: request.prev_kv,
        };
        Ok(Watcher {
            stream: number,
            owner,
            outbox: stream.outbox.clone(),
            id,
            keys,
            interest,
            fragment: request.fragment,
            progress: None,
            is_synced: false,
        })
    }

    /// Whether it lags: what has happened before it came is read from the store, which knows what is compacted, also
    /// what is still to be told here.
    fn add(&mut self, mut watcher: Watcher, store_revision: i64) -> bool {
        let number = self.number();
        let lags = watcher.interest.next <= store_revision;
        if let Some(stream) = self.streams.get_mut(&watcher.stream) {
            stream.watchers.insert(watcher.id, number);
            stream.outbox.set_watchers(stream.watchers.len());
            stream.lagging += usize::from(lags);
        }
        match lags {
            true => self.lagging.push_back(number),
            false => self.synced.insert(&watcher.keys, number),
        }
        watcher.is_synced = !lags;
        self.watchers.insert(number, watcher);
        lags
    }

    /// Where to tell of it, if it was there.
    fn remove(&mut self, stream: u64, id: i64) -> Option<Arc<Outbox>> {
        let stream = self.streams.get_mut(&stream)?;
        let number = stream.watchers.remove(&id)?;
        stream.outbox.set_watchers(stream.watchers.len());
        let outbox = stream.outbox.clone();
        let watcher = self.drop_watcher(number)?;
        if !watcher.is_synced
            && let Some(stream) = self.streams.get_mut(&watcher.stream)
        {
            stream.lagging -= 1;
        }
        Some(outbox)
    }

    fn drop_watcher(&mut self, number: u64) -> Option<Watcher> {
        let watcher = self.watchers.remove(&number)?;
        if watcher.is_synced {
            self.synced.remove(&watcher.keys, number);
        }
        Some(watcher)
    }

    /// A synced watcher lags from now on, if it does not already. Whoever calls puts it into the queue, if it lagged.
    fn fall_back(&mut self, number: u64) {
        let Some(watcher) = self.watchers.get_mut(&number).filter(|watcher| watcher.is_synced) else {
            return;
        };
        watcher.is_synced = false;
        self.synced.remove(&watcher.keys, number);
        self.lagging.push_back(number);
        if let Some(stream) = self.streams.get_mut(&watcher.stream) {
            stream.lagging += 1;
        }
    }

    /// A watcher that lags was handed everything up to `last`: it goes on lagging, or is synced.
    fn reached(&mut self, number: u64, last: i64) {
        let Some(watcher) = self.watchers.get_mut(&number) else {
            return;
        };
        watcher.interest.next = watcher.interest.next.max(last + 1);
        if watcher.interest.next <= self.revision {
            self.lagging.push_back(number);
            return;
        }
        watcher.is_synced = true;
        self.synced.insert(&watcher.keys, number);
        if let Some(stream) = self.streams.get_mut(&watcher.stream) {
            stream.lagging -= 1;
        }
    }

    /// Nobody was told what happened up to `revision`.
    fn jump(&mut self, revision: i64) {
        let mut missed = Vec::new();
        for (number, watcher) in self.watchers.iter_mut().filter(|(_, watcher)| watcher.is_synced) {
            watcher.interest.next = watcher.interest.next.max(self.revision + 1);
            if watcher.interest.next <= revision {
                missed.push(*number);
            }
        }
        missed.sort_unstable();
        missed.into_iter().for_each(|number| self.fall_back(number));
        self.revision = self.revision.max(revision);
    }

    /// The longest waiting watcher whose client has room, and all the others that the same slice of the past may serve.
    fn pick(&mut self) -> Option<Group> {
        let mut group = Group {
            index: Index::default(),
            interests: Numbered::default(),
            numbers: Vec::new(),
        };
        let mut from = None;
        let mut left = VecDeque::with_capacity(self.lagging.len());
        for number in self.lagging.drain(..) {
            let Some(watcher) = self.watchers.get(&number) else {
                continue;
            };
            let next = watcher.interest.next;
            if from.is_some_and(|from| next < from) || !watcher.outbox.has_room_or_rings() {
                left.push_back(number);
                continue;
            }
            from.get_or_insert(next);
            group.index.insert(&watcher.keys, number);
            group.interests.insert(number, watcher.interest);
            group.numbers.push(number);
        }
        self.lagging = left;
        (!group.numbers.is_empty()).then_some(group)
    }
}

impl Stream {
    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }
}
