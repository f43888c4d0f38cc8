//! How commands enter the log: those that come at the same time, together.
//!
//! A round of the log has a price of its own, whatever is in it: a sync and an append for each member, and some twenty
//! switches between threads (docs/performance.md). openraft takes along all that waits for it when it wakes; but it would
//! wake for the first command, ahead of the tasks that are about to bring others. So commands come to a task first, which
//! lets everybody run who can, and then hands over all of them. A command that is alone waits for nobody.

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use tokio::sync::{mpsc, oneshot};

use super::entry::LeaderId;
use super::fates::Fate;
use super::replica::ProposeError;
use super::{CommandBytes, LogId, Raft, Reply, Types};

/// Commands waiting to be handed over: far more than members have in flight.
const WAITING: usize = 65_536;
/// As many are handed over in one turn.
const TURN: usize = 4096;

type Responder = ProgressResponder<Types, ClientWriteResult<Types>>;

/// What a command that is on its way into the log comes to; nothing, if Raft stops.
pub type Proposed = oneshot::Receiver<ClientWriteResult<Types>>;

struct Proposal {
    leader: Option<LeaderId>,
    command: Bytes,
    responder: Responder,
}

/// The way into the log.
pub struct Proposals {
    queue: mpsc::Sender<Proposal>,
}

impl Proposals {
    /// Starts the task that hands commands over; it ends when nobody can propose any more, or Raft has stopped.
    pub fn start(raft: Raft) -> Self {
        let (queue, proposals) = mpsc::channel(WAITING);
        tokio::spawn(hand_over(raft, proposals));
        Proposals { queue }
    }

    /// Proposes a command, to be appended by this member as this very leader, or not at all; as the leader that it is by
    /// then, if none is named.
    pub async fn propose(&self, leader: Option<LeaderId>, command: Bytes) -> Proposed {
        let (responder, proposed) = ProgressResponder::complete_only();
        let proposal = Proposal {
            leader,
            command,
            responder,
        };
        // If Raft has stopped, the responder is gone, which tells.
        let _ = self.queue.send(proposal).await;
        proposed
    }
}

async fn hand_over(raft: Raft, mut queue: mpsc::Receiver<Proposal>) {
    let mut proposals = Vec::new();
    while queue.recv_many(&mut proposals, TURN).await > 0 {
        // Commands that are about to come, come along.
        tokio::task::yield_now().await;
        while proposals.len() < TURN
            && let Ok(proposal) = queue.try_recv()
        {
            proposals.push(proposal);
        }
        for proposal in proposals.drain(..) {
            let mut write = raft
                .write(CommandBytes(proposal.command))
                .responder(proposal.responder);
            if let Some(leader) = proposal.leader {
                write = write.with_leader(leader);
            }
            if write.await.is_err() {
                return;
            }
        }
    }
}

/// Waits for what a command comes to.
pub async fn fate_of(proposed: Proposed) -> Fate {
    entry_of(proposed).await.map(|(_, reply)| reply)
}

/// The same, with the entry that it is in.
pub async fn entry_of(proposed: Proposed) -> Result<(LogId, Reply), ProposeError> {
    match proposed.await {
        Ok(Ok(written)) => Ok((written.log_id, written.data)),
        // It was refused before it was appended.
        Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
            Err(ProposeError::NotProposed(forward.to_string()))
        }
        Ok(Err(error)) => Err(ProposeError::Unknown(error.to_string())),
        Err(_) => Err(ProposeError::Unknown("the leader is stopping".to_string())),
    }
}
