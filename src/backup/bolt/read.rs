//! Reading a file that may be damaged, or made to do harm: every number in it is checked before it is used, no walk
//! visits more pages than there are, and no page is read that is larger than [`MAX_PAGE`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::{Buf, Bytes, BytesMut};

use super::{BRANCH, ELEMENT, IS_BUCKET, LEAF, MAGIC, META, META_FLAG, PAGE_HEAD, VERSION, fnv1a};

/// A page with what it runs over into: etcd's largest request is far below.
const MAX_PAGE: u64 = 512 << 20;
/// Levels of a tree: a page has two children at least, but for rare ones.
const MAX_DEPTH: usize = 40;
/// Page sizes that a system may have.
const PAGE_SIZES: [u64; 7] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16];

/// Bytes that can be read at any place.
pub trait Source {
    /// How many there are.
    fn size(&self) -> u64;

    /// Exactly these; the caller has checked that they are there.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes>;
}

impl Source for Bytes {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        Ok(self.slice(offset as usize..offset as usize + length))
    }
}

/// The first bytes of a file.
impl Source for (File, u64) {
    fn size(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed(length);
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.freeze())
    }
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the database is damaged: {what}"),
    )
}

struct Meta {
    page_size: u64,
    root: u64,
    pages: u64,
    transaction: u64,
}

/// An opened file.
pub struct Database<S> {
    source: S,
    meta: Meta,
}

/// Where a bucket's tree begins.
#[derive(Debug, Clone)]
pub struct Bucket {
    root: u64,
    /// The root page itself, if it stands in the bucket's value.
    inline: Option<Bytes>,
}

impl<S: Source> Database<S> {
    /// Finds the newer of the two metas that is whole.
    pub fn open(source: S) -> io::Result<Self> {
        let mut newest: Option<Meta> = None;
        // The first is at 0; where the second is depends on the page size, which only the metas tell.
        for offset in [0].into_iter().chain(PAGE_SIZES) {
            let meta = read_meta(&source, offset)?.filter(|meta| offset == 0 || offset == meta.page_size);
            if let Some(meta) = meta
                && newest
                    .as_ref()
                    .is_none_or(|newest| newest.transaction < meta.transaction)
            {
                newest = Some(meta);
            }
        }
        let meta = newest.ok_or_else(|| damaged("it does not begin as a bbolt file does"))?;
        match meta.pages.checked_mul(meta.page_size) {
            Some(used) if used <= source.size() => Ok(Database { source, meta }),
            _ => Err(damaged("it is cut short")),
        }
    }

    /// Bytes in use, as etcd's tools tell a file's size.
    pub fn size(&self) -> u64 {
        self.meta.pages * self.meta.page_size
    }

    /// The buckets, by name.
    pub fn buckets(&self) -> io::Result<Vec<(Bytes, Bucket)>> {
        let root = Bucket {
            root: self.meta.root,
            inline: None,
        };
        let mut buckets = Vec::new();
        for element in self.elements(&root)? {
            let (flags, name, mut value) = element?;
            if flags & IS_BUCKET == 0 || value.len() < 16 {
                return Err(damaged("a bucket is none"));
            }
            let root = value.get_u64_le();
            value.advance(8);
            let inline = (root == 0).then_some(value);
            buckets.push((name, Bucket { root, inline }));
        }
        Ok(buckets)
    }

    /// A bucket's pairs, in key order.
    pub fn pairs(&self, bucket: &Bucket) -> io::Result<Pairs<'_, S>> {
        Ok(Pairs(self.elements(bucket)?))
    }

    fn elements(&self, bucket: &Bucket) -> io::Result<Elements<'_, S>> {
        let mut elements = Elements {
            database: self,
            stack: Vec::new(),
            pages_left: self.meta.pages,
            last: Bytes::new(),
            failed: false,
        };
        match &bucket.inline {
            Some(page) => elements.stack.push((Page::parse(page.clone())?, 0)),
            None => elements.descend(bucket.root)?,
        }
        Ok(elements)
    }

    fn page(&self, id: u64) -> io::Result<(Page, u64)> {
        let size = self.meta.page_size;
        if id < 2 || id >= self.meta.pages {
            return Err(damaged(format_args!("it names page {id}, which there is not")));
        }
        let mut head = self.source.read_at(id * size, PAGE_HEAD)?;
        let own = head.get_u64_le();
        head.advance(4);
        let pages = 1 + u64::from(head.get_u32_le());
        if own != id || id + pages > self.meta.pages || pages * size > MAX_PAGE {
            return Err(damaged(format_args!("page {id} is not what it should be")));
        }
        let bytes = self.source.read_at(id * size, (pages * size) as usize)?;
        Ok((Page::parse(bytes)?, pages))
    }
}

