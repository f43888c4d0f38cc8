//! What a client does: one operation after the other, each built from parts that were made before.
//!
//! Nothing is sent again, so what is measured is what the servers answered. A client asks its connections in turn: so the
//! endpoints share even what a single client asks.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::Status;

use super::caller::{Caller, Exchange, Line, Method, Patience};
use super::connections::lock;
use super::fan_out::FanOut;
use super::keys::{Draw, Values};
use super::measured::{Measured, Outcome};
use super::plan::{Plan, Work};
use super::schedule::Schedule;
use super::wire::Tally;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request as Op;
use crate::pb::etcdserverpb::response_op::Response as Answer;
use crate::pb::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    PutRequest, PutResponse, RangeRequest, RequestOp, TxnRequest, TxnResponse,
};

/// After an operation that failed, so that one that fails at once does not keep the machine busy.
const PAUSE: Duration = Duration::from_millis(10);
/// Number of the field with the pairs in the answer to a range.
const RANGE_RESPONSE_KVS: u64 = 2;

/// What all clients share.
pub struct Shared {
    /// What was asked for.
    pub plan: Plan,
    /// What is written.
    pub values: Values,
    /// How long an answer may take.
    pub timeout: Duration,
    /// For `txn`: the revision last seen of each key.
    pub revisions: Vec<AtomicI64>,
    /// For `watch`.
    pub fan_out: Option<Arc<FanOut>>,
}

impl Shared {
    /// A key's revision is at least this.
    pub fn has_seen(&self, number: u64, revision: i64) {
        if let Some(known) = self.revisions.get(number as usize) {
            known.fetch_max(revision, Ordering::Relaxed);
        }
    }

    fn revision(&self, number: u64) -> i64 {
        let known = self.revisions.get(number as usize);
        known.map_or(0, |known| known.load(Ordering::Relaxed))
    }
}

/// One client.
pub struct Client {
    shared: Arc<Shared>,
    lines: Vec<Line>,
    /// The connection that was used last.
    at: usize,
    patience: Patience,
    draw: Draw,
    renewal: Option<Renewal>,
}

impl Client {
    /// Over these connections, beginning with one of its own.
    pub async fn new(shared: Arc<Shared>, callers: &[Arc<Caller>], first: usize, draw: Draw) -> Client {
        let lines = callers.iter().map(Caller::line);
        Client {
            lines: futures::future::join_all(lines).await,
            at: first % callers.len(),
            patience: Patience::new(shared.timeout),
            draw,
            renewal: None,
            shared,
        }
    }

    /// Gets what it needs before it can begin.
    pub async fn prepared(mut self) -> Result<Client, Status> {
        if self.shared.plan.work == Work::LeaseKeepAlive {
            self.renewal = Some(self.begin_renewing().await?);
        }
        Ok(self)
    }

    /// Does what is due until there is no more.
    pub async fn run(mut self, schedule: Arc<Schedule>, measured: Arc<Mutex<Measured>>) {
        loop {
            if let Some(fan_out) = &self.shared.fan_out {
                fan_out.await_room().await;
            }
            let Some(begun) = schedule.next().await else { break };
            let outcome = match self.once(begun).await {
                Ok(outcome) => outcome,
                Err(status) => Outcome::Failed(status.code()),
            };
            lock(&measured).record(&schedule.interval, begun, Instant::now(), outcome);
            if matches!(outcome, Outcome::Failed(_)) {
                tokio::time::sleep(PAUSE).await;
            }
        }
        if let Some(fan_out) = &self.shared.fan_out {
            fan_out.give_room();
        }
    }

    async fn once(&mut self, begun: Instant) -> Result<Outcome, Status> {
        match self.shared.plan.work {
            Work::Put => self.put().await,
            Work::Get => self.get().await,
            Work::Range { keys } => self.range(keys).await,
            Work::Txn => self.compare_and_swap().await,
            Work::Mixed { reads } if self.draw.chance(reads) => self.get().await,
            Work::Mixed { .. } => self.put().await,
            Work::Watch { .. } => self.put_watched(begun).await,
            Work::LeaseGrant => self.grant().await.map(|_| Outcome::Done),
            Work::LeaseKeepAlive => self.renew().await,
        }
    }

    /// The next connection's number.
    fn turn(&mut self) -> usize {
        self.at = (self.at + 1) % self.lines.len();
        self.at
    }

    fn pair(&mut self, key: Bytes) -> PutRequest {
        PutRequest {
            key,
            value: self.draw.value(&self.shared.values),
            ..PutRequest::default()
        }
    }

    fn drawn_key(&mut self) -> Bytes {
        self.shared.plan.space.name(self.draw.next())
    }

    async fn put(&mut self) -> Result<Outcome, Status> {
        let key = self.drawn_key();
        let pair = self.pair(key);
        self.send_put(pair).await
    }

