//! How a member stands, in one piece of JSON: for whoever looks at the cluster.
//!
//! Sampled when somebody asks, and at no other time. There is no value in it, and a key only while there is no access
//! control: the same may be seen by whoever may see the metrics.

use std::collections::BTreeMap;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::async_runtime::WatchReceiver;
use prost::Message;
use serde::Serialize;

use super::Entry;
use super::observer;
use super::replica::Replica;
use crate::journal::{Id, Role};
use crate::pb::pontoon::command::Command;
use crate::pb::pontoon::command::command::Op;

/// Entries at the end of the log that are shown.
const TAIL: u64 = 14;
/// Letters of a key that are shown.
const KEY: usize = 40;

/// How one member stands.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Tells this run of it from others.
    pub run: u64,
    /// Its own clock, in milliseconds since 1970.
    pub now: u64,
    /// What it is to the others.
    pub role: Role,
    /// Raft's term.
    pub term: u64,
    /// Whose vote it holds: the leader's, or the candidate's that it voted for.
    pub voted_for: Id,
    /// The leader that it hears from.
    pub leader: Option<Id>,
    /// How long ago that was, or, for a leader, how long ago a majority answered; milliseconds.
    pub silence_ms: Option<u64>,
    /// Index of the first entry in the log.
    pub first: u64,
    /// Of the last.
    pub last: u64,
    /// Of the last that it knows to be committed.
    pub committed: u64,
    /// Of the last that is applied.
    pub applied: u64,
    /// Up to where the newest snapshot goes.
    pub snapshot: u64,
    /// The store's revision.
    pub revision: i64,
    /// Keys in the store.
    pub keys: usize,
    /// Bytes of the applied state.
    pub bytes: u64,
    /// Requests of clients that it has answered.
    pub requests: u64,
    /// Up to which index the others' logs are known to be this leader's.
    pub matched: BTreeMap<String, u64>,
    /// What it knows of the way to each of the others.
    pub links: BTreeMap<String, LinkFigures>,
    /// The end of its log.
    pub tail: Vec<TailEntry>,
}

/// The way to another member.
#[derive(Debug, Serialize)]
pub struct LinkFigures {
    /// Whether it answers, if that is known.
    pub up: Option<bool>,
    /// There and back, in microseconds.
    pub rtt_us: Option<u64>,
}

/// An entry of the log.
#[derive(Debug, PartialEq, Serialize)]
pub struct TailEntry {
    /// Its index.
    pub i: u64,
    /// Its term.
    pub t: u64,
    /// What it is.
    pub what: &'static str,
    /// The key, if it is about one, and everybody may see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Replica {
    /// How this member stands.
    pub fn figures(&self) -> Figures {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let (counted, reader) = (self.metrics(), self.reader());
        let index = |log_id: Option<super::LogId>| log_id.map_or(0, |log_id| log_id.index);
        let last = metrics.last_log_index.unwrap_or(0);
        let hex = |id: u64| format!("{id:x}");
        let link = |(id, exchange): (&u64, &std::sync::Arc<crate::metrics::traffic::Exchange>)| {
            let rtt = exchange.last_round_trip();
            let figures = LinkFigures {
                up: self.peers().is_up(*id),
                rtt_us: rtt.map(|rtt| rtt.as_micros() as u64),
            };
            (hex(*id), figures)
        };
        let answered = counted
            .all_calls()
            .iter()
            .map(|calls| calls.handled.iter().map(|code| code.get()).sum::<u64>())
            .sum();
        Figures {
            run: counted.journal.run(),
            now: counted.journal.now(),
            role: observer::role(metrics.state),
            term: metrics.current_term,
            voted_for: Id(metrics.vote.leader_id.node_id),
            leader: metrics.current_leader.filter(|_| self.is_in_touch()).map(Id),
            silence_ms: self.silence().map(|silence| silence.as_millis() as u64),
            first: metrics.purged.map_or(0, |log_id| log_id.index + 1),
            last,
            committed: index(metrics.local_committed),
            applied: index(metrics.last_applied),
            snapshot: index(metrics.snapshot),
            revision: reader.revision(),
            keys: reader.key_count(),
            bytes: reader.size(),
            requests: answered,
            matched: metrics
                .replication
                .unwrap_or_default()
                .into_iter()
                .map(|(id, at)| (hex(id), index(at)))
                .collect(),
            links: counted.traffic.all().iter().map(link).collect(),
            tail: self.tail(last),
        }
    }

    /// The end of the log. Entries that go meanwhile are left out.
    fn tail(&self, last: u64) -> Vec<TailEntry> {
        let with_keys = !self.reader().auth().enabled();
        let from = (last + 1).saturating_sub(TAIL);
        let entries = self.log().entries(from, last + 1).unwrap_or_default();
        entries.iter().map(|entry| describe(entry, with_keys)).collect()
    }
}

fn describe(entry: &Entry, with_key: bool) -> TailEntry {
    let (what, key) = match &entry.payload {
        EntryPayload::Blank => ("a leader begins", None),
        EntryPayload::Membership(_) => ("membership", None),
        EntryPayload::Normal(command) => match Command::decode(command.0.clone()) {
            Ok(command) => op(command.op),
            Err(_) => ("unreadable", None),
        },
    };
    TailEntry {
        i: entry.log_id.index,
        t: entry.log_id.leader_id.term,
        what,
        key: key
            .filter(|_| with_key)
            .map(|key| String::from_utf8_lossy(&key).chars().take(KEY).collect()),
    }
}

/// What a command is called, and the key that it is about.
fn op(op: Option<Op>) -> (&'static str, Option<Bytes>) {
    match op {
        Some(Op::Put(put)) => ("put", Some(put.key)),
        Some(Op::DeleteRange(delete)) => ("delete", Some(delete.key)),
        Some(Op::Txn(_)) => ("txn", None),
        Some(Op::Compact(_)) => ("compact", None),
        Some(Op::SetMember(_) | Op::UpdateMember(_) | Op::ClaimMember(_)) => ("member", None),
        Some(Op::Auth(_)) => ("access", None),
        Some(Op::Authenticate(_)) => ("login", None),
        Some(Op::LeaseGrant(_)) => ("lease begins", None),
        Some(Op::LeaseRevoke(_)) => ("lease revoked", None),
        Some(Op::LeaseExpire(_)) => ("leases expire", None),
        Some(Op::LeaseCheckpoint(_)) => ("leases noted", None),
        Some(Op::Alarm(_)) => ("alarm", None),
        None => ("nothing", None),
    }
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry;

    use super::*;
    use crate::pb::etcdserverpb::PutRequest;
    use crate::raft::CommandBytes;
    use crate::raft::entry::new_log_id;

    #[test]
    fn an_entry_is_shown_with_its_key_only_if_everybody_may_see_it() {
        let put = PutRequest {
            key: "colour".repeat(20).into(),
            value: "secret".into(),
            ..PutRequest::default()
        };
        let command = Command {
            op: Some(Op::Put(put)),
            ..Command::default()
        };
        let payload = EntryPayload::Normal(CommandBytes(command.encode_to_vec().into()));
        let entry = Entry::new(new_log_id(3, 1, 9), payload);
        let shown = serde_json::to_string(&describe(&entry, true)).expect("JSON");
        assert!(
            shown.starts_with(r#"{"i":9,"t":3,"what":"put","key":"colourcolour"#),
            "{shown}"
        );
        assert!(shown.len() < 90 && !shown.contains("secret"), "{shown}");
        assert_eq!(describe(&entry, false).key, None);
    }
}
