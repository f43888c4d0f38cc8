//! The outgoing half of Raft: a client per peer and purpose.
//!
//! Replication runs over one long-lived stream per follower with many requests under way; heartbeats, votes and
//! read confirmations have a connection of their own so that they never queue behind entries, and snapshots a third.
//! Connections are made lazily and kept; a name is resolved anew on each connect, so a peer that comes back at
//! another address is found. One that comes back at another URL is found by the newest word of it ([`Peers::moved`]):
//! every call looks it up anew. If a peer has several URLs, one that can't be reached is left for the next.
//!
//! openraft bounds the time of unary calls; a stream has no lifetime, so [`give_up_when_idle`] ends one whose peer
//! fell silent with requests under way. HTTP/2 pings find dead connections without requests.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::HeaderValue;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::ballots::Ballots;
use super::channel::Channel;
use super::contact::{Contact, Contacts};
use super::entry::{from_wire_log_id, from_wire_vote, to_wire_log_id, to_wire_vote};
use super::identity::Identity;
use super::links::{Links, cause};
use super::snapshot::SnapshotFile;
use super::telling::{self, together};
use super::traffic::{self, Other, Outgoing};
use super::{Node, Snapshot, Timing, Types, Vote};
use crate::journal::{Event, Id};
use crate::metrics::Metrics;
use crate::pb::pontoon::peer;
use crate::pb::pontoon::peer::peer_client::PeerClient;
use crate::tls::ClientTls;

/// The largest message between members: a slice of the log (1 MiB) or one entry of the largest request, and room.
pub const MAX_MESSAGE: usize = 64 << 20;

/// What a connection is used for: each purpose has its own, so that none waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Log entries.
    Replication,
    /// Heartbeats, votes, leadership transfer, read confirmations.
    Control,
    /// Snapshot files.
    Snapshot,
    /// Clients' requests, handed to the leader.
    Forward,
}

/// Pauses after a snapshot that did not arrive: all of it is sent again.
const SNAPSHOT_PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(3)];

/// Connections to the other members, made on first use.
pub struct Peers {
    identity: Arc<Identity>,
    /// What this member calls itself in requests.
    name: HeaderValue,
    metrics: Arc<Metrics>,
    contacts: Contacts,
    links: Links,
    ballots: Ballots,
    timing: Timing,
    tls: Option<Arc<ClientTls>>,
    /// URLs that are dialled elsewhere.
    detours: BTreeMap<String, String>,
    channels: Mutex<BTreeMap<(String, Purpose), Channel>>,
    /// Where members are by the newest word of them, which wins over where they were added.
    addresses: RwLock<BTreeMap<u64, Address>>,
}

/// Where one member is reached: one of its URLs is in use.
struct Address {
    urls: Vec<String>,
    in_use: usize,
}

impl Peers {
    /// No connections yet. `tls`: for peers at `https://`.
    pub fn new(
        identity: Arc<Identity>,
        timing: Timing,
        tls: Option<Arc<ClientTls>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Peers {
            name: traffic::name(identity.member_id()),
            identity,
            metrics,
            contacts: Contacts::default(),
            links: Links::default(),
            ballots: Ballots::default(),
            timing,
            tls,
            detours: BTreeMap::new(),
            channels: Mutex::default(),
            addresses: RwLock::default(),
        }
    }

    /// These URLs are dialled elsewhere.
    pub fn with_detours(mut self, detours: BTreeMap<String, String>) -> Self {
        self.detours = detours;
        self
    }

    /// These are the other members now: what is counted and known of any others is forgotten.
    pub fn keep(&self, ids: &BTreeSet<u64>) {
        self.metrics.traffic.keep(ids);
        self.contacts.keep(ids);
        self.links.keep(ids);
    }

    /// A question to the member `id` was answered, or was not.
    pub fn asked(&self, id: u64, answer: Result<(), &Status>) {
        let patience = self.timing.election / 2;
        self.links.asked(&self.metrics.journal, id, patience, answer);
    }

