//! One member, looked at.

use std::pin::Pin;
use std::time::Instant;

use futures::Stream;
use tonic::{Request, Response, Status};

use super::{ETCD_VERSION, credentials, header, read_error, status, unexpected, unimplemented};
use crate::error::Error;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::maintenance_server::Maintenance as Service;
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, ResponseHeader, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse,
};
use crate::pb::pontoon::command::{command::Op, reply};
use crate::raft::saving::DefragmentError;
use crate::server::Server;
use crate::server::auth::Credentials;
use crate::server::backup::{BackupError, Spooled};

/// The Maintenance service.
pub struct Maintenance {
    server: Server,
}

impl Maintenance {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        Maintenance { server }
    }

    /// Refuses whoever does not have the role root.
    async fn permit_root(&self, who: &Credentials) -> Result<(), Status> {
        self.server.permit_root(who).await.map_err(status)
    }
}

fn backup_error(error: BackupError) -> Status {
    match error {
        BackupError::Refused(error) => status(error),
        BackupError::Disk(_) => Status::internal(error.to_string()),
    }
}

/// The database in pieces, counting down what remains; then its checksum.
fn pieces(
    backup: Spooled,
    header: ResponseHeader,
) -> impl Stream<Item = Result<SnapshotResponse, Status>> + Send {
    futures::stream::try_unfold(Some(backup), move |backup| async move {
        let Some(mut backup) = backup else {
            return Ok(None);
        };
        let piece = backup.next_piece().await;
        let piece = piece.map_err(|error| Status::internal(format!("cannot read the backup: {error}")))?;
        let message = |blob, remaining_bytes| SnapshotResponse {
            header: Some(header),
            remaining_bytes,
            blob,
            version: ETCD_VERSION.to_string(),
        };
        Ok(Some(match piece {
            Some(piece) => (message(piece, backup.remaining()), Some(backup)),
            None => (message(backup.checksum(), 0), None),
        }))
    })
}

/// An alarm as Status tells of it: etcd's own form, with the blank at its end.
fn error_line(alarm: &AlarmMember) -> String {
    format!(
        "memberID:{} alarm:{} ",
        alarm.member_id,
        alarm.alarm().as_str_name()
    )
}

/// A task that was broken off: only when this member stops.
fn stopping(_: tokio::task::JoinError) -> Status {
    status(Error::Stopped)
}

#[tonic::async_trait]
impl Service for Maintenance {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let server = &self.server;
        server.permit_user(&credentials(&request)).await.map_err(status)?;
        let raft = server.replica().status();
        let reader = server.reader();
        // Raft goes on to name a leader that is long gone; to etcd's clients there is none then.
        let leader = raft.leader.filter(|_| server.leadership().is_known());
        let no_leader = leader.is_none().then(|| Error::NoLeader.text().to_string());
        Ok(Response::new(StatusResponse {
            header: Some(header(server, reader.revision())),
            version: ETCD_VERSION.to_string(),
            db_size: reader.size() as i64,
            db_size_in_use: reader.size_in_use() as i64,
            db_size_quota: server.space().quota() as i64,
            leader: leader.unwrap_or(0),
            raft_index: raft.committed,
            raft_term: raft.term,
            raft_applied_index: raft.applied,
            errors: no_leader
                .into_iter()
                .chain(reader.alarms().iter().map(error_line))
                .collect(),
            is_learner: raft.is_learner,
            storage_version: "3.5.0".to_string(),
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        let reader = self.server.reader();
        if request.action() == AlarmAction::Get {
            self.server.barrier().pass().await.map_err(status)?;
            self.server.permit_user(&who).await.map_err(status)?;
            let is_wanted = |alarm: &AlarmMember| request.alarm == 0 || alarm.alarm == request.alarm;
            return Ok(Response::new(AlarmResponse {
                header: Some(header(&self.server, reader.revision())),
                alarms: reader.alarms().into_iter().filter(is_wanted).collect(),
            }));
        }
        match self
            .server
            .propose_as(&who, Op::Alarm(request))
            .await
            .map_err(status)?
        {
            reply::Response::Alarm(mut response) => {
                response.header = Some(header(&self.server, reader.revision()));
                Ok(Response::new(response))
            }
            _ => Err(unexpected()),
        }
    }

    /// This member only; it goes on serving meanwhile.
    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.permit_root(&credentials(&request)).await?;
        match self.server.replica().defragment().await {
            Ok(_) => Ok(Response::new(DefragmentResponse { header: None })),
            Err(DefragmentError::Stopped) => Err(status(Error::Stopped)),
            Err(refused @ DefragmentError::NoRoom { .. }) => {
                Err(Status::resource_exhausted(format!("pontoon: {refused}")))
            }
        }
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.permit_root(&credentials(&request)).await?;
        let (reader, began) = (self.server.reader().clone(), Instant::now());
        let hash = tokio::task::spawn_blocking(move || reader.hash()).await;
        let hash = hash
            .map_err(stopping)?
            .map_err(|error| read_error(&self.server, error))?;
        self.server.metrics().hashes.observe(began.elapsed());
        Ok(Response::new(HashResponse {
            header: Some(header(&self.server, self.server.reader().revision())),
            hash,
        }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        self.permit_root(&credentials(&request)).await?;
        let (reader, revision) = (self.server.reader().clone(), request.into_inner().revision);
        let began = Instant::now();
        let hashed = tokio::task::spawn_blocking(move || reader.hash_kv(revision)).await;
        let (hash, compact_revision, hash_revision) = hashed
            .map_err(stopping)?
            .map_err(|error| read_error(&self.server, error))?;
        self.server.metrics().revision_hashes.observe(began.elapsed());
        Ok(Response::new(HashKvResponse {
            header: Some(header(&self.server, self.server.reader().revision())),
            hash,
            compact_revision,
            hash_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    /// A backup of this member, leader or not, as it stands now.
    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let who = credentials(&request);
        self.permit_root(&who).await?;
        let backup = self.server.backups().take(&self.server).await;
        let backup = backup.map_err(backup_error)?;
        // What is in it was written before now: whoever has lost the right meanwhile doesn't get it.
        self.permit_root(&who).await?;
        let header = header(&self.server, backup.revision());
        Ok(Response::new(Box::pin(pieces(backup, header))))
    }

    /// Asked of the leader only; etcd leaves out the header.
    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let who = credentials(&request);
        self.server.permit_root(&who).await.map_err(status)?;
        let to = request.into_inner().target_id;
        self.server.membership().move_leader(to).await.map_err(status)?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        Err(unimplemented("/etcdserverpb.Maintenance/Downgrade"))
    }
}
