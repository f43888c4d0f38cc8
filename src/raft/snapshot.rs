//! Snapshot files: the whole state at one entry of the log.
//!
//! ```text
//! file   = magic "PONTOON\x02" | format u32 | frame of the head | frame per record | end frame
//! frame  = length u32 | crc u32 | payload          crc: CRC-32C of the payload, begun with the previous frame's crc
//! head   = log id, 24 bytes | membership
//! end    = length 0xffffffff | crc: of the number of frames (u64), begun with the previous frame's crc | that number
//! ```
//!
//! The crc chain makes a missing, swapped or repeated frame as visible as a damaged one, and the end frame a file that
//! is cut short. A file is written under a temporary name of its own, synced, read back and verified, renamed, and its
//! directory synced; only then is it current, and only then may the log be purged behind it. A file that comes to
//! nothing goes with its last user. A newer snapshot is never replaced by an older one: one that was being built while
//! a newer one arrived is dropped.
//!
//! **A snapshot is no second copy of the state.** Nearly all of it lies in files of the engine that are never changed
//! (`storage/values.rs`). They get a second name beside the snapshot's file, which has a record's place in them for the
//! record. So a snapshot costs a thousandth of the state, and a sync; and until the state has moved on, no space:
//!
//! ```text
//! T-I.snapshot           … | length + 2^31 | crc | kind of the record u8, place | …
//! T-I.00000007.values    another name of state/1/values/00000007.values
//! ```
//!
//! A peer is sent all of it in frames of the first kind, and keeps it as such a file. The engine may be thrown away, or
//! make its files anew: the names here keep what they name. They are durable before the snapshot is named, and go once
//! it is durably gone.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::mpsc::Sender;
use tokio::task::block_in_place;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::entry::{
    decode_log_id, decode_stored_membership, encode_log_id, encode_stored_membership, from_wire_log_id,
};
use super::{Snapshot, SnapshotMeta};
use crate::pb::pontoon::peer::{SnapshotChunk, SnapshotHead};
use crate::state::{Piece, SnapshotSource};
use crate::storage::fs::{File, Fs, bytes_alone, free_bytes};
use crate::storage::{Names, Place};

const MAGIC: &[u8; 8] = b"PONTOON\x02";
const FORMAT: u32 = 2;
/// The oldest that is read. It has no records that lie elsewhere.
const OLDEST_FORMAT: u32 = 1;
const PREAMBLE: u64 = 12;
const FRAME_HEAD: usize = 8;
const END: u32 = u32::MAX;
/// Set in the length of a frame that tells where its record lies.
const APART: u32 = 1 << 31;
/// No frame is longer: a bound on what a damaged length can make us read.
const MAX_FRAME: u32 = 256 << 20;
/// Frames are gathered and written in pieces of about this size.
const WRITE_BYTES: usize = 1 << 20;
/// A file is read in pieces of this size.
const READ_BYTES: u64 = 256 << 10;
/// One message of a snapshot on its way to a peer.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 4;
/// Room that a snapshot leaves to the log: the segment that is written, and the next.
const BESIDE: u64 = 32 << 20;
const TEMPORARY: &str = ".new";
const SNAPSHOT: &str = ".snapshot";
const VALUES: &str = ".values";

/// A complete snapshot file on this member's disk.
#[derive(Clone)]
pub struct SnapshotFile {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    /// Of all its records, wherever they lie.
    size: u64,
    /// Of the file itself.
    own_size: u64,
    /// The files beside it that records lie in, by number.
    beside: Arc<BTreeMap<u32, PathBuf>>,
    /// Set while it has a temporary name.
    unfinished: Option<Arc<Unfinished>>,
}

