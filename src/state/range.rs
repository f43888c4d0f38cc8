//! Reading a range: which keys, in which order, how many.

use crate::error::Error;
use crate::mvcc::history::Meta;
use crate::mvcc::{KeyRange, Versions};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::pb::mvccpb::KeyValue;
use crate::storage;

use bytes::Bytes;

/// Why a read has no answer.
#[derive(Debug)]
pub enum ReadError {
    /// The request is refused.
    Refused(Error),
    /// This member can't read its state, and must stop.
    Local(storage::Error),
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        ReadError::Refused(error)
    }
}

impl From<storage::Error> for ReadError {
    fn from(error: storage::Error) -> Self {
        ReadError::Local(error)
    }
}

/// The revision that a range reads at.
pub fn revision_of(request: &RangeRequest, source: &impl Versions) -> Result<i64, Error> {
    match request.revision {
        at if at <= 0 => Ok(source.revision()),
        at if at > source.revision() => Err(Error::FutureRevision),
        at if at < source.compacted() => Err(Error::Compacted),
        at => Ok(at),
    }
}

/// The revision that a range inside a transaction reads at. Only here does etcd hold a negative revision against
/// the compacted one, rather than taking it for "latest".
pub fn revision_in_txn(request: &RangeRequest, source: &impl Versions) -> Result<i64, Error> {
    if request.revision < 0 && request.revision < source.compacted() {
        return Err(Error::Compacted);
    }
    revision_of(request, source)
}

/// A key of the range, without its value.
struct Found {
    key: Bytes,
    meta: Meta,
}

/// The range as it is at the main revision `at`. The response has no header yet.
pub fn range(source: &impl Versions, request: &RangeRequest, at: i64) -> storage::Result<RangeResponse> {
    let keys = KeyRange::new(&request.key, &request.range_end);
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let enough = match request.count_only {
        true => Some(0),
        false => needed(request, limit),
    };
    let (mut found, mut count) = (Vec::new(), 0_i64);
    source.find(&keys, at, &mut |key, meta| {
        count += 1;
        if enough.is_none_or(|enough| found.len() < enough) && passes(request, meta) {
            found.push(Found {
                key: Bytes::copy_from_slice(key),
                meta: *meta,
            });
        }
    });
    if request.count_only {
        return Ok(RangeResponse {
            count,
            ..RangeResponse::default()
        });
    }
    let by_value = request.sort_target == SortTarget::Value as i32;
    if !by_value {
        sort(
            &mut found,
            request,
            |found, target| sort_number(&found.meta, target),
            |found| &found.key,
        );
        let more = cut(&mut found, limit);
        let kvs = found
            .iter()
            .map(|found| load(source, found, request.keys_only))
            .collect::<storage::Result<_>>()?;
        return Ok(RangeResponse {
            kvs,
            more,
            count,
            header: None,
        });
    }
    let loaded: storage::Result<Vec<KeyValue>> =
        found.iter().map(|found| load(source, found, false)).collect();
    let mut kvs = loaded?;
    sort(&mut kvs, request, |_, _| 0, |kv| &kv.value);
    let more = cut(&mut kvs, limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok(RangeResponse {
        kvs,
        more,
        count,
        header: None,
    })
}

/// How many keys are looked at before sorting. A quirk that clients can see, in every etcd: with a limit and no explicit
/// order or filter, the range is cut in key order first, one key beyond the limit, and only then sorted.
fn needed(request: &RangeRequest, limit: usize) -> Option<usize> {
    let whole = request.sort_order != SortOrder::None as i32 || has_filter(request);
    (limit > 0 && !whole).then_some(limit.saturating_add(1))
}

/// Whether a filter by revision is in force.
pub fn has_filter(request: &RangeRequest) -> bool {
    [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ]
    .iter()
    .any(|bound| *bound != 0)
}

/// Filters are in force when they are not 0, and inclusive.
fn passes(request: &RangeRequest, meta: &Meta) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(
        meta.revision.main,
        request.min_mod_revision,
        request.max_mod_revision,
    ) && within(
        meta.create_revision,
        request.min_create_revision,
        request.max_create_revision,
    )
}

fn sort_number(meta: &Meta, target: SortTarget) -> i64 {
    match target {
        SortTarget::Version => meta.version,
        SortTarget::Create => meta.create_revision,
        SortTarget::Mod => meta.revision.main,
        SortTarget::Key | SortTarget::Value => 0,
    }
}

/// By the number first, then by the bytes where the target is bytes. No order and another target than the key means
/// ascending.
fn sort<T>(
    items: &mut [T],
    request: &RangeRequest,
    number: impl Fn(&T, SortTarget) -> i64,
    bytes: impl Fn(&T) -> &Bytes,
) {
    let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
    let order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
    let by_bytes = matches!(target, SortTarget::Key | SortTarget::Value);
    let compare = |a: &T, b: &T| match by_bytes {
        true => bytes(a).cmp(bytes(b)),
        false => number(a, target).cmp(&number(b, target)),
    };
    match order {
        SortOrder::Descend => items.sort_by(|a, b| compare(b, a)),
        // The index is in key order already.
        _ if target == SortTarget::Key => {}
        _ => items.sort_by(compare),
    }
}

/// Cuts to the limit; whether anything was cut off.
fn cut<T>(items: &mut Vec<T>, limit: usize) -> bool {
    let more = limit > 0 && items.len() > limit;
    if more {
        items.truncate(limit);
    }
    more
}

fn load(source: &impl Versions, found: &Found, keys_only: bool) -> storage::Result<KeyValue> {
    load_pair(source, &found.key, &found.meta, keys_only)
}

/// The pair of a key that was found, perhaps without its value.
pub fn load_pair(
    source: &impl Versions,
    key: &Bytes,
    meta: &Meta,
    keys_only: bool,
) -> storage::Result<KeyValue> {
    match keys_only {
        true => Ok(meta.without_value(key)),
        false => source.load(meta.revision),
    }
}
