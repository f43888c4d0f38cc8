//! Our own encodings of what Raft keeps and sends: entries, votes, log ids, membership.
//!
//! openraft's serde derives promise no stable format, and an entry passes through four places (the leader's log,
//! the wire, the follower's log, apply). So an [`Entry`] carries its encoding with it: the leader encodes once, in
//! `append`; the same bytes go to disk, to each follower, and to their disks.
//!
//! ```text
//! entry      = term u64 | leader u64 | index u64 | kind u8 | body         (little-endian)
//! kind, body = 0 blank, nothing | 1 command, an encoded pontoon.command.Command | 2 membership, as below
//! vote       = term u64 | member u64 | committed u8
//! log id     = term u64 | leader u64 | index u64
//! membership = protobuf Membership: the voter sets (two while joint), then every member with its name, URLs and role
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::entry::RaftEntry;
use openraft::{EntryPayload, Membership};
use prost::Message;

use crate::pb::pontoon::peer;

/// Who led when an entry was proposed: term and member.
pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
/// Names an entry: its leader and its index.
pub type LogId = openraft::LogId<LeaderId>;
/// A member's promise to follow nobody older.
pub type Vote = openraft::impls::Vote<LeaderId>;
/// A membership and the entry that it came with.
pub type StoredMembership = openraft::StoredMembership<LeaderId, u64, Node>;

/// A command as it stands in the log: an encoded `pontoon.command.Command`.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandBytes(pub Bytes);

impl fmt::Debug for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

/// A member as Raft knows it, unchanged from when it was added. What became of it since (its addresses now) is in the
/// replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `--name`; empty if it was added before it started.
    pub name: String,
    /// Where peers reach it; names are resolved anew on each connect.
    pub peer_urls: Vec<String>,
    /// What it was added for.
    pub role: Role,
}

/// What a node was added for (see [`super::membership`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A voter from the beginning.
    #[default]
    Founder,
    /// Added as a voter: gets its vote when it has caught up.
    Added,
    /// Added itself (`--join`): a learner, gets a vote when it has caught up.
    Joining,
    /// Takes the vote of this member, which lost its disk, when it has caught up.
    Replacing(u64),
    /// A learner until it is promoted by hand.
    Learner,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.peer_urls.join(","))
    }
}

/// What an entry carries.
pub type Payload = EntryPayload<CommandBytes, u64, Node>;

/// One entry of the Raft log, with its encoding once it has one.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it stands.
    pub log_id: LogId,
    /// What it says.
    pub payload: Payload,
    encoded: Option<Bytes>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.log_id == other.log_id && self.payload == other.payload
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.log_id, self.payload)
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = LeaderId;
    type Payload = Payload;

    fn new(log_id: LogId, payload: Payload) -> Self {
        Entry {
            log_id,
            payload,
            encoded: None,
        }
    }

    fn log_id_parts(&self) -> (&LeaderId, u64) {
        (&self.log_id.leader_id, self.log_id.index)
    }

    fn set_log_id(&mut self, log_id: LogId) {
        self.log_id = log_id;
        self.encoded = None;
    }

    fn get_membership(&self) -> Option<Membership<u64, Node>> {
        match &self.payload {
            EntryPayload::Membership(membership) => Some(membership.clone()),
            _ => None,
        }
    }
}

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;
const HEADER: usize = 25;

impl Entry {
    /// The bytes that stand in the log and go over the wire; made at the first call, shared from then on.
    pub fn encoded(&mut self) -> Bytes {
        if let Some(bytes) = &self.encoded {
            return bytes.clone();
        }
        let bytes = encode(&self.log_id, &self.payload);
        self.encoded = Some(bytes.clone());
        bytes
    }

    /// Reads what [`Entry::encoded`] wrote; commands share the given bytes.
    pub fn decode(bytes: Bytes) -> io::Result<Entry> {
        if bytes.len() < HEADER {
            return Err(invalid("entry shorter than its header"));
        }
        let mut header = &bytes[..HEADER];
        let log_id = get_log_id(&mut header);
        let kind = header.get_u8();
        let body = bytes.slice(HEADER..);
        let payload = match kind {
            BLANK => EntryPayload::Blank,
            COMMAND => EntryPayload::Normal(CommandBytes(body)),
            MEMBERSHIP => EntryPayload::Membership(decode_membership(body)?),
            other => return Err(invalid(&format!("entry of unknown kind {other}"))),
        };
        Ok(Entry {
            log_id,
            payload,
            encoded: Some(bytes),
        })
    }
}

