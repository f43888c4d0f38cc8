//! The whole cluster, as it can be seen through one member.
//!
//! While somebody looks, this member asks each of the others, a few times a second, how it stands and what happened to
//! it since. What they said last is kept: a member that dies takes nothing with it that was told already. While nobody
//! looks, nobody is asked.
//!
//! It shows what *this* member sees: one that it can't reach is shown as such, with how long ago it was heard of.
//!
//! Bounded: so many may look at once ([`MOST_LOOKERS`]), and so many records of each member are kept ([`MOST_RECORDS`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::journal::Id;
use crate::pb::pontoon::peer;
use crate::raft::Node;
use crate::raft::replica::{MOST_RECORDS, Replica};

/// How often the others are asked, and whoever looks is told.
pub const EVERY: Duration = Duration::from_millis(250);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// Who may look at once through this member.
const MOST_LOOKERS: usize = 32;

/// Where members look at each other. Cheap to clone.
#[derive(Clone)]
pub struct Observatory {
    inner: Arc<Inner>,
}

struct Inner {
    replica: Replica,
    others: Mutex<BTreeMap<u64, Other>>,
    /// Those that are being asked.
    asked: Mutex<BTreeSet<u64>>,
    seats: Arc<Semaphore>,
    lookers: watch::Sender<usize>,
    closed: watch::Sender<bool>,
}

/// What another member told.
#[derive(Default)]
struct Other {
    figures: Option<(Value, Instant)>,
    run: u64,
    after: u64,
    records: Records,
}

/// Records of one member, from all its runs that were seen.
#[derive(Default)]
struct Records {
    /// How many were dropped before the first.
    dropped: u64,
    kept: VecDeque<Bytes>,
}

impl Records {
    fn extend(&mut self, records: impl IntoIterator<Item = Bytes>) {
        self.kept.extend(records);
        while self.kept.len() > MOST_RECORDS {
            self.kept.pop_front();
            self.dropped += 1;
        }
    }

    /// Those behind the first `seen`, and how many that makes in all.
    fn after(&self, seen: u64) -> (u64, Vec<Bytes>) {
        let skip = usize::try_from(seen.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        let all = self.dropped + self.kept.len() as u64;
        (all, self.kept.iter().skip(skip).cloned().collect())
    }
}

/// One member, as it is seen from here.
#[derive(Debug, Serialize)]
pub struct Seen {
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub urls: Vec<String>,
    /// Whether it has a vote.
    pub voter: bool,
    /// Whether this is the member that tells.
    pub here: bool,
    /// How old the figures are.
    pub age_ms: Option<u64>,
    /// How it stands.
    pub figures: Option<Value>,
}

/// Everything at one moment.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// When, by this member's clock.
    pub now: u64,
    /// All members.
    pub members: Vec<Seen>,
}

/// Somebody looks, for as long as this is there.
pub struct Look {
    observatory: Observatory,
    /// How many records of each member were handed out.
    handed_out: BTreeMap<u64, u64>,
    _seat: OwnedSemaphorePermit,
}

impl Observatory {
    /// Starts the task that asks while somebody looks.
    pub fn start(replica: Replica) -> Self {
        let inner = Inner {
            replica,
            others: Mutex::default(),
            asked: Mutex::default(),
            seats: Arc::new(Semaphore::new(MOST_LOOKERS)),
            lookers: watch::channel(0).0,
            closed: watch::channel(false).0,
        };
        let observatory = Observatory {
            inner: Arc::new(inner),
        };
        tokio::spawn(observatory.clone().ask_while_somebody_looks());
        observatory
    }

    /// Ends what looks.
    pub fn close(&self) {
        self.inner.closed.send_replace(true);
    }

