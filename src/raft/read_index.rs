//! What a linearizable read must wait for: the read index, confirmed without the disk.
//!
//! A leader may serve a read at its commit index if no newer leader can have been elected before the read began
//! (Raft thesis §6.4). Raft's own way is a round of heartbeats, but a follower answers those in order with appends,
//! that is, after its fsync: reads queue behind writes. We ask a smaller question instead: *which vote do you hold in
//! memory?*
//!
//! **Why that suffices.** Let the leader hold the committed vote V. A round (1) takes the commit index, which counts if
//! an entry of the leader's own term is committed; (2) asks every voter for its vote; (3) succeeds when a quorum, of each
//! voter set while membership is joint, holds V. Votes only grow. A leader with V' > V needs a quorum that held at least
//! V' before it was elected; that quorum shares a voter with ours; that voter answered V, after the round began. So no
//! newer leader had been elected when the round began, every write that was acknowledged before it was committed under
//! V or earlier, and our read index covers it. No clock is involved, and no restart can hurt: votes are on disk before
//! they are granted, so a restarted voter holds no older vote. For the same reason a voter needs not ask openraft which
//! vote it holds: the log is given each before anything is granted by it ([`LogStore::vote`](super::log_store::LogStore)).
//!
//! **A follower's question is half an answer.** It says which vote the follower held, after the reads began that it asks
//! for. With three voters that and the leader's own make a quorum: the answer is one message there and one back.
//!
//! A newer leader under a membership that we do not know of yet must have been elected by a quorum of one that we do,
//! as joint consensus changes one step at a time; the argument applies to that first leader.
//!
//! **Single flight.** One round serves all reads that were waiting when it began; those that come during a round wait
//! for the next one, never for one that began before them.
//!
//! **No more questions than it takes.** The voters that answered the last round are asked, as many as make a quorum; the
//! others when one of those disagrees, or keeps the round waiting.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
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

/// How long those who answered the last round are waited for before the others are asked too. A question whose answer is not
/// waited for is taken back, and a voter that gets more of such than of others closes the connection: so nobody is
/// asked who need not be.
const HEDGE: Duration = Duration::from_millis(10);

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
    raft: Raft,
    waiters: mpsc::Sender<Waiter>,
}

impl Rounds {
    /// Starts the task that runs rounds while reads wait; it ends with the last clone.
    pub fn start(raft: Raft, voters: Arc<impl AskVote>, limit: Duration) -> Self {
        let (waiters, queue) = mpsc::channel(WAITERS);
        tokio::spawn(run(queue, raft.clone(), voters, limit));
        Rounds { raft, waiters }
    }

    /// The index that a read which begins now must see applied.
    pub async fn read_index(&self) -> Result<LogId, ReadIndexError> {
        let (tx, rx) = oneshot::channel();
        self.waiters.send(tx).await.map_err(|_| ReadIndexError::Stopped)?;
        rx.await.map_err(|_| ReadIndexError::Stopped)?
    }

    /// The same for another member, which told the vote that it held after its reads began. With three voters that makes a
    /// quorum, and nobody else is asked.
    pub async fn read_index_for(&self, (asker, vote): (u64, Option<Vote>)) -> Result<LogId, ReadIndexError> {
        let standing = standing(&self.raft).await?;
        let both = BTreeSet::from([*self.raft.node_id(), asker]);
        match standing.committed {
            Some(committed) if holds(vote, standing.vote) && is_quorum(&standing.voters, &both) => {
                Ok(committed)
            }
            _ => self.read_index().await,
        }
    }
}

async fn run(mut queue: mpsc::Receiver<Waiter>, raft: Raft, voters: Arc<impl AskVote>, limit: Duration) {
    let (mut waiting, mut prompt) = (Vec::new(), BTreeSet::new());
    while queue.recv_many(&mut waiting, WAITERS).await > 0 {
        // Reads that are about to come, come along.
        tokio::task::yield_now().await;
        while let Ok(waiter) = queue.try_recv() {
            waiting.push(waiter);
        }
        let result = round(&raft, &*voters, limit, &mut prompt).await;
        for waiter in waiting.drain(..) {
            // A reader that gave up is no concern of the others.
            let _ = waiter.send(result);
        }
    }
}

/// What the leader holds when a round begins.
struct Standing {
    vote: Vote,
    /// The commit index; none before an entry of this leader's own is committed, as earlier leaders' may lack it.
    committed: Option<LogId>,
    voters: Vec<BTreeSet<u64>>,
    nodes: Vec<(u64, Node)>,
}

