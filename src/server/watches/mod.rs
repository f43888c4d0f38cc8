//! Watching: changes told to whoever asked, in order, once, completely.
//!
//! Apply tells the [`hub`] of every change through a feed that never holds it up; who watches what stands in its
//! [`registry`]. One thread hands live events to the watchers that are up to date, another reads to the rest from the
//! store. What is on its way to a client waits in a bounded [`outbox`]; the services take it from there. Which watchers an
//! event concerns is found in the [`index`]; it is encoded once for all of them ([`message`]).
//!
//! **How to use it.** A stream has two ends. Requests are etcd's; answers are etcd's too, their events still encoded:
//!
//! ```ignore
//! let (requests, mut responses) = server.watches().open();
//! requests.create(&WatchCreateRequest { key, start_revision, ..Default::default() }).await?;
//! loop {
//!     let response = responses.next().await?.into_response(); // or encode the message into an answer of one's own
//!     // first one with `created`, then events; `canceled` with a `compact_revision` if they are gone
//! }
//! ```
//!
//! Dropping the responses ends the stream and its watchers; dropping the requests changes nothing. An error is the end
//! of the stream: the member stops. What a client asks for goes through [`Requests::send`], with who it is: it is held
//! against that user's rights, then and whenever those change. The header of a response has its revision only, `api::header` knows the rest.
//!
//! To wait for a key to change after something was read at revision r, watch it from r + 1: nothing is missed.

mod fan_out;
pub mod hub;
mod index;
mod message;
mod outbox;
mod registry;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::hub::{Hub, Options, Owner};
use self::outbox::Outbox;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};
use crate::raft::feed::Feed;
use crate::raft::replica::Failure;
use crate::server::auth::Caller;
use crate::state::Reader;
use crate::storage;

pub use message::{Message, encoded};

/// How often idle watchers are looked at, as a part of the progress interval.
const TICKS_PER_INTERVAL: u32 = 10;
/// The shortest pause between two looks.
const SHORTEST_TICK: Duration = Duration::from_millis(10);
/// The longest that a thread sleeps.
const PATIENCE: Duration = Duration::from_secs(1);

/// The watches of a member. Cheap to clone.
#[derive(Clone)]
pub struct Watches {
    running: Arc<Running>,
}

