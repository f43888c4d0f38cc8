//! One round: a member is broken, the cluster goes on without it, it comes back.
//!
//! ```text
//! asked      last sign of life    done    first write    mended         caught up
//!   |               |              |          |            |                |
//!   |. . . . . . . .|--------------|----------|------------|----------------|
//!                   '----- first write -------'            '--- catch-up ---'
//! ```
//!
//! Between asking for the fault and having it nobody here knows when it happened, and a command may take its time for
//! that. So the victim is asked for signs of life all the while. The fault counts from when the last one that it gave was
//! asked for, and the first write is one that began after that: when the next one was asked for, which never came. If the
//! victim led, it still may have acknowledged one in between: only one that a later leader acknowledged counts.

use std::time::{Duration, Instant, SystemTime};

use super::breaker::Breaker;
use super::fault::{Act, Fault};
use super::load::Load;
use super::members::Members;
use super::times::Failover;
use super::until::{Ended, Interrupts};
use crate::client::Options;

/// What a round is done with.
pub struct Stage<'a> {
    /// What is done.
    pub fault: Fault,
    /// By whom.
    pub breaker: &'a Breaker,
    /// To whom.
    pub members: &'a Members,
    /// What goes on meanwhile.
    pub load: &'a Load,
    /// How members are reached.
    pub options: &'a Options,
    /// How long each part may take.
    pub limit: Duration,
    /// What ends it.
    pub interrupts: &'a Interrupts,
}

/// What was measured, in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// Who was broken.
    pub member: String,
    /// Whether it led.
    pub led: bool,
    /// Until it was missed, and until there was a new leader.
    pub failover: Failover,
    /// Until the first write that began behind the fault was acknowledged.
    pub first_write_ms: f64,
    /// From when it was asked to come back until it had applied what the leader had.
    pub catch_up_ms: f64,
    /// The longest time in which no write was acknowledged to anybody.
    pub pause_ms: f64,
}

impl Stage<'_> {
    /// Waits until each writer had a write acknowledged: that is what the first fault may lose.
    pub async fn begin(&self) -> Result<(), Ended> {
        let all = || self.load.have_all_written().then_some(());
        self.written("each writer's first write to be acknowledged", all)
            .await
    }

    /// Plays a round. However it ends, what was broken is put right.
    pub async fn round(&self, number: usize) -> Result<Round, Ended> {
        let what = "all members to answer and to have caught up";
        let whole = async || self.members.whole().await;
        let leader = self.interrupts.until(self.limit, what, whole).await?;
        let voters = self.members.voters();
        let place = self.fault.victim(number, leader.place, voters.len());
        let victim = &voters[place];
        let led = place == leader.place;

        self.load.begin_round(if led { leader.term } else { 0 });
        let failed_over = self.fail_over(place).await;
        let mended = Instant::now();
        let mend = self.breaker.mend(self.fault.act, &victim.name).await;
        let (fault, first) = failed_over?;
        mend.map_err(|error| Ended::Failed(format!("{error:#}")))?;
        let what = format!("{} to catch up", victim.name);
        let caught_up = async || self.members.has_caught_up(place).await;
        self.interrupts.until(self.limit, &what, caught_up).await?;
        let catch_up_ms = milliseconds(mended.elapsed());

        let survivors = voters.iter().filter(|voter| voter.id != victim.id);
        let survivors: Vec<_> = survivors.collect();
        let fault_at = SystemTime::now() - fault.elapsed();
        Ok(Round {
            member: victim.name.clone(),
            led,
            failover: Failover::told_by(&survivors, fault_at, self.options).await,
            first_write_ms: milliseconds(first.saturating_duration_since(fault)),
            catch_up_ms,
            pause_ms: milliseconds(self.load.longest_pause()),
        })
    }

    /// Breaks a member and waits for the first write behind that; when both were.
    async fn fail_over(&self, place: usize) -> Result<(Instant, Instant), Ended> {
        let victim = &self.members.voters()[place];
        let act = self.fault.act;
        // One that stops in order hands over before it is gone: that is a part of the fault.
        let told = (act == Act::Stop).then(|| self.load.await_first());
        let behind = || {
            if told.is_none() {
                self.load.await_first();
            }
        };
        let strike = self.breaker.strike(act, &victim.name);
        let (struck, last_seen) = victim.last_seen_alive(strike, behind).await;
        struck.map_err(|error| Ended::Failed(format!("{error:#}")))?;
        let first = self.written("a write to be acknowledged", || self.load.first());
        let first = first.await?;
        Ok((told.unwrap_or(last_seen), first))
    }

    /// Waits for writes; if they don't come, the last error may say why.
    async fn written<T>(&self, what: &str, probe: impl Fn() -> Option<T>) -> Result<T, Ended> {
        let written = self.interrupts.until(self.limit, what, async || probe()).await;
        written.map_err(|ended| match (ended, self.load.last_error()) {
            (Ended::Failed(why), Some(error)) => Ended::Failed(format!("{why}; the last error was: {error}")),
            (ended, _) => ended,
        })
    }
}

/// With thousandths, as far as they mean something.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
