//! Versions, and the blocks that they are packed in on disk.
//!
//! A version is one state of one key: a put's pair, or a tombstone. It never changes and arrives in revision order, so
//! versions are packed: an engine insert costs the same whatever its size, and one insert for a hundred versions is
//! what keeps the engine out of a put's cost. A block is found by its first version's revision.
//!
//! ```text
//! block   = count u32 | offset u32 × count | version × count      (little-endian; offsets from the first version)
//! version = main i64 | sub u32 | tombstone u8 | KeyValue, protobuf, to the next offset
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::Revision;
use super::pair::{self, Skimmed};
use crate::pb::mvccpb::KeyValue;
use crate::storage::{Error, Result};

/// Bytes of versions in a block, about: a compromise between cost per put and cost per read of one version.
const BLOCK_BYTES: usize = 6 << 10;
const HEAD: usize = 13;

/// One state of one key.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// When it came to be.
    pub revision: Revision,
    /// Whether the key was deleted; `kv` then has key and mod revision only.
    pub tombstone: bool,
    /// The pair.
    pub kv: KeyValue,
}

impl Version {
    /// Bytes that it takes in a block, about.
    pub fn size(&self) -> usize {
        HEAD + 40 + self.kv.key.len() + self.kv.value.len()
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_i64_le(self.revision.main);
        out.put_u32_le(self.revision.sub);
        out.put_u8(u8::from(self.tombstone));
        pair::encode(&self.kv, out);
    }

    fn decode(mut bytes: Bytes) -> Result<Version> {
        let (revision, tombstone) = read_head(&mut bytes)?;
        let kv = KeyValue::decode(bytes).map_err(|error| corrupt(&error.to_string()))?;
        Ok(Version {
            revision,
            tombstone,
            kv,
        })
    }
}

/// What stands before a version's pair.
fn read_head(bytes: &mut Bytes) -> Result<(Revision, bool)> {
    if bytes.len() < HEAD {
        return Err(cut_short());
    }
    let (main, sub) = (bytes.get_i64_le(), bytes.get_u32_le());
    Ok((Revision { main, sub }, bytes.get_u8() != 0))
}

/// Packs versions, which are in revision order, into one block.
pub fn encode(versions: &[Version]) -> Bytes {
    let mut packing = Packing::default();
    versions.iter().for_each(|version| packing.add(version));
    packing.take()
}

/// A block in the making. Its memory serves one block after the other.
#[derive(Debug, Default)]
pub struct Packing {
    offsets: Vec<u32>,
    body: BytesMut,
    first: Option<Revision>,
}

impl Packing {
    /// Adds the next version.
    pub fn add(&mut self, version: &Version) {
        self.first.get_or_insert(version.revision);
        self.offsets.push(self.body.len() as u32);
        version.encode(&mut self.body);
    }

    /// Whether it is as large as a block is to be.
    pub fn is_full(&self) -> bool {
        self.body.len() >= BLOCK_BYTES
    }

    /// The revision of the first version in it, if there is one.
    pub fn first(&self) -> Option<Revision> {
        self.first
    }

    /// The block; what is added next begins another one.
    pub fn take(&mut self) -> Bytes {
        let mut out = BytesMut::with_capacity(4 + 4 * self.offsets.len() + self.body.len());
        out.put_u32_le(self.offsets.len() as u32);
        self.offsets.iter().for_each(|offset| out.put_u32_le(*offset));
        out.put_slice(&self.body);
        self.offsets.clear();
        self.body.clear();
        self.first = None;
        out.freeze()
    }
}

/// A block as read; versions are decoded when asked for.
#[derive(Debug, Clone)]
pub struct Block {
    offsets: Bytes,
    body: Bytes,
}

impl Block {
    /// Reads what [`encode`] wrote.
    pub fn parse(mut bytes: Bytes) -> Result<Block> {
        if bytes.len() < 4 {
            return Err(corrupt("a block is cut short"));
        }
        let count = bytes.get_u32_le() as usize;
        if bytes.len() < 4 * count {
            return Err(corrupt("a block is cut short"));
        }
        let offsets = bytes.split_to(4 * count);
        Ok(Block { offsets, body: bytes })
    }

