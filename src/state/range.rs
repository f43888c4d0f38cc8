//! Reading a range: which keys, in which order, how many.

use std::cmp::Ordering;

use crate::error::Error;
use crate::mvcc::history::Meta;
use crate::mvcc::{KeyRange, Revision, Versions, pair};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::pb::mvccpb::KeyValue;
use crate::storage;

use bytes::{Bytes, BytesMut};

/// More bytes are not asked for ahead.
const LARGEST_GUESS: usize = 1 << 20;
/// Room for what else an answer says, in bytes.
const BEHIND: usize = 64;

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
    /// Nothing where the pair brings it along.
    key: Bytes,
    meta: Meta,
}

/// What a range finds, in its order, cut to its limit.
struct Selection {
    found: Vec<Found>,
    more: bool,
    count: i64,
}

/// A range's answer but for its header, its pairs encoded as they go out.
pub struct EncodedRange {
    /// Behind what it was begun with, the field `kvs` of a `RangeResponse`, again and again.
    pub kvs: BytesMut,
    /// Whether the limit cut something off.
    pub more: bool,
    /// Keys in the range.
    pub count: i64,
}

/// The range as it is at the main revision `at`. The response has no header yet.
pub fn range(source: &impl Versions, request: &RangeRequest, at: i64) -> storage::Result<RangeResponse> {
    let Selection { found, more, count } = select(source, request, at);
    let (kvs, more) = match is_by_value(request) {
        true => sorted_by_value(source, request, &found)?,
        false => (load(source, &found, request.keys_only)?, more),
    };
    Ok(RangeResponse {
        kvs,
        more,
        count,
        header: None,
    })
}

/// The same, encoded from where the pairs are: appended to `kvs`.
pub fn encode_range(
    source: &impl Versions,
    request: &RangeRequest,
    at: i64,
    mut kvs: BytesMut,
) -> storage::Result<EncodedRange> {
    if is_by_value(request) || request.keys_only {
        let response = range(source, request, at)?;
        response.kvs.iter().for_each(|pair| encode_pair(pair, &mut kvs));
        return Ok(EncodedRange {
            kvs,
            more: response.more,
            count: response.count,
        });
    }
    let Selection { found, more, count } = select(source, request, at);
    let mut left = found.len();
    source.each(&revisions(&found), &mut |pair| {
        // Pairs are often alike in size.
        if kvs.capacity() - kvs.len() < pair::HEAD + pair.key.len() + pair.value.len() {
            let pair = pair::HEAD + pair.key.len() + pair.value.len();
            let guess = pair.saturating_mul(left).saturating_add(BEHIND);
            kvs.reserve(guess.min(LARGEST_GUESS));
        }
        encode_pair(pair, &mut kvs);
        left -= 1;
    })?;
    Ok(EncodedRange { kvs, more, count })
}

/// Appends a pair as one of the field `kvs`.
fn encode_pair(pair: &KeyValue, kvs: &mut BytesMut) {
    const KVS: u32 = 2;
    pair::encode_field(KVS, pair, kvs);
}

fn is_by_value(request: &RangeRequest) -> bool {
    request.sort_target == SortTarget::Value as i32
}

/// Looks for the keys. What is to be sorted by value is neither sorted nor cut yet.
fn select(source: &impl Versions, request: &RangeRequest, at: i64) -> Selection {
    let keys = KeyRange::new(&request.key, &request.range_end);
    let limit = limit(request);
    let enough = match request.count_only {
        true => Some(0),
        false => needed(request, limit),
    };
    let needs_key = request.keys_only && !is_by_value(request);
    let (mut found, mut count) = (Vec::new(), 0_i64);
    source.find(&keys, at, &mut |name, meta| {
        count += 1;
        if enough.is_none_or(|enough| found.len() < enough) && passes(request, meta) {
            found.push(Found {
                key: match needs_key {
                    true => name.to_bytes(),
                    false => Bytes::new(),
                },
                meta: *meta,
            });
        }
    });
    let mut more = false;
    if !is_by_value(request) {
        sort(&mut found, request, |a, b, target| {
            sort_number(&a.meta, target).cmp(&sort_number(&b.meta, target))
        });
        more = cut(&mut found, limit);
    }
    Selection { found, more, count }
}

/// All pairs have to be loaded before they can be sorted.
fn sorted_by_value(
    source: &impl Versions,
    request: &RangeRequest,
    found: &[Found],
) -> storage::Result<(Vec<KeyValue>, bool)> {
    let mut kvs = load(source, found, false)?;
    sort(&mut kvs, request, |a, b, _| a.value.cmp(&b.value));
    let more = cut(&mut kvs, limit(request));
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok((kvs, more))
}

/// 0 for none.
fn limit(request: &RangeRequest) -> usize {
    usize::try_from(request.limit).unwrap_or(0)
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

/// Sorts what is in the order of keys. No order and another target than the key means ascending.
fn sort<T>(items: &mut [T], request: &RangeRequest, compare: impl Fn(&T, &T, SortTarget) -> Ordering) {
    let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
    let order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
    match (order, target) {
        (SortOrder::Descend, SortTarget::Key) => items.reverse(),
        (SortOrder::Descend, _) => items.sort_by(|a, b| compare(b, a, target)),
        (_, SortTarget::Key) => {}
        _ => items.sort_by(|a, b| compare(a, b, target)),
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

fn load(source: &impl Versions, found: &[Found], keys_only: bool) -> storage::Result<Vec<KeyValue>> {
    if keys_only {
        return Ok(found
            .iter()
            .map(|found| found.meta.without_value(&found.key))
            .collect());
    }
    let mut pairs = Vec::with_capacity(found.len());
    source.each(&revisions(found), &mut |pair| pairs.push(pair.clone()))?;
    Ok(pairs)
}

fn revisions(found: &[Found]) -> Vec<Revision> {
    found.iter().map(|found| found.meta.revision).collect()
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
