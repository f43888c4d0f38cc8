//! The Watch service: a gRPC stream around a stream of the hub.
//!
//! The answers' events are encoded already, once for all the streams that carry them, so this service makes the body of
//! its answer itself ([`Answers`]), from what is there to be taken. tonic reads the requests.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream;
use http_body::{Body, Frame};
use tokio::sync::oneshot;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{credentials, header, limits, status, unimplemented};
use crate::error::Error;
use crate::pb::etcdserverpb::WatchRequest;
use crate::server::auth::{Credentials, Gate};
use crate::server::watches::{Message, Requests, Responses, encoded};
use crate::server::{ENVELOPE, Server};
use crate::wire::codec::ProtobufCodec;
use crate::wire::framing::{PREFIX, ended, seal};

/// The Watch service.
#[derive(Clone)]
pub struct WatchServer {
    server: Arc<Server>,
}

impl WatchServer {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        WatchServer {
            server: Arc::new(server),
        }
    }

    fn watch(&self, who: Credentials, incoming: Streaming<WatchRequest>) -> Answers {
        let (requests, responses) = self.server.watches().open();
        let (ended, end) = oneshot::channel();
        let gate = self.server.gate().clone();
        let reading = tokio::spawn(async move {
            // Nobody is left to be told if this fails.
            let _ = ended.send(read(&gate, &who, incoming, requests).await);
        });
        Answers {
            server: self.server.clone(),
            responses,
            end,
            reading,
            is_over: false,
        }
    }
}

/// Passes requests on until the client breaks the stream: a half-close does not end it. Returns how it ended.
async fn read(
    gate: &Gate,
    who: &Credentials,
    mut incoming: Streaming<WatchRequest>,
    requests: Requests,
) -> Status {
    loop {
        match incoming.message().await {
            Ok(Some(request)) => {
                if let Err(error) = requests.send(gate.caller(who).await, request).await {
                    return status(error);
                }
            }
            Ok(None) => std::future::pending().await,
            Err(broken) if broken.code() == Code::Cancelled => return status(Error::WatchCanceled),
            Err(broken) => return limits::corrected(broken),
        }
    }
}

/// The answers of one stream, as they go out.
struct Answers {
    server: Arc<Server>,
    responses: Responses,
    /// Filled when the requests' side has ended.
    end: oneshot::Receiver<Status>,
    reading: tokio::task::JoinHandle<()>,
    /// Its status was said.
    is_over: bool,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Answers {
    /// What there is to say, some of it at once; an error is the end.
    fn poll_messages(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        if let Poll::Ready(ended) = Pin::new(&mut self.end).poll(cx) {
            return Poll::Ready(Err(ended.unwrap_or_else(|_| status(Error::Stopped))));
        }
        let messages = ready!(self.responses.poll_some(cx)).map_err(status)?;
        // For prefixes and headers too, so that one buffer does.
        let mut framed = BytesMut::with_capacity(messages.iter().map(Message::size).sum());
        let mut newest = (None, Bytes::new());
        for message in messages.drain(..) {
            // Mostly they are all of one revision.
            if newest.0 != Some(message.revision) {
                let header = header(&self.server, message.revision);
                newest = (Some(message.revision), encoded(&header));
            }
            let begin = framed.len();
            framed.put_bytes(0, PREFIX);
            message.encode(&newest.1, &mut framed);
            seal(&mut framed[begin..])?;
        }
        Poll::Ready(Ok(framed.freeze()))
    }
}

impl Body for Answers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.poll_messages(cx)) {
            Ok(messages) => Frame::data(messages),
            Err(status) => {
                self.is_over = true;
                Frame::trailers(ended(&status))
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

impl NamedService for WatchServer {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl tower::Service<http::Request<tonic::body::Body>> for WatchServer {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/etcdserverpb.Watch/Watch" {
                return Ok(unimplemented(request.uri().path()).into_http());
            }
            let limit = service.server.limits().request_bytes + ENVELOPE;
            let answers = OnceLock::new();
            let watch = Watch {
                service: &service,
                answers: &answers,
            };
            let mut grpc = Grpc::new(ProtobufCodec::default()).max_decoding_message_size(limit);
            let answer = grpc.streaming(watch, request).await;
            Ok(match answers.into_inner() {
                Some(answers) => answer.map(|_| tonic::body::Body::new(answers)),
                None => answer,
            })
        })
    }
}

/// The method. Its answers are put where it is told.
struct Watch<'a> {
    service: &'a WatchServer,
    answers: &'a OnceLock<Answers>,
}

impl StreamingService<WatchRequest> for Watch<'_> {
    type Response = ();
    type ResponseStream = stream::Empty<Result<(), Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let who = credentials(&request);
        self.answers
            .get_or_init(|| self.service.watch(who, request.into_inner()));
        ready(Ok(Response::new(stream::empty())))
    }
}
