//! gRPC calls, counted: the way to the services for clients of gRPC and for everything that this ring builds on them.
//!
//! Wraps bodies without boxing them anew: a call costs a few atomic additions.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::api::{self, Bound, RequireLeader, Services, VotersOnly};
use crate::metrics::{Calls, Metrics};
use crate::server::Server;

static CLIENT_API_VERSION: HeaderName = HeaderName::from_static("client-api-version");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Any error.
type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// An answer of the client port, gRPC or not.
pub type Answer = Response<Counted<tonic::body::Body>>;

/// All services of the client port. Cheap to clone.
#[derive(Clone)]
pub struct Grpc {
    services: Bound<Services>,
    voters_only: VotersOnly,
    metrics: Arc<Metrics>,
}

impl Grpc {
    /// The services of `server`.
    pub fn new(server: &Server) -> anyhow::Result<Self> {
        let require_leader = RequireLeader::new(server.leadership().clone());
        Ok(Grpc {
            services: require_leader.layer(api::services(server)?),
            voters_only: VotersOnly::new(server.replica().clone()),
            metrics: server.metrics().clone(),
        })
    }

    fn begin(&self, path: &str, headers: &HeaderMap) -> Option<Call> {
        let calls = self.metrics.calls(path)?;
        calls.started.increment();
        let version = headers
            .get(&CLIENT_API_VERSION)
            .and_then(|version| version.to_str().ok());
        self.metrics
            .count_version(version.unwrap_or("unknown"), calls.kind == "unary");
        Some(Call {
            calls: calls.clone(),
            metrics: self.metrics.clone(),
            began: calls.handling.is_some().then(Instant::now),
            is_over: false,
        })
    }
}

impl<B> Service<Request<B>> for Grpc
where
    B: Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = self.begin(request.uri().path(), request.headers());
        if let Some(refusal) = self.voters_only.refusal(request.uri().path()) {
            return Box::pin(std::future::ready(Ok(Call::answer(call, refusal))));
        }
        let deadline = deadline(request.headers()).map(|limit| tokio::time::Instant::now() + limit);
        let is_unary = call.as_ref().is_some_and(|call| call.calls.kind == "unary");
        let received = call.as_ref().map(Call::received);
        let answer = self
            .services
            .call(request.map(|body| Counted::new(body, None, received)));
        Box::pin(async move {
            let answer = match deadline {
                None => answer.await?,
                Some(deadline) => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(answer) if is_unary => answer?,
                    Ok(answer) => answer?.map(|body| api::until(body, passed(deadline))),
                    Err(_) => deadline_exceeded().into_http(),
                },
            };
            Ok(Call::answer(call, answer))
        })
    }
}

