//! Changes of the membership: each is one entry of the log.
//!
//! Raft lets one voter come or go in a single entry (thesis §4.1: any two majorities still meet), so nothing here is
//! ever half done: if the leader dies in the middle of a change, its entry is committed by the next leader, or it never
//! was. openraft checks that the leader has committed an entry of its own term first, and that the change is based on
//! the newest membership, which must be committed.
//!
//! **Nobody gets a vote before it can use it.** A newcomer enters as a learner, whatever it was added for: it is sent
//! the log, but no majority waits for it. Its [`Role`] says what is to become of it, and the leader of the day gives it
//! its vote once it has caught up (`server/members`). So a member that was added and never starts, or is still
//! loading a snapshot, takes nothing from what the cluster can bear. (etcd counts an added voter at once: the second
//! member of a cluster stops it until it has started.)
//!
//! ```text
//! {a,b,c}        add d        learner d, role Added
//! {a,b,c} +d     promote d    {a,b,c,d}
//! {a,b,c,d}      remove a     {b,c,d}
//! ```
//!
//! **A lost disk.** The newcomer d takes the vote of the member c that it replaces. Two voters change, so it takes two
//! entries with a joint membership between them, in which a decision needs a majority of both sets:
//!
//! ```text
//! {a,b,c} +d     replace      {a,b,c}&{a,b,d}
//!                settle       {a,b,d}
//! ```
//!
//! A leader that finds a joint membership settles it, whoever began it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use openraft::{EntryPayload, Instant as _};
use tokio::time::{Instant, sleep};

use super::replica::{ProposeError, Replica};
use super::{Node, Role};
use crate::state::Seat;

/// Between two attempts while the previous change is being committed.
const RETRY: Duration = Duration::from_millis(20);

type Membership = openraft::Membership<u64, Node>;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A newcomer, without a vote; one without a vote may go in the same step.
    Add {
        /// The newcomer's id.
        id: u64,
        /// The newcomer.
        node: Node,
        /// Who goes.
        instead_of: Option<u64>,
    },
    /// A learner gets a vote.
    Promote(u64),
    /// A learner gets the vote of another member, which goes.
    Replace {
        /// Who goes.
        old: u64,
        /// Who comes.
        new: u64,
    },
    /// The second half of `Replace`.
    Settle,
    /// A member goes.
    Remove(u64),
}

/// The membership after a change; none if it makes no sense, or nothing is left to do.
fn after(now: &Membership, change: &Change) -> Option<Membership> {
    let mut nodes: BTreeMap<u64, Node> = now.nodes().map(|(id, node)| (*id, node.clone())).collect();
    let mut sets: Vec<BTreeSet<u64>> = now.get_joint_config().clone();
    let voters = sets.last()?.clone();
    let is_voter = |id: &u64| sets.iter().any(|set| set.contains(id));
    if sets.len() > 1 && *change != Change::Settle {
        return None;
    }
    match change {
        Change::Add { id, node, instead_of } => {
            if nodes.contains_key(id) || instead_of.is_some_and(|old| is_voter(&old)) {
                return None;
            }
            if let Some(old) = instead_of {
                nodes.remove(old);
            }
            nodes.insert(*id, node.clone());
        }
        Change::Promote(id) => {
            let is_learner = nodes.contains_key(id) && !is_voter(id);
            sets = vec![is_learner.then(|| &voters | &BTreeSet::from([*id]))?];
        }
        Change::Replace { old, new } => {
            if !voters.contains(old) || !nodes.contains_key(new) || is_voter(new) {
                return None;
            }
            let without = &voters - &BTreeSet::from([*old]);
            sets = vec![voters, &without | &BTreeSet::from([*new])];
        }
        Change::Settle => {
            if sets.len() < 2 {
                return None;
            }
            nodes.retain(|id, _| voters.contains(id) || !is_voter(id));
            sets = vec![voters];
        }
        Change::Remove(id) => {
            nodes.remove(id)?;
            sets = vec![&voters - &BTreeSet::from([*id])];
        }
    }
    // The last voter can't go.
    Membership::new(sets, nodes).ok()
}

