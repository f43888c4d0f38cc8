//! openraft's core that stops by itself leaves a member that answers nothing and does not end. So it stops the member.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;

use crate::raft::identity::Identity;
use crate::raft::replica::{Options, ProposeError, Replica, watch_core};
use crate::raft::{Node, Timing};
use crate::storage::fs::SimFs;

/// How long the failure may take to be told, on a machine that is busy with other things too.
const PATIENCE: Duration = Duration::from_secs(60);
const ME: u64 = 1;

/// A member that leads a cluster of its own.
async fn alone(dir: &Path) -> Replica {
    let options = Options {
        wal_dir: "/wal".into(),
        has_log: false,
        snapshot_dir: "/snapshots".into(),
        state_dir: dir.join("state"),
        fs: Arc::new(SimFs::default()),
        trust_state: true,
        timing: Timing {
            heartbeat: Duration::from_millis(50),
            election: Duration::from_millis(500),
        },
        peer_tls: None,
        detours: BTreeMap::new(),
        snapshot_count: 0,
        engine_cache: 1 << 20,
        identity: Arc::new(Identity::new(ME, 1, Box::new(|_| Ok(())))),
        lease_sink: Arc::new(|_| {}),
        token_sink: Arc::new(|_| {}),
        metrics: Arc::default(),
    };
    let replica = Replica::open(options).await.expect("opened");
    let members = BTreeMap::from([(ME, Node::default())]);
    replica.found(members).await.expect("founded");
    super::cluster::until("it to lead", || replica.leads()).await;
    replica
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_be_applied_stops_the_member() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let replica = alone(dir.path()).await;
    let answer = replica.propose(Bytes::from_static(b"no command")).await;
    assert!(
        matches!(answer, Err(ProposeError::Unknown(_))),
        "whether it is made must not be told: {answer:?}"
    );
    let failure = tokio::time::timeout(PATIENCE, replica.failure().wait()).await;
    let why = failure.expect("it is told");
    assert!(why.starts_with("raft stopped: "), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_stopped_has_not_failed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let replica = alone(dir.path()).await;
    replica.close().await.expect("closed");
    // As the task that watches over it does, here to its end.
    watch_core(replica.raft().clone(), replica.failure().clone()).await;
    assert_eq!(replica.failure().wait().now_or_never(), None);
}
