//! Everything that the journal can tell.

use std::fmt;

use serde::{Serialize, Serializer};

/// A member, by its id: in hexadecimal, as clients print ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(pub u64);

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:x}", self.0))
    }
}

/// How a member's last run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Left {
    /// There was none.
    First,
    /// It was told to stop, and closed everything.
    Clean,
    /// The process was killed, or gave up.
    Killed,
    /// The machine stopped.
    PowerCut,
}

/// What a member is to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Has no vote.
    Learner,
    /// Follows whoever leads.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Raft has stopped.
    Stopped,
}

/// Why a leader counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// It was not heard of for an election timeout.
    Silent,
    /// Somebody asks for votes in a later term.
    Superseded,
    /// It is this member, to which no majority answers.
    NoMajority,
    /// It is this member, which leads no more.
    SteppedDown,
}

/// What became of a question for a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Yes.
    Granted,
    /// No.
    Refused,
    /// There was no answer.
    None,
}

/// Why a vote was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "refusal")]
pub enum Refusal {
    /// The voter knows of a later term.
    LaterTerm {
        /// Which.
        voter_term: u64,
    },
    /// It has voted in this term.
    Voted {
        /// For whom.
        voted_for: Id,
    },
    /// Its log goes further.
    LongerLog {
        /// The voter's last entry.
        voter_last: u64,
        /// The candidate's.
        candidate_last: u64,
    },
    /// It hears from a leader.
    HasLeader,
}

/// What was slow to become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Synced {
    /// The write-ahead log.
    Log,
    /// A snapshot.
    Snapshot,
}

/// What happened. Numbers that end in `_ms` are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields say it")]
pub enum Event {
    /// The member's process began.
    Started {
        name: String,
        version: &'static str,
        left: Left,
    },
    /// It serves clients.
    Serving {},
    /// It was told to stop.
    Stopping {},
    /// It stops because it must.
    Failed { why: String },
    /// It is something else to the others.
    Role { from: Role, to: Role, term: u64 },
    /// The term that it knows of is a later one.
    Term { from: u64, to: u64 },
    /// It asks the others for their votes; `pre`: whether they would give them.
    Campaign { term: u64, pre: bool },
    /// What became of its question to one of them.
    Vote {
        voter: Id,
        term: u64,
        pre: bool,
        answer: Answer,
        #[serde(flatten)]
        refusal: Option<Refusal>,
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
        took_ms: u64,
    },
    /// Another one asked this member for its vote.
    Asked {
        candidate: Id,
        term: u64,
        pre: bool,
        granted: bool,
        #[serde(flatten)]
        refusal: Option<Refusal>,
    },
    /// There is a new leader.
    LeaderElected { leader: Id, term: u64 },
    /// The leader that was lost is heard of again.
    LeaderBack { leader: Id, term: u64 },
    /// The leader is lost.
    LeaderLost {
        leader: Id,
        term: u64,
        why: Loss,
        silent_ms: u64,
    },
    /// This member, the leader, asks another one to lead.
    HandingOver { to: Id },
    /// Who is a member, and who votes.
    Membership { voters: Vec<Id>, learners: Vec<Id> },
    /// A snapshot of the state is on disk.
    SnapshotTaken { upto: u64, bytes: u64, took_ms: u64 },
    /// A snapshot went to another member, or did not arrive.
    SnapshotSent {
        to: Id,
        upto: u64,
        bytes: u64,
        took_ms: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// A snapshot came, or broke off.
    SnapshotReceived {
        from: Id,
        upto: u64,
        bytes: u64,
        took_ms: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Another member answers.
    LinkUp { peer: Id },
    /// Another member does not answer.
    LinkDown { peer: Id, why: String },
    /// The disk took long; `more`: others that did, since the last record of it.
    SlowSync { of: Synced, took_ms: u64, more: u64 },
}

impl Event {
    /// Its name, as in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::Started { .. } => "started",
            Event::Serving {} => "serving",
            Event::Stopping {} => "stopping",
            Event::Failed { .. } => "failed",
            Event::Role { .. } => "role",
            Event::Term { .. } => "term",
            Event::Campaign { .. } => "campaign",
            Event::Vote { .. } => "vote",
            Event::Asked { .. } => "asked",
            Event::LeaderElected { .. } => "leader-elected",
            Event::LeaderBack { .. } => "leader-back",
            Event::LeaderLost { .. } => "leader-lost",
            Event::HandingOver { .. } => "handing-over",
            Event::Membership { .. } => "membership",
            Event::SnapshotTaken { .. } => "snapshot-taken",
            Event::SnapshotSent { .. } => "snapshot-sent",
            Event::SnapshotReceived { .. } => "snapshot-received",
            Event::LinkUp { .. } => "link-up",
            Event::LinkDown { .. } => "link-down",
            Event::SlowSync { .. } => "slow-sync",
        }
    }

    /// Whether somebody who looks after the cluster should see it.
    pub fn is_trouble(&self) -> bool {
        match self {
            Event::LeaderLost { .. }
            | Event::LinkDown { .. }
            | Event::SlowSync { .. }
            | Event::Failed { .. } => true,
            Event::SnapshotSent { why, .. } | Event::SnapshotReceived { why, .. } => why.is_some(),
            Event::Started { left, .. } => *left == Left::PowerCut,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_called_as_its_json_is() {
        let refused = Event::Vote {
            voter: Id(3),
            term: 7,
            pre: true,
            answer: Answer::Refused,
            refusal: Some(Refusal::HasLeader),
            why: None,
            took_ms: 1,
        };
        for event in [
            refused,
            Event::Serving {},
            Event::LeaderBack {
                leader: Id(1),
                term: 2,
            },
            Event::SlowSync {
                of: Synced::Log,
                took_ms: 200,
                more: 0,
            },
        ] {
            let json = serde_json::to_value(&event).expect("JSON");
            assert_eq!(json["kind"], event.kind());
        }
    }
}
