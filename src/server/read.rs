//! The read barrier: what a linearizable read waits for before it looks at the state here.
//!
//! One question serves all reads that wait: a leader confirms that it still leads (`raft/read_index.rs`), a follower
//! asks the leader once. A read that comes while a question is under way waits for the next one, as the answer to the
//! first may be older than the read. Then the read waits until the answer's index is applied here.
//!
//! When there is no leader, or none can be confirmed, the question is asked again until the read's time is up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::error::Error;
use crate::metrics::Metrics;
use crate::raft::replica::Replica;

/// Pause between attempts while there is no leader.
const RETRY: Duration = Duration::from_millis(20);
/// Reads that may wait; each belongs to a request.
const WAITERS: usize = 65_536;

type Waiter = oneshot::Sender<u64>;

/// The barrier. Cheap to clone.
#[derive(Clone)]
pub struct Barrier {
    waiters: mpsc::Sender<Waiter>,
    applied: watch::Receiver<u64>,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

impl Barrier {
    /// Starts the task that asks; it ends with the last clone. A read waits for `timeout` at most.
    pub fn new(replica: Replica, timeout: Duration, metrics: Arc<Metrics>) -> Self {
        let (waiters, queue) = mpsc::channel(WAITERS);
        let applied = replica.applied();
        tokio::spawn(ask_for_all(replica, queue));
        Barrier {
            waiters,
            applied,
            timeout,
            metrics,
        }
    }

    /// Returns once everything that was acknowledged before the call is visible here.
    pub async fn pass(&self) -> Result<(), Error> {
        let passed = self.wait().await;
        if passed.is_err() {
            self.metrics.read_indexes_failed.increment();
        }
        passed
    }

    async fn wait(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        let (waiter, index) = oneshot::channel();
        self.waiters.send(waiter).await.map_err(|_| Error::Stopped)?;
        let index = timeout_at(deadline, index)
            .await
            .map_err(|_| Error::Timeout)?
            .map_err(|_| Error::Stopped)?;
        let mut applied = self.applied.clone();
        match timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::TimeoutWaitAppliedIndex),
        }
    }
}

async fn ask_for_all(replica: Replica, mut queue: mpsc::Receiver<Waiter>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, WAITERS).await > 0 {
        // Reads that are about to come, come along.
        tokio::task::yield_now().await;
        while let Ok(waiter) = queue.try_recv() {
            waiting.push(waiter);
        }
        let index = ask_until_answered(&replica, &mut waiting).await;
        for waiter in waiting.drain(..) {
            // A read that gave up is no concern of the others.
            let _ = waiter.send(index);
        }
    }
}

/// The read index; asks again and again while there is none, as long as anybody waits.
async fn ask_until_answered(replica: &Replica, waiting: &mut Vec<Waiter>) -> u64 {
    loop {
        match ask(replica).await {
            Some(index) => return index,
            None => {
                replica.metrics().read_indexes_slow.increment();
                let _ = tokio::time::timeout(RETRY, replica.changed()).await;
            }
        }
        waiting.retain(|waiter| !waiter.is_closed());
        if waiting.is_empty() {
            return 0;
        }
    }
}

async fn ask(replica: &Replica) -> Option<u64> {
    if replica.leads() {
        return replica.read_index().await.ok().map(|log_id| log_id.index);
    }
    let (leader, node) = replica.leader()?;
    replica
        .ask_read_index(leader, &node, replica.timing().election)
        .await
        .ok()
}
