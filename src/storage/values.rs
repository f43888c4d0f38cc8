//! Large values, beside the engine's tree: appended to files, each written once, and found again by their place.
//!
//! A tree on disk rewrites a leaf whenever something in it changes, and keeps in memory what was read of it. For small
//! values that is cheap. Large ones lie here instead, and the tree has their places:
//!
//! ```text
//! file   = record …                                       numbered; the newest is appended to
//! record = key length u32 | value length u32 | key | value                        (little-endian)
//! place  = file u32 | offset of the value u32 | length u32 | crc u32     crc: CRC-32C of the value
//! ```
//!
//! What the tree has no place for is dead. When less than half of a full file's worth is alive in a file, the rest is
//! appended again, by key, and the file goes ([`Values::wasteful`], [`Values::record`]).
//!
//! **Who else needs a file** gives it a second name, on the same disk, and reads it by that as long as it likes
//! ([`Values::link`]): what was written is never changed.
//!
//! **Crashes.** A value is in its file before the tree has its place, so after a kill the tree's places are good. What
//! the tree does not know of is dead, and may end in the middle of a record: each start begins a new file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Names;
use super::ahead::Ahead;
use super::fs::{File, Fs, RealFs};

/// A file that has grown to this is full; so few in tests that there are many.
const FILE_BYTES: u64 = if cfg!(test) { 2 << 10 } else { 64 << 20 };
/// So much is synced behind a write that reaches it. Nothing relies on that; but a snapshot syncs all of a file, and what lay
/// there unsynced by then held up the log's own syncs, on all members at the same time.
const SYNCED_AT_ONCE: u64 = 1 << 20;
/// Bytes of records that are gathered for one write, about.
const WRITTEN_AT_ONCE: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// Before the key of a record.
const HEAD: usize = 8;

/// Where a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    file: u32,
    offset: u32,
    length: u32,
    crc: u32,
}

impl Place {
    /// Bytes of an encoded place.
    pub const BYTES: usize = 16;

    /// Of a value that is written there.
    pub(super) fn of(file: u32, offset: u32, value: &[u8]) -> io::Result<Place> {
        Ok(Place {
            file,
            offset,
            length: length(value)?,
            crc: crc32c::crc32c(value),
        })
    }

    /// The number of its file.
    pub fn file(&self) -> u32 {
        self.file
    }

    /// Bytes of the value.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Where the value ends in its file.
    pub fn end(&self) -> u64 {
        self.begin() + u64::from(self.length)
    }

    /// Where the value begins in its file.
    pub(super) fn begin(&self) -> u64 {
        u64::from(self.offset)
    }

    /// The value, from its file.
    pub fn read(&self, file: &dyn File) -> io::Result<Bytes> {
        self.checked(file.read_at(self.begin(), self.length as usize)?)
    }

    /// What was read there, if it is what was written.
    pub(super) fn checked(&self, value: Bytes) -> io::Result<Bytes> {
        match crc32c::crc32c(&value) == self.crc {
            true => Ok(value),
            false => Err(damaged(self, "the value is not what was written")),
        }
    }

    /// As the tree has it.
    pub fn encode(&self, out: &mut impl BufMut) {
        for number in [self.file, self.offset, self.length, self.crc] {
            out.put_u32_le(number);
        }
    }

    /// Reads what [`Place::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Option<Place> {
        (bytes.len() == Place::BYTES).then(|| Place {
            file: bytes.get_u32_le(),
            offset: bytes.get_u32_le(),
            length: bytes.get_u32_le(),
            crc: bytes.get_u32_le(),
        })
    }
}

/// A file of records.
struct ValueFile {
    file: Arc<dyn File>,
    length: u64,
    /// Bytes of it that the tree has places for.
    live: u64,
}

/// A record that was found in a file.
pub(super) struct Found {
    /// The key that it was written for.
    pub(super) key: Bytes,
    /// Where its value begins, in which file.
    at: (u32, u32),
    /// Where the next record begins.
    pub(super) next: u64,
}

impl Found {
    /// Whether a place is that of its value.
    pub(super) fn is_at(&self, place: &Place) -> bool {
        self.at == (place.file, place.offset)
    }
}

/// The files. One caller appends and removes, any number read.
pub(super) struct Values {
    dir: PathBuf,
    files: RwLock<BTreeMap<u32, ValueFile>>,
}

