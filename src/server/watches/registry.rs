//! Who watches what, and how far each has been handed everything: the record that the hub keeps, and how watchers pass from
//! lagging to synced and back in it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::fan_out::Interest;
use super::index::{Index, Keys};
use super::outbox::Outbox;
use crate::error::Error;
use crate::pb::etcdserverpb::WatchCreateRequest;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::server::auth::Caller;
use crate::state::auth::{Access, Auth, Who};

/// Watchers on one member at most: more are refused.
const MAX_WATCHERS: usize = 1 << 20;

/// Refuses a watch whose range holds no key.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
/// Refuses a watch id that the stream has already.
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// Numbers are chosen here, and looked up for each event of each watcher: a hash that nobody attacks can be cheap.
pub(super) type Numbered<T> = HashMap<u64, T, foldhash::fast::RandomState>;

/// All streams and watchers.
pub(super) struct Registry {
    pub streams: Numbered<Stream>,
    pub watchers: Numbered<Watcher>,
    /// The live index.
    pub synced: Index,
    /// Those that lag, the longest waiting first; and some that are gone.
    pub lagging: VecDeque<u64>,
    /// Everything up to here was handed to the synced watchers.
    pub revision: i64,
    next_number: u64,
    pub closed: bool,
    /// Users and roles that all watchers were held against.
    pub auth: Arc<Auth>,
}

/// What one client has open.
pub(super) struct Stream {
    pub outbox: Arc<Outbox>,
    /// By the id that the client knows.
    pub watchers: BTreeMap<i64, u64>,
    /// The next id that is chosen here.
    next_id: i64,
    pub lagging: usize,
}

/// What one client wants to be told, on one of its streams.
pub(super) struct Watcher {
    pub stream: u64,
    pub owner: Owner,
    pub outbox: Arc<Outbox>,
    pub id: i64,
    pub keys: Keys,
    pub interest: Interest,
    pub fragment: bool,
    /// When it is told of the progress next, if nothing happens.
    pub progress: Option<Instant>,
    pub is_synced: bool,
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
    pub(super) fn may_watch(&self, keys: &Keys, auth: &Auth) -> Result<(), Error> {
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
pub(super) fn reason(error: Error) -> String {
    format!("rpc error: code = {:?} desc = {error}", error.code())
}

/// Watchers that are read to together.
pub(super) struct Group {
    pub index: Index,
    pub interests: Numbered<Interest>,
    /// In the order in which they wait.
    pub numbers: Vec<u64>,
}

impl Group {
    /// The first revision that one of them was not handed.
    pub fn first(&self) -> i64 {
        let nexts = self.interests.values().map(|interest| interest.next);
        nexts.min().unwrap_or(i64::MAX)
    }
}

impl Registry {
    /// Nobody watches what comes behind this revision.
    pub fn new(revision: i64, auth: Arc<Auth>) -> Registry {
        Registry {
            streams: Numbered::default(),
            watchers: Numbered::default(),
            synced: Index::default(),
            lagging: VecDeque::new(),
            revision,
            next_number: 0,
            closed: false,
            auth,
        }
    }

    /// Adds a stream whose messages go there; its number.
    pub fn open(&mut self, outbox: Arc<Outbox>) -> u64 {
        let number = self.number();
        let stream = Stream {
            outbox,
            watchers: BTreeMap::new(),
            next_id: 0,
            lagging: 0,
        };
        self.streams.insert(number, stream);
        number
    }

    /// Whether there are no streams, no watchers, and no traces of any.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
            && self.watchers.is_empty()
            && self.synced.is_empty()
            && self.lagging.is_empty()
    }

    /// Of a stream or watcher; never used again.
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// A new watcher, not added yet; or why it is refused.
    pub fn check(
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
    pub fn add(&mut self, mut watcher: Watcher, store_revision: i64) -> bool {
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
    pub fn remove(&mut self, stream: u64, id: i64) -> Option<Arc<Outbox>> {
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

    /// Forgets a watcher, be its stream there or not.
    pub fn drop_watcher(&mut self, number: u64) -> Option<Watcher> {
        let watcher = self.watchers.remove(&number)?;
        if watcher.is_synced {
            self.synced.remove(&watcher.keys, number);
        }
        Some(watcher)
    }

    /// A synced watcher lags from now on, if it does not already. Whoever calls puts it into the queue, if it lagged.
    pub fn fall_back(&mut self, number: u64) {
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
    pub fn reached(&mut self, number: u64, last: i64) {
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
    pub fn jump(&mut self, revision: i64) {
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
    pub fn pick(&mut self) -> Option<Group> {
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
