//! Clients that name a URL where an authority belongs.
//!
//! HTTP/2's `:authority` is a host and a port (RFC 9113 §8.3.1). Clients made with etcd's own library send other things
//! there: version 3.4 a whole URL in calls to one chosen endpoint (`endpoint status`, `defrag`), early 3.5 the list of
//! all endpoints behind a `#`. etcd's server never looks, ours would reset the stream: h2 takes it for malformed. So
//! [`Lenient`] reads along with a connection, and puts a valid authority in place of one that is none.
//!
//! Only the first request is looked at, and when it is sound, nothing more: the connection then costs what it cost
//! before. A client that errs once is read along to its end, for it may err again.
//!
//! The replacement needs no knowledge of what was sent before, though header compression (HPACK, RFC 7541) has both
//! ends keep a table of what was sent: entries are counted from the newest, and the oldest fall out by the table's
//! size. [`PLACEHOLDER`] is shorter than all that it replaces. So our table keeps at least the entries that the client
//! believes in, in the same order, and every reference finds its entry.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How every HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, type, flags and stream, in bytes.
const FRAME_HEAD: usize = 9;
/// The longest frame that a client may send us, in bytes: HTTP/2's default.
const FRAME_MOST: usize = 16 << 10;
/// The type of the frame that begins a request.
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Of HPACK's static table.
const AUTHORITY: usize = 1;
/// What stands for an authority that is none: as a string of HPACK, plain, with its length before it.
const PLACEHOLDER: &[u8] = b"\x04etcd";
/// How what is no authority begins: in plain letters; in HPACK's Huffman code, filled up with ones; and how many bits
/// of that count.
const STRANGE: [(&[u8], &[u8], usize); 4] = [
    (b"http://", &[0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x7f], 41),
    (b"https://", &[0x9d, 0x29, 0xad, 0x17, 0x18, 0x63], 46),
    (b"unix:", &[0xb6, 0xa3, 0x79, 0xb9], 31),
    (
        b"#initially",
        &[0xff, 0xa3, 0x54, 0x64, 0x98, 0x74, 0x51, 0xeb],
        62,
    ),
];

/// A connection whose client may err in the authority.
pub struct Lenient<S> {
    inner: S,
    phase: Phase,
    /// Came in and was not looked at yet: at most one frame and what came with its end.
    unread: BytesMut,
    /// Looked at, to be handed on.
    ready: BytesMut,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Nothing is known yet.
    Preface,
    /// At the head of a frame. Whether a request erred before.
    Frame { erred: bool },
    /// So many bytes of a frame that doesn't matter are to come.
    Body { left: usize, erred: bool },
    /// Nothing more to look for.
    Sound,
}

impl<S> Lenient<S> {
    /// Reads along with `inner`, from its beginning.
    pub fn new(inner: S) -> Self {
        Lenient {
            inner,
            phase: Phase::Preface,
            unread: BytesMut::new(),
            ready: BytesMut::new(),
        }
    }

    /// Moves what can be judged from `unread` to `ready`.
    fn look(&mut self) {
        while self.step() {}
    }

    /// Whether there may be more to judge.
    fn step(&mut self) -> bool {
        match self.phase {
            Phase::Preface => self.preface(),
            Phase::Frame { erred } => self.frame(erred),
            Phase::Body { left, erred } => {
                let taken = left.min(self.unread.len());
                self.hand_on(taken);
                self.phase = match left - taken {
                    0 => Phase::Frame { erred },
                    left => Phase::Body { left, erred },
                };
                taken == left
            }
            Phase::Sound => {
                self.hand_on(self.unread.len());
                false
            }
        }
    }

    fn preface(&mut self) -> bool {
        let seen = self.unread.len().min(PREFACE.len());
        if self.unread[..seen] != PREFACE[..seen] {
            // HTTP/1, or nothing that we speak.
            self.phase = Phase::Sound;
            return true;
        }
        if seen < PREFACE.len() {
            return false;
        }
        self.hand_on(seen);
        self.phase = Phase::Frame { erred: false };
        true
    }

