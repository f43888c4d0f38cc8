//! A client of any etcd v3 endpoint: for the command line, for tests, and for whatever else must drive a cluster.
//!
//! It goes to one endpoint at a time and stays there until that one can't serve; then it goes on to the next.
//!
//! # What may be sent again
//!
//! If no connection could be made, nothing was sent: every call may go to another endpoint. Once something was sent and
//! the answer is UNAVAILABLE, it may have happened or not. Then a call goes to the next endpoint only if doing it twice
//! leaves what doing it once leaves:
//!
//! * reads: they change nothing;
//! * a keep-alive: the lease has its full time either way;
//! * a grant whose id the server picks: one that was lost lives unused for its TTL and no longer;
//! * lock and campaign: a second request with the same lease finds its own key and its place in the queue;
//! * authenticate: a second token does not hurt the first.
//!
//! Everything else answers the error, and its fate is unknown: a put that is sent again could undo another's write in
//! between. Calls that are about one member (status, defragment, hash, move leader) are for a client with one endpoint.
//!
//! Streams resume: see [`watch`] and [`session`].

mod auth;
mod calls;
mod look;
pub mod session;
pub mod watch;

use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::tls::{self, ClientStream, ClientTls};
use crate::wire::Gathered;

pub use look::{Messages, Pages};
pub use session::Session;
pub use watch::{WatchError, Watcher};

/// Pings more often than this make an etcd server hang up.
const SHORTEST_KEEPALIVE: Duration = Duration::from_secs(10);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made: nothing was sent.
    #[error("cannot reach {endpoint} ({cause}): is a member running there? Start one with: pontoon cluster")]
    Unreachable {
        /// The endpoint tried last.
        endpoint: String,
        /// Why not.
        cause: String,
    },
    /// The server's answer.
    #[error("{}", .0.message())]
    Server(#[from] Status),
    /// Not an address.
    #[error("--endpoints: {0:?} is not an address such as 127.0.0.1:2379 or http://host:2379")]
    Address(String),
    /// The server says so itself: name and password do not fit.
    #[error("{}", .0.message())]
    Login(Status),
}

impl ClientError {
    /// The gRPC code, if a server answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            ClientError::Server(status) | ClientError::Login(status) => Some(status.code()),
            _ => None,
        }
    }
}

/// How to reach and to wait.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a connection may take.
    pub dial_timeout: Duration,
    /// How long a call may take.
    pub timeout: Duration,
    /// How long a connection may be silent before it is probed; at least ten seconds.
    pub keepalive_time: Duration,
    /// How long the answer to a probe may take.
    pub keepalive_timeout: Duration,
    /// Name and password.
    pub login: Option<(String, String)>,
    /// Certificates for `https://` endpoints, which an address without a scheme is too, then.
    pub tls: Option<Arc<ClientTls>>,
}

impl Options {
    /// The URL of an endpoint that may have been given as an address only.
    pub fn url(&self, endpoint: &str) -> String {
        match (endpoint.contains("://"), &self.tls) {
            (true, _) => endpoint.to_string(),
            (false, Some(_)) => format!("https://{endpoint}"),
            (false, None) => format!("http://{endpoint}"),
        }
    }

    /// A bare connection to an endpoint. Calls on it may take `limit`, if there is one: this side alone ends them then.
    pub async fn connect(&self, address: &str, limit: Option<Duration>) -> Result<Channel, ClientError> {
        let mut endpoint = Endpoint::from_shared(self.url(address))
            .map_err(|_| ClientError::Address(address.to_string()))?
            .connect_timeout(self.dial_timeout)
            .http2_keep_alive_interval(self.probe_interval())
            .keep_alive_timeout(self.keepalive_timeout);
        if let Some(limit) = limit {
            endpoint = endpoint.timeout(limit);
        }
        self.in_time(address, tls::connected(&endpoint, self.tls.clone()))
            .await
    }

    /// The same without HTTP/2, for who speaks that with it.
    pub async fn dial(&self, address: &str) -> Result<Gathered<ClientStream>, ClientError> {
        let uri = Uri::try_from(self.url(address)).map_err(|_| ClientError::Address(address.to_string()))?;
        let stream = self.in_time(address, tls::dial(&uri, self.tls.clone())).await?;
        Ok(Gathered::new(stream))
    }

