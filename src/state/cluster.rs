//! What the cluster knows of its members beyond their votes: names and addresses, as they published them.

use bytes::Bytes;
use prost::Message;

use crate::mvcc::{Store, Write};
use crate::pb::pontoon::command::SetMember;
use crate::storage::keys;

/// Records a member.
pub fn set(write: &mut Write<'_>, member: &SetMember) {
    write.set_record(keys::member(member.id), Some(Bytes::from(member.encode_to_vec())));
}

/// Forgets a member.
pub fn remove(write: &mut Write<'_>, id: u64) {
    let key = keys::member(id);
    if write.record(&key).is_some() {
        write.set_record(key, None);
    }
}

/// All members recorded, by id.
pub fn members(store: &Store) -> Vec<SetMember> {
    let records = store.records(keys::members());
    // Written by `set`: a record that can't be read was written by a newer version, and is left out.
    records
        .into_iter()
        .filter_map(|(_, value)| SetMember::decode(value).ok())
        .collect()
}