/// A file that is removed with the last who uses it, unless it got another name.
struct Unfinished {
    fs: Arc<dyn Fs>,
    path: PathBuf,
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

/// The directory of snapshot files.
pub struct SnapshotStore {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    current: Mutex<Option<Snapshot>>,
    /// One file gets its name at a time.
    adopting: Mutex<()>,
    /// Tells temporary files apart.
    attempts: AtomicU64,
}

impl SnapshotStore {
    /// Finds the newest snapshot and verifies it. A damaged one is an error: the log before it is gone. Everything else,
    /// which a crash has left, is removed.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path) -> io::Result<Self> {
        fs.create_dir_all(dir)?;
        let names = fs.list(dir)?;
        // Names are in the order of the log.
        let newest = names.iter().rev().find(|name| name.ends_with(SNAPSHOT));
        let newest = newest.map(|name| verify(&fs, &dir.join(name))).transpose()?;
        let store = SnapshotStore {
            fs,
            dir: dir.to_path_buf(),
            current: Mutex::new(newest),
            adopting: Mutex::default(),
            attempts: AtomicU64::default(),
        };
        store.remove_others(names)?;
        Ok(store)
    }

    /// Removes what does not belong to the current snapshot.
    fn remove_others(&self, names: Vec<String>) -> io::Result<()> {
        let current = self.current().map(|current| current.snapshot);
        if current.is_some() {
            // Its name is durable before what it replaces goes: older ones, and the log before it.
            self.fs.sync_dir(&self.dir)?;
        }
        let is_kept = |path: &PathBuf| {
            let mut current = current.iter();
            current
                .any(|current| current.path == *path || current.beside.values().any(|beside| beside == path))
        };
        let paths = names.into_iter().map(|name| self.dir.join(name));
        let mut others = paths.filter(|path| !is_kept(path));
        others.try_for_each(|path| self.fs.remove(&path))
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<Snapshot> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Writes a snapshot. It is durable and current when this returns; the answer is a newer one if one has come.
    pub fn build(&self, meta: SnapshotMeta, source: SnapshotSource) -> io::Result<Snapshot> {
        if let Some(current) = self.current().filter(|_| self.is_current(&meta)) {
            return Ok(current);
        }
        // Of one that failed.
        self.remove_values(&meta)?;
        let unfinished = self.temporary(&meta);
        let pieces = source.pieces(&Names {
            fs: &*self.fs,
            of: &|number| self.dir.join(values_name(&meta, number)),
        });
        let mut writer = Writer::create(&*self.fs, &unfinished.path, &meta)?;
        for piece in pieces.map_err(io::Error::other)? {
            match piece.map_err(io::Error::other)? {
                Piece::Whole(record) => writer.record(&record)?,
                Piece::Apart(kind, place) => writer.apart(kind, &place)?,
            }
        }
        writer.finish()?;
        // The names of what it needs come before its own.
        self.fs.sync_dir(&self.dir)?;
        let adopted = self.adopt(&unfinished.path, &meta)?;
        if adopted.snapshot.path != self.dir.join(file_name(&meta)) {
            self.remove_values(&meta)?;
        }
        Ok(adopted)
    }

    /// Removes the files beside a snapshot that is not there.
    fn remove_values(&self, meta: &SnapshotMeta) -> io::Result<()> {
        let prefix = format!("{}.", stem(meta));
        for name in self.fs.list(&self.dir)? {
            let path = self.dir.join(&name);
            if name.starts_with(&prefix) && is_values(&path) {
                self.fs.remove(&path)?;
            }
        }
        Ok(())
    }

    /// Whether the disk has room for a snapshot of so many bytes, and for the log to go on meanwhile. One that does not
    /// tell has.
    pub fn has_room(&self, bytes: u64) -> bool {
        free_bytes(&self.dir).map_or(true, |free| free >= bytes.saturating_add(BESIDE))
    }

    /// Writes a snapshot of what is not this member's state yet. It is durable when this returns, but not current.
    pub fn prepare(
        &self,
        meta: SnapshotMeta,
        records: impl Iterator<Item = io::Result<Bytes>>,
    ) -> io::Result<Snapshot> {
        let unfinished = self.temporary(&meta);
        write(&*self.fs, &unfinished.path, &meta, records)?;
        let mut written = verify(&self.fs, &unfinished.path)?;
        written.snapshot.unfinished = Some(Arc::new(unfinished));
        Ok(written)
    }

    /// A file elsewhere on this disk that [`write()`] wrote, verified.
    pub fn open_file(&self, path: &Path) -> io::Result<SnapshotFile> {
        Ok(verify(&self.fs, path)?.snapshot)
    }

    /// Takes in a snapshot that a peer sends. The file is durable when this returns, but not current yet.
    pub async fn receive(
        &self,
        head: &SnapshotHead,
        first: SnapshotChunk,
        chunks: &mut Streaming<SnapshotChunk>,
    ) -> Result<Snapshot, Status> {
        let meta = SnapshotMeta {
            last_log_id: head.last.map(from_wire_log_id),
            last_membership: decode_stored_membership(head.membership.clone()).map_err(invalid)?,
        };
        let unfinished = self.temporary(&meta);
        let path = unfinished.path.clone();
        let file = self.fs.create(&path).map_err(local)?;
        let mut offset = 0;
        let mut next = Some(first);
        while let Some(chunk) = next {
            check_chunk(&chunk, offset, head.size)?;
            block_in_place(|| file.write_at(offset, &chunk.data)).map_err(local)?;
            offset += chunk.data.len() as u64;
            next = chunks.message().await?;
        }
        if offset != head.size {
            return Err(Status::data_loss(format!(
                "the snapshot ends at {offset} of {} bytes",
                head.size
            )));
        }
        block_in_place(|| file.sync_data()).map_err(local)?;
        let mut found = block_in_place(|| verify(&self.fs, &path)).map_err(invalid)?;
        if found.meta != meta {
            return Err(Status::data_loss("the snapshot is not what its sender says"));
        }
        found.snapshot.unfinished = Some(Arc::new(unfinished));
        Ok(found)
    }

    /// A snapshot became this member's state: its file, moved here if it is elsewhere, is the current one from now on.
    pub fn installed(&self, file: &SnapshotFile, meta: &SnapshotMeta) -> io::Result<()> {
        if self.is_current(meta) {
            return Ok(());
        }
        if file
            .unfinished
            .as_ref()
            .is_some_and(|file| file.path.parent() == Some(&self.dir))
        {
            return self.adopt(&file.path, meta).map(drop);
        }
        let copied = self.temporary(meta);
        file.copy_to(&self.fs, &copied.path)?;
        self.adopt(&copied.path, meta).map(drop)
    }

    /// Whether the current snapshot is this one, or newer.
    fn is_current(&self, meta: &SnapshotMeta) -> bool {
        self.current()
            .is_some_and(|current| current.meta.last_log_id >= meta.last_log_id)
    }

    fn temporary(&self, meta: &SnapshotMeta) -> Unfinished {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        Unfinished {
            fs: self.fs.clone(),
            path: self.dir.join(format!("{}.{attempt}{TEMPORARY}", file_name(meta))),
        }
    }

    /// Verifies a finished file, gives it its name, makes it current and removes the one it replaces; or answers the
    /// current one, if that is as new.
    fn adopt(&self, path: &Path, meta: &SnapshotMeta) -> io::Result<Snapshot> {
        let written = verify(&self.fs, path)?;
        let _one_at_a_time = self.adopting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = self.current().filter(|_| self.is_current(meta)) {
            return Ok(current);
        }
        let target = self.dir.join(file_name(meta));
        self.fs.rename(path, &target)?;
        self.fs.sync_dir(&self.dir)?;
        let file = SnapshotFile {
            path: target,
            ..written.snapshot
        };
        let snapshot = Snapshot {
            meta: meta.clone(),
            snapshot: file,
        };
        let old = self
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(snapshot.clone());
        if let Some(old) = old.filter(|old| old.snapshot.path != snapshot.snapshot.path) {
            // One that is being sent stays readable until it is closed.
            let mut paths = std::iter::once(&old.snapshot.path).chain(old.snapshot.beside.values());
            paths.try_for_each(|path| self.fs.remove(path))?;
        }
        Ok(snapshot)
    }
}

fn stem(meta: &SnapshotMeta) -> String {
    let (term, index) = meta
        .last_log_id
        .map_or((0, 0), |log_id| (log_id.leader_id.term, log_id.index));
    format!("{term:016x}-{index:016x}")
}

fn file_name(meta: &SnapshotMeta) -> String {
    stem(meta) + SNAPSHOT
}

/// A file that records of a snapshot lie in.
fn values_name(meta: &SnapshotMeta, number: u32) -> String {
    format!("{}.{number:08x}{VALUES}", stem(meta))
}

fn is_values(path: &Path) -> bool {
    path.to_string_lossy().ends_with(VALUES)
}

fn check_chunk(chunk: &SnapshotChunk, offset: u64, size: u64) -> Result<(), Status> {
    if crc32c::crc32c(&chunk.data) != chunk.crc {
        return Err(Status::data_loss(format!(
            "the snapshot was damaged on its way at {offset}"
        )));
    }
    if chunk.offset != offset || offset + chunk.data.len() as u64 > size {
        return Err(Status::invalid_argument("the snapshot's chunks are out of order"));
    }
    Ok(())
}

fn invalid(error: io::Error) -> Status {
    Status::data_loss(error.to_string())
}

fn local(error: io::Error) -> Status {
    Status::internal(format!("cannot store the snapshot: {error}"))
}

fn encode_head(meta: &SnapshotMeta) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(u8::from(meta.last_log_id.is_some()));
    out.put(meta.last_log_id.as_ref().map(encode_log_id).unwrap_or_default());
    out.put(encode_stored_membership(&meta.last_membership));
    out.freeze()
}

