//! The data directory: who lives in it, in which format, and how it was left.
//!
//! ```text
//! member.toml   format, member id, name, cluster id (0 until it belongs to one), whether it was removed from it,
//!               whether it was recovered alone, whether there is a log
//! lock          locked while a process uses the directory
//! running       present while the member runs, or after it stopped without closing; holds the boot id of the machine
//!               under which the applied state was last known to be sound
//! restored.snapshot   a state restored from a backup, until its cluster is founded; `restoring` while it is written
//! spool/        backups on their way to clients
//! wal/          the log          snapshots/   snapshot files          state/<n>/   the applied state
//! ```
//!
//! `running` tells whether the applied state may be continued from. After a clean stop it is gone. After a mere kill
//! its boot id is this boot's, and what the engine wrote is in the machine's page cache or on disk. After a crash of
//! the machine the boot id differs: sled's flush is no fsync, so its files may have lost anything. It goes on to differ
//! until the applied state has been rebuilt: a start that ends before that changes nothing about it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::restore::Origin;
use crate::journal::Left;

/// Of the directory as a whole; a member refuses a newer one.
const FORMAT: u32 = 1;
/// There while a restore into the directory is under way.
pub const RESTORING: &str = "restoring";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct MemberFile {
    format: u32,
    /// Hexadecimal, as etcdctl prints ids.
    member_id: String,
    cluster_id: String,
    name: String,
    /// The cluster removed this member: it must not run again.
    #[serde(default)]
    removed: bool,
    #[serde(default)]
    recovery: Recovery,
    /// There is a log. Without it the member would forget what it promised under its id.
    #[serde(default)]
    has_log: bool,
    /// Set if it was restored from a backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restored: Option<Origin>,
}

/// Whether this member was made a cluster of its own (`server/recover.rs`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recovery {
    /// No.
    #[default]
    None,
    /// The directory has a new cluster id; the log may not know yet.
    Begun,
    /// Yes.
    Done,
}

/// An opened and locked data directory.
pub struct DataDir {
    path: PathBuf,
    member: Arc<Mutex<MemberFile>>,
    trust_state: bool,
    left: Left,
    is_new: bool,
    /// Released when the process ends, however it ends.
    _lock: File,
}

impl DataDir {
    /// Opens the directory of the member `name`, or makes it, with a new random id.
    pub fn open(path: &Path, name: &str) -> anyhow::Result<DataDir> {
        create_durably(path).with_context(|| {
            format!(
                "cannot create --data-dir {}: check the path and its permissions",
                path.display()
            )
        })?;
        if path.join(RESTORING).exists() {
            bail!(
                "--data-dir {} is not complete: a restore into it was broken off; empty it and restore again",
                path.display()
            );
        }
        let lock = lock(path)?;
        let file = path.join("member.toml");
        let is_new = !file.exists();
        let member = match is_new {
            true => create(path, name)?,
            false => read(&file, path, name)?,
        };
        let trust_state = left_trustworthy(path);
        let left = match (is_new, trust_state) {
            (true, _) => Left::First,
            (_, false) => Left::PowerCut,
            _ if path.join("running").exists() => Left::Killed,
            _ => Left::Clean,
        };
        if trust_state {
            // Before the state is written to: after a crash of the machine this boot's id is to be found.
            mark_running(path).with_context(|| format!("cannot write to --data-dir {}", path.display()))?;
        }
        Ok(DataDir {
            path: path.to_path_buf(),
            member: Arc::new(Mutex::new(member)),
            trust_state,
            left,
            is_new,
            _lock: lock,
        })
    }

    /// Opens the directory of a member that does not run, whatever its name, and leaves it as it is.
    pub fn look(path: &Path) -> anyhow::Result<DataDir> {
        let file = path.join("member.toml");
        anyhow::ensure!(
            file.exists(),
            "--data-dir {} holds no member: there is no member.toml",
            path.display()
        );
        let lock = lock(path)?;
        Ok(DataDir {
            path: path.to_path_buf(),
            member: Arc::new(Mutex::new(parse(&file, path)?)),
            trust_state: left_trustworthy(path),
            left: Left::Clean,
            is_new: false,
            _lock: lock,
        })
    }

    /// This member's name.
    pub fn name(&self) -> String {
        let member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        member.name.clone()
    }

    /// Whether this member was made a cluster of its own.
    pub fn recovery(&self) -> Recovery {
        self.member
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recovery
    }

    /// How far that is, and which cluster it is: one that did not remove it. Durable when it returns.
    pub fn set_recovery(&self, cluster_id: u64, recovery: Recovery) -> anyhow::Result<()> {
        let mut member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        member.cluster_id = format!("{cluster_id:x}");
        member.recovery = recovery;
        member.removed = false;
        write(&self.path, &member)
            .with_context(|| format!("cannot write to --data-dir {}", self.path.display()))
    }

