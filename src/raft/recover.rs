//! A cluster lost its majority for good: one survivor goes on alone.
//!
//! **What is done.** One entry is appended to the survivor's log, offline: a membership of the survivor alone, in a term
//! above every term that it has seen, under a vote for itself. To Raft this is a leader of that term who proposed the
//! entry and stopped. At its next start the member is the only voter, elects itself, and by committing an entry of its
//! new term commits everything before it.
//!
//! **What is kept.** The whole log, including entries at its end that the member does not know to be committed: each may
//! have been acknowledged, and there is nobody left to say otherwise. A write that was never acknowledged may so come to
//! be, which is what an unknown outcome means. What is lost is what this disk never received; only another disk could
//! tell. Hence the advice to look at each that is left (`--dry-run`), and to take the one whose last entry has the
//! highest term, then the highest index: that is the order by which Raft itself elects.
//!
//! **Why the others can do no harm.** The survivor belongs to a cluster with a new id from then on (`server/recover.rs`
//! writes that first), and members answer nobody from another cluster. The membership has nobody else, so it asks
//! nobody either. If a majority of the old members comes back after all, they are the old cluster, under the old id:
//! two stores, which clients can tell apart by the cluster id. That is why this is asked for and never done by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use openraft::entry::RaftEntry;
use openraft::{EntryPayload, Membership};

use super::entry::{decode_log_id, decode_vote, encode_vote, new_log_id};
use super::log_store::LogStore;
use super::replica::OpenError;
use super::snapshot::SnapshotStore;
use super::{Entry, LogId, Node, Role, Vote};
use crate::storage::fs::Fs;
use crate::storage::wal::{Wal, WalOptions};

/// Bytes of the log that are looked at together.
const READ_BYTES: usize = 4 << 20;

/// Where a member keeps its log and snapshots.
pub struct Disk {
    /// The file operations.
    pub fs: Arc<dyn Fs>,
    /// Directory of the log.
    pub wal_dir: PathBuf,
    /// Directory of snapshot files.
    pub snapshot_dir: PathBuf,
    /// The member's id.
    pub member_id: u64,
}

/// What was found on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// The members of the newest membership in the log that this member is part of, and which of them vote.
    pub members: BTreeMap<u64, (Node, bool)>,
    /// Whether the log ends with a membership that this member is no part of: it was removed, or was about to be.
    pub is_removed: bool,
    /// The member's term.
    pub term: u64,
    /// The last entry.
    pub last: Option<(u64, u64)>,
    /// Up to where entries are known to be committed; the member may have heard late.
    pub committed: u64,
    /// Up to where the newest snapshot goes.
    pub snapshot: u64,
}

impl Findings {
    /// Entries at the end that may or may not have been acknowledged.
    pub fn uncertain(&self) -> u64 {
        self.last
            .map_or(0, |(_, index)| index)
            .saturating_sub(self.committed)
    }
}

/// Looks at a disk. Whether anything is changed on it is up to the file operations.
pub fn examine(disk: &Disk) -> Result<Findings, OpenError> {
    let opened = Opened::open(disk)?;
    let findings = opened.findings.clone();
    opened.wal.close()?;
    Ok(findings)
}

/// Makes the member the only one of its cluster. Durable when it returns; may be done again.
pub fn take_over(disk: &Disk) -> Result<Findings, OpenError> {
    let opened = Opened::open(disk)?;
    let me = disk.member_id;
    let Some((own, _)) = opened.findings.members.get(&me) else {
        opened.wal.close()?;
        return Err(OpenError::State(format!(
            "its log knows no cluster that has member {me:x}: there is nothing to recover"
        )));
    };
    let alone = Node {
        role: Role::Founder,
        ..own.clone()
    };
    let membership = Membership::new(vec![BTreeSet::from([me])], BTreeMap::from([(me, alone)]));
    let membership = membership.map_err(io::Error::other)?;
    let (last_term, last) = opened.findings.last.unwrap_or_default();
    let term = opened.findings.term.max(last_term) + 1;
    let mut entry = Entry::new(
        new_log_id(term, me, last + 1),
        EntryPayload::Membership(membership),
    );
    let (tell, told) = mpsc::channel();
    let told_too = tell.clone();
    // The vote goes first: an entry of a term that the member forgot could be proposed twice.
    let vote = encode_vote(&Vote::new_committed(term, me));
    opened
        .wal
        .save_vote(vote, Box::new(move |saved| drop(tell.send(saved))));
    opened.wal.append(
        vec![(last + 1, entry.encoded())],
        Box::new(move |saved| drop(told_too.send(saved))),
    );
    for saved in told {
        saved?;
    }
    opened.wal.close()?;
    Ok(opened.findings)
}

