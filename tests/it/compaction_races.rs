//! Compactions that race with writes, reads and watches, here and at a real etcd.
//!
//! What one call finds depends on who came first, so two servers can't be compared call by call while it lasts. Instead
//! every answer is held against what the specification allows at some moment between the call and the answer: the value
//! that was there at that revision, "compacted" only if a compaction beyond it was asked for, "future" only if it was not
//! written before the call. One client writes, so that what each revision holds is known. When all is quiet, both are
//! compacted at the same revision, and from then on they must answer alike: every revision, and watches from each.
//!
//! `PONTOON_SEED` and `PONTOON_RACES` replace seed and number of writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

use pontoon::pb::etcdserverpb::{CompactionRequest, DeleteRangeRequest, RangeRequest, WatchResponse};
use pontoon::pb::mvccpb::Event;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::Code;

use crate::support::cluster::Cluster;
use crate::support::etcd::Etcd;
use crate::support::from_env;
use crate::support::rpc::{Client, Refusal, Request, Response, everything, put_request};
use crate::support::watcher::{WatchStream, revision, short, watch_all};

/// How many writes a run makes by default.
const WRITES: u64 = 500;
/// Compactions stay so many revisions below the last write, where both servers are compacted in the end.
const UNTOUCHED: i64 = 30;
/// A store's first revision is the empty one.
const EMPTY: i64 = 1;

/// What each revision changed: a key, and its value, if it has one now.
struct History(Vec<(String, Option<String>)>);

impl History {
    fn random(seed: u64, writes: u64) -> History {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut there = BTreeSet::new();
        let write = |n| {
            let key = format!("k{}", rng.random_range(0..8));
            // A delete of nothing is no revision.
            if there.contains(&key) && rng.random_bool(0.3) {
                there.remove(&key);
                return (key, None);
            }
            there.insert(key.clone());
            (key, Some(format!("{n}")))
        };
        History((0..writes).map(write).collect())
    }

    fn last(&self) -> i64 {
        EMPTY + self.0.len() as i64
    }

    /// All pairs as they are at a revision.
    fn at(&self, revision: i64) -> BTreeMap<&str, &str> {
        let mut pairs = BTreeMap::new();
        for (key, value) in &self.0[..(revision - EMPTY) as usize] {
            match value {
                Some(value) => pairs.insert(key.as_str(), value.as_str()),
                None => pairs.remove(key.as_str()),
            };
        }
        pairs
    }

    /// What a watcher is told of a revision.
    fn event(&self, revision: i64) -> String {
        match &self.0[(revision - EMPTY - 1) as usize] {
            (key, Some(value)) => format!("+{key}={value} @{revision}"),
            (key, None) => format!("-{key} @{revision}"),
        }
    }

    fn is_delete(&self, revision: i64) -> bool {
        self.0[(revision - EMPTY - 1) as usize].1.is_none()
    }

    fn request(&self, revision: i64) -> Request {
        match &self.0[(revision - EMPTY - 1) as usize] {
            (key, Some(value)) => Request::Put(put_request(key.as_bytes(), value.as_bytes())),
            (key, None) => Request::Delete(DeleteRangeRequest {
                key: key.clone().into_bytes().into(),
                ..DeleteRangeRequest::default()
            }),
        }
    }
}

/// What is known of a server while everybody is at it. A call that begins after something was acknowledged must see it;
/// nothing that was not asked for yet can be seen.
struct Known {
    written: AtomicI64,
    asked_to_write: AtomicI64,
    compacted: AtomicI64,
    asked_to_compact: AtomicI64,
    is_over: AtomicBool,
}

/// One server, or several members of one cluster.
struct Side {
    name: String,
    endpoints: Vec<String>,
    history: Arc<History>,
    known: Arc<Known>,
    /// etcd may not tell of a delete at the compacted revision to who watches from there.
    forgets: bool,
}

/// What a side answered while it raced, by kind.
type Tally = BTreeMap<&'static str, usize>;

