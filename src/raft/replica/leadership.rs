//! Who leads, as this member sees it; whether that is still so; and handing it on.

use std::sync::PoisonError;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use super::{Replica, next_change};
use crate::journal::{Event, Id};
use crate::raft::entry::{LeaderId, leader_id};
use crate::raft::{Node, Vote};

/// How long a handover of leadership may take before the member stops without one.
const TRANSFER_LIMIT: Duration = Duration::from_secs(2);

impl Replica {
    /// The leader that this member knows of, with its place in the membership.
    pub fn leader(&self) -> Option<(u64, Node)> {
        self.leadership().map(|(leader, node)| (leader.node_id, node))
    }

    /// The same, with its term.
    pub fn leadership(&self) -> Option<(LeaderId, Node)> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        metrics
            .membership_config
            .membership()
            .get_node(&leader)
            .map(|node| (leader_id(metrics.vote.leader_id.term, leader), node.clone()))
    }

    /// Who leads and since which term, as far as this member knows.
    pub(super) fn leader_id(&self) -> Option<LeaderId> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        Some(leader_id(metrics.vote.leader_id.term, leader))
    }

    /// Waits until this member knows of a later leader than this one, or of a later vote.
    pub async fn overtaken(&self, leader: LeaderId) {
        let later = |vote: &Vote| vote.leader_id > leader;
        let mut metrics = self.inner.raft.server_metrics();
        // An error means that Raft stopped: then nobody leads.
        while !later(&metrics.borrow_and_update().vote) && metrics.changed().await.is_ok() {}
    }

    /// Whether this member leads, as far as it knows.
    pub fn leads(&self) -> bool {
        let metrics = self.inner.raft.server_metrics();
        metrics.borrow_watched().current_leader == Some(self.inner.identity.member_id())
    }

    /// Raft's term.
    pub fn term(&self) -> u64 {
        self.inner
            .raft
            .server_metrics()
            .borrow_watched()
            .vote
            .leader_id
            .term
    }

    /// Waits until something about Raft changes from now on: the leader, perhaps.
    pub async fn changed(&self) {
        next_change(self.inner.raft.server_metrics()).await;
    }

    /// A leader called.
    pub fn heard_from_leader(&self) {
        *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago a leader called.
    fn heard_ago(&self) -> Option<Duration> {
        let heard = self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|at| at.elapsed())
    }

    /// Whether a leader called lately, or this member leads, be it cut off. Others ask at every read, so it takes no time.
    pub fn knows_leader(&self) -> bool {
        self.heard_ago()
            .is_some_and(|ago| ago < self.inner.timing.election)
            || self.leads()
    }

    /// Whether this member hears from its leader, or leads and hears from a majority. Raft still names a leader that
    /// is long gone, or from before a restart.
    pub fn is_in_touch(&self) -> bool {
        self.silence()
            .is_some_and(|silence| silence < self.inner.timing.election)
    }

    /// How long ago that was; none if it never was.
    pub fn silence(&self) -> Option<Duration> {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let me = self.inner.identity.member_id();
        match metrics.current_leader == Some(me) {
            true if metrics.membership_config.membership().voter_ids().eq([me]) => Some(Duration::ZERO),
            true => metrics.last_quorum_acked.map(|at| at.elapsed()),
            false => self.heard_ago(),
        }
    }

    /// Hands leadership over, if this member leads and somebody can take it.
    pub async fn hand_over(&self) {
        if !self.leads() {
            return;
        }
        let me = self.inner.identity.member_id();
        let standing = self.standing();
        let others = standing
            .matched
            .iter()
            .filter(|(id, _)| **id != me && standing.voters.contains(id));
        let Some((successor, _)) = others.max_by_key(|(_, matched)| **matched) else {
            return;
        };
        if !self.transfer_leader(*successor, TRANSFER_LIMIT).await {
            tracing::warn!("nobody took over in time");
        }
    }

    /// Asks a member to lead from now on; whether it, or at least another one, does within `limit`.
    pub async fn transfer_leader(&self, to: u64, limit: Duration) -> bool {
        let raft = &self.inner.raft;
        let me = self.inner.identity.member_id();
        self.metrics().journal.record(Event::HandingOver { to: Id(to) });
        if raft.trigger().transfer_leader(to).await.is_err() {
            return false;
        }
        let followed = raft
            .wait(Some(limit))
            .metrics(
                |metrics| match metrics.current_leader {
                    Some(leader) => leader != me,
                    // One that is no member any more does not hear who leads after it.
                    None => metrics.membership_config.membership().get_node(&me).is_none(),
                },
                "another member leads",
            )
            .await;
        followed.is_ok()
    }
}
