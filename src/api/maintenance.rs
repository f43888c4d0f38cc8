//! One member, looked at.

use tonic::{Request, Response, Status};

use super::{ETCD_VERSION, header, status, unimplemented};
use crate::error::Error;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::maintenance_server::Maintenance as Service;
use crate::pb::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeInfo, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use crate::server::Server;

/// The Maintenance service.
pub struct Maintenance {
    server: Server,
}

impl Maintenance {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        Maintenance { server }
    }
}

#[tonic::async_trait]
impl Service for Maintenance {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let server = &self.server;
        let raft = server.replica().status();
        let reader = server.reader();
        let no_leader = raft.leader.is_none().then(|| Error::NoLeader.text().to_string());
        Ok(Response::new(StatusResponse {
            header: Some(header(server, reader.revision())),
            version: ETCD_VERSION.to_string(),
            db_size: reader.size_on_disk() as i64,
            db_size_in_use: reader.logical_size() as i64,
            db_size_quota: 0,
            leader: raft.leader.unwrap_or(0),
            raft_index: raft.committed,
            raft_term: raft.term,
            raft_applied_index: raft.applied,
            errors: no_leader.into_iter().collect(),
            is_learner: raft.is_learner,
            storage_version: "3.5.0".to_string(),
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    /// None can be raised yet, so a list of them is empty; `etcdctl endpoint health` of 3.5 and later asks for it.
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        if request.into_inner().action() != AlarmAction::Get {
            return Err(unimplemented(
                "/etcdserverpb.Maintenance/Alarm with an action other than GET",
            ));
        }
        let header = Some(header(&self.server, self.server.reader().revision()));
        Ok(Response::new(AlarmResponse {
            header,
            alarms: Vec::new(),
        }))
    }

    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Err(unimplemented("/etcdserverpb.Maintenance/Defragment"))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(unimplemented("/etcdserverpb.Maintenance/Hash"))
    }

    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        Err(unimplemented("/etcdserverpb.Maintenance/HashKV"))
    }

    type SnapshotStream = futures::stream::Empty<Result<SnapshotResponse, Status>>;

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(unimplemented("/etcdserverpb.Maintenance/Snapshot"))
    }

    /// Asked of the leader only; etcd leaves out the header.
    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let to = request.into_inner().target_id;
        self.server.membership().move_leader(to).await.map_err(status)?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        Err(unimplemented("/etcdserverpb.Maintenance/Downgrade"))
    }
}
