//! What a leader does with its lease clock: answers, and ends leases.
//!
//! **Before it answers it makes sure that it leads,** as for a read (`raft/read_index.rs`); one confirmation serves a
//! whole batch. Clients take the answer to a renewal as a promise until when nobody else holds what they hold. The
//! promise is kept: say the confirmation began at time *a*. A newer leader, if there is one, was elected after *a*, so
//! it gives the lease its TTL plus one election timeout *E* from some time after *a* on. We answer before *a* + *E*, or
//! confirm again; so the lease lives for its TTL from the answer on at least, whoever leads.
//!
//! **What it proposes names its term,** and does nothing if it enters the log in another one (`state/lease.rs`). So it
//! doesn't matter how long a proposal was under way, nor whether this member was deposed meanwhile.
//!
//! **Checkpoints enter the log in order.** One that says "540 s left" must not come after the one that removes it for a
//! renewal, so one is proposed at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::clock::{Clock, Renewal, Settings};
use crate::pb::pontoon::command::{LeaseCheckpoint, LeaseRemaining, command::Op};
use crate::pb::pontoon::peer::{LeaseClockReply, LeaseClockRequest, LeaseTimes};
use crate::raft::peer::LeaseClock;
use crate::raft::replica::Replica;
use crate::raft::state_machine::LeaseSink;
use crate::server::propose::own_command;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(100);
/// Leases revoked at a look at most, which makes 1000 a second: an outage that ends all leases of a cluster must not
/// keep its log busy with nothing else. Those left over end a little later.
const EXPIRED: usize = 100;
/// Leases checkpointed at a look at most: 20 to 30 bytes of one command each.
const CHECKPOINTS: usize = 5000;
/// On the wire: the lease is about to be revoked.
pub const ENDING: i64 = -1;

/// The clock while this member leads, and nothing otherwise.
#[derive(Default)]
pub struct Shared {
    clock: Mutex<Option<Clock>>,
}

