//! One snapshot, whole, on this member's disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::Sender;
use tokio_stream::wrappers::ReceiverStream;

use super::format::{Encoder, Frames, encode_head, write};
use crate::pb::pontoon::peer::{SnapshotChunk, SnapshotHead};
use crate::raft::Snapshot;
use crate::storage::fs::{Fs, bytes_alone};

/// One message of a snapshot on its way to a peer.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 4;

/// A complete snapshot file on this member's disk.
#[derive(Clone)]
pub struct SnapshotFile {
    fs: Arc<dyn Fs>,
    pub(super) path: PathBuf,
    /// Of all its records, wherever they lie.
    size: u64,
    /// Of the file itself.
    own_size: u64,
    /// The files beside it that records lie in, by number.
    pub(super) beside: Arc<BTreeMap<u32, PathBuf>>,
    /// Set while it has a temporary name.
    pub(super) unfinished: Option<Arc<Unfinished>>,
}

/// A file that is removed with the last who uses it, unless it got another name.
pub struct Unfinished {
    /// The disk that it is on.
    pub(super) fs: Arc<dyn Fs>,
    pub(super) path: PathBuf,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It was renamed, mostly. What stays by mishap is removed at the next start.
        let _ = self.fs.remove(&self.path);
    }
}

impl std::fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.path.display(), self.size)
    }
}

impl SnapshotFile {
    /// Bytes of everything in it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes on disk that are there for this snapshot alone: the state has let go of them, or never had them.
    pub fn bytes_alone(&self) -> u64 {
        let beside = self.beside.values().map(|path| bytes_alone(path).unwrap_or(0));
        self.own_size + beside.sum::<u64>()
    }

    /// The file's name.
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// The same file, which has this name now.
    pub(super) fn renamed(self, path: PathBuf) -> SnapshotFile {
        SnapshotFile { path, ..self }
    }

    /// The state's records, each verified as it is read.
    pub fn records(&self) -> io::Result<impl Iterator<Item = io::Result<Bytes>> + use<>> {
        let mut frames = self.frames()?;
        Ok(std::iter::from_fn(move || frames.next_record().transpose()))
    }

    /// Its frames, with all its files open: it may be replaced while it is read.
    fn frames(&self) -> io::Result<Frames> {
        let mut frames = Frames::open(self.fs.clone(), &self.path)?;
        for number in self.beside.keys() {
            frames.beside(*number)?;
        }
        Ok(frames)
    }

    /// A copy on another disk, or under another name, which has all records in its one file.
    pub fn copy_to(&self, fs: &Arc<dyn Fs>, path: &Path) -> io::Result<SnapshotFile> {
        let meta = self.frames()?.meta;
        write(&**fs, path, &meta, self.records()?)?;
        Ok(SnapshotFile {
            fs: fs.clone(),
            path: path.to_path_buf(),
            size: self.size,
            own_size: self.size,
            beside: Arc::default(),
            unfinished: None,
        })
    }

    /// All of it as one file, in messages for a peer, the first with `head`.
    pub fn chunks(&self, head: SnapshotHead) -> io::Result<ReceiverStream<SnapshotChunk>> {
        let frames = self.frames()?;
        let (tx, rx) = tokio::sync::mpsc::channel(CHUNKS_AHEAD);
        let name = self.name();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = send(frames, head, &tx) {
                // The stream ends early; the receiver sees that by the size.
                tracing::error!(%name, %error, "cannot read a snapshot that is being sent");
            }
        });
        Ok(ReceiverStream::new(rx))
    }
}

/// Sends all records as one file, unless nobody takes them any more.
fn send(mut frames: Frames, head: SnapshotHead, to: &Sender<SnapshotChunk>) -> io::Result<()> {
    let (mut head, mut offset, mut encoder) = (Some(head), 0, Encoder::default());
    encoder.frame(&encode_head(&frames.meta))?;
    loop {
        let record = frames.next_record()?;
        match &record {
            Some(record) => encoder.frame(record)?,
            None => encoder.end(),
        }
        while encoder.buffer.len() >= CHUNK_BYTES || (record.is_none() && !encoder.buffer.is_empty()) {
            let length = encoder.buffer.len().min(CHUNK_BYTES);
            let data = encoder.buffer.split_to(length).freeze();
            let crc = crc32c::crc32c(&data);
            let chunk = SnapshotChunk {
                head: head.take(),
                offset,
                data,
                crc,
            };
            if to.blocking_send(chunk).is_err() {
                return Ok(());
            }
            offset += length as u64;
        }
        if record.is_none() {
            return Ok(());
        }
    }
}

/// Reads a whole file; what it covers, if every bit of it is right. What lies beside it has to be there; it is verified
/// when it is read.
pub fn verify(fs: &Arc<dyn Fs>, path: &Path) -> io::Result<Snapshot> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut frames = Frames::open(fs.clone(), path).map_err(named)?;
    while frames.next_frame().map_err(named)?.is_some() {}
    let beside = frames
        .beside
        .into_iter()
        .map(|(number, beside)| (number, beside.path));
    let file = SnapshotFile {
        fs: fs.clone(),
        path: path.to_path_buf(),
        size: frames.whole_size,
        own_size: frames.size,
        beside: Arc::new(beside.collect()),
        unfinished: None,
    };
    Ok(Snapshot {
        meta: frames.meta,
        snapshot: file,
    })
}

#[cfg(test)]
mod tests {
    use super::super::format::Writer;
    use super::*;
    use crate::raft::SnapshotMeta;
    use crate::raft::entry::new_log_id;
    use crate::storage::fs::SimFs;

    fn written(frames: &[&[u8]]) -> (SimFs, PathBuf) {
        let (fs, path) = (SimFs::default(), PathBuf::from("/s/file"));
        let meta = SnapshotMeta {
            last_log_id: Some(new_log_id(2, 3, 4)),
            ..SnapshotMeta::default()
        };
        let mut writer = Writer::create(&fs, &path, &meta).expect("created");
        frames
            .iter()
            .for_each(|frame| writer.record(frame).expect("written"));
        writer.finish().expect("written");
        (fs, path)
    }

    #[test]
    fn records_are_read_back() {
        let (fs, path) = written(&[b"one", b"", b"three"]);
        let snapshot = verify(&(Arc::new(fs) as Arc<dyn Fs>), &path).expect("whole");
        assert_eq!(snapshot.meta.last_log_id, Some(new_log_id(2, 3, 4)));
        let records: Vec<Bytes> = snapshot
            .snapshot
            .records()
            .expect("opened")
            .collect::<io::Result<_>>()
            .expect("read");
        assert_eq!(records, [&b"one"[..], b"", b"three"]);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let (fs, path) = written(&[b"some records", b"of a state", &[0; 100]]);
        let disk = fs.disk();
        let bytes = disk.of(&path).expect("there").to_vec();
        let refused = |bytes: Vec<u8>| {
            let mut damaged = disk.clone();
            let file = damaged.names[&path];
            damaged.files.insert(file, Arc::new(bytes));
            let fs: Arc<dyn Fs> = Arc::new(SimFs::with(damaged));
            verify(&fs, &path).is_err()
        };
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(flipped), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(refused(bytes[..length].to_vec()), "cut to {length}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(refused(longer));
    }
}