impl Side {
    fn new(name: &str, endpoints: Vec<String>, history: &Arc<History>, forgets: bool) -> Arc<Side> {
        let known = Known {
            written: AtomicI64::new(EMPTY),
            asked_to_write: AtomicI64::new(EMPTY),
            compacted: AtomicI64::new(0),
            asked_to_compact: AtomicI64::new(0),
            is_over: AtomicBool::new(false),
        };
        Arc::new(Side {
            name: name.to_string(),
            endpoints,
            history: history.clone(),
            known: Arc::new(known),
            forgets,
        })
    }

    fn client(&self, number: usize) -> Client {
        Client::new(self.endpoint(number))
    }

    fn endpoint(&self, number: usize) -> &str {
        &self.endpoints[number % self.endpoints.len()]
    }

    async fn write(&self) {
        let mut client = self.client(0);
        for revision in EMPTY + 1..=self.history.last() {
            self.known.asked_to_write.store(revision, SeqCst);
            let answer = client
                .call(self.history.request(revision))
                .await
                .expect("written");
            assert_eq!(answer.revision(), revision, "{}: somebody else writes", self.name);
            self.known.written.store(revision, SeqCst);
        }
        self.known.is_over.store(true, SeqCst);
    }

    /// Near what is compacted, or near what is new.
    fn somewhere(&self, rng: &mut StdRng) -> i64 {
        let (compacted, written) = (self.known.compacted.load(SeqCst), self.known.written.load(SeqCst));
        let near = match rng.random_range(0..5) {
            0 | 1 => compacted,
            2 => written,
            _ => rng.random_range(compacted..=written.max(compacted)),
        };
        (near + rng.random_range(-3..=3)).max(1)
    }

    async fn compact(&self, number: usize, seed: u64) -> Tally {
        let (mut client, mut rng) = (self.client(number), StdRng::seed_from_u64(seed));
        let mut tally = Tally::new();
        while !self.known.is_over.load(SeqCst) {
            let revision = self.somewhere(&mut rng).min(self.history.last() - UNTOUCHED);
            let request = CompactionRequest {
                revision,
                physical: rng.random_bool(0.2),
            };
            let (compacted, written) = (self.known.compacted.load(SeqCst), self.known.written.load(SeqCst));
            self.known.asked_to_compact.fetch_max(revision, SeqCst);
            let answer = client.ask(Request::Compact(request)).await;
            let what = || format!("{}: compaction at {revision}: {answer:?}", self.name);
            let kind = kind(&answer);
            match kind {
                "done" => {
                    assert!(revision > compacted, "{}, after one at {compacted}", what());
                    assert!(revision <= self.known.asked_to_write.load(SeqCst), "{}", what());
                    self.known.compacted.fetch_max(revision, SeqCst);
                }
                "compacted" => assert!(revision <= self.known.asked_to_compact.load(SeqCst), "{}", what()),
                "future" => assert!(revision > written, "{}, but {written} was written", what()),
                _ => panic!("{}", what()),
            }
            *tally.entry(kind).or_default() += 1;
        }
        tally
    }

    async fn read(&self, number: usize, seed: u64) -> Tally {
        let (mut client, mut rng) = (self.client(number), StdRng::seed_from_u64(seed));
        let mut tally = Tally::new();
        while !self.known.is_over.load(SeqCst) {
            let revision = self.somewhere(&mut rng);
            let serializable = rng.random_bool(0.3);
            let request = RangeRequest {
                revision,
                serializable,
                ..everything()
            };
            let (compacted, written) = (self.known.compacted.load(SeqCst), self.known.written.load(SeqCst));
            let answer = client.ask(Request::Range(request)).await;
            let what = || format!("{}: range at {revision}: {answer:?}", self.name);
            let kind = kind(&answer);
            match kind {
                "done" => {
                    // A member that is behind may not know of the compaction yet, if it answers by itself.
                    assert!(
                        serializable || revision >= compacted,
                        "{}, compacted at {compacted}",
                        what()
                    );
                    assert!(revision <= self.known.asked_to_write.load(SeqCst), "{}", what());
                    assert_eq!(pairs(&answer), self.history.at(revision), "{}", what());
                }
                "compacted" => assert!(revision < self.known.asked_to_compact.load(SeqCst), "{}", what()),
                "future" => assert!(
                    serializable || revision > written,
                    "{}, but {written} was written",
                    what()
                ),
                _ => panic!("{}", what()),
            }
            *tally.entry(kind).or_default() += 1;
        }
        tally
    }

