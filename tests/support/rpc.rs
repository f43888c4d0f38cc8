//! One request and its answer, whatever the kind: what the generator makes, a server answers, and the model predicts.
//!
//! Cluster id, member id and term differ between any two clusters: [`Response::strip`] removes them, so that what
//! is left may be compared field by field.

use std::time::Duration;

use pontoon::pb::etcdserverpb::kv_client::KvClient;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::response_op::Response as OpAnswer;
use pontoon::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use pontoon::pb::mvccpb::KeyValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// A call to etcd's KV service.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
}

impl Request {
    /// May it change something? A transaction of ranges alone may not.
    pub fn is_write(&self) -> bool {
        match self {
            Request::Range(_) | Request::Compact(_) => false,
            Request::Put(_) | Request::Delete(_) => true,
            Request::Txn(txn) => !is_read_only(txn),
        }
    }
}

/// Whether both branches hold nothing but ranges.
pub fn is_read_only(txn: &TxnRequest) -> bool {
    txn.success
        .iter()
        .chain(&txn.failure)
        .all(|op| matches!(op.request, Some(Op::RequestRange(_))))
}

/// Wraps an operation for a transaction.
pub fn op(request: Op) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

/// What a call returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    Range(RangeResponse),
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
}

impl Response {
    /// The header's revision, 0 without a header.
    pub fn revision(&self) -> i64 {
        let header = match self {
            Response::Range(r) => &r.header,
            Response::Put(r) => &r.header,
            Response::Delete(r) => &r.header,
            Response::Txn(r) => &r.header,
            Response::Compact(r) => &r.header,
        };
        header.as_ref().map_or(0, |header| header.revision)
    }

    /// The header, to be changed.
    pub fn header_mut(&mut self) -> &mut Option<ResponseHeader> {
        match self {
            Response::Range(r) => &mut r.header,
            Response::Put(r) => &mut r.header,
            Response::Delete(r) => &mut r.header,
            Response::Txn(r) => &mut r.header,
            Response::Compact(r) => &mut r.header,
        }
    }

    /// Replaces every revision that a header holds.
    pub fn set_revisions(&mut self, revision: i64) {
        if let Some(header) = self.header_mut() {
            header.revision = revision;
        }
        let Response::Txn(txn) = self else { return };
        for answer in txn.responses.iter_mut().filter_map(|op| op.response.as_mut()) {
            match answer {
                OpAnswer::ResponseRange(r) => r.header = header(revision),
                OpAnswer::ResponsePut(r) => r.header = header(revision),
                OpAnswer::ResponseDeleteRange(r) => r.header = header(revision),
                OpAnswer::ResponseTxn(_) => {}
            }
        }
    }

    /// Visits the pairs that ranges found.
    pub fn for_each_pair(&mut self, visit: &mut dyn FnMut(&mut KeyValue)) {
        match self {
            Response::Range(range) => range.kvs.iter_mut().for_each(visit),
            Response::Txn(txn) => {
                for answer in txn.responses.iter_mut().filter_map(|op| op.response.as_mut()) {
                    if let OpAnswer::ResponseRange(range) = answer {
                        range.kvs.iter_mut().for_each(&mut *visit);
                    }
                }
            }
            Response::Put(_) | Response::Delete(_) | Response::Compact(_) => {}
        }
    }

    /// Without what differs between clusters: the header keeps only its revision.
    pub fn strip(mut self) -> Response {
        if let Some(header) = self.header_mut() {
            *header = ResponseHeader {
                revision: header.revision,
                ..Default::default()
            };
        }
        self
    }
}

/// A header that carries a revision and nothing else.
pub fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..Default::default()
    })
}

/// An error as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub code: Code,
    pub text: String,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Refusal {
        Refusal {
            code: status.code(),
            text: status.message().to_string(),
        }
    }
}

/// An answer, comparable between servers.
pub type Answer = Result<Response, Refusal>;

/// Larger than any answer a test asks for.
const MAX_ANSWER: usize = 1 << 30;

/// A connection to one endpoint.
#[derive(Clone)]
pub struct Client {
    kv: KvClient<Channel>,
}

impl Client {
    /// Connects when first used.
    pub fn new(endpoint: &str) -> Client {
        Client {
            kv: KvClient::new(channel(endpoint)).max_decoding_message_size(MAX_ANSWER),
        }
    }

    /// Sends one request.
    pub async fn call(&mut self, request: Request) -> Result<Response, Status> {
        Ok(match request {
            Request::Range(r) => Response::Range(self.kv.range(r).await?.into_inner()),
            Request::Put(r) => Response::Put(self.kv.put(r).await?.into_inner()),
            Request::Delete(r) => Response::Delete(self.kv.delete_range(r).await?.into_inner()),
            Request::Txn(r) => Response::Txn(self.kv.txn(r).await?.into_inner()),
            Request::Compact(r) => Response::Compact(self.kv.compact(r).await?.into_inner()),
        })
    }

    /// Sends one request; the answer is stripped of what differs between clusters.
    pub async fn ask(&mut self, request: Request) -> Answer {
        self.call(request)
            .await
            .map(Response::strip)
            .map_err(Refusal::from)
    }

    /// Sends one request with a deadline of its own.
    pub async fn call_within(&mut self, limit: Duration, request: Request) -> Result<Response, Status> {
        match tokio::time::timeout(limit, self.call(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("the test's own deadline")),
        }
    }

    /// Puts one pair; returns the write's revision.
    pub async fn put(&mut self, key: &str, value: &str) -> Result<i64, Status> {
        let request = put_request(key.as_bytes(), value.as_bytes());
        Ok(self.call(Request::Put(request)).await?.revision())
    }

    /// Reads one value.
    pub async fn get(&mut self, key: &str) -> Result<Option<String>, Status> {
        let request = RangeRequest {
            key: key.as_bytes().to_vec().into(),
            ..Default::default()
        };
        let Response::Range(range) = self.call(Request::Range(request)).await? else {
            unreachable!("a range answers a range")
        };
        Ok(range
            .kvs
            .first()
            .map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
    }
}

/// A plain put.
pub fn put_request(key: &[u8], value: &[u8]) -> PutRequest {
    PutRequest {
        key: key.to_vec().into(),
        value: value.to_vec().into(),
        ..Default::default()
    }
}

/// A range over every key.
pub fn everything() -> RangeRequest {
    RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        ..Default::default()
    }
}

/// A lazily connected channel to `http://host:port`.
pub fn channel(endpoint: &str) -> Channel {
    Endpoint::from_shared(endpoint.to_string())
        .expect("a valid endpoint")
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .connect_lazy()
}