fn decode_head(head: &Bytes) -> io::Result<SnapshotMeta> {
    let (last_log_id, rest) = match head.first() {
        Some(1) if head.len() >= 25 => (Some(decode_log_id(&head[1..25])?), 25),
        Some(0) => (None, 1),
        _ => return Err(damaged("its head is cut short")),
    };
    Ok(SnapshotMeta {
        last_log_id,
        last_membership: decode_stored_membership(head.slice(rest..))?,
    })
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the snapshot is corrupt: {what}"),
    )
}

/// Writes a file that has all records in it. It is on disk when this returns, but its name may not be.
pub fn write(
    fs: &dyn Fs,
    path: &Path,
    meta: &SnapshotMeta,
    records: impl Iterator<Item = io::Result<Bytes>>,
) -> io::Result<()> {
    let mut writer = Writer::create(fs, path, meta)?;
    for record in records {
        writer.record(&record?)?;
    }
    writer.finish()
}

/// Reads a whole file; what it covers, if every bit of it is right. What lies beside it has to be there; it is verified
/// when it is read.
fn verify(fs: &Arc<dyn Fs>, path: &Path) -> io::Result<Snapshot> {
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

/// Makes frames.
struct Encoder {
    buffer: BytesMut,
    chain: u32,
    frames: u64,
}

impl Default for Encoder {
    fn default() -> Self {
        let mut buffer = BytesMut::with_capacity(WRITE_BYTES + WRITE_BYTES / 4);
        buffer.put_slice(MAGIC);
        buffer.put_u32_le(FORMAT);
        Encoder {
            buffer,
            chain: FORMAT,
            frames: 0,
        }
    }
}

impl Encoder {
    fn frame(&mut self, payload: &[u8]) -> io::Result<()> {
        self.flagged_frame(payload, 0)
    }

    fn apart(&mut self, kind: u8, place: &Place) -> io::Result<()> {
        let mut payload = vec![kind];
        place.encode(&mut payload);
        self.flagged_frame(&payload, APART)
    }

    fn flagged_frame(&mut self, payload: &[u8], flag: u32) -> io::Result<()> {
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|length| *length <= MAX_FRAME);
        let length = length.ok_or_else(|| io::Error::other("a snapshot record is too large"))? | flag;
        self.chain = crc32c::crc32c_append(self.chain, payload);
        self.frames += 1;
        self.buffer.put_u32_le(length);
        self.buffer.put_u32_le(self.chain);
        self.buffer.put_slice(payload);
        Ok(())
    }

    fn end(&mut self) {
        let count = self.frames.to_le_bytes();
        self.buffer.put_u32_le(END);
        self.buffer.put_u32_le(crc32c::crc32c_append(self.chain, &count));
        self.buffer.put_slice(&count);
    }
}

