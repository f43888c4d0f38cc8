//! A range read piece by piece, all of it at one moment: memory is bounded by a piece, not by the range.

use std::collections::VecDeque;

use bytes::Bytes;

use super::header;
use super::range::{ReadError, has_filter, load_pair, revision_of};
use crate::mvcc::history::Meta;
use crate::mvcc::{KeyRange, Versions, View};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::storage;

/// Bytes of pairs in a chunk, about: one more pair may come on top.
const CHUNK_BYTES: usize = 512 << 10;
/// Keys taken from the index at once.
const PAGE: usize = 1000;

/// Whether a range can be read in chunks: in key order, without filters.
pub fn is_in_key_order(request: &RangeRequest) -> bool {
    let by_key = request.sort_target == SortTarget::Key as i32;
    by_key && request.sort_order != SortOrder::Descend as i32 && !has_filter(request)
}

/// The chunks of one range. Holds on to the moment that it reads: what compaction frees meanwhile is reclaimed later.
pub struct Chunks {
    view: View,
    request: RangeRequest,
    at: i64,
    /// What is not looked at yet.
    rest: Option<KeyRange>,
    /// Looked at, not read yet.
    page: VecDeque<(Bytes, Meta)>,
    /// Pairs given so far.
    given: i64,
    is_over: bool,
}

impl Chunks {
    /// Begins a range of what can be seen now.
    pub fn new(view: View, request: &RangeRequest) -> Result<Chunks, ReadError> {
        Ok(Chunks {
            at: revision_of(request, &view)?,
            rest: Some(KeyRange::new(&request.key, &request.range_end)),
            view,
            request: request.clone(),
            page: VecDeque::new(),
            given: 0,
            is_over: false,
        })
    }

    /// The next chunk. The last one has header, count and whether there would be more; its header has the revision only.
    pub fn next_chunk(&mut self) -> storage::Result<Option<RangeResponse>> {
        if self.is_over {
            return Ok(None);
        }
        let mut chunk = RangeResponse::default();
        let mut bytes = 0;
        while bytes < CHUNK_BYTES && !self.is_enough() && self.has_more() {
            if let Some((key, meta)) = self.page.pop_front() {
                let kv = load_pair(&self.view, &key, &meta, self.request.keys_only)?;
                bytes += kv.key.len() + kv.value.len();
                self.given += 1;
                chunk.kvs.push(kv);
            }
        }
        if self.is_enough() || !self.has_more() {
            let left = self.count_rest();
            self.is_over = true;
            chunk.header = header(self.view.revision());
            chunk.count = self.given + left;
            chunk.more = left > 0 && !self.request.count_only;
        }
        Ok(Some(chunk))
    }

    fn is_enough(&self) -> bool {
        let limit = self.request.limit;
        self.request.count_only || (limit > 0 && self.given >= limit)
    }

    /// Whether there is a pair to come; takes the next page from the index if need be.
    fn has_more(&mut self) -> bool {
        while self.page.is_empty()
            && let Some(range) = self.rest.take()
        {
            let (page, rest) = self.view.page(&range, self.at, PAGE);
            self.page = page.into();
            self.rest = rest;
        }
        !self.page.is_empty()
    }

    fn count_rest(&mut self) -> i64 {
        let mut count = self.page.len() as i64;
        if let Some(rest) = self.rest.take() {
            self.view.find(&rest, self.at, &mut |_, _| count += 1);
        }
        count
    }
}
