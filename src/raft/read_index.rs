//! What a linearizable read must wait for: the read index, confirmed without the disk.
//!
//! A leader may serve a read at its commit index if no newer leader can have been elected before the read began
//! (Raft thesis §6.4). Raft's own way is a round of heartbeats, but a follower answers those in order with appends,
//! that is, after its fsync: reads queue behind writes. We ask a smaller question instead: *which vote do you hold in
//! memory?*
//!
//! **Why that suffices.** Let the leader hold the committed vote V. A round (1) takes the read index: the larger of
//! the commit index and the first entry of its term; (2) asks every voter for its vote; (3) succeeds when a quorum,
//! of each voter set while membership is joint, still holds V. Votes only grow. A leader with V' > V needs a quorum
//! that held at least V' before it was elected; that quorum shares a voter with ours; that voter answered V, after
//! the round began. So no newer leader had been elected when the round began, every write that was acknowledged
//! before it was committed under V or earlier, and our read index covers it. No clock is involved, and no restart can
//! hurt: votes are on disk before they are granted, so a restarted voter holds no older vote.
//!
//! A newer leader under a membership that we do not know of yet must have been elected by a quorum of one that we do,
//! as joint consensus changes one step at a time; the argument applies to that first leader.
//!
//! **Single flight.** One round serves all reads that were waiting when it began; those that come during a round wait
//! for the next one, never for one that began before them.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::entry::from_wire_vote;
use super::network::{Peers, Purpose, within};
use super::{LogId, Node, Raft, Types, Vote};
use crate::pb::pontoon::peer::ConfirmVoteRequest;

/// Why there is no read index to be had from this member now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadIndexError {
    /// It does not lead.
    #[error("this member does not lead")]
    NotLeader,
    /// It leads, as far as it knows, but no quorum confirmed that.
    #[error("no quorum confirmed the leader")]
    NoQuorum,
    /// It is stopping.
    #[error("this member is stopping")]
    Stopped,
}

type Waiter = oneshot::Sender<Result<LogId, ReadIndexError>>;

/// Reads waiting for a round; bounded, as each belongs to a request that is counted in flight.
const WAITERS: usize = 65_536;

/// Asks a voter, within a time, for the vote that it holds in memory.
pub trait AskVote: Send + Sync + 'static {
    /// Its vote; none if it does not answer.
    fn vote_of(&self, id: u64, node: &Node, limit: Duration) -> impl Future<Output = Option<Vote>> + Send;
}

impl AskVote for Peers {
    async fn vote_of(&self, id: u64, node: &Node, limit: Duration) -> Option<Vote> {
        let request = ConfirmVoteRequest {
            target: Some(self.target(id)),
        };
        let mut client = self.client(id, node, Purpose::Control).ok()?;
        let reply = within(limit, client.confirm_vote(request)).await.ok()?;
        reply.vote.map(from_wire_vote)
    }
}

/// Runs the rounds. Cheap to clone.
#[derive(Clone)]
pub struct Rounds {
    waiters: mpsc::Sender<Waiter>,
}

impl Rounds {
    /// Starts the task that runs rounds while reads wait; it ends with the last clone.
    pub fn start(raft: Raft, voters: Arc<impl AskVote>, limit: Duration) -> Self {
        let (waiters, queue) = mpsc::channel(WAITERS);
        tokio::spawn(run(queue, raft, voters, limit));
        Rounds { waiters }
    }

    /// The index that a read which begins now must see applied.
    pub async fn read_index(&self) -> Result<LogId, ReadIndexError> {
        let (tx, rx) = oneshot::channel();
        self.waiters.send(tx).await.map_err(|_| ReadIndexError::Stopped)?;
        rx.await.map_err(|_| ReadIndexError::Stopped)?
    }
}

async fn run(mut queue: mpsc::Receiver<Waiter>, raft: Raft, voters: Arc<impl AskVote>, limit: Duration) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, WAITERS).await > 0 {
        // Reads that are about to come, come along.
        tokio::task::yield_now().await;
        while let Ok(waiter) = queue.try_recv() {
            waiting.push(waiter);
        }
        let result = round(&raft, &*voters, limit).await;
        for waiter in waiting.drain(..) {
            // A reader that gave up is no concern of the others.
            let _ = waiter.send(result);
        }
    }
}

