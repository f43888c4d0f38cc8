//! The connections of a load, and the threads that drive them.
//!
//! A lane is a thread with connections and clients of its own, which never meet those of another: nothing is handed from
//! core to core on the way of a request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tonic::metadata::AsciiMetadataValue;

use super::super::ctl::Context;
use super::super::failed::Failed;
use super::caller::Caller;
use super::measured::Measured;
use super::plan::{Plan, Work};

/// A thread, its connections, and what it measured.
pub struct Lane {
    handle: Handle,
    /// The thread ends when this is dropped.
    _running: oneshot::Sender<()>,
    /// Its connections.
    pub callers: Vec<Arc<Caller>>,
    /// What its clients measured.
    pub measured: Arc<Mutex<Measured>>,
}

/// The threads of a load.
pub struct Lanes {
    /// At least one.
    pub lanes: Vec<Lane>,
    /// Connections in all.
    pub connections: usize,
}

impl Lanes {
    /// Connects to all endpoints alike.
    pub async fn open(context: &Context, plan: &Plan, endpoints: &[String]) -> Result<Lanes, Failed> {
        let count = plan.threads.min(plan.clients.max(watch_streams(plan)));
        let per_lane = match plan.connections {
            Some(connections) => connections.div_ceil(count),
            None => endpoints.len() as u64,
        };
        let token = context.client.token_to_lend().await?;
        let token = token.map(AsciiMetadataValue::try_from).transpose();
        let token = token.map_err(|_| Failed::error("the server's token is not printable"))?;
        let mut lanes = Vec::new();
        for number in 0..count {
            let mut lane = Lane::begin()?;
            for connection in 0..per_lane {
                // Each endpoint gets as many as any other, across all lanes.
                let at = (number * per_lane + connection) % endpoints.len() as u64;
                let (options, handle) = (context.options.clone(), lane.handle.clone());
                let caller = Caller::open(options, &endpoints[at as usize], token.as_ref(), handle);
                lane.callers.push(caller.await?);
            }
            lanes.push(lane);
        }
        let connections = lanes.iter().map(|lane| lane.callers.len()).sum();
        Ok(Lanes { lanes, connections })
    }

    /// The lane of a client, or of a stream.
    pub fn of(&self, number: u64) -> &Lane {
        &self.lanes[number as usize % self.lanes.len()]
    }

    /// What all threads measured since the last time.
    pub fn take(&self) -> Measured {
        let mut all = Measured::default();
        for lane in &self.lanes {
            all.add(&lock(&lane.measured).take());
        }
        all
    }
}

/// Watchers need threads too.
fn watch_streams(plan: &Plan) -> u64 {
    match plan.work {
        Work::Watch { streams, .. } => streams,
        _ => 0,
    }
}

impl Lane {
    /// A runtime of one thread has one queue: what is made ready by a connection all runs before that has its next turn.
    fn begin() -> Result<Lane, Failed> {
        let failed = |error| Failed::error(format!("cannot start a thread: {error}"));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let (running, ended) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        let run = move || {
            let _ = runtime.block_on(ended);
        };
        std::thread::Builder::new()
            .name("lane".into())
            .spawn(run)
            .map_err(failed)?;
        Ok(Lane {
            handle,
            _running: running,
            callers: Vec::new(),
            measured: Arc::default(),
        })
    }

    /// Runs something on its thread, and waits for it.
    pub async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, Failed>> + Send + 'static,
    ) -> Result<T, Failed> {
        match self.spawn(future).await {
            Ok(result) => result,
            Err(error) => Err(Failed::error(error.to_string())),
        }
    }

    /// Lets something run on its thread.
    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle.spawn(future)
    }

    /// The same, owned by a set.
    pub fn spawn_into(&self, set: &mut JoinSet<()>, future: impl Future<Output = ()> + Send + 'static) {
        set.spawn_on(future, &self.handle);
    }
}

/// A mutex whose holder never panics.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
