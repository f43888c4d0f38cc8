//! A cluster in one process: our log, state machine and snapshots on simulated disks, openraft between them, and a
//! network of function calls whose links can be cut. What no test with real processes can do: take the power away and
//! lose what was not synced, stall a disk, or hold one message back.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use prost::Message;
use tokio::sync::watch;

use super::{memory, shell};
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::pontoon::command::{Command, command::Op};
use crate::raft::fates::Fates;
use crate::raft::log_store::LogStore;
use crate::raft::open::rebuild;
use crate::raft::proposals::Proposals;
use crate::raft::read_index::{AskVote, Rounds};
use crate::raft::snapshot::{SnapshotFile, SnapshotStore};
use crate::raft::state_machine::StateMachine;
use crate::raft::{CommandBytes, LogId, Node, Raft, Snapshot, Timing, Types, Vote};
use crate::state::Reader;
use crate::storage::fs::{DiskOp, Fs, SimFs};
use crate::storage::wal::{Wal, WalOptions};

/// Waiting for a condition, on a machine that is busy with other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long one write may take before it counts as unknown.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Who is there, and which links are cut.
pub struct Network {
    peers: Mutex<BTreeMap<u64, Peer>>,
    cut: Mutex<BTreeSet<(u64, u64)>>,
    /// Answers to questions for votes wait while this is true.
    hold_questions: watch::Sender<bool>,
    /// Whether questions for votes cross links that are cut for everything else.
    questions_cross: AtomicBool,
    /// Whether appends don't tell how far entries are committed.
    keeps_commits_back: AtomicBool,
    /// Questions for votes that were asked.
    pub questions: watch::Sender<usize>,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            peers: Mutex::default(),
            cut: Mutex::default(),
            hold_questions: watch::channel(false).0,
            questions_cross: AtomicBool::default(),
            keeps_commits_back: AtomicBool::default(),
            questions: watch::channel(0).0,
        }
    }
}

impl Network {
    /// Cuts or mends the link between two members, both ways.
    pub fn link(&self, a: u64, b: u64, up: bool) {
        let mut cut = self.cut.lock().expect("sound");
        for link in [(a, b), (b, a)] {
            match up {
                true => cut.remove(&link),
                false => cut.insert(link),
            };
        }
    }

    /// Cuts what one member says to another, and not the answers to what it is told.
    pub fn silence(&self, from: u64, to: u64) {
        self.cut.lock().expect("sound").insert((from, to));
    }

    /// Whether one member is heard by another.
    pub fn is_heard(&self, from: u64, by: u64) -> bool {
        self.reach(from, by).is_ok()
    }

    pub fn mend(&self) {
        self.cut.lock().expect("sound").clear();
    }

    /// Lets questions for votes, and nothing else, cross links that are cut.
    pub fn let_questions_cross(&self, cross: bool) {
        self.questions_cross.store(cross, Ordering::Relaxed);
    }

    /// Makes appends tell nothing of what is committed, or tell it again.
    pub fn keep_commits_back(&self, keep: bool) {
        self.keeps_commits_back.store(keep, Ordering::Relaxed);
    }

    /// Who runs now.
    pub fn rafts(&self) -> Vec<Raft> {
        let peers = self.peers.lock().expect("sound");
        peers.values().map(|peer| peer.raft.clone()).collect()
    }

    /// Holds the questions for votes back, or lets them through.
    pub fn hold_questions(&self, hold: bool) {
        self.hold_questions.send_replace(hold);
    }

    fn reach(&self, from: u64, to: u64) -> Result<Peer, Unreachable<Types>> {
        if self.cut.lock().expect("sound").contains(&(from, to)) {
            return Err(Unreachable::from_string("the link is cut"));
        }
        let peers = self.peers.lock().expect("sound");
        peers
            .get(&to)
            .cloned()
            .ok_or_else(|| Unreachable::from_string("nobody is there"))
    }
}

/// What the network reaches of a member.
#[derive(Clone)]
struct Peer {
    raft: Raft,
    disk: SimFs,
    log: LogStore,
}

/// What one member sees of the network.
struct Links {
    network: Arc<Network>,
    me: u64,
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _: &Node) -> Link {
        Link {
            network: self.network.clone(),
            me: self.me,
            target,
        }
    }
}

struct Link {
    network: Arc<Network>,
    me: u64,
    target: u64,
}