    /// How the last run in it ended.
    pub fn left(&self) -> Left {
        self.left
    }

    /// Whether the directory was made just now.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// This member's id.
    pub fn member_id(&self) -> anyhow::Result<u64> {
        let member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        parse_id(&member.member_id)
    }

    /// The cluster's id, 0 while there is none.
    pub fn cluster_id(&self) -> anyhow::Result<u64> {
        let member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        parse_id(&member.cluster_id)
    }

    /// Makes the cluster's id durable.
    pub fn persist_cluster_id(&self) -> impl Fn(u64) -> io::Result<()> + Send + Sync + use<> {
        let (path, member) = (self.path.clone(), self.member.clone());
        move |cluster_id| {
            let mut member = member.lock().unwrap_or_else(PoisonError::into_inner);
            member.cluster_id = format!("{cluster_id:x}");
            write(&path, &member)
        }
    }

    /// This member lives under `member_id` in the cluster from now on. Only while it belongs to none: what a Raft that
    /// ran under another id has left is empty, and goes.
    pub fn settle(&self, member_id: u64, cluster_id: u64) -> anyhow::Result<()> {
        let mut member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        let new_id = format!("{member_id:x}");
        let mut settle = || {
            if member.member_id != new_id {
                for dir in ["wal", "snapshots", "state"] {
                    remove_dir(&self.path.join(dir))?;
                }
                member.has_log = false;
            }
            member.member_id = new_id.clone();
            member.cluster_id = format!("{cluster_id:x}");
            write(&self.path, &member)
        };
        settle().with_context(|| format!("cannot write to --data-dir {}", self.path.display()))
    }

    /// Whether the cluster removed this member.
    pub fn is_removed(&self) -> bool {
        self.member.lock().unwrap_or_else(PoisonError::into_inner).removed
    }

    /// The cluster removed this member.
    pub fn mark_removed(&self) -> io::Result<()> {
        let mut member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        member.removed = true;
        write(&self.path, &member)
    }

    /// What this member was restored from.
    pub fn origin(&self) -> Option<Origin> {
        self.member
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .restored
            .clone()
    }

    /// The restored state, while no cluster was founded on it.
    pub fn restored(&self) -> Option<PathBuf> {
        let file = restored_file(&self.path);
        file.exists().then_some(file)
    }

    /// The member belongs to a cluster now, whose state counts.
    pub fn forget_restored(&self) -> io::Result<()> {
        match std::fs::remove_file(restored_file(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the applied state may be continued from.
    pub fn trust_state(&self) -> bool {
        self.trust_state
    }

    /// Whether there must be a log.
    pub fn has_log(&self) -> bool {
        self.member.lock().unwrap_or_else(PoisonError::into_inner).has_log
    }

    /// The log is there, and the applied state is sound: it was continued from, or rebuilt.
    pub fn mark_opened(&self) -> anyhow::Result<()> {
        let mut member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        let mut mark = || {
            mark_running(&self.path)?;
            match std::mem::replace(&mut member.has_log, true) {
                true => Ok(()),
                false => write(&self.path, &member),
            }
        };
        mark().with_context(|| format!("cannot write to --data-dir {}", self.path.display()))
    }

    /// A directory inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Everything was closed and is on disk.
    pub fn mark_clean(&self) -> io::Result<()> {
        std::fs::remove_file(self.path.join("running"))?;
        sync_dir(&self.path)
    }
}

/// Makes a directory and those above it. Their names are on disk when this returns: with the directory a member would
/// lose its votes.
fn create_durably(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    std::fs::create_dir_all(path)?;
    for dir in missing {
        match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent)?,
            _ => sync_dir(Path::new("."))?,
        }
    }
    Ok(())
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("lock"))
        .with_context(|| {
            format!(
                "cannot write to --data-dir {}: check its permissions",
                path.display()
            )
        })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "--data-dir {} is in use by another process: give each member its own",
                path.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock --data-dir"),
    }
}

/// Where a restored state waits for its cluster, in a data directory.
pub fn restored_file(path: &Path) -> PathBuf {
    path.join("restored.snapshot")
}

/// Makes the directory that of a new member with a restored state.
pub fn make_restored(path: &Path, name: &str, origin: Origin) -> io::Result<()> {
    write(path, &new_member(name, Some(origin)))
}

fn new_member(name: &str, restored: Option<Origin>) -> MemberFile {
    MemberFile {
        format: FORMAT,
        member_id: format!("{:x}", random_id()),
        cluster_id: "0".to_string(),
        name: name.to_string(),
        removed: false,
        recovery: Recovery::None,
        has_log: false,
        restored,
    }
}

fn create(path: &Path, name: &str) -> anyhow::Result<MemberFile> {
    if path.join("wal").exists() {
        bail!(
            "--data-dir {} holds a log but no member.toml: restore that file, or start with an empty directory",
            path.display()
        );
    }
    let member = new_member(name, None);
    write(path, &member).with_context(|| format!("cannot write to --data-dir {}", path.display()))?;
    Ok(member)
}