    /// How long a connection is silent before it is probed.
    pub fn probe_interval(&self) -> Duration {
        self.keepalive_time.max(SHORTEST_KEEPALIVE)
    }

    /// Also where resolving the name takes its time, or a listener accepts and says nothing.
    async fn in_time<T, E: std::error::Error>(
        &self,
        address: &str,
        connected: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ClientError> {
        let unreachable = |cause: String| unreachable(address, cause);
        match tokio::time::timeout(self.dial_timeout, connected).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(error)) => Err(unreachable(deepest(&error))),
            Err(_) => Err(unreachable(format!(
                "no connection within {:?}",
                self.dial_timeout
            ))),
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            dial_timeout: Duration::from_millis(800),
            timeout: Duration::from_secs(10),
            keepalive_time: SHORTEST_KEEPALIVE,
            keepalive_timeout: Duration::from_secs(6),
            login: None,
            tls: None,
        }
    }
}

/// Whether a call whose fate is unknown may go to another endpoint; the module's head says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Twice is once.
    Harmless,
    /// It could happen twice.
    Never,
}

/// The client.
pub struct Client {
    endpoints: Vec<String>,
    options: Options,
    connected: Mutex<Connected>,
    /// What the server gave for name and password.
    token: Mutex<Option<String>>,
}

/// The connection in use.
#[derive(Default)]
struct Connected {
    /// The endpoint in use, or the one to begin with.
    at: usize,
    channel: Option<Channel>,
}

impl Client {
    /// For these endpoints, URLs or `host:port`. A connection may take `dial_timeout`, a call `timeout`.
    pub fn new(
        endpoints: &[String],
        dial_timeout: Duration,
        timeout: Duration,
    ) -> Result<Client, ClientError> {
        let options = Options {
            dial_timeout,
            timeout,
            ..Options::default()
        };
        Client::with(endpoints, options)
    }