/// How long the client waits: `grpc-timeout`, at most eight digits and a unit.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(&GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
    let number: u64 = is_number.then(|| digits.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// How a stream ends whose client waits no longer.
async fn passed(deadline: tokio::time::Instant) -> Status {
    tokio::time::sleep_until(deadline).await;
    deadline_exceeded()
}

/// One call from its begin to its end, which is a status, or that nobody waits any more.
struct Call {
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
    /// Only if durations are kept.
    began: Option<Instant>,
    is_over: bool,
}

impl Call {
    fn received(&self) -> Messages {
        Messages::new(
            self,
            |calls| &calls.received,
            |metrics| &metrics.client_received_bytes,
        )
    }

    fn sent(&self) -> Messages {
        Messages::new(self, |calls| &calls.sent, |metrics| &metrics.client_sent_bytes)
    }

    /// The answer, which is watched for the call's end.
    fn answer(mut call: Option<Call>, answer: Response<tonic::body::Body>) -> Answer {
        let (mut head, body) = answer.into_parts();
        api::rewrite_limit_error(&mut head.headers);
        let sent = call.as_ref().map(Call::sent);
        if let Some(call) = &mut call {
            call.see_end(&head.headers);
        }
        Response::from_parts(head, Counted::new(body, call, sent))
    }

    /// Headers or trailers: the last ones carry the status.
    fn see_end(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(&Status::GRPC_STATUS) {
            self.end(Code::from_bytes(code.as_bytes()));
        }
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        if let Some(counter) = self.calls.handled.get(code as usize) {
            counter.increment();
        }
        if let (Some(began), Some(handling)) = (self.began, &self.calls.handling) {
            handling.observe(began.elapsed());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Finds the messages in a body: each has five bytes before it, of which the last four are its length.
struct Messages {
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
    count: fn(&Calls) -> &crate::metrics::Counter,
    bytes: fn(&Metrics) -> &crate::metrics::Counter,
    /// Bytes of the head seen, and the length so far.
    head: (u8, u32),
    /// Bytes of the message still to come.
    left: usize,
}

const HEAD: u8 = 5;

impl Messages {
    fn new(
        call: &Call,
        count: fn(&Calls) -> &crate::metrics::Counter,
        bytes: fn(&Metrics) -> &crate::metrics::Counter,
    ) -> Self {
        Messages {
            calls: call.calls.clone(),
            metrics: call.metrics.clone(),
            count,
            bytes,
            head: (0, 0),
            left: 0,
        }
    }

    fn see(&mut self, mut data: &[u8]) {
        (self.bytes)(&self.metrics).add(data.len() as u64);
        while !data.is_empty() {
            let skipped = self.left.min(data.len());
            self.left -= skipped;
            data = &data[skipped..];
            while let Some((byte, rest)) = data.split_first() {
                if self.left > 0 {
                    break;
                }
                data = rest;
                let (seen, length) = self.head;
                // The first byte is a flag; it falls out at the top.
                self.head = (seen + 1, (length << 8) | u32::from(*byte));
                if self.head.0 == HEAD {
                    self.left = self.head.1 as usize;
                    self.head = (0, 0);
                    (self.count)(&self.calls).increment();
                }
            }
        }
    }
}

/// A body whose messages are counted, and that holds a call until its end.
pub struct Counted<B> {
    body: B,
    call: Option<Call>,
    messages: Option<Messages>,
}

impl<B> Counted<B> {
    fn new(body: B, call: Option<Call>, messages: Option<Messages>) -> Self {
        Counted { body, call, messages }
    }

    /// Of an answer that is not gRPC.
    pub fn uncounted(body: B) -> Self {
        Counted::new(body, None, None)
    }
}

impl<B> Body for Counted<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            if let (Some(data), Some(messages)) = (frame.data_ref(), &mut self.messages) {
                messages.see(data);
            }
            if let (Some(trailers), Some(call)) = (frame.trailers_ref(), &mut self.call) {
                call.see_end(trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.messages {
            // gRPC's messages tell their lengths: a header with it would be one more for both sides to handle.
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(metrics: &Arc<Metrics>) -> Call {
        let calls = metrics.calls("/etcdserverpb.KV/Put").expect("a method").clone();
        Call {
            calls,
            metrics: metrics.clone(),
            began: None,
            is_over: false,
        }
    }

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let stream = [
            &[0, 0, 0, 0, 3][..],
            b"abc",
            &[0, 0, 0, 0, 0],
            &[1, 0, 0, 1, 0],
            &[7; 256],
        ]
        .concat();
        for cut in [1, 2, 3, 5, 7, stream.len()] {
            let metrics = Arc::new(Metrics::new(false));
            let call = call(&metrics);
            let mut messages = call.sent();
            for part in stream.chunks(cut) {
                messages.see(part);
            }
            assert_eq!(call.calls.sent.get(), 3, "cut at {cut}");
            assert_eq!(metrics.client_sent_bytes.get(), stream.len() as u64);
        }
    }

    #[test]
    fn a_call_ends_once_with_its_status_or_as_cancelled() {
        let metrics = Arc::new(Metrics::new(false));
        let mut ended = call(&metrics);
        let mut trailers = HeaderMap::new();
        ended.see_end(&trailers);
        trailers.insert("grpc-status", http::HeaderValue::from_static("14"));
        ended.see_end(&trailers);
        drop(ended);
        drop(call(&metrics));
        let handled = &metrics.calls("/etcdserverpb.KV/Put").expect("a method").handled;
        assert_eq!((handled[0].get(), handled[1].get(), handled[14].get()), (0, 1, 1));
    }

    #[test]
    fn deadlines_have_a_unit_and_eight_digits_at_most() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", http::HeaderValue::from_static(text));
            deadline(&headers)
        };
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "1x", "-1S", "123456789S", "1 S"] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }
}
