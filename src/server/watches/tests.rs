//! The hub by hand: no threads, every step where the test wants it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::hub::{Hub, Options, Owner};
use super::outbox::Outbox;
use crate::error::Error;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCreateRequest,
    WatchResponse,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::pb::pontoon::command::{Command, command::Op};
use crate::raft::feed::{Feed, News};
use crate::state::{self, Changes, Place, Saver, State, View};
use crate::storage::{Engine, Memory};

const PROGRESS: Duration = Duration::from_secs(600);
const FRAGMENT: usize = 2000;

/// A state, a hub over it, and what apply has not told yet.
struct World {
    state: State,
    engine: Arc<dyn Engine>,
    saver: Saver,
    hub: Hub,
    untold: VecDeque<(Changes, View)>,
    /// Everything that ever happened, with the pairs from before.
    past: Vec<Event>,
    now: Instant,
}

fn small() -> state::Options {
    state::Options {
        recent_bytes: 3000,
        cache_bytes: 2000,
    }
}

impl World {
    fn new() -> World {
        let engine: Arc<dyn Engine> = Arc::new(Memory::default());
        let (state, _) = State::open(engine.clone(), small()).expect("opened");
        let options = Options {
            progress_interval: PROGRESS,
            fragment_bytes: FRAGMENT,
        };
        World {
            saver: state.saver(),
            hub: Hub::new(state.reader(), Feed::default(), Default::default(), options),
            state,
            engine,
            untold: VecDeque::new(),
            past: Vec::new(),
            now: Instant::now(),
        }
    }

    /// Applies and seals one command; the hub is not told yet.
    fn apply(&mut self, op: Op) -> i64 {
        let before = self.reader_state();
        let command = Command {
            header: None,
            op: Some(op),
        };
        let outcome = self
            .state
            .apply(Place { term: 1, index: 1 }, &command)
            .expect("applied");
        self.state.seal(Bytes::from_static(b"mark"));
        let with_previous = |event: &Event| {
            let kv = event.kv.as_ref().expect("a pair");
            let is_creation = kv.create_revision == kv.mod_revision;
            Event {
                prev_kv: before.get(&kv.key).filter(|_| !is_creation).cloned(),
                ..event.clone()
            }
        };
        self.past.extend(outcome.events.iter().map(with_previous));
        if !outcome.events.is_empty() {
            let changes = Changes {
                events: outcome.events,
                last: outcome.revision,
            };
            self.untold.push_back((changes, self.state.reader().view()));
        }
        outcome.revision
    }

    fn reader_state(&self) -> BTreeMap<Bytes, KeyValue> {
        let mut state = BTreeMap::new();
        for event in &self.past {
            let kv = event.kv.clone().expect("a pair");
            match event.r#type() {
                EventType::Put => state.insert(kv.key.clone(), kv),
                EventType::Delete => state.remove(&kv.key),
            };
        }
        state
    }

    fn put(&mut self, key: &str, value: &str) -> i64 {
        self.apply(Op::Put(put(key, value.as_bytes().to_vec())))
    }

    fn delete(&mut self, key: &str) -> i64 {
        self.apply(Op::DeleteRange(DeleteRangeRequest {
            key: bytes(key),
            ..DeleteRangeRequest::default()
        }))
    }

    fn compact(&mut self, revision: i64) {
        self.apply(Op::Compact(CompactionRequest {
            revision,
            physical: false,
        }));
    }

    /// The hub is told one sealed point, if there is one.
    fn tell(&mut self) {
        if let Some((changes, view)) = self.untold.pop_front() {
            self.hub
                .tell(News::Changes(changes, view), self.now)
                .expect("told");
        }
    }

    /// The hub is told everything and reads everything that there is room for.
    fn settle(&mut self) {
        while !self.untold.is_empty() {
            self.tell();
        }
        while self.hub.catch_up(self.now).expect("read") {}
    }

    fn open(&self) -> Client {
        let (stream, outbox) = self.hub.open();
        Client {
            stream,
            outbox,
            taken: RefCell::default(),
        }
    }

    fn create(&self, client: &Client, request: WatchCreateRequest) {
        self.hub
            .create(client.stream, Ok(Owner::Member), &request, self.now);
    }
}

