//! The differential test beyond KV: leases, watches, members, alarms and maintenance, between KV requests.
//!
//! The same seeded calls go to a member of ours and to a real etcd, one after another, and their answers must be
//! alike, field by field. Left out of the comparison is what differs between any two clusters: ids, terms, names, sizes,
//! hashes; a remaining TTL may differ by a few seconds, and the order of leases and of a lease's keys is not compared.
//! Watches are compared by their history: all events that a watch saw, in order, and how it ended.
//!
//! `PONTOON_SEED` and `PONTOON_CALLS` replace seed and length. Without an etcd on the machine there is nothing to do.

mod server;
mod source;

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use futures::future::join_all;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::watch_request::RequestUnion;
use pontoon::pb::etcdserverpb::{
    AlarmRequest, DeleteRangeRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use self::server::{Call, Server, text};
use self::source::{LEASES, Source};
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::etcd::Etcd;
use crate::support::from_env;
use crate::support::generate::Generator;
use crate::support::rpc::{Request, put_request};

/// Calls of a run by default.
const CALLS: u64 = 4_000;
/// Watches open at once.
const WATCHES: usize = 4;
/// What a run must have met, or it says little.
const MUST_MEET: [(&str, &str); 18] = [
    ("Grant", "ok"),
    ("Grant", "etcdserver: lease already exists"),
    ("Grant", "etcdserver: too large lease TTL"),
    ("Revoke", "ok"),
    ("Revoke", "etcdserver: requested lease not found"),
    ("TimeToLive", "ok"),
    ("KeepAlive", "ok"),
    ("Leases", "ok"),
    ("HashKv", "ok"),
    (
        "HashKv",
        "etcdserver: mvcc: required revision is a future revision",
    ),
    ("HashKv", "etcdserver: mvcc: required revision has been compacted"),
    ("Status", "ok"),
    ("Defragment", "ok"),
    ("Alarm", "ok"),
    ("Kv", "etcdserver: mvcc: database space exceeded"),
    ("Members", "ok"),
    ("Watch", "events"),
    ("Watch", "cancelled"),
];

fn is_nested(call: &Call) -> bool {
    let Call::Kv(Request::Txn(txn)) = call else {
        return false;
    };
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.any(|op| matches!(op.request, Some(Op::RequestTxn(_))))
}

/// The kind of a call, for the counts.
fn kind(call: &Call) -> String {
    let text = text(call);
    let end = text.find(['(', ' ']).unwrap_or(text.len());
    text[..end].to_string()
}

/// A watch on one server.
struct Watching {
    responses: Streaming<WatchResponse>,
    /// The stream ends with it.
    _requests: mpsc::Sender<WatchRequest>,
    history: Vec<String>,
    ended: bool,
    /// Up to which revision events have come.
    seen: i64,
}

impl Watching {
    async fn start(server: &mut Server, create: &WatchCreateRequest) -> Result<Watching, Status> {
        let (requests, queue) = mpsc::channel(1);
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create.clone())),
        };
        requests
            .send(request)
            .await
            .map_err(|_| Status::internal("closed"))?;
        let responses = server.watch.watch(ReceiverStream::new(queue)).await?.into_inner();
        let mut watching = Watching {
            responses,
            _requests: requests,
            history: Vec::new(),
            ended: false,
            seen: 0,
        };
        watching.hear().await?;
        Ok(watching)
    }

    /// Takes in one response.
    async fn hear(&mut self) -> Result<(), Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        let Some(response) = next.map_err(|_| Status::deadline_exceeded("no more events"))?? else {
            self.ended = true;
            self.history.push("the stream ended".to_string());
            return Ok(());
        };
        if response.created || response.canceled {
            let fields = (response.watch_id, response.created, response.canceled);
            self.history
                .push(text((fields, response.compact_revision, &response.cancel_reason)));
        }
        self.ended |= response.canceled;
        for event in response.events {
            self.seen = event.kv.as_ref().map_or(self.seen, |kv| kv.mod_revision);
            self.history.push(text(event));
        }
        Ok(())
    }

    async fn hear_until(&mut self, revision: i64) -> Result<(), Status> {
        while !self.ended && self.seen < revision {
            self.hear().await?;
        }
        Ok(())
    }
}

struct Run {
    servers: Vec<Server>,
    source: Source,
    seed: u64,
    done: u64,
    counts: BTreeMap<(String, String), u64>,
    open: Vec<(WatchCreateRequest, Vec<Watching>)>,
}

impl Run {
    fn revision(&self) -> i64 {
        self.servers[0].revision
    }

    async fn call(&mut self, call: Call) {
        let said = join_all(self.servers.iter_mut().map(|server| server.say(&call))).await;
        self.compare(&call, &said);
        if let (Call::Kv(Request::Compact(request)), true) = (&call, said[0].is_ok()) {
            self.source.compacted = request.revision;
        }
        let outcome = said[0]
            .as_ref()
            .map_or_else(|refusal| refusal.text.clone(), |_| "ok".to_string());
        *self.counts.entry((kind(&call), outcome)).or_default() += 1;
        self.done += 1;
    }

