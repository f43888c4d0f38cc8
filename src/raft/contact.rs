//! Whether the others answer this member's heartbeats: nothing large is begun for one that does not.
//!
//! A snapshot for a member that is cut off would be begun again and again. It waits for the next heartbeat that is
//! answered instead, so it is on its way within a heartbeat interval of the member's return.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// How long one that does not answer is waited for: it may be so slow that only heartbeats come too late.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether one member answers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Contact {
    answers: Arc<watch::Sender<bool>>,
}

impl Default for Contact {
    /// Nothing is known yet, so nothing speaks against it.
    fn default() -> Self {
        Contact {
            answers: Arc::new(watch::channel(true).0),
        }
    }
}

impl Contact {
    /// A heartbeat was answered, or was not.
    pub fn heartbeat(&self, answered: bool) {
        self.answers
            .send_if_modified(|answers| std::mem::replace(answers, answered) != answered);
    }

    /// Whether it answered the last heartbeat, as far as is known.
    pub fn answers(&self) -> bool {
        *self.answers.borrow()
    }

    /// Returns once the member answers, or was waited for long enough.
    pub async fn wait(&self) {
        let mut answers = self.answers.subscribe();
        // Out of patience is as good; and there is a sender for as long as this is here.
        let _ = tokio::time::timeout(PATIENCE, answers.wait_for(|answers| *answers)).await;
    }
}

/// The contact with each member.
#[derive(Default)]
pub struct Contacts {
    by_id: Mutex<BTreeMap<u64, Contact>>,
}

impl Contacts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Contact>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The contact with `id`.
    pub fn with(&self, id: u64) -> Contact {
        self.lock().entry(id).or_default().clone()
    }

    /// Forgets all but these.
    pub fn keep(&self, ids: &BTreeSet<u64>) {
        self.lock().retain(|id, _| ids.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_member_that_is_cut_off_is_waited_for_until_it_answers() {
        let contacts = Contacts::default();
        let contact = contacts.with(2);
        assert!(contact.wait().now_or_never().is_some(), "nothing is known");
        contact.heartbeat(false);
        let mut waiting = std::pin::pin!(contact.wait());
        assert!(waiting.as_mut().now_or_never().is_none());
        contacts.with(2).heartbeat(true);
        assert!(waiting.now_or_never().is_some(), "at once, not after a pause");
        contacts.keep(&BTreeSet::new());
        contact.heartbeat(false);
        assert!(contacts.with(2).answers(), "what was known of it is forgotten");
    }
}