    /// One watch after the other, each until it has been told some revisions, or of its end.
    async fn watch(&self, number: usize, seed: u64) -> Tally {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tally = Tally::new();
        let endpoint = self.endpoint(number);
        let first = watch_all(0);
        let mut stream = WatchStream::open_and_create(endpoint, first)
            .await
            .expect("a stream");
        let idle = stream.next().await.expect("created").watch_id;
        stream.cancel(idle).await;
        while !self.known.is_over.load(SeqCst) {
            // A start in the future is told of when it comes; one beyond the last write never.
            let start = self.somewhere(&mut rng).min(self.history.last() - UNTOUCHED);
            let some = rng.random_range(1..40);
            let id = stream.create(watch_all(start)).await.watch_id;
            let end = self.follow(&mut stream, id, start, some).await;
            *tally.entry(end).or_default() += 1;
        }
        tally
    }

    /// Holds what a watcher is told against the history: every revision from its start on, one after the other.
    async fn follow(&self, stream: &mut WatchStream, id: i64, start: i64, some: i64) -> &'static str {
        let mut next = start;
        let until = (start + some).min(self.history.last());
        while next < until {
            let response = stream.next().await.expect("the stream goes on");
            if response.watch_id != id {
                // What was on its way to an earlier one.
                continue;
            }
            if response.canceled {
                let compacted = response.compact_revision;
                let what = format!("{}: a watch from {start}, at {next}: {response:?}", self.name);
                assert!(next < compacted, "{what}");
                assert!(compacted <= self.known.asked_to_compact.load(SeqCst), "{what}");
                return "compacted";
            }
            next = self.check_events(&response, start, next);
        }
        stream.cancel(id).await;
        "done"
    }

    /// The revision after the last one that a response tells of.
    fn check_events(&self, response: &WatchResponse, start: i64, next: i64) -> i64 {
        // The first revision changed nothing.
        let mut next = if response.events.is_empty() {
            next
        } else {
            next.max(EMPTY + 1)
        };
        for event in &response.events {
            if self.forgets && next == start && revision(event) == start + 1 && self.history.is_delete(start)
            {
                next += 1;
            }
            let told = short(event);
            assert_eq!(
                told,
                self.history.event(next),
                "{}: a watch from {start}",
                self.name
            );
            next += 1;
        }
        next
    }

    /// Everybody at once.
    async fn race(self: &Arc<Side>, seed: u64) {
        let mut tasks = Vec::new();
        for number in 0..3_usize {
            let seed = seed.wrapping_mul(100).wrapping_add(number as u64);
            let side = |_| self.clone();
            let (compactor, reader, watcher) = (side(0), side(1), side(2));
            if number < 2 {
                let task = async move { ("compact", compactor.compact(number, seed).await) };
                tasks.push(tokio::spawn(task));
            }
            tasks.push(tokio::spawn(async move {
                ("range", reader.read(number, seed + 10).await)
            }));
            tasks.push(tokio::spawn(async move {
                ("watch", watcher.watch(number, seed + 20).await)
            }));
        }
        self.write().await;
        let mut all = BTreeMap::<(&str, &str), usize>::new();
        for task in tasks {
            let (what, tally) = task.await.expect("every answer was allowed");
            for (kind, count) in tally {
                *all.entry((what, kind)).or_default() += count;
            }
        }
        println!("{}: {all:?}", self.name);
        for met in [
            ("compact", "done"),
            ("compact", "compacted"),
            ("range", "done"),
            ("range", "compacted"),
            ("watch", "done"),
            ("watch", "compacted"),
        ] {
            assert!(
                all.contains_key(&met),
                "{}: no {met:?} in {all:?}, seed {seed}",
                self.name
            );
        }
    }

    /// What a member answers for each revision, and to watches from some, now that all is quiet.
    async fn answers(&self, number: usize, compacted: i64) -> Vec<String> {
        let mut client = self.client(number);
        let mut answers = Vec::new();
        for revision in 1..=self.history.last() + 1 {
            let request = RangeRequest {
                revision,
                ..everything()
            };
            answers.push(format!(
                "{revision}: {:?}",
                client.ask(Request::Range(request)).await
            ));
        }
        for revision in [compacted, compacted - 1, self.history.last() + 1] {
            let request = CompactionRequest {
                revision,
                physical: false,
            };
            let answer = client.ask(Request::Compact(request)).await;
            answers.push(format!("compaction at {revision}: {answer:?}"));
        }
        for start in [1, compacted - 1, compacted, compacted + 1, self.history.last()] {
            answers.push(format!(
                "watch from {start}: {:?}",
                self.told_from(number, start).await
            ));
        }
        answers
    }

    /// All that a watch is told, and the compacted revision that ended it.
    async fn told_from(&self, number: usize, start: i64) -> (Vec<String>, i64) {
        let first = watch_all(start);
        let mut stream = WatchStream::open_and_create(self.endpoint(number), first)
            .await
            .expect("a stream");
        let mut events: Vec<Event> = Vec::new();
        loop {
            let response = stream.next().await.expect("the stream goes on");
            events.extend(response.events);
            let has_all = events
                .last()
                .is_some_and(|event| revision(event) == self.history.last());
            if response.canceled || has_all {
                return (events.iter().map(short).collect(), response.compact_revision);
            }
        }
    }
}

