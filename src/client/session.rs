//! A lease that is kept alive as long as its owner lives: what locks and leadership hang on.
//!
//! A third of the TTL after the last renewal another is asked for, on any endpoint that answers. The session is lost
//! when the server says that the lease is gone, or when the TTL has passed since the last renewal that succeeded was
//! *sent*: the server may count from then, and may have given the keys away.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{Again, Client, ClientError};
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
};

/// Between two attempts to renew, when one failed.
const RETRY: Duration = Duration::from_millis(200);

impl Client {
    /// Renews a lease once. A TTL of zero says that the lease is gone.
    pub async fn lease_keep_alive_once(&self, id: i64) -> Result<LeaseKeepAliveResponse, ClientError> {
        // A stream of one request: renewals are seconds apart, and a stream that is not kept can't go stale.
        let call = |channel, request: tonic::Request<LeaseKeepAliveRequest>| async move {
            let (metadata, extensions, request) = request.into_parts();
            let stream = tokio_stream::once(request);
            let request = tonic::Request::from_parts(metadata, extensions, stream);
            let answer = LeaseClient::new(channel).lease_keep_alive(request).await?;
            let response = answer.into_inner().message().await?;
            let none = || Status::unavailable("the stream has ended");
            response.map(tonic::Response::new).ok_or_else(none)
        };
        self.call(Again::Harmless, LeaseKeepAliveRequest { id }, call)
            .await
    }
}

/// A lease of one's own, renewed in the background until it is closed or dropped.
pub struct Session {
    client: Arc<Client>,
    lease: i64,
    lost: watch::Receiver<bool>,
    keeper: JoinHandle<()>,
}

impl Session {
    /// Takes a lease of `ttl` seconds, or the least that the server gives.
    pub async fn open(client: Arc<Client>, ttl: i64) -> Result<Session, ClientError> {
        let sent = Instant::now();
        let granted = client.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?;
        let (tell, lost) = watch::channel(false);
        let keeper = client.clone();
        let keeper = tokio::spawn(async move {
            keep(&keeper, granted.id, sent, seconds(granted.ttl)).await;
            let _ = tell.send(true);
        });
        Ok(Session {
            client,
            lease: granted.id,
            lost,
            keeper,
        })
    }

    /// The lease.
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// Ready once the lease may be gone.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // The keeper ends only by saying so, or with the session.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Ends the lease, and with it whatever hangs on it.
    pub async fn close(self) -> Result<(), ClientError> {
        self.keeper.abort();
        let request = LeaseRevokeRequest { id: self.lease };
        let call = |channel, request| async move { LeaseClient::new(channel).lease_revoke(request).await };
        // It may be said twice: that the lease is gone is what was wanted.
        match self.client.call(Again::Harmless, request, call).await {
            Err(error) if error.code() == Some(Code::NotFound) => Ok(()),
            answer => answer.map(|_| ()),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Renews until the lease is gone, or may be.
async fn keep(client: &Client, lease: i64, mut renewed: Instant, mut ttl: Duration) {
    loop {
        tokio::time::sleep_until(renewed + ttl / 3).await;
        let sent = Instant::now();
        let deadline = renewed + ttl;
        match tokio::time::timeout_at(deadline, renew(client, lease)).await {
            Ok(0) | Err(_) => return,
            Ok(given) => (renewed, ttl) = (sent, seconds(given)),
        }
    }
}

/// The TTL that one renewal brought, however many attempts that takes.
async fn renew(client: &Client, lease: i64) -> i64 {
    loop {
        match client.lease_keep_alive_once(lease).await {
            Ok(answer) => return answer.ttl.max(0),
            Err(error) => tracing::debug!(lease, error = error.to_string(), "lease not renewed yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.max(0).unsigned_abs())
}
