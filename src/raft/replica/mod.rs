//! A replica: log, state machine, network and openraft, opened together and running.
//!
//! This is the face that the server sees. It knows how to propose as the leader, how to ask the leader from a
//! follower, how far things are, and how to stop; it does not decide when to retry or whom to tell.
//!
//! [`asking`] what members ask each other for · [`leadership`] who leads · [`checksum`] whether all have the same ·
//! [`failure`] what ends a member.

mod asking;
mod checksum;
mod failure;
mod leadership;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::Instant;

pub use self::asking::MOST_RECORDS;
pub use self::checksum::Checksum;
pub use self::failure::Failure;
pub(super) use self::failure::watch_core;
use super::fates::Fates;
use super::feed::Feed;
use super::identity::Identity;
use super::log_store::LogStore;
use super::network::{Network, Peers};
use super::open::{open_state, open_wal};
use super::proposals::{Proposals, fate_of};
use super::read_index::{ReadIndexError, Rounds};
use super::saving::{DefragmentError, Defragmenter, numbered_engines};
use super::snapshot::SnapshotStore;
use super::state_machine::{LeaseSink, Shell, StateMachine, TokenSink};
use super::{LogId, Node, Raft, Reply, Timing, Types, Vote};
use crate::metrics::Metrics;
use crate::state::{self, Defragmented, Reader, SnapshotSource};
use crate::storage::fs::Fs;
use crate::storage::wal::{Wal, WalError};
use crate::tls::ClientTls;

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

    /// The index that a linearizable read which begins now must see applied. Only the leader knows.
    pub async fn read_index(&self) -> Result<LogId, ReadIndexError> {
        self.inner.rounds.read_index().await
    }

    /// The same, for another member, which told the vote that it held when it asked.
    pub async fn read_index_for(&self, asker: (u64, Option<Vote>)) -> Result<LogId, ReadIndexError> {
        self.inner.rounds.read_index_for(asker).await
    }

    /// The vote that this member holds, be it on disk yet or not.
    pub fn vote(&self) -> io::Result<Option<Vote>> {
        self.inner.log.vote()
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

    /// What becomes of commands that are handed to a leader.
    pub fn fates(&self) -> &Arc<Fates> {
        &self.inner.fates
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

/// Waits for the next change of what is watched. A new receiver has seen nothing: what changed before would be news to it,
/// and who waits in a loop would never rest.
pub(super) async fn next_change<T: Send + Sync>(mut watched: WatchReceiverOf<Types, T>) {
    drop(watched.borrow_and_update());
    // An error means that Raft stopped, which is a change too; `failure` tells.
    let _ = watched.changed().await;
}