    /// Whether the member `id` answers, if that is known.
    pub fn is_up(&self, id: u64) -> Option<bool> {
        self.links.is_up(id)
    }

    /// The member that asks for a vote was answered.
    pub fn voted(&self, request: &VoteRequest<Types>, pre_vote: bool, response: &VoteResponse<Types>) {
        self.ballots
            .asked(&self.metrics.journal, request, pre_vote, response);
    }

    /// The newest word of where a member is.
    pub fn moved(&self, member_id: u64, urls: &[String]) {
        let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        let known = addresses.get(&member_id);
        if urls.is_empty() || known.is_some_and(|address| address.urls == urls) {
            return;
        }
        let address = Address {
            urls: urls.to_vec(),
            in_use: 0,
        };
        if addresses.insert(member_id, address).is_some() {
            tracing::info!(
                member = format!("{member_id:x}"),
                urls = urls.join(","),
                "a member moved"
            );
        }
        // Connections to where nobody is any more go.
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|(url, _), _| addresses.values().any(|address| address.urls.contains(url)));
    }

    /// Where the member `id` is reached, which Raft's membership places at `node`.
    pub fn url(&self, id: u64, node: &Node) -> String {
        let addresses = self.addresses.read().unwrap_or_else(PoisonError::into_inner);
        let in_use = addresses.get(&id).and_then(|at| at.urls.get(at.in_use));
        in_use.or(node.peer_urls.first()).cloned().unwrap_or_default()
    }

    /// A client for the member `id`, which Raft's membership places at `node`.
    pub fn client(&self, id: u64, node: &Node, purpose: Purpose) -> Result<PeerClient<Outgoing>, Status> {
        self.client_over(
            &self.url(id, node),
            purpose,
            Some(Other::new(id, self.metrics.clone())),
        )
    }

    /// A member can't be reached where it is looked for: the next call looks at its next URL.
    fn unreachable(&self, id: u64) {
        let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = addresses.get_mut(&id) {
            address.in_use = (address.in_use + 1) % address.urls.len();
        }
    }

    /// A client for whoever is at `url`.
    pub fn client_at(&self, url: &str, purpose: Purpose) -> Result<PeerClient<Outgoing>, Status> {
        self.client_over(url, purpose, None)
    }

    fn client_over(
        &self,
        url: &str,
        purpose: Purpose,
        to: Option<Other>,
    ) -> Result<PeerClient<Outgoing>, Status> {
        let channel = self.channel_at(url, purpose)?;
        let origin = channel.origin();
        let service = Outgoing::new(channel, self.name.clone(), to);
        Ok(PeerClient::with_origin(service, origin)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    /// A channel to whoever is at `url`.
    pub fn channel_at(&self, url: &str, purpose: Purpose) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (url.to_string(), purpose);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let dialled = self.detours.get(url).map_or(url, String::as_str);
        let channel = Channel::new(dialled, self.tls.clone())
            .map_err(|error| Status::unavailable(format!("peer URL {url}: {error}")))?;
        channels.insert(key, channel.clone());
        Ok(channel)
    }

    /// How a request for `id` is addressed.
    pub fn target(&self, id: u64) -> peer::Target {
        self.identity.target(id)
    }
}

/// Makes openraft's clients.
pub struct Network {
    peers: Arc<Peers>,
}

impl Network {
    /// Clients over `peers`.
    pub fn new(peers: Arc<Peers>) -> Self {
        Network { peers }
    }

