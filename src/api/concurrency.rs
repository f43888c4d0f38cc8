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

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::kv::Kv;
use super::{credentials, header, status};
use crate::error::Error;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::kv_server::Kv as _;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request as Op;
use crate::pb::etcdserverpb::response_op::Response as Answer;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader,
    TxnRequest, TxnResponse, WatchCreateRequest,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::pb::v3electionpb::election_server::Election as ElectionService;
use crate::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use crate::pb::v3lockpb::lock_server::Lock as LockService;
use crate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use crate::server::Server;
use crate::server::watches::Responses;
use crate::tls::CommonName;

/// Seconds of the lease that a caller without one gets.
const SESSION_TTL: i64 = 60;
/// Between attempts at a transaction of unknown outcome.
const AGAIN: Duration = Duration::from_millis(100);
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

/// What both services are made of.
struct Recipes {
    server: Server,
    kv: Arc<Kv>,
}

impl Recipes {
    fn new(server: Server) -> Self {
        Recipes {
            kv: Arc::new(Kv::new(server.clone())),
            server,
        }
    }

    fn caller<T>(&self, request: &Request<T>) -> Caller {
        Caller {
            server: self.server.clone(),
            kv: self.kv.clone(),
            metadata: request.metadata().clone(),
            common_name: request.extensions().get().cloned(),
        }
    }
}

/// Somebody who runs a recipe; what it does is done in its name.
#[derive(Clone)]
struct Caller {
    server: Server,
    kv: Arc<Kv>,
    /// Of the request: it says who asks.
    metadata: MetadataMap,
    /// Of the connection's certificate: it says so too.
    common_name: Option<CommonName>,
}

/// A key in a queue. It is deleted when this is dropped, unless it is kept: who stops waiting must not stand in the
/// way of those behind.
struct Place {
    caller: Caller,
    prefix: Bytes,
    key: Bytes,
    /// Its create revision.
    created: i64,
    kept: bool,
}

impl Place {
    /// Leaves the key where it is.
    fn keep(mut self) -> Bytes {
        self.kept = true;
        self.key.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let (caller, key, created) = (self.caller.clone(), self.key.clone(), self.created);
        tokio::spawn(async move {
            if let Err(status) = caller.delete_created_at(&key, created).await {
                tracing::debug!(%status, "a place in a queue stays until its lease ends");
            }
        });
    }
}

/// A place that was just taken, or was there.
struct Entered {
    place: Place,
    /// Whether it is at the head.
    is_first: bool,
    /// Its value, if it was there.
    value_before: Option<Bytes>,
    header: Option<ResponseHeader>,
}

