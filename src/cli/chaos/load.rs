//! What goes on while members are broken: writers and readers, through all members.
//!
//! Each writer has a member that it begins each round with, and goes on to the next one when that can't serve, as any
//! client does. So there are always clients at the member that is broken, and at the others.
//!
//! A call that waits for somebody who stands still does not hold up the next one of its client: that begins soon, as other
//! clients would come by. A write that comes later than the next one is overtaken, and does nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Code;

use super::keys::Keys;
use super::ledger::{Floors, Ledger, Stale};
use crate::client::{Client, ClientError, Options};

/// Writers, each with a counter.
pub const WRITERS: usize = 8;
/// Readers, each of any counter.
const READERS: usize = 4;
/// Between the beginnings of two writes of one writer, and of two reads. Together writers begin one a millisecond or so:
/// that is how exactly the first write can be timed, and it leaves the machine to the members.
const PACE: Duration = Duration::from_millis(10);
/// How long a write or a read may take: past a failover, and no longer at a member that stands still.
const CALL: Duration = Duration::from_secs(3);
/// After so long a client makes its next call though there is no answer: so at most thirty of each are under way.
const LATE: Duration = Duration::from_millis(100);
/// Stale reads that are told one by one.
const EXAMPLES: usize = 10;

/// The writers and readers that run.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    phase: watch::Sender<Phase>,
}

/// What all of them share.
pub struct Shared {
    /// Where they write.
    pub keys: Keys,
    endpoints: Vec<String>,
    options: Options,
    ledgers: Vec<Mutex<Ledger>>,
    floors: Floors,
    gap: Mutex<Gap>,
    reads: AtomicU64,
    stale: Mutex<(u64, Vec<Stale>)>,
    last_error: Mutex<Option<String>>,
}

/// Where the run is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Phase {
    round: u64,
    ends: bool,
}

/// Which acknowledgements came when in a round.
#[derive(Debug, Default)]
struct Gap {
    /// Writes that begin from here on count as the first...
    from: Option<Instant>,
    /// ...if they are acknowledged in a later term than this one.
    term: u64,
    /// When the first of them was acknowledged.
    first: Option<Instant>,
    /// The last acknowledgement of any.
    last: Option<Instant>,
    /// The longest time without one.
    longest: Duration,
}

impl Gap {
    fn begin(&mut self) -> Instant {
        let now = Instant::now();
        (self.from, self.first) = (Some(now), None);
        now
    }

    fn acknowledge(&mut self, begun: Instant, now: Instant, term: u64) {
        if self.from.is_some_and(|from| begun >= from) && term > self.term {
            self.first.get_or_insert(now);
        }
        if let Some(last) = self.last.replace(now) {
            self.longest = self.longest.max(now.saturating_duration_since(last));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// Makes the counters and starts.
    pub async fn start(keys: Keys, endpoints: Vec<String>, options: &Options) -> Result<Load, ClientError> {
        let client = Client::with(&endpoints, options.clone())?;
        for writer in 0..WRITERS {
            client.put(keys.first(writer)).await?;
        }
        let shared = Arc::new(Shared {
            keys,
            endpoints,
            options: Options {
                timeout: options.timeout.min(CALL),
                ..options.clone()
            },
            ledgers: (0..WRITERS).map(|_| Mutex::default()).collect(),
            floors: Floors::new(WRITERS),
            gap: Mutex::default(),
            reads: AtomicU64::new(0),
            stale: Mutex::default(),
            last_error: Mutex::default(),
        });
        let (phase, _) = watch::channel(Phase {
            round: 0,
            ends: false,
        });
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let write = move |shared: Arc<Shared>, client| shared.write(writer, client);
            tasks.spawn(shared.clone().work(writer, phase.subscribe(), write));
        }
        for reader in 0..READERS {
            tasks.spawn(shared.clone().work(reader, phase.subscribe(), Shared::read));
        }
        Ok(Load { shared, tasks, phase })
    }

    /// Whether each writer had a write acknowledged.
    pub fn have_all_written(&self) -> bool {
        (0..WRITERS).all(|writer| self.shared.ledger(writer).acknowledged() > 0)
    }

    /// A round begins: every client goes back to the member that it begins with. If the leader is to be broken, `term` is
    /// its term, else 0: the first write is one that was acknowledged in a later one.
    pub fn begin_round(&self, term: u64) {
        *lock(&self.shared.gap) = Gap {
            term,
            last: Some(Instant::now()),
            ..Gap::default()
        };
        self.phase.send_modify(|phase| phase.round += 1);
    }

    /// From now on the first write is waited for, whatever came before. Whoever acknowledges one needs the lock, so none
    /// that begins later is missed.
    pub fn await_first(&self) -> Instant {
        lock(&self.shared.gap).begin()
    }

    /// When the first write that began since then was acknowledged.
    pub fn first(&self) -> Option<Instant> {
        lock(&self.shared.gap).first
    }

    /// The longest time without an acknowledgement in this round, until now.
    pub fn longest_pause(&self) -> Duration {
        let gap = lock(&self.shared.gap);
        gap.longest
            .max(gap.last.map_or(Duration::ZERO, |last| last.elapsed()))
    }

    /// What the last call that failed was told.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.shared.last_error).clone()
    }