/// The meta at an offset, if there is a whole one.
fn read_meta(source: &impl Source, offset: u64) -> io::Result<Option<Meta>> {
    if offset + ((PAGE_HEAD + META) as u64) > source.size() {
        return Ok(None);
    }
    let page = source.read_at(offset, PAGE_HEAD + META)?;
    let flags = page.slice(8..).get_u16_le();
    let mut meta = page.slice(PAGE_HEAD..);
    let checksum = meta.slice(META - 8..).get_u64_le();
    let whole = flags & META_FLAG != 0 && checksum == fnv1a(&meta[..META - 8]);
    let known = meta.get_u32_le() == MAGIC && meta.get_u32_le() == VERSION;
    let page_size = u64::from(meta.get_u32_le());
    if !whole || !known || !PAGE_SIZES.contains(&page_size) {
        return Ok(None);
    }
    meta.advance(4);
    let root = meta.get_u64_le();
    meta.advance(16);
    Ok(Some(Meta {
        page_size,
        root,
        pages: meta.get_u64_le(),
        transaction: meta.get_u64_le(),
    }))
}

/// A branch or a leaf.
struct Page {
    bytes: Bytes,
    is_branch: bool,
    count: usize,
}

impl Page {
    fn parse(bytes: Bytes) -> io::Result<Page> {
        if bytes.len() < PAGE_HEAD {
            return Err(damaged("a page is cut short"));
        }
        let mut head = bytes.slice(8..PAGE_HEAD);
        let (flags, count) = (head.get_u16_le(), head.get_u16_le() as usize);
        let is_branch = match flags {
            BRANCH => true,
            LEAF => false,
            _ => return Err(damaged(format_args!("a page has the unknown flags {flags:#x}"))),
        };
        match PAGE_HEAD + count * ELEMENT <= bytes.len() {
            true => Ok(Page {
                bytes,
                is_branch,
                count,
            }),
            false => Err(damaged("a page has more elements than room")),
        }
    }

    /// An element's key with its child; of a branch.
    fn child(&self, at: usize) -> io::Result<u64> {
        let mut element = self.element(at);
        element.advance(8);
        Ok(element.get_u64_le())
    }

    /// An element's flags, key and value; of a leaf.
    fn pair(&self, at: usize) -> io::Result<(u32, Bytes, Bytes)> {
        let mut element = self.element(at);
        let flags = element.get_u32_le();
        let [position, key, value] = [(); 3].map(|()| element.get_u32_le() as usize);
        // 32-bit numbers: their sum fits.
        let start = PAGE_HEAD + at * ELEMENT + position;
        if start + key + value > self.bytes.len() || key == 0 {
            return Err(damaged("a pair lies outside its page"));
        }
        let middle = start + key;
        Ok((
            flags,
            self.bytes.slice(start..middle),
            self.bytes.slice(middle..middle + value),
        ))
    }

    fn element(&self, at: usize) -> Bytes {
        let start = PAGE_HEAD + at * ELEMENT;
        self.bytes.slice(start..start + ELEMENT)
    }
}

/// A walk through one tree.
struct Elements<'a, S> {
    database: &'a Database<S>,
    /// The pages from the root down to a leaf, each with the element that comes next.
    stack: Vec<(Page, usize)>,
    /// No page is visited twice, so no walk is longer than the file.
    pages_left: u64,
    last: Bytes,
    failed: bool,
}

impl<S: Source> Elements<'_, S> {
    fn descend(&mut self, id: u64) -> io::Result<()> {
        let (page, pages) = self.database.page(id)?;
        let visited = self.pages_left.checked_sub(pages);
        self.pages_left = visited.ok_or_else(|| damaged("its pages form a loop"))?;
        if self.stack.len() == MAX_DEPTH {
            return Err(damaged("its tree is too deep"));
        }
        self.stack.push((page, 0));
        Ok(())
    }

    fn step(&mut self) -> io::Result<Option<(u32, Bytes, Bytes)>> {
        while let Some((page, next)) = self.stack.last_mut() {
            let at = *next;
            *next += 1;
            if at >= page.count {
                self.stack.pop();
            } else if page.is_branch {
                let child = page.child(at)?;
                self.descend(child)?;
            } else {
                let pair = page.pair(at)?;
                if pair.1 <= self.last {
                    return Err(damaged("its keys are out of order"));
                }
                self.last = pair.1.clone();
                return Ok(Some(pair));
            }
        }
        Ok(None)
    }
}

impl<S: Source> Iterator for Elements<'_, S> {
    type Item = io::Result<(u32, Bytes, Bytes)>;

    /// Nothing comes after an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}

/// A bucket's pairs, in key order.
pub struct Pairs<'a, S>(Elements<'a, S>);

impl<S: Source> Iterator for Pairs<'_, S> {
    type Item = io::Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let pair = self.0.next()?.and_then(|(flags, key, value)| match flags {
            0 => Ok((key, value)),
            _ => Err(damaged("a pair is a bucket")),
        });
        self.0.failed |= pair.is_err();
        Some(pair)
    }
}
