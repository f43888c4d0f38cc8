//! Whether members have the same: a checksum of all that one has at a revision, here and elsewhere.

use std::time::Duration;

use super::Replica;
use crate::pb::pontoon::peer;
use crate::raft::Node;
use crate::raft::network::{Purpose, within};
use crate::state::ReadError;

/// How long a member that is behind is waited for before its checksum is given up.
const CATCH_UP: Duration = Duration::from_secs(5);

/// What a member has at a revision, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// The checksum.
    pub hash: u32,
    /// What is below this revision has no part in it; −1 before any compaction.
    pub compacted: i64,
    /// The revision.
    pub revision: i64,
}

impl Replica {
    /// Checksum of all that is here at `revision`, or now, if that is 0. A member that is behind waits for a moment.
    pub async fn checksum(&self, revision: i64) -> Result<Checksum, String> {
        let reader = self.reader().clone();
        let mut applied = self.applied();
        let reached = async { while reader.revision() < revision && applied.changed().await.is_ok() {} };
        if tokio::time::timeout(CATCH_UP, reached).await.is_err() {
            return Err(format!("this member is not at revision {revision} yet"));
        }
        let began = std::time::Instant::now();
        let hashed = tokio::task::spawn_blocking(move || reader.hash_kv(revision)).await;
        self.metrics().revision_hashes.observe(began.elapsed());
        match hashed.map_err(|error| error.to_string())? {
            Ok((hash, compacted, revision)) => Ok(Checksum {
                hash,
                compacted,
                revision,
            }),
            Err(ReadError::Refused(error)) => Err(error.to_string()),
            Err(ReadError::Local(error)) => {
                self.failure()
                    .report(format!("cannot read the applied state: {error}"));
                Err(error.to_string())
            }
        }
    }

    /// Asks another member for its checksum at `revision`.
    pub async fn ask_checksum(
        &self,
        id: u64,
        node: &Node,
        revision: i64,
        limit: Duration,
    ) -> Result<Checksum, tonic::Status> {
        let request = peer::ChecksumRequest {
            target: Some(self.inner.peers.target(id)),
            revision,
        };
        let mut client = self.inner.peers.client(id, node, Purpose::Control)?;
        let reply = within(limit, client.checksum(request)).await?;
        Ok(Checksum {
            hash: reply.hash,
            compacted: reply.compacted,
            revision,
        })
    }
}
