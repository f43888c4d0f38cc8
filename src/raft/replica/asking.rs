//! What members ask each other for beside Raft's own messages: to propose, how far to read, how they stand.

use std::time::Duration;

use bytes::Bytes;

use super::{ProposeError, Replica};
use crate::journal::{Event, Id};
use crate::pb::pontoon::peer;
use crate::raft::entry::{LeaderId, from_wire_log_id, leader_id, to_wire_vote};
use crate::raft::forwarded::Forwarded;
use crate::raft::network::{Purpose, is_connect_error, within};
use crate::raft::proposals::entry_of;
use crate::raft::{LogId, Node, Reply, links, telling};

/// Records of the journal that another member is sent at once.
pub const MOST_RECORDS: usize = 1000;

impl Replica {
    /// Proposes what another member forwarded, in the term that it names; 0: in whichever. An answer for each, in their
    /// order, and the last entry that one of them is in.
    pub(in crate::raft) async fn propose_forwarded(
        &self,
        term: u64,
        commands: Vec<Bytes>,
    ) -> (Vec<Forwarded>, Option<LogId>) {
        let leader = (term > 0).then(|| leader_id(term, self.inner.identity.member_id()));
        let mut proposed = Vec::with_capacity(commands.len());
        for command in commands {
            proposed.push(self.inner.proposals.propose(leader, command).await);
        }
        let (mut answers, mut committed) = (Vec::with_capacity(proposed.len()), None);
        for proposed in proposed {
            let fate = entry_of(proposed).await.map(|(entry, reply)| {
                committed = committed.max(Some(entry));
                reply
            });
            answers.push(Forwarded(fate));
        }
        (answers, committed)
    }

    /// Hands commands to the leader, in one request, to be proposed by it as this leader. An error counts for every one
    /// of them.
    pub async fn forward(
        &self,
        leader: LeaderId,
        node: &Node,
        commands: Vec<Bytes>,
        limit: Duration,
    ) -> Result<Vec<Result<Reply, ProposeError>>, ProposeError> {
        let request = peer::ForwardRequest {
            target: Some(self.inner.peers.target(leader.node_id)),
            commands,
            term: leader.term,
        };
        let mut client = self
            .inner
            .peers
            .client(leader.node_id, node, Purpose::Forward)
            .map_err(|status| ProposeError::NotProposed(status.to_string()))?;
        match tokio::time::timeout(limit, client.forward(request)).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                self.hear(reply.committed.map(from_wire_log_id));
                Ok(reply.results.into_iter().map(Forwarded::from_wire).collect())
            }
            Ok(Err(status)) if never_sent(&status) => Err(ProposeError::NotProposed(status.to_string())),
            Ok(Err(status)) => Err(ProposeError::Unknown(status.to_string())),
            Err(_) => Err(ProposeError::Unknown(
                "the leader did not answer in time".to_string(),
            )),
        }
    }

    /// Hands a change of the membership to the leader.
    pub async fn forward_change(
        &self,
        leader: u64,
        node: &Node,
        change: peer::change_members_request::Change,
        limit: Duration,
    ) -> Result<peer::ChangeMembersReply, ProposeError> {
        let request = peer::ChangeMembersRequest {
            target: Some(self.inner.peers.target(leader)),
            change: Some(change),
        };
        let sent = async {
            let mut client = self.inner.peers.client(leader, node, Purpose::Forward)?;
            within(limit, client.change_members(request)).await
        };
        sent.await.map_err(|status| match never_sent(&status) {
            true => ProposeError::NotProposed(status.to_string()),
            false => ProposeError::Unknown(status.to_string()),
        })
    }

    /// Asks the leader for the index that a linearizable read which begins now must see applied.
    pub async fn ask_read_index(
        &self,
        leader: u64,
        node: &Node,
        limit: Duration,
    ) -> Result<u64, tonic::Status> {
        use peer::read_index_reply::Result as Wire;
        let request = peer::ReadIndexRequest {
            target: Some(self.inner.peers.target(leader)),
            asker: self.inner.identity.member_id(),
            vote: self.vote()?.as_ref().map(to_wire_vote),
        };
        let mut client = self.inner.peers.client(leader, node, Purpose::Control)?;
        match within(limit, client.read_index(request)).await?.result {
            Some(Wire::Index(log_id)) => {
                let log_id = from_wire_log_id(log_id);
                self.hear(Some(log_id));
                Ok(log_id.index)
            }
            Some(Wire::Refused(why)) => Err(tonic::Status::failed_precondition(why)),
            None => Err(tonic::Status::internal("read index reply without a result")),
        }
    }

    /// A leader said, in an answer, that entries up to this one are committed.
    fn hear(&self, committed: Option<LogId>) {
        let applied = *self.inner.applied.borrow();
        if let Some(committed) = committed.filter(|committed| committed.index > applied) {
            telling::hear(&self.inner.raft, committed);
        }
    }

    /// Asks the leader's lease clock.
    pub async fn ask_lease_clock(
        &self,
        leader: u64,
        node: &Node,
        request: peer::LeaseClockRequest,
        limit: Duration,
    ) -> Result<peer::LeaseClockReply, tonic::Status> {
        let request = peer::LeaseClockRequest {
            target: Some(self.inner.peers.target(leader)),
            ..request
        };
        let mut client = self.inner.peers.client(leader, node, Purpose::Forward)?;
        within(limit, client.lease_clock(request)).await
    }

    /// Asks another member how it stands, and for its records behind number `after` of its run `run`.
    pub async fn ask_figures(
        &self,
        id: u64,
        node: &Node,
        (run, after): (u64, u64),
        limit: Duration,
    ) -> Result<peer::LookReply, tonic::Status> {
        let request = peer::LookRequest {
            target: Some(self.inner.peers.target(id)),
            run,
            after,
        };
        let mut client = self.inner.peers.client(id, node, Purpose::Forward)?;
        within(limit, client.look(request)).await
    }

    /// The answer to that.
    pub fn answer_figures(&self, run: u64, after: u64) -> peer::LookReply {
        let journal = &self.metrics().journal;
        let after = if run == journal.run() { after } else { 0 };
        let records = journal.after(after, MOST_RECORDS);
        let json = |value: Result<Vec<u8>, _>| Bytes::from(value.unwrap_or_default());
        peer::LookReply {
            figures: json(serde_json::to_vec(&self.figures())),
            run: journal.run(),
            after: records.last().map_or(after, |record| record.seq),
            records: records
                .iter()
                .map(|record| json(serde_json::to_vec(record)))
                .collect(),
        }
    }

    /// A snapshot of `from` came, or did not, in so long.
    pub fn tell_received(
        &self,
        from: u64,
        head: &peer::SnapshotHead,
        failed: Option<&tonic::Status>,
        took: Duration,
    ) {
        self.metrics().journal.record(Event::SnapshotReceived {
            from: Id(from),
            upto: head.last.map_or(0, |last| from_wire_log_id(last).index),
            bytes: head.size,
            took_ms: took.as_millis() as u64,
            why: failed.map(links::cause),
        });
        let arrived = failed.is_none();
        if arrived {
            self.metrics().snapshots_received.observe(took);
        }
        if let Some(exchange) = self.metrics().traffic.with(from) {
            exchange.snapshots_received.count(arrived, took);
        }
    }
}

/// Whether the request certainly never left this member.
fn never_sent(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::FailedPrecondition || is_connect_error(status)
}
