//! Files of bbolt, the database in which etcd keeps its state and in which its snapshots come.
//!
//! A file is a row of pages of equal size (4096 bytes, little-endian). Two *meta* pages, of which the valid one with the
//! higher transaction number counts, name the root: a B+ tree of *buckets*, each of which is a B+ tree of pairs. What
//! does not fit a page runs over into the pages behind it.
//!
//! ```text
//! page           = id u64 | flags u16 | count u16 | overflow u32 (pages behind this one) | elements | their bytes
//! meta           = magic u32 | version u32 | page size u32 | flags u32 | root u64, sequence u64 | free list's page u64
//!                | pages in use u64 | transaction u64 | FNV-1a-64 of all before
//! leaf element   = flags u32 (1: a bucket) | position of the key, from here u32 | key length u32 | value length u32
//! branch element = position of the key, from here u32 | key length u32 | page u64
//! bucket's value = root page u64 (0: the root page itself follows) | sequence u64
//!
//! page  0     1     2          3     4     …
//!       meta  meta  free list  leaf  leaf  branch over 3, 4, …
//! ```
//!
//! Written by [`Writer`] in one go, in key order; read by [`Database`], which believes nothing that it reads. What is
//! not here: changing a file, and the free list (of a file written once it is empty; a reader needs none).

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{Bucket, Database, Pairs, Source};
pub use write::Writer;

/// The page size that we write; read is whatever the meta says.
pub const PAGE: usize = 4096;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEAD: usize = 16;
/// Of both kinds.
const ELEMENT: usize = 16;
/// Bytes of a meta, with its checksum.
const META: usize = 64;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META_FLAG: u16 = 4;
const FREE_LIST: u16 = 16;
/// An element's flag: its value is a bucket.
const IS_BUCKET: u32 = 1;

/// FNV-1a, 64 bits: the checksum of a meta.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
