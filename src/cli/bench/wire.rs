//! gRPC messages as they travel: cut out of a stream of bytes, and looked into without being built.
//!
//! HTTP/2 brings an answer in pieces that have nothing to do with messages. On a stream of them a message is
//!
//! ```text
//!   0  00 00 00 2a  0a 14 …            is it compressed? · its length · itself
//! ```
//!
//! and itself a row of fields, each a key (its number and its kind), then a number, or a length and as many bytes. A range
//! of a thousand keys is a thousand such fields: all that a load generator wants is how many. Built, they would cost it
//! more than the server, and a copy of all bytes; [`Tally`] counts them in the pieces as these come, in some ten steps each.
//! Of an event only a few bytes are wanted; [`each`] finds them in a message that is whole.

use tonic::Status;

/// Bytes before each message.
pub const HEAD: usize = 5;

/// Takes an answer's message, piece by piece.
pub trait Sink {
    /// The next piece.
    fn take(&mut self, piece: &[u8]) -> Result<(), Status>;
}

impl Sink for Vec<u8> {
    fn take(&mut self, piece: &[u8]) -> Result<(), Status> {
        self.extend_from_slice(piece);
        Ok(())
    }
}

/// Cuts what comes into messages.
#[derive(Default)]
pub struct Cutter {
    head: [u8; HEAD],
    /// How much of the head is there.
    known: usize,
    /// Bytes of the message that are still to come, once its head is there.
    left: usize,
}

impl Cutter {
    /// Hands on what `data` has of one message, and takes it from `data`; whether the message has its end there.
    pub fn cut(&mut self, data: &mut &[u8], sink: &mut impl Sink) -> Result<bool, Status> {
        if !self.knows_head(data)? {
            return Ok(false);
        }
        let (piece, rest) = data.split_at(self.left.min(data.len()));
        *data = rest;
        self.left -= piece.len();
        sink.take(piece)?;
        let is_whole = self.left == 0;
        if is_whole {
            self.known = 0;
        }
        Ok(is_whole)
    }

    /// Whether the last message is whole.
    pub fn is_between(&self) -> bool {
        self.known == 0
    }

    fn knows_head(&mut self, data: &mut &[u8]) -> Result<bool, Status> {
        if self.known == HEAD {
            return Ok(true);
        }
        let (taken, rest) = data.split_at((HEAD - self.known).min(data.len()));
        self.head[self.known..][..taken.len()].copy_from_slice(taken);
        self.known += taken.len();
        *data = rest;
        if self.known < HEAD {
            return Ok(false);
        }
        let [compressed, length @ ..] = self.head;
        if compressed != 0 {
            return Err(Status::internal("a compressed message, which was not asked for"));
        }
        self.left = u32::from_be_bytes(length) as usize;
        Ok(true)
    }
}

/// Counts how often a message has a field, which holds bytes: strings, messages.
pub struct Tally {
    field: u64,
    count: u64,
    at: At,
    number: Number,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq)]
enum At {
    /// A field's key.
    Key,
    /// A number, which says nothing.
    Value,
    /// How many bytes a field has.
    Length,
    /// So many bytes that say nothing.
    Skipped(u64),
}

impl Tally {
    /// Of the field with this number.
    pub fn of(field: u64) -> Tally {
        Tally {
            field,
            count: 0,
            at: At::Key,
            number: Number::default(),
        }
    }

    /// How many there were, once the message is whole.
    pub fn count(&self) -> Result<u64, Status> {
        match self.at == At::Key && self.number.is_whole() {
            true => Ok(self.count),
            false => Err(malformed()),
        }
    }

    /// What comes after a key.
    fn after(&mut self, key: u64) -> Result<At, Status> {
        let (kind, is_wanted) = parted(key, self.field)?;
        self.count += u64::from(is_wanted);
        match kind {
            0 => Ok(At::Value),
            1 => Ok(At::Skipped(8)),
            2 => Ok(At::Length),
            5 => Ok(At::Skipped(4)),
            // Groups, which proto3 does not have.
            _ => Err(malformed()),
        }
    }
}