struct Client {
    stream: u64,
    outbox: Arc<Outbox>,
    taken: RefCell<VecDeque<super::Message>>,
}

impl Client {
    /// What has arrived.
    fn take(&self) -> Vec<WatchResponse> {
        std::iter::from_fn(|| self.take_one()).collect()
    }

    fn take_one(&self) -> Option<WatchResponse> {
        let mut taken = self.taken.borrow_mut();
        if taken.is_empty() {
            try_take(&self.outbox, &mut taken)?.ok()?;
        }
        taken.pop_front().map(super::Message::into_response)
    }

    /// The same, short: who, what, up to where.
    fn told(&self) -> Vec<String> {
        self.take().iter().map(short).collect()
    }
}

fn try_take(outbox: &Outbox, taken: &mut VecDeque<super::Message>) -> Option<Result<(), Error>> {
    match outbox.poll_take(&Context::from_waker(Waker::noop()), taken) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: Vec<u8>) -> PutRequest {
    PutRequest {
        key: bytes(key),
        value: value.into(),
        ..PutRequest::default()
    }
}

fn watch(key: &str, range_end: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: bytes(key),
        range_end: bytes(range_end),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

fn revision(response: &WatchResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

/// `0 created @3`, `0 +a=1 -b @7`, `1 canceled, compacted 5 @0`.
fn short(response: &WatchResponse) -> String {
    let mut words = vec![response.watch_id.to_string()];
    let mut says = |is: bool, what: String| {
        if is {
            words.push(what);
        }
    };
    says(response.created, "created".to_string());
    says(response.canceled, "canceled".to_string());
    says(
        response.compact_revision != 0,
        format!("compacted {}", response.compact_revision),
    );
    says(
        !response.cancel_reason.is_empty(),
        format!("({})", response.cancel_reason),
    );
    says(response.fragment, "fragment".to_string());
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    for event in &response.events {
        let kv = event.kv.as_ref().expect("a pair");
        let before = event
            .prev_kv
            .as_ref()
            .map_or(String::new(), |kv| format!("<{}", text(&kv.value)));
        match event.r#type() {
            EventType::Put => words.push(format!("+{}={}{before}", text(&kv.key), text(&kv.value))),
            EventType::Delete => words.push(format!("-{}{before}", text(&kv.key))),
        }
    }
    words.push(format!("@{}", revision(response)));
    words.join(" ")
}

#[test]
fn live_events_reach_those_they_concern() {
    let mut world = World::new();
    let client = world.open();
    world.create(&client, watch("a", "", 0));
    world.create(&client, watch("a", "c", 0));
    world.put("a", "1");
    world.put("b", "2");
    world.put("c", "3");
    world.delete("a");
    world.settle();
    assert_eq!(
        client.told(),
        [
            "0 created @1",
            "1 created @1",
            "0 +a=1 @2",
            "1 +a=1 @2",
            "1 +b=2 @3",
            "0 -a @5",
            "1 -a @5"
        ]
    );
}

#[test]
fn the_past_is_read_and_the_live_feed_goes_on_from_there() {
    let mut world = World::new();
    for value in ["1", "2", "3"] {
        world.put("a", value);
    }
    let client = world.open();
    world.create(&client, watch("a", "", 3));
    assert_eq!(client.told(), ["0 created @4"]);
    // The store is ahead of what the hub was told: nothing may come twice.
    world.put("a", "4");
    assert!(world.hub.catch_up(world.now).expect("read"));
    assert_eq!(client.told(), ["0 +a=2 +a=3 +a=4 @5"]);
    world.settle();
    world.put("a", "5");
    world.settle();
    assert_eq!(client.told(), ["0 +a=5 @6"]);
}

#[test]
fn a_future_watch_waits_for_its_revision() {
    let mut world = World::new();
    let client = world.open();
    world.create(&client, watch("a", "", 4));
    for value in ["1", "2", "3", "4"] {
        world.put("a", value);
    }
    world.settle();
    assert_eq!(client.told(), ["0 created @1", "0 +a=3 @4", "0 +a=4 @5"]);
}

#[test]
fn from_now_is_after_what_can_be_read() {
    let mut world = World::new();
    let client = world.open();
    world.put("a", "1");
    // Not told yet, but whoever reads sees it.
    world.create(&client, watch("a", "", 0));
    world.settle();
    assert_eq!(client.told(), ["0 created @2"]);
}

#[test]
fn a_compacted_start_is_cancelled_and_the_compacted_revision_itself_is_not() {
    let mut world = World::new();
    world.put("a", "1");
    world.delete("a");
    world.put("b", "2");
    world.compact(3);
    world.saver.save().expect("saved");
    while world.saver.sweep(10).expect("swept") {}
    let client = world.open();
    world.create(&client, watch("", "\0", 2));
    world.create(&client, watch("", "\0", 3));
    world.create(&client, watch("", "\0", -1));
    world.settle();
    let reason = Error::Compacted.text();
    assert_eq!(
        client.told(),
        [
            "0 created @4".to_string(),
            "1 created @4".to_string(),
            format!("-1 created canceled ({reason}) @4"),
            "0 canceled compacted 3 @0".to_string(),
            "1 -a +b=2 @4".to_string(),
        ]
    );
}

#[test]
fn ids_are_the_clients_or_the_lowest_not_counted_yet() {
    let mut world = World::new();
    let client = world.open();
    let with_id = |watch_id| WatchCreateRequest {
        watch_id,
        ..watch("a", "", 0)
    };
    for id in [1, 0, 0, 7, 7, 0] {
        world.create(&client, with_id(id));
    }
    world.hub.cancel(client.stream, 1);
    world.hub.cancel(client.stream, 99);
    world.create(&client, with_id(1));
    world.create(&client, watch("b", "a", 0));
    world.create(&client, with_id(0));
    world.settle();
    assert_eq!(
        client.told(),
        [
            "1 created @1",
            "0 created @1",
            "2 created @1",
            "7 created @1",
            "-1 created canceled (mvcc: duplicate watch ID provided on the WatchStream) @1",
            "3 created @1",
            "1 canceled @1",
            "1 created @1",
            "-1 created canceled (mvcc: watcher range is empty) @1",
            "4 created @1",
        ]
    );
}

#[test]
fn nothing_comes_after_a_cancel() {
    let mut world = World::new();
    let client = world.open();
    world.put("a", "1");
    world.create(&client, watch("a", "", 1));
    world.create(&client, watch("a", "", 0));
    world.hub.cancel(client.stream, 0);
    world.put("a", "2");
    world.settle();
    world.hub.cancel(client.stream, 1);
    world.put("a", "3");
    world.settle();
    let told = client.told();
    assert_eq!(told[..3], ["0 created @2", "1 created @2", "0 canceled @2"]);
    assert_eq!(told[3..], ["1 +a=2 @3", "1 canceled @3"]);
}

#[test]
fn filters_leave_out_and_previous_pairs_are_added() {
    let mut world = World::new();
    let client = world.open();
    let create = |filters: Vec<i32>, prev_kv| WatchCreateRequest {
        filters,
        prev_kv,
        ..watch("a", "", 0)
    };
    world.create(&client, create(vec![0], false));
    world.create(&client, create(vec![1], true));
    world.create(&client, create(vec![0, 1], true));
    world.put("a", "1");
    world.put("a", "2");
    world.delete("a");
    world.settle();
    assert_eq!(client.told()[3..], ["1 +a=1 @2", "1 +a=2<1 @3", "0 -a @4"]);
    world.create(
        &client,
        WatchCreateRequest {
            prev_kv: true,
            ..watch("a", "", 2)
        },
    );
    world.compact(3);
    world.settle();
    assert_eq!(client.told()[1..], ["3 canceled compacted 3 @0"]);
    world.create(
        &client,
        WatchCreateRequest {
            prev_kv: true,
            ..watch("a", "", 3)
        },
    );
    world.settle();
    assert_eq!(
        client.told()[1..],
        ["4 +a=2 -a<2 @4"],
        "the pair at revision 2 is compacted"
    );
}

#[test]
fn progress_is_told_when_everything_was() {
    let mut world = World::new();
    let client = world.open();
    world.hub.progress(client.stream);
    assert_eq!(client.told().len(), 0, "no watcher");
    world.put("a", "1");
    world.create(&client, watch("a", "", 1));
    world.hub.progress(client.stream);
    assert_eq!(client.told(), ["0 created @2"], "one lags");
    world.settle();
    world.hub.progress(client.stream);
    assert_eq!(client.told(), ["0 +a=1 @2", "-1 @2"]);
    world.put("b", "1");
    world.hub.progress(client.stream);
    world.settle();
    world.hub.progress(client.stream);
    assert_eq!(
        client.told(),
        ["-1 @2", "-1 @3"],
        "what was not told is not claimed"
    );
}

#[test]
fn idle_watchers_are_told_of_the_progress() {
    let mut world = World::new();
    let client = world.open();
    let create = |start| WatchCreateRequest {
        progress_notify: true,
        ..watch("a", "", start)
    };
    world.create(&client, create(0));
    world.create(&client, create(100));
    world.create(&client, watch("a", "", 0));
    client.take();
    let pass = |world: &mut World, part: f64| {
        world.now += PROGRESS.mul_f64(part);
        world.hub.tick(world.now);
        client.told()
    };
    assert_eq!(pass(&mut world, 0.9).len(), 0);
    assert_eq!(
        pass(&mut world, 0.2),
        ["0 @1"],
        "within a tenth more than the interval"
    );
    assert_eq!(pass(&mut world, 0.9).len(), 0);
    world.put("a", "1");
    world.settle();
    assert_eq!(pass(&mut world, 0.2), ["0 +a=1 @2", "2 +a=1 @2"]);
    assert_eq!(pass(&mut world, 0.7).len(), 0, "it was not idle");
    world.put("b", "1");
    world.settle();
    assert_eq!(pass(&mut world, 0.3), ["0 @3"]);
}

#[test]
fn a_slow_client_holds_up_nobody_and_misses_nothing() {
    let mut world = World::new();
    let (slow, quick) = (world.open(), world.open());
    for client in [&slow, &quick] {
        world.create(client, watch("", "\0", 0));
        world.create(client, watch("none", "", 0));
        client.take();
    }
    let mut expected = Vec::new();
    for number in 0..40 {
        let value = vec![b'x'; 100_000];
        let revision = world.apply(Op::Put(put(&number.to_string(), value)));
        world.settle();
        expected.push(revision);
        assert_eq!(quick.take().len(), 1);
    }
    world.hub.progress(slow.stream);
    let mut seen = Vec::new();
    let mut at_once = 0;
    loop {
        let more = slow.take();
        if more.is_empty() {
            break;
        }
        let bytes: usize = more.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes < 2 << 20, "{bytes} bytes waited");
        at_once = at_once.max(more.len());
        for response in more {
            assert_eq!(response.watch_id, 0, "no progress is claimed");
            seen.extend(
                response
                    .events
                    .iter()
                    .map(|event| event.kv.as_ref().expect("a pair").mod_revision),
            );
        }
        world.settle();
    }
    assert_eq!(seen, expected);
    world.hub.progress(slow.stream);
    assert_eq!(slow.told(), ["-1 @41"]);
}

