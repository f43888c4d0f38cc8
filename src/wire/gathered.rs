//! A connection whose small writes wait for each other.
//!
//! h2 keeps frames in a buffer of 16 KiB and writes it at once; but the payload of a DATA frame is written from where it
//! is, and with it all that stands before it, whenever it is larger than a threshold: 256 bytes where the connection takes
//! vectored writes, 1 KiB where it does not. So with vectored writes every answer with a value of some hundred bytes is a
//! call of the system: a third of what a get costs a member. [`Gathered`] says that it takes none. Then small payloads are
//! copied into h2's buffer, and all answers that are ready go out in one write.
//!
//! Without vectored writes h2 writes a large payload in two parts, the second without a copy. The first part is held back
//! here until the second comes or h2 is done ([`AsyncWrite::poll_flush`]), and they go out together.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is held back, in bytes: a frame's head, what h2 puts beside it, and some frames before.
const MOST: usize = 2 << 10;

/// Room for so much is kept when nothing is held.
const KEPT: usize = 4 << 10;

/// A connection whose small writes wait for each other.
pub struct Gathered<S> {
    inner: S,
    /// Accepted and not written yet; at most `most`.
    held: Vec<u8>,
    most: usize,
}

impl<S> Gathered<S> {
    /// Gathers what is written to `inner`.
    pub fn new(inner: S) -> Self {
        Gathered::up_to(MOST, inner)
    }

    /// The same, and holds this many bytes back.
    pub fn up_to(most: usize, inner: S) -> Self {
        Gathered {
            inner,
            held: Vec::new(),
            most,
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn poll_write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))?;
            self.forget(written)?;
        }
        Poll::Ready(Ok(()))
    }

    /// So many bytes of what is held were written.
    fn forget(&mut self, written: usize) -> io::Result<()> {
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        self.held.drain(..written);
        if self.held.is_empty() && self.held.capacity() > KEPT {
            self.held = Vec::new();
        }
        Ok(())
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let length = this.held.len() + data.len();
        if length <= this.most {
            if length > KEPT && this.held.capacity() < this.most {
                this.held.reserve_exact(this.most - this.held.len());
            }
            this.held.extend_from_slice(data);
            return Poll::Ready(Ok(data.len()));
        }
        while !this.held.is_empty() {
            let both = [IoSlice::new(&this.held), IoSlice::new(data)];
            let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, &both))?;
            if let Some(taken @ 1..) = written.checked_sub(this.held.len()) {
                this.forget(this.held.len())?;
                return Poll::Ready(Ok(taken));
            }
            this.forget(written)?;
        }
        Pin::new(&mut this.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Takes at most so many bytes at a time, and remembers how many each write brought.
    struct Narrow {
        most: usize,
        taken: Vec<u8>,
        writes: Vec<usize>,
    }

    fn narrow(most: usize) -> Gathered<Narrow> {
        Gathered::new(Narrow {
            most,
            taken: Vec::new(),
            writes: Vec::new(),
        })
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            let taken = data.len().min(self.most);
            self.taken.extend_from_slice(&data[..taken]);
            self.writes.push(taken);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            data: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = data.iter().flat_map(|part| part.iter().copied()).collect();
            self.poll_write(cx, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_writes_go_out_together_and_with_a_large_one() {
        let mut gathered = narrow(usize::MAX);
        for part in [&b"head"[..], b"body"] {
            gathered.write_all(part).await.expect("room");
        }
        assert!(gathered.inner.writes.is_empty());
        gathered.flush().await.expect("written");
        gathered.write_all(b"head").await.expect("room");
        gathered.write_all(&[7; 3 * MOST]).await.expect("written");
        assert_eq!(gathered.inner.writes, [8, 4 + 3 * MOST]);
    }

    #[tokio::test]
    async fn bytes_keep_their_order_however_little_is_taken() {
        let sizes = [1, MOST - 1, MOST, 5, 2 * MOST, 3, MOST + 1, 700, 700, 700, 700];
        for most in [1, 7, MOST - 1, MOST + 3, usize::MAX] {
            let mut gathered = narrow(most);
            let mut sent = Vec::new();
            for (number, size) in sizes.iter().enumerate() {
                let part = vec![number as u8; *size];
                gathered.write_all(&part).await.expect("written");
                sent.extend_from_slice(&part);
            }
            gathered.shutdown().await.expect("written");
            assert!(gathered.inner.taken == sent, "at most {most} bytes at a time");
        }
    }

    #[tokio::test]
    async fn what_takes_nothing_is_an_error_and_reads_pass() {
        let mut gathered = narrow(0);
        gathered.write_all(b"held").await.expect("held");
        let refused = gathered.flush().await.expect_err("nothing is taken");
        assert_eq!(refused.kind(), ErrorKind::WriteZero);
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"hello").await.expect("room");
        let mut read = [0; 5];
        Gathered::new(near).read_exact(&mut read).await.expect("there");
        assert_eq!(&read, b"hello");
    }
}