fn encode(log_id: &LogId, payload: &Payload) -> Bytes {
    let (kind, body) = match payload {
        EntryPayload::Blank => (BLANK, Bytes::new()),
        EntryPayload::Normal(command) => (COMMAND, command.0.clone()),
        EntryPayload::Membership(membership) => (MEMBERSHIP, encode_membership(membership)),
    };
    let mut out = BytesMut::with_capacity(HEADER + body.len());
    put_log_id(&mut out, log_id);
    out.put_u8(kind);
    out.put(body);
    out.freeze()
}

fn put_log_id(out: &mut BytesMut, log_id: &LogId) {
    out.put_u64_le(log_id.leader_id.term);
    out.put_u64_le(log_id.leader_id.node_id);
    out.put_u64_le(log_id.index);
}

fn get_log_id(buf: &mut &[u8]) -> LogId {
    let (term, leader, index) = (buf.get_u64_le(), buf.get_u64_le(), buf.get_u64_le());
    new_log_id(term, leader, index)
}

/// The id of the entry at `index`, proposed by `leader` in `term`.
pub fn new_log_id(term: u64, leader: u64, index: u64) -> LogId {
    LogId::new(leader_id(term, leader), index)
}

/// The member that leads in this term.
pub fn leader_id(term: u64, leader: u64) -> LeaderId {
    LeaderId {
        term,
        node_id: leader,
    }
}

/// A log id as the log and snapshot files keep it.
pub fn encode_log_id(log_id: &LogId) -> Bytes {
    let mut out = BytesMut::with_capacity(24);
    put_log_id(&mut out, log_id);
    out.freeze()
}

/// Reads what [`encode_log_id`] wrote.
pub fn decode_log_id(bytes: &[u8]) -> io::Result<LogId> {
    let mut buf = bytes;
    if buf.len() != 24 {
        return Err(invalid("log id of the wrong length"));
    }
    Ok(get_log_id(&mut buf))
}

/// A vote as the log keeps it.
pub fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.node_id);
    out.put_u8(u8::from(vote.committed));
    out.freeze()
}

/// Reads what [`encode_vote`] wrote.
pub fn decode_vote(bytes: &[u8]) -> io::Result<Vote> {
    let mut buf = bytes;
    if buf.len() != 17 {
        return Err(invalid("vote of the wrong length"));
    }
    let (term, member, committed) = (buf.get_u64_le(), buf.get_u64_le(), buf.get_u8() != 0);
    Ok(if committed {
        Vote::new_committed(term, member)
    } else {
        Vote::new(term, member)
    })
}

/// A membership with the log id that it came with, as snapshots and the state's mark keep it.
pub fn encode_stored_membership(membership: &StoredMembership) -> Bytes {
    peer::StoredMembership {
        log_id: membership.log_id().as_ref().map(to_wire_log_id),
        membership: encode_membership(membership.membership()),
    }
    .encode_to_vec()
    .into()
}

/// Reads what [`encode_stored_membership`] wrote.
pub fn decode_stored_membership(bytes: Bytes) -> io::Result<StoredMembership> {
    let stored = peer::StoredMembership::decode(bytes).map_err(io::Error::other)?;
    let membership = decode_membership(stored.membership)?;
    Ok(StoredMembership::new(
        stored.log_id.map(from_wire_log_id),
        membership,
    ))
}

fn encode_membership(membership: &Membership<u64, Node>) -> Bytes {
    let voters = membership.get_joint_config().iter();
    peer::Membership {
        configs: voters
            .map(|ids| peer::Voters {
                ids: ids.iter().copied().collect(),
            })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| to_wire_node(*id, node))
            .collect(),
    }
    .encode_to_vec()
    .into()
}

fn decode_membership(bytes: Bytes) -> io::Result<Membership<u64, Node>> {
    let wire = peer::Membership::decode(bytes).map_err(io::Error::other)?;
    let configs: Vec<BTreeSet<u64>> = wire
        .configs
        .into_iter()
        .map(|c| c.ids.into_iter().collect())
        .collect();
    let nodes: BTreeMap<u64, Node> = wire
        .nodes
        .into_iter()
        .map(|node| (node.id, from_wire_node(node)))
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(io::Error::other)
}

