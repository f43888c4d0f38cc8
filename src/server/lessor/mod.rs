//! Leases, as the services use them.
//!
//! Grant and revoke go through the log. All else is a question to the leader's clock: questions that wait together are
//! asked together, by one hop if this member follows. A question may be asked twice (renewing twice does no harm), so
//! it is asked again until it is answered or its time is up: an election looks like a slow answer.
//!
//! Files: [`clock`] when leases end · [`leader`] the leader's duties.

pub mod clock;
pub mod leader;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use self::leader::{ENDING, Leader};
use super::Server;
use super::auth::Credentials;
use crate::error::Error;
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse,
};
use crate::pb::pontoon::command::{command::Op, reply::Response};
use crate::pb::pontoon::peer::{LeaseClockReply, LeaseClockRequest};
use crate::raft::peer::LeaseClock;
use crate::raft::replica::Replica;
use crate::state::auth::{Access, Auth, Who};

/// Questions in one batch at most.
const BATCH: usize = 4096;
/// Batches under way at once; questions wait while there are as many.
const BATCHES: usize = 8;
/// Questions that may wait; each belongs to a request.
const WAITERS: usize = 65_536;
/// After a refusal the leader is looked for again at a change or after this long.
const RETRY: Duration = Duration::from_millis(20);
/// How often it is looked whether an expired lease is revoked.
const ENDING_CHECK: Duration = Duration::from_millis(50);
/// Ids are picked anew so often if they are taken, which has never been seen to happen.
const PICKS: usize = 8;

/// One question, and where its answer goes.
enum Question {
    Renew(i64, oneshot::Sender<i64>),
    LookUp(i64, oneshot::Sender<(Times, u64)>),
    List(oneshot::Sender<(Vec<i64>, u64)>),
}

/// What is known of a lease's time, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// As granted; 0: there is no such lease.
    pub granted: i64,
    /// What is left.
    pub remaining: i64,
}

/// Leases, as clients may use them. Each call looks first whether the caller may.
impl Server {
    /// Begins a lease of `ttl` seconds, or the shortest that there is if that is more. With `id` 0 an id is picked.
    pub async fn grant_lease(
        &self,
        who: &Credentials,
        id: i64,
        ttl: i64,
    ) -> Result<LeaseGrantResponse, Error> {
        let ttl = ttl.max(shortest_ttl(self.replica.timing().election));
        if id != 0 {
            return self.grant_lease_as(who, id, ttl).await;
        }
        for _ in 1..PICKS {
            match self.grant_lease_as(who, pick_id(), ttl).await {
                Err(Error::LeaseExists) => {}
                outcome => return outcome,
            }
        }
        self.grant_lease_as(who, pick_id(), ttl).await
    }

    async fn grant_lease_as(
        &self,
        who: &Credentials,
        id: i64,
        ttl: i64,
    ) -> Result<LeaseGrantResponse, Error> {
        let op = Op::LeaseGrant(LeaseGrantRequest { ttl, id });
        match self.propose_as(who, op).await? {
            Response::LeaseGrant(response) => Ok(response),
            other => unexpected(&other),
        }
    }

    /// Ends a lease and deletes its keys.
    pub async fn revoke_lease(&self, who: &Credentials, id: i64) -> Result<LeaseRevokeResponse, Error> {
        let op = Op::LeaseRevoke(LeaseRevokeRequest { id });
        match self.propose_as(who, op).await? {
            Response::LeaseRevoke(response) => Ok(response),
            other => unexpected(&other),
        }
    }

    /// Gives a lease its whole TTL again, which is returned; 0 if there is no such lease. One that has expired is
    /// waited for to be revoked.
    pub async fn keep_lease_alive(&self, who: &Credentials, id: i64) -> Result<i64, Error> {
        let leased = |id| self.reader().attached(id).0;
        self.permit(who, |auth, who| auth.permit_lease(who, id, &leased))
            .await?;
        loop {
            match self.lessor.ask(|answer| Question::Renew(id, answer)).await? {
                ENDING => tokio::time::sleep(ENDING_CHECK).await,
                ttl => return Ok(ttl),
            }
        }
    }

