//! The members of the cluster.

use tonic::{Request, Response, Status};

use super::{header, status, unimplemented};
use crate::pb::etcdserverpb::cluster_server::Cluster as Service;
use crate::pb::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse,
};
use crate::server::Server;

/// The Cluster service.
pub struct Cluster {
    server: Server,
}

impl Cluster {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        Cluster { server }
    }
}

#[tonic::async_trait]
impl Service for Cluster {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.server.barrier().pass().await.map_err(status)?;
        }
        // etcd leaves the revision out of this service's headers.
        let header = Some(header(&self.server, 0));
        Ok(Response::new(MemberListResponse {
            header,
            members: self.server.members(),
        }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Err(unimplemented("/etcdserverpb.Cluster/MemberAdd"))
    }

    async fn member_remove(
        &self,
        _: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(unimplemented("/etcdserverpb.Cluster/MemberRemove"))
    }

    async fn member_update(
        &self,
        _: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(unimplemented("/etcdserverpb.Cluster/MemberUpdate"))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(unimplemented("/etcdserverpb.Cluster/MemberPromote"))
    }
}
