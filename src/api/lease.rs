//! Leases.

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::limits::corrected;
use super::{credentials, header, status};
use crate::error::Error;
use crate::pb::etcdserverpb::lease_server::Lease as Service;
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, ResponseHeader,
};
use crate::server::Server;
use crate::server::auth::Credentials;

/// Renewals of one stream under way at once; more wait in the client's connection.
const RENEWALS: usize = 1024;

/// The Lease service.
pub struct Lease {
    server: Server,
}

impl Lease {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        Lease { server }
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(header(&self.server, self.server.reader().revision()))
    }
}

/// The revision came from the state, the rest is this member's.
fn complete(server: &Server, given: Option<ResponseHeader>) -> Option<ResponseHeader> {
    Some(header(server, given.map_or(0, |header| header.revision)))
}

/// Renews one lease; the header's revision is that from before.
async fn renew(
    server: &Server,
    who: &Credentials,
    request: LeaseKeepAliveRequest,
) -> Result<LeaseKeepAliveResponse, Status> {
    let header = Some(header(server, server.reader().revision()));
    let ttl = server.keep_lease_alive(who, request.id).await.map_err(status)?;
    Ok(LeaseKeepAliveResponse {
        header,
        id: request.id,
        ttl,
    })
}

/// One answer for each request, in order, until the requests end or something fails.
fn renewals(
    server: Server,
    who: Credentials,
    requests: Streaming<LeaseKeepAliveRequest>,
) -> impl Stream<Item = Result<LeaseKeepAliveResponse, Status>> {
    let renewing = server.clone();
    let answers = requests.map(move |request| {
        let (server, who) = (renewing.clone(), who.clone());
        async move { renew(&server, &who, request.map_err(corrected)?).await }
    });
    let answers = Box::pin(answers.buffered(RENEWALS));
    futures::stream::unfold(Some((server, answers)), |open| async {
        let (server, mut answers) = open?;
        let answer = tokio::select! {
            answer = answers.next() => answer?,
            () = server.stops() => Err(status(Error::Stopped)),
        };
        let open = answer.is_ok().then_some((server, answers));
        Some((answer, open))
    })
}

#[tonic::async_trait]
impl Service for Lease {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        let granted = self.server.grant_lease(&who, request.id, request.ttl).await;
        let mut response = granted.map_err(status)?;
        response.header = complete(&self.server, response.header);
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let who = credentials(&request);
        let revoked = self.server.revoke_lease(&who, request.into_inner().id).await;
        let mut response = revoked.map_err(status)?;
        response.header = complete(&self.server, response.header);
        Ok(Response::new(response))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let who = credentials(&request);
        let answers = renewals(self.server.clone(), who, request.into_inner());
        Ok(Response::new(answers.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        let times = self.server.lease_times(&who, request.id).await.map_err(status)?;
        let mut response = LeaseTimeToLiveResponse {
            id: request.id,
            ttl: times.remaining,
            granted_ttl: times.granted,
            ..LeaseTimeToLiveResponse::default()
        };
        if times.granted == 0 {
            // No such lease.
            response.ttl = -1;
        } else if request.keys {
            let keys = self.server.lease_keys(&who, request.id).await;
            response.keys = keys.map_err(status)?;
        }
        response.header = self.header();
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let who = credentials(&request);
        let ids = self.server.list_leases(&who).await.map_err(status)?;
        Ok(Response::new(LeaseLeasesResponse {
            header: self.header(),
            leases: ids.into_iter().map(|id| LeaseStatus { id }).collect(),
        }))
    }
}