#[test]
fn a_slow_client_whose_place_is_compacted_is_told_so() {
    let mut world = World::new();
    let client = world.open();
    world.create(&client, watch("a", "", 0));
    for _ in 0..20 {
        world.apply(Op::Put(put("a", vec![b'x'; 100_000])));
        world.settle();
    }
    world.compact(21);
    let mut told = client.take();
    world.settle();
    told.extend(client.take());
    let last = told.last().expect("an answer");
    assert_eq!(short(last), "0 canceled compacted 21 @0");
    assert!(told.len() < 20);
}

#[test]
fn large_revisions_are_cut_for_those_who_ask() {
    let mut world = World::new();
    let client = world.open();
    world.create(&client, watch("", "\0", 0));
    world.create(
        &client,
        WatchCreateRequest {
            fragment: true,
            ..watch("", "\0", 0)
        },
    );
    client.take();
    let op = |number: usize| RequestOp {
        request: Some(Request::RequestPut(put(&number.to_string(), vec![b'x'; 500]))),
    };
    world.apply(Op::Txn(TxnRequest {
        success: (0..10).map(op).collect(),
        ..TxnRequest::default()
    }));
    world.settle();
    let told = client.take();
    let shape: Vec<_> = told
        .iter()
        .map(|r| (r.watch_id, r.events.len(), r.fragment))
        .collect();
    assert_eq!(
        shape,
        [
            (0, 10, false),
            (1, 3, true),
            (1, 3, true),
            (1, 3, true),
            (1, 1, false)
        ]
    );
}

