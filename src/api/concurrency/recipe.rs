//! What both services are made of: taking a place in a queue, waiting for its turn, watching who is first.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::keys::{created_at, end_of, exactly, first_below, key_of, last_below, ops, pairs, prefix};
use super::{not_leader, refused};
use crate::api::kv::Kv;
use crate::api::{credentials, header, status};
use crate::error::Error;
use crate::pb::etcdserverpb::kv_server::Kv as _;
use crate::pb::etcdserverpb::request_op::Request as Op;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
    WatchCreateRequest,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::pb::v3electionpb::LeaderResponse;
use crate::server::Server;
use crate::server::watches::Responses;
use crate::tls::CommonName;

/// Seconds of the lease that a caller without one gets.
const SESSION_TTL: i64 = 60;
/// Between attempts at a transaction of unknown outcome.
const AGAIN: Duration = Duration::from_millis(100);

/// What both services are made of.
pub(super) struct Recipes {
    server: Server,
    pub(super) kv: Arc<Kv>,
}

impl Recipes {
    pub(super) fn new(server: Server) -> Self {
        Recipes {
            kv: Arc::new(Kv::new(server.clone())),
            server,
        }
    }

    pub(super) fn caller<T>(&self, request: &Request<T>) -> Caller {
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
pub(super) struct Caller {
    server: Server,
    pub(super) kv: Arc<Kv>,
    /// Of the request: it says who asks.
    metadata: MetadataMap,
    /// Of the connection's certificate: it says so too.
    common_name: Option<CommonName>,
}

/// A key in a queue. It is deleted when this is dropped, unless it is kept: who stops waiting must not stand in the
/// way of those behind.
pub(super) struct Place {
    caller: Caller,
    prefix: Bytes,
    pub(super) key: Bytes,
    /// Its create revision.
    pub(super) created: i64,
    kept: bool,
}

impl Place {
    /// Leaves the key where it is.
    pub(super) fn keep(mut self) -> Bytes {
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
pub(super) struct Entered {
    pub(super) place: Place,
    /// Whether it is at the head.
    pub(super) is_first: bool,
    /// Its value, if it was there.
    pub(super) value_before: Option<Bytes>,
    pub(super) header: Option<ResponseHeader>,
}

impl Caller {
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
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

    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let answer = self.kv.range(self.request(request)).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// The lease given, or a new one for 0.
    pub(super) async fn session(&self, lease: i64) -> Result<i64, Status> {
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
    pub(super) async fn enter(&self, name: &Bytes, lease: i64, value: &Bytes) -> Result<Entered, Status> {
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
    pub(super) async fn await_turn(&self, place: &mut Place) -> Result<Option<ResponseHeader>, Status> {
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

    pub(super) async fn proclaim(
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

    pub(super) async fn delete_created_at(&self, key: &Bytes, created: i64) -> Result<TxnResponse, Status> {
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
    pub(super) async fn observe(
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
    pub(super) async fn next(&mut self) -> Result<Vec<Event>, Status> {
        loop {
            let response = self.responses.next().await.map_err(status)?.into_response();
            if response.canceled || !response.events.is_empty() {
                return Ok(response.events);
            }
        }
    }
}