    fn len(&self) -> usize {
        self.offsets.len() / 4
    }

    fn offset(&self, at: usize) -> usize {
        match self.offsets.get(4 * at..4 * at + 4) {
            Some(mut offset) => offset.get_u32_le() as usize,
            None => self.body.len(),
        }
    }

    /// The version at a place.
    pub fn get(&self, at: usize) -> Result<Version> {
        Version::decode(self.encoded(at)?)
    }

    fn encoded(&self, at: usize) -> Result<Bytes> {
        Ok(self.body.slice_ref(self.slice(at)?))
    }

    fn slice(&self, at: usize) -> Result<&[u8]> {
        let found = self.body.get(self.offset(at)..self.offset(at + 1));
        found.ok_or_else(|| corrupt("a block's offsets are out of order"))
    }

    /// All versions, in order.
    pub fn versions(&self) -> impl Iterator<Item = Result<Version>> + '_ {
        (0..self.len()).map(|at| self.get(at))
    }

    /// All versions, in order, without a copy of their pairs: when each came to be, and the pair.
    pub fn skim(&self) -> impl Iterator<Item = Result<(Revision, Skimmed<'_>)>> {
        (0..self.len()).map(|at| {
            let (mut head, pair) = self.slice(at)?.split_at_checked(HEAD).ok_or_else(cut_short)?;
            let (main, sub) = (head.get_i64_le(), head.get_u32_le());
            let pair = pair::skim(pair).ok_or_else(|| corrupt("a version is no pair"))?;
            Ok((Revision { main, sub }, pair))
        })
    }

    /// The version of a revision.
    pub fn find(&self, revision: Revision) -> Result<Option<Version>> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match read_head(&mut self.encoded(middle)?)?.0.cmp(&revision) {
                std::cmp::Ordering::Equal => return self.get(middle).map(Some),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}

fn cut_short() -> Error {
    corrupt("a version is cut short")
}

fn corrupt(what: &str) -> Error {
    Error::Corrupt(what.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(main: i64, sub: u32) -> Version {
        let kv = KeyValue {
            key: Bytes::from(format!("key {main}")),
            value: Bytes::from(vec![b'v'; main as usize]),
            mod_revision: main,
            ..KeyValue::default()
        };
        Version {
            revision: Revision { main, sub },
            tombstone: main % 3 == 0,
            kv,
        }
    }

    #[test]
    fn versions_are_found_in_the_block_that_holds_them() {
        let versions: Vec<Version> = (2..40)
            .flat_map(|main| [version(main, 0), version(main, 1)])
            .collect();
        let block = Block::parse(encode(&versions)).expect("whole");
        assert_eq!(
            block.versions().collect::<Result<Vec<_>>>().expect("whole"),
            versions
        );
        let skimmed = block.skim().map(|skimmed| skimmed.expect("whole"));
        let expected = versions.iter().map(|version| (version.revision, &version.kv));
        assert!(
            skimmed
                .map(|(at, pair)| (at, pair.key, pair.value))
                .eq(expected.map(|(at, kv)| (at, &kv.key[..], &kv.value[..])))
        );
        for version in &versions {
            assert_eq!(
                block.find(version.revision).expect("whole").as_ref(),
                Some(version)
            );
        }
        assert_eq!(block.find(Revision { main: 1, sub: 0 }).expect("whole"), None);
        assert_eq!(block.find(Revision { main: 5, sub: 2 }).expect("whole"), None);
    }

    #[test]
    fn bytes_that_are_no_block_are_refused() {
        assert!(Block::parse(Bytes::from_static(b"abc")).is_err());
        assert!(Block::parse(Bytes::from_static(&[9, 0, 0, 0, 1])).is_err());
        let cut = encode(&[version(2, 0)]).slice(..12);
        assert!(Block::parse(cut).and_then(|block| block.get(0)).is_err());
    }
}