/// Kubernetes can't do without the pair from before a deletion.
#[test]
fn a_compaction_takes_no_previous_pair_from_who_was_not_told_yet() {
    let mut world = World::new();
    let client = world.open();
    let request = WatchCreateRequest {
        prev_kv: true,
        ..watch("a", "", 0)
    };
    world.create(&client, request);
    world.put("a", "1");
    let last = world.delete("a");
    world.compact(last);
    world.saver.save().expect("saved");
    world.saver.sweep(100).expect("swept");
    world.settle();
    let previous: Vec<Option<Bytes>> = std::iter::from_fn(|| client.take_one())
        .flat_map(|response| response.events)
        .map(|event| event.prev_kv.map(|kv| kv.value))
        .collect();
    assert_eq!(previous, [None, Some(bytes("1"))]);
}

#[test]
fn a_jump_is_read_from_the_store() {
    let mut world = World::new();
    let client = world.open();
    world.create(&client, watch("a", "", 0));
    world.create(&client, watch("a", "", 4));
    world.put("a", "1");
    world.put("a", "2");
    let last = world.put("a", "3");
    let stale = std::mem::take(&mut world.untold);
    world.hub.tell(News::Jump(last), world.now).expect("told");
    for (changes, view) in stale {
        world
            .hub
            .tell(News::Changes(changes, view), world.now)
            .expect("told");
    }
    world.settle();
    assert_eq!(
        client.told(),
        ["0 created @1", "1 created @1", "0 +a=1 +a=2 +a=3 @4", "1 +a=3 @4"]
    );
}

