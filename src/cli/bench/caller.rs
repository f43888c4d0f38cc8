//! A connection that calls: gRPC on h2, with nothing between.
//!
//! tonic's channel is made for programs that do something else, too: requests go through a queue to a task, through
//! layers to another, their bodies through pipes to a third, and each hop is a wake. That cost some 15 µs an operation, as
//! much as a server's whole read, on cores that the servers need. Here a call is what it has to be:
//!
//! ```text
//!   HEADERS (made once, copied)  DATA (head and message, the end)   ──►
//!   ◄──   HEADERS  DATA …  HEADERS (grpc-status)
//! ```
//!
//! One task drives a connection; those who call are tasks of the same thread, whose runtime has one queue. What the
//! connection reads makes many of them ready, they all go on, and only then has the connection its turn again: their
//! requests go out in one write.
//!
//! A connection that ended is made anew by the next call; the calls that it took along fail. One that says nothing is
//! probed, as the options have it, and ended if it does not answer.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::uri::{Parts, PathAndQuery};
use http::{HeaderMap, Request, StatusCode, Uri};
use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Status};

use super::wire::{Cutter, HEAD, Sink};
use crate::client::{ClientError, Options};
use crate::tls::ClientStream;
use crate::wire::Gathered;

/// How much a server may send unasked on a stream, and on all of a connection: no range waits for us to ask for more.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `KV.Put`
    Put,
    /// `KV.Range`
    Range,
    /// `KV.Txn`
    Txn,
    /// `Lease.LeaseGrant`
    Grant,
    /// `Lease.LeaseKeepAlive`, a stream
    KeepAlive,
    /// `Watch.Watch`, a stream
    Watch,
}

impl Method {
    /// In the order in which they are declared.
    const PATHS: [&'static str; 6] = [
        "/etcdserverpb.KV/Put",
        "/etcdserverpb.KV/Range",
        "/etcdserverpb.KV/Txn",
        "/etcdserverpb.Lease/LeaseGrant",
        "/etcdserverpb.Lease/LeaseKeepAlive",
        "/etcdserverpb.Watch/Watch",
    ];
}

/// What calls need of a connection.
#[derive(Clone)]
struct Current {
    requests: SendRequest<Bytes>,
    /// Held up by each call: so the connection knows whether there are any.
    calls: Weak<()>,
}

/// A connection to an endpoint, for all callers of a lane.
pub struct Caller {
    endpoint: String,
    options: Options,
    /// The thread that drives it.
    lane: Handle,
    /// A request for each method, but for its body.
    requests: Vec<Request<()>>,
    current: Mutex<Current>,
}

impl Caller {
    /// Connects; `lane` is who drives the connection, `token` goes along with each request.
    pub async fn open(
        options: Options,
        endpoint: &str,
        token: Option<&AsciiMetadataValue>,
        lane: Handle,
    ) -> Result<Arc<Caller>, ClientError> {
        let requests = requests(&options.url(endpoint), token);
        Ok(Arc::new(Caller {
            requests: requests.ok_or_else(|| ClientError::Address(endpoint.to_string()))?,
            current: Mutex::new(connect(&options, endpoint, &lane).await?),
            endpoint: endpoint.to_string(),
            options,
            lane,
        }))
    }

    /// For somebody who calls, one call at a time, and streams.
    pub async fn line(self: &Arc<Self>) -> Line {
        Line {
            caller: self.clone(),
            current: self.current.lock().await.clone(),
            answer: Vec::new(),
        }
    }

    /// The connection in use; a new one if that has ended.
    async fn connected(&self) -> Result<Current, Status> {
        let mut current = self.current.lock().await;
        if poll_fn(|cx| current.requests.poll_ready(cx)).await.is_err() {
            let made = connect(&self.options, &self.endpoint, &self.lane).await;
            *current = made.map_err(|error| Status::unavailable(error.to_string()))?;
        }
        Ok(current.clone())
    }
}

