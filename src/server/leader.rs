//! Whether this member has a leader: for clients that ask to be sent away, rather than to wait, when it has none.
//!
//! A request is refused as soon as nothing was heard for an election timeout; a stream that is open already is ended
//! only after three, so that an ordinary election does not end the watches of a whole cluster.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::raft::replica::Replica;

/// How often it is looked, as a part of the election timeout.
const LOOKS: u32 = 4;
/// Election timeouts without a leader until streams end, beside the one after which a leader counts as gone.
const GRACE: u32 = 2;

/// The leader, as seen from here. Cheap to clone.
#[derive(Clone)]
pub struct Leadership {
    replica: Replica,
    lost: watch::Receiver<bool>,
}

impl Leadership {
    /// Starts the task that looks; it ends with the last clone.
    pub fn follow(replica: Replica) -> Self {
        let (tell, lost) = watch::channel(false);
        tokio::spawn(look(replica.clone(), tell));
        Leadership { replica, lost }
    }

    /// Whether there is a leader, as far as this member knows.
    pub fn is_known(&self) -> bool {
        self.replica.is_in_touch()
    }

    /// Returns once there has been none for so long that streams end.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut lost = self.lost.clone();
        async move {
            // An error means that the member stops; streams are ended for that.
            if lost.wait_for(|lost| *lost).await.is_err() {
                std::future::pending().await
            }
        }
    }
}

async fn look(replica: Replica, tell: watch::Sender<bool>) {
    let election = replica.timing().election;
    let mut last_seen = Instant::now();
    while !tell.is_closed() {
        if replica.is_in_touch() {
            last_seen = Instant::now();
        }
        let is_lost = last_seen.elapsed() >= GRACE * election;
        tell.send_if_modified(|lost| std::mem::replace(lost, is_lost) != is_lost);
        tokio::time::sleep((election / LOOKS).max(Duration::from_millis(1))).await;
    }
}
