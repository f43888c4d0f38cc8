//! Records, as they stand in a segment.
//!
//! ```text
//! segment = head | record*| zeros
//! head    = magic "PONTOON\x01" | format u32 | chain u32 | log u64 | number u64 | size u64 | crc u32   (little-endian)
//! record  = crc u32 | length u32 | kind u8 | payload
//! crc     = CRC-32C of length, kind and payload, begun with the previous record's crc (the first: head's `chain`)
//! ```
//!
//! The chain makes a stale record, or one from elsewhere, as visible as a damaged one. A *sync* record stands by
//! itself too: it has a magic of its own, names the log and its own place, and can be found by looking for it. It
//! says up to where the log was known to be on disk when it was written: the *durable mark*.

use bytes::{Buf, BufMut, Bytes, BytesMut};

const SEGMENT_MAGIC: &[u8; 8] = b"PONTOON\x01";
const SYNC_MAGIC: &[u8; 8] = b"\xf0durable";
/// The only format so far.
pub const FORMAT: u32 = 1;
/// Length of a segment's head.
pub const HEAD: u64 = 44;
/// Length of a record without its payload.
pub const RECORD_HEAD: usize = 9;
const SYNC_PAYLOAD: usize = 52;

/// A place in the log: segment number and offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Of the segment.
    pub segment: u64,
    /// In the segment's file.
    pub offset: u64,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Everything before this place is on disk.
    Sync(Place),
    /// The vote.
    Vote(Bytes),
    /// A log entry.
    Entry(u64, Bytes),
    /// Entries after this index are gone; `None`: all of them.
    Truncate(Option<u64>),
    /// Entries up to this index are gone, behind a snapshot; and the log id there.
    Purge(u64, Bytes),
    /// The committed log id.
    Committed(Bytes),
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Record::Sync(_) => 1,
            Record::Vote(_) => 2,
            Record::Entry(..) => 3,
            Record::Truncate(_) => 4,
            Record::Purge(..) => 5,
            Record::Committed(_) => 6,
        }
    }

    /// Length in the segment.
    pub fn len(&self) -> usize {
        RECORD_HEAD
            + match self {
                Record::Sync(_) => SYNC_PAYLOAD,
                Record::Vote(bytes) | Record::Committed(bytes) => bytes.len(),
                Record::Entry(_, bytes) | Record::Purge(_, bytes) => 8 + bytes.len(),
                Record::Truncate(_) => 9,
            }
    }

    /// Appends the record, which will stand at `at` in the log named `log`, and gives the chain's next link.
    pub fn encode(&self, out: &mut BytesMut, chain: u32, log: u64, at: Place) -> u32 {
        let start = out.len();
        out.put_u32_le(0);
        out.put_u32_le((self.len() - RECORD_HEAD) as u32);
        out.put_u8(self.kind());
        match self {
            Record::Sync(durable) => out.put_slice(&sync_payload(log, at, *durable)),
            Record::Vote(bytes) | Record::Committed(bytes) => out.put_slice(bytes),
            Record::Entry(index, bytes) | Record::Purge(index, bytes) => {
                out.put_u64_le(*index);
                out.put_slice(bytes);
            }
            Record::Truncate(after) => {
                out.put_u8(u8::from(after.is_some()));
                out.put_u64_le(after.unwrap_or(0));
            }
        }
        let crc = crc32c::crc32c_append(chain, &out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads the record at the start of `bytes`, with its length and the chain's next link; or says what is wrong.
    pub fn decode(bytes: &Bytes, chain: u32) -> Result<(Record, usize, u32), &'static str> {
        if bytes.len() < RECORD_HEAD {
            return Err("a record is cut short");
        }
        let mut head = &bytes[..RECORD_HEAD];
        let (crc, length, kind) = (head.get_u32_le(), head.get_u32_le() as usize, head.get_u8());
        let end = RECORD_HEAD + length;
        if bytes.len() < end {
            return Err("a record is longer than its segment");
        }
        if crc32c::crc32c_append(chain, &bytes[4..end]) != crc {
            return Err("a record's checksum is wrong");
        }
        let record = parse(kind, bytes.slice(RECORD_HEAD..end)).ok_or("a record can't be read")?;
        Ok((record, end, crc))
    }
}

fn parse(kind: u8, mut payload: Bytes) -> Option<Record> {
    Some(match kind {
        1 => Record::Sync(parse_sync(&payload)?.durable),
        2 => Record::Vote(payload),
        3 | 5 => {
            let index = payload.try_get_u64_le().ok()?;
            if kind == 3 {
                Record::Entry(index, payload)
            } else {
                Record::Purge(index, payload)
            }
        }
        4 => {
            let is_some = payload.try_get_u8().ok()? != 0;
            let after = payload.try_get_u64_le().ok()?;
            Record::Truncate(is_some.then_some(after))
        }
        6 => Record::Committed(payload),
        _ => return None,
    })
}

/// A sync record, found by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundSync {
    log: u64,
    at: Place,
    durable: Place,
}

