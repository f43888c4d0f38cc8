//! How a write enters the log: here if this member leads, else by one hop to the leader.
//!
//! A proposal that certainly was not made (no leader, the leader moved before it was sent, another one led on without
//! it) is made again until the request's time is up: a client sees an election as a slow write, not as an error. A
//! proposal whose fate is unknown is never made again, as it may be applied already.
//!
//! Followers forward in batches: while some batches are under way, commands gather for the next. What was forwarded
//! is answered once this member has applied it ([`crate::raft::fates`]), so whoever wrote through it finds it there; and a
//! leader that is killed, paused or cut off costs its followers' clients an election, not the request. Without a later
//! leader nothing is known until the request's time is up; the client is told so then.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::auth::Caller;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::pb::pontoon::command::{Command, Header, command::Op, reply::Response};
use crate::raft::entry::LeaderId;
use crate::raft::fates::{Fate, Fates, Teller};
use crate::raft::replica::{ProposeError, Replica};

/// Commands in one forwarded batch at most, and their bytes: well below the peers' message limit.
const BATCH_COMMANDS: usize = 512;
const BATCH_BYTES: usize = 4 << 20;
/// Batches under way to the leader at once.
const BATCHES: usize = 8;
/// After a refusal, the leader is looked for again at a change or after this long.
const RETRY: Duration = Duration::from_millis(20);

/// Limits on what may be proposed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `--max-request-bytes`: size of one encoded command.
    pub request_bytes: usize,
    /// `--max-txn-ops`.
    pub txn_ops: u32,
    /// Requests under way at once; more are refused.
    pub in_flight: usize,
    /// How long a request may take in all.
    pub timeout: Duration,
}

/// A command with its id.
#[derive(Clone)]
struct Proposal {
    id: u64,
    command: Bytes,
}

struct Waiting {
    proposal: Proposal,
    done: Teller,
}

/// A request that waits for its command's fate. When it ends, nobody waits any more.
struct Request<'a> {
    fates: &'a Fates,
    id: u64,
    told: bool,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.fates.forget(self.id);
        }
    }
}

/// Proposes commands. Cheap to clone.
#[derive(Clone)]
pub struct Proposer {
    replica: Replica,
    limits: Limits,
    in_flight: Arc<Semaphore>,
    forward: mpsc::Sender<Waiting>,
    metrics: Arc<Metrics>,
}

impl Proposer {
    /// Starts the task that forwards; it ends with the last clone.
    pub fn new(replica: Replica, limits: Limits, metrics: Arc<Metrics>) -> Self {
        // Each waiting command belongs to a request that is counted in flight.
        let (forward, queue) = mpsc::channel(limits.in_flight.max(1));
        tokio::spawn(forward_batches(replica.clone(), queue, limits.timeout));
        Proposer {
            replica,
            limits,
            in_flight: Arc::new(Semaphore::new(limits.in_flight)),
            forward,
            metrics,
        }
    }

