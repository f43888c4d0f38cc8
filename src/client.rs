//! A client of any etcd v3 endpoint, for the command line and for tests.
//!
//! It goes to one endpoint at a time and stays there. What may be tried elsewhere: everything, if no connection could
//! be made; reads, if the endpoint says UNAVAILABLE. A write that may have arrived is never sent again: it could happen
//! twice.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::pb::etcdserverpb::cluster_client::ClusterClient;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, MemberListRequest,
    MemberListResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, SnapshotRequest,
    SnapshotResponse, StatusRequest, StatusResponse, TxnRequest, TxnResponse,
};

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made: nothing was sent.
    #[error("cannot reach {endpoint} ({cause}): is a member running there? Start one with: pontoon cluster")]
    Unreachable {
        /// The endpoint tried last.
        endpoint: String,
        /// Why not.
        cause: String,
    },
    /// The server's answer.
    #[error("{}", .0.message())]
    Server(#[from] Status),
    /// Not an address.
    #[error("--endpoints: {0:?} is not an address such as 127.0.0.1:2379 or http://host:2379")]
    Address(String),
}

/// The client.
pub struct Client {
    endpoints: Vec<String>,
    dial_timeout: Duration,
    timeout: Duration,
    /// The endpoint in use, and its connection.
    connected: Mutex<Option<(usize, Channel)>>,
}

impl Client {
    /// For these endpoints, URLs or `host:port`. A connection may take `dial_timeout`, a call `timeout`.
    pub fn new(
        endpoints: &[String],
        dial_timeout: Duration,
        timeout: Duration,
    ) -> Result<Client, ClientError> {
        let url = |endpoint: &String| match endpoint.contains("://") {
            true => endpoint.clone(),
            false => format!("http://{endpoint}"),
        };
        let endpoints: Vec<String> = endpoints.iter().map(url).collect();
        for endpoint in &endpoints {
            Endpoint::from_shared(endpoint.clone()).map_err(|_| ClientError::Address(endpoint.clone()))?;
        }
        Ok(Client {
            endpoints,
            dial_timeout,
            timeout,
            connected: Mutex::new(None),
        })
    }

    /// The endpoints, as URLs.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Reads a range.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, ClientError> {
        self.call(true, request, |channel, request| async move {
            kv(channel).range(request).await
        })
        .await
    }

    /// Sets a key.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, ClientError> {
        self.call(false, request, |channel, request| async move {
            kv(channel).put(request).await
        })
        .await
    }

    /// Deletes a range.
    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, ClientError> {
        self.call(false, request, |channel, request| async move {
            kv(channel).delete_range(request).await
        })
        .await
    }

    /// Compares and changes.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, ClientError> {
        self.call(false, request, |channel, request| async move {
            kv(channel).txn(request).await
        })
        .await
    }

    /// Forgets old revisions.
    pub async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, ClientError> {
        self.call(false, request, |channel, request| async move {
            kv(channel).compact(request).await
        })
        .await
    }

    /// The members.
    pub async fn member_list(&self) -> Result<MemberListResponse, ClientError> {
        let request = MemberListRequest { linearizable: true };
        let call = |channel, request| async move { ClusterClient::new(channel).member_list(request).await };
        self.call(true, request, call).await
    }

    /// The endpoint's own status.
    pub async fn status(&self) -> Result<StatusResponse, ClientError> {
        let call = |channel, request| async move { MaintenanceClient::new(channel).status(request).await };
        self.call(true, StatusRequest {}, call).await
    }

    /// A backup of the endpoint, in pieces. It may take as long as it takes.
    pub async fn snapshot(&self) -> Result<Streaming<SnapshotResponse>, ClientError> {
        let (_, channel) = self.connect().await?;
        let mut client = MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX);
        Ok(client.snapshot(SnapshotRequest {}).await?.into_inner())
    }

    async fn call<T, U, F>(
        &self,
        may_repeat: bool,
        request: T,
        call: impl Fn(Channel, Request<T>) -> F,
    ) -> Result<U, ClientError>
    where
        T: Clone,
        F: Future<Output = Result<tonic::Response<U>, Status>>,
    {
        let mut last = None;
        for _ in 0..self.endpoints.len() {
            let (at, channel) = match self.connect().await {
                Ok(connected) => connected,
                Err(error) => {
                    last = Some(error);
                    continue;
                }
            };
            let mut message = Request::new(request.clone());
            message.set_timeout(self.timeout);
            match call(channel, message).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if may_repeat && status.code() == Code::Unavailable => {
                    self.leave(at);
                    last = Some(status.into());
                }
                Err(status) => return Err(status.into()),
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Address(String::new())))
    }

    /// The connection in use, or one to the first endpoint that takes one.
    async fn connect(&self) -> Result<(usize, Channel), ClientError> {
        let in_use = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let start = match in_use {
            Some((at, channel)) if at < self.endpoints.len() => return Ok((at, channel)),
            Some((after, _)) => after - self.endpoints.len(),
            None => 0,
        };
        let mut last = ClientError::Address(String::new());
        for step in 0..self.endpoints.len() {
            let at = (start + step) % self.endpoints.len();
            match dial(&self.endpoints[at], self.dial_timeout).await {
                Ok(channel) => {
                    *self.connected.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some((at, channel.clone()));
                    return Ok((at, channel));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The endpoint can't serve now: the next call begins with the one after it.
    fn leave(&self, at: usize) {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((in_use, _)) = &mut *connected
            && *in_use == at
        {
            *in_use = self.endpoints.len() + (at + 1) % self.endpoints.len();
        }
    }
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

async fn dial(url: &str, timeout: Duration) -> Result<Channel, ClientError> {
    let endpoint =
        Endpoint::from_shared(url.to_string()).map_err(|_| ClientError::Address(url.to_string()))?;
    endpoint
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        .connect()
        .await
        .map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            let endpoint = url.trim_start_matches("http://").to_string();
            ClientError::Unreachable {
                endpoint,
                cause: cause.to_string(),
            }
        })
}
