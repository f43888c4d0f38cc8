//! Waiting for a condition: not for ever, and not past Ctrl-C.
//!
//! What is broken has to be put right however a wait ends, so Ctrl-C ends waits, and nothing else: what is under way ends
//! in order. A second one ends that, too.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Why a run ends before it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Ctrl-C.
    Interrupted,
    /// Something did not happen in time, or could not be done.
    Failed(String),
}

/// Ctrl-C, or what a supervisor sends: heard from the first on.
#[derive(Clone)]
pub struct Interrupts {
    heard: watch::Receiver<u32>,
    /// Those before are known already.
    known: u32,
}

impl Interrupts {
    /// Begins to listen.
    pub fn listen() -> std::io::Result<Interrupts> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (tell, heard) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                tell.send_modify(|heard| *heard += 1);
            }
        });
        Ok(Interrupts { heard, known: 0 })
    }

    /// The same, for those that are still to come.
    pub fn later(&self) -> Interrupts {
        Interrupts {
            known: *self.heard.borrow(),
            ..self.clone()
        }
    }

    /// Returns at the next one.
    pub async fn next(&self) {
        let mut heard = self.heard.clone();
        if heard.wait_for(|heard| *heard > self.known).await.is_err() {
            // Nobody listens any more, so there is no next one.
            std::future::pending().await
        }
    }

    /// Repeats `probe` until it gives something, for as long as `limit`.
    pub async fn until<T>(
        &self,
        limit: Duration,
        what: &str,
        mut probe: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, Ended> {
        let found = async {
            loop {
                if let Some(found) = probe().await {
                    return found;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            found = tokio::time::timeout(limit, found) => found
                .map_err(|_| Ended::Failed(format!("waited {} in vain for {what}", humantime::format_duration(limit)))),
            () = self.next() => Err(Ended::Interrupted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1000);

    fn interrupts() -> (watch::Sender<u32>, Interrupts) {
        let (tell, heard) = watch::channel(0);
        (tell, Interrupts { heard, known: 0 })
    }

    #[tokio::test]
    async fn a_wait_ends_when_it_is_so_when_it_is_late_or_when_told() {
        let (tell, interrupts) = interrupts();
        let mut looks = 0;
        let third = interrupts.until(LONG, "the third look", async || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(third.await, Ok(3));
        let never = async || None::<()>;
        let late = interrupts.until(Duration::from_millis(5), "Godot", never).await;
        let why = "waited 5ms in vain for Godot".to_string();
        assert_eq!(late, Err(Ended::Failed(why)));
        tell.send_replace(1);
        assert_eq!(
            interrupts.until(LONG, "Godot", never).await,
            Err(Ended::Interrupted)
        );
        let later = interrupts.later();
        assert_eq!(later.until(LONG, "this", async || Some(1)).await, Ok(1));
        tell.send_replace(2);
        assert_eq!(later.until(LONG, "Godot", never).await, Err(Ended::Interrupted));
    }
}
