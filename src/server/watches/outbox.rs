//! What is on its way to one client: a queue with a bound.
//!
//! When it is full, nothing is thrown away and nobody waits: the watchers that it can't take more for are set back to
//! catching up, and are read from the store once there is room. Memory for a slow client is therefore the bound, and
//! what was taken out last, and one message beyond it, as what one revision holds is never cut.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;

use super::message::Message;
use crate::error::Error;

/// Bytes that may wait for a client,
const LIMIT: usize = 1 << 20;
/// and for each of its watchers: one event may concern them all.
const LIMIT_PER_WATCHER: usize = 1 << 10;
/// Bytes that are taken out at once, about.
const TAKEN: usize = 64 << 10;

/// Wakes the thread that catches up.
#[derive(Default)]
pub struct Alarm {
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Alarm {
    /// Wakes who waits, or who will wait next.
    pub fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_one();
    }

    /// Waits for a ring, `patience` at most.
    pub fn wait(&self, patience: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.bell.wait_timeout_while(rung, patience, |rung| !*rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// The queue of one stream.
pub struct Outbox {
    inner: Mutex<Inner>,
    /// There is room again.
    room: Notify,
    /// Rung when there is room again for watchers that were set back.
    alarm: Arc<Alarm>,
}

struct Inner {
    queue: VecDeque<Message>,
    bytes: usize,
    limit: usize,
    /// Why the stream has ended.
    end: Option<Error>,
    /// Somebody was turned away for lack of room.
    wanted: bool,
    /// Messages were put in that the other end was not told of.
    is_quiet: bool,
    /// Who waits for a message, or for the end.
    taker: Option<Waker>,
}

impl Inner {
    /// A full queue is filled again when it has come down to this.
    fn low(&self) -> usize {
        self.limit / 2
    }

    fn add(&mut self, message: Message) {
        self.bytes += message.size();
        self.queue.push_back(message);
    }
}

/// What became of messages that were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// None was added.
    NoRoom,
    /// They are the first that the other end was not told of: [`Outbox::announce`] is to be called once all that there is
    /// now was added, so that it goes out together.
    First,
    /// Added behind such.
    Behind,
}

impl Outbox {
    /// An empty one.
    pub fn new(alarm: Arc<Alarm>) -> Outbox {
        Outbox {
            inner: Mutex::new(Inner {
                queue: VecDeque::new(),
                bytes: 0,
                limit: LIMIT,
                end: None,
                wanted: false,
                is_quiet: false,
                taker: None,
            }),
            room: Notify::new(),
            alarm,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the bound, for so many watchers.
    pub fn set_watchers(&self, watchers: usize) {
        self.lock().limit = LIMIT + watchers * LIMIT_PER_WATCHER;
    }

    /// Whether one more message fits. Controls are sent without asking, as whoever asks for them waits for room first.
    pub fn has_room(&self) -> bool {
        let inner = self.lock();
        inner.bytes < inner.limit
    }

    /// Whether there is room for reading on in the past; if not, the alarm is rung when there is.
    pub fn has_room_or_rings(&self) -> bool {
        let mut inner = self.lock();
        let has_room = inner.bytes < inner.low();
        inner.wanted |= !has_room;
        has_room
    }

    /// Events that wait for the client.
    pub fn events(&self) -> usize {
        self.lock().queue.iter().map(Message::count).sum()
    }

    /// Adds a message, and says so.
    pub fn push(&self, message: Message) {
        self.lock().add(message);
        self.announce();
    }

    /// Adds messages that belong together, if there is room for one more.
    pub fn offer(&self, messages: impl IntoIterator<Item = Message>) -> Offered {
        let mut inner = self.lock();
        if inner.bytes >= inner.limit {
            return Offered::NoRoom;
        }
        messages.into_iter().for_each(|message| inner.add(message));
        match std::mem::replace(&mut inner.is_quiet, true) {
            true => Offered::Behind,
            false => Offered::First,
        }
    }

    /// Tells the other end that there are messages.
    pub fn announce(&self) {
        let taker = {
            let mut inner = self.lock();
            inner.is_quiet = false;
            inner.taker.take()
        };
        taker.into_iter().for_each(Waker::wake);
    }

    /// Ends the stream; messages that wait are given out before.
    pub fn end(&self, reason: Error) {
        let mut inner = self.lock();
        inner.end.get_or_insert(reason);
        let taker = inner.taker.take();
        drop(inner);
        taker.into_iter().for_each(Waker::wake);
        self.room.notify_waiters();
    }

    /// Takes out the next messages; if there are none, the task is woken when there are. An error is the end of the
    /// stream, and comes again. One task takes.
    pub fn poll_take(&self, cx: &Context<'_>, into: &mut VecDeque<Message>) -> Poll<Result<(), Error>> {
        let mut inner = self.lock();
        if inner.queue.is_empty() {
            if let Some(reason) = inner.end {
                return Poll::Ready(Err(reason));
            }
            inner.taker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let was_full = inner.bytes >= inner.limit;
        let mut taken = 0;
        while taken < TAKEN
            && let Some(message) = inner.queue.pop_front()
        {
            taken += message.size();
            into.push_back(message);
        }
        inner.bytes -= taken;
        let wanted = inner.bytes < inner.low() && std::mem::take(&mut inner.wanted);
        let room = was_full && inner.bytes < inner.limit;
        drop(inner);
        if room {
            self.room.notify_waiters();
        }
        if wanted {
            self.alarm.ring();
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until there is room for controls. An error is the end of the stream.
    pub async fn await_room(&self) -> Result<(), Error> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before looking, so that no room is missed.
            room.as_mut().enable();
            {
                let inner = self.lock();
                if let Some(reason) = inner.end {
                    return Err(reason);
                }
                if inner.bytes < inner.limit {
                    return Ok(());
                }
            }
            room.await;
        }
    }
}
