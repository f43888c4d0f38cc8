//! A client's end of a watch stream.

use std::collections::VecDeque;
use std::time::Duration;

use pontoon::pb::etcdserverpb::watch_client::WatchClient;
use pontoon::pb::etcdserverpb::watch_request::RequestUnion;
use pontoon::pb::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use pontoon::pb::mvccpb::Event;
use pontoon::pb::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::cluster::PATIENCE;
use super::rpc::channel;

/// Larger than any answer a test asks for.
const MAX_ANSWER: usize = 1 << 30;

/// A stream of watches. Dropping it breaks it off.
pub struct WatchStream {
    requests: Option<mpsc::Sender<WatchRequest>>,
    responses: Streaming<WatchResponse>,
    /// Came while something else was waited for.
    early: VecDeque<WatchResponse>,
}

impl WatchStream {
    /// Opens a stream at an endpoint.
    pub async fn open(endpoint: &str) -> Result<WatchStream, Status> {
        WatchStream::open_with(endpoint, &[]).await
    }

    /// The same, with metadata.
    pub async fn open_with(endpoint: &str, metadata: &[(&'static str, &str)]) -> Result<WatchStream, Status> {
        WatchStream::begin(endpoint, metadata, None).await
    }

    /// The same with a first watcher, whose answer is the first response: etcd says nothing before it was asked.
    pub async fn open_and_create(endpoint: &str, first: WatchCreateRequest) -> Result<WatchStream, Status> {
        WatchStream::begin(endpoint, &[], Some(first)).await
    }

    async fn begin(
        endpoint: &str,
        metadata: &[(&'static str, &str)],
        first: Option<WatchCreateRequest>,
    ) -> Result<WatchStream, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        if let Some(first) = first {
            let request = WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(first)),
            };
            requests.send(request).await.expect("there is room");
        }
        let mut request = Request::new(ReceiverStream::new(outgoing));
        for (name, value) in metadata {
            request
                .metadata_mut()
                .insert(*name, value.parse().expect("ASCII"));
        }
        let mut client = WatchClient::new(channel(endpoint)).max_decoding_message_size(MAX_ANSWER);
        let responses = client.watch(request).await?.into_inner();
        Ok(WatchStream {
            requests: Some(requests),
            responses,
            early: VecDeque::new(),
        })
    }

    /// Sends a request, whatever comes of it.
    pub async fn send(&self, request: RequestUnion) {
        self.try_send(request).await.expect("the stream is open");
    }

    /// Adds a watcher and waits for the answer; what else comes meanwhile is kept for [`WatchStream::next`].
    pub async fn create(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.send(RequestUnion::CreateRequest(request)).await;
        loop {
            let response = self.receive().await.expect("an answer");
            if response.created {
                return response;
            }
            self.early.push_back(response);
        }
    }

    /// Asks for a watcher, without waiting for the answer; fails if the stream is over.
    pub async fn try_create(&self, request: WatchCreateRequest) -> Result<(), Status> {
        self.try_send(RequestUnion::CreateRequest(request)).await
    }

    /// Asks how far things are; fails if the stream is over.
    pub async fn try_ask_progress(&self) -> Result<(), Status> {
        self.try_send(RequestUnion::ProgressRequest(WatchProgressRequest {}))
            .await
    }

    async fn try_send(&self, request: RequestUnion) -> Result<(), Status> {
        let requests = self.requests.as_ref().expect("not closed on this side");
        let request = WatchRequest {
            request_union: Some(request),
        };
        let sent = requests.send(request).await;
        sent.map_err(|_| Status::unavailable("the stream is over"))
    }

    /// Asks for the end of a watcher.
    pub async fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))
            .await;
    }

    /// Asks how far things are.
    pub async fn ask_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}))
            .await;
    }

    /// Nothing more to ask: half of the stream is closed.
    pub fn close_requests(&mut self) {
        self.requests = None;
    }

    async fn receive(&mut self) -> Result<WatchResponse, Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        let next = next.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for a watch response"));
        next?.ok_or_else(|| Status::ok("the stream's end"))
    }

    /// The next response, or how the stream ended.
    pub async fn next(&mut self) -> Result<WatchResponse, Status> {
        match self.early.pop_front() {
            Some(response) => Ok(response),
            None => self.receive().await,
        }
    }

    /// The next response, if one comes within `limit`.
    pub async fn next_within(&mut self, limit: Duration) -> Option<WatchResponse> {
        let next = tokio::time::timeout(limit, self.next()).await.ok()?;
        Some(next.expect("the stream goes on"))
    }

    /// Events until there are `count` of them, whatever the messages.
    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            let response = self.next().await.expect("the stream goes on");
            assert!(!response.canceled, "{response:?}");
            events.extend(response.events);
        }
        events
    }

    /// The same, as text: see [`short`].
    pub async fn told(&mut self, count: usize) -> Vec<String> {
        self.events(count).await.iter().map(short).collect()
    }
}

/// A watch of a range, from a revision on; 0: from now.
pub fn watch(key: &str, range_end: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.as_bytes().to_vec().into(),
        range_end: range_end.as_bytes().to_vec().into(),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

/// A watch of all keys.
pub fn watch_all(start_revision: i64) -> WatchCreateRequest {
    watch("\0", "\0", start_revision)
}

/// The revision of an event.
pub fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// `+key=value @revision`, `-key @revision`, with `<value` of the pair before, if that was told.
pub fn short(event: &Event) -> String {
    let kv = event.kv.clone().unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let before = event
        .prev_kv
        .as_ref()
        .map_or(String::new(), |kv| format!("<{}", text(&kv.value)));
    let what = match event.r#type() {
        EventType::Put => format!("+{}={}", text(&kv.key), text(&kv.value)),
        EventType::Delete => format!("-{}", text(&kv.key)),
    };
    format!("{what}{before} @{}", kv.mod_revision)
}