/// Writes frames.
struct Writer {
    file: Box<dyn File>,
    at: u64,
    encoder: Encoder,
}

impl Writer {
    fn create(fs: &dyn Fs, path: &Path, meta: &SnapshotMeta) -> io::Result<Self> {
        let mut encoder = Encoder::default();
        encoder.frame(&encode_head(meta))?;
        Ok(Writer {
            file: fs.create(path)?,
            at: 0,
            encoder,
        })
    }

    fn record(&mut self, record: &[u8]) -> io::Result<()> {
        self.encoder.frame(record)?;
        self.write_if_full()
    }

    fn apart(&mut self, kind: u8, place: &Place) -> io::Result<()> {
        self.encoder.apart(kind, place)?;
        self.write_if_full()
    }

    fn write_if_full(&mut self) -> io::Result<()> {
        match self.encoder.buffer.len() >= WRITE_BYTES {
            true => self.write(),
            false => Ok(()),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let buffer = &mut self.encoder.buffer;
        self.file.write_at(self.at, buffer)?;
        self.at += buffer.len() as u64;
        buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.encoder.end();
        self.write()?;
        self.file.sync_data()
    }
}

/// What a frame has.
enum Frame {
    Whole(Bytes),
    /// A record that is this byte, and what lies elsewhere.
    Apart(u8, Place),
}

/// Reads frames, and checks each.
struct Frames {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    file: Box<dyn File>,
    meta: SnapshotMeta,
    size: u64,
    /// What the size would be if all records were in the file, up to here.
    whole_size: u64,
    at: u64,
    /// What is read already, from there on.
    ahead: Bytes,
    chain: u32,
    count: u64,
    ended: bool,
    /// The files that records lie in, by number.
    beside: BTreeMap<u32, Beside>,
}

/// A file that records lie in.
struct Beside {
    path: PathBuf,
    file: Box<dyn File>,
    length: u64,
}

impl Frames {
    /// Reads up to the head.
    fn open(fs: Arc<dyn Fs>, path: &Path) -> io::Result<Self> {
        let file = fs.open(path)?;
        let size = file.length()?;
        if size < PREAMBLE {
            return Err(damaged("it is cut short"));
        }
        let mut preamble = file.read_at(0, PREAMBLE as usize)?;
        if preamble.split_to(MAGIC.len()) != MAGIC[..] {
            return Err(damaged("it does not begin like a snapshot"));
        }
        let format = preamble.get_u32_le();
        if !(OLDEST_FORMAT..=FORMAT).contains(&format) {
            let text = format!("the snapshot has format {format}, this version of pontoon knows {FORMAT}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut frames = Frames {
            fs,
            dir: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            file,
            meta: SnapshotMeta::default(),
            size,
            whole_size: PREAMBLE,
            at: PREAMBLE,
            ahead: Bytes::new(),
            chain: format,
            count: 0,
            ended: false,
            beside: BTreeMap::new(),
        };
        match frames.next_frame()? {
            Some(Frame::Whole(head)) => frames.meta = decode_head(&head)?,
            _ => return Err(damaged("it has no head")),
        }
        Ok(frames)
    }

    /// The next record, from wherever it lies; nothing after the end frame.
    fn next_record(&mut self) -> io::Result<Option<Bytes>> {
        let (kind, place) = match self.next_frame()? {
            None => return Ok(None),
            Some(Frame::Whole(record)) => return Ok(Some(record)),
            Some(Frame::Apart(kind, place)) => (kind, place),
        };
        let value = place.read(&*self.beside(place.file())?.file)?;
        let mut record = BytesMut::with_capacity(1 + value.len());
        record.put_u8(kind);
        record.put_slice(&value);
        Ok(Some(record.freeze()))
    }

    /// The next frame; nothing after the end frame.
    fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        if self.ended {
            return Ok(None);
        }
        let mut head = self.read(FRAME_HEAD)?;
        let (length, crc) = (head.get_u32_le(), head.get_u32_le());
        if length == END {
            return self.end(crc).map(|()| None);
        }
        let (length, is_apart) = (length & !APART, length & APART != 0);
        if length > MAX_FRAME {
            return Err(self.damaged_here("a frame is longer than any can be"));
        }
        let payload = self.read(length as usize)?;
        self.chain = crc32c::crc32c_append(self.chain, &payload);
        if self.chain != crc {
            return Err(self.damaged_here("a checksum is wrong"));
        }
        self.count += 1;
        let frame = match is_apart {
            true => self.apart(&payload)?,
            false => Frame::Whole(payload),
        };
        let whole = match &frame {
            Frame::Whole(payload) => payload.len() as u64,
            Frame::Apart(_, place) => 1 + u64::from(place.length()),
        };
        self.whole_size += FRAME_HEAD as u64 + whole;
        Ok(Some(frame))
    }

