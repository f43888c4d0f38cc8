//! What members say to each other, counted by the one at the other end: bytes each way, and what broke off.
//!
//! A request names who sends it in a header, beside the target that its message names; a member of an older version
//! does not, and what it asks is not counted. Bodies are wrapped; counting costs one addition for each frame.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::channel::Channel;
use crate::metrics::traffic::Exchange;
use crate::metrics::{Counter, Metrics};

/// The sender's id, in hex.
const FROM: HeaderName = HeaderName::from_static("pontoon-from");

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How a member names itself in its requests.
pub fn name(member_id: u64) -> HeaderValue {
    HeaderValue::try_from(format!("{member_id:x}")).unwrap_or(HeaderValue::from_static("0"))
}

/// The member that sends a request, as it says.
fn sender(headers: &HeaderMap) -> Option<u64> {
    u64::from_str_radix(headers.get(FROM)?.to_str().ok()?, 16).ok()
}

/// The member at the other end.
#[derive(Clone)]
pub struct Other {
    id: u64,
    metrics: Arc<Metrics>,
    /// Not yet, if it is not known to be a member: a stream may begin before that.
    exchange: Option<Arc<Exchange>>,
}

impl Other {
    /// The member `id`, counted in `metrics`.
    pub fn new(id: u64, metrics: Arc<Metrics>) -> Self {
        Other {
            id,
            exchange: metrics.traffic.with(id),
            metrics,
        }
    }

    fn exchange(&mut self) -> Option<&Exchange> {
        if self.exchange.is_none() {
            self.exchange = self.metrics.traffic.with(self.id);
        }
        self.exchange.as_deref()
    }
}

/// Requests to one member.
#[derive(Clone)]
pub struct Outgoing {
    channel: Channel,
    from: HeaderValue,
    to: Option<Other>,
}

impl Outgoing {
    /// Requests on `channel` by the member that is named `from`; counted, if it is known who is asked.
    pub fn new(channel: Channel, from: HeaderValue, to: Option<Other>) -> Self {
        Outgoing { channel, from, to }
    }
}

impl Service<Request<Body>> for Outgoing {
    type Response = Response<Weighed<hyper::body::Incoming>>;
    type Error = Status;
    type Future = BoxFuture<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.headers_mut().insert(FROM, self.from.clone());
        let mut other = self.to.clone();
        let weigh = |body| Body::new(Weighed::new(body, other.clone(), SENT));
        let answer = self.channel.call(request.map(weigh));
        Box::pin(async move {
            let answer = answer.await;
            if let (Err(_), Some(exchange)) = (&answer, other.as_mut().and_then(Other::exchange)) {
                exchange.sent_failures.increment();
            }
            Ok(answer?.map(|body| Weighed::new(body, other, ANSWERED)))
        })
    }
}

/// Requests from the others, on their way to a service.
#[derive(Clone)]
pub struct Incoming<S> {
    service: S,
    metrics: Arc<Metrics>,
}

impl<S> Incoming<S> {
    /// Requests to `service`, counted in `metrics`.
    pub fn new(service: S, metrics: Arc<Metrics>) -> Self {
        Incoming { service, metrics }
    }
}

impl<S, B, A> Service<Request<B>> for Incoming<S>
where
    S: Service<Request<Weighed<B>>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = Response<Weighed<A>>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let sender = sender(request.headers());
        let other = sender.map(|id| Other::new(id, self.metrics.clone()));
        let theirs = other.clone();
        let answer = self
            .service
            .call(request.map(|body| Weighed::new(body, theirs, RECEIVED)));
        Box::pin(async move { Ok(answer.await?.map(|body| Weighed::new(body, other, SENT))) })
    }
}

/// What a body counts as.
#[derive(Clone, Copy)]
struct Kind {
    bytes: fn(&Exchange) -> &Counter,
    /// If it breaks off.
    failures: Option<fn(&Exchange) -> &Counter>,
}

/// A request or an answer of this member.
const SENT: Kind = Kind {
    bytes: |exchange| &exchange.sent_bytes,
    failures: None,
};
/// An answer to this member.
const ANSWERED: Kind = Kind {
    bytes: |exchange| &exchange.received_bytes,
    failures: Some(|exchange| &exchange.sent_failures),
};
/// A request to this member.
const RECEIVED: Kind = Kind {
    bytes: |exchange| &exchange.received_bytes,
    failures: Some(|exchange| &exchange.received_failures),
};

/// A body whose bytes are counted.
pub struct Weighed<B> {
    body: B,
    other: Option<Other>,
    kind: Kind,
}

impl<B> Weighed<B> {
    fn new(body: B, other: Option<Other>, kind: Kind) -> Self {
        Weighed { body, other, kind }
    }
}

impl<B> http_body::Body for Weighed<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let kind = self.kind;
        if let (Some(exchange), Some(frame)) = (self.other.as_mut().and_then(Other::exchange), &frame) {
            match frame {
                Ok(frame) => {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    (kind.bytes)(exchange).add(length as u64);
                }
                Err(_) => {
                    if let Some(failures) = kind.failures {
                        failures(exchange).increment();
                    }
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use futures::StreamExt;
    use http_body_util::{BodyExt, Full};

    use super::*;

    /// Answers with the first three bytes of what it is sent.
    async fn three(request: Request<Weighed<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, Infallible> {
        let body = request.into_body().collect().await?.to_bytes();
        Ok(Response::new(Full::new(body.slice(..3))))
    }

    #[tokio::test]
    async fn requests_are_counted_by_the_member_that_sends_them() {
        let metrics = Arc::new(Metrics::default());
        metrics.traffic.keep(&BTreeSet::from([0xa1]));
        let mut service = Incoming::new(tower::service_fn(three), metrics.clone());
        for from in [
            Some(name(0xa1)),
            Some(name(0xb2)),
            Some(HeaderValue::from_static("?")),
            None,
        ] {
            let mut request = Request::new(Full::new(Bytes::from_static(b"hello")));
            if let Some(from) = from {
                request.headers_mut().insert(FROM, from);
            }
            let answer = service.call(request).await.expect("an answer");
            answer.into_body().collect().await.expect("a body");
        }
        let exchange = metrics.traffic.with(0xa1).expect("a member");
        assert_eq!((exchange.received_bytes.get(), exchange.sent_bytes.get()), (5, 3));
        assert!(metrics.traffic.with(0xb2).is_none());
    }

    #[tokio::test]
    async fn a_stream_that_began_before_its_sender_was_known_is_counted_from_then_on() {
        let metrics = Arc::new(Metrics::default());
        let parts = futures::stream::iter(["one", "three"])
            .map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from_static(part.as_bytes()))));
        let body = http_body_util::StreamBody::new(parts);
        let mut body = Weighed::new(body, Some(Other::new(0xa1, metrics.clone())), RECEIVED);
        body.frame().await;
        metrics.traffic.keep(&BTreeSet::from([0xa1]));
        body.frame().await;
        let exchange = metrics.traffic.with(0xa1).expect("a member");
        assert_eq!(exchange.received_bytes.get(), 5);
    }
}