fn sync_payload(log: u64, at: Place, durable: Place) -> [u8; SYNC_PAYLOAD] {
    let mut out = [0; SYNC_PAYLOAD];
    let mut rest = &mut out[..];
    rest.put_slice(SYNC_MAGIC);
    for number in [log, at.segment, at.offset, durable.segment, durable.offset] {
        rest.put_u64_le(number);
    }
    let crc = crc32c::crc32c(&out[..SYNC_PAYLOAD - 4]);
    out[SYNC_PAYLOAD - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn parse_sync(payload: &[u8]) -> Option<FoundSync> {
    let (body, crc) = payload.get(..SYNC_PAYLOAD)?.split_at(SYNC_PAYLOAD - 4);
    if crc32c::crc32c(body).to_le_bytes() != crc {
        return None;
    }
    let mut rest = body.strip_prefix(SYNC_MAGIC)?;
    let log = rest.get_u64_le();
    let at = Place {
        segment: rest.get_u64_le(),
        offset: rest.get_u64_le(),
    };
    let durable = Place {
        segment: rest.get_u64_le(),
        offset: rest.get_u64_le(),
    };
    Some(FoundSync { log, at, durable })
}

/// The highest durable mark in what stands at and after `from` in a segment, whatever is damaged around it.
pub fn durable_mark_after(segment: &[u8], number: u64, log: u64, from: u64) -> Option<Place> {
    let start = from as usize;
    let tail = segment.get(start..)?;
    let places = tail
        .windows(SYNC_MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == SYNC_MAGIC);
    let found = places.filter_map(|(at, _)| Some((start + at, parse_sync(&tail[at..])?)));
    let genuine = found.filter(|(payload_at, sync)| {
        let at = Place {
            segment: number,
            offset: (payload_at - RECORD_HEAD.min(*payload_at)) as u64,
        };
        sync.log == log && sync.at == at
    });
    genuine.map(|(_, sync)| sync.durable).max()
}

/// A segment's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Names the log: random, made with it.
    pub log: u64,
    /// Of the segment.
    pub number: u64,
    /// The crc before the first record.
    pub chain: u32,
    /// Length of the file.
    pub size: u64,
}

impl Head {
    /// As it stands in the file.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEAD as usize);
        out.put_slice(SEGMENT_MAGIC);
        out.put_u32_le(FORMAT);
        out.put_u32_le(self.chain);
        out.put_u64_le(self.log);
        out.put_u64_le(self.number);
        out.put_u64_le(self.size);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    /// Reads what [`Head::encode`] wrote. The error is a newer format, or what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Head, HeadError> {
        let (body, crc) = bytes
            .get(..HEAD as usize)
            .map(|head| head.split_at(HEAD as usize - 4))
            .ok_or(HeadError::Damaged("a segment is shorter than its head"))?;
        if crc32c::crc32c(body).to_le_bytes() != crc {
            return Err(HeadError::Damaged("a segment's head has a wrong checksum"));
        }
        let mut rest = body
            .strip_prefix(SEGMENT_MAGIC)
            .ok_or(HeadError::Damaged("not a segment of a log"))?;
        let format = rest.get_u32_le();
        if format != FORMAT {
            return Err(HeadError::Format(format));
        }
        let chain = rest.get_u32_le();
        Ok(Head {
            log: rest.get_u64_le(),
            number: rest.get_u64_le(),
            chain,
            size: rest.get_u64_le(),
        })
    }
}

/// Why a segment's head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadError {
    /// Written by another version.
    Format(u32),
    /// Not what was written.
    Damaged(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_in_their_chain_only() {
        let at = Place {
            segment: 3,
            offset: 100,
        };
        let records = [
            Record::Sync(Place {
                segment: 2,
                offset: 7,
            }),
            Record::Vote(Bytes::from_static(b"vote")),
            Record::Entry(9, Bytes::from_static(b"entry")),
            Record::Truncate(None),
            Record::Truncate(Some(4)),
            Record::Purge(2, Bytes::from_static(b"mark")),
            Record::Committed(Bytes::new()),
        ];
        for record in records {
            let mut out = BytesMut::new();
            let next = record.encode(&mut out, 17, 1, at);
            let bytes = out.freeze();
            assert_eq!(bytes.len(), record.len());
            assert_eq!(Record::decode(&bytes, 17), Ok((record, bytes.len(), next)));
            assert!(Record::decode(&bytes, 18).is_err(), "of another chain");
            assert!(Record::decode(&bytes.slice(..bytes.len() - 1), 17).is_err());
        }
    }

    #[test]
    fn a_sync_record_is_found_where_it_stands_and_nowhere_else() {
        let durable = Place {
            segment: 3,
            offset: 40,
        };
        let mut out = BytesMut::from(&[1_u8; 50][..]);
        Record::Sync(durable).encode(
            &mut out,
            5,
            77,
            Place {
                segment: 3,
                offset: 50,
            },
        );
        assert_eq!(durable_mark_after(&out, 3, 77, 10), Some(durable));
        assert_eq!(durable_mark_after(&out, 3, 78, 10), None, "another log's");
        assert_eq!(durable_mark_after(&out, 4, 77, 10), None, "another segment's");
        assert_eq!(durable_mark_after(&out[1..], 3, 77, 10), None, "at another place");
    }

    #[test]
    fn a_damaged_or_newer_head_is_refused() {
        let head = Head {
            log: 1,
            number: 2,
            chain: 3,
            size: 4,
        };
        let bytes = head.encode();
        assert_eq!(bytes.len() as u64, HEAD);
        assert_eq!(Head::decode(&bytes), Ok(head));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Head::decode(&flipped).is_err());
        }
        let mut newer = bytes[..HEAD as usize - 4].to_vec();
        newer[8] = 2;
        let crc = crc32c::crc32c(&newer);
        newer.extend(crc.to_le_bytes());
        assert_eq!(Head::decode(&newer), Err(HeadError::Format(2)));
    }
}
