//! The same writes and the same watches, to a member and to a real etcd: each watcher is told the same.
//!
//! How events are spread over messages is each server's own affair, so what is compared is the sequence of a watcher's
//! events and how it ended. `PONTOON_SEED` and `PONTOON_WATCH_REQUESTS` replace seed and length.
//!
//! Left out, as etcd differs by version or is wrong: starts below zero; watches from the compacted revision, whose
//! deletes etcd may leave out; and previous pairs of the past, which it drops when a compaction comes between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pontoon::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};
use pontoon::pb::mvccpb::Event;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::cluster::Cluster;
use crate::support::etcd::Etcd;
use crate::support::from_env;
use crate::support::generate::{Generator, Near};
use crate::support::model::Model;
use crate::support::rpc::{Client, Request};
use crate::support::watcher::{WatchStream, watch_all};

/// How many writes a run makes by default.
const REQUESTS: u64 = 1500;

/// etcd reads to those who are behind every 100 ms.
const SILENCE: Duration = Duration::from_millis(500);

/// A server, one stream to it, and what each of its watchers was told.
struct Side {
    client: Client,
    stream: WatchStream,
    told: BTreeMap<i64, Told>,
    created: Vec<Created>,
}

#[derive(Debug, Default, PartialEq)]
struct Told {
    events: Vec<Event>,
    ends: Vec<End>,
}

/// Everything of a cancel but the header's ids.
#[derive(Debug, PartialEq)]
struct End {
    after: usize,
    compacted: bool,
    reason: String,
}

#[derive(Debug, PartialEq)]
struct Created {
    watch_id: i64,
    canceled: bool,
    reason: String,
    revision: i64,
}

impl Side {
    async fn new(endpoint: &str, first: WatchCreateRequest) -> Side {
        let mut stream = WatchStream::open_and_create(endpoint, first)
            .await
            .expect("a stream");
        assert!(stream.next().await.expect("a response").created);
        Side {
            client: Client::new(endpoint),
            stream,
            told: BTreeMap::new(),
            created: Vec::new(),
        }
    }

    async fn create(&mut self, request: &WatchCreateRequest) {
        let answer = self.stream.create(request.clone()).await;
        self.created.push(Created {
            watch_id: answer.watch_id,
            canceled: answer.canceled,
            reason: answer.cancel_reason,
            revision: answer.header.map_or(0, |header| header.revision),
        });
    }

    fn take(&mut self, response: WatchResponse) {
        let told = self.told.entry(response.watch_id).or_default();
        told.events.extend(response.events);
        if response.canceled {
            told.ends.push(End {
                after: told.events.len(),
                compacted: response.compact_revision > 0,
                reason: response.cancel_reason,
            });
        }
    }

    /// Everything has come when the stream says that it is at the last revision, and then is silent: early versions of
    /// etcd say so too soon.
    async fn finish(&mut self, last: i64) {
        let mut asked = 0;
        loop {
            asked += 1;
            assert!(
                asked < 200,
                "the stream never said that it was at revision {last}"
            );
            self.stream.ask_progress().await;
            while let Some(response) = self.stream.next_within(SILENCE).await {
                if response.watch_id != -1 {
                    self.take(response);
                } else if response.header.map_or(0, |header| header.revision) >= last {
                    return self.drain().await;
                }
            }
        }
    }

    async fn drain(&mut self) {
        while let Some(response) = self.stream.next_within(SILENCE).await {
            if response.watch_id != -1 {
                self.take(response);
            }
        }
    }
}