    fn link(&self, target: u64, node: &Node, purpose: Purpose) -> Link {
        Link {
            contact: self.peers.contacts.with(target),
            peers: self.peers.clone(),
            target,
            node: node.clone(),
            purpose,
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Node) -> Link {
        self.link(target, node, Purpose::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Node) -> Link {
        self.link(target, node, Purpose::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Node) -> Link {
        self.link(target, node, Purpose::Snapshot)
    }
}

/// One peer, for one purpose.
pub struct Link {
    peers: Arc<Peers>,
    contact: Contact,
    target: u64,
    node: Node,
    purpose: Purpose,
}

impl Link {
    fn client(&self, purpose: Purpose) -> Result<PeerClient<Outgoing>, Status> {
        self.peers.client(self.target, &self.node, purpose)
    }

    fn target(&self) -> peer::Target {
        self.peers.target(self.target)
    }

    /// What openraft makes of a call that failed.
    fn failed(&self, status: Status) -> RPCError<Types> {
        if status.code() == Code::Unavailable {
            self.peers.unreachable(self.target);
        }
        rpc_error(status)
    }

    async fn request_vote(
        &self,
        request: VoteRequest<Types>,
        option: RPCOption,
        pre_vote: bool,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let (ballots, journal) = (&self.peers.ballots, &self.peers.metrics.journal);
        ballots.ask(journal, &request, pre_vote);
        let began = Instant::now();
        let answer = self.try_vote(&request, option, pre_vote).await;
        let took = began.elapsed();
        ballots.answered(journal, self.target, &request, pre_vote, answer.as_ref(), took);
        self.peers.asked(self.target, answer.as_ref().map(|_| ()));
        answer.map_err(|status| self.failed(status))
    }

    async fn try_vote(
        &self,
        request: &VoteRequest<Types>,
        option: RPCOption,
        pre_vote: bool,
    ) -> Result<VoteResponse<Types>, Status> {
        let message = peer::VoteRequest {
            target: Some(self.target()),
            vote: Some(to_wire_vote(&request.vote)),
            last: request.last_log_id.as_ref().map(to_wire_log_id),
            pre_vote,
            leadership_transfer: request.leadership_transfer,
        };
        let mut client = self.client(Purpose::Control)?;
        let reply = within(option.hard_ttl(), client.vote(message)).await?;
        Ok(VoteResponse {
            vote: wire_vote(reply.vote)?,
            vote_granted: reply.granted,
            last_log_id: reply.last.map(from_wire_log_id),
        })
    }

    async fn heartbeat(
        &self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
        let answer = self.try_heartbeat(request, option).await;
        if answer.is_err() {
            self.peers.metrics.heartbeats_failed.increment();
        }
        self.contact.heartbeat(answer.is_ok());
        self.peers.asked(self.target, answer.as_ref().map(|_| ()));
        answer.map_err(|status| self.failed(status))
    }

    async fn try_heartbeat(
        &self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<StreamAppendResult<Types>, Status> {
        let message = append_request(request, Some(self.target()));
        let mut client = self.client(Purpose::Control)?;
        append_result(within(option.hard_ttl(), client.heartbeat(message)).await?)
    }

    /// Sends a snapshot once the peer answers.
    async fn send_snapshot(&self, vote: Vote, snapshot: Snapshot) -> Result<SnapshotResponse<Types>, Status> {
        if !self.contact.answers() {
            tracing::info!(to = %self.node.name, "a snapshot waits for a member that does not answer");
            self.contact.wait().await;
        }
        let began = Instant::now();
        let (upto, bytes) = (snapshot.meta.last_log_id, snapshot.snapshot.size());
        let sent = self.try_snapshot(vote, snapshot).await;
        self.peers.metrics.journal.record(Event::SnapshotSent {
            to: Id(self.target),
            upto: upto.map_or(0, |log_id| log_id.index),
            bytes,
            took_ms: began.elapsed().as_millis() as u64,
            why: sent.as_ref().err().map(cause),
        });
        if let Some(exchange) = self.peers.metrics.traffic.with(self.target) {
            exchange.snapshots_sent.count(sent.is_ok(), began.elapsed());
        }
        sent
    }

    async fn try_snapshot(&self, vote: Vote, snapshot: Snapshot) -> Result<SnapshotResponse<Types>, Status> {
        let head = peer::SnapshotHead {
            target: Some(self.target()),
            vote: Some(to_wire_vote(&vote)),
            last: snapshot.meta.last_log_id.as_ref().map(to_wire_log_id),
            membership: super::entry::encode_stored_membership(&snapshot.meta.last_membership),
            snapshot_id: snapshot.snapshot.name(),
            size: snapshot.snapshot.size(),
        };
        tracing::info!(
            to = %self.node.name, bytes = head.size, upto = ?snapshot.meta.last_log_id, "sending a snapshot"
        );
        let chunks = snapshot
            .snapshot
            .chunks(head)
            .map_err(|error| Status::internal(error.to_string()))?;
        let reply = self
            .client(Purpose::Snapshot)?
            .snapshot(chunks)
            .await?
            .into_inner();
        Ok(SnapshotResponse::new(wire_vote(reply.vote)?))
    }
}

impl NetStreamAppend<Types> for Link {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        if self.purpose == Purpose::Control {
            let link = &*self;
            let replies = input.then(move |request| link.heartbeat(request, option.clone()));
            return Box::pin(async move { Ok(Box::pin(replies) as BoxStream<'s, _>) });
        }
        Box::pin(async move {
            let under_way = Arc::new(AtomicUsize::new(0));
            let sent = under_way.clone();
            let mut target = Some(self.target());
            let requests = together(input, telling::WITHIN).map(move |request| {
                let target = target.take();
                // What only tells that entries are committed; the first tells where the follower's log stands.
                let quiet = request.entries.is_empty() && target.is_none();
                sent.fetch_add(usize::from(!quiet), Ordering::Relaxed);
                peer::AppendRequest {
                    quiet,
                    ..append_request(request, target)
                }
            });
            let idle = self.peers.timing.stream_idle();
            let mut client = self.client(self.purpose).map_err(|status| self.failed(status))?;
            let replies = within(idle, client.append(requests))
                .await
                .map_err(|status| self.failed(status))?;
            Ok(Box::pin(give_up_when_idle(replies, under_way, idle)) as BoxStream<'s, _>)
        })
    }
}

/// The replies, until the peer is silent for `idle` while requests are under way.
fn give_up_when_idle(
    replies: Streaming<peer::AppendReply>,
    under_way: Arc<AtomicUsize>,
    idle: Duration,
) -> impl Stream<Item = Result<StreamAppendResult<Types>, RPCError<Types>>> {
    futures::stream::unfold(Some((replies, under_way)), move |state| async move {
        let (mut replies, under_way) = state?;
        loop {
            return match timeout(idle, replies.message()).await {
                Ok(Ok(None)) => None,
                Ok(Ok(Some(reply))) => {
                    // A follower of an earlier build answers what is quiet, too.
                    let _ = under_way
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
                    match append_result(reply) {
                        Ok(result) => Some((Ok(result), Some((replies, under_way)))),
                        Err(status) => Some((Err(rpc_error(status)), None)),
                    }
                }
                Ok(Err(status)) => Some((Err(rpc_error(status)), None)),
                Err(_) if under_way.load(Ordering::Relaxed) == 0 => continue,
                Err(_) => Some((Err(rpc_error(Status::unavailable("no answer to appends"))), None)),
            };
        }
    })
}

impl NetVote<Types> for Link {
    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.request_vote(request, option, false).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.request_vote(request, option, true).await
    }
}

impl NetSnapshot<Types> for Link {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let cancel: Pin<Box<dyn Future<Output = ReplicationClosed> + Send>> = Box::pin(cancel);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            // Whatever was wrong, it is too much to send again at once.
            sent = self.send_snapshot(vote, snapshot) => {
                sent.map_err(|status| StreamingError::Unreachable(unreachable(&status)))
            }
        }
    }
}

impl NetTransferLeader<Types> for Link {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let message = peer::TransferLeaderRequest {
            target: Some(self.target()),
            from: Some(to_wire_vote(request.from_leader())),
            to: *request.to_node_id(),
            last: request.last_log_id().map(to_wire_log_id),
        };
        let mut client = self
            .client(Purpose::Control)
            .map_err(|status| self.failed(status))?;
        let reply = within(option.hard_ttl(), client.transfer_leader(message))
            .await
            .map_err(|status| self.failed(status))?;
        if !reply.refused.is_empty() {
            return Err(rpc_error(Status::failed_precondition(reply.refused)));
        }
        Ok(Ok(()))
    }
}

impl NetBackoff<Types> for Link {
    /// As configured in [`Timing::config`], but for snapshots.
    fn backoff(&self) -> Option<Backoff> {
        (self.purpose == Purpose::Snapshot).then(|| Backoff::new(snapshot_pauses()))
    }
}

/// The first pause, then each twice as long as the one before, up to the last.
fn snapshot_pauses() -> impl Iterator<Item = Duration> {
    let [first, last] = SNAPSHOT_PAUSES;
    std::iter::successors(Some(first), move |pause| Some((*pause * 2).min(last)))
}

/// The reply, unless it takes longer than `limit`.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(limit, call).await {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(Status::unavailable("no answer in time")),
    }
}

fn append_request(request: AppendEntriesRequest<Types>, target: Option<peer::Target>) -> peer::AppendRequest {
    let entries: Vec<Bytes> = request
        .entries
        .into_iter()
        .map(|mut entry| entry.encoded())
        .collect();
    peer::AppendRequest {
        target,
        vote: Some(to_wire_vote(&request.vote)),
        prev: request.prev_log_id.as_ref().map(to_wire_log_id),
        entries,
        committed: request.leader_commit.as_ref().map(to_wire_log_id),
        quiet: false,
    }
}

fn append_result(reply: peer::AppendReply) -> Result<StreamAppendResult<Types>, Status> {
    use peer::append_reply::Result as Wire;
    match reply.result {
        Some(Wire::Appended(appended)) => Ok(Ok(appended.last.map(from_wire_log_id))),
        Some(Wire::Conflict(at)) => Ok(Err(StreamAppendError::Conflict(from_wire_log_id(at)))),
        Some(Wire::HigherVote(vote)) => Ok(Err(StreamAppendError::HigherVote(from_wire_vote(vote)))),
        None => Err(Status::internal("append reply without a result")),
    }
}

/// The vote that a peer's message must carry.
pub fn wire_vote(vote: Option<peer::Vote>) -> Result<Vote, Status> {
    vote.map(from_wire_vote)
        .ok_or_else(|| Status::invalid_argument("peer message without a vote"))
}

/// A peer that can't be reached is left alone for a while; other errors are tried again soon.
fn rpc_error(status: Status) -> RPCError<Types> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition => RPCError::Unreachable(unreachable(&status)),
        _ => RPCError::Network(NetworkError::from_string(status.to_string())),
    }
}

