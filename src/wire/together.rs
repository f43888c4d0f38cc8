//! A connection and its requests as one task, on either side.
//!
//! hyper would give each request of an HTTP/2 connection a task of its own. Its answer then wakes the connection's task,
//! perhaps on another core, which sends what it finds: often one answer, with a call of the system for it. Here one task
//! drives the connection *and* its requests: those that can go on do so first, then everything that they have to say is
//! sent at once. In return the requests of one connection share a core, so work that takes long is not done in a handler
//! itself, but by a task or thread that the handler waits for.
//!
//! On the side that calls, what hyper would spawn is a body on its way out and an answer that is waited for.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use tokio::io::AsyncWrite;
use tokio::task::unconstrained;

use super::turn::Turn;

/// After as many turns of a connection that always has new requests, other tasks have theirs.
const TURNS: usize = 4;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where hyper puts the requests of one connection as they begin: what it calls an executor.
#[derive(Clone, Default)]
pub struct Begun(Arc<Mutex<Vec<Request>>>);

impl Begun {
    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Begun {
    fn execute(&self, request: F) {
        self.lock().push(Box::pin(request));
    }
}

/// Wakes the task for its requests, and remembers it: a request may be woken while it runs, by what it hands to h2, and
/// the set of requests ends its turn after two such.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// A connection and its requests, until the connection ends; requests that are left are then dropped.
pub struct Together<C, S> {
    connection: Pin<Box<C>>,
    turn: Turn<S>,
    begun: Begun,
    running: FuturesUnordered<Request>,
    bell: Arc<Bell>,
}

impl<C: Future, S: AsyncWrite + Unpin> Together<C, S> {
    /// Drives a `connection` whose executor is `begun`, and which speaks by turns.
    pub fn new(connection: C, begun: Begun, turn: Turn<S>) -> Self {
        Together {
            connection: Box::pin(connection),
            turn,
            begun,
            running: FuturesUnordered::new(),
            bell: Arc::default(),
        }
    }

    /// The connection.
    pub fn connection(&mut self) -> Pin<&mut C> {
        self.connection.as_mut()
    }

    /// Lets every request go on that can. Their number is bounded, so they need no budget of tokio's.
    fn poll_running(&mut self, cx: &mut Context<'_>) {
        self.bell.task.register(cx.waker());
        let waker = Waker::from(self.bell.clone());
        let mut cx = Context::from_waker(&waker);
        for _ in 0..=self.running.len() {
            self.bell.rung.store(false, Ordering::Release);
            let ended = std::future::poll_fn(|cx| self.running.poll_next_unpin(cx));
            let mut ended = std::pin::pin!(unconstrained(ended));
            while let Poll::Ready(Some(())) = ended.as_mut().poll(&mut cx) {}
            if !self.bell.rung.load(Ordering::Acquire) {
                break;
            }
        }
    }

    /// Whether there were any.
    fn take_begun(&mut self) -> bool {
        let begun = std::mem::take(&mut *self.begun.lock());
        let any = !begun.is_empty();
        self.running.extend(begun);
        any
    }
}

impl<C: Future, S: AsyncWrite + Unpin> Together<C, S> {
    fn poll_turns(&mut self, cx: &mut Context<'_>) -> Poll<C::Output> {
        for _ in 0..TURNS {
            self.poll_running(cx);
            if let Poll::Ready(outcome) = self.connection.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            if !self.take_begun() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<C: Future, S: AsyncWrite + Unpin> Future for Together<C, S> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let polled = self.poll_turns(cx);
        self.turn.end(cx);
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use hyper::rt::Executor;

    use super::*;

    const REQUESTS: usize = 100;

    fn turn() -> Turn<tokio::io::Sink> {
        crate::wire::postponed(tokio::io::sink()).1
    }

    /// Begins all requests at its first turn, and ends at the second, with how many have answered by then.
    fn connection(begun: Begun, answered: Arc<AtomicUsize>) -> impl Future<Output = usize> {
        let mut has_begun = false;
        std::future::poll_fn(move |_| {
            if std::mem::replace(&mut has_begun, true) {
                return Poll::Ready(answered.load(Ordering::Relaxed));
            }
            for _ in 0..REQUESTS {
                let answered = answered.clone();
                begun.execute(async move {
                    // Wakes itself, as a watch stream does, and answers when it runs again.
                    let mut has_run = false;
                    std::future::poll_fn(|cx| match std::mem::replace(&mut has_run, true) {
                        true => Poll::Ready(()),
                        false => {
                            cx.waker().wake_by_ref();
                            Poll::Pending
                        }
                    })
                    .await;
                    answered.fetch_add(1, Ordering::Relaxed);
                });
            }
            Poll::Pending
        })
    }

    #[test]
    fn all_requests_that_can_go_on_do_before_anything_is_sent() {
        let (begun, answered) = (Begun::default(), Arc::default());
        let mut together = Together::new(connection(begun.clone(), answered), begun, turn());
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(Pin::new(&mut together).poll(&mut cx), Poll::Ready(REQUESTS));
    }

    #[tokio::test]
    async fn a_request_that_waits_is_woken_with_its_connection() {
        let (begun, (send, receive)) = (Begun::default(), tokio::sync::oneshot::channel::<usize>());
        let (tell, told) = tokio::sync::oneshot::channel::<usize>();
        begun.execute(async move {
            let number = receive.await.expect("sent");
            tell.send(number + 1).expect("the connection waits");
        });
        let together = Together::new(told, begun, turn());
        let driven = tokio::spawn(together);
        tokio::task::yield_now().await;
        send.send(1).expect("the request waits");
        assert_eq!(driven.await.expect("it ran"), Ok(2));
    }
}