/// `prompt`: who answered the last one.
async fn round(
    raft: &Raft,
    voters: &impl AskVote,
    limit: Duration,
    prompt: &mut BTreeSet<u64>,
) -> Result<LogId, ReadIndexError> {
    let standing = standing(raft).await?;
    let Some(committed) = standing.committed else {
        return by_heartbeats(raft).await;
    };
    match confirmed(*raft.node_id(), voters, &standing, limit, prompt).await {
        Some(agreeing) => {
            *prompt = agreeing;
            Ok(committed)
        }
        None => by_heartbeats(raft).await,
    }
}

async fn standing(raft: &Raft) -> Result<Standing, ReadIndexError> {
    let me = *raft.node_id();
    let (vote, committed, membership) = raft
        .with_raft_state(|state| {
            (
                *state.vote_ref(),
                state.cluster_committed().max(state.local_committed()).copied(),
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
    Ok(Standing {
        committed: committed.filter(|committed| committed.leader_id == vote.leader_id),
        vote,
        voters,
        nodes,
    })
}

/// A quorum that still holds the leader's vote.
async fn confirmed(
    me: u64,
    voters: &impl AskVote,
    standing: &Standing,
    limit: Duration,
    prompt: &BTreeSet<u64>,
) -> Option<BTreeSet<u64>> {
    let mut agreeing = BTreeSet::from([me]);
    let (first, mut later) = in_turns(me, standing, prompt);
    let ask = |(id, node)| async move { (id, voters.vote_of(id, node, limit).await) };
    let mut asks: FuturesUnordered<_> = first.into_iter().map(ask).collect();
    let mut hedge = pin!(tokio::time::sleep(HEDGE));
    while !is_quorum(&standing.voters, &agreeing) {
        let answer = tokio::select! {
            answer = asks.next() => Some(answer?),
            () = &mut hedge, if !later.is_empty() => None,
        };
        match answer {
            Some((id, vote)) if holds(vote, standing.vote) => drop(agreeing.insert(id)),
            _ => asks.extend(later.drain(..).map(ask)),
        }
    }
    Some(agreeing)
}

type Voters<'a> = Vec<(u64, &'a Node)>;

/// The other voters: those who are asked first, which are as many as it takes, the prompt ones before others; and the rest.
fn in_turns<'a>(me: u64, standing: &'a Standing, prompt: &BTreeSet<u64>) -> (Voters<'a>, Voters<'a>) {
    let others = standing.nodes.iter().filter(|(id, _)| *id != me);
    let mut first: Voters<'a> = others.map(|(id, node)| (*id, node)).collect();
    first.sort_by_key(|(id, _)| !prompt.contains(id));
    let mut asked = BTreeSet::from([me]);
    let enough = first.iter().position(|(id, _)| {
        let enough = is_quorum(&standing.voters, &asked);
        asked.insert(*id);
        enough
    });
    let later = enough.map_or(Vec::new(), |enough| first.split_off(enough));
    (first, later)
}

/// Whether a voter's vote is the leader's: it may have granted it, and not heard yet that it was elected.
fn holds(vote: Option<Vote>, leaders: Vote) -> bool {
    vote.is_some_and(|vote| vote.leader_id == leaders.leader_id)
}

/// A majority of every voter set.
pub(super) fn is_quorum(voters: &[BTreeSet<u64>], agreeing: &BTreeSet<u64>) -> bool {
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

    fn standing(voters: Vec<BTreeSet<u64>>) -> Standing {
        let all: BTreeSet<u64> = voters.iter().flatten().copied().collect();
        Standing {
            vote: Vote::new_committed(1, 1),
            committed: None,
            voters,
            nodes: all.into_iter().map(|id| (id, Node::default())).collect(),
        }
    }

    #[test]
    fn as_many_are_asked_first_as_make_a_quorum_and_the_prompt_ones_before_others() {
        let ids = |voters: Voters<'_>| voters.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        let turns = |voters: &[&[u64]], prompt: &[u64]| {
            let voters = voters.iter().map(|set| set.iter().copied().collect());
            let standing = standing(voters.collect());
            let (first, later) = in_turns(1, &standing, &prompt.iter().copied().collect());
            (ids(first), ids(later))
        };
        assert_eq!(turns(&[&[1]], &[]), (vec![], vec![]));
        assert_eq!(turns(&[&[1, 2]], &[]), (vec![2], vec![]));
        assert_eq!(turns(&[&[1, 2, 3]], &[]), (vec![2], vec![3]));
        assert_eq!(turns(&[&[1, 2, 3]], &[1, 3]), (vec![3], vec![2]));
        assert_eq!(turns(&[&[1, 2, 3, 4, 5]], &[1, 4]), (vec![4, 2], vec![3, 5]));
        assert_eq!(turns(&[&[1, 2, 3], &[1, 4, 5]], &[]), (vec![2, 3, 4], vec![5]));
        // A leader that is on its way out.
        assert_eq!(turns(&[&[2, 3, 4]], &[3, 4]), (vec![3, 4], vec![2]));
    }

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