/// What the leader holds when a round begins.
struct Standing {
    vote: Vote,
    voters: Vec<BTreeSet<u64>>,
    nodes: Vec<(u64, Node)>,
}

async fn round(raft: &Raft, voters: &impl AskVote, limit: Duration) -> Result<LogId, ReadIndexError> {
    let standing = standing(raft).await?;
    // Used as a cheap getter of the read index: that we still lead is confirmed below, not by its clock.
    let read = match raft.get_read_linearizer(ReadPolicy::LeaseRead).await {
        Ok(linearizer) => *linearizer.read_log_id().log_id(),
        Err(_) => return by_heartbeats(raft).await,
    };
    match confirmed(raft, voters, &standing, limit).await {
        true => Ok(read),
        false => by_heartbeats(raft).await,
    }
}

async fn standing(raft: &Raft) -> Result<Standing, ReadIndexError> {
    let me = *raft.node_id();
    let (vote, membership) = raft
        .with_raft_state(|state| {
            (
                *state.vote_ref(),
                state.membership_state.effective().membership().clone(),
            )
        })
        .await
        .map_err(|_| ReadIndexError::Stopped)?;
    if !vote.committed || vote.leader_id.node_id != me {
        return Err(ReadIndexError::NotLeader);
    }
    let voters: Vec<BTreeSet<u64>> = membership
        .get_joint_config()
        .iter()
        .map(|ids| ids.iter().copied().collect())
        .collect();
    let is_voter = |id: &u64| voters.iter().any(|set| set.contains(id));
    let nodes = membership
        .nodes()
        .filter(|(id, _)| is_voter(id))
        .map(|(id, node)| (*id, node.clone()))
        .collect();
    Ok(Standing { vote, voters, nodes })
}

/// Whether a quorum still holds the leader's vote.
async fn confirmed(raft: &Raft, voters: &impl AskVote, standing: &Standing, limit: Duration) -> bool {
    let me = *raft.node_id();
    let mut agreeing = BTreeSet::from([me]);
    if is_quorum(&standing.voters, &agreeing) {
        return true;
    }
    let mut asks: FuturesUnordered<_> = standing
        .nodes
        .iter()
        .filter(|(id, _)| *id != me)
        .map(|(id, node)| async move { (*id, voters.vote_of(*id, node, limit).await) })
        .collect();
    while let Some((id, vote)) = asks.next().await {
        if vote == Some(standing.vote) {
            agreeing.insert(id);
        }
        if is_quorum(&standing.voters, &agreeing) {
            return still_holds(raft, standing.vote).await;
        }
    }
    false
}

/// The leader's own vote counts towards the quorum, so it is looked at within the round too.
async fn still_holds(raft: &Raft, vote: Vote) -> bool {
    raft.with_raft_state(|state| *state.vote_ref())
        .await
        .is_ok_and(|now| now == vote)
}

/// A majority of every voter set.
fn is_quorum(voters: &[BTreeSet<u64>], agreeing: &BTreeSet<u64>) -> bool {
    voters
        .iter()
        .all(|set| 2 * set.intersection(agreeing).count() > set.len())
}

/// Raft's own way, slower: a round of heartbeats.
async fn by_heartbeats(raft: &Raft) -> Result<LogId, ReadIndexError> {
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(*linearizer.read_log_id().log_id()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
            Err(not_leading(raft, forward))
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadIndexError::NoQuorum),
        Err(RaftError::Fatal(_)) => Err(ReadIndexError::Stopped),
    }
}

/// A leader that has not heard from its quorum lately also answers with "forward".
fn not_leading(raft: &Raft, forward: openraft::errors::ForwardToLeader<Types>) -> ReadIndexError {
    match forward.leader_id {
        Some(id) if id == *raft.node_id() => ReadIndexError::NoQuorum,
        _ => ReadIndexError::NotLeader,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_membership_needs_a_quorum_of_both_voter_sets() {
        let both = [BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
        assert!(!is_quorum(&both, &BTreeSet::from([1, 2, 3])));
        assert!(!is_quorum(&both, &BTreeSet::from([3, 4])));
        assert!(is_quorum(&both, &BTreeSet::from([2, 3, 4])));
        assert!(!is_quorum(&both[..1], &BTreeSet::from([1])));
        assert!(is_quorum(&both[..1], &BTreeSet::from([1, 3])));
    }
}