struct Opened {
    wal: Wal,
    findings: Findings,
}

impl Opened {
    fn open(disk: &Disk) -> Result<Opened, OpenError> {
        let options = WalOptions {
            log_id: disk.member_id,
            ..WalOptions::default()
        };
        let wal = Wal::open(disk.fs.clone(), &disk.wal_dir, options)?;
        let snapshot = SnapshotStore::open(disk.fs.clone(), &disk.snapshot_dir)?.current();
        let snapshot = snapshot.map(|snapshot| snapshot.meta);
        let state = wal.state();
        let index_of = |mark: Option<bytes::Bytes>| -> io::Result<u64> {
            Ok(mark
                .map(|mark| decode_log_id(&mark))
                .transpose()?
                .map_or(0, |id| id.index))
        };
        let covered = snapshot.as_ref().and_then(|meta| meta.last_log_id);
        if let Some(covered) = &covered {
            LogStore::new(wal.clone()).agree_with(covered)?;
        }
        let mut membership = snapshot
            .as_ref()
            .map(|meta| meta.last_membership.membership().clone())
            .unwrap_or_default();
        let has_me = |membership: &Membership<u64, Node>| membership.get_node(&disk.member_id).is_some();
        let mut is_removed = false;
        let mut last: Option<LogId> = covered;
        for_each_entry(&wal, |entry| {
            // Entries that the snapshot covers may still be there.
            if covered.is_none_or(|covered| covered.index < entry.log_id.index) {
                last = Some(entry.log_id);
                if let EntryPayload::Membership(newer) = &entry.payload {
                    is_removed = has_me(&membership) && !has_me(newer);
                    if !is_removed {
                        membership = newer.clone();
                    }
                }
            }
        })?;
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let snapshot = covered.map_or(0, |id| id.index);
        let findings = Findings {
            members: membership
                .nodes()
                .map(|(id, node)| (*id, (node.clone(), voters.contains(id))))
                .collect(),
            is_removed,
            term: state
                .vote
                .map(|vote| decode_vote(&vote))
                .transpose()?
                .map_or(0, |vote| vote.leader_id.term),
            last: last.map(|id| (id.leader_id.term, id.index)),
            committed: index_of(state.committed)?.max(snapshot),
            snapshot,
        };
        Ok(Opened { wal, findings })
    }
}