#[test]
fn the_end_of_the_member_ends_every_stream() {
    let world = World::new();
    let client = world.open();
    world.create(&client, watch("a", "", 0));
    world.hub.close();
    assert_eq!(client.told(), ["0 created @1"]);
    for outbox in [client.outbox, world.open().outbox] {
        let taken = try_take(&outbox, &mut VecDeque::new());
        assert_eq!(taken, Some(Err(Error::Stopped)));
    }
}

#[test]
fn a_client_that_left_leaves_nothing_behind() {
    let mut world = World::new();
    let client = world.open();
    for start in [0, 1, 50] {
        world.create(&client, watch("a", "", start));
        world.create(&client, watch("a", "b", start));
    }
    world.hub.forget(client.stream);
    world.put("a", "1");
    world.settle();
    assert_eq!(client.take().len(), 6, "the answers to the creates");
    assert!(world.hub.is_empty());
}

/// What a watcher of the random test was promised, and what it got.
struct Watched {
    request: WatchCreateRequest,
    next: i64,
    got: Vec<Event>,
    /// The revision up to which it was told everything.
    told: i64,
    is_over: bool,
}

impl Watched {
    fn take(&mut self, response: &WatchResponse, compacted: i64) {
        assert!(!self.is_over, "after the end: {}", short(response));
        let main = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        for event in &response.events {
            assert!(
                main(event) > self.told,
                "twice, torn or out of order: {}",
                short(response)
            );
            self.got.push(event.clone());
        }
        assert!(response.events.is_sorted_by_key(main));
        let last = response.events.last().map_or(0, main);
        if response.canceled {
            assert!(response.compact_revision == 0 || response.compact_revision <= compacted);
            self.is_over = true;
        } else {
            assert!(revision(response) >= last);
            self.told = self.told.max(last);
        }
    }

