//! Room: the quota on the applied state, and the disk's free space.
//!
//! Both end in the same NOSPACE alarm, raised for this member through the log, which makes every member refuse what
//! adds data (`state/alarm.rs`). The request that finds no room fails too. What recovers is what etcd's operators
//! script: compact, defragment, disarm; reads, deletes and compaction go on meanwhile.
//!
//! **The quota** is held against `dbSize`: what the applied state takes on disk, plus what is applied and will be
//! written soon. Like etcd's file it keeps its size when data is deleted or compacted (the space is used again) until
//! it is defragmented. The log and the snapshot files are not counted, as etcd does not count its own.
//!
//! **The disk.** A log that meets a full disk stops the member, for good. So NOSPACE is raised before: when less than
//! `--disk-reserve-bytes` is free beside what is still to be written. The reserve is what deleting, compacting and
//! defragmenting need to make room again.
//!
//! Sizes are looked at now and then, as that costs system calls; what is admitted in between is charged by its cost: once
//! against the quota, and against the disk as often as it is written there.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::propose::Proposer;
use crate::error::Error;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType};
use crate::pb::pontoon::command::command::Op;
use crate::raft::replica::Replica;
use crate::state;
use crate::storage::fs::free_bytes;

/// How often sizes are looked at: a disk of 1 GB/s fills the default reserve in as long.
const LOOK: Duration = Duration::from_millis(250);
/// What is admitted is written to the log, and to the applied state.
const COPIES: u64 = 2;

/// How much room there is to be.
#[derive(Debug, Clone)]
pub struct Room {
    /// `--quota-backend-bytes`; none: no quota.
    pub quota: Option<u64>,
    /// `--disk-reserve-bytes`; 0: the disk is not watched.
    pub reserve: u64,
    /// On the file system that is watched.
    pub data_dir: PathBuf,
}

/// Watches over the room that this member has. Cheap to clone.
#[derive(Clone)]
pub struct Space {
    inner: Arc<Inner>,
}

struct Inner {
    replica: Replica,
    proposer: Proposer,
    room: Room,
    /// The applied state's size when it was looked at last.
    size: AtomicU64,
    /// Cost of what was admitted since.
    charged: AtomicU64,
    /// What was free on the disk then, beyond the reserve and what was still to be written; all there is if the disk is
    /// not watched.
    disk_room: AtomicU64,
    /// Whether the disk is nearly full.
    is_disk_low: AtomicBool,
    /// One alarm is raised at a time.
    raising: Mutex<()>,
}

impl Space {
    /// Knows the sizes as they are now.
    pub fn new(replica: Replica, proposer: Proposer, room: Room) -> Space {
        let space = Space {
            inner: Arc::new(Inner {
                replica,
                proposer,
                room,
                size: AtomicU64::new(0),
                charged: AtomicU64::new(0),
                disk_room: AtomicU64::new(u64::MAX),
                is_disk_low: AtomicBool::new(false),
                raising: Mutex::new(()),
            }),
        };
        space.look();
        space
    }

    /// The quota in force, 0 if there is none.
    pub fn quota(&self) -> u64 {
        self.inner.room.quota.unwrap_or(0)
    }

    /// Whether there is room for a command. One for which there is none raises the alarm. (Alarms that are raised already
    /// are looked at when it is proposed, as in etcd.)
    pub async fn admit(&self, op: &Op) -> Result<(), Error> {
        let cost = state::cost(op);
        if cost == 0 || self.fits(cost) {
            return Ok(());
        }
        // There may be room since a moment ago: after a defragmentation, the next put must not bring the alarm back.
        self.look();
        if self.fits(cost) {
            return Ok(());
        }
        if !self.disk_has(cost) {
            self.find_disk_low(true);
        }
        self.raise().await;
        Err(Error::NoSpace)
    }

    fn fits(&self, cost: u64) -> bool {
        let inner = &*self.inner;
        let charged = inner.charged.load(Ordering::Relaxed) + cost;
        let size = inner.size.load(Ordering::Relaxed) + charged;
        let fits = self.disk_has(charged) && inner.room.quota.is_none_or(|quota| size < quota);
        if fits {
            inner.charged.fetch_add(cost, Ordering::Relaxed);
        }
        fits
    }

    /// Whether so much could be written since the disk was looked at.
    fn disk_has(&self, charged: u64) -> bool {
        let room = self.inner.disk_room.load(Ordering::Relaxed);
        !self.inner.is_disk_low.load(Ordering::Relaxed) && charged.saturating_mul(COPIES) <= room
    }

    /// Looks at the sizes from time to time, and raises the alarm by itself: what fills this member's disk may have
    /// been admitted by another, or be no business of ours. Ends with the server.
    pub async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look();
            if !self.fits(0) {
                self.raise().await;
            }
        }
    }

    /// What the applied state takes now.
    fn look(&self) {
        let inner = &*self.inner;
        let reader = inner.replica.reader();
        // What is not there yet needs room too.
        let unsaved = reader.unsaved_bytes();
        // Before the charge goes: a request may count twice for a moment, but not never.
        inner.size.store(reader.size(), Ordering::Relaxed);
        inner.charged.store(0, Ordering::Relaxed);
        if inner.room.reserve == 0 {
            return;
        }
        // A file system that does not tell is not watched.
        let Ok(free) = free_bytes(&inner.room.data_dir) else {
            return;
        };
        let wanted = inner.room.reserve + unsaved;
        inner
            .disk_room
            .store(free.saturating_sub(wanted), Ordering::Relaxed);
        self.find_disk_low(free < wanted);
    }

    fn find_disk_low(&self, is_low: bool) {
        let inner = &*self.inner;
        if !inner.is_disk_low.swap(is_low, Ordering::Relaxed) && is_low {
            tracing::warn!(
                data_dir = %inner.room.data_dir.display(),
                free_bytes = free_bytes(&inner.room.data_dir).unwrap_or(0),
                reserve_bytes = inner.room.reserve,
                "the disk is nearly full: nothing more is written until there is room and the alarm is disarmed"
            );
        }
    }

    /// Raises NOSPACE for this member, unless it is raised already. If that fails, the next request tries again.
    async fn raise(&self) {
        let _one_at_a_time = self.inner.raising.lock().await;
        let alarm = AlarmMember {
            member_id: self.inner.replica.identity().member_id(),
            alarm: AlarmType::Nospace as i32,
        };
        if self.inner.replica.reader().alarms().contains(&alarm) {
            return;
        }
        tracing::warn!(
            size_bytes = self.inner.size.load(Ordering::Relaxed),
            quota_bytes = self.quota(),
            "no space: raising NOSPACE; compact, defragment, and disarm the alarm to go on"
        );
        let request = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        if let Err(error) = self.inner.proposer.propose(Op::Alarm(request)).await {
            tracing::warn!(%error, "cannot raise the alarm yet");
        }
    }
}
