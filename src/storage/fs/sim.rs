//! A simulated disk: remembers every operation, and can show what a crash at any point may leave.
//!
//! Between two syncs a disk may keep any part of what was written, in any order, and a write may be torn at sector
//! boundaries. Names (creations, renames, removals) are kept once their directory was synced, and may be before.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{File, Fs};

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;
/// How often a sync that waits for a stalled disk looks again.
const STALL_CHECK: Duration = Duration::from_millis(1);
/// Random choices among the sectors of a torn write.
const TORN_CHOICES: u64 = 4;

/// An operation, as it was asked for.
#[allow(missing_docs, reason = "they are the methods of `Fs` and `File`")]
#[derive(Debug, Clone)]
pub enum Op {
    /// A name for a file, new or not.
    Create {
        file: usize,
        path: PathBuf,
    },
    Write {
        file: usize,
        offset: u64,
        data: Bytes,
    },
    Sync {
        file: usize,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    SyncDir {
        dir: PathBuf,
    },
    /// Something the test says: everything before it was acknowledged.
    Mark {
        mark: u64,
    },
}

/// The contents of a disk.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// Names, and the files behind them.
    pub names: BTreeMap<PathBuf, usize>,
    /// Files, by a number that is never used again.
    pub files: BTreeMap<usize, Arc<Vec<u8>>>,
}

impl Disk {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { file, path } => {
                self.names.insert(path.clone(), *file);
                self.files.entry(*file).or_default();
            }
            Op::Write { file, offset, data } => self.write(*file, *offset as usize, data),
            Op::Rename { from, to } => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Op::Remove { path } => drop(self.names.remove(path)),
            Op::Sync { .. } | Op::SyncDir { .. } | Op::Mark { .. } => {}
        }
    }

    fn write(&mut self, file: usize, offset: usize, data: &[u8]) {
        let bytes = Arc::make_mut(self.files.entry(file).or_default());
        if bytes.len() < offset + data.len() {
            bytes.resize(offset + data.len(), 0);
        }
        bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// The file of a name.
    pub fn of(&self, path: &Path) -> Option<&Arc<Vec<u8>>> {
        self.files.get(self.names.get(path)?)
    }
}

#[derive(Default)]
struct Inner {
    disk: Disk,
    /// Names for files, never reused.
    next: usize,
    log: Option<Vec<Op>>,
    /// The contents when remembering began.
    from: Disk,
    /// Fails the sync after so many.
    syncs_until_failure: Option<u32>,
    /// Fails writes beyond so many bytes.
    room: Option<u64>,
    /// Syncs wait.
    stalled: bool,
    /// Nothing works any more.
    dead: bool,
}

impl Inner {
    fn refuse_taken(&self, path: &Path) -> io::Result<()> {
        match self.disk.names.contains_key(path) {
            true => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                path.display().to_string(),
            )),
            false => Ok(()),
        }
    }
}

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimFs {
    inner: Arc<Mutex<Inner>>,
}