impl Link {
    /// Makes the call, if the link is up before it and after it.
    async fn call<T, E: std::fmt::Display>(
        &self,
        call: impl AsyncFnOnce(Raft) -> Result<T, E>,
    ) -> Result<T, RPCError<Types>> {
        let Peer { raft, .. } = self.network.reach(self.me, self.target)?;
        let answer = call(raft).await;
        self.network.reach(self.target, self.me)?;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::from_string(error.to_string())))
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        mut request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        if self.network.keeps_commits_back.load(Ordering::Relaxed) {
            request.leader_commit = None;
        }
        self.call(async |raft| raft.append_entries(request).await).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(async |raft| raft.vote(request).await).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(async |raft| raft.pre_vote(request).await).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let unreachable = |error: String| StreamingError::Unreachable(Unreachable::from_string(error));
        let Peer { raft, disk, .. } = self.network.reach(self.me, self.target)?;
        let sent = snapshot
            .snapshot
            .copy_to(&(Arc::new(disk) as Arc<dyn Fs>), &received())
            .map_err(|error| unreachable(error.to_string()))?;
        let sent = Snapshot {
            snapshot: sent,
            ..snapshot
        };
        raft.install_full_snapshot(vote, sent)
            .await
            .map_err(|fatal| unreachable(fatal.to_string()))
    }
}