    /// What is left of a lease, as of now or later. What it says is visible here when it returns.
    pub async fn lease_times(&self, who: &Credentials, id: i64) -> Result<Times, Error> {
        self.permit(who, |auth, who| auth.permit_user(who)).await?;
        let (times, index) = self.lessor.ask(|answer| Question::LookUp(id, answer)).await?;
        self.lessor.wait_applied(|applied| applied >= index).await?;
        Ok(times)
    }

    /// All leases' ids, those that expire first first.
    pub async fn list_leases(&self, who: &Credentials) -> Result<Vec<i64>, Error> {
        self.permit(who, |auth, who| auth.permit_user(who)).await?;
        let (ids, index) = self.lessor.ask(Question::List).await?;
        self.lessor.wait_applied(|applied| applied >= index).await?;
        Ok(ids)
    }

    /// The keys attached to a lease, in order; visible to reads here when it returns.
    pub async fn lease_keys(&self, who: &Credentials, id: i64) -> Result<Vec<Bytes>, Error> {
        let (keys, revision) = self.reader().attached(id);
        self.permit(who, |auth, who| {
            let readable = |key| auth.permit_keys(who, Access::Read, key, &Bytes::new());
            keys.iter().try_for_each(readable)
        })
        .await?;
        let reached = |_| self.reader().revision() >= revision;
        self.lessor.wait_applied(reached).await?;
        Ok(keys)
    }

    /// Returns once the member stops: for streams that would never end by themselves.
    pub async fn stops(&self) {
        // An error means that the sender is gone, which is a stop too.
        let _ = self.lessor.closed.subscribe().wait_for(|closed| *closed).await;
    }

    async fn permit(
        &self,
        who: &Credentials,
        permit: impl Fn(&Auth, &Who<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.read_as(who, permit, |_| Ok(())).await
    }
}

/// Asks the leader's clock. Cheap to clone.
#[derive(Clone)]
pub struct Lessor {
    replica: Replica,
    questions: mpsc::Sender<Question>,
    timeout: Duration,
    closed: Arc<watch::Sender<bool>>,
}

impl Lessor {
    /// Starts the task that asks; it ends with the last clone. A question may take `timeout`.
    pub fn new(replica: Replica, leader: Arc<Leader>, timeout: Duration) -> Self {
        let (questions, queue) = mpsc::channel(WAITERS);
        tokio::spawn(ask_in_batches(replica.clone(), leader, queue));
        Lessor {
            replica,
            questions,
            timeout,
            closed: Arc::new(watch::channel(false).0),
        }
    }

    /// The member stops.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Error> {
        let deadline = Instant::now() + self.timeout;
        let (answer, answered) = oneshot::channel();
        let sent = self.questions.send(question(answer)).await;
        sent.map_err(|_| Error::Stopped)?;
        match timeout_at(deadline, answered).await {
            Ok(answer) => answer.map_err(|_| Error::Stopped),
            Err(_) if self.replica.leader().is_none() => Err(Error::NoLeader),
            Err(_) => Err(Error::Timeout),
        }
    }

    async fn wait_applied(&self, reached: impl Fn(u64) -> bool) -> Result<(), Error> {
        let mut applied: watch::Receiver<u64> = self.replica.applied();
        let deadline = Instant::now() + self.timeout;
        match timeout_at(deadline, applied.wait_for(|applied| reached(*applied))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::TimeoutWaitAppliedIndex),
        }
    }
}

/// A reply of another kind than the request's can only come from a newer leader; whether it did what was asked is
/// unknown.
fn unexpected<T>(reply: &Response) -> Result<T, Error> {
    tracing::warn!(?reply, "the leader answered with an unknown reply");
    Err(Error::LeaderChanged)
}

/// etcd's rule: one and a half election timeouts, in whole seconds.
fn shortest_ttl(election: Duration) -> i64 {
    (election.as_millis() * 3).div_ceil(2000) as i64
}

/// Positive, as clients expect.
fn pick_id() -> i64 {
    rand::random_range(1..=i64::MAX)
}