impl Caller {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        if let Some(name) = &self.common_name {
            request.extensions_mut().insert(name.clone());
        }
        request
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        let answer = self.kv.txn(self.request(request)).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// The same for one that does no harm if it happens twice: made again if its outcome is unknown, as when the leader
    /// died over it.
    async fn txn_repeated(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        let deadline = Instant::now() + self.server.limits().timeout;
        loop {
            match self.txn(request.clone()).await {
                Err(status)
                    if Error::parse(status.message()).is_some_and(Error::outcome_unknown)
                        && Instant::now() < deadline =>
                {
                    tokio::time::sleep(AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let answer = self.kv.range(self.request(request)).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// The lease given, or a new one for 0.
    async fn session(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let who = credentials(&self.request(()));
        let granted = self.server.grant_lease(&who, 0, SESSION_TTL).await;
        Ok(granted.map_err(status).map_err(refused)?.id)
    }

    /// Takes the last place in a queue, or finds the one that the lease has already.
    ///
    /// In a task of its own: if the caller goes away meanwhile, the place is given back once it is known.
    async fn enter(&self, name: &Bytes, lease: i64, value: &Bytes) -> Result<Entered, Status> {
        let (caller, prefix, value) = (self.clone(), prefix(name), value.clone());
        let entered = tokio::spawn(async move { caller.enter_below(prefix, lease, value).await });
        entered.await.unwrap_or_else(|_| Err(status(Error::Stopped)))
    }

    async fn enter_below(&self, prefix: Bytes, lease: i64, value: Bytes) -> Result<Entered, Status> {
        let key = key_of(&prefix, lease);
        let put = PutRequest {
            key: key.clone(),
            value,
            lease,
            ..PutRequest::default()
        };
        let first = Op::RequestRange(first_below(&prefix));
        let txn = self
            .txn_repeated(TxnRequest {
                compare: vec![created_at(&key, 0)],
                success: ops([Op::RequestPut(put), first.clone()]),
                failure: ops([Op::RequestRange(exactly(&key)), first]),
            })
            .await?;
        let revision = txn.header.as_ref().map_or(0, |header| header.revision);
        let mut found = pairs(&txn);
        let first = found.pop().flatten();
        let before = found.pop().flatten();
        let created = before.as_ref().map_or(revision, |kv| kv.create_revision);
        Ok(Entered {
            is_first: first.is_none_or(|first| first.create_revision == created),
            value_before: before.map(|kv| kv.value),
            header: txn.header,
            place: Place {
                caller: self.clone(),
                prefix,
                key,
                created,
                // What was there before is not ours to take away.
                kept: !txn.succeeded,
            },
        })
    }

    /// Waits until nobody is before a place; nothing, if the place itself is gone.
    async fn await_turn(&self, place: &mut Place) -> Result<Option<ResponseHeader>, Status> {
        place.kept = false;
        loop {
            let before = Op::RequestRange(last_below(&place.prefix, place.created - 1));
            let own = Op::RequestRange(exactly(&place.key));
            let txn = TxnRequest {
                success: ops([own, before]),
                ..TxnRequest::default()
            };
            let txn = self.txn(txn).await?;
            let mut found = pairs(&txn);
            let before = found.pop().flatten();
            let own = found.pop().flatten();
            if own.is_none_or(|own| own.create_revision != place.created) {
                place.kept = true;
                return Ok(None);
            }
            let Some(before) = before else {
                return Ok(txn.header);
            };
            let after = txn.header.map_or(0, |header| header.revision) + 1;
            let gone = |key: &Bytes| WatchCreateRequest {
                key: key.clone(),
                start_revision: after,
                filters: vec![FilterType::Noput as i32],
                ..WatchCreateRequest::default()
            };
            let mut changes = self.watch(&[gone(&before.key), gone(&place.key)]).await?;
            changes.next().await?;
        }
    }

    async fn proclaim(
        &self,
        key: &Bytes,
        created: i64,
        lease: i64,
        value: &Bytes,
    ) -> Result<Option<ResponseHeader>, Status> {
        let put = PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease,
            ..PutRequest::default()
        };
        let txn = TxnRequest {
            compare: vec![created_at(key, created)],
            success: ops([Op::RequestPut(put)]),
            ..TxnRequest::default()
        };
        let txn = self.txn(txn).await?;
        match txn.succeeded {
            true => Ok(txn.header),
            false => Err(not_leader()),
        }
    }

    async fn delete_created_at(&self, key: &Bytes, created: i64) -> Result<TxnResponse, Status> {
        let delete = DeleteRangeRequest {
            key: key.clone(),
            ..DeleteRangeRequest::default()
        };
        self.txn_repeated(TxnRequest {
            compare: vec![created_at(key, created)],
            success: ops([Op::RequestDeleteRange(delete)]),
            ..TxnRequest::default()
        })
        .await
    }

    /// Tells of each leader and each of its values, until nobody listens.
    async fn observe(
        &self,
        prefix: &Bytes,
        leaders: &mpsc::Sender<Result<LeaderResponse, Status>>,
    ) -> Result<(), Status> {
        loop {
            let first = self.range(first_below(prefix)).await?;
            let revision = first.header.as_ref().map_or(0, |header| header.revision);
            let leader = match first.kvs.into_iter().next() {
                Some(kv) => Some((kv, revision)),
                None => self.first_candidate(prefix, revision + 1).await?,
            };
            let Some((kv, revision)) = leader else { continue };
            let key = kv.key.clone();
            if !self.tell(leaders, kv, revision).await {
                return Ok(());
            }
            let follow = WatchCreateRequest {
                key,
                start_revision: revision + 1,
                ..WatchCreateRequest::default()
            };
            let mut changes = self.watch(&[follow]).await?;
            'leader: loop {
                let events = changes.next().await?;
                // Nothing: the watch fell behind, and begins anew.
                if events.is_empty() {
                    break;
                }
                for event in events {
                    let Some(kv) = event.kv.filter(|_| event.r#type == EventType::Put as i32) else {
                        break 'leader;
                    };
                    let revision = kv.mod_revision;
                    if !self.tell(leaders, kv, revision).await {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The first key that is put below `prefix` from a revision on, with the revision.
    async fn first_candidate(&self, prefix: &Bytes, from: i64) -> Result<Option<(KeyValue, i64)>, Status> {
        let anybody = WatchCreateRequest {
            key: prefix.clone(),
            range_end: end_of(prefix),
            start_revision: from,
            filters: vec![FilterType::Nodelete as i32],
            ..WatchCreateRequest::default()
        };
        let events = self.watch(&[anybody]).await?.next().await?;
        let first = events.into_iter().find_map(|event| event.kv);
        Ok(first.map(|kv| {
            let revision = kv.mod_revision;
            (kv, revision)
        }))
    }

    /// Whether somebody still listens.
    async fn tell(
        &self,
        leaders: &mpsc::Sender<Result<LeaderResponse, Status>>,
        kv: KeyValue,
        revision: i64,
    ) -> bool {
        let response = LeaderResponse {
            header: Some(header(&self.server, revision)),
            kv: Some(kv),
        };
        leaders.send(Ok(response)).await.is_ok()
    }

    async fn watch(&self, wanted: &[WatchCreateRequest]) -> Result<Changes, Status> {
        let (requests, responses) = self.server.watches().open();
        for request in wanted {
            requests.create(request).await.map_err(status)?;
        }
        Ok(Changes { responses })
    }
}

/// The events of some watchers.
struct Changes {
    responses: Responses,
}

impl Changes {
    /// The next events; none if a watcher was cancelled, as what it should tell is compacted.
    async fn next(&mut self) -> Result<Vec<Event>, Status> {
        loop {
            let response = self.responses.next().await.map_err(status)?.into_response();
            if response.canceled || !response.events.is_empty() {
                return Ok(response.events);
            }
        }
    }
}

/// All keys of a queue begin with this.
fn prefix(name: &Bytes) -> Bytes {
    let mut prefix = BytesMut::with_capacity(name.len() + 1);
    prefix.put_slice(name);
    prefix.put_u8(b'/');
    prefix.freeze()
}

/// Where a queue's keys end: '0' comes after '/'.
fn end_of(prefix: &Bytes) -> Bytes {
    let mut end = BytesMut::from(&prefix[..prefix.len() - 1]);
    end.put_u8(b'/' + 1);
    end.freeze()
}

fn key_of(prefix: &Bytes, lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    let mut key = BytesMut::from(&prefix[..]);
    key.put_slice(format!("{sign}{:x}", lease.unsigned_abs()).as_bytes());
    key.freeze()
}

fn exactly(key: &Bytes) -> RangeRequest {
    RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    }
}

/// The key that was created first.
fn first_below(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: end_of(prefix),
        limit: 1,
        sort_target: SortTarget::Create as i32,
        sort_order: SortOrder::Ascend as i32,
        ..RangeRequest::default()
    }
}

/// The key that was created last, but not after `created`.
fn last_below(prefix: &Bytes, created: i64) -> RangeRequest {
    RangeRequest {
        sort_order: SortOrder::Descend as i32,
        max_create_revision: created,
        ..first_below(prefix)
    }
}

fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

fn ops<const N: usize>(ops: [Op; N]) -> Vec<RequestOp> {
    ops.into_iter()
        .map(|op| RequestOp { request: Some(op) })
        .collect()
}

/// The first pair that each op found.
fn pairs(txn: &TxnResponse) -> Vec<Option<KeyValue>> {
    let first = |answer: &Option<Answer>| match answer {
        Some(Answer::ResponseRange(range)) => range.kvs.first().cloned(),
        _ => None,
    };
    txn.responses.iter().map(|op| first(&op.response)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_etcds_recipes() {
        let prefix = prefix(&Bytes::from_static(b"job"));
        assert_eq!(&prefix[..], b"job/");
        assert_eq!(&end_of(&prefix)[..], b"job0");
        assert_eq!(&key_of(&prefix, 0x694d_7f1a)[..], b"job/694d7f1a");
        assert_eq!(&key_of(&prefix, i64::MIN)[..], b"job/-8000000000000000");
    }
}
