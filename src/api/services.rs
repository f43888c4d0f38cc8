//! Which service answers a call.
//!
//! Those that are called all the time are found by their name; a router, which boxes what goes through it, has the rest.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

use super::kv::Kv;
use super::lease::Lease;
use super::range;
use crate::pb::etcdserverpb::kv_server::KvServer;
use crate::pb::etcdserverpb::lease_server::LeaseServer;

/// The answer to a call, once it is there.
pub type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Every service of the client port. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    pub(super) ranges: Arc<Kv>,
    /// The most bytes of a request.
    pub(super) limit: usize,
    pub(super) kv: KvServer<Kv>,
    pub(super) lease: LeaseServer<Lease>,
    pub(super) others: Routes,
}

impl<B> Service<Request<B>> for Services
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answering {
        let path = request.uri().path();
        if range::is_range(path) {
            return range::call(self.ranges.clone(), self.limit, request);
        }
        match service_of(path) {
            KvServer::<Kv>::NAME => self.kv.call(request),
            LeaseServer::<Lease>::NAME => self.lease.call(request),
            _ => Box::pin(self.others.call(request)),
        }
    }
}

/// The service in a path, `/service/method`.
fn service_of(path: &str) -> &str {
    let named = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    named.map_or("", |(service, _)| service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_service() {
        assert_eq!(service_of("/etcdserverpb.KV/Put"), KvServer::<Kv>::NAME);
        assert_eq!(
            service_of("/etcdserverpb.Lease/LeaseGrant"),
            LeaseServer::<Lease>::NAME
        );
        for path in ["", "/", "etcdserverpb.KV/Put", "/etcdserverpb.KV"] {
            assert_eq!(service_of(path), "", "{path}");
        }
    }
}