impl Sink for Tally {
    fn take(&mut self, mut piece: &[u8]) -> Result<(), Status> {
        while let Some((first, rest)) = piece.split_first() {
            if let At::Skipped(left) = self.at {
                let skipped = left.min(piece.len() as u64);
                piece = &piece[skipped as usize..];
                self.at = skip(left - skipped);
                continue;
            }
            piece = rest;
            let Some(number) = self.number.push(*first)? else {
                continue;
            };
            self.at = match self.at {
                At::Key => self.after(number)?,
                At::Length => skip(number),
                At::Value | At::Skipped(_) => At::Key,
            };
        }
        Ok(())
    }
}

fn skip(bytes: u64) -> At {
    match bytes {
        0 => At::Key,
        bytes => At::Skipped(bytes),
    }
}

/// The kind that a key tells, and whether its field is the one that is wanted: if so, it holds bytes.
fn parted(key: u64, wanted: u64) -> Result<(u64, bool), Status> {
    let (field, kind) = (key >> 3, key & 7);
    let is_wanted = field == wanted;
    match field == 0 || (is_wanted && kind != 2) {
        true => Err(malformed()),
        false => Ok((kind, is_wanted)),
    }
}

/// Hands on what each field with this number holds.
pub fn each<'a>(
    message: &'a [u8],
    field: u64,
    mut take: impl FnMut(&'a [u8]) -> Result<(), Status>,
) -> Result<(), Status> {
    let mut rest = message;
    while !rest.is_empty() {
        let key = Number::first(&mut rest)?;
        let (kind, is_wanted) = parted(key, field)?;
        let length = match kind {
            0 => {
                Number::first(&mut rest)?;
                continue;
            }
            1 => 8,
            2 => Number::first(&mut rest)?,
            5 => 4,
            _ => return Err(malformed()),
        };
        let length = usize::try_from(length).map_err(|_| malformed())?;
        let (held, after) = rest.split_at_checked(length).ok_or_else(malformed)?;
        rest = after;
        if is_wanted {
            take(held)?;
        }
    }
    Ok(())
}

/// A number of seven bits a byte, the lowest first; the last byte has no eighth bit.
#[derive(Default)]
struct Number {
    value: u64,
    shift: u32,
}

