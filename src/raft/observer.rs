//! Watches Raft from outside and tells the journal what changed: role, term, leader, members.
//!
//! openraft tells who leads by the vote that this member holds, also when that leader is long gone, or from before a
//! restart. A leader is told here once this member has heard from it, or leads and hears from a majority; it is lost when
//! that has not been so for an election timeout, or when this member turned to a later term. So "lost", with how long
//! it had been silent, is when somebody would begin to wait.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;

use super::replica::Replica;
use crate::journal::event::{Loss, Role};
use crate::journal::{Event, Id};

/// How often it is looked whether the leader is still heard of.
const LOOK: Duration = Duration::from_millis(50);

/// What was told last.
#[derive(Default)]
struct Told {
    role: Option<Role>,
    term: u64,
    /// The leader, and its term.
    leader: Option<(u64, u64)>,
    /// The last one that was lost.
    lost: Option<(u64, u64)>,
    members: (BTreeSet<u64>, BTreeSet<u64>),
}

/// What is the case now.
struct Seen {
    role: Role,
    term: u64,
    leader: Option<(u64, u64)>,
    members: (BTreeSet<u64>, BTreeSet<u64>),
    names: Vec<(u64, String)>,
    silence: Option<Duration>,
}

/// What role a member has.
pub fn role(state: ServerState) -> Role {
    match state {
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    }
}

/// Tells for as long as Raft runs.
pub async fn run(replica: Replica) {
    let mut told = Told::default();
    let mut changes = replica.raft().server_metrics();
    loop {
        let seen = look(&replica);
        told.compare(&replica, seen);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn look(replica: &Replica) -> Seen {
    let metrics = replica.raft().server_metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let learners = membership
        .nodes()
        .map(|(id, _)| *id)
        .filter(|id| !voters.contains(id))
        .collect();
    let term = metrics.vote.leader_id.term;
    let in_touch = replica.is_in_touch();
    Seen {
        role: role(metrics.state),
        term,
        leader: metrics
            .current_leader
            .filter(|_| in_touch)
            .map(|leader| (leader, term)),
        members: (voters, learners),
        names: membership
            .nodes()
            .map(|(id, node)| (*id, node.name.clone()))
            .collect(),
        silence: replica.silence(),
    }
}

impl Told {
    fn compare(&mut self, replica: &Replica, seen: Seen) {
        let journal = &replica.metrics().journal;
        let me = replica.identity().member_id();
        if self.members != seen.members {
            journal.call(seen.names.clone());
            let ids = |ids: &BTreeSet<u64>| ids.iter().copied().map(Id).collect();
            journal.record(Event::Membership {
                voters: ids(&seen.members.0),
                learners: ids(&seen.members.1),
            });
            self.members = seen.members.clone();
        }
        if let Some((leader, term)) = self.leader
            && self.leader != seen.leader
        {
            journal.record(Event::LeaderLost {
                leader: Id(leader),
                term,
                why: loss(leader == me, (term, self.role), &seen),
                silent_ms: seen.silence.unwrap_or_default().as_millis() as u64,
            });
            self.lost = self.leader;
            self.leader = None;
        }
        if self.term != seen.term {
            journal.record(Event::Term {
                from: self.term,
                to: seen.term,
            });
            self.term = seen.term;
        }
        if self.role != Some(seen.role) {
            if let Some(from) = self.role {
                journal.record(Event::Role {
                    from,
                    to: seen.role,
                    term: seen.term,
                });
            }
            self.role = Some(seen.role);
        }
        if let Some((leader, term)) = seen.leader
            && self.leader.is_none()
        {
            let leader = Id(leader);
            journal.record(match self.lost == seen.leader {
                true => Event::LeaderBack { leader, term },
                false => Event::LeaderElected { leader, term },
            });
            self.leader = seen.leader;
        }
    }
}

fn loss(was_me: bool, (term, role): (u64, Option<Role>), seen: &Seen) -> Loss {
    match (was_me, seen.term > term) {
        (true, false) if role == Some(seen.role) => Loss::NoMajority,
        (true, _) => Loss::SteppedDown,
        (false, true) => Loss::Superseded,
        (false, false) => Loss::Silent,
    }
}
