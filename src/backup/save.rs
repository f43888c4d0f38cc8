//! Writing a backup.

use std::io::{self, Seek, Write};
use std::ops::Range;

use bytes::Bytes;
use prost::Message;
use serde_json::json;

use super::bolt::Writer;
use super::{
    AUTH, AUTH_ENABLED, AUTH_REVISION, FINISHED, KEY, LEASE, Lease, META, ROLES, SCHEDULED, TOMBSTONE, USERS,
    revision_key, text,
};
use crate::mvcc::{Revision, SnapshotSource, Version};
use crate::pb::etcdserverpb::Member;
use crate::pb::pontoon::command::{AuthStatus, LeaseRecord};
use crate::storage::keys;

/// The version whose files ours are like.
const CLUSTER_VERSION: &str = "3.5.0";

/// Where a backup was taken: told to etcd's tools, left behind by a restore.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Raft's term.
    pub term: u64,
    /// Index of the last entry that is in it.
    pub index: u64,
    /// The members.
    pub members: Vec<Member>,
}

type Pair = (Bytes, Bytes);

/// Writes the database of a backup, without its checksum; its length in bytes. `out` should be buffered: what is
/// written are pages of 4 KiB. Only a few of them are in memory at a time.
pub fn save(out: impl Write + Seek, source: &SnapshotSource, origin: &Origin) -> io::Result<u64> {
    let mut writer = Writer::new(out)?;
    let alarms = source
        .small(keys::alarms())
        .map(|(_, alarm)| (alarm.clone(), Bytes::new()));
    writer.bucket("alarm", sorted(alarms))?;
    writer.bucket(AUTH, auth(source)?.into_iter().map(Ok))?;
    writer.bucket(ROLES, named(source, keys::roles()))?;
    writer.bucket(USERS, named(source, keys::users()))?;
    let version = (text("clusterVersion"), text(CLUSTER_VERSION));
    writer.bucket("cluster", std::iter::once(Ok(version)))?;
    let versions = source
        .versions()
        .map(|version| version.map(pair).map_err(io::Error::other));
    writer.bucket(KEY, versions)?;
    writer.bucket(LEASE, source.small(keys::leases()).map(lease))?;
    writer.bucket("members", sorted(origin.members.iter().map(member)))?;
    writer.bucket(
        "members_removed",
        sorted(source.small(keys::removed_members()).map(removed)),
    )?;
    writer.bucket(META, sorted(meta(source, origin).into_iter()))?;
    writer.finish()
}

fn sorted(pairs: impl Iterator<Item = Pair>) -> impl Iterator<Item = io::Result<Pair>> {
    let mut pairs: Vec<Pair> = pairs.collect();
    pairs.sort();
    pairs.into_iter().map(Ok)
}

fn pair(version: Version) -> Pair {
    let mut key = revision_key(version.revision);
    if version.tombstone {
        key.extend_from_slice(&[TOMBSTONE]);
    }
    let kv = match version.tombstone {
        true => crate::pb::mvccpb::KeyValue {
            key: version.kv.key,
            ..Default::default()
        },
        false => version.kv,
    };
    (key.freeze(), kv.encode_to_vec().into())
}

/// Records whose keys are a prefix and a name.
fn named(source: &SnapshotSource, space: Range<Bytes>) -> impl Iterator<Item = io::Result<Pair>> + '_ {
    source
        .small(space)
        .map(|(key, value)| Ok((key.slice(1..), value.clone())))
}

fn auth(source: &SnapshotSource) -> io::Result<Vec<Pair>> {
    let key = keys::auth_status();
    let Some((_, status)) = source.small(key.clone()..keys::after(&key)).next() else {
        return Ok(Vec::new());
    };
    let status = AuthStatus::decode(status.clone()).map_err(io::Error::other)?;
    let revision = Bytes::copy_from_slice(&status.revision.to_be_bytes());
    let enabled = Bytes::from(vec![u8::from(status.enabled)]);
    Ok(vec![
        (text(AUTH_ENABLED), enabled),
        (text(AUTH_REVISION), revision),
    ])
}

fn lease((key, value): &Pair) -> io::Result<Pair> {
    let id = keys::parse_lease(key).ok_or_else(|| io::Error::other("a lease has a strange key"))?;
    let record = LeaseRecord::decode(value.clone()).map_err(io::Error::other)?;
    let lease = Lease {
        id,
        ttl: record.ttl,
        remaining_ttl: record.remaining,
    };
    Ok((key.slice(1..), lease.encode_to_vec().into()))
}

fn member(member: &Member) -> Pair {
    let mut fields = json!({
        "id": member.id,
        "peerURLs": member.peer_ur_ls,
        "name": member.name,
        "clientURLs": member.client_ur_ls,
    });
    if member.is_learner {
        fields["isLearner"] = json!(true);
    }
    (format!("{:x}", member.id).into(), fields.to_string().into())
}

fn removed((key, _): &Pair) -> Pair {
    // Behind the prefix stands the id.
    let id = key[1..].iter().fold(0, |id, byte| id << 8 | u64::from(*byte));
    (format!("{id:x}").into(), text("removed"))
}

fn meta(source: &SnapshotSource, origin: &Origin) -> Vec<Pair> {
    let number = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
    let (learners, voters): (Vec<&Member>, Vec<&Member>) =
        origin.members.iter().partition(|member| member.is_learner);
    let ids = |members: Vec<&Member>| members.iter().map(|member| member.id).collect::<Vec<u64>>();
    let mut conf_state = json!({"voters": ids(voters), "auto_leave": false});
    if !learners.is_empty() {
        conf_state["learners"] = json!(ids(learners));
    }
    let mut pairs = vec![
        (text("confState"), conf_state.to_string().into()),
        (text("consistent_index"), number(origin.index)),
        (text("term"), number(origin.term)),
    ];
    if source.compacted() > 0 {
        let compacted = Revision {
            main: source.compacted(),
            sub: 0,
        };
        let compacted = revision_key(compacted).freeze();
        // All that is not to be read any more is left out: the compaction is finished.
        pairs.extend([(text(SCHEDULED), compacted.clone()), (text(FINISHED), compacted)]);
    }
    pairs
}
