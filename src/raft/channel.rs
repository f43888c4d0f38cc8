//! A channel to a peer: one connection for one purpose, made at the first request and made anew when it has ended.
//!
//! tonic's own hands each request from task to task: to one that waits for a connection, to hyper's, to one for its
//! body and one for its answer. A round of the log makes some ten such requests and answers, and each hop is a wake. Here
//! a connection, the bodies that go out on it and the answers that come are one task ([`Together`]).
//!
//! Whoever asks while the connection is being made waits for that one attempt, and shares what comes of it. The attempt
//! goes on if nobody waits any more, so a peer that is slow to reach is reached by requests that have little patience.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{ConnectError, Status};
use tower::Service;

use crate::tls::{self, ClientTls};
use crate::wire::{Begun, Together, postponed};

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A silent connection is pinged this often, and given up after as long again.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How much a peer may send unasked on a stream, in bytes; on all of a connection, twice that.
const WINDOW: u32 = 8 << 20;

type Requests = http2::SendRequest<Body>;
/// A connection that is being made, or was.
type Attempt = Shared<BoxFuture<'static, Result<Requests, Arc<io::Error>>>>;

/// A channel to one URL, for one purpose. Cheap to clone.
#[derive(Clone)]
pub struct Channel(Arc<Inner>);

struct Inner {
    uri: Uri,
    tls: Option<Arc<ClientTls>>,
    newest: Mutex<Option<Attempt>>,
}

impl Channel {
    /// To `url`; `tls` is for `https://`. Nothing is connected yet.
    pub fn new(url: &str, tls: Option<Arc<ClientTls>>) -> Result<Channel, http::uri::InvalidUri> {
        Ok(Channel(Arc::new(Inner {
            uri: url.parse()?,
            tls,
            newest: Mutex::default(),
        })))
    }

    /// Where it leads: what requests on it must have as their scheme and authority.
    pub fn origin(&self) -> Uri {
        self.0.uri.clone()
    }

    /// The connection in use, or one that is made now.
    fn attempt(&self) -> Attempt {
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attempt) = newest.as_ref().filter(|attempt| is_of_use(attempt)) {
            return attempt.clone();
        }
        let attempt = connect(self.0.uri.clone(), self.0.tls.clone()).boxed().shared();
        tokio::spawn(attempt.clone());
        newest.insert(attempt).clone()
    }
}

/// Not known to have failed, or to have ended.
fn is_of_use(attempt: &Attempt) -> bool {
    match attempt.peek() {
        Some(Ok(requests)) => !requests.is_closed(),
        Some(Err(_)) => false,
        None => true,
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    /// Always: who comes too early waits in the call, within its own time.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let attempt = self.attempt();
        Box::pin(async move {
            let mut requests = attempt.await.map_err(unreached)?;
            let answer = requests.send_request(request).await;
            answer.map_err(|error| Status::from_error(Box::new(error)))
        })
    }
}

/// With a [`ConnectError`] for a source: the request certainly was not sent.
fn unreached(error: Arc<io::Error>) -> Status {
    Status::from_error(Box::new(ConnectError(Box::new(error))))
}

/// Connects, and drives the connection to its end.
async fn connect(uri: Uri, tls: Option<Arc<ClientTls>>) -> Result<Requests, Arc<io::Error>> {
    let made = timeout(CONNECT_TIMEOUT, dial(uri.clone(), tls)).await;
    let (requests, connection) = made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%uri, %error, "a channel ended");
        }
    });
    Ok(requests)
}

async fn dial(
    uri: Uri,
    tls: Option<Arc<ClientTls>>,
) -> io::Result<(Requests, impl Future<Output = hyper::Result<()>>)> {
    let stream = tls::dial(&uri, tls).await?;
    let begun = Begun::default();
    let (stream, turn) = postponed(stream);
    let (requests, connection) = http2::Builder::new(begun.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    Ok((requests, Together::new(connection, begun, turn)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::raft::network::is_connect_error;

    /// For what takes no time unless it never happens.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn channel_at(listener: &TcpListener) -> Channel {
        let address = listener.local_addr().expect("its address");
        Channel::new(&format!("http://{address}"), None).expect("a URL")
    }

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.expect("a port")
    }

    /// Answers so many requests on the next connection, then ends it.
    async fn answer(listener: &TcpListener, requests: usize) {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        for _ in 0..requests {
            let (_, mut respond) = connection
                .accept()
                .await
                .expect("a request")
                .expect("well formed");
            respond
                .send_response(Response::new(()), true)
                .expect("it is open");
        }
        connection.graceful_shutdown();
        while connection.accept().await.is_some() {}
    }

    async fn ask(mut channel: Channel) -> Result<(), Status> {
        let request = Request::builder().uri(channel.origin()).body(Body::empty());
        channel.call(request.expect("a request")).await.map(drop)
    }

    #[tokio::test]
    async fn a_connection_serves_all_and_is_made_anew_when_it_has_ended() {
        let listener = listener().await;
        let channel = channel_at(&listener);
        let served = tokio::spawn(async move {
            answer(&listener, 3).await;
            answer(&listener, 1).await;
        });
        let three = [ask(channel.clone()), ask(channel.clone()), ask(channel.clone())];
        assert!(futures::future::try_join_all(three).await.is_ok());
        // One that meets the end of the connection fails; it is not sent again.
        let again = async { while ask(channel.clone()).await.is_err() {} };
        timeout(PATIENCE, again).await.expect("it is made anew");
        drop(channel);
        served.await.expect("two connections, and no more");
    }

    #[tokio::test]
    async fn who_can_not_be_reached_was_sent_nothing() {
        let listener = listener().await;
        let channel = channel_at(&listener);
        let address = listener.local_addr().expect("its address");
        drop(listener);
        for _ in 0..2 {
            let status = ask(channel.clone()).await.expect_err("nobody listens");
            assert!(is_connect_error(&status), "{status:?}");
            assert_eq!(status.code(), tonic::Code::Unavailable);
        }
        let listener = TcpListener::bind(address).await.expect("the same port");
        let served = tokio::spawn(async move { answer(&listener, 1).await });
        assert!(ask(channel).await.is_ok(), "it is tried anew");
        served.await.expect("a connection");
    }

    #[tokio::test]
    async fn an_attempt_goes_on_when_nobody_waits() {
        let listener = listener().await;
        let channel = channel_at(&listener);
        assert!(ask(channel.clone()).now_or_never().is_none());
        let (tell, told) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            tell.send(h2::server::handshake(stream).await).ok();
        });
        assert!(told.await.expect("accepted").is_ok());
    }
}