    fn frame(&mut self, erred: bool) -> bool {
        let Some(head) = self.unread.first_chunk::<FRAME_HEAD>() else {
            return false;
        };
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        if length > FRAME_MOST {
            // Refused by who reads it.
            self.phase = Phase::Sound;
            return true;
        }
        if kind != HEADERS {
            self.hand_on(FRAME_HEAD);
            self.phase = Phase::Body { left: length, erred };
            return true;
        }
        if self.unread.len() < FRAME_HEAD + length {
            return false;
        }
        match strange_authority(&self.unread[FRAME_HEAD..][..length], flags) {
            Some((from, to)) => {
                self.replace(FRAME_HEAD + from, FRAME_HEAD + to, length);
                self.phase = Phase::Frame { erred: true };
            }
            None if erred => self.hand_on(FRAME_HEAD + length),
            None => self.phase = Phase::Sound,
        }
        true
    }

    /// Hands on the frame of `length` at hand, with the placeholder in place of its bytes `from..to`.
    fn replace(&mut self, from: usize, to: usize, length: usize) {
        let mut frame = self.unread.split_to(FRAME_HEAD + length);
        let shorter = (length - (to - from) + PLACEHOLDER.len()) as u32;
        frame[..3].copy_from_slice(&shorter.to_be_bytes()[1..]);
        self.ready.extend_from_slice(&frame[..from]);
        self.ready.extend_from_slice(PLACEHOLDER);
        self.ready.extend_from_slice(&frame[to..]);
    }

    fn hand_on(&mut self, bytes: usize) {
        let taken = self.unread.split_to(bytes);
        match self.ready.is_empty() {
            true => self.ready = taken,
            false => self.ready.extend_from_slice(&taken),
        }
    }
}

/// Where in a HEADERS frame's payload an authority stands that is none: the whole string, with its length.
fn strange_authority(payload: &[u8], flags: u8) -> Option<(usize, usize)> {
    let mut at = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    // The pseudo-headers come first; the walk ends with the first authority, or with what is no header.
    loop {
        let name = match *payload.get(at)? {
            // An indexed field, or a change of the table's size: nothing behind it.
            first if first & 0x80 != 0 => {
                integer(payload, &mut at, 7)?;
                continue;
            }
            first if first & 0xe0 == 0x20 => {
                integer(payload, &mut at, 5)?;
                continue;
            }
            first if first & 0x40 != 0 => integer(payload, &mut at, 6)?,
            _ => integer(payload, &mut at, 4)?,
        };
        if name == 0 {
            string(payload, &mut at)?;
        }
        let from = at;
        let (text, is_huffman) = string(payload, &mut at)?;
        if name == AUTHORITY {
            return is_strange(text, is_huffman).then_some((from, at));
        }
    }
}

fn is_strange(text: &[u8], is_huffman: bool) -> bool {
    STRANGE.iter().any(|(plain, coded, bits)| match is_huffman {
        true => begins_with_bits(text, coded, *bits),
        false => text.starts_with(plain),
    })
}

fn begins_with_bits(text: &[u8], beginning: &[u8], bits: usize) -> bool {
    let (whole, rest) = (bits / 8, bits % 8);
    let differs = |a: u8, b: u8| (a ^ b) & !(0xff >> rest) != 0;
    text.starts_with(&beginning[..whole])
        && (rest == 0
            || text
                .get(whole)
                .is_some_and(|byte| !differs(*byte, beginning[whole])))
}

/// An integer of HPACK whose first byte has `bits` for it (RFC 7541 §5.1).
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1 << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    // No frame has room for what needs more bytes than three.
    for shift in [0, 7, 14] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A string of HPACK (RFC 7541 §5.2), and whether it is in Huffman's code.
