//! A disk that is only looked at: files are read, and nothing that is done to them is kept.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::{File, Fs, RealFile, RealFs};

/// This machine's disk, to read from. What is written goes nowhere; new files are in memory, until they are closed.
#[derive(Debug, Clone, Copy, Default)]
pub struct LookOnly;

impl Fs for LookOnly {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        match RealFs.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed,
        }
    }

    fn create(&self, _: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(InMemory::default()))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(Unchanged(RealFile(std::fs::File::open(path)?))))
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// A file of the disk.
struct Unchanged(RealFile);

impl File for Unchanged {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        self.0.read_at(offset, length)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct InMemory(Mutex<Vec<u8>>);

impl File for InMemory {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let data = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let range = usize::try_from(offset)
            .ok()
            .and_then(|from| data.get(from..)?.get(..length));
        range
            .map(Bytes::copy_from_slice)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut data = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let end = from + bytes.len();
        if data.len() < end {
            data.resize(end, 0);
        }
        data[from..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_stay_as_they_are() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        std::fs::write(&path, "as it was").expect("written");
        let file = LookOnly.open(&path).expect("opened");
        file.write_at(0, b"changed").expect("no complaint");
        assert_eq!(file.read_at(3, 6).expect("read"), "it was");
        LookOnly.remove(&path).expect("no complaint");
        let new = LookOnly.create(&dir.path().join("new")).expect("made");
        new.write_at(2, b"xy").expect("written");
        assert_eq!(new.read_at(0, 4).expect("read"), &b"\0\0xy"[..]);
        assert!(new.read_at(3, 2).is_err());
        assert_eq!(LookOnly.list(dir.path()).expect("listed"), ["file"]);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "as it was");
    }
}
