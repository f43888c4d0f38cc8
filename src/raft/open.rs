//! Opening what is on disk: the log, and the applied state.
//!
//! Truth is the log and the last snapshot file; the engine is the applied state and may be thrown away. The engine's
//! state is continued if it can be trusted, else rebuilt from the snapshot; and openraft applies the log from there.
//!
//! It can be trusted if the caller says so (clean stop, or the same boot of the machine), it opens, it is not older than
//! the snapshot, and the entry that it was saved at is in the log (or is where the snapshot ends). It may not be there:
//! what a quorum of others has on disk is applied here before our own log has it on disk, and a kill then leaves a
//! saved state that is ahead of its log.
//!
//! ```text
//!   the snapshot ends at 40, the log on disk at 60; the state was saved at
//!     38   rebuilt: it is older than the snapshot
//!     58   continued, if 58 is the same entry in the log; which is applied from 59 on
//!     63   rebuilt: the log does not lead there
//! ```

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::LogId;
use super::log_store::LogStore;
use super::replica::{Failure, OpenError, Options};
use super::saving::{Defragmenter, engine_dirs};
use super::snapshot::SnapshotStore;
use super::state_machine::Mark;
use crate::state::{self, State};
use crate::storage::Engine;
use crate::storage::wal::{Wal, WalOptions};

/// The log. Its failure stops the member.
pub(super) fn open_wal(options: &Options, failure: &Failure) -> Result<Wal, OpenError> {
    let failure = failure.clone();
    let wal_options = WalOptions {
        log_id: options.identity.member_id(),
        must_exist: options.has_log,
        stop: Some(Arc::new(move |error: &io::Error| {
            failure.report(format!("the write-ahead log failed: {error}"))
        })),
        ..WalOptions::default()
    };
    Ok(Wal::open(options.fs.clone(), &options.wal_dir, wal_options)?)
}

/// The applied state: continued, or rebuilt.
pub(super) fn open_state(
    options: &Options,
    log: &LogStore,
    snapshots: &SnapshotStore,
    defragmenter: &Defragmenter,
) -> Result<(State, Mark), OpenError> {
    std::fs::create_dir_all(&options.state_dir)?;
    if let Some(continued) = continue_state(options, log, snapshots)? {
        return Ok(continued);
    }
    for dir in engine_dirs(&options.state_dir)? {
        std::fs::remove_dir_all(dir)?;
    }
    rebuild(defragmenter.fresh_engine()?, snapshots)
}

/// The state as the engine has it, if it can be trusted; says why if not.
fn continue_state(
    options: &Options,
    log: &LogStore,
    snapshots: &SnapshotStore,
) -> Result<Option<(State, Mark)>, OpenError> {
    let dirs = engine_dirs(&options.state_dir)?;
    if dirs.is_empty() {
        return Ok(None);
    }
    if !options.trust_state {
        tracing::warn!(
            "the machine stopped without warning: rebuilding the applied state from snapshot and log"
        );
        return Ok(None);
    }
    // The newest that is whole: one that was being copied to when the member was killed is not.
    for dir in dirs.iter().rev() {
        match try_engine(dir, options.engine_cache, log, snapshots) {
            Ok(continued) => {
                for other in dirs.iter().filter(|other| *other != dir) {
                    std::fs::remove_dir_all(other)?;
                }
                return Ok(Some(continued));
            }
            Err(why) => {
                tracing::warn!(dir = %dir.display(), %why, "the applied state can't be continued from")
            }
        }
    }
    tracing::warn!("rebuilding the applied state from snapshot and log");
    Ok(None)
}

/// The state that one engine holds, or why it is not continued.
fn try_engine(
    dir: &Path,
    cache: u64,
    log: &LogStore,
    snapshots: &SnapshotStore,
) -> Result<(State, Mark), String> {
    let engine = crate::storage::open_engine(dir, cache).map_err(|error| error.to_string())?;
    let (state, mark) = State::open(engine, state::Options::default()).map_err(|error| error.to_string())?;
    let mark = mark.ok_or("it holds no complete state")?;
    let mark = Mark::decode(&mark).map_err(|error| error.to_string())?;
    let snapshot = snapshots.current().and_then(|snapshot| snapshot.meta.last_log_id);
    check_place(mark.applied, log, snapshot)?;
    Ok((state, mark))
}

/// Whether a state at `applied` is one that the log, or the snapshot, leads to and goes on from.
fn check_place(applied: Option<LogId>, log: &LogStore, snapshot: Option<LogId>) -> Result<(), String> {
    if applied < snapshot {
        return Err("it is older than the snapshot".to_string());
    }
    let Some(applied) = applied.filter(|_| applied != snapshot) else {
        return Ok(());
    };
    match log.log_id_at(applied.index).map_err(|error| error.to_string())? {
        Some(found) if found == applied => Ok(()),
        found => Err(format!("it is at entry {applied}, where the log has {found:?}")),
    }
}

/// The state as the snapshot has it, or an empty one, in an engine that has nothing yet.
pub(super) fn rebuild(
    engine: Arc<dyn Engine>,
    snapshots: &SnapshotStore,
) -> Result<(State, Mark), OpenError> {
    let Some(snapshot) = snapshots.current() else {
        let (state, _) =
            State::open(engine, state::Options::default()).map_err(|e| OpenError::State(e.to_string()))?;
        return Ok((state, Mark::default()));
    };
    let records = snapshot.snapshot.records()?;
    let (state, mark) = State::restore(engine, state::Options::default(), records)
        .map_err(|e| OpenError::State(e.to_string()))?;
    Ok((state, Mark::decode(&mark)?))
}