    async fn send_put(&mut self, pair: PutRequest) -> Result<Outcome, Status> {
        let at = self.turn();
        let answer = self.lines[at].ask::<PutResponse>(Method::Put, &pair);
        self.patience.with(answer).await?;
        Ok(Outcome::Done)
    }

    async fn get(&mut self) -> Result<Outcome, Status> {
        let key = self.drawn_key();
        self.read(key, Bytes::new(), 1).await
    }

    async fn range(&mut self, keys: u64) -> Result<Outcome, Status> {
        let (key, end) = self.shared.plan.space.range(self.draw.next(), keys);
        self.read(key, end, keys).await
    }

    async fn read(&mut self, key: Bytes, range_end: Bytes, expected: u64) -> Result<Outcome, Status> {
        let request = RangeRequest {
            key,
            range_end,
            serializable: self.shared.plan.serializable,
            ..RangeRequest::default()
        };
        let at = self.turn();
        let mut found = Tally::of(RANGE_RESPONSE_KVS);
        let answer = self.lines[at].call(Method::Range, &request, &mut found);
        self.patience.with(answer).await?;
        Ok(match found.count()? == expected {
            true => Outcome::Done,
            false => Outcome::Missed,
        })
    }

    async fn compare_and_swap(&mut self) -> Result<Outcome, Status> {
        let number = self.draw.next();
        let key = self.shared.plan.space.name(number);
        let pair = self.pair(key.clone());
        let request = swap(key, self.shared.revision(number), pair);
        let at = self.turn();
        let answer = self.lines[at].ask(Method::Txn, &request);
        let answer: TxnResponse = self.patience.with(answer).await?;
        self.shared.has_seen(number, revision_of(&answer));
        Ok(match answer.succeeded {
            true => Outcome::Done,
            false => Outcome::Missed,
        })
    }

    async fn put_watched(&mut self, begun: Instant) -> Result<Outcome, Status> {
        let Some(fan_out) = self.shared.fan_out.clone() else {
            return Err(Status::internal("nobody watches"));
        };
        let mut pair = self.pair(self.shared.plan.space.name(0));
        pair.value = fan_out.stamped(begun, &pair.value);
        let written = self.send_put(pair).await;
        fan_out.wrote(written.is_ok());
        written
    }

    async fn grant(&mut self) -> Result<i64, Status> {
        let ttl = self.shared.plan.ttl_s;
        let at = self.turn();
        let request = LeaseGrantRequest { ttl, id: 0 };
        let answer = self.lines[at].ask::<LeaseGrantResponse>(Method::Grant, &request);
        Ok(self.patience.with(answer).await?.id)
    }

    async fn renew(&mut self) -> Result<Outcome, Status> {
        let mut renewal = match self.renewal.take() {
            Some(renewal) => renewal,
            None => self.begin_renewing().await?,
        };
        let ttl = self.patience.with(renewal.once()).await?;
        // Kept only while it works.
        self.renewal = Some(renewal);
        Ok(match ttl > 0 {
            true => Outcome::Done,
            false => Outcome::Missed,
        })
    }

    /// A lease, and a stream to renew it.
    async fn begin_renewing(&mut self) -> Result<Renewal, Status> {
        let id = self.grant().await?;
        let request = LeaseKeepAliveRequest { id };
        let stream = self.lines[self.at].open(Method::KeepAlive, &request);
        let stream = self.patience.with(stream).await?;
        let mut renewal = Renewal { request, stream };
        self.patience.with(renewal.answer()).await?;
        Ok(renewal)
    }
}

/// A lease that is being renewed.
struct Renewal {
    request: LeaseKeepAliveRequest,
    stream: Exchange,
}

impl Renewal {
    /// Renews it; the seconds it lives from now on.
    async fn once(&mut self) -> Result<i64, Status> {
        self.stream.send(&self.request)?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<i64, Status> {
        let answer: Option<LeaseKeepAliveResponse> = self.stream.next().await?;
        let ended = || Status::unavailable("the stream has ended");
        Ok(answer.ok_or_else(ended)?.ttl)
    }
}

/// Writes the pair if the key's revision is `known`; else says which it is.
fn swap(key: Bytes, known: i64, pair: PutRequest) -> TxnRequest {
    let op = |request| RequestOp {
        request: Some(request),
    };
    let look = RangeRequest {
        key: key.clone(),
        keys_only: true,
        ..RangeRequest::default()
    };
    TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key,
            range_end: Bytes::new(),
            target_union: Some(TargetUnion::ModRevision(known)),
        }],
        success: vec![op(Op::RequestPut(pair))],
        failure: vec![op(Op::RequestRange(look))],
    }
}

/// The revision of a key that [`swap`] was about.
fn revision_of(answer: &TxnResponse) -> i64 {
    if answer.succeeded {
        return answer.header.as_ref().map_or(0, |header| header.revision);
    }
    match answer.responses.first().and_then(|op| op.response.as_ref()) {
        Some(Answer::ResponseRange(found)) => found.kvs.first().map_or(0, |kv| kv.mod_revision),
        _ => 0,
    }
}
