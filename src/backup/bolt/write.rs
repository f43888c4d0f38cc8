//! Writing a file in one go: pairs come in key order, pages go out in the order in which they are full.
//!
//! A tree is built from below, with one unfinished page a level in memory. A full page is written, and its first key and
//! number go to the level above:
//!
//! ```text
//! level 1   [a→3 d→4 …          unfinished
//! level 0   3:[a b c] 4:[d e f] [g …
//! ```

use std::io::{self, Seek, SeekFrom, Write};

use bytes::{BufMut, Bytes, BytesMut};

use super::{BRANCH, ELEMENT, FREE_LIST, IS_BUCKET, LEAF, MAGIC, META_FLAG, PAGE, PAGE_HEAD, VERSION, fnv1a};

/// bbolt refuses longer keys.
const MAX_KEY: usize = 32_768;
/// bbolt refuses longer values.
const MAX_VALUE: usize = (1 << 31) - 2;
/// Metas and free list.
const FIRST_PAGE: u64 = 3;
const FREE_LIST_PAGE: u64 = 2;

/// Writes one file.
pub struct Writer<W> {
    out: W,
    next: u64,
    buckets: Vec<(Bytes, u64)>,
}

impl<W: Write + Seek> Writer<W> {
    /// Begins at the start of `out`, which should be buffered.
    pub fn new(mut out: W) -> io::Result<Self> {
        // Known at the end only.
        out.write_all(&[0; PAGE * FIRST_PAGE as usize])?;
        Ok(Writer {
            out,
            next: FIRST_PAGE,
            buckets: Vec::new(),
        })
    }

    /// Writes a bucket; names come in order, and so do the keys.
    pub fn bucket(
        &mut self,
        name: &str,
        pairs: impl Iterator<Item = io::Result<(Bytes, Bytes)>>,
    ) -> io::Result<()> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        if self.buckets.last().is_some_and(|(last, _)| *last >= name) {
            return Err(disorder());
        }
        let mut tree = Tree::default();
        for pair in pairs {
            let (key, value) = pair?;
            tree.add(self, 0, key, &value)?;
        }
        let root = tree.finish(self)?;
        self.buckets.push((name, root));
        Ok(())
    }

    /// Writes what names the rest; the file's length in bytes.
    pub fn finish(mut self) -> io::Result<u64> {
        let mut tree = Tree::default();
        for (name, root) in std::mem::take(&mut self.buckets) {
            tree.add(&mut self, IS_BUCKET, name, &bucket_value(root))?;
        }
        let root = tree.finish(&mut self)?;
        let pages = self.next;
        self.out.seek(SeekFrom::Start(0))?;
        for number in [0, 1] {
            self.out.write_all(&meta_page(number, root, pages))?;
        }
        let mut free_list = page_head(FREE_LIST_PAGE, FREE_LIST, 0, 0);
        free_list.resize(PAGE, 0);
        self.out.write_all(&free_list)?;
        self.out.flush()?;
        Ok(pages * PAGE as u64)
    }

    /// Writes a page; its number.
    fn page(&mut self, page: &Page, flags: u16) -> io::Result<u64> {
        let id = self.next;
        let pages = page.size().div_ceil(PAGE);
        let mut bytes = page_head(id, flags, page.elements.len(), pages as u32 - 1);
        for (at, element) in page.elements.iter().enumerate() {
            let position = (page.elements.len() - at) * ELEMENT + element.start;
            match flags {
                LEAF => {
                    bytes.put_u32_le(element.flags);
                    bytes.put_u32_le(position as u32);
                    bytes.put_u32_le(element.key as u32);
                    bytes.put_u32_le(element.value as u32);
                }
                _ => {
                    bytes.put_u32_le(position as u32);
                    bytes.put_u32_le(element.key as u32);
                    bytes.put_u64_le(element.child);
                }
            }
        }
        bytes.put_slice(&page.body);
        bytes.resize(pages * PAGE, 0);
        self.out.write_all(&bytes)?;
        self.next += pages as u64;
        Ok(id)
    }
}

fn disorder() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "keys are not in order")
}

fn bucket_value(root: u64) -> Bytes {
    let mut value = BytesMut::with_capacity(16);
    value.put_u64_le(root);
    value.put_u64_le(0);
    value.freeze()
}

fn page_head(id: u64, flags: u16, count: usize, overflow: u32) -> BytesMut {
    let mut head = BytesMut::with_capacity(PAGE);
    head.put_u64_le(id);
    head.put_u16_le(flags);
    head.put_u16_le(count as u16);
    head.put_u32_le(overflow);
    head
}

