//! Requests that want a leader: with the metadata `hasleader: true` they are refused while this member knows of none, and
//! a stream ends when there has been none for a while (`server/leader.rs`). Its client goes on at another member.

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{HeaderName, Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::services::Answering;
use super::status;
use super::until::until;
use crate::error::Error;
use crate::server::leader::Leadership;

static HAS_LEADER: HeaderName = HeaderName::from_static("hasleader");

/// Looks after requests that want a leader.
#[derive(Clone)]
pub struct RequireLeader {
    leadership: Leadership,
}

impl RequireLeader {
    /// By what this member knows of its leader.
    pub fn new(leadership: Leadership) -> Self {
        RequireLeader { leadership }
    }
}

impl<S> Layer<S> for RequireLeader {
    type Service = Bound<S>;

    fn layer(&self, inner: S) -> Bound<S> {
        Bound {
            inner,
            leadership: self.leadership.clone(),
        }
    }
}

/// See [`RequireLeader`].
#[derive(Clone)]
pub struct Bound<S> {
    inner: S,
    leadership: Leadership,
}

impl<S, A> Service<Request<A>> for Bound<S>
where
    S: Service<Request<A>, Response = Response<Body>, Error = Infallible, Future = Answering>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Answering {
        let wants_leader = request
            .headers()
            .get(&HAS_LEADER)
            .is_some_and(|value| value == "true");
        if !wants_leader {
            return self.inner.call(request);
        }
        if !self.leadership.is_known() {
            let refusal = status(Error::NoLeader).into_http();
            return Box::pin(std::future::ready(Ok(refusal)));
        }
        let lost = self.leadership.lost();
        let lost = async move {
            lost.await;
            status(Error::NoLeader)
        };
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| until(body, lost))) })
    }
}
