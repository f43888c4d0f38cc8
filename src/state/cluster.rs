//! What the cluster knows of its members: names and addresses, who was removed, who lives in a place made for somebody.
//!
//! **One source of truth.** Which members there are, and which of them are learners, is told by Raft's membership
//! alone: whenever an entry with a membership is applied, [`set_membership`] makes the records follow it. A member
//! that is no longer in it loses its record and leaves a mark, so that its id never comes back. Every other command
//! only fills in a record that is there, so one that comes late, or is replayed, brings nobody back. A membership
//! can: that of a member that had been removed and recovered as the only one that is left.
//!
//! ```text
//! membership {1,2}     records 1 "n1", 2 "n2"
//! membership {1,2,3}   3 is added without a name and unclaimed: a place, not started yet
//! claim 3 by 77        the process 77 lives there; a claim by 78 is refused
//! set 3 "n3"           it has started
//! membership {1,3}     2 is gone and marked removed; "set 2" means nothing from now on
//! ```
//!
//! **Who says where a member is.** The member, when what it says changes (it was started with other flags); else
//! whoever changed it last by MemberUpdate. So an update survives a restart of the member with its old flags.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use crate::error::Error;
use crate::mvcc::{Store, Write};
use crate::pb::pontoon::command::{ClaimMember, MemberRecord, SetMember, UpdateMember};
use crate::storage::keys;

/// One node of a membership, as the state needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The member's id.
    pub id: u64,
    /// Empty for a place that nobody has started in.
    pub name: String,
    /// Where the peers reach it, as it was added.
    pub peer_urls: Vec<String>,
    /// Whether it is listed as a learner.
    pub is_learner: bool,
    /// Who lives there, 0 for nobody yet.
    pub claimant: u64,
}

/// From now on the members are these.
pub fn set_membership(write: &mut Write<'_>, seats: &[Seat]) {
    let stay: BTreeSet<u64> = seats.iter().map(|seat| seat.id).collect();
    for gone in records(write).iter().filter(|record| !stay.contains(&record.id)) {
        write.set_record(keys::member(gone.id), None);
        write.set_record(keys::removed(gone.id), Some(Bytes::new()));
    }
    for seat in seats {
        match record(write, seat.id) {
            None => {
                store(write, &new_record(seat));
                write.set_record(keys::removed(seat.id), None);
            }
            Some(record) if record.is_learner != seat.is_learner => {
                let is_learner = seat.is_learner;
                store(write, &MemberRecord { is_learner, ..record });
            }
            Some(_) => {}
        }
    }
}

/// The records of a new cluster's members, for the snapshot that it begins with.
pub fn member_records(seats: &[Seat]) -> Vec<Bytes> {
    let record =
        |seat: &Seat| crate::mvcc::small_record(&keys::member(seat.id), &new_record(seat).encode_to_vec());
    seats.iter().map(record).collect()
}

fn new_record(seat: &Seat) -> MemberRecord {
    MemberRecord {
        id: seat.id,
        name: seat.name.clone(),
        peer_urls: seat.peer_urls.clone(),
        is_learner: seat.is_learner,
        claimant: seat.claimant,
        ..MemberRecord::default()
    }
}

/// A member tells its name and addresses.
pub fn set(write: &mut Write<'_>, told: &SetMember) {
    let Some(mut record) = record(write, told.id) else {
        return;
    };
    if record.told_peer_urls != told.peer_urls {
        record.peer_urls.clone_from(&told.peer_urls);
        record.told_peer_urls.clone_from(&told.peer_urls);
    }
    record.name.clone_from(&told.name);
    record.client_urls.clone_from(&told.client_urls);
    store(write, &record);
}

/// An operator tells where a member is.
pub fn update(write: &mut Write<'_>, update: &UpdateMember) -> Result<(), Error> {
    let mut record = record(write, update.id).ok_or(Error::MemberNotFound)?;
    let taken = |other: &MemberRecord| {
        other.id != update.id && other.peer_urls.iter().any(|url| update.peer_urls.contains(url))
    };
    if records(write).iter().any(taken) {
        return Err(Error::PeerUrlsExist);
    }
    record.peer_urls.clone_from(&update.peer_urls);
    store(write, &record);
    Ok(())
}

/// A process takes a place that nobody has.
pub fn claim(write: &mut Write<'_>, claim: &ClaimMember) -> Result<(), Error> {
    let mut record = record(write, claim.id).ok_or(Error::MemberNotFound)?;
    if record.claimant != 0 && record.claimant != claim.claimant {
        return Err(Error::MemberExists);
    }
    record.claimant = claim.claimant;
    store(write, &record);
    Ok(())
}

/// All members, by id.
pub fn members(state: &Store) -> Vec<MemberRecord> {
    let records = state.records(keys::members());
    records.into_iter().map(|(_, value)| decode(value)).collect()
}

/// Whether there was such a member, which was removed.
pub fn is_removed(state: &Store, id: u64) -> bool {
    let key = keys::removed(id);
    let after = Bytes::from([&key[..], &[0]].concat());
    !state.records(key..after).is_empty()
}

