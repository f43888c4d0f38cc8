//! After a start: who finds that a majority is up, and that nobody in it knows a leader, asks for votes without waiting.
//!
//! A member that starts hears from no leader, and by its timer alone would wait for half of the election timeout first.
//! Where all of a cluster starts again, that is much of what it takes until it answers. So for as long as the timer would have it
//! wait, the member looks at the others:
//!
//! ```text
//! m1  ···starts····|look|look·············|look| pause  asks for votes ─► leads
//! m2  ···starts··········|look|look|   pause        votes
//! m3  ···starts··················                   (not up yet)
//! ```
//!
//! **It disturbs nobody.** One that knows a leader says so, and then all is as without this. And what is asked first is the
//! pre-vote, which voters refuse while they hear from a leader (Raft thesis §9.6).
//!
//! **Members mostly start together,** and candidates that ask at the same time share the votes. So each pauses first, for
//! a random part of the heartbeat interval, which is about what a message takes in the slowest of networks.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::time::{sleep, timeout};

use super::Node;
use super::network::{Purpose, within};
use super::read_index::is_quorum;
use super::replica::Replica;
use crate::pb::pontoon::peer::ConfirmVoteRequest;

/// Between two looks at the others.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until a leader is known, or until the timer has taken over.
pub async fn run(replica: Replica) {
    let _ = timeout(replica.timing().election, awaken(&replica)).await;
}

async fn awaken(replica: &Replica) {
    let heartbeat = replica.timing().heartbeat;
    while !replica.knows_leader() {
        if !is_leaderless(replica).await {
            sleep(LOOK).await;
            continue;
        }
        sleep(heartbeat.mul_f64(rand::random())).await;
        if follows_nobody(replica) {
            tracing::debug!("a majority is up, and knows no leader: asking for votes");
            // An error means that Raft stopped, which `failure` tells.
            let _ = replica.raft().trigger().elect(true).await;
        }
        sleep(heartbeat).await;
    }
}

/// Whether no leader is known, and this member is not asking for votes already.
fn follows_nobody(replica: &Replica) -> bool {
    let state = replica.raft().server_metrics().borrow_watched().state;
    state == ServerState::Follower && !replica.knows_leader()
}

/// Whether a majority of each voter set is up, this member with them, and none of those who said so first knows a leader.
async fn is_leaderless(replica: &Replica) -> bool {
    let me = replica.identity().member_id();
    let metrics = replica.raft().server_metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    let voters: Vec<BTreeSet<u64>> = membership.get_joint_config().to_vec();
    let is_voter = |id: &u64| voters.iter().any(|set| set.contains(id));
    if !is_voter(&me) {
        return false;
    }
    let others = membership.nodes().filter(|(id, _)| **id != me && is_voter(id));
    let asks = others.map(|(id, node)| async { (*id, knows_leader(replica, *id, node).await) });
    let mut asks: FuturesUnordered<_> = asks.collect();
    let mut up = BTreeSet::from([me]);
    while !is_quorum(&voters, &up) {
        match asks.next().await {
            Some((id, Some(false))) => drop(up.insert(id)),
            Some((_, None)) => {}
            Some((_, Some(true))) | None => return false,
        }
    }
    true
}

/// What another member says of that; nothing if it does not answer.
async fn knows_leader(replica: &Replica, id: u64, node: &Node) -> Option<bool> {
    let peers = replica.peers();
    let request = ConfirmVoteRequest {
        target: Some(peers.target(id)),
    };
    let mut client = peers.client(id, node, Purpose::Control).ok()?;
    let reply = within(replica.timing().heartbeat, client.confirm_vote(request))
        .await
        .ok()?;
    Some(reply.knows_leader)
}