/// Snapshots on their way have a name of their own each.
fn received() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    PathBuf::from(format!("/received/{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Questions for votes go over the same links.
struct Questions(Links);

impl AskVote for Questions {
    async fn vote_of(&self, id: u64, _: &Node, _: Duration) -> Option<Vote> {
        let Links { network, me } = &self.0;
        network.questions.send_modify(|asked| *asked += 1);
        let mut held = network.hold_questions.subscribe();
        held.wait_for(|held| !held).await.ok()?;
        let peer = match network.questions_cross.load(Ordering::Relaxed) {
            true => network.peers.lock().expect("sound").get(&id)?.clone(),
            false => network.reach(*me, id).ok()?,
        };
        peer.log.vote().expect("readable")
    }
}

/// A member that runs.
pub struct Member {
    pub raft: Raft,
    pub reader: Reader,
    pub fates: Arc<Fates>,
    pub proposals: Proposals,
    pub disk: SimFs,
    pub rounds: Rounds,
    pub log: LogStore,
    wal: Wal,
}

/// Members 0, 1 and 2.
pub struct Cluster {
    pub members: Vec<Member>,
    pub network: Arc<Network>,
    timing: Timing,
    leader_restore: bool,
    elect: bool,
}

impl Cluster {
    /// A founded cluster that member 0 leads. Without `elect` nobody stands for election unless told to.
    pub async fn start(election: Duration, elect: bool, leader_restore: bool) -> Cluster {
        let timing = Timing {
            heartbeat: election / 10,
            election,
        };
        let mut cluster = Cluster {
            members: Vec::new(),
            network: Arc::default(),
            timing,
            leader_restore,
            elect,
        };
        for id in 0..3 {
            let disk = SimFs::default();
            disk.record();
            let member = cluster.open(id, disk).await;
            cluster.members.push(member);
        }
        let nodes: BTreeMap<u64, Node> = (0..3).map(|id| (id, Node::default())).collect();
        cluster.members[0].raft.initialize(nodes).await.expect("founded");
        cluster.elect(0).await;
        cluster
    }

    async fn open(&self, id: u64, disk: SimFs) -> Member {
        let fs: Arc<dyn Fs> = Arc::new(disk.clone());
        let options = WalOptions {
            segment_bytes: 1 << 14,
            log_id: id,
            ..WalOptions::default()
        };
        let wal = Wal::open(fs.clone(), &PathBuf::from("/wal"), options).expect("a sound log");
        let snapshots = SnapshotStore::open(fs, &PathBuf::from("/snapshots")).expect("sound snapshots");
        let log = LogStore::new(wal.clone());
        if let Some(at) = snapshots.current().and_then(|snapshot| snapshot.meta.last_log_id) {
            log.agree_with(&at).expect("readable");
        }
        let (state, mark) = rebuild(memory(), &snapshots).expect("rebuilt");
        let shell = shell(Arc::new(snapshots));
        let fates = shell.fates.clone();
        let machine = StateMachine::new(state, mark, shell);
        let reader = machine.reader();
        let mut config = self.timing.config().expect("sound");
        config.enable_leader_restore = Some(self.leader_restore);
        config.max_in_snapshot_log_to_keep = 3;
        let links = || Links {
            network: self.network.clone(),
            me: id,
        };
        let raft = Raft::new(id, Arc::new(config), links(), log.clone(), machine)
            .await
            .expect("raft starts");
        raft.runtime_config().elect(self.elect);
        let peer = Peer {
            raft: raft.clone(),
            disk: disk.clone(),
            log: log.clone(),
        };
        self.network.peers.lock().expect("sound").insert(id, peer);
        let rounds = Rounds::start(
            raft.clone(),
            Arc::new(Questions(links())),
            self.timing.election / 2,
        );
        Member {
            proposals: Proposals::start(raft.clone()),
            raft,
            reader,
            fates,
            disk,
            rounds,
            log,
            wal,
        }
    }

    /// Takes a member's power away: of what it had not synced, its disk keeps what `keeps` says. Starts it again.
    pub async fn lose_power(&mut self, id: u64, keeps: impl FnMut(&DiskOp) -> bool) {
        let member = &self.members[id as usize];
        self.network.peers.lock().expect("sound").remove(&id);
        let disk = member.disk.lose_power(keeps);
        // Its core stops as the disk answers no more.
        let _ = member.raft.shutdown().await;
        let _ = member.wal.close();
        let restarted = self.open(id, disk).await;
        self.members[id as usize] = restarted;
    }

    pub fn leads(&self, id: u64) -> bool {
        self.members[id as usize].raft.is_leader()
    }

    /// Has a member stand for election until it leads.
    pub async fn elect(&self, id: u64) {
        let end = Instant::now() + PATIENCE;
        while !self.leads(id) {
            assert!(Instant::now() < end, "member {id} is not elected");
            self.members[id as usize]
                .raft
                .trigger()
                .elect(false)
                .await
                .expect("it runs");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Puts through the member; where it was put, or why nobody knows whether it was.
    pub async fn put(&self, id: u64, key: &str) -> Result<LogId, String> {
        put(self.members[id as usize].raft.clone(), key.to_string()).await
    }

    /// Puts through the member, again and again until it is acknowledged.
    pub async fn must_put(&self, id: u64, key: &str) -> LogId {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.put(id, key).await {
                Ok(log_id) => return log_id,
                Err(why) => assert!(Instant::now() < end, "{key} is not acknowledged: {why}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Puts through whoever leads.
    pub async fn put_somewhere(&self, key: &str) -> LogId {
        self.put_elsewhere(u64::MAX, key).await
    }

    /// Puts through whoever leads, other than the member given.
    pub async fn put_elsewhere(&self, not: u64, key: &str) -> LogId {
        let end = Instant::now() + PATIENCE;
        loop {
            for id in (0..3).filter(|id| *id != not && self.leads(*id)) {
                if let Ok(log_id) = self.put(id, key).await {
                    return log_id;
                }
            }
            assert!(Instant::now() < end, "nobody acknowledges {key}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn applied(&self, id: u64) -> Option<LogId> {
        let metrics = self.members[id as usize].raft.metrics();
        metrics.borrow_watched().last_applied
    }

    /// Waits until every member applied that much.
    pub async fn all_applied(&self, index: u64) {
        for id in 0..3 {
            let what = format!("member {id} to apply {index}");
            until(&what, || self.applied(id).is_some_and(|at| at.index >= index)).await;
        }
    }

    pub fn holds(&self, id: u64, key: &str) -> bool {
        holds(&self.members[id as usize].reader, key)
    }

    /// A hash of everything that each member holds.
    pub fn hashes(&self) -> Vec<(u32, i64, i64)> {
        let hash = |member: &Member| member.reader.hash_kv(0).expect("readable");
        self.members.iter().map(hash).collect()
    }
}

pub fn holds(reader: &Reader, key: &str) -> bool {
    versions(reader, key) == 1
}

/// How often a key was put.
pub fn versions(reader: &Reader, key: &str) -> i64 {
    let request = RangeRequest {
        key: Bytes::from(key.to_string()),
        ..RangeRequest::default()
    };
    let found = reader.range(&request).expect("readable");
    found.kvs.first().map_or(0, |kv| kv.version)
}

pub async fn put(raft: Raft, key: String) -> Result<LogId, String> {
    let op = Op::Put(crate::pb::etcdserverpb::PutRequest {
        value: Bytes::from(key.clone()),
        key: Bytes::from(key),
        ..Default::default()
    });
    let command = Command {
        header: None,
        op: Some(op),
    };
    let write = raft.client_write(CommandBytes(command.encode_to_vec().into()));
    match tokio::time::timeout(WRITE_LIMIT, write).await {
        Ok(Ok(written)) => Ok(*written.log_id()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_string()),
    }
}
