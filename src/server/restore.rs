//! `pontoon snapshot restore`: a data directory for a member of a new cluster that begins with a backup.
//!
//! The directory holds the state in a file of its own until its cluster is founded (`raft/restored.rs`), and in
//! `member.toml` the hash of its contents, by which the members see that they have restored the same. While it is being
//! written there is a file `restoring`, with which no member starts.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::data_dir;
use crate::backup::Backup;
use crate::raft::restored;
use crate::state::records_of;
use crate::storage::fs::RealFs;

/// What to restore, and for whom.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The backup.
    pub file: PathBuf,
    /// Do without its checksum.
    pub skip_hash_check: bool,
    /// The directory to be made; empty, or not there.
    pub data_dir: PathBuf,
    /// The member's name.
    pub name: String,
    /// The new cluster, sorted, as text; checked when the member is started. Empty: whatever it is started with.
    pub initial_cluster: String,
    /// Its token.
    pub token: String,
    /// Added to the newest revision, so that it is above what clients of the old cluster may have seen.
    pub bump_revision: i64,
    /// Nothing before the newest revision can be read: whoever watches from there learns that it is gone.
    pub mark_compacted: bool,
}

/// What a member was restored from, as `member.toml` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// SHA-256 of the state's contents.
    pub hash: String,
    /// The cluster that it was restored for; empty: any.
    pub initial_cluster: String,
    /// Its token.
    pub token: String,
}

/// What was restored.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// The newest revision.
    pub revision: i64,
    /// The compacted revision, −1 for none.
    pub compacted: i64,
    /// Versions of keys, deletions included.
    pub versions: u64,
}

impl Restore {
    /// Does it. A directory in which it was broken off must be emptied before it is used.
    pub fn run(&self) -> anyhow::Result<Done> {
        let named = || format!("{}", self.file.display());
        let backup = Backup::open(&self.file, self.skip_hash_check).with_context(named)?;
        let (revision, versions) = backup.revision().with_context(named)?;
        let compacted = backup.compacted().with_context(named)?;
        let small = backup.small_records().with_context(named)?;
        let revision = revision
            .checked_add(self.bump_revision)
            .context("--bump-revision: the revision would be too large")?;
        let compacted = if self.mark_compacted { revision } else { compacted };
        let unfinished = begin(&self.data_dir)?;
        let written = || -> anyhow::Result<()> {
            let records = records_of(revision, compacted, small, backup.versions()?);
            let hash = restored::write(&RealFs, &data_dir::restored_file(&self.data_dir), records)?;
            let origin = Origin {
                hash,
                initial_cluster: self.initial_cluster.clone(),
                token: self.token.clone(),
            };
            data_dir::make_restored(&self.data_dir, &self.name, origin)?;
            std::fs::remove_file(&unfinished)?;
            Ok(data_dir::sync_dir(&self.data_dir)?)
        };
        written().with_context(|| format!("cannot restore into {}", self.data_dir.display()))?;
        Ok(Done {
            revision,
            compacted,
            versions,
        })
    }
}

/// Takes the directory, which must be empty; the marker that it is not complete.
fn begin(dir: &Path) -> anyhow::Result<PathBuf> {
    let cannot = || format!("cannot use --data-dir {}", dir.display());
    std::fs::create_dir_all(dir).with_context(cannot)?;
    if std::fs::read_dir(dir).with_context(cannot)?.next().is_some() {
        bail!(
            "--data-dir {} is not empty: a restore makes a new member, give it a directory of its own",
            dir.display()
        );
    }
    let marker = dir.join(data_dir::RESTORING);
    std::fs::write(&marker, "").with_context(cannot)?;
    data_dir::sync_dir(dir).with_context(cannot)?;
    Ok(marker)
}
