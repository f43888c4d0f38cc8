//! The Watch service: a gRPC stream around a stream of the hub.
//!
//! The answers' events are encoded already, once for all the streams that carry them ([`Message`]), so this service
//! has a codec of its own, and with it the plain code that tonic would generate around its usual one.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::future::BoxFuture;
use prost::Message as _;
use tokio::sync::oneshot;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{credentials, header, limits, status, unimplemented};
use crate::error::Error;
use crate::pb::etcdserverpb::{ResponseHeader, WatchRequest};
use crate::server::auth::{Credentials, Gate};
use crate::server::watches::{Message, Requests, Responses};
use crate::server::{ENVELOPE, Server};

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

    fn watch(&self, who: Credentials, incoming: Streaming<WatchRequest>) -> Outgoing {
        let (requests, responses) = self.server.watches().open();
        let (ended, end) = oneshot::channel();
        let gate = self.server.gate().clone();
        let reading = tokio::spawn(async move {
            // Nobody is left to be told if this fails.
            let _ = ended.send(read(&gate, &who, incoming, requests).await);
        });
        Outgoing {
            server: self.server.clone(),
            responses,
            end,
            reading,
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

/// The answers' side of one stream.
pub struct Outgoing {
    server: Arc<Server>,
    responses: Responses,
    /// Filled when the requests' side has ended.
    end: oneshot::Receiver<Status>,
    reading: tokio::task::JoinHandle<()>,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Outgoing {
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Status>> {
        if let Poll::Ready(ended) = Pin::new(&mut self.end).poll(cx) {
            return Poll::Ready(Err(ended.unwrap_or_else(|_| status(Error::Stopped))));
        }
        let message = ready!(self.responses.poll_next(cx)).map_err(status)?;
        let header = header(&self.server, message.revision);
        Poll::Ready(Ok(Answer { header, message }))
    }
}

impl Stream for Outgoing {
    type Item = Result<Answer, Status>;

    /// Not asked again after an error: that is the stream's status.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_answer(cx).map(Some)
    }
}

/// A message with its header.
pub struct Answer {
    header: ResponseHeader,
    message: Message,
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
            let mut grpc = Grpc::new(WatchCodec)
                .max_decoding_message_size(limit)
                .max_encoding_message_size(usize::MAX);
            Ok(grpc.streaming(service, request).await)
        })
    }
}

impl StreamingService<WatchRequest> for WatchServer {
    type Response = Answer;
    type ResponseStream = Outgoing;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let who = credentials(&request);
        let outgoing = self.watch(who, request.into_inner());
        Box::pin(async { Ok(Response::new(outgoing)) })
    }
}

/// Answers go out as the bytes that they are.
struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Answer;
    type Decode = WatchRequest;
    type Encoder = WatchCodec;
    type Decoder = WatchCodec;

    fn encoder(&mut self) -> WatchCodec {
        WatchCodec
    }

    fn decoder(&mut self) -> WatchCodec {
        WatchCodec
    }
}

impl Encoder for WatchCodec {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        answer.message.encode(answer.header, |length| {
            out.reserve(length);
            out
        });
        Ok(())
    }
}

impl Decoder for WatchCodec {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        WatchRequest::decode(bytes)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