impl Shared {
    /// Follows the log.
    pub fn sink(self: &Arc<Self>) -> LeaseSink {
        let shared = self.clone();
        Arc::new(move |changes| {
            if let Some(clock) = &mut *shared.lock() {
                let now = Instant::now();
                changes.iter().for_each(|change| clock.apply(change, now));
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Clock>> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leads the leases, when this member leads.
pub struct Leader {
    replica: Replica,
    shared: Arc<Shared>,
    settings: Settings,
    /// Held while a checkpoint is decided and proposed.
    checkpoints: tokio::sync::Mutex<()>,
}

/// Why there is no answer.
struct Refused(String);

impl Leader {
    /// Of a replica whose log `shared` follows.
    pub fn new(replica: Replica, shared: Arc<Shared>, checkpoint_interval: Duration) -> Self {
        let settings = Settings {
            extension: replica.timing().election,
            checkpoint_interval,
        };
        Leader {
            replica,
            shared,
            settings,
            checkpoints: tokio::sync::Mutex::default(),
        }
    }

    /// Makes sure that this member leads and has applied all that was acknowledged before; with its term and the
    /// index.
    async fn confirm(&self) -> Result<(u64, u64), Refused> {
        let read = self.replica.read_index().await;
        // It is of the leader's own term: at least the first entry that it appended.
        let read = read.map_err(|error| Refused(error.to_string()))?;
        let mut applied = self.replica.applied();
        let reached = applied.wait_for(|applied| *applied >= read.index).await;
        reached.map_err(|_| Refused("this member is stopping".to_string()))?;
        Ok((read.leader_id.term, read.index))
    }

    /// The clock of this term, begun now if it wasn't yet.
    fn with_clock<T>(&self, term: u64, act: impl FnOnce(&mut Clock, Instant) -> T) -> Result<T, Refused> {
        let mut clock = self.shared.lock();
        if clock.as_ref().is_none_or(|clock| clock.term() != term) {
            // Under the lock, so that no change is missed; one that is seen twice does nothing.
            let leases = self.replica.reader().leases().map_err(|error| {
                let reason = format!("cannot read the leases: {error}");
                self.replica.failure().report(reason.clone());
                Refused(reason)
            })?;
            tracing::info!(term, leases = leases.len(), "the lease clock starts");
            *clock = Some(Clock::new(term, self.settings, leases, Instant::now()));
        }
        let clock = clock.as_mut().expect("set just now");
        Ok(act(clock, Instant::now()))
    }

    async fn try_answer(&self, request: &LeaseClockRequest) -> Result<LeaseClockReply, Refused> {
        loop {
            let began = Instant::now();
            let (term, index) = self.confirm().await?;
            self.remove_checkpoints(term, &request.renew).await?;
            let reply = self.with_clock(term, |clock, now| reply(clock, request, now))?;
            let in_time = began.elapsed() < self.settings.extension;
            if let Some(reply) = reply.filter(|_| in_time) {
                let promised = reply.renewed.iter().filter(|ttl| **ttl > 0).count();
                self.replica.metrics().leases_renewed.add(promised as u64);
                return Ok(LeaseClockReply { index, ..reply });
            }
        }
    }

    async fn remove_checkpoints(&self, term: u64, ids: &[i64]) -> Result<(), Refused> {
        let wrong = |clock: &mut Clock, _| clock.checkpointed(ids);
        if self.with_clock(term, wrong)?.is_empty() {
            return Ok(());
        }
        let _in_order = self.checkpoints.lock().await;
        let leases = self.with_clock(term, wrong)?;
        self.checkpoint(term, leases).await
    }

    async fn checkpoint(&self, term: u64, leases: Vec<LeaseRemaining>) -> Result<(), Refused> {
        match leases.is_empty() {
            true => Ok(()),
            false => {
                self.propose(Op::LeaseCheckpoint(LeaseCheckpoint { term, leases }))
                    .await
            }
        }
    }

    /// Through this member only: what one leader's clock decided is nothing that another should propose.
    async fn propose(&self, op: Op) -> Result<(), Refused> {
        match self.replica.propose(own_command(op)).await {
            Ok(reply) => reply.0.map(drop).map_err(|error| Refused(error.to_string())),
            Err(error) => Err(Refused(format!("{error:?}"))),
        }
    }

    /// Looks at the clock for as long as the member runs.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.replica.leads() {
                *self.shared.lock() = None;
            } else if self.is_due()
                && let Err(Refused(why)) = self.end_leases().await
            {
                tracing::debug!(%why, "the lease clock waits");
            }
        }
    }

    /// Whether a lease is due, or a new term's clock has not begun.
    fn is_due(&self) -> bool {
        let (clock, term) = (self.shared.lock(), self.replica.term());
        clock
            .as_ref()
            .is_none_or(|clock| clock.term() != term || clock.is_due(Instant::now()))
    }

    async fn end_leases(&self) -> Result<(), Refused> {
        let (term, _) = self.confirm().await?;
        let expired = {
            let _in_order = self.checkpoints.lock().await;
            let due = self.with_clock(term, |clock, now| clock.take_due(now, EXPIRED, CHECKPOINTS))?;
            self.checkpoint(term, due.checkpoints).await?;
            due.expired
        };
        let proposals = expired.into_iter().map(|expire| async move {
            self.propose(Op::LeaseExpire(expire)).await?;
            self.replica.metrics().leases_expired.increment();
            Ok(())
        });
        // The rest of those that failed come again.
        futures::future::join_all(proposals).await.into_iter().collect()
    }
}

/// Nothing, if a checkpoint was made while others were removed.
fn reply(clock: &mut Clock, request: &LeaseClockRequest, now: Instant) -> Option<LeaseClockReply> {
    let renew = |id: &i64| match clock.renew(*id, now) {
        Renewal::Renewed(ttl) => Some(ttl),
        Renewal::Unknown => Some(0),
        Renewal::Ending => Some(ENDING),
        Renewal::Checkpointed => None,
    };
    let renewed: Option<Vec<i64>> = request.renew.iter().map(renew).collect();
    let look_up = |id: &i64| {
        let times = clock.times(*id, now);
        times.map_or_else(LeaseTimes::default, |(remaining, granted)| LeaseTimes {
            granted,
            remaining,
        })
    };
    Some(LeaseClockReply {
        renewed: renewed?,
        looked_up: request.look_up.iter().map(look_up).collect(),
        listed: if request.list {
            clock.by_expiry()
        } else {
            Vec::new()
        },
        ..LeaseClockReply::default()
    })
}

#[tonic::async_trait]
impl LeaseClock for Leader {
    async fn answer(&self, request: LeaseClockRequest) -> LeaseClockReply {
        self.try_answer(&request)
            .await
            .unwrap_or_else(|Refused(refused)| LeaseClockReply {
                refused,
                ..LeaseClockReply::default()
            })
    }
}
