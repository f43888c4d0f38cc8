//! What clients did and saw: the input of both checkers.
//!
//! A failed write is unknown, not absent: unless the answer says that it was refused, it may have been executed, or
//! may yet be. What became of it is read from the store at the end, where every revision can still be seen: for this
//! the workload never compacts and every value it writes is unique.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::{RangeRequest, TxnRequest};
use pontoon::pb::mvccpb::KeyValue;
use tonic::{Code, Status};

use super::rpc::{Client, Request, Response, everything, is_read_only};

/// How an operation ended, as far as its client knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Executed, with this answer.
    Answered(Response),
    /// Certainly not executed.
    Refused,
    /// Executed or not, now or later.
    Unknown,
}

/// One operation of one client. Times are nanoseconds since the history began.
#[derive(Debug, Clone)]
pub struct Operation {
    pub start: u64,
    /// `u64::MAX` if the outcome is unknown: it may take effect at any later time.
    pub end: u64,
    pub request: Request,
    pub outcome: Outcome,
}

impl Operation {
    pub fn answer(&self) -> Option<&Response> {
        match &self.outcome {
            Outcome::Answered(response) => Some(response),
            Outcome::Refused | Outcome::Unknown => None,
        }
    }

    /// May the answer be stale?
    pub fn is_serializable(&self) -> bool {
        let serializable = |op: &Op| matches!(op, Op::RequestRange(range) if range.serializable);
        match &self.request {
            Request::Range(range) => range.serializable,
            Request::Txn(TxnRequest { success, failure, .. }) => success
                .iter()
                .chain(failure)
                .filter_map(|op| op.request.as_ref())
                .all(serializable),
            Request::Put(_) | Request::Delete(_) | Request::Compact(_) => false,
        }
    }
}

/// Collects operations from many clients.
#[derive(Clone)]
pub struct Recorder {
    begin: Instant,
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder {
            begin: Instant::now(),
            operations: Arc::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).expect("a test ends within centuries")
    }

    /// Sends a request and records what came of it.
    pub async fn call(
        &self,
        client: &mut Client,
        limit: Duration,
        request: Request,
    ) -> Result<Response, Status> {
        let start = self.now();
        let answer = client
            .call_within(limit, request.clone())
            .await
            .map(Response::strip);
        let outcome = match &answer {
            Ok(response) => Outcome::Answered(response.clone()),
            Err(status) if is_certain(status) => Outcome::Refused,
            Err(_) => Outcome::Unknown,
        };
        let end = if outcome == Outcome::Unknown {
            u64::MAX
        } else {
            self.now()
        };
        self.operations
            .lock()
            .expect("no recorder panicked")
            .push(Operation {
                start,
                end,
                request,
                outcome,
            });
        answer
    }

    /// Everything recorded so far.
    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().expect("no recorder panicked").clone()
    }
}

/// Errors that are given only before anything was done, or that are the answer of the state machine itself.
fn is_certain(status: &Status) -> bool {
    let answered = matches!(
        status.code(),
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound
    );
    answered || status.message() == "etcdserver: too many requests"
}

/// The store's whole past: the pairs at each revision.
pub struct Past {
    /// The first element is revision 1, the empty store.
    states: Vec<Vec<KeyValue>>,
}

impl Past {
    pub fn new(states: Vec<Vec<KeyValue>>) -> Past {
        Past { states }
    }

    /// Reads every revision through one member.
    pub async fn read(client: &Client) -> Result<Past, Status> {
        let mut first = client.clone();
        let last = first.call(Request::Range(everything())).await?.revision();
        let at = |revision| {
            let mut client = client.clone();
            let request = Request::Range(RangeRequest {
                revision,
                serializable: true,
                ..everything()
            });
            async move { client.call(request).await }
        };
        let mut answers = futures::stream::iter(2..=last).map(at).buffered(16);
        let mut states = vec![Vec::new()];
        while let Some(answer) = answers.next().await {
            let Response::Range(range) = answer? else {
                unreachable!("a range answers a range")
            };
            states.push(range.kvs);
        }
        Ok(Past { states })
    }

    /// The store's revision.
    pub fn last(&self) -> i64 {
        i64::try_from(self.states.len()).expect("a revision")
    }

    /// The pairs at a revision that exists.
    pub fn at(&self, revision: i64) -> &[KeyValue] {
        &self.states[usize::try_from(revision - 1).expect("revisions begin at 1")]
    }
}

/// The longest time in which no write was acknowledged, between the first acknowledgement and the last.
pub fn longest_gap(operations: &[Operation]) -> Duration {
    let writes = |op: &&Operation| op.answer().is_some() && op.request.is_write();
    let mut ends: Vec<u64> = operations.iter().filter(writes).map(|op| op.end).collect();
    ends.sort_unstable();
    let gap = ends.windows(2).map(|pair| pair[1] - pair[0]).max();
    Duration::from_nanos(gap.unwrap_or_default())
}

/// Counts for a run's last line, and the proof that it did something.
pub struct Tally {
    pub writes: usize,
    pub reads: usize,
    pub refused: usize,
    pub unknown: usize,
}

impl Tally {
    pub fn of(operations: &[Operation]) -> Tally {
        let mut tally = Tally {
            writes: 0,
            reads: 0,
            refused: 0,
            unknown: 0,
        };
        for operation in operations {
            match &operation.outcome {
                Outcome::Answered(_) if operation.request.is_write() => tally.writes += 1,
                Outcome::Answered(_) => tally.reads += 1,
                Outcome::Refused => tally.refused += 1,
                Outcome::Unknown => tally.unknown += 1,
            }
        }
        tally
    }
}

/// Whether a request reads only: then it matters not whether it was executed.
pub fn only_reads(request: &Request) -> bool {
    match request {
        Request::Range(_) => true,
        Request::Txn(txn) => is_read_only(txn),
        Request::Put(_) | Request::Delete(_) | Request::Compact(_) => false,
    }
}
