//! A replica: log, state machine, network and openraft, opened together and running.
//!
//! This is the face that the server sees. It knows how to propose as the leader, how to ask the leader from a
//! follower, how far things are, and how to stop; it does not decide when to retry or whom to tell.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant as _;

use openraft::async_runtime::WatchReceiver;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::Instant;

use super::entry::{LeaderId, from_wire_log_id, leader_id, to_wire_vote};
use super::fates::Fates;
use super::feed::Feed;
use super::forwarded::Forwarded;
use super::identity::Identity;
use super::log_store::LogStore;
use super::network::{Network, Peers, Purpose, within};
use super::open::{open_state, open_wal};
use super::proposals::{Proposals, entry_of, fate_of};
use super::read_index::{ReadIndexError, Rounds};
use super::saving::{DefragmentError, Defragmenter, numbered_engines};
use super::snapshot::SnapshotStore;
use super::state_machine::{LeaseSink, Shell, StateMachine, TokenSink};
use super::telling;
use super::{LogId, Node, Raft, Reply, Timing, Types, Vote};
use crate::journal::{Event, Id};
use crate::metrics::Metrics;
use crate::pb::pontoon::peer;
use crate::state::{self, Defragmented, ReadError, Reader, SnapshotSource};
use crate::storage::fs::Fs;
use crate::storage::wal::{Wal, WalError};
use crate::tls::ClientTls;

/// How long a member that is behind is waited for before its checksum is given up.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Records of the journal that another member is sent at once.
pub const MOST_RECORDS: usize = 1000;
/// How long a handover of leadership may take before the member stops without one.
const TRANSFER_LIMIT: Duration = Duration::from_secs(2);

/// What must stop this member: a failed disk, corruption, a stopped Raft core. Cheap to clone.
#[derive(Clone)]
pub struct Failure {
    reason: Arc<watch::Sender<Option<String>>>,
}

impl Default for Failure {
    fn default() -> Self {
        Failure {
            reason: Arc::new(watch::channel(None).0),
        }
    }
}

impl Failure {
    /// Reports a failure; the first one is kept.
    pub fn report(&self, reason: String) {
        tracing::error!(%reason, "this member must stop");
        self.reason.send_if_modified(|first| {
            let new = first.is_none();
            first.get_or_insert(reason);
            new
        });
    }

    /// Waits for a failure.
    pub async fn wait(&self) -> String {
        let mut reason = self.reason.subscribe();
        match reason.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// How to open a replica.
pub struct Options {
    /// Directory of the log.
    pub wal_dir: PathBuf,
    /// Whether a log was there before.
    pub has_log: bool,
    /// Directory of snapshot files.
    pub snapshot_dir: PathBuf,
    /// Directory of the engine's directories.
    pub state_dir: PathBuf,
    /// The disk.
    pub fs: Arc<dyn Fs>,
    /// Whether the engine's contents may be continued from.
    pub trust_state: bool,
    /// Raft's clocks.
    pub timing: Timing,
    /// For peers at `https://`.
    pub peer_tls: Option<Arc<ClientTls>>,
    /// Peer URLs that are dialled elsewhere.
    pub detours: BTreeMap<String, String>,
    /// Take a snapshot after so many entries too; 0: by bytes only.
    pub snapshot_count: u64,
    /// Memory for the engine's own cache, in bytes.
    pub engine_cache: u64,
    /// Who this member is.
    pub identity: Arc<Identity>,
    /// The lease clock.
    pub lease_sink: LeaseSink,
    /// Told of tokens as they are applied, before anybody is answered.
    pub token_sink: TokenSink,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Why a replica does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log can't be read, or must not be.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The applied state could not be rebuilt.
    #[error("cannot rebuild the applied state: {0}")]
    State(String),
    /// Timing that openraft refuses.
    #[error("--heartbeat-interval and --election-timeout: {0}")]
    Timing(String),
    /// openraft did not start.
    #[error("raft did not start: {0}")]
    Raft(String),
}

/// Why a proposal has no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProposeError {
    /// Certainly not in any log: it may be proposed again, to the leader given if there is one.
    NotProposed(String),
    /// It may or may not be committed.
    Unknown(String),
}

/// What a member has at a revision, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// The checksum.
    pub hash: u32,
    /// What is below this revision has no part in it; −1 before any compaction.
    pub compacted: i64,
    /// The revision.
    pub revision: i64,
}

