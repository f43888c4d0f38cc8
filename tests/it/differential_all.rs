//! The differential test beyond KV: leases, watches, members, alarms and maintenance, between KV requests.
//!
//! The same seeded calls go to a member of ours and to a real etcd, one after another, and their answers must be
//! alike, field by field. Left out of the comparison is what differs between any two clusters: ids, terms, names, sizes,
//! hashes; a remaining TTL may differ by a few seconds, and the order of leases and of a lease's keys is not compared.
//! Watches are compared by their history: all events that a watch saw, in order, and how it ended.
//!
//! `PONTOON_SEED` and `PONTOON_CALLS` replace seed and length. Without an etcd on the machine there is nothing to do.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use pontoon::pb::etcdserverpb::cluster_client::ClusterClient;
use pontoon::pb::etcdserverpb::lease_client::LeaseClient;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::watch_client::WatchClient;
use pontoon::pb::etcdserverpb::watch_request::RequestUnion;
use pontoon::pb::etcdserverpb::{
    AlarmRequest, DefragmentRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberAddRequest,
    MemberAddResponse, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
    MoveLeaderRequest, ResponseHeader, StatusRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::differential::excluded;
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::etcd::Etcd;
use crate::support::from_env;
use crate::support::generate::{Generator, Near};
use crate::support::rpc::{Client, Refusal, Request, channel, put_request};
use crate::support::ties::settle;

/// Calls of a run by default.
const CALLS: u64 = 4_000;
/// The leases that are granted and asked for; few, so that calls meet.
const LEASES: [i64; 6] = [1, 2, 3, 7, 4711, i64::MAX];
/// Long enough that none runs out in a test, or too long.
const TTLS: [i64; 4] = [1_000, 5_000, 20_000, 10_000_000_000];
/// Granted and revoked at once: the shortest run out soon.
const ANY_TTLS: [i64; 4] = [1_000, 1, 0, -1];
/// A remaining TTL may differ by so much.
const TTL_SLACK: i64 = 30;
/// Watches open at once.
const WATCHES: usize = 4;
/// An address where no member is.
const NOBODY: &str = "http://127.0.0.1:9";

/// One call, the same for each server but for the ids that it has itself.
#[derive(Debug, Clone)]
enum Call {
    Kv(Request),
    Grant {
        id: i64,
        ttl: i64,
    },
    /// With an id that the server chooses, and revoked again.
    GrantAny {
        ttl: i64,
    },
    Revoke(i64),
    TimeToLive {
        id: i64,
        keys: bool,
    },
    Leases,
    KeepAlive(i64),
    HashKv(i64),
    Status,
    Defragment,
    Alarm(AlarmRequest),
    Members {
        linearizable: bool,
    },
    AddLearner(&'static str),
    /// With the address that the member itself has.
    AddItself,
    /// The learner that was added, or nobody.
    PromoteLearner,
    /// Of a member that isn't there: etcd forgets by an update that a learner is one.
    UpdateNobody(&'static str),
    RemoveLearner,
    MoveLeader(u64),
}

/// What a server said, as text that can be compared.
type Said = Result<String, Refusal>;

struct Server {
    name: String,
    kv: Client,
    lease: LeaseClient<Channel>,
    watch: WatchClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    learner: u64,
    /// The revision of its last answer.
    revision: i64,
}

fn stripped(header: Option<ResponseHeader>) -> i64 {
    header.map_or(-1, |header| header.revision)
}

fn text(fields: impl Debug) -> String {
    format!("{fields:?}")
}

impl Server {
    fn new(name: String, endpoint: &str) -> Server {
        let channel = channel(endpoint);
        Server {
            name,
            kv: Client::new(endpoint),
            lease: LeaseClient::new(channel.clone()),
            watch: WatchClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel),
            learner: 1,
            revision: 1,
        }
    }

    async fn say(&mut self, call: &Call) -> Said {
        match call {
            Call::Kv(request) => {
                let answer = settle(request, self.kv.ask(request.clone()).await)?;
                self.revision = self.revision.max(answer.revision());
                Ok(text(answer))
            }
            call => self
                .say_more(call)
                .await
                .map_err(Refusal::from)
                .map_err(settle_refusal),
        }
    }

    async fn say_more(&mut self, call: &Call) -> Result<String, Status> {
        Ok(match *call {
            Call::Kv(_) => unreachable!("answered above"),
            Call::Grant { id, ttl } => {
                let r = self
                    .lease
                    .lease_grant(LeaseGrantRequest { id, ttl })
                    .await?
                    .into_inner();
                text((stripped(r.header), r.id, r.ttl, r.error))
            }
            Call::GrantAny { ttl } => {
                let grant = LeaseGrantRequest { id: 0, ttl };
                let r = self.lease.lease_grant(grant).await?.into_inner();
                self.lease.lease_revoke(LeaseRevokeRequest { id: r.id }).await?;
                text((stripped(r.header), r.id > 0, r.ttl))
            }
            Call::Revoke(id) => {
                let r = self
                    .lease
                    .lease_revoke(LeaseRevokeRequest { id })
                    .await?
                    .into_inner();
                self.revision = self.revision.max(stripped(r.header));
                text(stripped(r.header))
            }
            Call::TimeToLive { id, keys } => {
                let request = LeaseTimeToLiveRequest { id, keys };
                let mut r = self.lease.lease_time_to_live(request).await?.into_inner();
                r.keys.sort_unstable();
                let fresh = r.granted_ttl - r.ttl <= TTL_SLACK;
                text((
                    stripped(r.header),
                    r.id,
                    r.ttl < 0 || fresh,
                    r.granted_ttl,
                    r.keys,
                ))
            }
            Call::Leases => {
                let r = self.lease.lease_leases(LeaseLeasesRequest {}).await?.into_inner();
                let mut ids: Vec<i64> = r.leases.iter().map(|lease| lease.id).collect();
                ids.sort_unstable();
                text((stripped(r.header), ids))
            }
            Call::KeepAlive(id) => {
                let once = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
                let mut stream = self.lease.lease_keep_alive(once).await?.into_inner();
                let r = stream.message().await?.unwrap_or_default();
                text((stripped(r.header), r.id, r.ttl))
            }
            Call::HashKv(revision) => {
                let r = self
                    .maintenance
                    .hash_kv(HashKvRequest { revision })
                    .await?
                    .into_inner();
                text((stripped(r.header), r.compact_revision))
            }
            Call::Status => {
                let r = self.maintenance.status(StatusRequest {}).await?.into_inner();
                let leads = r
                    .header
                    .as_ref()
                    .is_some_and(|header| header.member_id == r.leader);
                let fits = r.db_size >= r.db_size_in_use;
                text((stripped(r.header), leads, fits, r.errors, r.is_learner))
            }
            Call::Defragment => {
                let r = self.maintenance.defragment(DefragmentRequest {}).await?;
                // etcd sends no header.
                text(r.into_inner().header.map(|_| ()))
            }
            Call::Alarm(request) => {
                let r = self.maintenance.alarm(request).await?.into_inner();
                // etcd 3.4 sends no header.
                text(r.alarms)
            }
            Call::Members { linearizable } => {
                let r = self
                    .cluster
                    .member_list(MemberListRequest { linearizable })
                    .await?
                    .into_inner();
                let learners: Vec<(bool, bool)> = r
                    .members
                    .iter()
                    .map(|member| (member.is_learner, member.name.is_empty()))
                    .collect();
                let mut learners = learners;
                learners.sort_unstable();
                text((stripped(r.header), learners))
            }
            Call::AddLearner(url) => {
                let request = MemberAddRequest {
                    peer_ur_ls: vec![url.to_string()],
                    is_learner: true,
                };
                let r = self.add_member(request).await?;
                let member = r.member.unwrap_or_default();
                self.learner = member.id;
                text((
                    stripped(r.header),
                    member.peer_ur_ls,
                    member.is_learner,
                    member.name,
                    r.members.len(),
                ))
            }
            Call::AddItself => {
                let list = self
                    .cluster
                    .member_list(MemberListRequest { linearizable: true })
                    .await?
                    .into_inner();
                let itself = list
                    .members
                    .into_iter()
                    .find(|member| !member.is_learner)
                    .unwrap_or_default();
                let request = MemberAddRequest {
                    peer_ur_ls: itself.peer_ur_ls,
                    is_learner: false,
                };
                text(self.cluster.member_add(request).await?.into_inner().members.len())
            }
            Call::PromoteLearner => {
                let request = MemberPromoteRequest { id: self.learner };
                text(
                    self.cluster
                        .member_promote(request)
                        .await?
                        .into_inner()
                        .members
                        .len(),
                )
            }
            Call::UpdateNobody(url) => {
                let request = MemberUpdateRequest {
                    id: 3,
                    peer_ur_ls: vec![url.to_string()],
                };
                text(
                    self.cluster
                        .member_update(request)
                        .await?
                        .into_inner()
                        .members
                        .len(),
                )
            }
            Call::RemoveLearner => {
                let request = MemberRemoveRequest { id: self.learner };
                text(
                    self.cluster
                        .member_remove(request)
                        .await?
                        .into_inner()
                        .members
                        .len(),
                )
            }
            Call::MoveLeader(target_id) => text(stripped(
                self.maintenance
                    .move_leader(MoveLeaderRequest { target_id })
                    .await?
                    .into_inner()
                    .header,
            )),
        })
    }
}

impl Server {
    /// etcd makes a member's id of its address and the time in seconds, and an id that was removed never comes back:
    /// within the second in which the same address was removed it answers that the member is not found.
    async fn add_member(&mut self, request: MemberAddRequest) -> Result<MemberAddResponse, Status> {
        let next_second = Instant::now() + Duration::from_secs(2);
        loop {
            match self.cluster.member_add(request.clone()).await {
                Err(status) if status.code() == Code::NotFound && Instant::now() < next_second => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                answer => return answer.map(tonic::Response::into_inner),
            }
        }
    }
}

fn is_nested(call: &Call) -> bool {
    let Call::Kv(Request::Txn(txn)) = call else {
        return false;
    };
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.any(|op| matches!(op.request, Some(Op::RequestTxn(_))))
}

/// etcd makes a member's id of its address and the time in seconds: one that is added twice within a second is refused
/// by its id, later by its address.
fn settle_refusal(mut refusal: Refusal) -> Refusal {
    if refusal.text == "etcdserver: member ID already exist" {
        refusal.text = "etcdserver: Peer URLs already exists".to_string();
    }
    refusal
}

/// The kind of a call, for the counts.
fn kind(call: &Call) -> String {
    let text = text(call);
    let end = text.find(['(', ' ']).unwrap_or(text.len());
    text[..end].to_string()
}

/// Makes calls.
struct Source {
    rng: StdRng,
    kv: Generator,
    compacted: i64,
}

impl Source {
    fn near(&self, revision: i64) -> Near {
        Near {
            revision,
            compacted: self.compacted,
        }
    }

    fn kv(&mut self, revision: i64) -> Call {
        loop {
            let request = self.kv.request(self.near(revision));
            if excluded(&request).is_none() {
                return Call::Kv(request);
            }
        }
    }

    fn lease(&mut self) -> i64 {
        *LEASES.choose(&mut self.rng).expect("not empty")
    }

    fn call(&mut self, revision: i64) -> Call {
        match self.rng.random_range(0..100) {
            0..14 => self.lease_call(),
            14..16 => Call::HashKv(self.hash_revision(revision)),
            16 => Call::Members {
                linearizable: self.rng.random(),
            },
            17 => self.member_call(),
            18 => Call::MoveLeader(self.rng.random_range(0..3)),
            19 => self.maintenance_call(),
            _ => self.kv(revision),
        }
    }

    fn lease_call(&mut self) -> Call {
        let id = self.lease();
        match self.rng.random_range(0..14) {
            0..4 => Call::Grant {
                id,
                ttl: *TTLS.choose(&mut self.rng).expect("not empty"),
            },
            4 => Call::GrantAny {
                ttl: *ANY_TTLS.choose(&mut self.rng).expect("not empty"),
            },
            5..8 => Call::Revoke(id),
            8..11 => Call::TimeToLive {
                id,
                keys: self.rng.random(),
            },
            11 => Call::Leases,
            _ => Call::KeepAlive(id),
        }
    }

    fn maintenance_call(&mut self) -> Call {
        match self.rng.random_range(0..8) {
            0 => Call::Defragment,
            _ => Call::Status,
        }
    }

    fn member_call(&mut self) -> Call {
        match self.rng.random_range(0..8) {
            0 | 1 => Call::AddLearner(NOBODY),
            2 => Call::AddLearner("http://no-port"),
            3 => Call::AddItself,
            4 => Call::PromoteLearner,
            5 => Call::UpdateNobody(NOBODY),
            _ => Call::RemoveLearner,
        }
    }

    /// Not the compacted one: etcd before 3.5.6 refuses it, later ones and we hash it.
    fn hash_revision(&mut self, revision: i64) -> i64 {
        match self.rng.random_range(0..6) {
            1 => revision + 1,
            2 => self.compacted - 1,
            3..6 if revision > self.compacted => self.rng.random_range(self.compacted + 1..=revision),
            _ => 0,
        }
    }

    fn watch(&mut self, revision: i64) -> WatchCreateRequest {
        let (key, range_end) = self.kv.span();
        let start_revision = match self.rng.random_range(0..8) {
            0..3 => 0,
            3 => revision + self.rng.random_range(1..4),
            // Not negative: etcd before 3.6 takes that for the oldest there is, later ones and we refuse it.
            4 => (self.compacted - 1).max(0),
            // Nor the compacted one: etcd tells of the deletions there only until it has cleaned up.
            _ if self.compacted < revision => self.rng.random_range(self.compacted + 1..=revision),
            _ => 0,
        };
        let filters = match self.rng.random_range(0..6) {
            0 => vec![0],
            1 => vec![1],
            _ => vec![],
        };
        WatchCreateRequest {
            key,
            range_end,
            start_revision,
            prev_kv: self.rng.random(),
            fragment: self.rng.random(),
            progress_notify: false,
            watch_id: *[0, 0, 5].choose(&mut self.rng).expect("not empty"),
            filters,
        }
    }
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
