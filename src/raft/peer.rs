//! The incoming half of Raft: the peer gRPC service.
//!
//! Every request is checked to be meant for this member of this cluster before anything else is read from it; all
//! but `Identify` and `Join`, by which members meet. Changes of the membership are handed to the one who keeps it
//! (`server/members`) through a queue.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::future::ready;
use futures::{Stream, StreamExt, stream};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest,
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use super::entry::{from_wire_log_id, from_wire_vote, to_wire_log_id, to_wire_vote};
use super::forwarded::Forwarded;
use super::identity::Identity;
use super::network::{MAX_MESSAGE, wire_vote};
use super::replica::Replica;
use super::{Entry, Raft, Types};
use crate::pb::pontoon::peer;
use crate::pb::pontoon::peer::peer_server::{Peer, PeerServer};

/// Requests of one stream that Raft has at once.
const UNDER_WAY: usize = 64;

/// What a member tells whoever asks who it is.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// `--name`.
    pub name: String,
    /// `--initial-cluster-token`.
    pub token: String,
    /// `--initial-cluster`, sorted, as text.
    pub initial_cluster: String,
    /// Hash of the state that it was restored from; empty if it was not.
    pub restored: String,
}

/// A change of the membership that somebody asks for, and whom to tell what became of it.
pub enum Wish {
    /// By a client of another member.
    Change(
        peer::change_members_request::Change,
        oneshot::Sender<peer::ChangeMembersReply>,
    ),
    /// By a process that wants to be a member.
    Join(peer::JoinRequest, oneshot::Sender<peer::JoinReply>),
}

/// Answers from the leader's lease clock.
#[tonic::async_trait]
pub trait LeaseClock: Send + Sync {
    /// Answers a batch of questions, or says why it can't.
    async fn answer(&self, request: peer::LeaseClockRequest) -> peer::LeaseClockReply;
}

/// Serves the other members.
pub struct PeerService {
    replica: Replica,
    raft: Raft,
    identity: Arc<Identity>,
    introduction: Introduction,
    wishes: mpsc::Sender<Wish>,
    lease_clock: Arc<dyn LeaseClock>,
}