fn kind(answer: &Result<Response, Refusal>) -> &'static str {
    match answer {
        Ok(_) => "done",
        Err(refusal) if refusal.code != Code::OutOfRange => "failed",
        Err(refusal) if refusal.text.ends_with("required revision has been compacted") => "compacted",
        Err(refusal) if refusal.text.ends_with("required revision is a future revision") => "future",
        Err(_) => "failed",
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn pairs(answer: &Result<Response, Refusal>) -> BTreeMap<&str, &str> {
    let Ok(Response::Range(range)) = answer else {
        panic!("it is a range's answer: {answer:?}");
    };
    let pairs = range.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value)));
    pairs.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_races_with_compactions_is_answered_as_the_specification_allows() {
    let seed = from_env("PONTOON_SEED", 1);
    let history = Arc::new(History::random(seed, from_env("PONTOON_RACES", WRITES)));
    // A put: etcd forgets deletes at the compacted revision once it has cleaned up.
    let compacted = (history.last() - UNTOUCHED + 1..history.last())
        .find(|revision| !history.is_delete(*revision))
        .expect("not all are deletes");
    let cluster = Cluster::start(3).await;
    let endpoints = cluster.members.iter().map(|member| member.client_url.clone());
    let ours = Side::new("three members", endpoints.collect(), &history, false);
    ours.race(seed).await;
    let compact = CompactionRequest {
        revision: compacted,
        physical: true,
    };
    ours.client(0)
        .call(Request::Compact(compact))
        .await
        .expect("compacted");
    let first = ours.answers(0, compacted).await;
    for member in 1..3 {
        assert_eq!(
            ours.answers(member, compacted).await,
            first,
            "member {member}, seed {seed}"
        );
    }
    for etcd in Etcd::one_of_each_version().await {
        let name = format!("etcd {}", etcd.version);
        let theirs = Side::new(&name, vec![etcd.endpoint.clone()], &history, true);
        theirs.race(seed).await;
        theirs
            .client(0)
            .call(Request::Compact(compact))
            .await
            .expect("compacted");
        let answers = theirs.answers(0, compacted).await;
        for (ours, theirs) in first.iter().zip(&answers) {
            assert_eq!(ours, theirs, "ours (left) and those of {name}, seed {seed}");
        }
    }
}