/// How far this member is, for status and readiness.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The leader that this member knows of.
    pub leader: Option<u64>,
    /// Raft's term.
    pub term: u64,
    /// Index of the last entry in the log.
    pub last_index: u64,
    /// Index of the last committed entry.
    pub committed: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Whether this member has no vote.
    pub is_learner: bool,
    /// Whether this member is in the membership at all.
    pub is_member: bool,
}

/// A running replica. Cheap to clone.
#[derive(Clone)]
pub struct Replica {
    inner: Arc<Inner>,
}

struct Inner {
    raft: Raft,
    wal: Wal,
    log: LogStore,
    peers: Arc<Peers>,
    identity: Arc<Identity>,
    snapshots: Arc<SnapshotStore>,
    reader: Reader,
    applied: watch::Receiver<u64>,
    members: watch::Receiver<()>,
    feed: Feed,
    fates: Arc<Fates>,
    proposals: Proposals,
    rounds: Rounds,
    defragmenter: Defragmenter,
    failure: Failure,
    metrics: Arc<Metrics>,
    timing: Timing,
    /// When a leader last called.
    heard: std::sync::Mutex<Option<Instant>>,
    state_closed: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Replica {
    /// Opens what is on disk and starts Raft on it. An empty log starts a member that waits to be contacted.
    pub async fn open(options: Options) -> Result<Replica, OpenError> {
        let failure = Failure::default();
        let wal = open_wal(&options, &failure)?;
        let snapshots = Arc::new(SnapshotStore::open(options.fs.clone(), &options.snapshot_dir)?);
        let log = LogStore::new(wal.clone());
        let snapshot_at = snapshots.current().and_then(|snapshot| snapshot.meta.last_log_id);
        if let Some(at) = &snapshot_at {
            log.agree_with(at)?;
        }
        let defragmenter = Defragmenter::new(
            &options.state_dir,
            numbered_engines(&options.state_dir, options.engine_cache),
        );
        let (state, mark) = open_state(&options, &log, &snapshots, &defragmenter)?;
        let reader = state.reader();
        let (applied_tx, applied) = watch::channel(0);
        let (members_tx, members) = watch::channel(());
        let (closed_tx, closed) = oneshot::channel();
        let feed = Feed::default();
        let fates = Arc::new(Fates::default());
        let shell = Shell {
            snapshots: snapshots.clone(),
            defragmenter: defragmenter.clone(),
            options: state::Options::default(),
            lease_sink: options.lease_sink.clone(),
            applied: applied_tx,
            members: members_tx,
            feed: feed.clone(),
            fates: fates.clone(),
            failure: failure.clone(),
            metrics: options.metrics.clone(),
            token_sink: options.token_sink.clone(),
            closed: closed_tx,
        };
        let machine = StateMachine::new(state, mark, shell);
        let peers = Peers::new(
            options.identity.clone(),
            options.timing,
            options.peer_tls.clone(),
            options.metrics.clone(),
        );
        let peers = Arc::new(peers.with_detours(options.detours.clone()));
        let config = options
            .timing
            .config()
            .map_err(|error| OpenError::Timing(error.to_string()))?;
        let raft = Raft::new(
            options.identity.member_id(),
            Arc::new(config),
            Network::new(peers.clone()),
            log.clone(),
            machine,
        )
        .await
        .map_err(|error| OpenError::Raft(error.to_string()))?;
        let proposals = Proposals::start(raft.clone());
        let rounds = Rounds::start(raft.clone(), peers.clone(), options.timing.election / 2);
        tokio::spawn(watch_core(raft.clone(), failure.clone()));
        tokio::spawn(super::due::take_snapshots(
            raft.clone(),
            wal.clone(),
            snapshots.clone(),
            options.snapshot_count,
        ));
        let inner = Inner {
            raft,
            wal,
            log,
            peers,
            identity: options.identity,
            snapshots,
            reader,
            applied,
            members,
            feed,
            fates,
            proposals,
            rounds,
            defragmenter,
            failure,
            metrics: options.metrics,
            timing: options.timing,
            heard: std::sync::Mutex::default(),
            state_closed: Mutex::new(Some(closed)),
        };
        let replica = Replica {
            inner: Arc::new(inner),
        };
        tokio::spawn(super::observer::run(replica.clone()));
        tokio::spawn(super::awakening::run(replica.clone()));
        Ok(replica)
    }

    /// openraft's handle, for the peer service.
    pub fn raft(&self) -> &Raft {
        &self.inner.raft
    }

    /// Who this member is.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.inner.identity
    }