impl PeerService {
    /// The service, ready to be added to a gRPC server.
    pub fn server(
        replica: Replica,
        introduction: Introduction,
        wishes: mpsc::Sender<Wish>,
        lease_clock: Arc<dyn LeaseClock>,
    ) -> PeerServer<PeerService> {
        let service = PeerService {
            raft: replica.raft().clone(),
            identity: replica.identity().clone(),
            replica,
            introduction,
            wishes,
            lease_clock,
        };
        PeerServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// A member of this cluster asks: what it says of itself is news, unless it was removed.
    fn meet(&self, request: &peer::IdentifyRequest) -> bool {
        let reader = self.replica.reader();
        let is_other = request.member_id != self.identity.member_id();
        if is_other && reader.members().iter().any(|m| m.id == request.member_id) {
            self.replica.peers().moved(request.member_id, &request.peer_urls);
        }
        reader.is_removed(request.member_id)
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    async fn identify(
        &self,
        request: Request<peer::IdentifyRequest>,
    ) -> Result<Response<peer::IdentifyReply>, Status> {
        let request = request.into_inner();
        let is_ours = request.cluster_id != 0 && request.cluster_id == self.identity.cluster_id();
        if !is_ours {
            self.identity.seek(request.cluster_id);
        }
        if !is_ours && request.token != self.introduction.token {
            return Err(Status::failed_precondition("other --initial-cluster-token"));
        }
        Ok(Response::new(peer::IdentifyReply {
            removed: is_ours && self.meet(&request),
            member_id: self.identity.member_id(),
            name: self.introduction.name.clone(),
            cluster_id: self.identity.cluster_id(),
            token: self.introduction.token.clone(),
            initial_cluster: self.introduction.initial_cluster.clone(),
            restored: self.introduction.restored.clone(),
            sought_by: self.identity.sought_by(),
        }))
    }

    type AppendStream = Replies<peer::AppendReply>;

    async fn append(
        &self,
        request: Request<Streaming<peer::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut messages = request.into_inner();
        let Some(first) = messages.message().await? else {
            return Err(Status::invalid_argument("append stream without a request"));
        };
        self.identity.check(first.target)?;
        self.replica.heard_from_leader();
        // One that can't be read ends the stream: the leader makes it anew.
        let rest = messages.scan((), |(), message| ready(message.ok()));
        let raft = self.raft.clone();
        let replies = stream::once(ready(first))
            .chain(rest)
            .map(move |request| take(raft.clone(), request))
            .buffered(UNDER_WAY)
            .filter_map(|reply| ready(reply.transpose()));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn heartbeat(
        &self,
        request: Request<peer::AppendRequest>,
    ) -> Result<Response<peer::AppendReply>, Status> {
        let request = request.into_inner();
        self.identity.check(request.target)?;
        self.replica.heard_from_leader();
        let result = append(&self.raft, request).await?;
        Ok(Response::new(append_reply(result)))
    }

    async fn vote(&self, request: Request<peer::VoteRequest>) -> Result<Response<peer::VoteReply>, Status> {
        let request = request.into_inner();
        self.identity.check(request.target)?;
        let mut ask = VoteRequest::new(wire_vote(request.vote)?, request.last.map(from_wire_log_id));
        ask.leadership_transfer = request.leadership_transfer;
        let reply = match request.pre_vote {
            true => self.raft.pre_vote(ask.clone()).await,
            false => self.raft.vote(ask.clone()).await,
        }
        .map_err(stopped)?;
        self.replica.peers().voted(&ask, request.pre_vote, &reply);
        Ok(Response::new(peer::VoteReply {
            vote: Some(to_wire_vote(&reply.vote)),
            granted: reply.vote_granted,
            last: reply.last_log_id.as_ref().map(to_wire_log_id),
        }))
    }

    async fn confirm_vote(
        &self,
        request: Request<peer::ConfirmVoteRequest>,
    ) -> Result<Response<peer::ConfirmVoteReply>, Status> {
        self.identity.check(request.into_inner().target)?;
        let vote = self.replica.vote()?;
        Ok(Response::new(peer::ConfirmVoteReply {
            vote: vote.as_ref().map(to_wire_vote),
            knows_leader: self.replica.knows_leader(),
        }))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<peer::SnapshotChunk>>,
    ) -> Result<Response<peer::SnapshotReply>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("empty snapshot stream"))?;
        let head = first
            .head
            .clone()
            .ok_or_else(|| Status::invalid_argument("snapshot without a head"))?;
        self.identity.check(head.target)?;
        let vote = wire_vote(head.vote)?;
        let began = Instant::now();
        let received = self.replica.snapshots().receive(&head, first, &mut chunks).await;
        self.replica.tell_received(
            vote.leader_id.node_id,
            &head,
            received.as_ref().err(),
            began.elapsed(),
        );
        let snapshot = received?;
        let reply = self
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(stopped)?;
        Ok(Response::new(peer::SnapshotReply {
            vote: Some(to_wire_vote(&reply.vote)),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<peer::TransferLeaderRequest>,
    ) -> Result<Response<peer::TransferLeaderReply>, Status> {
        let request = request.into_inner();
        self.identity.check(request.target)?;
        let ask = TransferLeaderRequest::new(
            wire_vote(request.from)?,
            request.to,
            request.last.map(from_wire_log_id),
        );
        let refused = match self.raft.handle_transfer_leader(ask).await.map_err(stopped)? {
            Ok(()) => String::new(),
            Err(refused) => refused.to_string(),
        };
        Ok(Response::new(peer::TransferLeaderReply { refused }))
    }

    async fn forward(
        &self,
        request: Request<peer::ForwardRequest>,
    ) -> Result<Response<peer::ForwardReply>, Status> {
        let request = request.into_inner();
        self.identity.check(request.target)?;
        let (answers, committed) = self
            .replica
            .propose_forwarded(request.term, request.commands)
            .await;
        Ok(Response::new(peer::ForwardReply {
            results: answers.into_iter().map(Forwarded::into_wire).collect(),
            committed: committed.as_ref().map(to_wire_log_id),
        }))
    }

    async fn read_index(
        &self,
        request: Request<peer::ReadIndexRequest>,
    ) -> Result<Response<peer::ReadIndexReply>, Status> {
        let request = request.into_inner();
        self.identity.check(request.target)?;
        let asker = (request.asker, request.vote.map(from_wire_vote));
        use peer::read_index_reply::Result as Wire;
        let result = match self.replica.read_index_for(asker).await {
            Ok(log_id) => Wire::Index(to_wire_log_id(&log_id)),
            Err(refused) => Wire::Refused(refused.to_string()),
        };
        Ok(Response::new(peer::ReadIndexReply { result: Some(result) }))
    }

    async fn lease_clock(
        &self,
        request: Request<peer::LeaseClockRequest>,
    ) -> Result<Response<peer::LeaseClockReply>, Status> {
        let request = request.into_inner();
        self.identity.check(request.target)?;
        Ok(Response::new(self.lease_clock.answer(request).await))
    }

    async fn checksum(
        &self,
        request: Request<peer::ChecksumRequest>,
    ) -> Result<Response<peer::ChecksumReply>, Status> {
        let request = request.into_inner();
        self.identity.check(request.target)?;
        let checksum = self.replica.checksum(request.revision).await;
        let checksum = checksum.map_err(Status::failed_precondition)?;
        Ok(Response::new(peer::ChecksumReply {
            hash: checksum.hash,
            compacted: checksum.compacted,
        }))
    }

    async fn look(&self, request: Request<peer::LookRequest>) -> Result<Response<peer::LookReply>, Status> {
        let request = request.into_inner();
        self.identity.check(request.target)?;
        let reply = self.replica.answer_figures(request.run, request.after);
        Ok(Response::new(reply))
    }

    async fn join(&self, request: Request<peer::JoinRequest>) -> Result<Response<peer::JoinReply>, Status> {
        let request = request.into_inner();
        if request.token != self.introduction.token {
            return Err(Status::failed_precondition("other --initial-cluster-token"));
        }
        let (answer, reply) = oneshot::channel();
        let wish = Wish::Join(request, answer);
        self.wishes.send(wish).await.map_err(stopped)?;
        Ok(Response::new(reply.await.map_err(stopped)?))
    }

    async fn change_members(
        &self,
        request: Request<peer::ChangeMembersRequest>,
    ) -> Result<Response<peer::ChangeMembersReply>, Status> {
        let request = request.into_inner();
        self.identity.check(request.target)?;
        let change = request
            .change
            .ok_or_else(|| Status::invalid_argument("no change"))?;
        let (answer, reply) = oneshot::channel();
        let wish = Wish::Change(change, answer);
        self.wishes.send(wish).await.map_err(stopped)?;
        Ok(Response::new(reply.await.map_err(stopped)?))
    }
}

/// Hands a request of a stream to Raft, when it is polled first. What becomes of it, if that is to be said.
pub(super) async fn take(
    raft: Raft,
    request: peer::AppendRequest,
) -> Result<Option<peer::AppendReply>, Status> {
    let is_quiet = request.quiet;
    let result = append(&raft, request).await?;
    Ok((!is_quiet || result.is_err()).then(|| append_reply(result)))
}

async fn append(raft: &Raft, request: peer::AppendRequest) -> Result<StreamAppendResult<Types>, Status> {
    let request = append_request(request)?;
    let prev = request.prev_log_id;
    let last = request.entries.last().map(|entry| entry.log_id).or(prev);
    let response = raft.append_entries(request).await.map_err(stopped)?;
    Ok(response.into_stream_result(prev, last))
}

fn append_request(message: peer::AppendRequest) -> Result<AppendEntriesRequest<Types>, Status> {
    let entries: Result<Vec<Entry>, _> = message.entries.into_iter().map(Entry::decode).collect();
    Ok(AppendEntriesRequest {
        vote: message
            .vote
            .map(from_wire_vote)
            .ok_or_else(|| Status::invalid_argument("append without a vote"))?,
        prev_log_id: message.prev.map(from_wire_log_id),
        entries: entries.map_err(|error| Status::invalid_argument(error.to_string()))?,
        leader_commit: message.committed.map(from_wire_log_id),
    })
}

fn append_reply(result: StreamAppendResult<Types>) -> peer::AppendReply {
    use peer::append_reply::Result as Wire;
    let result = match result {
        Ok(last) => Wire::Appended(peer::Appended {
            last: last.as_ref().map(to_wire_log_id),
        }),
        Err(StreamAppendError::Conflict(at)) => Wire::Conflict(to_wire_log_id(&at)),
        Err(StreamAppendError::HigherVote(vote)) => Wire::HigherVote(to_wire_vote(&vote)),
    };
    peer::AppendReply { result: Some(result) }
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this member stopped: {error}"))
}
