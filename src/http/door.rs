//! The metrics port from the first moment on: before the member is in its cluster it says that it is not, and what it
//! waits for. Whoever asks the client port then is not answered, so that clients go to the members that can serve them.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::Service;
use tonic::body::Body;

use super::grpc::{Answer, Counted};
use super::{Port, WRONG_HOST, allow_host, health, plain};
use crate::config::HttpOptions;
use crate::server::bootstrap::Waits;

/// Closed at first. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    options: Arc<HttpOptions>,
    waits: Waits,
    /// What answers once it is open.
    port: Arc<OnceLock<Port>>,
}

impl Door {
    /// A closed one.
    pub fn new(options: HttpOptions, waits: Waits) -> Self {
        Door {
            options: Arc::new(options),
            waits,
            port: Arc::default(),
        }
    }

    /// From now on `port` answers.
    pub fn open(&self, port: Port) {
        // There is one opening in the life of a member.
        let _ = self.port.set(port);
    }

    fn closed<B>(&self, request: &Request<B>) -> Response<Body> {
        if !allow_host(&self.options, request) {
            return plain(StatusCode::MISDIRECTED_REQUEST, WRONG_HOST);
        }
        health::not_yet(request.uri().path(), &self.waits.what())
    }
}

impl Service<Request<Incoming>> for Door {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        match self.port.get() {
            Some(port) => port.call(request),
            None => {
                let answer = self.closed(&request).map(Counted::uncounted);
                Box::pin(std::future::ready(Ok(answer)))
            }
        }
    }
}
