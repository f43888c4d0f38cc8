//! The outgoing half of Raft: openraft's calls, made over connections to the [`peers`].
//!
//! Replication runs over one long-lived stream per follower with many requests under way; heartbeats, votes and
//! read confirmations have a connection of their own so that they never queue behind entries, and snapshots a third.
//!
//! openraft bounds the time of unary calls; a stream has no lifetime, so [`give_up_when_idle`] ends one whose peer
//! fell silent with requests under way. HTTP/2 pings find dead connections without requests.

mod peers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
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

pub use self::peers::{MAX_MESSAGE, Peers, Purpose, is_connect_error, within};
use crate::journal::{Event, Id};
use crate::pb::pontoon::peer;
use crate::pb::pontoon::peer::peer_client::PeerClient;
use crate::raft::contact::Contact;
use crate::raft::entry::{
    encode_stored_membership, from_wire_log_id, from_wire_vote, to_wire_log_id, to_wire_vote,
};
use crate::raft::links::cause;
use crate::raft::snapshot::SnapshotFile;
use crate::raft::telling::{self, together};
use crate::raft::traffic::Outgoing;
use crate::raft::{Node, Snapshot, Types, Vote};

/// Pauses after a snapshot that did not arrive: all of it is sent again.
const SNAPSHOT_PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(3)];

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
            membership: encode_stored_membership(&snapshot.meta.last_membership),
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
    /// As configured in [`Timing::config`](crate::raft::Timing::config), but for snapshots.
    fn backoff(&self) -> Option<Backoff> {
        (self.purpose == Purpose::Snapshot).then(|| Backoff::new(snapshot_pauses()))
    }
}

/// The first pause, then each twice as long as the one before, up to the last.
fn snapshot_pauses() -> impl Iterator<Item = Duration> {
    let [first, last] = SNAPSHOT_PAUSES;
    std::iter::successors(Some(first), move |pause| Some((*pause * 2).min(last)))
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
