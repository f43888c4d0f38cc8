//! A watcher that outlives its streams: when one breaks it goes on at the next member, from the revision after the last
//! that it was told. It holds what it is told against the guarantees at once, and against the store's past at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pontoon::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};
use pontoon::pb::mvccpb::event::EventType;
use pontoon::pb::mvccpb::{Event, KeyValue};
use tokio::task::JoinHandle;
use tonic::Status;

use super::history::Past;
use super::process::wait_for;
use super::watcher::{WatchStream, revision, short};

/// How long a stream may be silent before the observer asks for the progress.
const SILENCE: Duration = Duration::from_millis(300);
/// How long it may go on saying nothing before it is given up, as its member may stand still.
const SILENCES: u32 = 5;
/// Pause before a new stream.
const PAUSE: Duration = Duration::from_millis(50);

/// What one observer was told.
#[derive(Default)]
pub struct Told {
    /// By revision, in order within it.
    pub events: BTreeMap<i64, Vec<Event>>,
    /// Everything up to here was told.
    pub up_to: i64,
    /// Streams that it took.
    pub streams: usize,
    /// Claims of progress that it got.
    pub progress: usize,
}

impl Told {
    /// Takes a response, which must be ordered, told once, and whole.
    fn take(&mut self, response: WatchResponse) {
        let header = response.header.as_ref().map_or(0, |header| header.revision);
        let before = self.up_to;
        for event in response.events {
            let at = revision(&event);
            assert!(
                at > before,
                "{} came after everything up to {before}",
                short(&event)
            );
            assert!(at >= self.up_to, "{} came after {}", short(&event), self.up_to);
            assert!(
                at <= header,
                "{} in an answer of revision {header}",
                short(&event)
            );
            self.up_to = at;
            self.events.entry(at).or_default().push(event);
        }
        if response.watch_id == -1 {
            assert!(header >= before, "progress went back from {before} to {header}");
            self.up_to = header;
            self.progress += 1;
        }
    }

    /// Every state of the store follows from the one before by what was told, and nothing was told that did not happen.
    pub fn check(&self, past: &Past, wanted: impl Fn(&KeyValue) -> bool) {
        let state = |revision: i64| -> BTreeMap<Bytes, KeyValue> {
            let kvs = past.at(revision).iter().filter(|kv| wanted(kv));
            kvs.map(|kv| (kv.key.clone(), kv.clone())).collect()
        };
        let mut now = state(1);
        for at in 2..=past.last() {
            let before = std::mem::take(&mut now);
            let mut told = before.clone();
            for event in self.events.get(&at).into_iter().flatten() {
                let kv = event.kv.clone().expect("a pair");
                let is_creation = kv.create_revision == kv.mod_revision;
                let previous = before.get(&kv.key).filter(|_| !is_creation);
                assert_eq!(event.prev_kv.as_ref(), previous, "{}", short(event));
                match event.r#type() {
                    EventType::Put => told.insert(kv.key.clone(), kv),
                    EventType::Delete => told.remove(&kv.key),
                };
            }
            now = state(at);
            assert_eq!(told, now, "what was told of revision {at} does not lead to it");
        }
        let last = self.events.keys().next_back().copied().unwrap_or(0);
        assert!(
            last <= past.last(),
            "revision {last} was told of, which does not exist"
        );
    }
}

/// An observer at work.
pub struct Observer {
    stop: Arc<AtomicBool>,
    up_to: Arc<std::sync::Mutex<i64>>,
    task: JoinHandle<Told>,
}

impl Observer {
    /// Watches a range from the beginning, at these endpoints in turn.
    pub fn start(endpoints: Vec<String>, request: WatchCreateRequest) -> Observer {
        let stop = Arc::new(AtomicBool::new(false));
        let up_to = Arc::new(std::sync::Mutex::new(0));
        let task = tokio::spawn(observe(endpoints, request, stop.clone(), up_to.clone()));
        Observer { stop, up_to, task }
    }

    /// Waits until it was told everything up to a revision, and ends it.
    pub async fn finish(self, patience: Duration, last: i64) -> Told {
        let what = format!("a watcher to be told everything up to {last}");
        wait_for(patience, &what, || async {
            let is_over = self.task.is_finished();
            (is_over || *self.up_to.lock().expect("no panic") >= last).then_some(())
        })
        .await;
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the observer saw what it was promised")
    }
}

async fn observe(
    endpoints: Vec<String>,
    request: WatchCreateRequest,
    stop: Arc<AtomicBool>,
    up_to: Arc<std::sync::Mutex<i64>>,
) -> Told {
    let mut told = Told::default();
    for endpoint in endpoints.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let request = WatchCreateRequest {
            start_revision: told.up_to + 1,
            prev_kv: true,
            ..request.clone()
        };
        // However it ends, the next one goes on.
        let _ = one_stream(endpoint, request, &mut told, &stop, &up_to).await;
        tokio::time::sleep(PAUSE).await;
    }
    told
}

async fn one_stream(
    endpoint: &str,
    request: WatchCreateRequest,
    told: &mut Told,
    stop: &AtomicBool,
    up_to: &std::sync::Mutex<i64>,
) -> Result<(), Status> {
    let opening = tokio::time::timeout(SILENCE * SILENCES, WatchStream::open(endpoint));
    let mut stream = opening.await.map_err(|_| Status::unavailable("no answer"))??;
    told.streams += 1;
    stream.try_create(request).await?;
    let mut silences = 0;
    while !stop.load(Ordering::Relaxed) && silences < SILENCES {
        match tokio::time::timeout(SILENCE, stream.next()).await {
            Ok(response) => {
                let response = response?;
                assert!(!response.canceled, "{response:?}");
                silences = 0;
                told.take(response);
                *up_to.lock().expect("no panic") = told.up_to;
            }
            Err(_) => {
                silences += 1;
                stream.try_ask_progress().await?;
            }
        }
    }
    Ok(())
}
