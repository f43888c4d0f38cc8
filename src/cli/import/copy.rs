//! The pairs of the source as of one revision, to the target: both are read side by side, in key order, and what
//! differs is written. Into an empty target that is all of them.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Batch, Change, Import, REPORT, all};
use crate::cli::failed::Failed;
use crate::cli::output;
use crate::client::{Client, ClientError};
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::mvccpb::KeyValue;

/// Pairs of the first page; how many the next ones may have is learnt from it.
const FIRST_PAGE: i64 = 100;
const LARGEST_PAGE: usize = 5000;
/// Bytes of a page, about.
const PAGE_BYTES: usize = 4 << 20;

/// Pairs that only the target has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// There are none, and nothing is looked at.
    None,
    /// They stay.
    Keep,
    /// They go.
    Delete,
}

impl Import {
    /// Makes the target what the source is; the source's revision that it then has.
    pub(super) async fn copy(&self, mut extra: Extra) -> Result<i64, Failed> {
        loop {
            match self.copy_once(extra).await {
                Err(CopyError::Compacted) => {
                    output::say(
                        "the source has compacted the revision that is being copied: beginning with a newer one",
                    );
                    extra = match extra {
                        Extra::Keep => Extra::Keep,
                        Extra::None | Extra::Delete => Extra::Delete,
                    };
                }
                Err(CopyError::Failed(failed)) => return Err(failed),
                Ok(revision) => return Ok(revision),
            }
        }
    }

    async fn copy_once(&self, extra: Extra) -> Result<i64, CopyError> {
        let mut source = Pages::new(&self.source);
        let mut target = Pages::new(&self.target);
        target.at_end = extra == Extra::None;
        let mut batch = Batch::new(self);
        let (mut seen, mut said) = (0u64, Instant::now());
        loop {
            source.fill().await?;
            target.fill().await?;
            let theirs = source.pairs.front();
            let ours = target.pairs.front();
            let change = match (theirs, ours) {
                (None, None) => break,
                (Some(theirs), Some(ours)) if theirs.key == ours.key => {
                    let same = theirs.value == ours.value && theirs.lease == ours.lease;
                    target.pairs.pop_front();
                    source.pairs.pop_front().filter(|_| !same).map(Change::Put)
                }
                (Some(theirs), ours) if ours.is_none_or(|ours| theirs.key < ours.key) => {
                    source.pairs.pop_front().map(Change::Put)
                }
                _ => target
                    .pairs
                    .pop_front()
                    .filter(|_| extra == Extra::Delete)
                    .map(|kv| Change::Delete(kv.key)),
            };
            seen += 1;
            if let Some(change) = change {
                batch.add(change).await?;
            }
            if said.elapsed() >= REPORT {
                said = Instant::now();
                output::say(format!("copied {seen} of {} keys", source.count));
            }
        }
        batch.write().await?;
        output::say(format!(
            "copied the source as of revision {}: {} keys, {} writes",
            source.revision,
            source.count,
            self.written.load(Ordering::Relaxed)
        ));
        Ok(source.revision)
    }
}

enum CopyError {
    Compacted,
    Failed(Failed),
}

impl From<Failed> for CopyError {
    fn from(failed: Failed) -> Self {
        CopyError::Failed(failed)
    }
}

impl From<ClientError> for CopyError {
    fn from(error: ClientError) -> Self {
        match error.code() {
            Some(tonic::Code::OutOfRange) => CopyError::Compacted,
            _ => CopyError::Failed(error.into()),
        }
    }
}

/// All pairs of a cluster as of one revision, in key order, a page at a time.
struct Pages<'a> {
    client: &'a Client,
    next: Bytes,
    limit: i64,
    /// 0 before the first page, which fixes it.
    revision: i64,
    /// Keys there are in all, as the first page told.
    count: i64,
    pairs: VecDeque<KeyValue>,
    at_end: bool,
}

impl<'a> Pages<'a> {
    fn new(client: &'a Client) -> Self {
        Pages {
            client,
            next: all().key,
            limit: FIRST_PAGE,
            revision: 0,
            count: 0,
            pairs: VecDeque::new(),
            at_end: false,
        }
    }

    /// Reads the next page if none is left of the last.
    async fn fill(&mut self) -> Result<(), ClientError> {
        if self.at_end || !self.pairs.is_empty() {
            return Ok(());
        }
        let request = RangeRequest {
            key: self.next.clone(),
            limit: self.limit,
            revision: self.revision,
            ..all()
        };
        let page = self.client.range(request).await?;
        if self.revision == 0 {
            self.revision = page.header.map_or(0, |header| header.revision);
            self.count = page.count;
        }
        self.at_end = !page.more;
        let bytes: usize = page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        if let Some(last) = page.kvs.last() {
            self.next = [&last.key[..], b"\0"].concat().into();
            let each = (bytes / page.kvs.len()).max(1);
            self.limit = (PAGE_BYTES / each).clamp(1, LARGEST_PAGE) as i64;
        }
        self.pairs = page.kvs.into();
        Ok(())
    }
}
