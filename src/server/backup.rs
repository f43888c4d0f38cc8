//! A backup of this member's state, made while it serves.
//!
//! What a client is told first is how many bytes will come, and in a bbolt file what is at the front is known last. So
//! the file is written out beside the data, from a pinned view, and sent from there; it has no name, so nothing is left
//! of it once it is sent, or if this process is killed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Server;
use super::data_dir::random_id;
use crate::backup::{self, Origin};
use crate::error::Error;

/// Backups under way at once, each of which takes as much disk as the store; more are refused.
const AT_ONCE: usize = 4;
/// Sent in one piece: four of them fit the message size that every client takes.
pub const PIECE: usize = 1 << 20;
/// Pages are written in pieces of about this size.
const WRITE_BYTES: usize = 1 << 20;

/// Where backups are written before they are sent.
#[derive(Clone)]
pub struct Backups {
    dir: PathBuf,
    slots: Arc<Semaphore>,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// As for any other request.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The disk: full, perhaps. The member goes on.
    #[error("cannot write the backup: {0}")]
    Disk(#[from] io::Error),
}

impl Backups {
    /// Backups that pass through `dir`, which is emptied.
    pub fn new(dir: PathBuf) -> io::Result<Self> {
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Backups {
            dir,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// Writes a backup of everything that is applied here now.
    pub async fn take(&self, server: &Server) -> Result<Spooled, BackupError> {
        let slot = self.slots.clone().try_acquire_owned();
        let slot = slot.map_err(|_| Error::TooManyRequests)?;
        let started = Instant::now();
        let (source, applied) = server.replica().backup().await.map_err(|_| Error::Stopped)?;
        let origin = Origin {
            term: applied.map_or(0, |log_id| log_id.leader_id.term),
            index: applied.map_or(0, |log_id| log_id.index),
            members: server.members(),
        };
        let revision = source.revision();
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || {
            let file = nameless(&dir)?;
            let out = BufWriter::with_capacity(WRITE_BYTES, &file);
            let size = backup::save(out, &source, &origin)?;
            Ok::<_, io::Error>((file, size))
        });
        let (file, size) = written.await.map_err(|_| Error::Stopped)??;
        server.metrics().backups.observe(started.elapsed());
        tracing::info!(revision, bytes = size, took = ?started.elapsed(), "wrote a backup; sending it");
        Ok(Spooled {
            revision,
            size,
            file: Arc::new(file),
            sent: 0,
            hash: Sha256::new(),
            _slot: slot,
        })
    }
}

/// A file that is gone when it is closed.
fn nameless(dir: &Path) -> io::Result<File> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("{:x}", random_id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// A backup on its way to a client.
pub struct Spooled {
    revision: i64,
    size: u64,
    file: Arc<File>,
    sent: u64,
    hash: Sha256,
    _slot: OwnedSemaphorePermit,
}

impl Spooled {
    /// The newest revision in it.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Bytes of the database that are still to come.
    pub fn remaining(&self) -> u64 {
        self.size - self.sent
    }

    /// The next bytes of the database; none at its end.
    pub async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let length = self.remaining().min(PIECE as u64) as usize;
        if length == 0 {
            return Ok(None);
        }
        let (file, offset) = (self.file.clone(), self.sent);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = BytesMut::zeroed(length);
            file.read_exact_at(&mut piece, offset)?;
            Ok::<_, io::Error>(piece.freeze())
        });
        let piece = read.await.map_err(io::Error::other)??;
        self.hash.update(&piece);
        self.sent += length as u64;
        Ok(Some(piece))
    }

    /// SHA-256 of all that was sent.
    pub fn checksum(&self) -> Bytes {
        Bytes::copy_from_slice(&self.hash.clone().finalize())
    }
}
