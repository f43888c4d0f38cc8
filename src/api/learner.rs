//! What a learner answers: its status, serializable reads (`kv.rs` looks at those), and a backup. It may lag without
//! anybody waiting for it, so etcd's clients are sent to a voter for the rest.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

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
}

impl<S> Layer<S> for VotersOnly {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            inner,
            replica: self.replica.clone(),
        }
    }
}

/// See [`VotersOnly`].
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    replica: Replica,
}

impl<S, A> Service<Request<A>> for Gate<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        if needs_voter(request.uri().path()) && self.replica.is_learner() {
            let refusal = status(Error::LearnerNotSupported).into_http();
            return Box::pin(std::future::ready(Ok(refusal)));
        }
        Box::pin(self.inner.call(request))
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
