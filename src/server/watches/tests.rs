//! The hub by hand: no threads, every step where the test wants it.

mod random;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

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