    /// What it got is what it asked for of the past, all of it or up to where it was cancelled.
    fn check(&self, past: &[Event], compacted: i64) {
        let keys = crate::mvcc::KeyRange::new(&self.request.key, &self.request.range_end);
        let wanted = past.iter().filter(|event| {
            let kv = event.kv.as_ref().expect("a pair");
            let filtered = self.request.filters.contains(&event.r#type);
            kv.mod_revision >= self.next && keys.contains(&kv.key) && !filtered
        });
        let mut wanted = wanted.peekable();
        for got in &self.got {
            let wanted = wanted.next().expect("no more happened");
            assert_eq!((got.r#type, &got.kv), (wanted.r#type, &wanted.kv));
            match (&got.prev_kv, self.request.prev_kv) {
                (before @ Some(_), true) => assert_eq!(before, &wanted.prev_kv),
                (Some(_), false) => panic!("nobody asked for the pair from before"),
                (None, true) => {
                    let main = got.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                    assert!(wanted.prev_kv.is_none() || main - 1 < compacted);
                }
                (None, false) => {}
            }
        }
        assert!(self.is_over || wanted.peek().is_none(), "something is missing");
    }
}

fn random_op(rng: &mut StdRng, revision: i64) -> Op {
    let key = |rng: &mut StdRng| char::from(rng.random_range(b'a'..b'h')).to_string();
    let value = |rng: &mut StdRng| {
        let length = if rng.random_bool(0.1) { 200_000 } else { 100 };
        vec![b'x'; rng.random_range(0..length)]
    };
    let delete = |rng: &mut StdRng| DeleteRangeRequest {
        key: bytes(&key(rng)),
        range_end: if rng.random() {
            Bytes::new()
        } else {
            bytes(&key(rng))
        },
        prev_kv: false,
    };
    match rng.random_range(0..10) {
        0..5 => Op::Put(put(&key(rng), value(rng))),
        5 | 6 => Op::DeleteRange(delete(rng)),
        7 | 8 => {
            let mut ops = vec![Request::RequestDeleteRange(DeleteRangeRequest {
                key: bytes("a"),
                range_end: bytes("\0"),
                prev_kv: false,
            })];
            // Puts beside a delete of everything are allowed: two changes of one key at one revision.
            ops.extend(["a", "c", "e"].map(|key| Request::RequestPut(put(key, value(rng)))));
            ops.rotate_left(rng.random_range(0..2));
            let op = |request| RequestOp {
                request: Some(request),
            };
            Op::Txn(TxnRequest {
                success: ops.into_iter().map(op).collect(),
                ..TxnRequest::default()
            })
        }
        _ => Op::Compact(CompactionRequest {
            revision: rng.random_range(revision / 2..=revision),
            physical: false,
        }),
    }
}

fn random_watch(rng: &mut StdRng, revision: i64) -> WatchCreateRequest {
    let key = |rng: &mut StdRng| char::from(rng.random_range(b'a'..b'h')).to_string();
    let ends = ["".to_string(), "\0".to_string(), key(rng)];
    WatchCreateRequest {
        filters: [vec![], vec![], vec![0], vec![1]][rng.random_range(0..4)].clone(),
        prev_kv: rng.random(),
        ..watch(
            &key(rng),
            &ends[rng.random_range(0..3)],
            [0, rng.random_range(1..=revision + 5)][rng.random_range(0..2)],
        )
    }
}

/// Writers, compaction, saving, reclaiming, snapshots, jumps, slow clients and watchers of all kinds, in any order.
#[test]
fn every_watcher_gets_its_events_in_order_once_and_completely() {
    let mut events = 0;
    for seed in 0..30 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        let clients: Vec<Client> = (0..4).map(|_| world.open()).collect();
        let mut watched: BTreeMap<(usize, i64), Watched> = BTreeMap::new();
        let mut done: Vec<Watched> = Vec::new();
        let mut waiting: Vec<VecDeque<WatchCreateRequest>> = vec![VecDeque::new(); clients.len()];
        for _ in 0..600 {
            let revision_now = world.state.reader().revision();
            let who = rng.random_range(0..clients.len());
            match rng.random_range(0..24) {
                0..9 => drop(world.apply(random_op(&mut rng, revision_now))),
                9..12 => world.tell(),
                12..15 => drop(world.hub.catch_up(world.now).expect("read")),
                15 => {
                    let request = random_watch(&mut rng, revision_now);
                    waiting[who].push_back(request.clone());
                    world.create(&clients[who], request);
                }
                16 => world.hub.cancel(clients[who].stream, rng.random_range(0..20)),
                17 => drop(world.saver.save().expect("saved")),
                18 => drop(world.saver.sweep(5).expect("swept")),
                19 => {
                    world.untold.clear();
                    world.hub.tell(News::Jump(revision_now), world.now).expect("told");
                }
                20 => install_snapshot(&mut world, revision_now),
                21 => world.hub.progress(clients[who].stream),
                _ => {
                    let limit = rng.random_range(0..20);
                    let taken: Vec<_> = std::iter::from_fn(|| clients[who].take_one())
                        .take(limit)
                        .collect();
                    let mut judge = Judge {
                        who,
                        waiting: &mut waiting[who],
                        watched: &mut watched,
                        done: &mut done,
                    };
                    taken.iter().for_each(|response| judge.take(response, &world));
                }
            }
        }
        for _ in 0..1000 {
            world.settle();
            for (who, client) in clients.iter().enumerate() {
                let mut judge = Judge {
                    who,
                    waiting: &mut waiting[who],
                    watched: &mut watched,
                    done: &mut done,
                };
                client
                    .take()
                    .iter()
                    .for_each(|response| judge.take(response, &world));
            }
        }
        let compacted = world.state.reader().compacted();
        done.extend(watched.into_values());
        events += done.iter().map(|watched| watched.got.len()).sum::<usize>();
        done.iter()
            .for_each(|watched| watched.check(&world.past, compacted));
    }
    assert!(events > 3000, "{events} events are too few to mean anything");
}

fn install_snapshot(world: &mut World, revision: i64) {
    let records: Vec<_> = world
        .state
        .snapshot()
        .records()
        .map(|record| Ok(record.expect("read")))
        .collect();
    world.engine = Arc::new(Memory::default());
    let (state, _) = State::restore(world.engine.clone(), small(), records.into_iter()).expect("restored");
    world.saver = state.saver();
    world.state.replace(state);
    world.untold.clear();
    world.hub.tell(News::Jump(revision), world.now).expect("told");
}

/// Sorts one client's answers by watcher.
struct Judge<'a> {
    who: usize,
    waiting: &'a mut VecDeque<WatchCreateRequest>,
    watched: &'a mut BTreeMap<(usize, i64), Watched>,
    done: &'a mut Vec<Watched>,
}

impl Judge<'_> {
    fn take(&mut self, response: &WatchResponse, world: &World) {
        let at = (self.who, response.watch_id);
        if response.created {
            let request = self.waiting.pop_front().expect("answers come in order");
            if response.canceled {
                return;
            }
            let next = match request.start_revision {
                0 => revision(response) + 1,
                start => start,
            };
            let new = Watched {
                request,
                next,
                got: Vec::new(),
                told: next - 1,
                is_over: false,
            };
            assert!(
                self.watched.insert(at, new).is_none(),
                "an id in use was given out"
            );
            return;
        }
        if response.watch_id == -1 {
            // Everything up to here has come: nothing older may follow.
            let mine = self.watched.iter_mut().filter(|((who, _), _)| *who == self.who);
            mine.for_each(|(_, watched)| watched.told = watched.told.max(revision(response)));
            return;
        }
        let watched = self.watched.get_mut(&at).expect("a watcher that was created");
        watched.take(response, world.state.reader().compacted());
        if watched.is_over {
            self.done.extend(self.watched.remove(&at));
        }
    }
}