/// A membership as the state keeps it.
pub fn seats(membership: &Membership) -> Vec<Seat> {
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let seat = |(id, node): (&u64, &Node)| {
        let starts_later = matches!(node.role, Role::Added | Role::Learner) && node.name.is_empty();
        Seat {
            id: *id,
            name: node.name.clone(),
            peer_urls: node.peer_urls.clone(),
            // One that was added as a voter is listed as one, as etcd's clients expect.
            is_learner: !voters.contains(id) && node.role != Role::Added,
            claimant: if starts_later { 0 } else { *id },
        }
    };
    membership.nodes().map(seat).collect()
}

/// How the members stand, as the leader sees them.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// All members.
    pub nodes: BTreeMap<u64, Node>,
    /// Those that vote, in any of the voter sets.
    pub voters: BTreeSet<u64>,
    /// Whether a `Replace` waits to be settled.
    pub is_joint: bool,
    /// Whether the newest membership is committed.
    pub is_settled: bool,
    /// Index of the last entry of the leader's log.
    pub last_index: u64,
    /// Up to which index each member's log is known to be the leader's; only the leader knows.
    pub matched: BTreeMap<u64, u64>,
    /// How long ago each member was last heard of; only the leader knows.
    pub heard: BTreeMap<u64, Duration>,
}

impl Replica {
    /// How the members stand. `matched` and `heard` are empty unless this member leads.
    pub fn standing(&self) -> Standing {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let replication = metrics.replication.unwrap_or_default();
        let heartbeat = metrics.heartbeat.unwrap_or_default();
        Standing {
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
            voters: membership.voter_ids().collect(),
            is_joint: membership.get_joint_config().len() > 1,
            is_settled: metrics.membership_config.log_id() == metrics.committed_membership_config.log_id(),
            last_index: metrics.last_log_index.unwrap_or(0),
            matched: replication
                .into_iter()
                .filter_map(|(id, at)| Some((id, at?.index)))
                .collect(),
            heard: heartbeat
                .into_iter()
                .filter_map(|(id, at)| Some((id, at?.elapsed())))
                .collect(),
        }
    }

    /// Makes one change, and waits until it is applied here; the index of its entry. Only the leader can. Nothing to
    /// do is an error: the caller has looked before.
    pub async fn change_membership(&self, change: &Change, deadline: Instant) -> Result<u64, ProposeError> {
        loop {
            let why = match tokio::time::timeout_at(deadline, self.try_change(change)).await {
                Ok(Ok(index)) => return Ok(index),
                Ok(Err(Attempt::Failed(error))) => return Err(error),
                Ok(Err(Attempt::Again(why))) => why,
                Err(_) => {
                    return Err(ProposeError::Unknown(
                        "the change was not committed in time".into(),
                    ));
                }
            };
            if Instant::now() + RETRY >= deadline {
                return Err(ProposeError::NotProposed(why));
            }
            sleep(RETRY).await;
        }
    }

    async fn try_change(&self, change: &Change) -> Result<u64, Attempt> {
        let refused = |why: String| Attempt::Failed(ProposeError::NotProposed(why));
        let (newest, committed) = self
            .raft()
            .with_raft_state(|state| {
                let membership = &state.membership_state;
                (membership.effective().clone(), membership.committed().clone())
            })
            .await
            .map_err(|fatal| refused(fatal.to_string()))?;
        if newest.log_id() != committed.log_id() {
            return Err(Attempt::Again(
                "another change of the membership is under way".into(),
            ));
        }
        let next = after(newest.membership(), change)
            .ok_or_else(|| refused(format!("{change:?} does not fit the membership {newest}")))?;
        let based_on = Precondition::LastMembershipLogId {
            last_membership_log_id: *newest.log_id(),
        };
        let written = self
            .raft()
            .append_membership(next, EntryPayload::Blank, [based_on])
            .await;
        match written {
            Ok(written) => Ok(written.log_id.index),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(refused(forward.to_string()))
            }
            Err(RaftError::APIError(ClientWriteError::PreconditionFailed(failed))) => {
                Err(Attempt::Again(failed.to_string()))
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => match error {
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                    Err(Attempt::Again(error.to_string()))
                }
                error => Err(refused(error.to_string())),
            },
            Err(error) => Err(Attempt::Failed(ProposeError::Unknown(error.to_string()))),
        }
    }
}

