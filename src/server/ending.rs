//! What ends a member when all is well: a signal, or its removal from the cluster.

use std::fmt;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The cluster removed this member.
#[derive(Debug)]
pub struct Removed {
    pub(super) name: String,
    pub(super) id: u64,
    pub(super) data_dir: PathBuf,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "member {:?} ({:x}) was removed from its cluster and can't come back under this id: to make it a member \
             again remove --data-dir {} and add it anew",
            self.name,
            self.id,
            self.data_dir.display()
        )
    }
}

impl std::error::Error for Removed {}

/// Why a member ends, when all is well.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It was told to stop.
    Told,
    /// The cluster removed it.
    Removed,
}

/// What ends a member: a signal, or its removal.
pub(super) struct Ending {
    pub signals: Signals,
    pub removed: watch::Receiver<bool>,
}

impl Ending {
    pub async fn comes(&mut self) -> End {
        tokio::select! {
            () = self.signals.stop() => End::Told,
            // The task that tells runs as long as the process.
            _ = self.removed.wait_for(|removed| *removed) => End::Removed,
        }
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns at the first one; a second one ends the process at once.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tokio::spawn(async {
            if let Ok(mut again) = Signals::new() {
                tokio::select! {
                    _ = again.terminate.recv() => {}
                    _ = again.interrupt.recv() => {}
                }
                std::process::exit(1);
            }
        });
    }
}