fn unreachable(status: &Status) -> Unreachable<Types> {
    Unreachable::from_string(status.to_string())
}

/// Whether no connection could be made, so that the request certainly was not sent.
pub fn is_connect_error(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_word_tells_where_a_member_is() {
        let identity = Identity::new(1, 1, Box::new(|_| Ok(())));
        let second = Duration::from_secs(1);
        let timing = Timing {
            heartbeat: second / 10,
            election: second,
        };
        let peers = Peers::new(Arc::new(identity), timing, None, Arc::default());
        let node = Node {
            peer_urls: vec!["http://added:1".to_string()],
            ..Node::default()
        };
        assert_eq!(peers.url(2, &node), "http://added:1");
        let two = ["http://a:1".to_string(), "http://b:1".to_string()];
        peers.moved(2, &two);
        for expected in ["http://a:1", "http://b:1", "http://a:1"] {
            assert_eq!(peers.url(2, &node), expected);
            peers.unreachable(2);
        }
        // Said again it is no news: the one in use stays in use.
        peers.moved(2, &two);
        assert_eq!(peers.url(2, &node), "http://b:1");
        assert!(peers.client_at("http://b:1", Purpose::Control).is_ok());
        assert_eq!(peers.channels.lock().expect("not poisoned").len(), 1);
        peers.moved(2, &["http://c:1".to_string()]);
        assert_eq!(peers.url(2, &node), "http://c:1");
        assert!(
            peers.channels.lock().expect("not poisoned").is_empty(),
            "nobody is there any more"
        );
        peers.moved(2, &[]);
        assert_eq!(peers.url(2, &node), "http://c:1");
    }
}