enum Attempt {
    Again(String),
    Failed(ProposeError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(role: Role) -> Node {
        Node {
            role,
            ..Node::default()
        }
    }

    /// `1 2 3 +4`: voters, then learners; `1 2 & 1 3` while joint.
    fn show(membership: &Membership) -> String {
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let words = |ids: &BTreeSet<u64>| {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            ids.join(" ")
        };
        let sets: Vec<String> = membership.get_joint_config().iter().map(words).collect();
        let learners = membership.nodes().filter(|(id, _)| !voters.contains(id));
        let learners: String = learners.map(|(id, _)| format!(" +{id}")).collect();
        sets.join(" & ") + &learners
    }

    fn three() -> Membership {
        let nodes = (1..=3).map(|id| (id, node(Role::Founder)));
        let nodes: BTreeMap<u64, Node> = nodes.collect();
        Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).expect("valid")
    }

    fn add(id: u64, role: Role, instead_of: Option<u64>) -> Change {
        let node = node(role);
        Change::Add { id, node, instead_of }
    }

    #[test]
    fn a_story_of_changes() {
        let mut now = three();
        for (change, then) in [
            (add(4, Role::Added, None), "1 2 3 +4"),
            (Change::Promote(4), "1 2 3 4"),
            (Change::Remove(1), "2 3 4"),
            (add(5, Role::Replacing(2), None), "2 3 4 +5"),
            (add(6, Role::Replacing(2), Some(5)), "2 3 4 +6"),
            (Change::Replace { old: 2, new: 6 }, "2 3 4 & 3 4 6"),
            (Change::Settle, "3 4 6"),
            (Change::Remove(4), "3 6"),
            (Change::Remove(6), "3"),
            (add(7, Role::Learner, None), "3 +7"),
            (Change::Remove(7), "3"),
        ] {
            now = after(&now, &change).unwrap_or_else(|| panic!("{change:?} of {}", show(&now)));
            assert_eq!(show(&now), then, "after {change:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_no_change() {
        let joint = after(&three(), &add(4, Role::Replacing(1), None)).expect("a change");
        let joint = after(&joint, &Change::Replace { old: 1, new: 4 }).expect("a change");
        let alone = after(&three(), &Change::Remove(1)).and_then(|two| after(&two, &Change::Remove(2)));
        for (now, change) in [
            (&three(), add(1, Role::Added, None)),
            (&three(), add(4, Role::Added, Some(1))),
            (&three(), Change::Promote(1)),
            (&three(), Change::Promote(4)),
            (&three(), Change::Replace { old: 1, new: 2 }),
            (&three(), Change::Replace { old: 1, new: 4 }),
            (&three(), Change::Settle),
            (&three(), Change::Remove(4)),
            (&joint, Change::Remove(2)),
            (&alone.expect("a change"), Change::Remove(3)),
        ] {
            assert_eq!(after(now, &change), None, "{change:?} of {}", show(now));
        }
    }

    #[test]
    fn clients_see_an_added_voter_as_a_voter_and_other_newcomers_as_learners() {
        let mut now = three();
        for (id, role) in [(4, Role::Added), (5, Role::Joining), (6, Role::Learner)] {
            now = after(&now, &add(id, role, None)).expect("a change");
        }
        let learners: Vec<(u64, bool)> = seats(&now).iter().map(|s| (s.id, s.is_learner)).collect();
        assert_eq!(
            learners,
            [
                (1, false),
                (2, false),
                (3, false),
                (4, false),
                (5, true),
                (6, true)
            ]
        );
        let promoted = after(&now, &Change::Promote(5)).expect("a change");
        assert!(!seats(&promoted)[4].is_learner);
        let unclaimed: Vec<u64> = seats(&now)
            .iter()
            .filter(|s| s.claimant == 0)
            .map(|s| s.id)
            .collect();
        assert_eq!(unclaimed, [4, 6]);
    }
}