impl Number {
    /// The number, if this byte is its last.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, Status> {
        if self.shift == 63 && byte > 1 {
            return Err(malformed());
        }
        self.value |= u64::from(byte & 0x7f) << self.shift;
        if byte & 0x80 != 0 {
            self.shift += 7;
            return Ok(None);
        }
        Ok(Some(std::mem::take(self).value))
    }

    /// The number that these bytes begin with, which lose it.
    fn first(bytes: &mut &[u8]) -> Result<u64, Status> {
        let mut number = Number::default();
        loop {
            let (first, rest) = bytes.split_first().ok_or_else(malformed)?;
            *bytes = rest;
            if let Some(number) = number.push(*first)? {
                return Ok(number);
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.shift == 0
    }
}

fn malformed() -> Status {
    Status::internal("the answer is no message that can be read")
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::{RangeResponse, ResponseHeader};
    use crate::pb::mvccpb::KeyValue;

    /// Field number of the pairs in a range's answer.
    const KVS: u64 = 2;

    fn message(keys: usize, value: usize) -> Vec<u8> {
        let kv = KeyValue {
            key: b"/bench/17".as_slice().into(),
            mod_revision: i64::MAX,
            value: vec![0x12; value].into(),
            ..KeyValue::default()
        };
        let answer = RangeResponse {
            header: Some(ResponseHeader {
                cluster_id: u64::MAX,
                ..ResponseHeader::default()
            }),
            kvs: vec![kv; keys],
            more: true,
            count: 1 << 40,
        };
        answer.encode_to_vec()
    }

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let framed = |message: &&[u8]| {
            let length = u32::try_from(message.len()).expect("small").to_be_bytes();
            [&[0], &length[..], message].concat()
        };
        messages.iter().flat_map(framed).collect()
    }

    fn count(message: &[u8], pieces: usize) -> Result<u64, Status> {
        let mut tally = Tally::of(KVS);
        for piece in message.chunks(pieces) {
            tally.take(piece)?;
        }
        tally.count()
    }

    /// The values of the pairs.
    fn values(message: &[u8]) -> Result<Vec<Vec<u8>>, Status> {
        let mut values = Vec::new();
        each(message, KVS, |kv| {
            each(kv, 5, |value| {
                values.push(value.to_vec());
                Ok(())
            })
        })?;
        Ok(values)
    }

    #[test]
    fn messages_are_cut_wherever_the_pieces_end() {
        let messages = [&b"one"[..], b"", &[7; 300], b"four"];
        let stream = framed(&messages);
        for size in 1..stream.len() {
            let (mut cutter, mut found, mut message) = (Cutter::default(), Vec::new(), Vec::new());
            for mut piece in stream.chunks(size) {
                while !piece.is_empty() {
                    if cutter.cut(&mut piece, &mut message).expect("well formed") {
                        found.push(std::mem::take(&mut message));
                    }
                }
            }
            assert_eq!(found, messages, "pieces of {size}");
            assert!(cutter.is_between());
        }
    }

    #[test]
    fn a_message_that_is_cut_off_is_not_whole() {
        let stream = framed(&[b"one"]);
        for length in 1..stream.len() {
            let mut cutter = Cutter::default();
            let whole = cutter.cut(&mut &stream[..length], &mut Vec::new());
            assert_eq!((whole.expect("well formed"), cutter.is_between()), (false, false));
        }
    }

    #[test]
    fn a_compressed_message_is_refused() {
        let cut = Cutter::default().cut(&mut &[1, 0, 0, 0, 1, 7][..], &mut Vec::new());
        assert_eq!(cut.expect_err("compressed").code(), tonic::Code::Internal);
    }

    #[test]
    fn pairs_are_counted_wherever_the_pieces_end() {
        for (keys, value) in [(0, 0), (1, 0), (3, 127), (5, 128), (2, 20_000)] {
            let message = message(keys, value);
            for size in [1, 2, 3, 7, 130, 16_384, message.len()] {
                assert_eq!(count(&message, size).ok(), Some(keys as u64), "{value}, {size}");
            }
        }
        assert_eq!(Tally::of(KVS).count().ok(), Some(0));
    }

    #[test]
    fn what_has_no_end_is_not_counted() {
        let message = message(2, 10);
        // But where a field ends: that is a message too.
        let ends = [0, 13, 13 + 35, 13 + 70, 13 + 72];
        for length in 0..message.len() {
            let decoded = RangeResponse::decode(&message[..length]).ok();
            assert_eq!(decoded.is_some(), ends.contains(&length), "{length}");
            let counted = count(&message[..length], 7).ok();
            assert_eq!(counted, decoded.map(|found| found.kvs.len() as u64), "{length}");
        }
    }

    #[test]
    fn other_kinds_of_fields_are_passed_over() {
        // Field 15: eight bytes, four bytes, a number.
        let others = [&[0x79; 9][..], &[0x7d; 5], &[0x78, 0x80, 0x01]].concat();
        let message = [&others, &message(2, 1)[..]].concat();
        assert_eq!(count(&message, 5).ok(), Some(2));
        assert_eq!(values(&message).ok(), Some(vec![vec![0x12]; 2]));
    }

    #[test]
    fn fields_are_found_in_fields() {
        for (keys, value) in [(0, 0), (1, 1), (3, 127), (2, 128)] {
            let found = values(&message(keys, value)).expect("a message");
            assert_eq!(found, vec![vec![0x12; value]; keys]);
        }
        let message = message(2, 10);
        for length in 0..message.len() {
            let is_message = RangeResponse::decode(&message[..length]).is_ok();
            assert_eq!(values(&message[..length]).is_ok(), is_message, "{length}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for wrong in [
            // Field 0; the pairs as a number; groups; a number of eleven bytes, of more than 64 bits.
            &[0x02, 0x00][..],
            &[0x10, 0x01],
            &[0x1b, 0x1c],
            &[0x1f],
            &[
                0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01,
            ],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
        ] {
            assert!(count(wrong, 3).is_err(), "{wrong:x?}");
            assert!(each(wrong, KVS, |_| Ok(())).is_err(), "{wrong:x?}");
            assert!(RangeResponse::decode(wrong).is_err(), "{wrong:x?}");
        }
    }
}
