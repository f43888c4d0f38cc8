//! Whether the others answer this member's heartbeats: nothing large is begun for one that does not; and whether they
//! wait for what this member has not told them yet.
//!
//! A snapshot for a member that is cut off would be begun again and again. It waits for the next heartbeat that is
//! answered instead, so it is on its way within a heartbeat interval of the member's return.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// How long one that does not answer is waited for: it may be so slow that only heartbeats come too late.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether one member answers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Contact {
    answers: Arc<watch::Sender<bool>>,
    hurry: Arc<Notify>,
    /// How often it waits, now.
    waits: Arc<AtomicUsize>,
}

/// A member waits to be told what is committed.
pub struct Waits(Contact);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waits.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Contact {
    /// Nothing is known yet, so nothing speaks against it.
    fn default() -> Self {
        Contact {
            answers: Arc::new(watch::channel(true).0),
            hurry: Arc::default(),
            waits: Arc::default(),
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

    /// The member is to be told at once what is committed by now.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Returns once that was said, be it before.
    pub async fn hurried(&self) {
        self.hurry.notified().await;
    }

    /// The member is to be told at once what will be committed, until this is dropped.
    pub fn wait_for_commits(&self) -> Waits {
        self.waits.fetch_add(1, Ordering::Relaxed);
        Waits(self.clone())
    }

    /// Whether it is.
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed) > 0
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

    /// The contact with `id`, if there was any.
    pub fn known(&self, id: u64) -> Option<Contact> {
        self.lock().get(&id).cloned()
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
