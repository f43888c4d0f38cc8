//! The parts of a member, each as the configuration wants it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use super::ENVELOPE;
use super::auth::Tokens;
use super::bootstrap::{Meeting, Waits};
use super::data_dir::DataDir;
use super::jwt::Jwt;
use super::members::Rules;
use super::propose::Limits;
use super::restore::Origin;
use super::space::Room;
use super::watches::{self, Watches};
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::pb::pontoon::command::SetMember;
use crate::raft::Timing;
use crate::raft::identity::Identity;
use crate::raft::peer::Introduction;
use crate::raft::replica::{Options, Replica};
use crate::raft::state_machine::LeaseSink;
use crate::storage::fs::Fs;
use crate::tls::ClientTls;

/// Memory for the engine's own cache.
const ENGINE_CACHE: u64 = 16 << 20;

pub(super) fn rules(config: &Config, timeout: Duration) -> Rules {
    Rules {
        strict: config.strict_reconfig_check,
        max_learners: config.max_learners,
        timeout,
    }
}

pub(super) fn timing(config: &Config) -> Timing {
    Timing {
        heartbeat: config.heartbeat_interval,
        election: config.election_timeout,
    }
}

pub(super) fn meeting(config: &Config, data_dir: &DataDir, waits: Waits) -> anyhow::Result<Meeting> {
    let introduction = introduction(config, data_dir);
    let restored = data_dir.restored();
    let existing_only = config.initial_cluster_existing || !config.join.is_empty();
    if let Some(origin) = data_dir
        .origin()
        .filter(|_| data_dir.cluster_id().ok() == Some(0))
    {
        check_restored(&origin, &introduction, existing_only, restored.is_some())?;
    }
    Ok(Meeting {
        introduction,
        members: config.initial_cluster.clone(),
        is_discovered: config.discovery.is_some(),
        peer_urls: config.initial_advertise_peer_urls.clone(),
        existing_only,
        founding_wait: config.founding_wait,
        join: config.join.clone(),
        restored,
        waits,
    })
}

/// A restored member founds the cluster that it was restored for, or none.
fn check_restored(
    origin: &Origin,
    me: &Introduction,
    existing_only: bool,
    is_there: bool,
) -> anyhow::Result<()> {
    if !is_there {
        bail!("--data-dir was restored from a backup, but restored.snapshot is gone: restore it again");
    }
    if existing_only {
        bail!(
            "--data-dir was restored for a new cluster: start it without --join and --initial-cluster-state existing, \
             or join with an empty directory"
        );
    }
    let is_for = |restored: &str, given: &str| restored.is_empty() || restored == given;
    if !is_for(&origin.initial_cluster, &me.initial_cluster) || !is_for(&origin.token, &me.token) {
        bail!(
            "--data-dir was restored with --initial-cluster {:?} and --initial-cluster-token {:?}: start it with the \
             same, or restore it again",
            origin.initial_cluster,
            origin.token
        );
    }
    Ok(())
}

pub(super) fn watches(config: &Config, replica: &Replica) -> Watches {
    let options = watches::hub::Options {
        progress_interval: config.watch_progress_notify_interval,
        fragment_bytes: config.max_request_bytes + ENVELOPE,
    };
    Watches::start(
        replica.reader().clone(),
        replica.feed().clone(),
        replica.failure().clone(),
        replica.metrics().clone(),
        options,
    )
}

pub(super) fn limits(config: &Config, timeout: Duration) -> Limits {
    Limits {
        request_bytes: config.max_request_bytes,
        txn_ops: config.max_txn_ops,
        in_flight: config.max_in_flight,
        timeout,
    }
}

pub(super) fn room(config: &Config) -> Room {
    Room {
        quota: config.quota_bytes,
        reserve: config.disk_reserve_bytes,
        data_dir: config.data_dir.clone(),
    }
}

/// What a replica is given of the server's.
pub(super) struct Parts {
    pub fs: Arc<dyn Fs>,
    pub tokens: Arc<Tokens>,
    pub lease_sink: LeaseSink,
    pub peer_tls: Option<Arc<ClientTls>>,
    pub metrics: Arc<Metrics>,
}

pub(super) async fn open(config: &Config, data_dir: &DataDir, parts: Parts) -> anyhow::Result<Replica> {
    let identity = Identity::new(
        data_dir.member_id()?,
        data_dir.cluster_id()?,
        Box::new(data_dir.persist_cluster_id()),
    );
    let options = Options {
        wal_dir: data_dir.join("wal"),
        has_log: data_dir.has_log(),
        snapshot_dir: data_dir.join("snapshots"),
        state_dir: data_dir.join("state"),
        fs: parts.fs,
        trust_state: data_dir.trust_state(),
        timing: timing(config),
        peer_tls: parts.peer_tls,
        detours: config.detours.clone(),
        snapshot_count: config.snapshot_count,
        engine_cache: ENGINE_CACHE,
        identity: Arc::new(identity),
        lease_sink: parts.lease_sink,
        token_sink: Arc::new(move |change| parts.tokens.take(change)),
        metrics: parts.metrics,
    };
    Replica::open(options)
        .await
        .with_context(|| format!("cannot open --data-dir {}", config.data_dir.display()))
}

/// `--auth-token`: simple tokens need nothing.
pub(super) fn jwt(config: &Config) -> anyhow::Result<Option<Arc<Jwt>>> {
    let options = config.auth_token.strip_prefix("jwt,");
    let jwt = options.map(Jwt::new).transpose();
    Ok(jwt.context("--auth-token")?.map(Arc::new))
}

fn introduction(config: &Config, data_dir: &DataDir) -> Introduction {
    Introduction {
        name: config.name.clone(),
        token: config.initial_cluster_token.clone(),
        initial_cluster: config::initial_cluster_text(&config.initial_cluster),
        restored: data_dir.origin().map(|origin| origin.hash).unwrap_or_default(),
    }
}

pub(super) fn own_record(config: &Config, id: u64) -> SetMember {
    SetMember {
        id,
        name: config.name.clone(),
        peer_urls: config.initial_advertise_peer_urls.clone(),
        client_urls: config.advertise_client_urls.clone(),
    }
}