/// Both metas say the same, as after two transactions of which the second changed nothing.
fn meta_page(number: u64, root: u64, pages: u64) -> BytesMut {
    let mut page = page_head(number, META_FLAG, 0, 0);
    page.put_u32_le(MAGIC);
    page.put_u32_le(VERSION);
    page.put_u32_le(PAGE as u32);
    page.put_u32_le(0);
    page.put_u64_le(root);
    page.put_u64_le(0);
    page.put_u64_le(FREE_LIST_PAGE);
    page.put_u64_le(pages);
    page.put_u64_le(number);
    let checksum = fnv1a(&page[PAGE_HEAD..]);
    page.put_u64_le(checksum);
    page.resize(PAGE, 0);
    page
}

/// An element of an unfinished page; `start` is where its key begins in the page's body.
struct Element {
    flags: u32,
    child: u64,
    start: usize,
    key: usize,
    value: usize,
}

/// An unfinished page: of at least one element and at most [`PAGE`] bytes, or of one element.
#[derive(Default)]
struct Page {
    first: Bytes,
    last: Bytes,
    elements: Vec<Element>,
    body: BytesMut,
}

impl Page {
    fn size(&self) -> usize {
        PAGE_HEAD + self.elements.len() * ELEMENT + self.body.len()
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.elements.is_empty() || self.size() + ELEMENT + bytes <= PAGE
    }

    fn add(&mut self, flags: u32, child: u64, key: Bytes, value: &[u8]) {
        self.elements.push(Element {
            flags,
            child,
            start: self.body.len(),
            key: key.len(),
            value: value.len(),
        });
        self.body.put_slice(&key);
        self.body.put_slice(value);
        if self.elements.len() == 1 {
            self.first = key.clone();
        }
        self.last = key;
    }

    fn clear(&mut self) -> Bytes {
        self.elements.clear();
        self.body.clear();
        std::mem::take(&mut self.first)
    }
}

/// A tree under construction: its unfinished pages.
#[derive(Default)]
struct Tree {
    leaf: Page,
    branches: Vec<Page>,
}

impl Tree {
    fn add(
        &mut self,
        out: &mut Writer<impl Write + Seek>,
        flags: u32,
        key: Bytes,
        value: &[u8],
    ) -> io::Result<()> {
        if key.is_empty() || key.len() > MAX_KEY || value.len() > MAX_VALUE {
            let text = format!(
                "a key of {} bytes with {} bytes has no place in a bbolt file",
                key.len(),
                value.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if key <= self.leaf.last {
            return Err(disorder());
        }
        if !self.leaf.has_room(key.len() + value.len()) {
            self.write_leaf(out)?;
        }
        self.leaf.add(flags, 0, key, value);
        Ok(())
    }

    fn write_leaf(&mut self, out: &mut Writer<impl Write + Seek>) -> io::Result<()> {
        let id = out.page(&self.leaf, LEAF)?;
        let first = self.leaf.clear();
        self.add_child(out, 0, first, id)
    }

    fn add_child(
        &mut self,
        out: &mut Writer<impl Write + Seek>,
        level: usize,
        first: Bytes,
        id: u64,
    ) -> io::Result<()> {
        if level == self.branches.len() {
            self.branches.push(Page::default());
        }
        if !self.branches[level].has_room(first.len()) {
            self.write_branch(out, level)?;
        }
        self.branches[level].add(0, id, first, &[]);
        Ok(())
    }

    fn write_branch(&mut self, out: &mut Writer<impl Write + Seek>, level: usize) -> io::Result<()> {
        let id = out.page(&self.branches[level], BRANCH)?;
        let first = self.branches[level].clear();
        self.add_child(out, level + 1, first, id)
    }

    /// Writes what is unfinished; the root's page. An empty tree is one empty leaf.
    fn finish(mut self, out: &mut Writer<impl Write + Seek>) -> io::Result<u64> {
        if self.branches.is_empty() {
            return out.page(&self.leaf, LEAF);
        }
        self.write_leaf(out)?;
        let mut level = 0;
        // A level of one child needs no page: the child is the root.
        while level + 1 < self.branches.len() || self.branches[level].elements.len() > 1 {
            self.write_branch(out, level)?;
            level += 1;
        }
        Ok(self.branches[level].elements[0].child)
    }
}