fn for_each_entry(wal: &Wal, mut look: impl FnMut(&Entry)) -> io::Result<()> {
    let state = wal.state();
    let Some(last) = state.last else { return Ok(()) };
    let mut next = state.first;
    while next <= last {
        let entries = wal.read(next, last + 1, READ_BYTES)?;
        for (index, bytes) in entries {
            look(&Entry::decode(bytes)?);
            next = index + 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::entry::encode_log_id;
    use crate::raft::{SnapshotMeta, StoredMembership};
    use crate::storage::fs::SimFs;

    fn disk(fs: &Arc<dyn Fs>) -> Disk {
        Disk {
            fs: fs.clone(),
            wal_dir: PathBuf::from("/wal"),
            snapshot_dir: PathBuf::from("/snapshots"),
            member_id: 3,
        }
    }

    fn three() -> Membership<u64, Node> {
        let nodes = (1..=3).map(|id| (id, Node::default()));
        let nodes: BTreeMap<u64, Node> = nodes.collect();
        Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).expect("valid")
    }

    #[test]
    fn a_survivor_keeps_its_log_and_is_alone_in_a_higher_term() {
        let fs: Arc<dyn Fs> = Arc::new(SimFs::default());
        let disk = disk(&fs);
        let wal = Wal::open(fs, &disk.wal_dir, WalOptions::default()).expect("opened");
        let payloads = [
            EntryPayload::Membership(three()),
            EntryPayload::Blank,
            EntryPayload::Blank,
        ];
        let entries = payloads
            .into_iter()
            .zip(0..)
            .map(|(payload, index)| (index, Entry::new(new_log_id(4, 1, index), payload).encoded()));
        wal.append(entries.collect(), Box::new(|_| {}));
        wal.save_committed(encode_log_id(&new_log_id(4, 1, 1)));
        // It voted in an election that nobody won.
        wal.save_vote(encode_vote(&Vote::new(7, 2)), Box::new(|_| {}));
        wal.close().expect("closed");

        let found = take_over(&disk).expect("taken over");
        assert_eq!(found.members.len(), 3);
        assert_eq!((found.term, found.last, found.uncertain()), (7, Some((4, 2)), 1));
        let now = examine(&disk).expect("examined");
        assert_eq!(now.members.keys().collect::<Vec<_>>(), [&3]);
        assert_eq!((now.term, now.last), (8, Some((8, 3))));
    }

    #[test]
    fn the_last_disk_of_a_member_that_was_being_removed_can_be_recovered() {
        let fs: Arc<dyn Fs> = Arc::new(SimFs::default());
        let disk = disk(&fs);
        let wal = Wal::open(fs, &disk.wal_dir, WalOptions::default()).expect("opened");
        let without = |id: u64| {
            let nodes = (1..=3).filter(|other| *other != id);
            let nodes: BTreeMap<u64, Node> = nodes.map(|id| (id, Node::default())).collect();
            Membership::new(vec![nodes.keys().copied().collect()], nodes).expect("valid")
        };
        let memberships = [three(), without(3), without(3)].into_iter().zip(0..);
        let entries = memberships.map(|(membership, index)| {
            let payload = EntryPayload::Membership(membership);
            (index, Entry::new(new_log_id(4, 1, index), payload).encoded())
        });
        wal.append(entries.collect(), Box::new(|_| {}));
        wal.close().expect("closed");
        let found = take_over(&disk).expect("taken over");
        assert!(found.is_removed && found.members.len() == 3);
        let now = examine(&disk).expect("examined");
        assert_eq!(now.members.keys().collect::<Vec<_>>(), [&3]);
        assert!(!now.is_removed);
    }

    /// A kill when a snapshot was installed and the log was not yet purged leaves a log that ends before the snapshot
    /// does, or one with other entries there.
    #[test]
    fn a_log_that_does_not_lead_to_its_snapshot_goes_on_from_it() {
        let at = new_log_id(4, 1, 9);
        let meta = SnapshotMeta {
            last_log_id: Some(at),
            last_membership: StoredMembership::new(Some(at), three()),
        };
        for log in [0..0, 0..4, 0..15] {
            let fs: Arc<dyn Fs> = Arc::new(SimFs::default());
            let disk = disk(&fs);
            let wal = Wal::open(fs.clone(), &disk.wal_dir, WalOptions::default()).expect("opened");
            let blank = |index| Entry::new(new_log_id(2, 2, index), EntryPayload::Blank).encoded();
            let entries = log.clone().map(|index| (index, blank(index)));
            wal.append(entries.collect(), Box::new(|_| {}));
            wal.close().expect("closed");
            let snapshots = SnapshotStore::open(fs, &disk.snapshot_dir).expect("opened");
            let snapshot = snapshots
                .prepare(meta.clone(), std::iter::empty())
                .expect("written");
            snapshots.installed(&snapshot.snapshot, &meta).expect("durable");

            let found = take_over(&disk).expect("taken over");
            assert_eq!((found.members.len(), found.last), (3, Some((4, 9))), "{log:?}");
            // At the next start, as at every one.
            let wal = Wal::open(disk.fs.clone(), &disk.wal_dir, WalOptions::default()).expect("sound");
            LogStore::new(wal.clone()).agree_with(&at).expect("readable");
            wal.close().expect("closed");
            let now = examine(&disk).expect("examined");
            assert_eq!(now.members.keys().collect::<Vec<_>>(), [&3], "{log:?}");
            assert_eq!(now.last, Some((5, 10)), "{log:?}");
        }
    }

    #[test]
    fn a_blank_disk_has_nothing_to_recover() {
        let fs: Arc<dyn Fs> = Arc::new(SimFs::default());
        let refusal = take_over(&disk(&fs)).expect_err("must be refused").to_string();
        assert!(refusal.contains("nothing to recover"), "{refusal}");
    }
}
