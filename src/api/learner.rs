//! What a learner answers: its status, serializable reads (`kv.rs` looks at those), and a backup. It may lag without
//! anybody waiting for it, so etcd's clients are sent to a voter for the rest.

use http::Response;
use tonic::body::Body;

use super::status;
use crate::error::Error;
use crate::raft::replica::Replica;

/// Methods that a learner serves too.
const SERVED: [&str; 3] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
];
/// Packages that this is about; health, reflection and the peers' own are not.
const PACKAGES: [&str; 3] = ["/etcdserverpb.", "/v3lockpb.", "/v3electionpb."];

fn needs_voter(path: &str) -> bool {
    PACKAGES.iter().any(|package| path.starts_with(package)) && !SERVED.contains(&path)
}

/// Refuses, on a learner, what only voters answer.
#[derive(Clone)]
pub struct VotersOnly {
    replica: Replica,
}

impl VotersOnly {
    /// Looks at what `replica` is, at each request.
    pub fn new(replica: Replica) -> Self {
        VotersOnly { replica }
    }

    /// The answer of a learner that does not serve `path`.
    pub fn refusal(&self, path: &str) -> Option<Response<Body>> {
        let is_refused = needs_voter(path) && self.replica.is_learner();
        is_refused.then(|| status(Error::LearnerNotSupported).into_http())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_serves_little() {
        for path in SERVED
            .into_iter()
            .chain(["/grpc.health.v1.Health/Check", "/pontoon.peer.Peer/Append"])
        {
            assert!(!needs_voter(path), "{path}");
        }
        for path in [
            "/etcdserverpb.KV/Put",
            "/etcdserverpb.Cluster/MemberList",
            "/v3lockpb.Lock/Lock",
        ] {
            assert!(needs_voter(path), "{path}");
        }
    }
}
