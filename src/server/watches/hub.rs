//! Telling those who watch, each in order and once.
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
//!
//! Who watches what is in [`registry`](super::registry).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::fan_out::{Parcel, Parcels, Sent, fan_out};
use super::message::{Message, fragments};
use super::outbox::{Alarm, Offered, Outbox};
pub use super::registry::Owner;
use super::registry::{Group, Registry, Watcher, reason};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::mvcc::Versions;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};
use crate::raft::feed::{Feed, News};
use crate::state::{Changes, Reader};
use crate::storage;

/// Bytes of versions that are read from the store in one slice.
const SLICE_BYTES: usize = 1 << 20;
/// A watcher not further behind than this many revisions takes its last step in one hold of the lock, so that it does
/// not run after a busy writer for ever.
const LAST_STEP: i64 = 1000;

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
    registry: Mutex<Registry>,
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

impl Hub {
    /// No watchers yet.
    pub fn new(reader: Reader, feed: Feed, metrics: Arc<Metrics>, options: Options) -> Hub {
        Hub {
            registry: Mutex::new(Registry::new(reader.revision(), reader.auth())),
            reader,
            feed,
            metrics,
            options,
            alarm: Arc::default(),
            runtime: Handle::try_current().ok(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream: its number, and where its messages come out.
    pub fn open(&self) -> (u64, Arc<Outbox>) {
        let mut registry = self.lock();
        let outbox = Arc::new(Outbox::new(self.alarm.clone()));
        if registry.closed {
            outbox.end(Error::Stopped);
        }
        (registry.open(outbox.clone()), outbox)
    }

    /// Streams, watchers, and those of them that are behind.
    pub fn counts(&self) -> Counts {
        let registry = self.lock();
        Counts {
            streams: registry.streams.len(),
            watchers: registry.watchers.len(),
            lagging: registry.lagging.len(),
            pending: registry
                .streams
                .values()
                .map(|stream| stream.outbox.events())
                .sum(),
        }
    }

    /// Whether there are no streams, no watchers, and no traces of any.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The client is gone.
    pub fn forget(&self, stream: u64) {
        let mut registry = self.lock();
        let Some(gone) = registry.streams.remove(&stream) else {
            return;
        };
        for number in gone.watchers.into_values() {
            registry.drop_watcher(number);
        }
        self.feed.set_audience(!registry.watchers.is_empty());
    }

    /// Ends every stream, and those to come.
    pub fn close(&self) {
        let mut registry = self.lock();
        registry.closed = true;
        for stream in registry.streams.values() {
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
        let mut registry = self.lock();
        self.hold_against_auth(&mut registry);
        // From here on everything is told. Under the lock, so that it is not between this revision and the watcher's entry.
        self.feed.set_audience(true);
        let revision = self.reader.revision().max(registry.revision);
        let mut answer = WatchResponse {
            created: true,
            ..WatchResponse::default()
        };
        let Some(outbox) = registry.streams.get(&stream).map(|stream| stream.outbox.clone()) else {
            return;
        };
        match registry.check(stream, owner, request) {
            Ok(mut watcher) => {
                answer.watch_id = watcher.id;
                outbox.push(Message::control(revision, answer));
                if request.start_revision == 0 {
                    watcher.interest.next = revision + 1;
                }
                if request.progress_notify {
                    watcher.progress = Some(self.next_progress(now));
                }
                if registry.add(watcher, revision) {
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
        self.feed.set_audience(!registry.watchers.is_empty());
    }

    /// Removes a watcher, and says so; an unknown one is not answered.
    pub fn cancel(&self, stream: u64, id: i64) {
        let mut registry = self.lock();
        let revision = self.reader.revision().max(registry.revision);
        if let Some(outbox) = registry.remove(stream, id) {
            outbox.push(Message::control(revision, canceled(id)));
        }
        self.feed.set_audience(!registry.watchers.is_empty());
    }

    /// Tells a stream how far all of its watchers were told everything, unless there is none, or one of them lags; or one
    /// waits for what this member has yet to reach: it was told of later things elsewhere, and would be set back.
    pub fn progress(&self, stream: u64) {
        let registry = self.lock();
        let Some(stream) = registry.streams.get(&stream) else {
            return;
        };
        let is_ahead = |number: &u64| {
            let watcher = registry.watchers.get(number);
            watcher.is_some_and(|watcher| watcher.interest.next > registry.revision + 1)
        };
        let can_tell = stream.lagging == 0 && !stream.watchers.is_empty();
        if can_tell && !stream.watchers.values().any(is_ahead) {
            let head = WatchResponse {
                watch_id: -1,
                ..WatchResponse::default()
            };
            stream.outbox.push(Message::control(registry.revision, head));
        }
    }

    /// If users or roles have changed, ends the watches that their owners may not have any more.
    fn hold_against_auth(&self, registry: &mut Registry) {
        let auth = self.reader.auth();
        if Arc::ptr_eq(&auth, &registry.auth) {
            return;
        }
        let revision = self.reader.revision().max(registry.revision);
        let refusal = |watcher: &Watcher| {
            let error = watcher.owner.may_watch(&watcher.keys, &auth).err()?;
            Some((watcher.stream, watcher.id, error))
        };
        let mut refused: Vec<_> = registry.watchers.values().filter_map(refusal).collect();
        refused.sort_unstable();
        for (stream, id, error) in refused {
            if let Some(outbox) = registry.remove(stream, id) {
                let head = WatchResponse {
                    cancel_reason: reason(error),
                    ..canceled(id)
                };
                outbox.push(Message::control(revision, head));
            }
        }
        registry.auth = auth;
    }

    /// Hands live events to the synced watchers.
    pub fn tell(&self, news: News, now: Instant) -> storage::Result<()> {
        let mut registry = self.lock();
        self.hold_against_auth(&mut registry);
        match news {
            News::Changes(changes, view) if changes.last > registry.revision => {
                let known = changes
                    .events
                    .partition_point(|event| mod_revision(event) <= registry.revision);
                let parcels = {
                    let interest = |number| registry.watchers.get(&number).map(|watcher| &watcher.interest);
                    fan_out(&changes.events[known..], &registry.synced, &interest, &view)?
                };
                let mut told = Told::default();
                for (number, parcels) in parcels {
                    self.hand_over(&mut registry, number, parcels, changes.last, now, &mut told);
                }
                registry.revision = changes.last;
                drop(registry);
                self.announce(told);
            }
            // Read from the store before.
            News::Changes(..) => {}
            News::Jump(revision) => {
                registry.jump(revision);
                self.alarm.ring();
            }
        }
        Ok(())
    }

    /// Reads one slice of the past for those that lag; whether there may be more to do at once.
    pub fn catch_up(&self, now: Instant) -> storage::Result<bool> {
        let mut registry = self.lock();
        let Some(group) = registry.pick() else {
            return Ok(false);
        };
        let from = group.first();
        if registry.revision - from <= LAST_STEP {
            let read = self.read(&group)?;
            self.finish(&mut registry, group, read, now);
        } else {
            drop(registry);
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

    fn finish(&self, registry: &mut Registry, group: Group, mut read: Read, now: Instant) {
        self.hold_against_auth(registry);
        let mut told = Told::default();
        for number in group.numbers {
            // Cancelled meanwhile, perhaps.
            let Some(watcher) = registry.watchers.get_mut(&number) else {
                continue;
            };
            if watcher.interest.next < read.compacted {
                let (stream, id) = (watcher.stream, watcher.id);
                if let Some(outbox) = registry.remove(stream, id) {
                    let head = WatchResponse {
                        compact_revision: read.compacted.max(1),
                        ..canceled(id)
                    };
                    outbox.push(Message::control(0, head));
                }
                continue;
            }
            let parcels = read.parcels.take(number);
            if self.hand_over(registry, number, parcels, read.last, now, &mut told) {
                registry.reached(number, read.last);
            } else {
                registry.lagging.push_back(number);
            }
        }
        self.announce(told);
    }

    /// Puts a watcher's events on their way; whether there was room for all of them. If not it lags, from the first
    /// revision that there was no room for.
    fn hand_over(
        &self,
        registry: &mut Registry,
        number: u64,
        parcels: Sent,
        last: i64,
        now: Instant,
        told: &mut Told,
    ) -> bool {
        let Some(watcher) = registry.watchers.get_mut(&number) else {
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
                registry.fall_back(number);
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
        let mut registry = self.lock();
        self.hold_against_auth(&mut registry);
        let registry = &mut *registry;
        for watcher in registry.watchers.values_mut() {
            let is_due = watcher.progress.is_some_and(|due| due <= now);
            // One that waits for a future revision would be set back by an earlier one.
            let is_there = watcher.is_synced && watcher.interest.next <= registry.revision + 1;
            if is_due && is_there && watcher.outbox.has_room() {
                let head = WatchResponse {
                    watch_id: watcher.id,
                    ..WatchResponse::default()
                };
                watcher.outbox.push(Message::control(registry.revision, head));
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
