//! Who is in the cluster: changing it, tending it, and following where everybody is.
//!
//! **Changing.** A wish comes from a client of any member, goes to the leader by one hop, and is dealt with there by one
//! task, one after the other: so each is checked against the outcome of the one before. The checks are etcd's (with
//! `--strict-reconfig-check`): a change must leave a majority of members that have started and are heard of. Each
//! change is one entry of the log ([`crate::raft::membership`]), so a leader that dies leaves nothing half done.
//!
//! **Tending.** The same task, on the leader, gives a newcomer its vote when it has caught up, and settles a joint
//! membership that it finds. It needs no memory for that: what a member was added for stands in the membership, and
//! the next leader's task carries on. *Caught up* is judged in rounds (Raft thesis §4.2.1): the newcomer must receive
//! all that the leader had when the round began, within an election timeout.
//!
//! **A place and who takes it.** etcd's MemberAdd answers with an id before any process exists. The id is given once:
//! the process that starts on a blank disk at one of the place's peer URLs claims it, by a command in the log, under a
//! random number that it made with its data directory. From then on the id stands in its data directory. If that disk
//! is lost, the next process there has another number, and gets an id of its own that takes the old one's vote over
//! ([`crate::raft::Role::Replacing`]). So no id ever votes for two disks, and no vote is forgotten.
//!
//! **Following.** Where a member is stands in its record, and every member tells its connections when that changes. A
//! member that lost touch with its leader asks around, at every address that it knows or was started with: by asking
//! it also tells where it is now. That is how the members find each other when one moved, or all did, and how one
//! that was removed while it was away learns that.

mod follow;
mod keeper;
mod probe;
mod roll;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use self::keeper::Keeper;
use super::read::Barrier;
use crate::error::Error;
use crate::pb::pontoon::peer;
use crate::pb::pontoon::peer::change_members_reply::Result as Outcome;
use crate::pb::pontoon::peer::change_members_request::Change as Wanted;
use crate::raft::peer::Wish;
use crate::raft::replica::{ProposeError, Replica};

pub use follow::{Whereabouts, follow};

/// Wishes that wait for the leader's task; one more waits to be taken into the queue.
const WISHES: usize = 64;
/// How long one member may take to say who it is.
const ANSWER: Duration = Duration::from_secs(2);
/// After a refusal, the leader is looked for again at a change or after this long.
const RETRY: Duration = Duration::from_millis(20);

/// What is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// `--strict-reconfig-check`.
    pub strict: bool,
    /// `--max-learners`.
    pub max_learners: usize,
    /// How long a change may take in all.
    pub timeout: Duration,
}

/// Changes the membership, through the leader. Cheap to clone.
#[derive(Clone)]
pub struct Members {
    replica: Replica,
    wishes: mpsc::Sender<Wish>,
    timeout: Duration,
}

impl Members {
    /// Starts the task that deals with wishes while this member leads; it ends with the last sender.
    pub fn start(replica: Replica, barrier: Barrier, rules: Rules, queue: mpsc::Receiver<Wish>) {
        tokio::spawn(Keeper::new(replica, barrier, rules).run(queue));
    }

    /// The queue of wishes: bounded, a sender waits while it is full.
    pub fn queue() -> (mpsc::Sender<Wish>, mpsc::Receiver<Wish>) {
        mpsc::channel(WISHES)
    }

    /// Changes go into `wishes` here, or to the leader.
    pub fn new(replica: Replica, wishes: mpsc::Sender<Wish>, timeout: Duration) -> Self {
        Members {
            replica,
            wishes,
            timeout,
        }
    }

    /// Makes a change; it is applied here when this returns. The id of the member that was added, if one was.
    pub async fn change(&self, wanted: Wanted) -> Result<u64, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match timeout_at(deadline, self.change_once(&wanted, deadline)).await {
                Err(_) => return Err(Error::Timeout),
                Ok(Outcome::Changed(changed)) => return self.applied(changed, deadline).await,
                Ok(Outcome::Error(text)) => return Err(Error::parse(&text).unwrap_or(Error::Timeout)),
                Ok(Outcome::Unknown(why)) => {
                    tracing::debug!(%why, "a membership change's outcome is unknown");
                    return Err(Error::TimeoutConnectionLost);
                }
                Ok(Outcome::NotProposed(_)) if Instant::now() + RETRY < deadline => {
                    // Whichever comes first; either way the leader is looked up anew.
                    let _ = tokio::time::timeout(RETRY, self.replica.changed()).await;
                }
                Ok(Outcome::NotProposed(_)) => return Err(Error::NoLeader),
            }
        }
    }

    /// Makes a voter lead. Only the leader does; it forwards nothing.
    pub async fn move_leader(&self, to: u64) -> Result<(), Error> {
        if !self.replica.leads() {
            return Err(Error::NotLeader);
        }
        let standing = self.replica.standing();
        if !standing.voters.contains(&to) {
            return Err(Error::BadLeaderTransferee);
        }
        if to == self.replica.identity().member_id() {
            return Ok(());
        }
        // A leader that hands over takes no more writes: don't begin with one that can't take over.
        let limit = self.replica.timing().stream_idle();
        let is_active = standing.heard.get(&to).is_some_and(|ago| *ago < limit);
        let leads = is_active && self.replica.transfer_leader(to, self.timeout).await;
        match leads && self.replica.leader().is_some_and(|(leader, _)| leader == to) {
            true => Ok(()),
            false => Err(Error::TimeoutLeaderTransfer),
        }
    }

    async fn change_once(&self, wanted: &Wanted, deadline: Instant) -> Outcome {
        if self.replica.leads() {
            let (answer, reply) = oneshot::channel();
            let gone = || Outcome::Unknown("this member is stopping".to_string());
            return match self.wishes.send(Wish::Change(wanted.clone(), answer)).await {
                Ok(()) => reply.await.ok().and_then(|r| r.result).unwrap_or_else(gone),
                Err(_) => Outcome::NotProposed("this member is stopping".to_string()),
            };
        }
        let Some((leader, node)) = self.replica.leader() else {
            return Outcome::NotProposed("no leader is known".to_string());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let reply = self.replica.forward_change(leader, &node, wanted.clone(), left);
        match reply.await {
            Ok(reply) => reply
                .result
                .unwrap_or_else(|| Outcome::Unknown("the leader's answer is empty".to_string())),
            Err(error) => failed(error),
        }
    }

    /// Waits until the change is seen here too: whoever made it may list the members next.
    async fn applied(&self, changed: peer::ChangedMembers, deadline: Instant) -> Result<u64, Error> {
        let mut applied = self.replica.applied();
        match timeout_at(deadline, applied.wait_for(|applied| *applied >= changed.index)).await {
            Ok(Ok(_)) => Ok(changed.member_id),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::TimeoutWaitAppliedIndex),
        }
    }
}

fn failed(error: ProposeError) -> Outcome {
    match error {
        ProposeError::NotProposed(why) => Outcome::NotProposed(why),
        ProposeError::Unknown(why) => Outcome::Unknown(why),
    }
}