fn string<'a>(block: &'a [u8], at: &mut usize) -> Option<(&'a [u8], bool)> {
    let is_huffman = *block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let text = block.get(*at..*at + length)?;
    *at += length;
    Some((text, is_huffman))
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.ready.is_empty() {
                let taken = this.ready.len().min(buf.remaining());
                buf.put_slice(&this.ready[..taken]);
                this.ready.advance(taken);
                return Poll::Ready(Ok(()));
            }
            if this.phase == Phase::Sound {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            let mut chunk = [std::mem::MaybeUninit::uninit(); 4096];
            let mut chunk = ReadBuf::uninit(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
            match chunk.filled() {
                // The end: whatever is left is for the reader to judge.
                [] => this.phase = Phase::Sound,
                read => this.unread.extend_from_slice(read),
            }
            this.look();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A frame with its head.
    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// The fields of a POST over http, then the authority as a literal that goes into the table, then a path.
    fn request(authority: &[u8]) -> Vec<u8> {
        [&[0x83, 0x86, 0x41][..], authority, b"\x44\x02/a"].concat()
    }

    fn plain(text: &str) -> Vec<u8> {
        [&[text.len() as u8][..], text.as_bytes()].concat()
    }

    /// What is read of `sent`, which arrives in pieces of `piece` bytes.
    async fn heard(sent: &[u8], piece: usize) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(piece);
        let send = async move {
            client.write_all(sent).await.expect("memory can be written");
        };
        let mut heard = Vec::new();
        let mut lenient = Lenient::new(server);
        let ((), read) = tokio::join!(send, lenient.read_to_end(&mut heard));
        read.expect("memory can be read");
        heard
    }

    #[tokio::test]
    async fn a_url_for_an_authority_is_replaced() {
        // "http://127.0.0.1:2379" as Go's client codes it.
        let coded: &[u8] = &[
            0x90, 0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x04, 0x3d, 0xb5, 0xb9, 0x70, 0x5c, 0x42, 0xe2, 0xe0, 0xb9,
            0xff,
        ];
        for strange in [
            coded.to_vec(),
            plain("http://a:1"),
            plain("https://a:1"),
            plain("unix:/a"),
            plain("#initially=[a]"),
        ] {
            let settings = frame(4, 0, &[]);
            let data = frame(0, 1, b"http://");
            let next = frame(HEADERS, 4, &[0x83, 0x86, 0xbf, 0x44, 2, b'/', b'b']);
            let sent = [
                PREFACE,
                &settings,
                &frame(HEADERS, 4, &request(&strange)),
                &data,
                &next,
            ]
            .concat();
            let mended = frame(HEADERS, 4, &request(PLACEHOLDER));
            let expected = [PREFACE, &settings, &mended, &data, &next].concat();
            for piece in [1, 7, 1000] {
                assert_eq!(
                    heard(&sent, piece).await,
                    expected,
                    "{strange:x?} in pieces of {piece}"
                );
            }
        }
    }

    #[tokio::test]
    async fn padding_and_priority_stand_before_the_fields() {
        let fields = request(&plain("http://a:1"));
        let mended = request(PLACEHOLDER);
        for (flags, before, behind) in [(PADDED, &[2][..], &[0, 0][..]), (PRIORITY, &[0, 0, 0, 0, 7], &[])] {
            let payload = |fields: &[u8]| [before, fields, behind].concat();
            let sent = [PREFACE, &frame(HEADERS, flags, &payload(&fields))].concat();
            let expected = [PREFACE, &frame(HEADERS, flags, &payload(&mended))].concat();
            assert_eq!(heard(&sent, 1000).await, expected);
        }
    }

    #[tokio::test]
    async fn what_is_sound_or_unknown_is_left_as_it_is() {
        let sound = frame(HEADERS, 4, &request(&plain("127.0.0.1:2379")));
        let later = frame(HEADERS, 4, &request(&plain("http://a:1")));
        let long = [&[0xff, 0xff, 0xff, HEADERS, 0, 0, 0, 0, 1][..], b"http://"].concat();
        for sent in [
            b"GET /health HTTP/1.1\r\n\r\n".to_vec(),
            b"PRI * HTTP/1.0".to_vec(),
            PREFACE[..10].to_vec(),
            [PREFACE, &sound, &later].concat(),
            [PREFACE, &long].concat(),
            // A string that is longer than its frame, and an integer without an end.
            [PREFACE, &frame(HEADERS, 4, &[0x41, 0x20, b'h'])].concat(),
            [PREFACE, &frame(HEADERS, 4, &[0xff; 20])].concat(),
            [PREFACE, &sound[..12]].concat(),
        ] {
            for piece in [1, 1000] {
                assert_eq!(heard(&sent, piece).await, sent);
            }
        }
    }

    #[test]
    fn the_placeholder_is_shorter_than_what_it_replaces() {
        for (plain, _, _) in STRANGE {
            assert!(PLACEHOLDER.len() - 1 <= plain.len());
        }
    }
}
