//! Appends as a follower takes them from a stream.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;

use super::cluster::Cluster;
use crate::pb::pontoon::peer::{AppendReply, AppendRequest, append_reply};
use crate::raft::LogId;
use crate::raft::entry::{to_wire_log_id, to_wire_vote};
use crate::raft::peer::take;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_tells_of_a_commit_is_answered_if_it_is_refused() {
    let cluster = Cluster::start(Duration::from_millis(500), false, false).await;
    let last = cluster.must_put(0, "warm").await;
    cluster.all_applied(last.index).await;
    let vote = cluster.members[0].raft.server_metrics().borrow_watched().vote;
    let taken = async |quiet: bool, prev: LogId| -> Option<append_reply::Result> {
        let request = AppendRequest {
            vote: Some(to_wire_vote(&vote)),
            prev: Some(to_wire_log_id(&prev)),
            quiet,
            ..AppendRequest::default()
        };
        let raft = cluster.members[1].raft.clone();
        let reply: Option<AppendReply> = take(raft, request).await.expect("it runs");
        reply.map(|reply| reply.result.expect("one that says something"))
    };
    use append_reply::Result::{Appended, Conflict};
    assert!(matches!(taken(false, last).await, Some(Appended(_))));
    assert!(taken(true, last).await.is_none());
    let ahead = LogId {
        index: last.index + 10,
        ..last
    };
    assert!(matches!(taken(true, ahead).await, Some(Conflict(_))));
}
