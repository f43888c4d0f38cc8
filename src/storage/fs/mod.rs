//! The few file operations that the log and the snapshot files need, so that a simulated disk can stand in.
//!
//! What a disk promises is little: data written is on it once [`File::sync_data`] returned, a name once the
//! [`Fs::sync_dir`] of its directory did. In between any part may be kept or lost. `SimFs` (tests only) holds us to that.

mod look;
#[cfg(test)]
mod sim;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use bytes::Bytes;
use rustix::buffer::spare_capacity;

pub use look::LookOnly;
#[cfg(test)]
pub use sim::{Disk, Op as DiskOp, SimFs, crash_states};

/// A disk.
pub trait Fs: Send + Sync {
    /// Makes a directory and those above it, durably.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The names of the files in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a file, which must not exist, to read and write.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// Opens a file to read and write.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// Gives a file another name, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name. It is there until it has none.
    fn link(&self, path: &Path, other: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable: creations, renames, removals.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub trait File: Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Reads exactly this many bytes.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes>;

    /// Writes all of the bytes.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns once everything written is on the disk. After an error nothing is known: never try again.
    fn sync_data(&self) -> io::Result<()>;
}

/// Bytes that the file system of `path` has left for this process.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes that go with this name of a file: none if it has another one.
pub fn bytes_alone(path: &Path) -> io::Result<u64> {
    let file = std::fs::metadata(path)?;
    Ok(if file.nlink() == 1 { file.len() } else { 0 })
}

/// The disk of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFs;

impl Fs for RealFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => self.sync_dir(parent),
            None => Ok(()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile(
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(path)?,
        )))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile(
            OpenOptions::new().read(true).write(true).open(path)?,
        )))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn link(&self, path: &Path, other: &Path) -> io::Result<()> {
        std::fs::hard_link(path, other)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::File::open(dir)?.sync_all()
    }
}

struct RealFile(std::fs::File);

impl File for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        // Zeros would be written over at once.
        let mut buffer = Vec::with_capacity(length);
        while buffer.len() < length {
            let at = offset + buffer.len() as u64;
            match rustix::io::pread(&self.0, spare_capacity(&mut buffer), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The allocator may have given more room than was asked for.
        buffer.truncate(length);
        Ok(buffer.into())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
