//! The replication shell: openraft, our log and our state machine, joined. The only place that names openraft.
//!
//! What we ask of openraft, and why (each was shown to be needed by an experiment, see docs/architecture.md):
//!
//! * `enable_leader_restore: false`. A leader may commit through its followers before its own disk has the entry.
//!   If it then loses power and resumes its old term, it hands out the same log id twice, and members diverge.
//! * pre-vote on: a member that was cut off must not depose a healthy leader when it returns.
//! * quorum-loss probe on: breaks a deadlock of partly cut clusters.
//! * no lease reads: a restarted voter starts with no lease and would let a new leader in while the old one
//!   still trusts its own.
//! * our own encodings on disk and wire ([`entry`]).
//!
//! Files: [`entry`] encodings · [`proposals`] into the log · [`log_store`] log · [`state_machine`] apply · [`pace`] how fast · [`saving`] behind it,
//! with [`restraint`] · [`feed`] what was applied, for watchers · [`fates`] the same, for whoever handed it to a leader,
//! and [`forwarded`] what that leader says · [`snapshot`] snapshot files, [`due`] when · [`network`] to peers, by
//! [`channel`]s, [`telling`] them what is committed · [`peer`] from peers · [`traffic`] both, counted · [`contact`] who answers · [`links`], [`ballots`],
//! [`observer`] what the journal is told · [`figures`] for whoever looks · [`membership`] one change at a time ·
//! [`awakening`] after a start · [`recover`] a survivor alone · [`restored`] a cluster that begins with a backup · [`open`] what is on disk, continued
//! or rebuilt · [`replica`] all of it, opened and running.

mod awakening;
mod ballots;
mod channel;
mod contact;
mod due;
pub mod entry;
pub mod fates;
pub mod feed;
pub mod figures;
mod forwarded;
pub mod identity;
mod links;
pub mod log_store;
pub mod membership;
pub mod network;
mod observer;
mod open;
mod pace;
pub mod peer;
pub mod proposals;
pub mod read_index;
pub mod recover;
pub mod replica;
pub mod restored;
mod restraint;
pub mod saving;
pub mod snapshot;
pub mod state_machine;
mod telling;
#[cfg(test)]
mod tests;
pub mod traffic;

use std::time::Duration;

use openraft::SnapshotPolicy;

pub use entry::{CommandBytes, Entry, LogId, Node, Role, StoredMembership, Vote};

use crate::error::Error;
use crate::pb::pontoon::command::reply::Response;

/// What apply answers to the proposer of an entry.
#[derive(Debug, Clone)]
pub struct Reply(pub Result<Response, Error>);

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Ok(_) => f.write_str("done"),
            Err(error) => write!(f, "refused: {error}"),
        }
    }
}

openraft::declare_raft_types!(
    /// The types that openraft works on.
    pub Types:
        D = CommandBytes,
        R = Reply,
        NodeId = u64,
        Node = Node,
        Entry = Entry,
);

/// openraft's handle, over our types.
pub type Raft = openraft::Raft<Types, state_machine::StateMachine>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
/// What a snapshot covers, and the file that holds it.
pub type Snapshot = openraft::type_config::alias::SnapshotOf<Types, snapshot::SnapshotFile>;

/// Raft's clocks, from etcd's two flags.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// `--heartbeat-interval`.
    pub heartbeat: Duration,
    /// `--election-timeout`: about how long a cluster is without a leader after one died.
    pub election: Duration,
}

impl Timing {
    /// How long a peer may be silent with requests under way before its stream is given up and made anew.
    pub fn stream_idle(&self) -> Duration {
        (2 * self.election).max(Duration::from_secs(2))
    }

    /// openraft's settings. A follower waits `lease + random(min..max)` with `lease = max`, so with
    /// `min = 0.35 E` and `max = 0.55 E` it waits 0.9 E to 1.1 E for a leader that died, and who waits shortest is elected.
    pub fn config(&self) -> Result<openraft::Config, openraft::ConfigError> {
        let election = self.election.as_millis() as u64;
        let (min, max) = (election * 7 / 20, election * 11 / 20);
        openraft::Config {
            cluster_name: "pontoon".to_string(),
            heartbeat_interval: self.heartbeat.as_millis() as u64,
            election_timeout_min: min,
            election_timeout_max: max,
            enable_pre_vote: Some(true),
            enable_leader_restore: Some(false),
            quorum_loss_probe_interval: Some(2 * max),
            // Bytes are capped by the log reader.
            max_payload_entries: 4096,
            max_append_entries: Some(4096),
            state_machine_channel_size: Some(65_536),
            // Taken by bytes written, see `replica`.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 10_000,
            purge_batch_size: 1024,
            backoff: "50ms 100ms 200ms ...1s".to_string(),
            ..Default::default()
        }
        .validate()
    }
}