    /// Ends when all that is under way has ended.
    pub async fn end(mut self) -> Arc<Shared> {
        self.phase.send_modify(|phase| phase.ends = true);
        while self.tasks.join_next().await.is_some() {}
        self.shared
    }
}

impl Shared {
    /// What a writer was promised.
    pub fn ledger(&self, writer: usize) -> MutexGuard<'_, Ledger> {
        lock(&self.ledgers[writer])
    }

    /// Linearizable reads that were answered.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// How many of them were stale, and some of those.
    pub fn stale(&self) -> (u64, Vec<Stale>) {
        lock(&self.stale).clone()
    }

    /// A client that begins with the member in this place.
    fn client(&self, home: usize) -> Option<Arc<Client>> {
        let mut endpoints = self.endpoints.clone();
        let home = home % endpoints.len().max(1);
        endpoints.rotate_left(home);
        Client::with(&endpoints, self.options.clone()).ok().map(Arc::new)
    }

    /// A call failed: at a member that does not answer the next one would fare no better.
    fn failed(&self, client: &Client, error: &ClientError) {
        *lock(&self.last_error) = Some(error.to_string());
        // Where it can't be reached the client has left it by itself.
        if !matches!(error.code(), None | Some(Code::Unavailable)) {
            client.leave_endpoint();
        }
    }

    /// Makes one call after another, through the member in the place `home` first, until the end.
    async fn work<F>(
        self: Arc<Self>,
        home: usize,
        phase: watch::Receiver<Phase>,
        call: impl Fn(Arc<Self>, Arc<Client>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut turns = Turns::of(phase);
        let mut client = self.client(home);
        let mut under_way = JoinSet::new();
        while let Some(goes_home) = turns.next().await {
            if goes_home {
                client = self.client(home);
            }
            let Some(client) = client.clone() else { return };
            while under_way.try_join_next().is_some() {}
            under_way.spawn(call(self.clone(), client));
            // Late or not, the next one begins.
            let _ = tokio::time::timeout(LATE, under_way.join_next()).await;
        }
        while under_way.join_next().await.is_some() {}
    }

    async fn write(self: Arc<Self>, writer: usize, client: Arc<Client>) {
        let number = self.ledger(writer).begin();
        let begun = Instant::now();
        match client.txn(self.keys.write(writer, number)).await {
            Ok(answer) if answer.succeeded => {
                self.ledger(writer).acknowledge(number);
                self.floors.raise(writer, number);
                let term = answer.header.map_or(0, |header| header.raft_term);
                lock(&self.gap).acknowledge(begun, Instant::now(), term);
            }
            Ok(_) => {
                let why = "a write was overtaken by the next one, or somebody else changed the counters";
                *lock(&self.last_error) = Some(why.to_string());
            }
            Err(error) => self.failed(&client, &error),
        }
    }

    async fn read(self: Arc<Self>, client: Arc<Client>) {
        let counter = rand::random_range(0..WRITERS);
        let known = self.floors.now(counter);
        match client.range(self.keys.counter(counter)).await {
            Ok(answer) => {
                let value = answer.kvs.first().map(|kv| kv.value.clone());
                self.judge(counter, known, &value.unwrap_or_default());
            }
            Err(error) => self.failed(&client, &error),
        }
    }

    fn judge(&self, counter: usize, known: u64, value: &Bytes) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if let Some(found) = self.floors.judge(counter, known, Keys::number(value)) {
            let mut stale = lock(&self.stale);
            stale.0 += 1;
            if stale.1.len() < EXAMPLES {
                stale.1.push(found);
            }
        }
    }
}

/// When a task may begin its next call.
struct Turns {
    phase: watch::Receiver<Phase>,
    round: u64,
    due: tokio::time::Interval,
}

impl Turns {
    fn of(phase: watch::Receiver<Phase>) -> Turns {
        let mut due = tokio::time::interval(PACE);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let round = phase.borrow().round;
        Turns { phase, round, due }
    }

    /// Whether another round has begun; none at the end.
    async fn next(&mut self) -> Option<bool> {
        self.due.tick().await;
        let phase = *self.phase.borrow();
        let goes_home = phase.round != self.round;
        self.round = phase.round;
        (!phase.ends).then_some(goes_home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_write_is_one_that_began_behind_the_fault() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut gap = Gap {
            term: 3,
            last: Some(start),
            ..Gap::default()
        };
        gap.acknowledge(at(1), at(2), 3);
        gap.from = Some(at(10));
        gap.acknowledge(at(9), at(1000), 4);
        assert_eq!(gap.first, None, "it was under way when the fault happened");
        gap.acknowledge(at(10), at(1000), 3);
        assert_eq!(gap.first, None, "the old leader did it with its last breath");
        gap.acknowledge(at(10), at(1001), 4);
        gap.acknowledge(at(11), at(1002), 4);
        assert_eq!(gap.first, Some(at(1001)));
        gap.begin();
        assert_eq!(gap.first, None, "the fault had not happened yet");
        assert_eq!(gap.longest, Duration::from_millis(998));
    }
}