    /// Returns once it is closed.
    pub async fn closed(&self) {
        // The sender is in `self`.
        let _ = self.inner.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Begins to look; none if too many do.
    pub fn look(&self) -> Option<Look> {
        let seat = self.inner.seats.clone().try_acquire_owned().ok()?;
        self.inner.lookers.send_modify(|lookers| *lookers += 1);
        Some(Look {
            observatory: self.clone(),
            handed_out: BTreeMap::new(),
            _seat: seat,
        })
    }

    fn others(&self) -> MutexGuard<'_, BTreeMap<u64, Other>> {
        self.inner.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask_while_somebody_looks(self) {
        let mut lookers = self.inner.lookers.subscribe();
        let mut next = tokio::time::interval(EVERY);
        next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                looked = lookers.wait_for(|lookers| *lookers > 0) => if looked.is_err() { return },
                () = self.closed() => return,
            }
            next.tick().await;
            for (id, node) in self.nodes() {
                // One that is slow to answer holds up no other, and is not asked twice at once.
                if self.begin(id) {
                    let own = self.clone();
                    tokio::spawn(async move { own.ask(id, &node).await });
                }
            }
        }
    }

    fn nodes(&self) -> Vec<(u64, Node)> {
        let me = self.inner.replica.identity().member_id();
        let nodes = self.inner.replica.standing().nodes;
        nodes.into_iter().filter(|(id, _)| *id != me).collect()
    }

    fn begin(&self, id: u64) -> bool {
        let mut asked = self.inner.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert(id)
    }

    async fn ask(&self, id: u64, node: &Node) {
        let known = self.others().get(&id).map(|other| (other.run, other.after));
        let answer = self
            .inner
            .replica
            .ask_figures(id, node, known.unwrap_or_default(), ANSWER)
            .await;
        if let Ok(answer) = answer {
            self.others().entry(id).or_default().take(answer);
        }
        let mut asked = self.inner.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.remove(&id);
    }

    /// Asks everybody once, so that what is seen next is complete.
    pub async fn ask_everybody(&self) {
        let nodes = self.nodes();
        let asks = nodes
            .iter()
            .filter(|(id, _)| self.begin(*id))
            .map(|(id, node)| self.ask(*id, node));
        futures::future::join_all(asks).await;
    }

    /// How everybody stands.
    pub fn sample(&self) -> Sample {
        let replica = &self.inner.replica;
        let (me, standing) = (replica.identity().member_id(), replica.standing());
        let others = self.others();
        let seen = |record: crate::pb::pontoon::command::MemberRecord| {
            let here = record.id == me;
            let told = others.get(&record.id).and_then(|other| other.figures.as_ref());
            let (figures, age) = match (here, told) {
                (true, _) => (serde_json::to_value(replica.figures()).ok(), Some(Duration::ZERO)),
                (false, Some((figures, at))) => (Some(figures.clone()), Some(at.elapsed())),
                (false, None) => (None, None),
            };
            Seen {
                id: Id(record.id),
                name: record.name,
                urls: record.client_urls,
                voter: standing.voters.contains(&record.id),
                here,
                age_ms: age.map(|age| age.as_millis() as u64),
                figures,
            }
        };
        Sample {
            now: replica.metrics().journal.now(),
            members: replica.reader().members().into_iter().map(seen).collect(),
        }
    }
}

impl Other {
    fn take(&mut self, answer: peer::LookReply) {
        let figures = serde_json::from_slice(&answer.figures).ok();
        self.figures = figures.map(|figures| (figures, Instant::now()));
        self.run = answer.run;
        self.after = answer.after;
        self.records.extend(answer.records);
    }
}

impl Look {
    /// What happened to each member since the last call, as JSON, oldest first.
    pub fn news(&mut self) -> BTreeMap<u64, Vec<Bytes>> {
        let mut news = BTreeMap::new();
        let replica = &self.observatory.inner.replica;
        let me = replica.identity().member_id();
        let own_seen = self.handed_out.entry(me).or_default();
        let own = replica.metrics().journal.after(*own_seen, MOST_RECORDS);
        if let Some(last) = own.last() {
            *own_seen = last.seq;
            let json = |record| Bytes::from(serde_json::to_vec(record).unwrap_or_default());
            news.insert(me, own.iter().map(json).collect());
        }
        for (id, other) in self.observatory.others().iter() {
            let seen = self.handed_out.entry(*id).or_default();
            let (all, records) = other.records.after(*seen);
            *seen = all;
            if !records.is_empty() {
                news.insert(*id, records);
            }
        }
        news
    }

    /// The runs of the members, to tell their records apart.
    pub fn observatory(&self) -> &Observatory {
        &self.observatory
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.observatory
            .inner
            .lookers
            .send_modify(|lookers| *lookers -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_handed_out_once_and_the_oldest_go() {
        let mut records = Records::default();
        let numbered = |from: usize, to: usize| (from..to).map(|n| Bytes::from(n.to_string()));
        records.extend(numbered(0, 3));
        let (seen, first) = records.after(0);
        assert_eq!((seen, first.len()), (3, 3));
        assert_eq!(records.after(3), (3, vec![]));
        records.extend(numbered(3, MOST_RECORDS + 5));
        assert_eq!(records.dropped, 5);
        let (seen, rest) = records.after(3);
        assert_eq!(seen, MOST_RECORDS as u64 + 5);
        assert_eq!(rest[0], "5", "two of them are gone");
        assert_eq!(rest.len(), MOST_RECORDS);
    }
}
