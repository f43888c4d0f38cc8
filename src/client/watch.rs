//! A watch that outlives its streams.
//!
//! The rule: `next` is the revision that the caller has not been given yet. Every event below it is dropped, every
//! stream is opened at it, and it moves only when something was handed over. So nothing comes twice and nothing is
//! missing, whichever endpoints the streams went to and wherever they broke:
//!
//! ```text
//! created at 7          next = 8      (start 0 means "after now", so now is fixed once and for all)
//! events 8, 9           next = 10
//! stream lost           the next endpoint is asked for everything from 10 on
//! events 10             next = 11
//! ```
//!
//! A response that was cut into fragments is put together before it is handed over: half of a revision can't be named
//! in `start_revision`. A periodic progress notification moves `next` too, so that an idle watch does not ask for what
//! has been compacted meanwhile. The answer to a progress *request* does not: old servers send it too early.
//!
//! Once created, a watch goes on for as long as some endpoint may come back; what ends it is the server's own refusal:
//! compacted, not permitted, not served.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status, Streaming};

use super::{Client, ClientError, lock};
use crate::pb::etcdserverpb::watch_client::WatchClient;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use crate::pb::mvccpb::Event;

/// Waits between two rounds over all the endpoints.
const BACKOFF: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
];
/// Requests that wait to be sent on one stream: one create, and progress requests. More are dropped, as one answer
/// tells what several would.
const REQUESTS: usize = 4;

/// Why a watch has ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// What it wanted to see is forgotten; the response says what is the oldest revision there is.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted(Box<WatchResponse>),
    /// The server's refusal.
    #[error("{}", .0.cancel_reason)]
    Canceled(Box<WatchResponse>),
    /// It could not be made, or not be made again.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A watch.
pub struct Watcher<'a> {
    client: &'a Client,
    request: WatchCreateRequest,
    /// The first revision that the caller has not been given; 0 before the watch is created.
    next: i64,
    stream: Option<Open>,
    /// Parts of a response that is not complete yet.
    fragments: Option<WatchResponse>,
    /// Rounds that failed since the last response.
    failures: usize,
}

/// One stream, good until it breaks.
struct Open {
    at: usize,
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Client {
    /// Watches as the request says; ready once the server has confirmed it.
    pub async fn watch(&self, request: WatchCreateRequest) -> Result<Watcher<'_>, WatchError> {
        let mut watcher = Watcher {
            client: self,
            next: request.start_revision.max(0),
            request,
            stream: None,
            fragments: None,
            failures: 0,
        };
        let mut left = self.endpoints.len();
        loop {
            match watcher.open().await {
                Ok(()) => return Ok(watcher),
                Err(WatchError::Client(error)) if left > 1 && may_recover(&error) => left -= 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn watch_stream(&self, create: WatchCreateRequest) -> Result<Open, ClientError> {
        let (at, channel) = self.connect().await?;
        let (requests, receiver) = mpsc::channel(REQUESTS);
        // Before the call, as a server may answer the call itself only with the first response.
        let _ = requests.try_send(union(RequestUnion::CreateRequest(create)));
        let mut message = self.request(&channel, ReceiverStream::new(receiver)).await?;
        // A member that lost its leader ends the stream, instead of keeping us on it, blind.
        let require_leader = MetadataValue::from_static("true");
        message.metadata_mut().insert("hasleader", require_leader);
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        let opening = tokio::time::timeout(self.options.timeout, client.watch(message));
        match opening.await.unwrap_or_else(unanswered) {
            Ok(responses) => Ok(Open {
                at,
                requests,
                responses: responses.into_inner(),
            }),
            Err(status) => {
                self.leave(at);
                self.forget_stale_token(&status);
                Err(status.into())
            }
        }
    }

    fn forget_stale_token(&self, status: &Status) {
        if self.token_is_stale(status) {
            *lock(&self.token) = None;
        }
    }
}

impl Watcher<'_> {
    /// What came next: events, always; or an empty response, if progress was asked for. May be dropped while it waits.
    pub async fn next(&mut self) -> Result<WatchResponse, WatchError> {
        loop {
            if self.stream.is_none() {
                self.reopen().await?;
            }
            let Some(stream) = &mut self.stream else { continue };
            match stream.responses.message().await {
                Ok(Some(response)) => {
                    if let Some(response) = self.take(response)? {
                        return Ok(response);
                    }
                }
                Ok(None) => self.lose(&Status::unavailable("the stream has ended")),
                Err(status) if may_recover_from(status.code()) => self.lose(&status),
                Err(status) => return Err(ClientError::Server(status).into()),
            }
        }
    }

    /// The first revision that has not been handed over yet.
    pub fn next_revision(&self) -> i64 {
        self.next
    }

    /// Asks how far the server is; [`Self::next`] gives the answer.
    pub fn request_progress(&self) {
        if let Some(stream) = &self.stream {
            let request = union(RequestUnion::ProgressRequest(WatchProgressRequest {}));
            let _ = stream.requests.try_send(request);
        }
    }

    /// Opens a stream and waits for the confirmation.
    async fn open(&mut self) -> Result<(), WatchError> {
        let create = WatchCreateRequest {
            start_revision: self.next,
            fragment: true,
            ..self.request.clone()
        };
        let mut stream = self.client.watch_stream(create).await?;
        let answer = tokio::time::timeout(self.client.options.timeout, stream.responses.message());
        let answer = answer.await.unwrap_or_else(unanswered);
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                self.client.leave(stream.at);
                return Err(ClientError::Server(Status::unavailable("the stream has ended")).into());
            }
            Err(status) => {
                self.client.leave(stream.at);
                self.client.forget_stale_token(&status);
                return Err(ClientError::Server(status).into());
            }
        };
        ended(&answer)?;
        if self.next == 0 {
            self.next = answer.header.as_ref().map_or(0, |header| header.revision) + 1;
        }
        self.stream = Some(stream);
        Ok(())
    }