/// What all requests have alike; none if that is no URL.
fn requests(url: &str, token: Option<&AsciiMetadataValue>) -> Option<Vec<Request<()>>> {
    let endpoint: Uri = url.parse().ok()?;
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    if let Some(token) = token {
        headers.insert("token", HeaderValue::from_bytes(token.as_bytes()).ok()?);
    }
    let request = |path| {
        let mut parts = Parts::default();
        parts.scheme = endpoint.scheme().cloned();
        parts.authority = endpoint.authority().cloned();
        parts.path_and_query = Some(PathAndQuery::from_static(path));
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        *request.headers_mut() = headers.clone();
        Some(request)
    };
    Method::PATHS.into_iter().map(request).collect()
}

/// Makes a connection, and lets the lane drive it.
async fn connect(options: &Options, endpoint: &str, lane: &Handle) -> Result<Current, ClientError> {
    let (options, endpoint) = (options.clone(), endpoint.to_string());
    // On the lane, as a socket belongs to the runtime in which it was made.
    let made = lane.spawn(async move {
        let stream = options.dial(&endpoint).await?;
        let made = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream)
            .await;
        let (requests, connection) = made.map_err(|error| ClientError::Server(lost(error)))?;
        let calls = Arc::new(());
        let current = Current {
            requests,
            calls: Arc::downgrade(&calls),
        };
        tokio::spawn(drive(connection, calls, options));
        Ok(current)
    });
    made.await
        .unwrap_or_else(|error| Err(ClientError::Server(Status::unavailable(error.to_string()))))
}

