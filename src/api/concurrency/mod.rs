//! Lock and Election: what clients' own recipes do, done here, in terms of KV, Lease and Watch only.
//!
//! Both are a queue of keys below `name/`, one for each lease that takes part, `name/` and the lease's id in hex. Who
//! created its key first is at the head: it owns the lock, or leads. Everybody else waits for the key just before its
//! own to go, so that one change wakes one waiter.
//!
//! ```text
//! job/7  created at 12    the head
//! job/9  created at 15    waits for job/7
//! job/8  created at 20    waits for job/9; if that goes first, it looks again, finds job/7, and waits for that
//! ```
//!
//! A key goes when it is deleted (unlock, resign), when its lease ends, or when its caller gives up waiting. Clients
//! that follow the recipe by themselves, such as `etcdctl lock` and `elect`, stand in the same queue.
//!
//! Requests are refused with the code UNKNOWN, as etcd has it, and etcd's text.

mod keys;
mod recipe;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use self::keys::{first_below, prefix};
use self::recipe::Recipes;
use crate::pb::etcdserverpb::DeleteRangeRequest;
use crate::pb::etcdserverpb::kv_server::Kv as _;
use crate::pb::v3electionpb::election_server::Election as ElectionService;
use crate::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use crate::pb::v3lockpb::lock_server::Lock as LockService;
use crate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use crate::server::Server;

/// Changes of leaders that wait for a slow observer; while it is full, the rest waits in the watch.
const OBSERVED: usize = 16;

/// The Lock service.
pub struct Lock {
    recipes: Recipes,
}

impl Lock {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        Lock {
            recipes: Recipes::new(server),
        }
    }
}

#[tonic::async_trait]
impl LockService for Lock {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let caller = self.recipes.caller(&request);
        let request = request.into_inner();
        let lease = caller.session(request.lease).await?;
        let mut entered = caller.enter(&request.name, lease, &Bytes::new()).await?;
        let header = match entered.is_first {
            true => entered.header,
            false => {
                let turn = caller.await_turn(&mut entered.place).await?;
                if turn.is_none() {
                    return Err(Status::unknown("mutex: session is expired"));
                }
                turn
            }
        };
        Ok(Response::new(LockResponse {
            header,
            key: entered.place.keep(),
        }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let caller = self.recipes.caller(&request);
        let request = DeleteRangeRequest {
            key: request.into_inner().key,
            ..DeleteRangeRequest::default()
        };
        let deleted = self.recipes.kv.delete_range(caller.request(request)).await;
        Ok(Response::new(UnlockResponse {
            header: deleted.map_err(refused)?.into_inner().header,
        }))
    }
}

/// The Election service.
pub struct Election {
    recipes: Recipes,
}

impl Election {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        Election {
            recipes: Recipes::new(server),
        }
    }
}

#[tonic::async_trait]
impl ElectionService for Election {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let caller = self.recipes.caller(&request);
        let request = request.into_inner();
        let lease = caller.session(request.lease).await?;
        let mut entered = caller.enter(&request.name, lease, &request.value).await?;
        let (key, rev) = (entered.place.key.clone(), entered.place.created);
        if entered.value_before.is_some_and(|value| value != request.value) {
            caller.proclaim(&key, rev, lease, &request.value).await?;
        }
        if !entered.is_first {
            let turn = caller.await_turn(&mut entered.place).await?;
            turn.ok_or_else(not_leader)?;
        }
        let key = entered.place.keep();
        Ok(Response::new(CampaignResponse {
            header: entered.header,
            leader: Some(LeaderKey {
                name: request.name,
                key,
                rev,
                lease,
            }),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let caller = self.recipes.caller(&request);
        let request = request.into_inner();
        let leader = request.leader.ok_or_else(leader_missing)?;
        let lease = caller.session(leader.lease).await?;
        let header = caller
            .proclaim(&leader.key, leader.rev, lease, &request.value)
            .await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let caller = self.recipes.caller(&request);
        let first = caller
            .range(first_below(&prefix(&request.into_inner().name)))
            .await?;
        let kv = first.kvs.into_iter().next();
        match kv.is_some() {
            true => Ok(Response::new(LeaderResponse {
                header: first.header,
                kv,
            })),
            false => Err(Status::unknown("election: no leader")),
        }
    }

    type ObserveStream = BoxStream<'static, Result<LeaderResponse, Status>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = self.recipes.caller(&request);
        let prefix = prefix(&request.into_inner().name);
        let (leaders, observed) = mpsc::channel(OBSERVED);
        tokio::spawn(async move {
            let end = tokio::select! {
                end = caller.observe(&prefix, &leaders) => end,
                () = leaders.closed() => return,
            };
            if let Err(status) = end {
                // Nobody is left to be told if this fails.
                let _ = leaders.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(observed).boxed()))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let caller = self.recipes.caller(&request);
        let leader = request.into_inner().leader.ok_or_else(leader_missing)?;
        let txn = caller.delete_created_at(&leader.key, leader.rev).await?;
        Ok(Response::new(ResignResponse { header: txn.header }))
    }
}

fn leader_missing() -> Status {
    Status::unknown("\"leader\" field must be provided")
}

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

/// etcd's recipes run in a client of itself and forget the codes of refusals.
fn refused(status: Status) -> Status {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated => Status::unknown(status.message()),
        _ => status,
    }
}
