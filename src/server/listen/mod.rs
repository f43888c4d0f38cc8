//! The client port: gRPC and HTTP on one listener.
//!
//! A connection says by its first bytes whether it speaks HTTP/2 or HTTP/1; what a request on it is, gRPC or not, is
//! for the service to see. Bounds: a connection that says nothing, an HTTP/1 head that does not end, and an idle
//! HTTP/1 connection are closed after [`PATIENCE`]; an HTTP/2 one when it does not answer pings. Heads are bounded by
//! [`HEAD_BYTES`]; bodies by whoever reads them. Connections are bounded by the process's file descriptors: when there
//! are none left, accepting waits.

mod authority;

use std::convert::Infallible;
use std::future::Future;
use std::io::ErrorKind;
use std::pin::pin;
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::either::Either;

use self::authority::Lenient;
use super::bind::Socket;
use crate::config::Connections;
use crate::tls::{CommonName, ServerStream, ServerTls};
use crate::wire::{Begun, Together, postponed};

/// How long a connection may take to say something, and an HTTP/1 client to send the whole head of its next request.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest head of an HTTP/1 request, in bytes.
const HEAD_BYTES: usize = 64 << 10;
/// Pause after a failed accept: most often file descriptors have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What answers requests.
pub trait Answers<B>:
    Service<
        http::Request<Incoming>,
        Response = http::Response<B>,
        Error = Infallible,
        Future: Future<Output = Result<http::Response<B>, Infallible>> + Send,
    > + Clone
    + Send
    + 'static
{
}

impl<S, B> Answers<B> for S
where
    S: Service<http::Request<Incoming>, Response = http::Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
}

/// Says in each request who is at the other end of the connection.
#[derive(Clone)]
struct Named<S> {
    inner: S,
    name: Option<CommonName>,
}

impl<S: Service<http::Request<Incoming>>> Service<http::Request<Incoming>> for Named<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: http::Request<Incoming>) -> Self::Future {
        if let Some(name) = &self.name {
            request.extensions_mut().insert(name.clone());
        }
        self.inner.call(request)
    }
}

/// Between members: any number of streams, and a silent one is found soon.
pub const BETWEEN_MEMBERS: Connections = Connections {
    max_streams: None,
    ping_interval: Duration::from_secs(10),
    ping_timeout: Duration::from_secs(20),
};

/// What serves; it ends when it is told to, and has drained.
pub(super) type Tasks = Vec<tokio::task::JoinHandle<()>>;

/// Serves on all sockets until `stopping`; each task then ends when its last request did.
pub fn serve<B>(
    sockets: Vec<Socket>,
    connections: Connections,
    service: impl Answers<B>,
    stopping: &watch::Receiver<bool>,
) -> Tasks
where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    sockets
        .into_iter()
        .map(|socket| {
            let accepting = accept(socket, connections, service.clone(), stopping.clone());
            tokio::spawn(accepting)
        })
        .collect()
}

fn builder(connections: Connections, begun: Begun) -> auto::Builder<Begun> {
    let mut builder = auto::Builder::new(begun);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(false)
        // gRPC has no use for it; what is plain HTTP says it itself (`http`).
        .auto_date_header(false)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .max_concurrent_streams(connections.max_streams)
        .keep_alive_interval(Some(connections.ping_interval))
        .keep_alive_timeout(connections.ping_timeout);
    builder
}

async fn accept<B>(
    Socket { listener, tls }: Socket,
    bounds: Connections,
    service: impl Answers<B>,
    mut stopping: watch::Receiver<bool>,
) where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let mut told = stopping.clone();
        tokio::select! {
            () = stopped(&mut stopping) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (service, tls) = (service.clone(), tls.clone());
                    connections.spawn(async move { converse(stream, tls.as_deref(), bounds, service, &mut told).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    // New clients are refused from here on; those that are served finish.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection, to its end.
async fn converse<B>(
    stream: TcpStream,
    tls: Option<&ServerTls>,
    bounds: Connections,
    service: impl Answers<B>,
    stopping: &mut watch::Receiver<bool>,
) where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    // Answers are small and awaited. Without it they are late, not wrong.
    let _ = stream.set_nodelay(true);
    let mut stop = pin!(stopped(stopping));
    tokio::select! {
        spoke = tokio::time::timeout(PATIENCE, stream.readable()) => if spoke.is_err() { return },
        () = &mut stop => return,
    }
    let opened = tokio::select! {
        opened = tokio::time::timeout(PATIENCE, open(stream, tls)) => opened,
        () = &mut stop => return,
    };
    let (stream, name) = match opened {
        Ok(Ok(opened)) => opened,
        // An authority vouches for whoever gets so far, so strangers can't fill the log.
        Ok(Err(error)) if error.kind() == ErrorKind::PermissionDenied => {
            return tracing::warn!(%error, "a connection was refused");
        }
        Ok(Err(error)) => return tracing::debug!(%error, "a connection was not opened"),
        Err(_) => return,
    };
    let service = Named { inner: service, name };
    let begun = Begun::default();
    let builder = builder(bounds, begun.clone());
    let (stream, turn) = postponed(stream);
    let connection = builder.serve_connection(TokioIo::new(Lenient::new(stream)), service);
    let mut together = Together::new(connection, begun, turn);
    let outcome = tokio::select! {
        outcome = &mut together => outcome,
        () = &mut stop => {
            together.connection().graceful_shutdown();
            together.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(error, "a connection ended early");
    }
}

/// The handshake, if there is one; and who showed a certificate.
async fn open(
    stream: TcpStream,
    tls: Option<&ServerTls>,
) -> std::io::Result<(ServerStream, Option<CommonName>)> {
    match tls {
        Some(tls) => tls.accept(stream).await,
        None => Ok((Either::Left(stream), None)),
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop too.
    let _ = stopping.wait_for(|stop| *stop).await;
}