/// Until it ends, or does not answer.
async fn drive(mut connection: Connection<Gathered<ClientStream>, Bytes>, calls: Arc<()>, options: Options) {
    let pings = connection.ping_pong();
    let probed = async {
        match pings {
            Some(pings) => probe(pings, calls, &options).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        _ = connection => {}
        () = probed => {}
    }
}

/// Ends when a probe is not answered. Only while there are calls: servers take probes without them for an attack.
async fn probe(mut pings: PingPong, calls: Arc<()>, options: &Options) {
    loop {
        sleep(options.probe_interval()).await;
        if Arc::strong_count(&calls) > 1 {
            let answer = timeout(options.keepalive_timeout, pings.ping(Ping::opaque())).await;
            if !matches!(answer, Ok(Ok(_))) {
                return;
            }
        }
    }
}

/// One who calls, on a connection.
pub struct Line {
    caller: Arc<Caller>,
    current: Current,
    /// The last answer that was needed as a whole.
    answer: Vec<u8>,
}

impl Line {
    /// A call with one answer, whose message goes to `sink`.
    pub async fn call(
        &mut self,
        method: Method,
        message: &impl Message,
        sink: &mut impl Sink,
    ) -> Result<(), Status> {
        let mut exchange = self.begin(method, message, true).await?;
        let mut messages = 0;
        while let Some(part) = exchange.answer.part().await? {
            let mut rest = &part[..];
            while !rest.is_empty() {
                if messages > 0 {
                    return Err(Status::internal("more than one answer to one request"));
                }
                messages += u32::from(exchange.cutter.cut(&mut rest, sink)?);
            }
        }
        match messages {
            1 => Ok(()),
            _ => Err(Status::internal("no whole answer")),
        }
    }

    /// The same, for an answer that is needed as a whole.
    pub async fn ask<T: Message + Default>(
        &mut self,
        method: Method,
        message: &impl Message,
    ) -> Result<T, Status> {
        let mut answer = std::mem::take(&mut self.answer);
        answer.clear();
        self.call(method, message, &mut answer).await?;
        self.answer = answer;
        decoded(&self.answer)
    }

    /// Begins a stream with this message. Does not wait for its answer: some servers give none before there is one to the
    /// message.
    pub async fn open(&mut self, method: Method, message: &impl Message) -> Result<Exchange, Status> {
        self.begin(method, message, false).await
    }

    async fn begin(
        &mut self,
        method: Method,
        message: &impl Message,
        is_all: bool,
    ) -> Result<Exchange, Status> {
        if poll_fn(|cx| self.current.requests.poll_ready(cx)).await.is_err() {
            self.current = self.caller.connected().await?;
        }
        let request = self.caller.requests[method as usize].clone();
        let (answer, mut body) = self.current.requests.send_request(request, false).map_err(lost)?;
        body.send_data(framed(message), is_all).map_err(lost)?;
        Ok(Exchange {
            body,
            _call: self.current.calls.upgrade(),
            answer: Answer::Awaited(answer),
            part: Bytes::new(),
            cutter: Cutter::default(),
            message: Vec::new(),
        })
    }
}

/// A stream in both directions.
pub struct Exchange {
    body: SendStream<Bytes>,
    answer: Answer,
    _call: Option<Arc<()>>,
    /// What has come and is not cut yet.
    part: Bytes,
    cutter: Cutter,
    message: Vec<u8>,
}

impl Exchange {
    /// Sends another message.
    pub fn send(&mut self, message: &impl Message) -> Result<(), Status> {
        self.body.send_data(framed(message), false).map_err(lost)
    }

    /// The next message; none: the stream has ended well.
    pub async fn next<T: Message + Default>(&mut self) -> Result<Option<T>, Status> {
        self.message().await?.map(decoded).transpose()
    }

    /// The same, as it travels.
    pub async fn message(&mut self) -> Result<Option<&[u8]>, Status> {
        self.message.clear();
        loop {
            while !self.part.is_empty() {
                let mut rest = &self.part[..];
                let is_whole = self.cutter.cut(&mut rest, &mut self.message)?;
                let left = rest.len();
                self.part.advance(self.part.len() - left);
                if is_whole {
                    return Ok(Some(&self.message));
                }
            }
            match self.answer.part().await? {
                Some(part) => self.part = part,
                None if self.cutter.is_between() => return Ok(None),
                None => return Err(Status::internal("the last message is not whole")),
            }
        }
    }
}

/// An answer as it comes.
enum Answer {
    Awaited(ResponseFuture),
    Coming(RecvStream),
}

impl Answer {
    /// The next bytes of its messages; none once it has ended well.
    async fn part(&mut self) -> Result<Option<Bytes>, Status> {
        if let Answer::Awaited(response) = self {
            let response = response.await.map_err(lost)?;
            let (head, body) = response.into_parts();
            if head.status != StatusCode::OK {
                return Err(refused(head.status, &head.headers));
            }
            // Without a body, the head says how it ended.
            if body.is_end_stream() {
                return verdict(&head.headers).map(|()| None);
            }
            *self = Answer::Coming(body);
        }
        let Answer::Coming(body) = self else {
            return Ok(None);
        };
        match body.data().await {
            Some(part) => {
                let part = part.map_err(lost)?;
                body.flow_control().release_capacity(part.len()).map_err(lost)?;
                Ok(Some(part))
            }
            None => {
                let trailers = body.trailers().await.map_err(lost)?.unwrap_or_default();
                verdict(&trailers).map(|()| None)
            }
        }
    }
}

/// How the server says that it ended.
fn verdict(headers: &HeaderMap) -> Result<(), Status> {
    if headers.get(Status::GRPC_STATUS).is_some_and(|code| code == "0") {
        return Ok(());
    }
    let status = Status::from_header_map(headers);
    Err(status.unwrap_or_else(|| Status::unknown("the answer has no status")))
}

/// What an answer other than 200 means, which comes from something between: gRPC's `http-grpc-status-mapping.md`.
fn refused(status: StatusCode, headers: &HeaderMap) -> Status {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::from_header_map(headers).unwrap_or_else(|| Status::new(code, format!("HTTP status {status}")))
}

/// What HTTP/2 says instead of an answer. Only a stream that the server reset has a reason; else the connection is lost.
fn lost(error: h2::Error) -> Status {
    match error.is_reset() && error.is_remote() {
        true => Status::from_error(Box::new(error)),
        false => Status::unavailable(format!("the connection is lost: {error}")),
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(HEAD + length);
    framed.put_u8(0);
    // More than that no server takes.
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(&mut framed).expect("there is room for it");
    framed.freeze()
}

fn decoded<T: Message + Default>(message: &[u8]) -> Result<T, Status> {
    T::decode(message).map_err(|error| Status::internal(error.to_string()))
}

/// How long an answer may take: one alarm for all calls of a client, which is set anew only when it rings.
pub struct Patience {
    limit: Duration,
    alarm: Pin<Box<Sleep>>,
}

impl Patience {
    /// Of this much for each call.
    pub fn new(limit: Duration) -> Patience {
        Patience {
            limit,
            alarm: Box::pin(sleep(limit)),
        }
    }

    /// Waits, but not for ever.
    pub async fn with<T>(&mut self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let end = Instant::now() + self.limit;
        let mut answer = pin!(answer);
        poll_fn(|cx| {
            if let ready @ Poll::Ready(_) = answer.as_mut().poll(cx) {
                return ready;
            }
            while self.alarm.as_mut().poll(cx).is_ready() {
                if Instant::now() >= end {
                    return Poll::Ready(Err(Status::deadline_exceeded("no answer in time")));
                }
                self.alarm.as_mut().reset(end);
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use h2::Reason;
    use h2::server::SendResponse;
    use http::Response;
    use tokio::net::TcpListener;

    use super::*;
    use crate::pb::etcdserverpb::{LeaseGrantRequest, LeaseGrantResponse};

    const REQUEST: LeaseGrantRequest = LeaseGrantRequest { ttl: 60, id: 0 };
    const LEASE: i64 = 0x1234_5678_9abc;

    /// What a server does when it is called.
    enum Does {
        /// Sends a body in these parts, and headers behind it.
        Answers(Vec<Bytes>, &'static [(&'static str, &'static str)]),
        /// Sends only this.
        Says(u16, &'static [(&'static str, &'static str)]),
        Resets(Reason),
        HangsUp,
        Waits,
    }

    const WELL: &[(&str, &str)] = &[("grpc-status", "0")];

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        let header = |(name, value): &(&'static str, &'static str)| {
            (
                http::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        of.iter().map(header).collect()
    }

    impl Does {
        /// Whether the connection goes on.
        fn to(self, mut call: SendResponse<Bytes>, waiting: &mut Vec<SendResponse<Bytes>>) -> bool {
            let mut head = Response::new(());
            match self {
                Does::Answers(parts, end) => {
                    let mut body = call.send_response(head, false).expect("it is open");
                    for part in parts {
                        body.send_data(part, false).expect("it is open");
                    }
                    body.send_trailers(headers(end)).expect("it is open");
                }
                Does::Says(status, end) => {
                    *head.status_mut() = StatusCode::from_u16(status).expect("a status");
                    *head.headers_mut() = headers(end);
                    call.send_response(head, true).expect("it is open");
                }
                Does::Resets(reason) => call.send_reset(reason),
                Does::HangsUp => return false,
                Does::Waits => waiting.push(call),
            }
            true
        }
    }

    /// A line to a server that does this, call by call.
    async fn line(script: Vec<Does>) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        tokio::spawn(async move {
            let (mut script, mut waiting) = (script.into_iter(), Vec::new());
            while let Ok((stream, _)) = listener.accept().await {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((_, call))) = connection.accept().await {
                    let does = script.next().expect("no more calls than those");
                    if !does.to(call, &mut waiting) {
                        break;
                    }
                }
            }
        });
        let caller = Caller::open(Options::default(), &address, None, Handle::current()).await;
        caller.expect("it listens").line().await
    }

    fn answer() -> Bytes {
        framed(&LeaseGrantResponse {
            id: LEASE,
            ..LeaseGrantResponse::default()
        })
    }

    async fn granted(line: &mut Line) -> Result<i64, Status> {
        let granted = line.ask::<LeaseGrantResponse>(Method::Grant, &REQUEST);
        granted.await.map(|answer| answer.id)
    }

    #[tokio::test]
    async fn an_answer_comes_in_any_parts() {
        let mut script = vec![Does::Answers(vec![answer()], WELL)];
        for at in 0..=answer().len() {
            let parts = vec![answer().slice(..at), answer().slice(at..)];
            script.push(Does::Answers(parts, WELL));
        }
        let calls = script.len();
        let mut line = line(script).await;
        for _ in 0..calls {
            assert_eq!(granted(&mut line).await.expect("an answer"), LEASE);
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_tells_why() {
        let no_such = &[("grpc-status", "5"), ("grpc-message", "no%20such")];
        let cases = [
            (Does::Says(200, no_such), Code::NotFound),
            (Does::Answers(vec![], no_such), Code::NotFound),
            (Does::Answers(vec![answer()], no_such), Code::NotFound),
            (Does::Answers(vec![answer()], &[]), Code::Unknown),
            (Does::Answers(vec![], WELL), Code::Internal),
            (Does::Answers(vec![answer().slice(..8)], WELL), Code::Internal),
            (Does::Answers(vec![answer(), answer()], WELL), Code::Internal),
            (Does::Says(503, &[]), Code::Unavailable),
            (Does::Says(404, &[]), Code::Unimplemented),
            (Does::Resets(Reason::REFUSED_STREAM), Code::Unavailable),
            (Does::Resets(Reason::CANCEL), Code::Cancelled),
            (Does::HangsUp, Code::Unavailable),
        ];
        let (script, codes): (Vec<Does>, Vec<Code>) = cases.into_iter().unzip();
        let mut line = line(script).await;
        for (number, code) in codes.into_iter().enumerate() {
            let status = granted(&mut line).await.expect_err("no answer");
            assert_eq!(status.code(), code, "case {number}: {status:?}");
            assert!(code != Code::NotFound || status.message() == "no such");
        }
    }

    #[tokio::test]
    async fn a_connection_that_ended_is_made_anew() {
        let answers = || Does::Answers(vec![answer()], WELL);
        let mut line = line(vec![answers(), Does::HangsUp, answers()]).await;
        let mut other = line.caller.line().await;
        assert!(granted(&mut line).await.is_ok());
        assert!(granted(&mut line).await.is_err());
        assert!(granted(&mut other).await.is_ok());
    }

    #[tokio::test]
    async fn patience_ends_and_begins_again() {
        let mut line = line(vec![
            Does::Waits,
            Does::Answers(vec![answer()], WELL),
            Does::Waits,
        ])
        .await;
        let mut patience = Patience::new(Duration::from_millis(10));
        let over = patience.with(granted(&mut line)).await;
        assert_eq!(over.expect_err("no answer").code(), Code::DeadlineExceeded);
        assert!(granted(&mut line).await.is_ok());
        let over = patience.with(granted(&mut line)).await;
        assert_eq!(over.expect_err("no answer").code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_stream_brings_messages_until_it_ends() {
        let both = Bytes::from([answer(), answer()].concat());
        let parts = vec![both.slice(..3), both.slice(3..20), both.slice(20..)];
        let cut_off = vec![answer(), answer().slice(..3)];
        let mut line = line(vec![Does::Answers(parts, WELL), Does::Answers(cut_off, WELL)]).await;
        let mut stream = line.open(Method::KeepAlive, &REQUEST).await.expect("it is open");
        for _ in 0..2 {
            let message: Option<LeaseGrantResponse> = stream.next().await.expect("a message");
            assert_eq!(message.map(|message| message.id), Some(LEASE));
        }
        assert!(matches!(stream.next::<LeaseGrantResponse>().await, Ok(None)));
        let mut stream = line.open(Method::KeepAlive, &REQUEST).await.expect("it is open");
        assert!(stream.next::<LeaseGrantResponse>().await.is_ok());
        assert!(stream.next::<LeaseGrantResponse>().await.is_err());
    }
}