fn to_wire_node(id: u64, node: &Node) -> peer::Node {
    let (role, replaces) = match node.role {
        Role::Founder => (peer::Role::Founder, 0),
        Role::Added => (peer::Role::Added, 0),
        Role::Joining => (peer::Role::Joining, 0),
        Role::Replacing(old) => (peer::Role::Replacing, old),
        Role::Learner => (peer::Role::Learner, 0),
    };
    peer::Node {
        id,
        name: node.name.clone(),
        peer_urls: node.peer_urls.clone(),
        role: role.into(),
        replaces,
    }
}

fn from_wire_node(node: peer::Node) -> Node {
    Node {
        role: match node.role() {
            peer::Role::Founder => Role::Founder,
            peer::Role::Added => Role::Added,
            peer::Role::Joining => Role::Joining,
            peer::Role::Replacing => Role::Replacing(node.replaces),
            peer::Role::Learner => Role::Learner,
        },
        name: node.name,
        peer_urls: node.peer_urls,
    }
}

/// A log id for the wire.
pub fn to_wire_log_id(log_id: &LogId) -> peer::LogId {
    peer::LogId {
        term: log_id.leader_id.term,
        leader: log_id.leader_id.node_id,
        index: log_id.index,
    }
}

/// A log id from the wire.
pub fn from_wire_log_id(wire: peer::LogId) -> LogId {
    new_log_id(wire.term, wire.leader, wire.index)
}

/// A vote for the wire.
pub fn to_wire_vote(vote: &Vote) -> peer::Vote {
    peer::Vote {
        term: vote.leader_id.term,
        member: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

/// A vote from the wire.
pub fn from_wire_vote(wire: peer::Vote) -> Vote {
    if wire.committed {
        Vote::new_committed(wire.term, wire.member)
    } else {
        Vote::new(wire.term, wire.member)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(payload: Payload) {
        let mut entry = Entry::new(new_log_id(3, 7, 42), payload);
        let bytes = entry.encoded();
        let mut back = Entry::decode(bytes.clone()).expect("what was encoded is read back");
        assert_eq!(back, entry);
        assert_eq!(back.encoded(), bytes, "a decoded entry keeps its bytes");
    }

    #[test]
    fn entries_are_read_back_as_they_were() {
        round_trip(EntryPayload::Blank);
        round_trip(EntryPayload::Normal(CommandBytes(Bytes::from_static(b"command"))));
        let roles = [
            Role::Founder,
            Role::Added,
            Role::Joining,
            Role::Replacing(9),
            Role::Learner,
        ];
        let nodes = roles.into_iter().zip(1..).map(|(role, id)| {
            let name = format!("n{id}");
            let peer_urls = vec![format!("http://n{id}")];
            (
                id,
                Node {
                    name,
                    peer_urls,
                    role,
                },
            )
        });
        let nodes: BTreeMap<u64, Node> = nodes.collect();
        let joint = vec![BTreeSet::from([1, 2]), BTreeSet::from([1, 3])];
        let membership = Membership::new(joint, nodes).expect("every voter has a node");
        round_trip(EntryPayload::Membership(membership.clone()));
        let stored = StoredMembership::new(Some(new_log_id(1, 1, 1)), membership);
        assert_eq!(
            decode_stored_membership(encode_stored_membership(&stored)).expect("read back"),
            stored
        );
        let none = StoredMembership::default();
        assert_eq!(
            decode_stored_membership(encode_stored_membership(&none)).expect("read back"),
            none
        );
    }

    #[test]
    fn votes_and_log_ids_are_read_back_as_they_were() {
        for vote in [Vote::new(4, 9), Vote::new_committed(4, 9)] {
            assert_eq!(decode_vote(&encode_vote(&vote)).expect("read back"), vote);
            assert_eq!(from_wire_vote(to_wire_vote(&vote)), vote);
        }
        let log_id = new_log_id(1, 2, 3);
        assert_eq!(decode_log_id(&encode_log_id(&log_id)).expect("read back"), log_id);
    }

    #[test]
    fn bytes_that_are_no_entry_are_refused() {
        for bytes in [&b""[..], &[0u8; 24], &[9u8; 25]] {
            assert!(Entry::decode(Bytes::copy_from_slice(bytes)).is_err());
        }
        assert!(decode_vote(&[0; 16]).is_err());
        assert!(decode_log_id(&[0; 25]).is_err());
    }
}