async fn ask_in_batches(replica: Replica, leader: Arc<Leader>, mut queue: mpsc::Receiver<Question>) {
    let slots = Arc::new(Semaphore::new(BATCHES));
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let (replica, leader) = (replica.clone(), leader.clone());
        let batch = std::mem::take(&mut batch);
        tokio::spawn(async move {
            ask_until_answered(&replica, &leader, batch).await;
            drop(slot);
        });
    }
}

/// Asks again and again while there is no answer, as long as anybody waits.
async fn ask_until_answered(replica: &Replica, leader: &Leader, mut batch: Vec<Question>) {
    loop {
        batch.retain(|question| !question.is_given_up());
        if batch.is_empty() {
            return;
        }
        match ask(replica, leader, request(&batch)).await {
            Ok(reply) => return distribute(batch, reply),
            Err(why) => {
                tracing::debug!(%why, "no answer from the lease clock");
                let _ = tokio::time::timeout(RETRY, replica.changed()).await;
            }
        }
    }
}

async fn ask(
    replica: &Replica,
    leader: &Leader,
    request: LeaseClockRequest,
) -> Result<LeaseClockReply, String> {
    let reply = if replica.leads() {
        leader.answer(request).await
    } else {
        let (id, node) = replica.leader().ok_or("no leader is known")?;
        let limit = 2 * replica.timing().election;
        let asked = replica.ask_lease_clock(id, &node, request, limit).await;
        asked.map_err(|status| status.to_string())?
    };
    match reply.refused.is_empty() {
        true => Ok(reply),
        false => Err(reply.refused),
    }
}

fn request(batch: &[Question]) -> LeaseClockRequest {
    let mut request = LeaseClockRequest::default();
    for question in batch {
        match question {
            Question::Renew(id, _) => request.renew.push(*id),
            Question::LookUp(id, _) => request.look_up.push(*id),
            Question::List(_) => request.list = true,
        }
    }
    request
}

/// Answers come in the order of the questions of their kind. Whoever gave up is no concern of the others; a question
/// without an answer, which only a broken leader leaves, is dropped, and its asker told that this member stopped.
fn distribute(batch: Vec<Question>, reply: LeaseClockReply) {
    let mut renewed = reply.renewed.into_iter();
    let mut looked_up = reply.looked_up.into_iter().map(|times| Times {
        granted: times.granted,
        remaining: times.remaining,
    });
    for question in batch {
        let _ = match question {
            Question::Renew(_, answer) => renewed.next().map(|ttl| answer.send(ttl).is_ok()),
            Question::LookUp(_, answer) => looked_up
                .next()
                .map(|times| answer.send((times, reply.index)).is_ok()),
            Question::List(answer) => Some(answer.send((reply.listed.clone(), reply.index)).is_ok()),
        };
    }
}

impl Question {
    fn is_given_up(&self) -> bool {
        match self {
            Question::Renew(_, answer) => answer.is_closed(),
            Question::LookUp(_, answer) => answer.is_closed(),
            Question::List(answer) => answer.is_closed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_ttl_outlives_an_election() {
        let shortest = |millis| shortest_ttl(Duration::from_millis(millis));
        assert_eq!([shortest(1000), shortest(1500), shortest(100)], [2, 3, 1]);
    }

    #[test]
    fn each_question_gets_its_own_answer() {
        let (renew, mut renewed) = oneshot::channel();
        let (other, mut other_renewed) = oneshot::channel();
        let (look_up, mut looked_up) = oneshot::channel();
        let batch = vec![
            Question::Renew(1, renew),
            Question::LookUp(2, look_up),
            Question::Renew(3, other),
        ];
        let asked = request(&batch);
        assert_eq!(
            (asked.renew, asked.look_up, asked.list),
            (vec![1, 3], vec![2], false)
        );
        let times = crate::pb::pontoon::peer::LeaseTimes {
            granted: 9,
            remaining: 4,
        };
        let reply = LeaseClockReply {
            renewed: vec![5, 0],
            looked_up: vec![times],
            index: 77,
            ..LeaseClockReply::default()
        };
        distribute(batch, reply);
        assert_eq!((renewed.try_recv(), other_renewed.try_recv()), (Ok(5), Ok(0)));
        let times = Times {
            granted: 9,
            remaining: 4,
        };
        assert_eq!(looked_up.try_recv(), Ok((times, 77)));
    }
}