    /// The same, with all options.
    pub fn with(endpoints: &[String], options: Options) -> Result<Client, ClientError> {
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|endpoint| endpoint.trim().to_string())
            .collect();
        for endpoint in &endpoints {
            let parsed = Endpoint::from_shared(options.url(endpoint));
            let is_address =
                parsed.is_ok_and(|parsed| matches!(parsed.uri().scheme_str(), Some("http" | "https")));
            if !is_address {
                return Err(ClientError::Address(endpoint.clone()));
            }
        }
        if endpoints.is_empty() {
            return Err(ClientError::Address(String::new()));
        }
        Ok(Client {
            endpoints,
            options,
            connected: Mutex::default(),
            token: Mutex::default(),
        })
    }

    /// One with the same options and a single endpoint.
    pub fn of(&self, endpoint: &str) -> Result<Client, ClientError> {
        let client = Client::with(&[endpoint.to_string()], self.options.clone())?;
        // A token is good on every member.
        *lock(&client.token) = lock(&self.token).clone();
        Ok(client)
    }

    /// The endpoints, as they were given.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Makes a unary call, elsewhere too where that is right.
    async fn call<T, U, F>(
        &self,
        again: Again,
        request: T,
        call: impl Fn(Channel, Request<T>) -> F,
    ) -> Result<U, ClientError>
    where
        T: Clone,
        F: Future<Output = Result<tonic::Response<U>, Status>>,
    {
        self.call_within(Some(self.options.timeout), again, request, call)
            .await
    }

    /// One that waits for another client, which may take any time.
    async fn call_patiently<T, U, F>(
        &self,
        request: T,
        call: impl Fn(Channel, Request<T>) -> F,
    ) -> Result<U, ClientError>
    where
        T: Clone,
        F: Future<Output = Result<tonic::Response<U>, Status>>,
    {
        self.call_within(None, Again::Harmless, request, call).await
    }

    async fn call_within<T, U, F>(
        &self,
        limit: Option<Duration>,
        again: Again,
        request: T,
        call: impl Fn(Channel, Request<T>) -> F,
    ) -> Result<U, ClientError>
    where
        T: Clone,
        F: Future<Output = Result<tonic::Response<U>, Status>>,
    {
        let mut last = None;
        let mut renewed = false;
        let mut left = self.endpoints.len();
        while left > 0 {
            let (at, channel) = self.connect().await?;
            let mut message = self.request(&channel, request.clone()).await?;
            if let Some(limit) = limit {
                message.set_timeout(limit);
            }
            let started = Instant::now();
            let answer = call(channel, message).await;
            self.trace::<T>(at, started, answer.as_ref().err());
            match answer {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if self.token_is_stale(&status) && !renewed => {
                    renewed = true;
                    *lock(&self.token) = None;
                }
                Err(status) if not_sent(&status) => {
                    self.leave(at);
                    left -= 1;
                    last = Some(unreachable(&self.endpoints[at], deepest(&status)));
                }
                Err(status) if again == Again::Harmless && status.code() == Code::Unavailable => {
                    self.leave(at);
                    left -= 1;
                    last = Some(status.into());
                }
                Err(status) => {
                    // The call is lost; the next one need not be.
                    if status.code() == Code::Unavailable {
                        self.leave(at);
                    }
                    return Err(status.into());
                }
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Address(String::new())))
    }

    /// `--debug`: what was asked of whom.
    fn trace<T>(&self, at: usize, started: Instant, error: Option<&Status>) {
        let name = std::any::type_name::<T>();
        tracing::debug!(
            endpoint = self.endpoints[at],
            request = name.rsplit("::").next().unwrap_or(name),
            took = ?started.elapsed(),
            error = error.map(|status| format!("{:?}: {}", status.code(), status.message())),
            "called"
        );
    }

    /// A message with what goes along with all of them: the token, if there is a login.
    async fn request<T>(&self, channel: &Channel, message: T) -> Result<Request<T>, ClientError> {
        let mut request = Request::new(message);
        if let Some(token) = self.token(channel).await? {
            let value = MetadataValue::try_from(token)
                .map_err(|_| Status::internal("the server's token is not printable"))?;
            request.metadata_mut().insert("token", value);
        }
        Ok(request)
    }

    /// The connection in use, or one to the first endpoint that takes one.
    async fn connect(&self) -> Result<(usize, Channel), ClientError> {
        let start = {
            let connected = lock(&self.connected);
            if let Some(channel) = &connected.channel {
                return Ok((connected.at, channel.clone()));
            }
            connected.at
        };
        let mut last = ClientError::Address(String::new());
        for step in 0..self.endpoints.len() {
            let at = (start + step) % self.endpoints.len();
            match self.dial(&self.endpoints[at]).await {
                Ok(channel) => {
                    let mut connected = lock(&self.connected);
                    *connected = Connected {
                        at,
                        channel: Some(channel.clone()),
                    };
                    return Ok((at, channel));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The endpoint can't serve now: the next call begins with the one after it.
    fn leave(&self, at: usize) {
        let mut connected = lock(&self.connected);
        if connected.at == at {
            *connected = Connected {
                at: (at + 1) % self.endpoints.len(),
                channel: None,
            };
        }
    }

    async fn dial(&self, address: &str) -> Result<Channel, ClientError> {
        self.options.connect(address, None).await
    }
}

fn unreachable(endpoint: &str, cause: String) -> ClientError {
    let endpoint = endpoint.to_string();
    ClientError::Unreachable { endpoint, cause }
}

/// Whether a connection that was good before could not be made again: then nothing of this call was sent.
fn not_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoints: &[&str]) -> Result<Client, ClientError> {
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        Client::with(&endpoints, Options::default())
    }

    #[test]
    fn endpoints_are_addresses() {
        let Ok(client) = client(&["127.0.0.1:1", " http://b:2"]) else {
            panic!("these are addresses")
        };
        assert_eq!(client.endpoints(), ["127.0.0.1:1", "http://b:2"]);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for wrong in ["foo://bar", "", "a b"] {
            assert!(
                matches!(client(&[wrong]), Err(ClientError::Address(_))),
                "{wrong}"
            );
        }
        assert!(matches!(client(&[]), Err(ClientError::Address(_))));
    }

    #[test]
    fn the_next_endpoint_comes_after_the_one_that_failed() {
        let Ok(client) = client(&["a:1", "b:2", "c:3"]) else {
            panic!("these are addresses")
        };
        client.leave(0);
        client.leave(0);
        assert_eq!(lock(&client.connected).at, 1);
        client.leave(1);
        client.leave(2);
        assert_eq!(lock(&client.connected).at, 0);
    }
}
