//! The connections of a load, and the threads that drive them.
//!
//! A lane is a thread with connections and clients of its own, which never meet those of another: nothing is handed from
//! core to core on the way of a request. The cost of the client matters, as it often shares a machine with the servers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{JoinHandle, JoinSet};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;

use super::super::ctl::Context;
use super::super::failed::Failed;
use super::measured::Measured;
use super::plan::{Plan, Work};

/// A thread, its connections, and what it measured.
pub struct Lane {
    handle: Handle,
    /// None only while it is dropped.
    runtime: Option<Runtime>,
    /// Its connections.
    pub channels: Vec<Channel>,
    /// What its clients measured.
    pub measured: Arc<Mutex<Measured>>,
}

/// The threads of a load.
pub struct Lanes {
    /// At least one.
    pub lanes: Vec<Lane>,
    /// Connections in all.
    pub connections: usize,
    /// What goes along with each request, if there is a login.
    pub token: Option<AsciiMetadataValue>,
}

impl Lanes {
    /// Connects to all endpoints alike.
    pub async fn open(context: &Context, plan: &Plan, endpoints: &[String]) -> Result<Lanes, Failed> {
        let count = plan.threads.min(plan.clients.max(watch_streams(plan)));
        let per_lane = match plan.connections {
            Some(connections) => connections.div_ceil(count),
            None => endpoints.len() as u64,
        };
        let mut lanes = Vec::new();
        for number in 0..count {
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime =
                runtime.map_err(|error| Failed::error(format!("cannot start a thread: {error}")))?;
            let mut lane = Lane {
                handle: runtime.handle().clone(),
                runtime: Some(runtime),
                channels: Vec::new(),
                measured: Arc::default(),
            };
            for connection in 0..per_lane {
                // Each endpoint gets as many as any other, across all lanes.
                let at = (number * per_lane + connection) % endpoints.len() as u64;
                let (options, endpoint) = (context.options.clone(), endpoints[at as usize].clone());
                let channel = async move { Ok(options.connect(&endpoint, Some(options.timeout)).await?) };
                lane.channels.push(lane.run(channel).await?);
            }
            lanes.push(lane);
        }
        let first = &lanes[0].channels[0];
        let token = context.client.token(first).await?;
        let token = token.map(AsciiMetadataValue::try_from).transpose();
        let connections = lanes.iter().map(|lane| lane.channels.len()).sum();
        Ok(Lanes {
            lanes,
            connections,
            token: token.map_err(|_| Failed::error("the server's token is not printable"))?,
        })
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

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A mutex whose holder never panics.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
