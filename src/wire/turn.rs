//! What a connection says in one turn of its task, in as few writes as that takes.
//!
//! h2 flushes behind every large frame: an answer of 300 KiB would be nineteen writes to the system, each of which wakes
//! whoever reads. Here a flush is a promise. The task that drives the connection keeps it at the end of its turn
//! ([`Turn::end`]), when h2 has said all that it has to say.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gathered::Gathered;

/// The most that is held back, in bytes.
const MOST: usize = 64 << 10;

struct Inner<S> {
    stream: Gathered<S>,
    /// Why what was promised can't be written.
    failed: Option<ErrorKind>,
}

impl<S> Inner<S> {
    fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

/// A connection as h2 has it: its flushes are kept later.
pub struct Postponed<S>(Arc<Mutex<Inner<S>>>);

/// The same for the task that drives it.
pub struct Turn<S>(Arc<Mutex<Inner<S>>>);

/// Both sides of a connection.
pub fn postponed<S>(stream: S) -> (Postponed<S>, Turn<S>) {
    let inner = Arc::new(Mutex::new(Inner {
        stream: Gathered::up_to(MOST, stream),
        failed: None,
    }));
    (Postponed(inner.clone()), Turn(inner))
}

fn lock<S>(inner: &Mutex<Inner<S>>) -> MutexGuard<'_, Inner<S>> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncWrite + Unpin> Turn<S> {
    /// Writes what was said. What the system does not take now goes out in a later turn, for which the task is woken.
    pub fn end(&self, cx: &mut Context<'_>) {
        let mut inner = lock(&self.0);
        if inner.failed.is_none()
            && let Poll::Ready(Err(error)) = Pin::new(&mut inner.stream).poll_flush(cx)
        {
            inner.failed = Some(error.kind());
            // So that h2 is told.
            cx.waker().wake_by_ref();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Postponed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        inner.check()?;
        Pin::new(&mut inner.stream).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(lock(&self.0).check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        inner.check()?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Postponed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        inner.check()?;
        Pin::new(&mut inner.stream).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_flushed_goes_out_at_the_end_of_the_turn() {
        let (near, mut far) = tokio::io::duplex(4 * MOST);
        let (mut connection, turn) = postponed(near);
        let mut read = vec![0; 2 * MOST];
        for part in [&b"one"[..], b"two"] {
            connection.write_all(part).await.expect("held");
            connection.flush().await.expect("promised");
        }
        let nothing = far.read(&mut read);
        tokio::select! {
            biased;
            _ = nothing => panic!("nothing was sent yet"),
            () = std::future::ready(()) => {}
        }
        std::future::poll_fn(|cx| {
            turn.end(cx);
            Poll::Ready(())
        })
        .await;
        let count = far.read(&mut read).await.expect("sent");
        assert_eq!(&read[..count], b"onetwo");
        // More than may be held goes out by itself.
        connection.write_all(&[7; MOST + 1]).await.expect("sent");
        assert_eq!(far.read(&mut read).await.expect("sent"), MOST + 1);
        // And so does what is held when the connection is closed.
        connection.write_all(b"last").await.expect("held");
        connection.shutdown().await.expect("closed");
        assert_eq!(far.read(&mut read).await.expect("sent"), 4);
        assert_eq!(far.read(&mut read).await.expect("ended"), 0);
    }

    #[tokio::test]
    async fn what_can_not_be_kept_is_told() {
        let (near, far) = tokio::io::duplex(16);
        let (mut connection, turn) = postponed(near);
        connection.write_all(b"promised").await.expect("held");
        drop(far);
        std::future::poll_fn(|cx| {
            turn.end(cx);
            Poll::Ready(())
        })
        .await;
        assert!(connection.flush().await.is_err());
        assert!(connection.write_all(b"more").await.is_err());
        assert!(connection.read_u8().await.is_err());
    }
}
