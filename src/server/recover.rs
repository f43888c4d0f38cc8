//! Recovery of a cluster that lost its majority: one survivor becomes a cluster of its own, with its data.
//!
//! In three steps, each durable before the next: the directory gets a new cluster id, and says that a recovery has
//! begun; the log gets the membership of this member alone ([`crate::raft::recover`]); the directory says that the
//! recovery is done. A member that is stopped after the first can talk to nobody, and finishes at its next start.
//!
//! `serve --force-new-cluster` does so once for a directory: were the flag left in a unit file, a later start would
//! throw out the members that have joined since. For another disaster there is `pontoon recover`; so there is for a
//! member that was removed, which no flag is to bring back by mistake.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::data_dir::{DataDir, Recovery, random_id};
use crate::raft::recover::{Disk, Findings, examine, take_over};
use crate::storage::fs::{Fs, LookOnly, RealFs};

/// What `pontoon recover` found, and did unless it only looked.
pub struct Report {
    /// The member's name.
    pub name: String,
    /// Its id.
    pub member_id: u64,
    /// The cluster that it belonged to.
    pub old_cluster_id: u64,
    /// The cluster that it belongs to now, if anything was done.
    pub new_cluster_id: Option<u64>,
    /// Whether its cluster removed it, or was about to.
    pub was_removed: bool,
    /// What is on its disk.
    pub findings: Findings,
}

/// `pontoon recover`: makes a stopped member a cluster of its own; with `dry_run` it changes nothing.
pub fn recover(path: &Path, dry_run: bool) -> anyhow::Result<Report> {
    let data_dir = DataDir::look(path)?;
    let (member_id, old_cluster_id) = (data_dir.member_id()?, data_dir.cluster_id()?);
    let is_marked = data_dir.is_removed();
    let (findings, new_cluster_id) = match dry_run {
        true => {
            let disk = disk(&data_dir, Arc::new(LookOnly))?;
            (examine(&disk).context("cannot read the log")?, None)
        }
        false => {
            let findings = go_on_alone(&data_dir, true)?;
            (findings, Some(data_dir.cluster_id()?))
        }
    };
    Ok(Report {
        name: data_dir.name(),
        member_id,
        old_cluster_id,
        new_cluster_id,
        was_removed: is_marked || findings.is_removed,
        findings,
    })
}

/// At a start: does what `--force-new-cluster` says, or what was begun.
pub fn at_start(data_dir: &DataDir, forced: bool) -> anyhow::Result<()> {
    match data_dir.recovery() {
        Recovery::Done if forced => {
            tracing::warn!(
                "this member was made a new cluster before: --force-new-cluster has no effect, remove it"
            );
        }
        Recovery::None if !forced => {}
        Recovery::Done => {}
        Recovery::None | Recovery::Begun => {
            let findings = go_on_alone(data_dir, data_dir.recovery() == Recovery::Begun)?;
            tracing::warn!(
                cluster_id = format!("{:x}", data_dir.cluster_id()?),
                left_behind = findings.members.len().saturating_sub(1),
                uncertain_entries = findings.uncertain(),
                "this member is a new cluster of its own from now on"
            );
        }
    }
    Ok(())
}

fn go_on_alone(data_dir: &DataDir, even_removed: bool) -> anyhow::Result<Findings> {
    let disk = disk(data_dir, Arc::new(RealFs))?;
    let why = "cannot recover from this member's log";
    // Before anything is changed: a log that can't be read, or knows no cluster, is refused.
    let found = examine(&disk).context(why)?;
    anyhow::ensure!(
        found.members.contains_key(&disk.member_id),
        "--data-dir belongs to no cluster: there is nothing to recover"
    );
    anyhow::ensure!(
        even_removed || !found.is_removed,
        "this member was removed from its cluster, or was about to be: if it is the last one, use `pontoon recover`"
    );
    data_dir.set_recovery(random_id(), Recovery::Begun)?;
    let findings = take_over(&disk).context(why)?;
    data_dir.set_recovery(data_dir.cluster_id()?, Recovery::Done)?;
    Ok(findings)
}

fn disk(data_dir: &DataDir, fs: Arc<dyn Fs>) -> anyhow::Result<Disk> {
    Ok(Disk {
        fs,
        wal_dir: data_dir.join("wal"),
        snapshot_dir: data_dir.join("snapshots"),
        member_id: data_dir.member_id()?,
    })
}
