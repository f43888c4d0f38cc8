//! Events on their way from one writer to many watchers.
//!
//! All watch the key that is written. Its value begins with the time of the write, so each watcher knows how long the
//! event was under way: an operation of this workload is the delivery of an event to a watcher. How far the writer may
//! be ahead of the watchers is bounded, or a writer that nothing holds back would measure how much can be queued.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use super::caller::{Exchange, Line, Method};
use super::connections::lock;
use super::measured::{Measured, Outcome};
use super::schedule::Interval;
use super::wire::each;
use super::work::Shared;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};

/// Writes whose events are not yet with all watchers, at most.
const AHEAD: u32 = 16;
/// Bytes of the time in a value.
const STAMP: usize = 8;

/// What writer and watchers share.
pub struct FanOut {
    /// Times in values count from here.
    base: Instant,
    watchers: u64,
    room: Semaphore,
    written: AtomicU64,
    delivered: AtomicU64,
    /// How the writes went.
    pub writes: Arc<Mutex<Measured>>,
}

impl FanOut {
    /// For so many watchers.
    pub fn new(watchers: u64) -> FanOut {
        FanOut {
            base: Instant::now(),
            watchers,
            room: Semaphore::new(AHEAD as usize),
            written: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            writes: Arc::default(),
        }
    }

    /// Waits until the watchers are close behind.
    pub async fn await_room(&self) {
        // Closed when a watcher is lost, for which nobody may wait.
        if let Ok(room) = self.room.acquire().await {
            room.forget();
        }
    }

    /// What was awaited is not needed.
    pub fn give_room(&self) {
        self.room.add_permits(1);
    }

    /// A write was answered.
    pub fn wrote(&self, is_done: bool) {
        match is_done {
            true => {
                self.written.fetch_add(1, Ordering::Relaxed);
            }
            // Its events may never come.
            false => self.give_room(),
        }
    }

    /// A value that tells when it was written.
    pub fn stamped(&self, at: Instant, value: &[u8]) -> Bytes {
        let nanoseconds = at.saturating_duration_since(self.base).as_nanos() as u64;
        let padding = value.get(STAMP..).unwrap_or_default();
        [&nanoseconds.to_be_bytes()[..], padding].concat().into()
    }

    fn stamp(&self, value: &[u8]) -> Option<Instant> {
        let stamp = value.first_chunk::<STAMP>()?;
        self.base
            .checked_add(Duration::from_nanos(u64::from_be_bytes(*stamp)))
    }

    /// Waits until all that was written is with all watchers, but no longer than this; how many events are missing.
    pub async fn settle(&self, limit: Duration) -> u64 {
        let _ = tokio::time::timeout(limit, self.room.acquire_many(AHEAD)).await;
        let expected = self.written.load(Ordering::Relaxed) * self.watchers;
        expected.saturating_sub(self.delivered.load(Ordering::Relaxed))
    }

    /// Takes what a stream brings, until it ends.
    pub async fn receive(
        self: Arc<FanOut>,
        mut stream: Exchange,
        interval: Interval,
        measured: Arc<Mutex<Measured>>,
    ) {
        loop {
            let message = stream.message().await;
            let now = Instant::now();
            let delivered = match message {
                Ok(Some(message)) => self.deliver(message, now, &interval, &measured),
                Ok(None) => Err(Status::unavailable("the stream has ended")),
                Err(status) => Err(status),
            };
            if let Err(status) = delivered {
                return self.lose(&measured, &interval, now, status.code());
            }
        }
    }

    fn lose(&self, measured: &Mutex<Measured>, interval: &Interval, at: Instant, code: Code) {
        self.room.close();
        lock(measured).record(interval, at, at, Outcome::Failed(code));
    }

    fn deliver(
        &self,
        message: &[u8],
        now: Instant,
        interval: &Interval,
        measured: &Mutex<Measured>,
    ) -> Result<(), Status> {
        each_value(message, |value| {
            let Some(written) = self.stamp(value) else { return };
            lock(measured).record(interval, written, now, Outcome::Done);
            let delivered = self.delivered.fetch_add(1, Ordering::Relaxed) + 1;
            if delivered.is_multiple_of(self.watchers) {
                self.give_room();
            }
        })
    }
}

/// The values that a watch's answer brings, found where they lie: field 5 of field 2 of its fields 11.
fn each_value(message: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), Status> {
    let mut value = |value| {
        take(value);
        Ok(())
    };
    each(message, 11, |event| each(event, 2, |kv| each(kv, 5, &mut value)))
}

/// Opens a stream with so many watchers, and waits until all of them watch.
pub async fn open(shared: Arc<Shared>, mut line: Line, watchers: u64) -> Result<Exchange, Status> {
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: shared.plan.space.name(0),
            ..WatchCreateRequest::default()
        })),
    };
    let mut stream = line.open(Method::Watch, &create).await?;
    for _ in 1..watchers {
        stream.send(&create)?;
    }
    let mut created = 0;
    while created < watchers {
        match stream.next::<WatchResponse>().await? {
            Some(message) if message.canceled => return Err(Status::aborted(message.cancel_reason)),
            Some(message) => created += u64::from(message.created),
            None => return Err(Status::unavailable("the stream has ended")),
        }
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_value_tells_when_it_was_written() {
        let fan_out = FanOut::new(1);
        let at = fan_out.base + Duration::from_micros(1_234_567);
        let value = fan_out.stamped(at, &[7; 20]);
        assert_eq!((value.len(), &value[STAMP..]), (20, &[7; 12][..]));
        assert_eq!(fan_out.stamp(&value), Some(at));
        assert_eq!(fan_out.stamp(&fan_out.stamped(at, &[])), Some(at));
        assert_eq!(fan_out.stamp(b"short"), None);
    }

    #[tokio::test]
    async fn the_writer_is_no_further_ahead_than_it_may_be() {
        let fan_out = FanOut::new(2);
        for _ in 0..AHEAD {
            fan_out.await_room().await;
        }
        assert_eq!(fan_out.room.available_permits(), 0);
        let from = fan_out.base;
        let interval = Interval { from, until: None };
        let measured = Mutex::default();
        let event = crate::pb::mvccpb::Event {
            kv: Some(crate::pb::mvccpb::KeyValue {
                value: fan_out.stamped(from, b""),
                ..Default::default()
            }),
            ..Default::default()
        };
        let message = WatchResponse {
            events: vec![event],
            ..WatchResponse::default()
        };
        let message = message.encode_to_vec();
        let deliver = || fan_out.deliver(&message, from, &interval, &measured);
        deliver().expect("a message");
        assert_eq!(fan_out.room.available_permits(), 0);
        deliver().expect("a message");
        assert_eq!(fan_out.room.available_permits(), 1);
        assert_eq!(lock(&measured).answered, 2);
    }
}