struct Running {
    hub: Arc<Hub>,
    feed: Feed,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watches {
    /// Starts the two threads; they end with the last clone.
    pub fn start(
        reader: Reader,
        feed: Feed,
        failure: Failure,
        metrics: Arc<Metrics>,
        options: Options,
    ) -> Watches {
        feed.listen();
        let hub = Arc::new(Hub::new(reader, feed.clone(), metrics, options));
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = |name: &str, work: Box<dyn Fn() -> storage::Result<()> + Send>| {
            let (stopping, failure) = (stopping.clone(), failure.clone());
            let run = move || {
                while !stopping.load(Ordering::Relaxed) {
                    if let Err(error) = work() {
                        return failure.report(format!("cannot read the applied state for a watch: {error}"));
                    }
                }
            };
            let spawned = std::thread::Builder::new().name(name.to_string()).spawn(run);
            spawned.expect("the system has room for one more thread at start")
        };
        let live = {
            let (hub, feed) = (hub.clone(), feed.clone());
            let tick = (options.progress_interval / TICKS_PER_INTERVAL).clamp(SHORTEST_TICK, PATIENCE);
            let next_tick = std::cell::Cell::new(Instant::now() + tick);
            move || {
                let news = feed.next(next_tick.get().saturating_duration_since(Instant::now()));
                let now = Instant::now();
                if let Some(news) = news {
                    hub.tell(news, now)?;
                }
                if now >= next_tick.get() {
                    hub.tick(now);
                    next_tick.set(now + tick);
                }
                Ok(())
            }
        };
        let past = {
            let hub = hub.clone();
            move || {
                if !hub.catch_up(Instant::now())? {
                    hub.alarm.wait(PATIENCE);
                }
                Ok(())
            }
        };
        let threads = vec![
            thread("watch-live", Box::new(live)),
            thread("watch-past", Box::new(past)),
        ];
        Watches {
            running: Arc::new(Running {
                hub,
                feed,
                stopping,
                threads,
            }),
        }
    }

    /// How many there are now.
    pub fn counts(&self) -> hub::Counts {
        self.running.hub.counts()
    }

    /// A new stream of any number of watchers.
    pub fn open(&self) -> (Requests, Responses) {
        let (stream, outbox) = self.running.hub.open();
        let requests = Requests {
            hub: self.running.hub.clone(),
            stream,
            outbox: outbox.clone(),
        };
        let responses = Responses {
            hub: self.running.hub.clone(),
            stream,
            outbox,
            taken: VecDeque::new(),
        };
        (requests, responses)
    }

    /// Ends all streams, as the member stops.
    pub fn close(&self) {
        self.running.hub.close();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.hub.close();
        self.stopping.store(true, Ordering::Relaxed);
        self.feed.close();
        self.hub.alarm.ring();
        for thread in self.threads.drain(..) {
            // A panic there has ended the process already.
            let _ = thread.join();
        }
    }
}

/// The end of a stream where requests go in. Each waits for room in the stream's outbox first, so a client that does
/// not take its answers can't pile them up. An error is the end of the stream.
#[derive(Clone)]
pub struct Requests {
    hub: Arc<Hub>,
    stream: u64,
    outbox: Arc<Outbox>,
}

impl Requests {
    /// Any request of a client, known to be this caller, or not known for this reason. One with nothing in it is ignored.
    pub async fn send(&self, caller: Result<Caller, Error>, request: WatchRequest) -> Result<(), Error> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                let owner = caller.as_ref().map(Owner::from).map_err(|error| *error);
                self.create_for(owner, &create).await
            }
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => self.progress().await,
            None => Ok(()),
        }
    }

    /// Adds a watcher for the member itself, or for a client whose rights the caller has looked at. Answered by one
    /// response with `created`, before any event.
    pub async fn create(&self, request: &WatchCreateRequest) -> Result<(), Error> {
        self.create_for(Ok(Owner::Member), request).await
    }

    async fn create_for(
        &self,
        owner: Result<Owner, Error>,
        request: &WatchCreateRequest,
    ) -> Result<(), Error> {
        self.outbox.await_room().await?;
        self.hub.create(self.stream, owner, request, Instant::now());
        Ok(())
    }

    /// Removes a watcher. Answered by one response with `canceled`, after which nothing more of it comes; not answered
    /// if there is none.
    pub async fn cancel(&self, id: i64) -> Result<(), Error> {
        self.outbox.await_room().await?;
        self.hub.cancel(self.stream, id);
        Ok(())
    }

    /// Asks how far all the stream's watchers have been told everything. Answered, if none of them lags, by one response
    /// with watch id −1 and that revision in its header, after all events up to there.
    pub async fn progress(&self) -> Result<(), Error> {
        self.outbox.await_room().await?;
        self.hub.progress(self.stream);
        Ok(())
    }
}

/// The end of a stream where responses come out. Dropping it ends the stream.
pub struct Responses {
    hub: Arc<Hub>,
    stream: u64,
    outbox: Arc<Outbox>,
    /// Taken out of it already.
    taken: VecDeque<Message>,
}

impl Responses {
    /// The next response; waits for one. May be given up and called again. An error is the end of the stream.
    pub async fn next(&mut self) -> Result<Message, Error> {
        loop {
            if let Some(message) = self.taken.pop_front() {
                return Ok(message);
            }
            poll_fn(|cx| self.outbox.poll_take(cx, &mut self.taken)).await?;
        }
    }

    /// The next responses, some of them at once, to be taken out of the queue. For a task that polls.
    pub fn poll_some(&mut self, cx: &Context<'_>) -> Poll<Result<&mut VecDeque<Message>, Error>> {
        if self.taken.is_empty() {
            ready!(self.outbox.poll_take(cx, &mut self.taken))?;
        }
        Poll::Ready(Ok(&mut self.taken))
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        self.hub.forget(self.stream);
    }
}