fn record(write: &Write<'_>, id: u64) -> Option<MemberRecord> {
    write.record(&keys::member(id)).cloned().map(decode)
}

fn records(write: &Write<'_>) -> Vec<MemberRecord> {
    let records = write.records(keys::members());
    records.map(|(_, value)| decode(value.clone())).collect()
}

fn store(write: &mut Write<'_>, record: &MemberRecord) {
    write.set_record(keys::member(record.id), Some(Bytes::from(record.encode_to_vec())));
}

fn decode(value: Bytes) -> MemberRecord {
    MemberRecord::decode(value).expect("members' records are written by `store` alone")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::{Options, Reader, State};
    use crate::storage::Memory;

    fn seat(id: u64, name: &str) -> Seat {
        Seat {
            id,
            name: name.to_string(),
            peer_urls: vec![format!("http://p{id}")],
            is_learner: false,
            claimant: if name.is_empty() { 0 } else { id },
        }
    }

    fn told(id: u64, url: &str) -> SetMember {
        SetMember {
            id,
            name: format!("n{id}"),
            peer_urls: vec![url.to_string()],
            client_urls: vec![format!("http://c{id}")],
        }
    }

    /// A state, and a sentence for each member: what the list says of it.
    struct Story {
        state: State,
        reader: Reader,
    }

    impl Story {
        fn begin() -> Story {
            let (state, _) = State::open(Arc::new(Memory::default()), Options::default()).expect("opened");
            Story {
                reader: state.reader(),
                state,
            }
        }

        fn does<T>(&mut self, change: impl FnOnce(&mut Write<'_>) -> T) -> T {
            let mut write = self.state.store.write();
            let result = change(&mut write);
            write.finish();
            self.state.seal(Bytes::new());
            result
        }

        fn tells(&self) -> Vec<String> {
            let line = |m: MemberRecord| {
                let learner = if m.is_learner { " learner" } else { "" };
                format!("{} {:?} at {}{learner}", m.id, m.name, m.peer_urls.join(","))
            };
            self.reader.members().into_iter().map(line).collect()
        }
    }

    #[test]
    fn records_follow_the_membership_and_nobody_comes_back() {
        let mut story = Story::begin();
        story.does(|w| set_membership(w, &[seat(1, "n1"), seat(2, "n2")]));
        let mut learner = seat(3, "");
        learner.is_learner = true;
        story.does(|w| set_membership(w, &[seat(1, "n1"), seat(2, "n2"), learner]));
        assert_eq!(
            story.tells(),
            [
                "1 \"n1\" at http://p1",
                "2 \"n2\" at http://p2",
                "3 \"\" at http://p3 learner"
            ]
        );
        story.does(|w| set(w, &told(3, "http://p3")));
        story.does(|w| set_membership(w, &[seat(1, "n1"), seat(3, "")]));
        assert_eq!(story.tells(), ["1 \"n1\" at http://p1", "3 \"n3\" at http://p3"]);
        assert!(story.reader.is_removed(2) && !story.reader.is_removed(3));
        story.does(|w| set(w, &told(2, "http://late")));
        assert_eq!(
            story.tells().len(),
            2,
            "a late word of a removed member means nothing"
        );
        assert_eq!(
            story.does(|w| claim(w, &ClaimMember { id: 2, claimant: 9 })),
            Err(Error::MemberNotFound)
        );
        // It recovers, alone.
        story.does(|w| set_membership(w, &[seat(2, "n2")]));
        assert_eq!(story.tells(), ["2 \"n2\" at http://p2"]);
        assert!(story.reader.is_removed(1) && !story.reader.is_removed(2));
    }

    #[test]
    fn a_place_is_claimed_once() {
        let mut story = Story::begin();
        story.does(|w| set_membership(w, &[seat(1, "n1"), seat(3, "")]));
        let mut by = |claimant| story.does(|w| claim(w, &ClaimMember { id: 3, claimant }));
        assert_eq!(by(77), Ok(()));
        assert_eq!(by(77), Ok(()), "the same process may ask again");
        assert_eq!(by(78), Err(Error::MemberExists));
    }

    #[test]
    fn the_last_who_says_something_new_says_where_a_member_is() {
        let mut story = Story::begin();
        story.does(|w| set_membership(w, &[seat(1, "n1"), seat(2, "n2")]));
        story.does(|w| set(w, &told(1, "http://flag")));
        let update_to = |id, url: &str| UpdateMember {
            id,
            peer_urls: vec![url.to_string()],
        };
        assert_eq!(
            story.does(|w| update(w, &update_to(1, "http://operator"))),
            Ok(())
        );
        story.does(|w| set(w, &told(1, "http://flag")));
        assert_eq!(story.tells()[0], "1 \"n1\" at http://operator");
        story.does(|w| set(w, &told(1, "http://moved")));
        assert_eq!(story.tells()[0], "1 \"n1\" at http://moved");
        assert_eq!(
            story.does(|w| update(w, &update_to(2, "http://moved"))),
            Err(Error::PeerUrlsExist)
        );
        assert_eq!(
            story.does(|w| update(w, &update_to(9, "http://x"))),
            Err(Error::MemberNotFound)
        );
    }
}