    fn compare<T: PartialEq + Debug>(&self, what: &impl Debug, said: &[T]) {
        if said.iter().any(|other| *other != said[0]) {
            let names = self.servers.iter().map(|server| &server.name);
            let all: String = names
                .zip(said)
                .map(|(name, said)| format!("{name}: {said:?}\n"))
                .collect();
            panic!("seed {}, call {}: {what:?}\n{all}", self.seed, self.done);
        }
    }

    /// Begins a watch. One that reads the past is followed to its end at once: a compaction could come in between.
    async fn watch(&mut self) {
        let create = self.source.watch(self.servers[0].revision);
        let started = join_all(
            self.servers
                .iter_mut()
                .map(|server| Watching::start(server, &create)),
        )
        .await;
        let watches: Vec<Watching> = started
            .into_iter()
            .map(|watching| {
                watching.unwrap_or_else(|status| panic!("seed {}: {create:?}: {status}", self.seed))
            })
            .collect();
        let is_past = create.start_revision != 0 && create.start_revision <= self.revision();
        if is_past || watches[0].ended {
            self.finish(create, watches).await;
        } else {
            self.open.push((create, watches));
        }
        self.done += 1;
    }

    /// Writes what ends the watch's history, and compares the histories.
    async fn finish(&mut self, create: WatchCreateRequest, mut watches: Vec<Watching>) {
        let key = match create.key.is_empty() {
            true => Bytes::from_static(&[0]),
            false => create.key.clone(),
        };
        let mut last = 0;
        while last <= create.start_revision {
            self.call(Call::Kv(Request::Put(put_request(&key, b"the end"))))
                .await;
            let put = self.revision();
            let delete = DeleteRangeRequest {
                key: key.clone(),
                ..Default::default()
            };
            self.call(Call::Kv(Request::Delete(delete))).await;
            last = match create.filters[..] {
                [1] => put,
                _ => self.revision(),
            };
        }
        for (watching, server) in watches.iter_mut().zip(&self.servers) {
            let heard = watching.hear_until(last).await;
            heard.unwrap_or_else(|status| {
                panic!(
                    "seed {}: {}: {create:?}, at {last}: {status}\n{:#?}",
                    self.seed, server.name, watching.history
                )
            });
        }
        let histories: Vec<&Vec<String>> = watches.iter().map(|watching| &watching.history).collect();
        self.compare(&create, &histories);
        let outcome = match watches[0].ended {
            true => "cancelled".to_string(),
            false => "events".to_string(),
        };
        *self.counts.entry(("Watch".to_string(), outcome)).or_default() += 1;
    }

    async fn finish_oldest_watch(&mut self) {
        if !self.open.is_empty() {
            let (create, watches) = self.open.remove(0);
            self.finish(create, watches).await;
        }
    }

    /// Raises an alarm, sees what is refused, and takes it back.
    async fn alarm(&mut self) {
        let alarm = |action, alarm| {
            Call::Alarm(AlarmRequest {
                action,
                member_id: 77,
                alarm,
            })
        };
        // Not CORRUPT: etcd serves reads all the same, ours refuses them.
        let which = 1;
        self.call(alarm(1, which)).await;
        for _ in 0..6 {
            let call = self.source.call(self.revision());
            // etcd looks for puts in the outermost transaction only.
            if !is_nested(&call) {
                self.call(call).await;
            }
        }
        self.call(alarm(0, 0)).await;
        self.call(alarm(2, which)).await;
        self.call(alarm(2, which)).await;
    }

    async fn step(&mut self) {
        match self.source.rng.random_range(0..60) {
            0 if self.open.len() < WATCHES => self.watch().await,
            1 => self.finish_oldest_watch().await,
            2 if self.source.rng.random_ratio(1, 4) => self.alarm().await,
            _ => {
                let call = self.source.call(self.revision());
                self.call(call).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_does_what_etcd_does() {
    let Some(binary) = Etcd::find() else {
        println!("no etcd on this machine: nothing to compare with");
        return;
    };
    let seed = from_env("PONTOON_SEED", 1);
    let calls = from_env("PONTOON_CALLS", CALLS);
    let etcd = Etcd::start(&binary).await;
    let cluster = Cluster::start(1).await;
    let mut run = Run {
        servers: vec![
            Server::new("a member".to_string(), &cluster.members[0].client_url),
            Server::new(format!("etcd {}", etcd.version), &etcd.endpoint),
        ],
        source: Source {
            rng: StdRng::seed_from_u64(seed),
            kv: Generator::with_leases(seed, &LEASES),
            compacted: 0,
        },
        seed,
        done: 0,
        counts: BTreeMap::new(),
        open: Vec::new(),
    };
    while run.done < calls {
        run.step().await;
    }
    while !run.open.is_empty() {
        run.finish_oldest_watch().await;
    }
    println!(
        "{} said the same as {} to {} calls (seed {seed})",
        run.servers[0].name, run.servers[1].name, run.done
    );
    for ((kind, outcome), count) in &run.counts {
        println!("{count:>8}  {kind}: {outcome}");
    }
    for (kind, outcome) in MUST_MEET {
        let met = run.counts.contains_key(&(kind.to_string(), outcome.to_string()));
        assert!(
            met,
            "no {kind} was answered {outcome:?}: the calls are not varied enough"
        );
    }
}
