//! Keys and values.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use futures::stream::BoxStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status};

use super::{credentials, header, range, read_error, status, unexpected};
use crate::error::Error;
use crate::pb::etcdserverpb::kv_server::Kv as Service;
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use crate::pb::pontoon::command::{command::Op, reply};
use crate::server::Server;
use crate::server::auth::Credentials;
use crate::state::{self, EncodedRange, ReadError, Reader};

/// How often a physical compaction looks whether the space is reclaimed.
const RECLAIM_CHECK: Duration = Duration::from_millis(5);

/// The KV service. Cheap to clone.
#[derive(Clone)]
pub struct Kv {
    server: Server,
    /// As many at once as there are cores: more would only hold more answers at once.
    long_reads: Arc<Semaphore>,
}

impl Kv {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Kv {
            server,
            long_reads: Arc::new(Semaphore::new(cores)),
        }
    }

    /// The answer's header: its revision came from the state, the rest is this member's.
    fn complete(&self, given: Option<ResponseHeader>) -> Option<ResponseHeader> {
        Some(header(&self.server, given.map_or(0, |header| header.revision)))
    }

    async fn read_range<T: Send + 'static>(
        &self,
        who: &Credentials,
        request: &RangeRequest,
        read: fn(&Reader, &RangeRequest) -> Result<T, ReadError>,
    ) -> Result<T, Status> {
        let answer = self
            .server
            .read_as(
                who,
                |auth, who| auth.permit_range(who, request),
                |reader| Ok::<_, ReadError>(read(reader, request)),
            )
            .await
            .map_err(|error| read_error(&self.server, error))?;
        self.server.metrics().ranges.increment();
        answer.map_err(|error| read_error(&self.server, error))
    }

    /// Reads a range in the form that is wanted, at a moment that its consistency allows.
    async fn range_as<T: Send + 'static>(
        &self,
        request: Request<RangeRequest>,
        read: fn(&Reader, &RangeRequest) -> Result<T, ReadError>,
    ) -> Result<T, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        if !request.serializable && self.server.replica().is_learner() {
            return Err(status(Error::LearnerNotSupported));
        }
        state::check_range(&request).map_err(status)?;
        if !request.serializable {
            self.server.barrier().pass().await.map_err(status)?;
        }
        if !self.server.reader().is_long(&request) {
            return self.read_range(&who, &request, read).await;
        }
        let kv = self.clone();
        self.aside(async move { kv.read_range(&who, &request, read).await })
            .await
    }

    /// A range as it goes out, and its header.
    pub(super) async fn encoded_range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<(ResponseHeader, EncodedRange), Status> {
        let (revision, range) = self.range_as(request, range::read).await?;
        Ok((header(&self.server, revision), range))
    }

    async fn read_txn(&self, who: &Credentials, request: &TxnRequest) -> Result<TxnResponse, Status> {
        let (answer, counts) = self
            .server
            .read_as(
                who,
                // Ranges only: no lease is touched.
                |auth, who| auth.permit_txn(who, request, &|_| Vec::new()),
                |reader| Ok::<_, ReadError>(reader.read_txn(request)),
            )
            .await
            .map_err(|error| read_error(&self.server, error))?;
        self.server.metrics().ranges.add(counts.ranges);
        self.server.metrics().txns.add(counts.txns);
        answer.map_err(|error| read_error(&self.server, error))
    }

    /// Has a read that may take long done by a thread: the requests of one connection share a task, and all tasks share
    /// the few workers that Raft needs too.
    async fn aside<T: Send + 'static>(
        &self,
        read: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let stopped = || status(Error::Stopped);
        let permit = self.long_reads.clone().acquire_owned().await;
        let permit = permit.map_err(|_| stopped())?;
        let runtime = Handle::current();
        let done = spawn_blocking(move || {
            let _permit = permit;
            runtime.block_on(read)
        });
        done.await.unwrap_or_else(|_| Err(stopped()))
    }

    async fn wait_reclaimed(&self, revision: i64) {
        while self.server.reader().swept() < revision {
            self.server.reader().hurry_reclaiming();
            tokio::time::sleep(RECLAIM_CHECK).await;
        }
    }
}

#[tonic::async_trait]
impl Service for Kv {
    /// For callers in this process: from outside, `range.rs` is called.
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let mut response = self.range_as(request, Reader::range).await?;
        response.header = self.complete(response.header);
        Ok(Response::new(response))
    }

    type RangeStreamStream = BoxStream<'static, Result<RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        state::check_range(&request).map_err(status)?;
        if !state::is_in_key_order(&request) {
            // Clients fall back on Range.
            return Err(Status::unimplemented(
                "/etcdserverpb.KV/RangeStream streams in key order: it takes no other order and no revision filters",
            ));
        }
        if !request.serializable {
            self.server.barrier().pass().await.map_err(status)?;
        }
        let chunks = self
            .server
            .read_as(
                &who,
                |auth, who| auth.permit_range(who, &request),
                |reader| reader.range_chunks(&request),
            )
            .await
            .map_err(|error| read_error(&self.server, error))?;
        self.server.metrics().ranges.increment();
        let stream = futures::stream::unfold((self.server.clone(), chunks), |(server, mut chunks)| async {
            let mut chunk = match chunks.next_chunk() {
                Ok(chunk) => chunk?,
                Err(error) => {
                    let refused = read_error(&server, ReadError::Local(error));
                    return Some((Err(refused), (server, chunks)));
                }
            };
            // The last one alone has a header.
            chunk.header = chunk.header.map(|given| header(&server, given.revision));
            let response = RangeStreamResponse {
                range_response: Some(chunk),
            };
            Some((Ok(response), (server, chunks)))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        state::check_put(&request).map_err(status)?;
        match self
            .server
            .propose_as(&who, Op::Put(request))
            .await
            .map_err(status)?
        {
            reply::Response::Put(mut response) => {
                response.header = self.complete(response.header);
                Ok(Response::new(response))
            }
            _ => Err(unexpected()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        state::check_delete_range(&request).map_err(status)?;
        match self
            .server
            .propose_as(&who, Op::DeleteRange(request))
            .await
            .map_err(status)?
        {
            reply::Response::DeleteRange(mut response) => {
                response.header = self.complete(response.header);
                Ok(Response::new(response))
            }
            _ => Err(unexpected()),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        state::check_txn(&request, self.server.limits().txn_ops as usize).map_err(status)?;
        let mut response = if state::is_read_only(&request) {
            if !state::all_serializable(&request) {
                self.server.barrier().pass().await.map_err(status)?;
            }
            let kv = self.clone();
            self.aside(async move { kv.read_txn(&who, &request).await })
                .await?
        } else {
            match self
                .server
                .propose_as(&who, Op::Txn(request))
                .await
                .map_err(status)?
            {
                reply::Response::Txn(response) => response,
                _ => return Err(unexpected()),
            }
        };
        response.header = self.complete(response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        let (revision, physical) = (request.revision, request.physical);
        match self
            .server
            .propose_as(&who, Op::Compact(request))
            .await
            .map_err(status)?
        {
            reply::Response::Compact(mut response) => {
                if physical {
                    self.wait_reclaimed(revision).await;
                }
                response.header = self.complete(response.header);
                Ok(Response::new(response))
            }
            _ => Err(unexpected()),
        }
    }
}