    /// Proposals under way.
    pub fn in_flight(&self) -> usize {
        self.limits
            .in_flight
            .saturating_sub(self.in_flight.available_permits())
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Proposes what no client asked for: the cluster's own doing, not subject to permissions.
    pub async fn propose(&self, op: Op) -> Result<Response, Error> {
        self.propose_with(
            op,
            Header {
                system: true,
                ..self.header()
            },
        )
        .await
    }

    /// Proposes what a client asks for, and waits until it is applied on the member that proposed it.
    pub async fn propose_for(&self, caller: &Caller, op: Op) -> Result<Response, Error> {
        let who = caller.who();
        let header = Header {
            user: who.user.to_string(),
            auth_revision: who.revision,
            ..self.header()
        };
        self.propose_with(op, header).await
    }

    fn header(&self) -> Header {
        Header {
            id: rand::random(),
            max_txn_ops: self.limits.txn_ops,
            ..Header::default()
        }
    }

    async fn propose_with(&self, op: Op, header: Header) -> Result<Response, Error> {
        let answer = self.propose_until(op, header).await;
        let failed = |error: &Error| {
            error.outcome_unknown() || matches!(error, Error::NoLeader | Error::TooManyRequests)
        };
        if answer.as_ref().is_err_and(failed) {
            self.metrics.proposals_failed.increment();
        }
        answer
    }

    async fn propose_until(&self, op: Op, header: Header) -> Result<Response, Error> {
        let _permit = self.in_flight.try_acquire().map_err(|_| Error::TooManyRequests)?;
        let proposal = Proposal {
            id: header.id,
            command: self.encode(op, header)?,
        };
        let deadline = Instant::now() + self.limits.timeout;
        loop {
            match tokio::time::timeout_at(deadline, self.propose_once(proposal.clone())).await {
                Ok(Ok(reply)) => return reply.0,
                Ok(Err(ProposeError::Unknown(why))) => {
                    tracing::debug!(%why, "a proposal's outcome is unknown");
                    return Err(Error::TimeoutConnectionLost);
                }
                Ok(Err(ProposeError::NotProposed(_))) if Instant::now() + RETRY < deadline => {
                    self.look_again().await
                }
                Ok(Err(ProposeError::NotProposed(_))) => return Err(Error::NoLeader),
                Err(_) => return Err(Error::Timeout),
            }
        }
    }

    /// A command, unless it is too large, or an alarm refuses it: in etcd's order.
    fn encode(&self, op: Op, header: Header) -> Result<Bytes, Error> {
        let command = Command {
            header: Some(header),
            op: Some(op),
        };
        if command.encoded_len() > self.limits.request_bytes {
            return Err(Error::RequestTooLarge);
        }
        // Refused at apply too; but a disk that is full has no room for commands that will be refused.
        if let Some(op) = &command.op {
            self.replica.reader().admit(op)?;
        }
        Ok(command.encode_to_vec().into())
    }

    async fn propose_once(&self, proposal: Proposal) -> Fate {
        if self.replica.leads() {
            return self.replica.propose(proposal.command).await;
        }
        // Before the channel, so that it goes after it: see `Fates::enter`.
        let mut request = Request {
            fates: self.replica.fates(),
            id: proposal.id,
            told: false,
        };
        let (done, fate) = oneshot::channel();
        let stopped = || ProposeError::NotProposed("this member is stopping".to_string());
        self.forward
            .send(Waiting { proposal, done })
            .await
            .map_err(|_| stopped())?;
        let fate = fate.await;
        request.told = fate.is_ok();
        fate.map_err(|_| ProposeError::Unknown("this member is stopping".to_string()))?
    }

    async fn look_again(&self) {
        // Whichever comes first; either way the leader is looked up anew.
        let _ = tokio::time::timeout(RETRY, self.replica.changed()).await;
    }
}

/// A command of the cluster's own, as the log has it: what this member alone may propose, as its leader.
pub(super) fn own_command(op: Op) -> Bytes {
    let header = Header {
        id: rand::random(),
        system: true,
        ..Header::default()
    };
    let command = Command {
        header: Some(header),
        op: Some(op),
    };
    command.encode_to_vec().into()
}

async fn forward_batches(replica: Replica, mut queue: mpsc::Receiver<Waiting>, limit: Duration) {
    let slots = Arc::new(Semaphore::new(BATCHES));
    let mut held = None;
    while let Some(batch) = next_batch(&mut queue, &mut held).await {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let replica = replica.clone();
        tokio::spawn(async move {
            forward(&replica, batch, limit, slot).await;
        });
    }
}

/// Everything that is waiting, up to the bounds of a batch; `held` keeps what did not fit.
async fn next_batch(queue: &mut mpsc::Receiver<Waiting>, held: &mut Option<Waiting>) -> Option<Vec<Waiting>> {
    let first = match held.take() {
        Some(held) => held,
        None => queue.recv().await?,
    };
    // Commands that are about to come, come along.
    tokio::task::yield_now().await;
    let mut bytes = first.proposal.command.len();
    let mut batch = vec![first];
    while batch.len() < BATCH_COMMANDS {
        let Ok(next) = queue.try_recv() else { break };
        bytes += next.proposal.command.len();
        if bytes > BATCH_BYTES {
            *held = Some(next);
            break;
        }
        batch.push(next);
    }
    Some(batch)
}

async fn forward(replica: &Replica, batch: Vec<Waiting>, limit: Duration, slot: OwnedSemaphorePermit) {
    let Some((leader, node)) = replica.leadership() else {
        return refuse_all(batch, "no leader is known");
    };
    if leader.node_id == replica.identity().member_id() {
        return refuse_all(batch, "this member leads now");
    }
    let (ids, commands) = enter(replica.fates(), leader, batch);
    if ids.is_empty() {
        return;
    }
    let mut answers = pin!(replica.forward(leader, &node, commands, limit));
    let answers = tokio::select! {
        answers = &mut answers => answers,
        () = replica.overtaken(leader) => {
            // The next leader's batches don't wait for what a former one still says.
            drop(slot);
            answers.await
        }
    };
    match answers {
        Ok(answers) => replica.fates().answered(leader, ids.into_iter().zip(answers)),
        Err(error) => {
            let answers = ids.into_iter().map(|id| (id, Err(error.clone())));
            replica.fates().answered(leader, answers);
        }
    }
}

/// Enters a batch before it is sent; what is to be sent.
fn enter(fates: &Fates, leader: LeaderId, batch: Vec<Waiting>) -> (Vec<u64>, Vec<Bytes>) {
    let entered = |Waiting { proposal, done }: Waiting| {
        fates
            .enter(proposal.id, leader, done)
            .then_some((proposal.id, proposal.command))
    };
    batch.into_iter().filter_map(entered).unzip()
}

fn refuse_all(batch: Vec<Waiting>, why: &str) {
    for waiting in batch {
        let _ = waiting.done.send(Err(ProposeError::NotProposed(why.to_string())));
    }
}
