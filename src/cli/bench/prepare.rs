//! What must be there before a load begins: the keys that it reads, and, for compare-and-swap, what their revisions are.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use prost::Message;

use super::super::failed::Failed;
use super::super::output;
use super::caller::{Caller, Method, Patience};
use super::connections::Lanes;
use super::keys::Draw;
use super::plan::{Plan, Preload, Work};
use super::work::Shared;
use crate::client::ClientError;
use crate::pb::etcdserverpb::request_op::Request as Op;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse};

/// Keys that are written in one transaction, at most: servers take no more than 128.
const BATCH_KEYS: u64 = 100;
/// Bytes of it, about: servers take no more than 1.5 MiB.
const BATCH_BYTES: usize = 512 << 10;
/// Transactions under way.
const UNDER_WAY: usize = 16;
/// Keys whose revisions are read at a time.
const PAGE: i64 = 10_000;

/// Writes the keys that must be there, and learns what must be known.
pub async fn prepare(lanes: &Lanes, shared: &Shared) -> Result<(), Failed> {
    let callers: Vec<&Arc<Caller>> = lanes.lanes.iter().flat_map(|lane| &lane.callers).collect();
    let plan = &shared.plan;
    let is_wanted = match plan.preload {
        Preload::All => true,
        Preload::Auto => plan.reads() && count(callers[0], shared).await? < plan.space.size,
        Preload::None => false,
    };
    if is_wanted {
        output::say(format!("writing {} keys first", plan.space.size));
        write_all(&callers, shared).await?;
    }
    if plan.work == Work::Txn {
        learn_revisions(callers[0], shared).await?;
    }
    Ok(())
}

/// How many of the keys there are.
async fn count(caller: &Arc<Caller>, shared: &Shared) -> Result<u64, Failed> {
    let (key, range_end) = shared.plan.space.range(0, shared.plan.space.size);
    let request = RangeRequest {
        key,
        range_end,
        count_only: true,
        ..RangeRequest::default()
    };
    Ok(u64::try_from(range(caller, shared, request).await?.count).unwrap_or(0))
}

async fn write_all(callers: &[&Arc<Caller>], shared: &Shared) -> Result<(), Failed> {
    let plan = &shared.plan;
    let step = batch(plan);
    let batches = (0..plan.space.size.div_ceil(step)).map(|number| {
        let first = number * step;
        let keys = first..(first + step).min(plan.space.size);
        let caller = callers[number as usize % callers.len()];
        async move {
            let request = puts(shared, keys)?;
            ask::<TxnResponse>(caller, shared, Method::Txn, &request)
                .await
                .map(drop)
        }
    });
    futures::stream::iter(batches)
        .buffer_unordered(UNDER_WAY)
        .try_collect()
        .await
}

/// How many keys go into a transaction.
fn batch(plan: &Plan) -> u64 {
    let pair = plan.space.name(0).len() + plan.value_size;
    let fits = BATCH_BYTES / pair.max(1);
    (fits as u64).clamp(1, BATCH_KEYS)
}

fn puts(shared: &Shared, keys: std::ops::Range<u64>) -> Result<TxnRequest, Failed> {
    let plan = &shared.plan;
    let mut draw = Draw::new(plan.distribution, plan.space.size, plan.seed, keys.start, 1)
        .ok_or_else(|| Failed::arguments("--distribution: keys can't be drawn so"))?;
    let put = |number| PutRequest {
        key: plan.space.name(number),
        value: draw.value(&shared.values),
        ..PutRequest::default()
    };
    let op = |put| RequestOp {
        request: Some(Op::RequestPut(put)),
    };
    Ok(TxnRequest {
        success: keys.map(put).map(op).collect(),
        ..TxnRequest::default()
    })
}

async fn learn_revisions(caller: &Arc<Caller>, shared: &Shared) -> Result<(), Failed> {
    let (mut key, range_end) = shared.plan.space.range(0, shared.plan.space.size);
    loop {
        let request = RangeRequest {
            key,
            range_end: range_end.clone(),
            limit: PAGE,
            keys_only: true,
            ..RangeRequest::default()
        };
        let page = range(caller, shared, request).await?;
        for kv in &page.kvs {
            if let Some(number) = shared.plan.space.number(&kv.key) {
                shared.has_seen(number, kv.mod_revision);
            }
        }
        match page.kvs.last() {
            Some(last) if page.more => key = Bytes::from([&last.key, &b"\0"[..]].concat()),
            _ => return Ok(()),
        }
    }
}

async fn range(
    caller: &Arc<Caller>,
    shared: &Shared,
    request: RangeRequest,
) -> Result<RangeResponse, Failed> {
    ask(caller, shared, Method::Range, &request).await
}

async fn ask<T: Message + Default>(
    caller: &Arc<Caller>,
    shared: &Shared,
    method: Method,
    request: &impl Message,
) -> Result<T, Failed> {
    let mut line = caller.line().await;
    let answer = Patience::new(shared.timeout)
        .with(line.ask(method, request))
        .await;
    answer.map_err(|status| ClientError::Server(status).into())
}
