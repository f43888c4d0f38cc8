//! Alarms: what an operator must look at, and what is refused until somebody has.
//!
//! An alarm is a kind and the member that it is about, kept as a small record. They are raised and cleared through
//! the log, so all members have the same ones at the same entry, and refuse the same commands:
//!
//! | alarm | refused while any member has it |
//! |---|---|
//! | NOSPACE | whatever adds data: puts, transactions that hold a put in any branch, new leases |
//! | CORRUPT | every read and write of keys, leases included |
//!
//! Why one is raised (a quota, a full disk, a checksum that differs) is no matter of the state: see `server/space.rs`
//! and `server/corruption.rs`. None goes by itself: space may be tight again at once, and corruption never heals.

use bytes::Bytes;
use prost::Message;

use super::check::cost;
use super::header;
use crate::error::Error;
use crate::mvcc::{Store, Versions, Write};
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmMember, AlarmRequest, AlarmResponse, AlarmType};
use crate::pb::pontoon::command::command::Op;
use crate::storage::keys;

/// Raises, lists or clears; answers with the alarms concerned, as etcd does.
pub fn apply(write: &mut Write<'_>, request: &AlarmRequest) -> AlarmResponse {
    let concerned = AlarmMember {
        member_id: request.member_id,
        alarm: request.alarm,
    };
    // NONE, and kinds of a newer version, have no key.
    let key = kind(request.alarm()).map(|kind| keys::alarm(kind, request.member_id));
    let alarms = match (request.action(), key) {
        (AlarmAction::Get, _) => list(write, request.alarm()),
        (AlarmAction::Activate, Some(key)) => {
            write.set_record(key, Some(Bytes::from(concerned.encode_to_vec())));
            vec![concerned]
        }
        (AlarmAction::Deactivate, Some(key)) if write.record(&key).is_some() => {
            write.set_record(key, None);
            vec![concerned]
        }
        _ => Vec::new(),
    };
    AlarmResponse {
        header: header(write.revision()),
        alarms,
    }
}

/// Whether a command may be carried out in view of the alarms.
pub fn admit(write: &Write<'_>, op: Option<&Op>) -> Result<(), Error> {
    let active =
        |alarm| kind(alarm).is_some_and(|kind| write.records(keys::alarms_of(kind)).next().is_some());
    refusal(op, &active)
}

/// The same, asked before there is a log entry.
pub fn admit_early(store: &Store, op: &Op) -> Result<(), Error> {
    refusal(Some(op), &|alarm| is_active(store, alarm))
}

fn refusal(op: Option<&Op>, active: &dyn Fn(AlarmType) -> bool) -> Result<(), Error> {
    match op {
        Some(op) if is_about_keys(op) && active(AlarmType::Corrupt) => Err(Error::Corrupt),
        Some(op) if cost(op) > 0 && active(AlarmType::Nospace) => Err(Error::NoSpace),
        _ => Ok(()),
    }
}

/// Members, alarms and the like may still change when the keys can't be trusted; and leases run out.
fn is_about_keys(op: &Op) -> bool {
    matches!(
        op,
        Op::Put(_)
            | Op::DeleteRange(_)
            | Op::Txn(_)
            | Op::Compact(_)
            | Op::LeaseGrant(_)
            | Op::LeaseRevoke(_)
    )
}

/// Whether any member has an alarm of this kind.
pub fn is_active(store: &Store, alarm: AlarmType) -> bool {
    kind(alarm).is_some_and(|kind| store.has_record(keys::alarms_of(kind)))
}

/// All alarms, by kind, then by member.
pub fn alarms(store: &Store) -> Vec<AlarmMember> {
    let records = store.records(keys::alarms());
    records.iter().filter_map(|(_, value)| decode(value)).collect()
}

/// Those of one kind; NONE stands for all.
fn list(write: &Write<'_>, alarm: AlarmType) -> Vec<AlarmMember> {
    let range = kind(alarm).map_or(keys::alarms(), keys::alarms_of);
    write
        .records(range)
        .filter_map(|(_, value)| decode(value))
        .collect()
}

/// Written by `apply`: a record that can't be read was written by a newer version, and is left out.
fn decode(value: &Bytes) -> Option<AlarmMember> {
    AlarmMember::decode(value.clone()).ok()
}

fn kind(alarm: AlarmType) -> Option<u8> {
    match alarm {
        AlarmType::None => None,
        AlarmType::Nospace | AlarmType::Corrupt => Some(alarm as u8),
    }
}