impl SimFs {
    /// A disk with these contents.
    pub fn with(disk: Disk) -> Self {
        let next = disk.files.keys().next_back().map_or(0, |last| last + 1);
        SimFs {
            inner: Arc::new(Mutex::new(Inner {
                disk,
                next,
                ..Inner::default()
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers operations from now on.
    pub fn record(&self) {
        let mut inner = self.lock();
        inner.from = inner.disk.clone();
        inner.log = Some(Vec::new());
    }

    /// The operations remembered.
    pub fn recorded(&self) -> Vec<Op> {
        self.lock().log.clone().unwrap_or_default()
    }

    /// Puts a mark among the operations.
    pub fn mark(&self, mark: u64) {
        if let Some(log) = &mut self.lock().log {
            log.push(Op::Mark { mark });
        }
    }

    fn is_stalled(&self) -> bool {
        let inner = self.lock();
        inner.stalled && !inner.dead
    }

    /// The contents now.
    pub fn disk(&self) -> Disk {
        self.lock().disk.clone()
    }

    /// Fails the sync that comes after `good` more.
    pub fn fail_sync_after(&self, good: u32) {
        self.lock().syncs_until_failure = Some(good);
    }

    /// Leaves room for so many bytes more.
    pub fn set_room(&self, bytes: u64) {
        self.lock().room = Some(bytes);
    }

    /// Syncs wait from now on, or go on.
    pub fn stall(&self, stalled: bool) {
        self.lock().stalled = stalled;
    }

    /// The machine loses power: what was synced stays, and of the rest what `keeps` says. Whoever still uses this disk
    /// gets errors; the one returned is what the machine finds when it starts again. Operations are remembered on it,
    /// as they must have been on this one from the start.
    pub fn lose_power(&self, keeps: impl FnMut(&Op) -> bool) -> SimFs {
        let mut inner = self.lock();
        inner.dead = true;
        let ops = inner.log.take().expect("operations were remembered");
        let left = SimFs::with(after_power_loss(&ops, &inner.from, keeps));
        left.record();
        left
    }

    fn act(&self, op: Op) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.dead {
            return Err(io::Error::other("the machine has no power"));
        }
        inner.disk.apply(&op);
        if let Some(log) = &mut inner.log {
            log.push(op);
        }
        Ok(())
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

impl Fs for SimFs {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.lock();
        let inside = inner.disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_string()))
            .collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = {
            let mut inner = self.lock();
            inner.refuse_taken(path)?;
            inner.next += 1;
            inner.next
        };
        self.act(Op::Create {
            file,
            path: path.to_path_buf(),
        })?;
        Ok(Box::new(SimFile {
            fs: self.clone(),
            file,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = *self.lock().disk.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(Box::new(SimFile {
            fs: self.clone(),
            file,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if !self.lock().disk.names.contains_key(from) {
            return Err(not_found(from));
        }
        self.act(Op::Rename {
            from: from.to_path_buf(),
            to: to.to_path_buf(),
        })
    }

    fn link(&self, path: &Path, other: &Path) -> io::Result<()> {
        let file = {
            let inner = self.lock();
            inner.refuse_taken(other)?;
            *inner.disk.names.get(path).ok_or_else(|| not_found(path))?
        };
        self.act(Op::Create {
            file,
            path: other.to_path_buf(),
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !self.lock().disk.names.contains_key(path) {
            return Err(not_found(path));
        }
        self.act(Op::Remove {
            path: path.to_path_buf(),
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.act(Op::SyncDir {
            dir: dir.to_path_buf(),
        })
    }
}

struct SimFile {
    fs: SimFs,
    file: usize,
}

impl File for SimFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self
            .fs
            .lock()
            .disk
            .files
            .get(&self.file)
            .map_or(0, |bytes| bytes.len() as u64))
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let inner = self.fs.lock();
        let bytes = inner
            .disk
            .files
            .get(&self.file)
            .and_then(|bytes| bytes.get(offset as usize..offset as usize + length));
        bytes
            .map(Bytes::copy_from_slice)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(room) = &mut self.fs.lock().room {
            match room.checked_sub(data.len() as u64) {
                Some(left) => *room = left,
                None => return Err(io::ErrorKind::StorageFull.into()),
            }
        }
        self.fs.act(Op::Write {
            file: self.file,
            offset,
            data: Bytes::copy_from_slice(data),
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        while self.fs.is_stalled() {
            std::thread::sleep(STALL_CHECK);
        }
        match &mut self.fs.lock().syncs_until_failure {
            Some(0) => return Err(io::Error::other("the disk failed to sync")),
            Some(left) => *left -= 1,
            None => {}
        }
        self.fs.act(Op::Sync { file: self.file })
    }
}

/// Calls `check` with every disk that a crash may leave: after each of the operations, with the operations that were
/// synced by then, and with each choice among the last few that were not, the last write torn too. `check` also gets
/// the last mark that had been made. Returns how many disks there were.
pub fn crash_states(ops: &[Op], from: &Disk, choices: usize, mut check: impl FnMut(Disk, u64)) -> u64 {
    let mut durable = from.clone();
    let mut pending: Vec<Op> = Vec::new();
    let (mut count, mut mark) = (0, 0);
    for op in ops {
        match op {
            Op::Mark { mark: said } => mark = *said,
            Op::Sync { file } => settle(&mut durable, &mut pending, |op| is_write_of(op, *file)),
            Op::SyncDir { dir } => settle(&mut durable, &mut pending, |op| is_name_in(op, dir)),
            op => pending.push(op.clone()),
        }
        count += leftovers(&durable, &pending, choices, &mut |disk| check(disk, mark));
    }
    count
}

/// What was synced, and of the rest what `keeps` says.
fn after_power_loss(ops: &[Op], from: &Disk, mut keeps: impl FnMut(&Op) -> bool) -> Disk {
    let mut durable = from.clone();
    let mut pending: Vec<Op> = Vec::new();
    for op in ops {
        match op {
            Op::Mark { .. } => {}
            Op::Sync { file } => settle(&mut durable, &mut pending, |op| is_write_of(op, *file)),
            Op::SyncDir { dir } => settle(&mut durable, &mut pending, |op| is_name_in(op, dir)),
            op => pending.push(op.clone()),
        }
    }
    pending
        .iter()
        .filter(|op| keeps(op))
        .for_each(|op| durable.apply(op));
    durable
}

fn is_write_of(op: &Op, file: usize) -> bool {
    matches!(op, Op::Write { file: of, .. } if *of == file)
}

fn is_name_in(op: &Op, dir: &Path) -> bool {
    match op {
        Op::Create { path, .. } | Op::Remove { path } => path.parent() == Some(dir),
        Op::Rename { to, .. } => to.parent() == Some(dir),
        _ => false,
    }
}

fn settle(durable: &mut Disk, pending: &mut Vec<Op>, is_settled: impl Fn(&Op) -> bool) {
    pending.retain(|op| {
        let settled = is_settled(op);
        if settled {
            durable.apply(op);
        }
        !settled
    });
}

/// Every choice among the last few pending operations; of those before, all or none.
fn leftovers(durable: &Disk, pending: &[Op], choices: usize, check: &mut impl FnMut(Disk)) -> u64 {
    let (early, late) = pending.split_at(pending.len().saturating_sub(choices));
    let mut count = 0;
    for with_early in if early.is_empty() {
        vec![true]
    } else {
        vec![true, false]
    } {
        for choice in 0..1_u32 << late.len() {
            let mut disk = durable.clone();
            let early = early.iter().filter(|_| with_early);
            let chosen = late
                .iter()
                .enumerate()
                .filter(|(at, _)| choice & (1 << at) != 0)
                .map(|(_, op)| op);
            early.chain(chosen).for_each(|op| disk.apply(op));
            check(disk);
            count += 1;
        }
    }
    count + torn(durable, pending, check)
}

/// The last write, cut at a sector, from either end; and with some of its sectors, chosen at random.
fn torn(durable: &Disk, pending: &[Op], check: &mut impl FnMut(Disk)) -> u64 {
    let Some((Op::Write { file, offset, data }, before)) = pending.split_last() else {
        return 0;
    };
    let mut count = 0;
    let first_cut = SECTOR - *offset as usize % SECTOR;
    for cut in (first_cut..data.len()).step_by(SECTOR).take(8) {
        for head in [true, false] {
            let mut disk = durable.clone();
            before.iter().for_each(|op| disk.apply(op));
            match head {
                true => disk.write(*file, *offset as usize, &data[..cut]),
                false => disk.write(*file, *offset as usize + cut, &data[cut..]),
            }
            check(disk);
            count += 1;
        }
    }
    if first_cut < data.len() {
        for seed in 0..TORN_CHOICES {
            let mut disk = durable.clone();
            before.iter().for_each(|op| disk.apply(op));
            some_sectors(&mut disk, *file, *offset as usize, data, seed);
            check(disk);
            count += 1;
        }
    }
    count
}

fn some_sectors(disk: &mut Disk, file: usize, offset: usize, data: &[u8], seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut at = 0;
    while at < data.len() {
        let end = (at + SECTOR - (offset + at) % SECTOR).min(data.len());
        if rng.random() {
            disk.write(file, offset + at, &data[at..end]);
        }
        at = end;
    }
}
