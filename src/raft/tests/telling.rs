//! What a follower commits by a leader's answer, where nothing else tells it ([`crate::raft::telling`]).

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;

use super::cluster::{Cluster, until};
use crate::raft::LogId;
use crate::raft::telling::hear;

const ELECTION: Duration = Duration::from_millis(500);

/// Led by 0, which does not tell followers any more how far its log is committed.
async fn untold() -> Cluster {
    let cluster = Cluster::start(ELECTION, false, false).await;
    let warm = cluster.must_put(0, "warm").await;
    cluster.all_applied(warm.index).await;
    cluster.network.keep_commits_back(true);
    cluster
}

fn last_index(cluster: &Cluster, id: u64) -> Option<u64> {
    let metrics = cluster.members[id as usize].raft.metrics();
    metrics.borrow_watched().last_log_index
}

async fn applies(cluster: &Cluster, id: u64, entry: LogId) {
    until("it to be applied", || cluster.applied(id) >= Some(entry)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_says_is_committed_is_applied() {
    let cluster = untold().await;
    let first = cluster.must_put(0, "first").await;
    let second = cluster.must_put(0, "second").await;
    until("its entries", || last_index(&cluster, 2) == Some(second.index)).await;
    assert!(cluster.applied(2) < Some(first), "nobody told it");
    hear(&cluster.members[2].raft, first);
    applies(&cluster, 2, first).await;
    assert_eq!(cluster.applied(2), Some(first), "not what stands behind it");
    assert_eq!(last_index(&cluster, 2), Some(second.index));
    hear(&cluster.members[2].raft, second);
    applies(&cluster, 2, second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_here_yet_is_applied_once_it_is() {
    let cluster = untold().await;
    cluster.network.link(0, 2, false);
    let entry = cluster.must_put(0, "entry").await;
    hear(&cluster.members[2].raft, entry);
    cluster.network.link(0, 2, true);
    applies(&cluster, 2, entry).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_leaders_late_word_changes_nothing() {
    let cluster = untold().await;
    let former = cluster.must_put(0, "former").await;
    cluster.network.keep_commits_back(false);
    cluster.elect(1).await;
    let new = cluster.must_put(1, "new").await;
    cluster.all_applied(new.index).await;
    let vote = || cluster.members[2].raft.server_metrics().borrow_watched().vote;
    let before = vote();
    hear(&cluster.members[2].raft, former);
    let last = cluster.must_put(1, "last").await;
    cluster.all_applied(last.index).await;
    assert_eq!(vote(), before);
    assert!(["former", "new", "last"].iter().all(|key| cluster.holds(2, key)));
}