fn name(number: u32) -> String {
    format!("{number:08x}.values")
}

fn parse_name(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".values").filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok()
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| io::Error::other("too large a value"))
}

/// Copies the beginning of a file to another one.
fn copy(from: &dyn File, length: u64, to: &dyn File) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let piece = (length - at).min(WRITTEN_AT_ONCE as u64);
        to.write_at(at, &from.read_at(at, piece as usize)?)?;
        at += piece;
    }
    Ok(())
}

fn damaged(place: &Place, what: &str) -> io::Error {
    let text = format!("{} at {}: {what}", name(place.file), place.offset);
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Values {
    /// Opens the files in `dir`, none of which has anything alive in it until it is told by [`Values::keep`].
    pub(super) fn open(dir: &Path) -> io::Result<Values> {
        std::fs::create_dir_all(dir)?;
        let mut files = BTreeMap::new();
        for number in RealFs.list(dir)?.iter().filter_map(|name| parse_name(name)) {
            let file: Arc<dyn File> = RealFs.open(&dir.join(name(number)))?.into();
            let length = file.length()?;
            let live = 0;
            files.insert(number, ValueFile { file, length, live });
        }
        let values = Values {
            dir: dir.to_path_buf(),
            files: RwLock::new(files),
        };
        values.begin_file()?;
        Ok(values)
    }

    fn files(&self) -> RwLockReadGuard<'_, BTreeMap<u32, ValueFile>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, BTreeMap<u32, ValueFile>> {
        self.files.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the next file.
    fn begin_file(&self) -> io::Result<()> {
        let number = self.newest().0 + 1;
        let file = RealFs.create(&self.dir.join(name(number)))?.into();
        let (length, live) = (0, 0);
        self.lock().insert(number, ValueFile { file, length, live });
        Ok(())
    }

    /// The newest file's number and length.
    fn newest(&self) -> (u32, u64) {
        let files = self.files();
        files
            .last_key_value()
            .map_or((0, 0), |(number, file)| (*number, file.length))
    }

    /// Writes values behind the last, many at once; their places, in the same order.
    pub(super) fn append<'a>(
        &self,
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> io::Result<Vec<Place>> {
        let mut places = Vec::new();
        let mut records = BytesMut::new();
        let (mut file, mut at) = self.newest();
        for (key, value) in pairs {
            let end = at + records.len() as u64;
            if end >= FILE_BYTES || records.len() >= WRITTEN_AT_ONCE {
                self.write(file, at, &records)?;
                records.clear();
                if end >= FILE_BYTES {
                    self.begin_file()?;
                }
                (file, at) = self.newest();
            }
            let before = at + records.len() as u64 + (HEAD + key.len()) as u64;
            records.put_u32_le(length(key)?);
            records.put_u32_le(length(value)?);
            records.put_slice(key);
            records.put_slice(value);
            places.push(Place::of(file, before as u32, value)?);
        }
        self.write(file, at, &records)?;
        let mut files = self.lock();
        for place in &places {
            if let Some(file) = files.get_mut(&place.file) {
                file.live += u64::from(place.length);
            }
        }
        Ok(places)
    }

    /// Writes records to the end of the newest file, and syncs it when it has grown by enough.
    fn write(&self, number: u32, at: u64, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let end = at + records.len() as u64;
        let file = self.file(number);
        if let Some(file) = &file {
            file.write_at(at, records)?;
        }
        if let Some(file) = self.lock().get_mut(&number) {
            file.length = end;
        }
        match file.filter(|_| at / SYNCED_AT_ONCE != end / SYNCED_AT_ONCE) {
            Some(file) => file.sync_data(),
            None => Ok(()),
        }
    }

    fn file(&self, number: u32) -> Option<Arc<dyn File>> {
        self.files().get(&number).map(|file| file.file.clone())
    }

    /// The value at a place; nothing if its file is gone, as what was alive in it is elsewhere now.
    pub(super) fn read(&self, place: &Place) -> io::Result<Option<Bytes>> {
        let Some(file) = self.file(place.file) else {
            return Ok(None);
        };
        place.read(&*file).map(Some)
    }

    /// The same for whoever reads one after the other: perhaps it was read with those before.
    pub(super) fn read_on(&self, place: &Place, ahead: &mut Ahead) -> io::Result<Option<Bytes>> {
        if let Some(value) = ahead.get(place) {
            return value.map(Some);
        }
        let found = self
            .files()
            .get(&place.file)
            .map(|file| (file.file.clone(), file.length));
        let Some((file, length)) = found else {
            return Ok(None);
        };
        ahead.read(place, &*file, length).map(Some)
    }

    /// Gives a file a second name, or a copy under that name where a disk can't. Its contents are not on disk by that.
    pub(super) fn link(&self, number: u32, names: &Names<'_>) -> io::Result<()> {
        let found = self
            .files()
            .get(&number)
            .map(|file| (file.file.clone(), file.length));
        let (file, length) =
            found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "a file of values is gone"))?;
        let other = (names.of)(number);
        match names.fs.link(&self.dir.join(name(number)), &other) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                copy(&*file, length, &*names.fs.create(&other)?)
            }
            linked => linked,
        }
    }

    /// The tree has this place.
    pub(super) fn keep(&self, place: &Place) -> io::Result<()> {
        let mut files = self.lock();
        let file = files
            .get_mut(&place.file)
            .filter(|file| place.end() <= file.length);
        let file = file.ok_or_else(|| damaged(place, "the file is gone, or ends before that"))?;
        file.live += u64::from(place.length);
        Ok(())
    }

    /// The tree does not have this place any more.
    pub(super) fn release(&self, place: &Place) {
        if let Some(file) = self.lock().get_mut(&place.file) {
            file.live = file.live.saturating_sub(u64::from(place.length));
        }
    }

    /// Bytes on disk.
    pub(super) fn size(&self) -> u64 {
        self.files().values().map(|file| file.length).sum()
    }

    /// The oldest file that is not worth its space: its records are to be looked through, and it is to be removed.
    pub(super) fn wasteful(&self) -> Option<u32> {
        let files = self.files();
        let (newest, _) = files.last_key_value()?;
        let mut older = files.range(..newest);
        let found = older.find(|(_, file)| file.live < FILE_BYTES / 2);
        found.map(|(number, _)| *number)
    }

    /// The record at an offset in a file; nothing behind the last.
    pub(super) fn record(&self, number: u32, at: u64) -> io::Result<Option<Found>> {
        let files = self.files();
        let Some(ValueFile { file, length, .. }) = files.get(&number) else {
            return Ok(None);
        };
        let key_at = at + HEAD as u64;
        if key_at > *length {
            return Ok(None);
        }
        let mut head = file.read_at(at, HEAD)?;
        let (key, value) = (head.get_u32_le(), head.get_u32_le());
        let value_at = key_at + u64::from(key);
        let next = value_at + u64::from(value);
        if next > *length {
            return Ok(None);
        }
        Ok(Some(Found {
            key: file.read_at(key_at, key as usize)?,
            at: (number, value_at as u32),
            next,
        }))
    }

    /// Removes a file, in which nothing is alive. Who reads from it finishes.
    pub(super) fn remove(&self, number: u32) -> io::Result<()> {
        let live = self.files().get(&number).map_or(0, |file| file.live);
        if live > 0 {
            let text = format!("{}: {live} bytes of it were not found", name(number));
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.lock().remove(&number);
        RealFs.remove(&self.dir.join(name(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Values {
        Values::open(dir).expect("opened")
    }

    fn append(values: &Values, key: &[u8], value: &[u8]) -> Place {
        values.append([(key, value)]).expect("written")[0]
    }

    #[test]
    fn many_values_at_once_go_where_one_after_the_other_would() {
        let (one, other) = (tempfile::tempdir(), tempfile::tempdir());
        let dirs = [one.expect("a directory"), other.expect("a directory")];
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..40u8)
            .map(|number| (vec![number], vec![number; 23 * usize::from(number)]))
            .collect();
        let [at_once, singly] = dirs.each_ref().map(|dir| open(dir.path()));
        let slices = pairs.iter().map(|(key, value)| (&key[..], &value[..]));
        let places = at_once.append(slices).expect("written");
        for ((key, value), place) in pairs.iter().zip(places) {
            assert_eq!(append(&singly, key, value), place);
            assert_eq!(at_once.read(&place).expect("read").expect("there"), value[..]);
        }
        assert_eq!(at_once.size(), singly.size());
        assert!(at_once.newest().0 > 3, "they fill some files");
    }

    #[test]
    fn whoever_reads_on_finds_every_value_wherever_it_was_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let values = open(dir.path());
        let written: Vec<(Place, Vec<u8>)> = (0..120u8)
            .map(|number| {
                let value = vec![number; 11 * usize::from(number % 37)];
                (append(&values, &[number], &value), value)
            })
            .collect();
        for step in [1, 2, 7, 119] {
            let mut ahead = Ahead::default();
            for at in 0..written.len() {
                let (place, value) = &written[at * step % written.len()];
                let found = values.read_on(place, &mut ahead).expect("read");
                assert_eq!(found.expect("there"), value[..], "{at} of each {step}");
            }
        }
        let gone = Place {
            file: 99,
            ..written[1].0
        };
        assert_eq!(
            values.read_on(&gone, &mut Ahead::default()).expect("no error"),
            None
        );
    }

    #[test]
    fn what_follows_is_read_with_a_value_if_it_is_wanted_in_order() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let values = open(dir.path());
        let places: Vec<Place> = (0..9).map(|_| append(&values, b"k", &[7; 100])).collect();
        let is_there = |ahead: &Ahead| {
            places
                .iter()
                .map(|place| ahead.get(place).is_some())
                .collect::<Vec<_>>()
        };
        let mut ahead = Ahead::default();
        let mut read = |at: usize| {
            let found = values.read_on(&places[at], &mut ahead).expect("read");
            assert_eq!(found.expect("there"), [7; 100][..]);
            is_there(&ahead).iter().filter(|there| **there).count()
        };
        assert_eq!([read(0), read(1), read(2), read(3)], [1, 1, 3, 3]);
        assert_eq!([read(5), read(0)], [4, 1], "and no more than the file has");
    }

    #[test]
    fn a_value_is_found_by_its_place_also_after_a_reopen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let values = open(dir.path());
        let written: Vec<(Place, Vec<u8>)> = (0..9u8)
            .map(|number| {
                let value = vec![number; 300 * usize::from(number)];
                (append(&values, &[number], &value), value)
            })
            .collect();
        let reopened = open(dir.path());
        for (place, value) in &written {
            let mut encoded = Vec::new();
            place.encode(&mut encoded);
            assert_eq!(Place::decode(&encoded), Some(*place));
            reopened.keep(place).expect("it is there");
            for values in [&values, &reopened] {
                assert_eq!(values.read(place).expect("read").expect("there"), value[..]);
            }
        }
        assert!(
            reopened.newest().0 > written[8].0.file,
            "a start begins a new file"
        );
        assert!(reopened.size() > 300 * 36);
    }

    #[test]
    fn a_file_is_wasteful_when_less_than_half_of_it_lives_and_tells_its_records() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let values = open(dir.path());
        let append = |number: u8| append(&values, &[number], &[number; 700]);
        let first: Vec<Place> = (0..3).map(append).collect();
        assert_eq!(values.wasteful(), None, "the newest is appended to");
        let next = append(3);
        assert_eq!((first[2].file, next.file), (1, 2));
        values.release(&first[0]);
        assert_eq!(values.wasteful(), None);
        values.release(&first[2]);
        assert_eq!(values.wasteful(), Some(1));
        let (mut at, mut keys) = (0, Vec::new());
        while let Some(found) = values.record(1, at).expect("read") {
            assert!(found.is_at(&first[keys.len()]) && !found.is_at(&next));
            keys.push(found.key[0]);
            at = found.next;
        }
        assert_eq!(keys, [0, 1, 2]);
        assert!(values.remove(1).is_err(), "the second is alive");
        values.release(&first[1]);
        values.remove(1).expect("removed");
        assert_eq!(values.read(&first[1]).expect("no error"), None);
        assert!(values.read(&next).expect("read").is_some());
    }

    #[test]
    fn what_was_changed_or_cut_off_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let values = open(dir.path());
        let place = append(&values, b"k", &[7; 100]);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(dir.path().join(name(place.file)))
            .expect("opened");
        use std::os::unix::fs::FileExt;
        file.write_all_at(b"x", u64::from(place.offset) + 50)
            .expect("written");
        assert!(values.read(&place).is_err());
        assert!(values.read_on(&place, &mut Ahead::default()).is_err());
        file.set_len(place.end() - 1).expect("cut");
        let reopened = open(dir.path());
        assert!(reopened.keep(&place).is_err());
        assert!(reopened.record(place.file, 0).expect("read").is_none());
    }
}
