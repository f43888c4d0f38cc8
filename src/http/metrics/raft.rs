//! Consensus, as this member sees it.

use super::text::Page;
use crate::server::Server;

/// Adds it to the page.
pub fn write(page: &mut Page, server: &Server) {
    let (status, metrics) = (server.replica().status(), server.metrics());
    // Raft names a leader that is long gone, and itself while nobody follows: etcd's steps down.
    let leader = status.leader.filter(|_| server.leadership().is_known());
    let leads = leader == Some(server.member_id());
    page.gauge(
        "etcd_server_has_leader",
        "Whether this member knows a leader.",
        u8::from(leader.is_some()),
    );
    page.gauge(
        "etcd_server_is_leader",
        "Whether this member leads.",
        u8::from(leads),
    );
    page.gauge(
        "etcd_server_is_learner",
        "Whether this member has no vote.",
        u8::from(status.is_learner),
    );
    page.counter(
        "etcd_server_leader_changes_seen_total",
        "Leaders that followed another, as this member saw it.",
        metrics.leader_changes.get(),
    );
    page.gauge(
        "etcd_server_proposals_committed_total",
        "Index of the last entry that this member knows to be committed.",
        status.committed,
    );
    page.gauge(
        "etcd_server_proposals_applied_total",
        "Index of the last entry that is applied here.",
        status.applied,
    );
    page.gauge(
        "etcd_server_proposals_pending",
        "Proposals under way from this member.",
        server.in_flight(),
    );
    page.counter(
        "etcd_server_proposals_failed_total",
        "Proposals without an answer: no leader, a time-out, too many at once.",
        metrics.proposals_failed.get(),
    );
    page.counter(
        "etcd_server_read_indexes_failed_total",
        "Linearizable reads that could not be served in time.",
        metrics.read_indexes_failed.get(),
    );
    page.counter(
        "etcd_server_slow_read_indexes_total",
        "Questions of linearizable reads for the read index that had to be asked again.",
        metrics.read_indexes_slow.get(),
    );
    page.counter(
        "etcd_server_heartbeat_send_failures_total",
        "Heartbeats of this member, as the leader, that were not answered in time.",
        metrics.heartbeats_failed.get(),
    );
    page.histogram(
        "etcd_server_apply_duration_seconds",
        "How long runs of entries, which are answered together, took to be applied.",
        &metrics.applies,
    );
    page.counter(
        "etcd_server_slow_apply_total",
        "Those of them that took longer than 100 ms.",
        metrics.applies_slow.get(),
    );
    page.gauge("pontoon_raft_term", "Raft's term.", status.term);
    page.gauge(
        "pontoon_raft_last_index",
        "Index of the last entry in the log here.",
        status.last_index,
    );
    let members = server.members();
    let voters = members.iter().filter(|member| !member.is_learner).count();
    page.gauge("pontoon_members", "Members of the cluster.", members.len());
    page.gauge("pontoon_voters", "Members that vote.", voters);
}