fn random_watch(rng: &mut StdRng, keys: &[bytes::Bytes], near: Near) -> WatchCreateRequest {
    let mut key = || keys[rng.random_range(0..keys.len())].clone();
    let ends = [
        bytes::Bytes::new(),
        bytes::Bytes::from_static(b"\0"),
        key(),
        key(),
    ];
    let key = key();
    let first = (near.compacted + 1).max(1);
    let start_revision = match rng.random_range(0..6) {
        0 | 1 => 0,
        2 if near.compacted > 2 => rng.random_range(1..near.compacted),
        3 => near.revision + rng.random_range(1..20),
        _ => rng.random_range(first..=near.revision.max(first)),
    };
    WatchCreateRequest {
        key,
        range_end: ends[rng.random_range(0..4)].clone(),
        start_revision,
        filters: [vec![], vec![], vec![0], vec![1], vec![0, 1]][rng.random_range(0..5)].clone(),
        prev_kv: start_revision == 0 && rng.random(),
        watch_id: if rng.random_bool(0.2) {
            rng.random_range(0..30)
        } else {
            0
        },
        ..WatchCreateRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_a_member_are_told_what_those_of_etcd_are() {
    let Some(binary) = Etcd::find() else {
        println!("no etcd on this machine: nothing to compare with");
        return;
    };
    let (cluster, etcd) = (Cluster::start(1).await, Etcd::start(&binary).await);
    // Never cancelled, and told of everything.
    let all = WatchCreateRequest {
        watch_id: 1000,
        prev_kv: true,
        ..watch_all(0)
    };
    let mut ours = Side::new(&cluster.members[0].client_url, all.clone()).await;
    let mut theirs = Side::new(&etcd.endpoint, all).await;
    let seed = from_env("PONTOON_SEED", 1);
    let requests = from_env("PONTOON_WATCH_REQUESTS", REQUESTS);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut generator = Generator::new(seed);
    let mut guide = Model::default();
    let mut keys = vec![bytes::Bytes::from_static(b"a")];
    let mut ended = BTreeSet::new();
    let mut sent = 0;
    while sent < requests {
        let near = Near {
            revision: guide.revision(),
            compacted: guide.compacted(),
        };
        if rng.random_bool(0.04) {
            let mut request = random_watch(&mut rng, &keys, near);
            // The id of a watcher that compaction ended is free again here; in etcd it is some time later, or never.
            if ended.contains(&request.watch_id) {
                request.watch_id = 0;
            }
            ours.create(&request).await;
            theirs.create(&request).await;
            if (1..near.compacted).contains(&request.start_revision) {
                ended.extend(ours.created.last().map(|created| created.watch_id));
            }
        } else if rng.random_bool(0.01) {
            let id = rng.random_range(0..40);
            // etcd answers the cancel of a watcher that compaction ended, too.
            if !ended.contains(&id) {
                ours.stream.cancel(id).await;
                theirs.stream.cancel(id).await;
            }
        }
        let request = generator.request(near);
        if !is_wanted(&request, &mut rng) || guide.answer(&request).is_err() {
            continue;
        }
        if let Request::Put(put) = &request
            && keys.len() < 50
        {
            keys.push(put.key.clone());
        }
        if matches!(request, Request::Compact(_)) {
            // Whoever still reads what is compacted now would be cancelled by one and not by the other.
            ours.finish(near.revision).await;
            theirs.finish(near.revision).await;
        }
        for side in [&mut ours, &mut theirs] {
            side.client
                .call(request.clone())
                .await
                .expect("the model accepts it");
        }
        sent += 1;
    }
    ours.finish(guide.revision()).await;
    theirs.finish(guide.revision()).await;
    assert_eq!(ours.created, theirs.created, "seed {seed}");
    let events: usize = ours.told.values().map(|told| told.events.len()).sum();
    for (id, told) in &theirs.told {
        let ours = ours
            .told
            .get(id)
            .unwrap_or_else(|| panic!("seed {seed}: watcher {id} was told nothing"));
        assert_eq!(ours.ends, told.ends, "seed {seed}, watcher {id}");
        for (place, (ours, theirs)) in ours.events.iter().zip(&told.events).enumerate() {
            assert_eq!(ours, theirs, "seed {seed}, watcher {id}, event {place}");
        }
        assert_eq!(ours.events.len(), told.events.len(), "seed {seed}, watcher {id}");
    }
    assert_eq!(ours.told.len(), theirs.told.len(), "seed {seed}");
    println!(
        "a member and etcd {} told {} watchers the same {events} events of {sent} requests (seed {seed})",
        etcd.version,
        ours.created.len()
    );
    assert!(events > 1000, "{events} events are too few to mean anything");
}

/// Writes, and a compaction now and then.
fn is_wanted(request: &Request, rng: &mut StdRng) -> bool {
    match request {
        Request::Compact(_) => rng.random_bool(0.02),
        other => other.is_write(),
    }
}
