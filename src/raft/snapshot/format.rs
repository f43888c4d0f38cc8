//! The format of a snapshot's file.
//!
//! ```text
//! file   = magic "PONTOON\x02" | format u32 | frame of the head | frame per record | end frame
//! frame  = length u32 | crc u32 | payload          crc: CRC-32C of the payload, begun with the previous frame's crc
//! head   = log id, 24 bytes | membership
//! end    = length 0xffffffff | crc: of the number of frames (u64), begun with the previous frame's crc | that number
//! ```
//!
//! The crc chain makes a missing, swapped or repeated frame as visible as a damaged one, and the end frame a file that
//! is cut short.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::names::values_name;
use crate::raft::SnapshotMeta;
use crate::raft::entry::{decode_log_id, decode_stored_membership, encode_log_id, encode_stored_membership};
use crate::storage::Place;
use crate::storage::fs::{File, Fs};

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

/// The first frame.
pub fn encode_head(meta: &SnapshotMeta) -> Bytes {
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

/// Makes frames.
pub struct Encoder {
    /// What is encoded and not taken yet.
    pub buffer: BytesMut,
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
    /// Adds a frame with all of its payload. Fails if that is longer than any may be.
    pub fn frame(&mut self, payload: &[u8]) -> io::Result<()> {
        self.flagged_frame(payload, 0)
    }

    /// Adds a record that is this byte, and what lies at a place.
    pub fn apart(&mut self, kind: u8, place: &Place) -> io::Result<()> {
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

    /// Adds the end frame.
    pub fn end(&mut self) {
        let count = self.frames.to_le_bytes();
        self.buffer.put_u32_le(END);
        self.buffer.put_u32_le(crc32c::crc32c_append(self.chain, &count));
        self.buffer.put_slice(&count);
    }
}

/// Writes frames.
pub struct Writer {
    file: Box<dyn File>,
    at: u64,
    encoder: Encoder,
}

impl Writer {
    /// Begins a file, with its head.
    pub fn create(fs: &dyn Fs, path: &Path, meta: &SnapshotMeta) -> io::Result<Self> {
        let mut encoder = Encoder::default();
        encoder.frame(&encode_head(meta))?;
        Ok(Writer {
            file: fs.create(path)?,
            at: 0,
            encoder,
        })
    }

    /// Adds a whole record.
    pub fn record(&mut self, record: &[u8]) -> io::Result<()> {
        self.encoder.frame(record)?;
        self.write_if_full()
    }

    /// Adds a record that is this byte, and what lies at a place.
    pub fn apart(&mut self, kind: u8, place: &Place) -> io::Result<()> {
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

    /// Ends the file. Its contents are on disk when this returns, its name may not be.
    pub fn finish(mut self) -> io::Result<()> {
        self.encoder.end();
        self.write()?;
        self.file.sync_data()
    }
}

/// What a frame has.
pub enum Frame {
    /// All of its payload.
    Whole(Bytes),
    /// A record that is this byte, and what lies elsewhere.
    Apart(u8, Place),
}

/// Reads frames, and checks each.
pub struct Frames {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    file: Box<dyn File>,
    /// What the snapshot covers.
    pub meta: SnapshotMeta,
    /// Bytes of the file itself.
    pub size: u64,
    /// What the size would be if all records were in the file, up to here.
    pub whole_size: u64,
    at: u64,
    /// What is read already, from there on.
    ahead: Bytes,
    chain: u32,
    count: u64,
    ended: bool,
    /// The files that records lie in, by number.
    pub beside: BTreeMap<u32, Beside>,
}

/// A file that records lie in.
pub struct Beside {
    /// Its name here.
    pub path: PathBuf,
    file: Box<dyn File>,
    length: u64,
}

impl Frames {
    /// Reads up to the head.
    pub fn open(fs: Arc<dyn Fs>, path: &Path) -> io::Result<Self> {
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
    pub fn next_record(&mut self) -> io::Result<Option<Bytes>> {
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
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
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
    pub fn beside(&mut self, number: u32) -> io::Result<&Beside> {
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