    fn apart(&mut self, payload: &[u8]) -> io::Result<Frame> {
        let parsed = payload.split_first();
        let parsed = parsed.and_then(|(kind, place)| Some((*kind, Place::decode(place)?)));
        let (kind, place) = parsed.ok_or_else(|| self.damaged_here("a record lies nowhere"))?;
        if place.end() > self.beside(place.file())?.length {
            return Err(self.damaged_here("a file beside it is cut short"));
        }
        Ok(Frame::Apart(kind, place))
    }

    /// The file with this number.
    fn beside(&mut self, number: u32) -> io::Result<&Beside> {
        match self.beside.entry(number) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let path = self.dir.join(values_name(&self.meta, number));
                let file = self.fs.open(&path)?;
                let length = file.length()?;
                Ok(entry.insert(Beside { path, file, length }))
            }
        }
    }

    fn end(&mut self, crc: u32) -> io::Result<()> {
        let count = self.read(8)?;
        let right = crc == crc32c::crc32c_append(self.chain, &count) && count[..] == self.count.to_le_bytes();
        if !right || self.at != self.size {
            return Err(self.damaged_here("its end is wrong"));
        }
        self.whole_size += FRAME_HEAD as u64 + 8;
        self.ended = true;
        Ok(())
    }

    fn read(&mut self, length: usize) -> io::Result<Bytes> {
        if self.at + length as u64 > self.size {
            return Err(self.damaged_here("it is cut short"));
        }
        if self.ahead.len() < length {
            let piece = READ_BYTES.max(length as u64).min(self.size - self.at);
            self.ahead = self.file.read_at(self.at, piece as usize)?;
        }
        self.at += length as u64;
        Ok(self.ahead.split_to(length))
    }

    fn damaged_here(&self, what: &str) -> io::Error {
        damaged(&format!("{what} (before offset {})", self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::entry::new_log_id;
    use crate::storage::fs::{RealFs, SimFs};

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
    fn there_is_room_or_there_is_not_and_a_disk_that_does_not_tell_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = SnapshotStore::open(Arc::new(RealFs), dir.path()).expect("a store");
        assert!(store.has_room(0));
        assert!(!store.has_room(u64::MAX));
        let nowhere = SnapshotStore::open(Arc::new(SimFs::default()), Path::new("/s")).expect("a store");
        assert!(nowhere.has_room(u64::MAX));
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
