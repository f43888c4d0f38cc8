//! A client of the Lease service of one member.

use std::time::Duration;

use pontoon::pb::etcdserverpb::lease_client::LeaseClient;
use pontoon::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, PutRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::rpc::{channel, put_request};

/// The client.
#[derive(Clone)]
pub struct Leases {
    client: LeaseClient<Channel>,
}

impl Leases {
    /// Connects when first used.
    pub fn new(endpoint: &str) -> Leases {
        Leases {
            client: LeaseClient::new(channel(endpoint)).max_decoding_message_size(usize::MAX),
        }
    }

    pub async fn grant(&mut self, id: i64, ttl: i64) -> Result<LeaseGrantResponse, Status> {
        let request = LeaseGrantRequest { ttl, id };
        Ok(self.client.lease_grant(request).await?.into_inner())
    }

    pub async fn revoke(&mut self, id: i64) -> Result<LeaseRevokeResponse, Status> {
        Ok(self
            .client
            .lease_revoke(LeaseRevokeRequest { id })
            .await?
            .into_inner())
    }

    pub async fn times(&mut self, id: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Status> {
        let request = LeaseTimeToLiveRequest { id, keys };
        Ok(self.client.lease_time_to_live(request).await?.into_inner())
    }

    pub async fn list(&mut self) -> Result<LeaseLeasesResponse, Status> {
        Ok(self
            .client
            .lease_leases(LeaseLeasesRequest {})
            .await?
            .into_inner())
    }

    /// Sends these renewals on one stream and half-closes it; everything that is answered.
    pub async fn keep_alive(&mut self, ids: &[i64]) -> Result<Vec<LeaseKeepAliveResponse>, Status> {
        let requests: Vec<_> = ids.iter().map(|id| LeaseKeepAliveRequest { id: *id }).collect();
        let mut answers = self
            .client
            .lease_keep_alive(futures::stream::iter(requests))
            .await?
            .into_inner();
        let mut found = Vec::new();
        while let Some(answer) = answers.message().await? {
            found.push(answer);
        }
        Ok(found)
    }

    /// One renewal, with a deadline of its own; the TTL answered.
    pub async fn keep_alive_within(&mut self, limit: Duration, id: i64) -> Result<i64, Status> {
        let answered = tokio::time::timeout(limit, self.keep_alive(&[id])).await;
        let answers =
            answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("the test's own deadline")))?;
        Ok(answers.first().map_or(-1, |answer| answer.ttl))
    }

    /// A stream of renewals that stays open.
    pub async fn open(&mut self) -> Result<KeepAlive, Status> {
        let (requests, queue) = mpsc::unbounded_channel();
        let answers = self
            .client
            .lease_keep_alive(UnboundedReceiverStream::new(queue))
            .await?
            .into_inner();
        Ok(KeepAlive { requests, answers })
    }
}

/// An open stream of renewals.
pub struct KeepAlive {
    requests: mpsc::UnboundedSender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlive {
    /// Asks and waits for the answer.
    pub async fn renew(&mut self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let _ = self.requests.send(LeaseKeepAliveRequest { id });
        let answer = self.answers.message().await?;
        answer.ok_or_else(|| Status::internal("the stream ended before its answer"))
    }

    /// Waits for the end of the stream.
    pub async fn end(&mut self) -> Status {
        loop {
            match self.answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("ended"),
                Err(status) => return status,
            }
        }
    }
}

/// A put that attaches its key.
pub fn attach(key: &str, lease: i64) -> PutRequest {
    PutRequest {
        lease,
        ..put_request(key.as_bytes(), b"")
    }
}