    /// Connections to the others.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.inner.peers
    }

    /// A snapshot of `from` came, or did not, in so long.
    pub fn tell_received(
        &self,
        from: u64,
        head: &peer::SnapshotHead,
        failed: Option<&tonic::Status>,
        took: Duration,
    ) {
        self.metrics().journal.record(Event::SnapshotReceived {
            from: Id(from),
            upto: head.last.map_or(0, |last| from_wire_log_id(last).index),
            bytes: head.size,
            took_ms: took.as_millis() as u64,
            why: failed.map(super::links::cause),
        });
        let arrived = failed.is_none();
        if arrived {
            self.metrics().snapshots_received.observe(took);
        }
        if let Some(exchange) = self.metrics().traffic.with(from) {
            exchange.snapshots_received.count(arrived, took);
        }
    }

    /// Snapshot files.
    pub fn snapshots(&self) -> &Arc<SnapshotStore> {
        &self.inner.snapshots
    }

    /// The log.
    pub fn log(&self) -> &LogStore {
        &self.inner.log
    }

    /// Reads of the applied state.
    pub fn reader(&self) -> &Reader {
        &self.inner.reader
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    /// What must stop this member.
    pub fn failure(&self) -> &Failure {
        &self.inner.failure
    }

    /// Gives the space that the applied state does not use back to the disk, while it is used.
    pub async fn defragment(&self) -> Result<Defragmented, DefragmentError> {
        let began = std::time::Instant::now();
        let done = self.inner.defragmenter.defragment().await?;
        self.metrics().defragmentations.observe(began.elapsed());
        Ok(done)
    }

    /// Whether that is under way, or waits for its turn.
    pub fn is_defragmenting(&self) -> bool {
        self.inner.defragmenter.is_wanted()
    }

    /// Checksum of all that is here at `revision`, or now, if that is 0. A member that is behind waits for a moment.
    pub async fn checksum(&self, revision: i64) -> Result<Checksum, String> {
        let reader = self.reader().clone();
        let mut applied = self.applied();
        let reached = async { while reader.revision() < revision && applied.changed().await.is_ok() {} };
        if tokio::time::timeout(CATCH_UP, reached).await.is_err() {
            return Err(format!("this member is not at revision {revision} yet"));
        }
        let began = std::time::Instant::now();
        let hashed = tokio::task::spawn_blocking(move || reader.hash_kv(revision)).await;
        self.metrics().revision_hashes.observe(began.elapsed());
        match hashed.map_err(|error| error.to_string())? {
            Ok((hash, compacted, revision)) => Ok(Checksum {
                hash,
                compacted,
                revision,
            }),
            Err(ReadError::Refused(error)) => Err(error.to_string()),
            Err(ReadError::Local(error)) => {
                self.failure()
                    .report(format!("cannot read the applied state: {error}"));
                Err(error.to_string())
            }
        }
    }

    /// Asks another member for its checksum at `revision`.
    pub async fn ask_checksum(
        &self,
        id: u64,
        node: &Node,
        revision: i64,
        limit: Duration,
    ) -> Result<Checksum, tonic::Status> {
        let request = peer::ChecksumRequest {
            target: Some(self.inner.peers.target(id)),
            revision,
        };
        let mut client = self.inner.peers.client(id, node, Purpose::Control)?;
        let reply = within(limit, client.checksum(request)).await?;
        Ok(Checksum {
            hash: reply.hash,
            compacted: reply.compacted,
            revision,
        })
    }

    /// Raft's clocks.
    pub fn timing(&self) -> Timing {
        self.inner.timing
    }

    /// Proposes an encoded command and waits until it is applied here. Only the leader can.
    pub async fn propose(&self, command: Bytes) -> Result<Reply, ProposeError> {
        // Named as it is for those that others forward: openraft appends together only what names the same.
        let leader = self.leader_id();
        fate_of(self.inner.proposals.propose(leader, command).await).await
    }

    /// Proposes what another member forwarded, in the term that it names; 0: in whichever. An answer for each, in their
    /// order, and the last entry that one of them is in.
    pub(super) async fn propose_forwarded(
        &self,
        term: u64,
        commands: Vec<Bytes>,
    ) -> (Vec<Forwarded>, Option<LogId>) {
        let leader = (term > 0).then(|| leader_id(term, self.inner.identity.member_id()));
        let mut proposed = Vec::with_capacity(commands.len());
        for command in commands {
            proposed.push(self.inner.proposals.propose(leader, command).await);
        }
        let (mut answers, mut committed) = (Vec::with_capacity(proposed.len()), None);
        for proposed in proposed {
            let fate = entry_of(proposed).await.map(|(entry, reply)| {
                committed = committed.max(Some(entry));
                reply
            });
            answers.push(Forwarded(fate));
        }
        (answers, committed)
    }

    /// Hands commands to the leader, in one request, to be proposed by it as this leader. An error counts for every one
    /// of them.
    pub async fn forward(
        &self,
        leader: LeaderId,
        node: &Node,
        commands: Vec<Bytes>,
        limit: Duration,
    ) -> Result<Vec<Result<Reply, ProposeError>>, ProposeError> {
        let request = peer::ForwardRequest {
            target: Some(self.inner.peers.target(leader.node_id)),
            commands,
            term: leader.term,
        };
        let mut client = self
            .inner
            .peers
            .client(leader.node_id, node, Purpose::Forward)
            .map_err(|status| ProposeError::NotProposed(status.to_string()))?;
        match tokio::time::timeout(limit, client.forward(request)).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                self.hear(reply.committed.map(from_wire_log_id));
                Ok(reply.results.into_iter().map(Forwarded::from_wire).collect())
            }
            Ok(Err(status)) if never_sent(&status) => Err(ProposeError::NotProposed(status.to_string())),
            Ok(Err(status)) => Err(ProposeError::Unknown(status.to_string())),
            Err(_) => Err(ProposeError::Unknown(
                "the leader did not answer in time".to_string(),
            )),
        }
    }

    /// The index that a linearizable read which begins now must see applied. Only the leader knows.
    pub async fn read_index(&self) -> Result<LogId, ReadIndexError> {
        self.inner.rounds.read_index().await
    }

    /// The same, for another member, which told the vote that it held when it asked.
    pub async fn read_index_for(&self, asker: (u64, Option<Vote>)) -> Result<LogId, ReadIndexError> {
        self.inner.rounds.read_index_for(asker).await
    }

    /// A leader said, in an answer, that entries up to this one are committed.
    fn hear(&self, committed: Option<LogId>) {
        let applied = *self.inner.applied.borrow();
        if let Some(committed) = committed.filter(|committed| committed.index > applied) {
            telling::hear(&self.inner.raft, committed);
        }
    }

    /// The vote that this member holds, be it on disk yet or not.
    pub fn vote(&self) -> io::Result<Option<Vote>> {
        self.inner.log.vote()
    }

    /// Hands a change of the membership to the leader.
    pub async fn forward_change(
        &self,
        leader: u64,
        node: &Node,
        change: peer::change_members_request::Change,
        limit: Duration,
    ) -> Result<peer::ChangeMembersReply, ProposeError> {
        let request = peer::ChangeMembersRequest {
            target: Some(self.inner.peers.target(leader)),
            change: Some(change),
        };
        let sent = async {
            let mut client = self.inner.peers.client(leader, node, Purpose::Forward)?;
            within(limit, client.change_members(request)).await
        };
        sent.await.map_err(|status| match never_sent(&status) {
            true => ProposeError::NotProposed(status.to_string()),
            false => ProposeError::Unknown(status.to_string()),
        })
    }

    /// Asks the leader for the same.
    pub async fn ask_read_index(
        &self,
        leader: u64,
        node: &Node,
        limit: Duration,
    ) -> Result<u64, tonic::Status> {
        use peer::read_index_reply::Result as Wire;
        let request = peer::ReadIndexRequest {
            target: Some(self.inner.peers.target(leader)),
            asker: self.inner.identity.member_id(),
            vote: self.vote()?.as_ref().map(to_wire_vote),
        };
        let mut client = self.inner.peers.client(leader, node, Purpose::Control)?;
        match within(limit, client.read_index(request)).await?.result {
            Some(Wire::Index(log_id)) => {
                let log_id = from_wire_log_id(log_id);
                self.hear(Some(log_id));
                Ok(log_id.index)
            }
            Some(Wire::Refused(why)) => Err(tonic::Status::failed_precondition(why)),
            None => Err(tonic::Status::internal("read index reply without a result")),
        }
    }

    /// Asks another member how it stands, and for its records behind number `after` of its run `run`.
    pub async fn ask_figures(
        &self,
        id: u64,
        node: &Node,
        (run, after): (u64, u64),
        limit: Duration,
    ) -> Result<peer::LookReply, tonic::Status> {
        let request = peer::LookRequest {
            target: Some(self.inner.peers.target(id)),
            run,
            after,
        };
        let mut client = self.inner.peers.client(id, node, Purpose::Forward)?;
        within(limit, client.look(request)).await
    }

    /// The answer to that.
    pub fn answer_figures(&self, run: u64, after: u64) -> peer::LookReply {
        let journal = &self.metrics().journal;
        let after = if run == journal.run() { after } else { 0 };
        let records = journal.after(after, MOST_RECORDS);
        let json = |value: Result<Vec<u8>, _>| Bytes::from(value.unwrap_or_default());
        peer::LookReply {
            figures: json(serde_json::to_vec(&self.figures())),
            run: journal.run(),
            after: records.last().map_or(after, |record| record.seq),
            records: records
                .iter()
                .map(|record| json(serde_json::to_vec(record)))
                .collect(),
        }
    }

    /// Asks the leader's lease clock.
    pub async fn ask_lease_clock(
        &self,
        leader: u64,
        node: &Node,
        request: peer::LeaseClockRequest,
        limit: Duration,
    ) -> Result<peer::LeaseClockReply, tonic::Status> {
        let request = peer::LeaseClockRequest {
            target: Some(self.inner.peers.target(leader)),
            ..request
        };
        let mut client = self.inner.peers.client(leader, node, Purpose::Forward)?;
        within(limit, client.lease_clock(request)).await
    }

    /// The applied index, as it moves.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.inner.applied.clone()
    }

    /// Changes when the members' records may have: names, addresses, who is there.
    pub fn members_changed(&self) -> watch::Receiver<()> {
        self.inner.members.clone()
    }

    /// Everything as it is applied here now, with the last entry that is in it; entries go on being applied meanwhile.
    pub async fn backup(&self) -> Result<(SnapshotSource, Option<LogId>), String> {
        self.inner
            .raft
            .with_state_machine(|machine| {
                let backup = machine.backup();
                Box::pin(async { backup })
            })
            .await
            .map_err(|fatal| fatal.to_string())
    }

    /// What is applied, as it happens; for one listener.
    pub fn feed(&self) -> &Feed {
        &self.inner.feed
    }

    /// The leader that this member knows of, with its place in the membership.
    pub fn leader(&self) -> Option<(u64, Node)> {
        self.leadership().map(|(leader, node)| (leader.node_id, node))
    }

    /// The same, with its term.
    pub fn leadership(&self) -> Option<(LeaderId, Node)> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        metrics
            .membership_config
            .membership()
            .get_node(&leader)
            .map(|node| (leader_id(metrics.vote.leader_id.term, leader), node.clone()))
    }

    /// Who leads and since which term, as far as this member knows.
    fn leader_id(&self) -> Option<LeaderId> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        Some(leader_id(metrics.vote.leader_id.term, leader))
    }

    /// Waits until this member knows of a later leader than this one, or of a later vote.
    pub async fn overtaken(&self, leader: LeaderId) {
        let later = |vote: &Vote| vote.leader_id > leader;
        let mut metrics = self.inner.raft.server_metrics();
        // An error means that Raft stopped: then nobody leads.
        while !later(&metrics.borrow_and_update().vote) && metrics.changed().await.is_ok() {}
    }

    /// What becomes of commands that are handed to a leader.
    pub fn fates(&self) -> &Arc<Fates> {
        &self.inner.fates
    }

    /// Whether this member leads, as far as it knows.
    pub fn leads(&self) -> bool {
        let metrics = self.inner.raft.server_metrics();
        metrics.borrow_watched().current_leader == Some(self.inner.identity.member_id())
    }

    /// Raft's term.
    pub fn term(&self) -> u64 {
        self.inner
            .raft
            .server_metrics()
            .borrow_watched()
            .vote
            .leader_id
            .term
    }

    /// A leader called.
    pub fn heard_from_leader(&self) {
        *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago a leader called.
    fn heard_ago(&self) -> Option<Duration> {
        let heard = self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|at| at.elapsed())
    }

    /// Whether a leader called lately, or this member leads, be it cut off. Others ask at every read, so it takes no time.
    pub fn knows_leader(&self) -> bool {
        self.heard_ago()
            .is_some_and(|ago| ago < self.inner.timing.election)
            || self.leads()
    }

    /// Whether this member hears from its leader, or leads and hears from a majority. Raft still names a leader that
    /// is long gone, or from before a restart.
    pub fn is_in_touch(&self) -> bool {
        self.silence()
            .is_some_and(|silence| silence < self.inner.timing.election)
    }

    /// How long ago that was; none if it never was.
    pub fn silence(&self) -> Option<Duration> {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let me = self.inner.identity.member_id();
        match metrics.current_leader == Some(me) {
            true if metrics.membership_config.membership().voter_ids().eq([me]) => Some(Duration::ZERO),
            true => metrics.last_quorum_acked.map(|at| at.elapsed()),
            false => self.heard_ago(),
        }
    }

    /// Waits until something about Raft changes from now on: the leader, perhaps.
    pub async fn changed(&self) {
        next_change(self.inner.raft.server_metrics()).await;
    }

    /// How far this member is.
    pub fn status(&self) -> Status {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let me = self.inner.identity.member_id();
        let is_voter = membership.voter_ids().any(|id| id == me);
        Status {
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed: metrics.local_committed.map_or(0, |log_id| log_id.index),
            applied: metrics.last_applied.map_or(0, |log_id| log_id.index),
            is_learner: !is_voter,
            is_member: membership.get_node(&me).is_some(),
        }
    }

    /// Whether this member has no vote. Asked at every request, so nothing is copied.
    pub fn is_learner(&self) -> bool {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let sets = metrics.membership_config.membership().get_joint_config();
        !sets
            .iter()
            .any(|set| set.contains(&self.inner.identity.member_id()))
    }

    /// Founds a cluster of these members. Only on an empty log.
    pub async fn found(&self, members: BTreeMap<u64, Node>) -> Result<(), String> {
        self.inner
            .raft
            .initialize(members)
            .await
            .map_err(|error| error.to_string())
    }

    /// Whether this member's log or votes say that it belongs to a cluster.
    pub async fn is_initialized(&self) -> bool {
        self.inner.raft.is_initialized().await.unwrap_or(false)
    }

    /// Hands leadership over, if this member leads and somebody can take it.
    pub async fn hand_over(&self) {
        if !self.leads() {
            return;
        }
        let me = self.inner.identity.member_id();
        let standing = self.standing();
        let others = standing
            .matched
            .iter()
            .filter(|(id, _)| **id != me && standing.voters.contains(id));
        let Some((successor, _)) = others.max_by_key(|(_, matched)| **matched) else {
            return;
        };
        if !self.transfer_leader(*successor, TRANSFER_LIMIT).await {
            tracing::warn!("nobody took over in time");
        }
    }

    /// Asks a member to lead from now on; whether it, or at least another one, does within `limit`.
    pub async fn transfer_leader(&self, to: u64, limit: Duration) -> bool {
        let raft = &self.inner.raft;
        let me = self.inner.identity.member_id();
        self.metrics().journal.record(Event::HandingOver { to: Id(to) });
        if raft.trigger().transfer_leader(to).await.is_err() {
            return false;
        }
        let followed = raft
            .wait(Some(limit))
            .metrics(
                |metrics| match metrics.current_leader {
                    Some(leader) => leader != me,
                    // One that is no member any more does not hear who leads after it.
                    None => metrics.membership_config.membership().get_node(&me).is_none(),
                },
                "another member leads",
            )
            .await;
        followed.is_ok()
    }

    /// Stops Raft, saves the applied state and closes the log. Whether everything is on disk.
    pub async fn close(&self) -> io::Result<()> {
        self.inner.raft.shutdown().await.map_err(io::Error::other)?;
        if let Some(closed) = self.inner.state_closed.lock().await.take() {
            // The sender goes with the state machine, when it has saved everything.
            let _ = closed.await;
        }
        let wal = self.inner.wal.clone();
        tokio::task::spawn_blocking(move || wal.close())
            .await
            .map_err(io::Error::other)?
    }
}

/// Whether the request certainly never left this member.
fn never_sent(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::FailedPrecondition || crate::raft::network::is_connect_error(status)
}

/// Waits for the next change of what is watched. A new receiver has seen nothing: what changed before would be news to it,
/// and who waits in a loop would never rest.
pub(super) async fn next_change<T: Send + Sync>(mut watched: WatchReceiverOf<Types, T>) {
    drop(watched.borrow_and_update());
    // An error means that Raft stopped, which is a change too; `failure` tells.
    let _ = watched.changed().await;
}

/// Reports when openraft's core stops by itself: then its channels close.
pub(super) async fn watch_core(raft: Raft, failure: Failure) {
    // That of the server changes seldom; the others change with every entry.
    let mut changes = raft.server_metrics();
    while changes.changed().await.is_ok() {}
    let state = raft.metrics().borrow_watched().running_state.clone();
    match state {
        Err(openraft::errors::Fatal::Stopped) | Ok(()) => {}
        Err(fatal) => failure.report(format!("raft stopped: {fatal}")),
    }
}
