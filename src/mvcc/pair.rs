//! A pair's encoding, as protobuf has it, written without a look at who shares its bytes.
//!
//! prost clones `Bytes` to copy them. Each clone counts in memory that is often far from the processor: for a range of a
//! thousand pairs that were written at different times it takes as long as copying them.

use bytes::{BufMut, BytesMut};
use prost::encoding::{
    WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint, int64,
};

use crate::pb::mvccpb::KeyValue;

const KEY: u32 = 1;
const CREATE_REVISION: u32 = 2;
const MOD_REVISION: u32 = 3;
const VERSION: u32 = 4;
const VALUE: u32 = 5;
const LEASE: u32 = 6;

/// Bytes that the numbers take, at most, and tags and lengths.
pub const HEAD: usize = 64;

/// Appends a pair to a buffer.
pub fn encode(pair: &KeyValue, out: &mut BytesMut) {
    encode_behind(|_| (), pair, out);
}

/// Appends a pair as a field of another message.
pub fn encode_field(tag: u32, pair: &KeyValue, out: &mut BytesMut) {
    encode_behind(|head| encode_length(tag, length(pair), head), pair, out);
}

/// Appends what `before` writes, and a pair.
fn encode_behind(before: impl FnOnce(&mut &mut [u8]), pair: &KeyValue, out: &mut BytesMut) {
    let value = &pair.value;
    at_once(out, |head| {
        before(head);
        encode_head(KEY, &pair.key, head);
    });
    out.put_slice(&pair.key);
    at_once(out, |head| {
        encode_number(CREATE_REVISION, pair.create_revision, head);
        encode_number(MOD_REVISION, pair.mod_revision, head);
        encode_number(VERSION, pair.version, head);
        encode_head(VALUE, value, head);
    });
    out.put_slice(value);
    if pair.lease != 0 {
        at_once(out, |head| encode_number(LEASE, pair.lease, head));
    }
}

/// Appends what `write` puts into a few bytes of the stack: for each byte that is appended alone, a buffer that grows has
/// to be asked for room.
fn at_once(out: &mut BytesMut, write: impl FnOnce(&mut &mut [u8])) {
    let mut head = [0; HEAD];
    let mut free = &mut head[..];
    write(&mut free);
    let written = HEAD - free.len();
    out.put_slice(&head[..written]);
}

/// A pair as it is encoded, without a copy.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Skimmed<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Main revision of the put that began its generation.
    pub create_revision: i64,
    /// Puts in its generation.
    pub version: i64,
    /// The lease that it is attached to, 0 for none.
    pub lease: i64,
}

/// Reads what [`encode`] wrote; nothing if that is not what it is.
pub fn skim(mut bytes: &[u8]) -> Option<Skimmed<'_>> {
    let mut found = Skimmed::default();
    while !bytes.is_empty() {
        let (tag, kind) = decode_key(&mut bytes).ok()?;
        let number = decode_varint(&mut bytes).ok()?;
        let mut taken = || {
            let (taken, rest) = bytes.split_at_checked(usize::try_from(number).ok()?)?;
            bytes = rest;
            Some(taken)
        };
        match (tag, kind) {
            (KEY, WireType::LengthDelimited) => found.key = taken()?,
            (VALUE, WireType::LengthDelimited) => found.value = taken()?,
            (CREATE_REVISION, WireType::Varint) => found.create_revision = number as i64,
            (MOD_REVISION, WireType::Varint) => {}
            (VERSION, WireType::Varint) => found.version = number as i64,
            (LEASE, WireType::Varint) => found.lease = number as i64,
            _ => return None,
        }
    }
    Some(found)
}

/// What stands before a field of bytes, unless it is empty: then there is none.
fn encode_head(tag: u32, bytes: &[u8], out: &mut impl BufMut) {
    if !bytes.is_empty() {
        encode_length(tag, bytes.len(), out);
    }
}

fn encode_length(tag: u32, length: usize, out: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

fn encode_number(tag: u32, number: i64, out: &mut impl BufMut) {
    if number != 0 {
        int64::encode(tag, &number, out);
    }
}

fn length(pair: &KeyValue) -> usize {
    // Tags up to 15 take one byte.
    let bytes = |bytes: &[u8]| match bytes.len() {
        0 => 0,
        length => 1 + encoded_len_varint(length as u64) + length,
    };
    let number = |number: i64| match number {
        0 => 0,
        number => 1 + encoded_len_varint(number as u64),
    };
    let numbers = [pair.create_revision, pair.mod_revision, pair.version, pair.lease];
    bytes(&pair.key) + bytes(&pair.value) + numbers.into_iter().map(number).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::RangeResponse;

    #[test]
    fn a_pair_is_encoded_as_prost_does() {
        let numbers = [0, 1, 127, 128, 1 << 40, i64::MAX, -1];
        let lengths = [0, 1, 127, 128, 20_000];
        for (at, number) in numbers.into_iter().enumerate() {
            for length in lengths {
                let pair = KeyValue {
                    key: Bytes::from(vec![b'k'; length / 2]),
                    value: Bytes::from(vec![b'v'; length]),
                    create_revision: number,
                    mod_revision: numbers[(at + 1) % numbers.len()],
                    version: numbers[(at + 2) % numbers.len()],
                    lease: numbers[(at + 3) % numbers.len()],
                };
                let (mut alone, mut within) = (BytesMut::new(), BytesMut::new());
                encode(&pair, &mut alone);
                assert_eq!(alone, pair.encode_to_vec());
                let skimmed = Skimmed {
                    key: &pair.key,
                    value: &pair.value,
                    create_revision: pair.create_revision,
                    version: pair.version,
                    lease: pair.lease,
                };
                assert_eq!(skim(&alone), Some(skimmed));
                if !pair.value.is_empty() {
                    assert_eq!(skim(&alone[..pair.key.len() + 40.min(pair.value.len())]), None);
                }
                assert!(alone.len() <= HEAD + pair.key.len() + pair.value.len());
                encode_field(2, &pair, &mut within);
                let response = RangeResponse {
                    kvs: vec![pair],
                    ..RangeResponse::default()
                };
                assert_eq!(within, response.encode_to_vec());
            }
        }
    }
}