    /// Tries all endpoints, again and again, until one serves or one refuses.
    async fn reopen(&mut self) -> Result<(), WatchError> {
        loop {
            if self.failures > 0 {
                let round = self.failures / self.client.endpoints.len();
                tokio::time::sleep(BACKOFF[round.min(BACKOFF.len() - 1)]).await;
            }
            match self.open().await {
                Ok(()) => return Ok(()),
                Err(WatchError::Client(error)) if may_recover(&error) => self.failures += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn lose(&mut self, status: &Status) {
        if let Some(stream) = self.stream.take() {
            let endpoint = &self.client.endpoints[stream.at];
            tracing::debug!(endpoint, error = status.message(), next = self.next, "watch lost");
            self.client.leave(stream.at);
            self.client.forget_stale_token(status);
        }
        self.fragments = None;
        self.failures += 1;
    }

    /// What of a response is the caller's.
    fn take(&mut self, response: WatchResponse) -> Result<Option<WatchResponse>, WatchError> {
        self.failures = 0;
        ended(&response)?;
        let mut whole = match self.fragments.take() {
            Some(mut first) => {
                first.events.extend(response.events);
                first.header = response.header;
                first.fragment = response.fragment;
                first
            }
            None => response,
        };
        if whole.fragment {
            self.fragments = Some(whole);
            return Ok(None);
        }
        if whole.events.is_empty() {
            let revision = whole.header.as_ref().map_or(0, |header| header.revision);
            if whole.watch_id >= 0 && !whole.created {
                self.next = self.next.max(revision + 1);
            }
            return Ok((!whole.created).then_some(whole));
        }
        let next = self.next;
        let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        whole.events.retain(|event| revision(event) >= next);
        let Some(last) = whole.events.last() else {
            return Ok(None);
        };
        self.next = revision(last) + 1;
        Ok(Some(whole))
    }
}

/// A server that says nothing is one that can't serve.
fn unanswered<T>(_: tokio::time::error::Elapsed) -> Result<T, Status> {
    Err(Status::unavailable("the watch was not answered in time"))
}

fn union(request: RequestUnion) -> WatchRequest {
    WatchRequest {
        request_union: Some(request),
    }
}

/// Whether a response says that the watch is over.
fn ended(response: &WatchResponse) -> Result<(), WatchError> {
    match response {
        WatchResponse {
            compact_revision: 1..,
            ..
        } => Err(WatchError::Compacted(Box::new(response.clone()))),
        WatchResponse { canceled: true, .. } => Err(WatchError::Canceled(Box::new(response.clone()))),
        _ => Ok(()),
    }
}

/// Whether it may go better on another endpoint, or later.
fn may_recover(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Server(status) => may_recover_from(status.code()),
        ClientError::Address(_) | ClientError::Login(_) => false,
    }
}

/// What is the server's own refusal would be refused again.
fn may_recover_from(code: Code) -> bool {
    !matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unimplemented
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Options;
    use crate::pb::etcdserverpb::ResponseHeader;
    use crate::pb::mvccpb::KeyValue;

    /// A response with events at these revisions.
    fn response(revision: i64, events: &[i64]) -> WatchResponse {
        let event = |revision: &i64| Event {
            kv: Some(KeyValue {
                mod_revision: *revision,
                ..KeyValue::default()
            }),
            ..Event::default()
        };
        WatchResponse {
            header: Some(ResponseHeader {
                revision,
                ..ResponseHeader::default()
            }),
            events: events.iter().map(event).collect(),
            ..WatchResponse::default()
        }
    }

    fn revisions(response: &WatchResponse) -> Vec<i64> {
        let kvs = response.events.iter().filter_map(|event| event.kv.as_ref());
        kvs.map(|kv| kv.mod_revision).collect()
    }

    fn with_watcher(next: i64, test: impl FnOnce(&mut Watcher)) {
        let Ok(client) = Client::with(&["a:1".to_string()], Options::default()) else {
            panic!("this is an address")
        };
        test(&mut Watcher {
            client: &client,
            request: WatchCreateRequest::default(),
            next,
            stream: None,
            fragments: None,
            failures: 0,
        });
    }

    #[test]
    fn what_was_given_is_not_given_again() {
        with_watcher(8, |watcher| {
            let first = watcher.take(response(9, &[8, 9, 9])).ok().flatten();
            assert_eq!(first.as_ref().map(revisions), Some(vec![8, 9, 9]));
            // The next endpoint begins too early.
            let second = watcher.take(response(11, &[9, 9, 10, 11])).ok().flatten();
            assert_eq!(second.as_ref().map(revisions), Some(vec![10, 11]));
            assert!(watcher.take(response(11, &[10, 11])).ok().flatten().is_none());
            assert_eq!(watcher.next_revision(), 12);
        });
    }

    #[test]
    fn fragments_are_put_together_and_half_of_them_is_nothing() {
        with_watcher(5, |watcher| {
            let part = |events: &[i64]| WatchResponse {
                fragment: true,
                ..response(6, events)
            };
            assert!(watcher.take(part(&[5, 6])).ok().flatten().is_none());
            // The stream breaks: both come again, from another endpoint.
            watcher.lose(&Status::unavailable(""));
            assert_eq!(watcher.next_revision(), 5);
            assert!(watcher.take(part(&[5])).ok().flatten().is_none());
            assert!(watcher.take(part(&[6])).ok().flatten().is_none());
            let whole = watcher.take(response(6, &[6])).ok().flatten();
            assert_eq!(whole.as_ref().map(revisions), Some(vec![5, 6, 6]));
            assert!(whole.is_some_and(|whole| !whole.fragment));
        });
    }

    #[test]
    fn a_notification_moves_the_watch_and_an_answer_does_not() {
        with_watcher(5, |watcher| {
            let answer = WatchResponse {
                watch_id: -1,
                ..response(20, &[])
            };
            assert!(watcher.take(answer).ok().flatten().is_some());
            assert_eq!(watcher.next_revision(), 5);
            assert!(watcher.take(response(20, &[])).ok().flatten().is_some());
            assert_eq!(watcher.next_revision(), 21);
        });
    }

    #[test]
    fn compaction_and_refusal_end_it() {
        with_watcher(5, |watcher| {
            let compacted = WatchResponse {
                canceled: true,
                compact_revision: 7,
                ..WatchResponse::default()
            };
            assert!(matches!(watcher.take(compacted), Err(WatchError::Compacted(_))));
            let refused = WatchResponse {
                canceled: true,
                ..WatchResponse::default()
            };
            assert!(matches!(watcher.take(refused), Err(WatchError::Canceled(_))));
        });
    }
}
