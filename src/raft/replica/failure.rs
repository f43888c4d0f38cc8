//! What ends a member: the first failure of whatever it can't go on without.

use std::sync::Arc;

use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;

use crate::raft::Raft;

/// What must stop this member: a failed disk, corruption, a stopped Raft core. Cheap to clone.
#[derive(Clone)]
pub struct Failure {
    reason: Arc<watch::Sender<Option<String>>>,
}

impl Default for Failure {
    fn default() -> Self {
        Failure {
            reason: Arc::new(watch::channel(None).0),
        }
    }
}

impl Failure {
    /// Reports a failure; the first one is kept.
    pub fn report(&self, reason: String) {
        tracing::error!(%reason, "this member must stop");
        self.reason.send_if_modified(|first| {
            let new = first.is_none();
            first.get_or_insert(reason);
            new
        });
    }

    /// Waits for a failure.
    pub async fn wait(&self) -> String {
        let mut reason = self.reason.subscribe();
        match reason.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// Reports when openraft's core stops by itself: then its channels close.
pub(in crate::raft) async fn watch_core(raft: Raft, failure: Failure) {
    // That of the server changes seldom; the others change with every entry.
    let mut changes = raft.server_metrics();
    while changes.changed().await.is_ok() {}
    let state = raft.metrics().borrow_watched().running_state.clone();
    match state {
        Err(openraft::errors::Fatal::Stopped) | Ok(()) => {}
        Err(fatal) => failure.report(format!("raft stopped: {fatal}")),
    }
}