/// Never 0, which means "none" on the wire.
pub fn random_id() -> u64 {
    rand::random::<u64>().max(1)
}

fn read(file: &Path, path: &Path, name: &str) -> anyhow::Result<MemberFile> {
    let member = parse(file, path)?;
    if member.name != name {
        bail!(
            "--data-dir {} belongs to member {:?}, but --name is {name:?}: use that member's own directory",
            path.display(),
            member.name
        );
    }
    Ok(member)
}

fn parse(file: &Path, path: &Path) -> anyhow::Result<MemberFile> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let Format { format } =
        toml::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
    if format > FORMAT {
        bail!(
            "--data-dir {} has format {format}, this version of pontoon knows up to {FORMAT}: use the newer version",
            path.display()
        );
    }
    toml::from_str(&text).with_context(|| format!("{} is damaged", file.display()))
}

/// Durable when it returns: a member must not take part under an id that it could forget.
fn write(path: &Path, member: &MemberFile) -> io::Result<()> {
    let text = toml::to_string(member).map_err(io::Error::other)?;
    let temporary = path.join("member.toml.new");
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path.join("member.toml"))?;
    sync_dir(path)
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn left_trustworthy(path: &Path) -> bool {
    match std::fs::read_to_string(path.join("running")) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(boot) => !boot.is_empty() && Some(boot) == boot_id(),
    }
}

fn mark_running(path: &Path) -> io::Result<()> {
    let mut file = File::create(path.join("running"))?;
    file.write_all(boot_id().unwrap_or_default().as_bytes())?;
    file.sync_all()?;
    sync_dir(path)
}

fn boot_id() -> Option<String> {
    std::fs::read_to_string(BOOT_ID).ok()
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn parse_id(text: &str) -> anyhow::Result<u64> {
    u64::from_str_radix(text, 16).with_context(|| format!("member.toml holds no id but {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(result: anyhow::Result<DataDir>) -> String {
        format!("{:#}", result.err().expect("must be refused"))
    }

    #[test]
    fn ids_are_kept_and_a_directory_serves_one_member_at_a_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = DataDir::open(dir.path(), "n1").expect("made");
        let id = first.member_id().expect("an id");
        assert!(first.is_new() && first.trust_state());
        assert!(refusal(DataDir::open(dir.path(), "n1")).contains("in use by another process"));
        first.persist_cluster_id()(77).expect("written");
        drop(first);
        assert!(refusal(DataDir::open(dir.path(), "n2")).contains("belongs to member \"n1\""));
        let again = DataDir::open(dir.path(), "n1").expect("opened");
        assert_eq!(
            (
                again.member_id().expect("an id"),
                again.cluster_id().expect("an id")
            ),
            (id, 77)
        );
    }

    #[test]
    fn a_member_settles_under_the_id_of_its_place_and_stays_removed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = DataDir::open(dir.path(), "n1").expect("made");
        std::fs::create_dir(dir.path().join("wal")).expect("made");
        first.mark_opened().expect("written");
        assert!(first.has_log());
        first.settle(5, 77).expect("settled");
        assert!(!dir.path().join("wal").exists() && !first.has_log());
        assert!(!first.is_removed());
        first.mark_removed().expect("written");
        drop(first);
        let again = DataDir::open(dir.path(), "n1").expect("opened");
        assert_eq!(
            (
                again.member_id().expect("an id"),
                again.cluster_id().expect("an id")
            ),
            (5, 77)
        );
        assert!(again.is_removed());
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        drop(DataDir::open(dir.path(), "n1").expect("made"));
        let file = dir.path().join("member.toml");
        let text = std::fs::read_to_string(&file)
            .expect("there")
            .replace("format = 1", "format = 9");
        std::fs::write(&file, text).expect("written");
        assert!(refusal(DataDir::open(dir.path(), "n1")).contains("has format 9"));
    }

    #[test]
    fn the_state_is_trusted_after_a_clean_stop_or_a_kill_but_not_after_a_reboot() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        drop(DataDir::open(dir.path(), "n1").expect("made")); // killed: `running` stays
        let killed = DataDir::open(dir.path(), "n1").expect("opened");
        assert!(killed.trust_state());
        killed.mark_clean().expect("removed");
        drop(killed);
        assert!(left_trustworthy(dir.path()));
        std::fs::write(dir.path().join("running"), "another boot").expect("written");
        // A start that ends before the state is rebuilt does not make it any better.
        for _ in 0..2 {
            assert!(!DataDir::open(dir.path(), "n1").expect("opened").trust_state());
        }
        let rebuilt = DataDir::open(dir.path(), "n1").expect("opened");
        rebuilt.mark_opened().expect("written");
        drop(rebuilt);
        assert!(DataDir::open(dir.path(), "n1").expect("opened").trust_state());
    }
}
