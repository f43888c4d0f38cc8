//! Who of the others answers, told when that changes, with the cause.
//!
//! A question that nobody takes (the connection is refused) tells at once; where there is merely no answer, there has to
//! be none for a while: a machine that is busy for a moment is no broken link.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

use super::network::is_connect_error;
use crate::journal::{Event, Id, Journal};

/// The links to the others, as they were told last.
#[derive(Default)]
pub struct Links {
    by_id: Mutex<BTreeMap<u64, Link>>,
}

#[derive(Default)]
struct Link {
    /// None: nothing was told yet.
    is_up: Option<bool>,
    /// Since when questions stay without an answer.
    silent_since: Option<Instant>,
}

impl Links {
    /// A question to `id` was answered, or was not; a silence of `patience` is a broken link.
    pub fn asked(&self, journal: &Journal, id: u64, patience: Duration, answer: Result<(), &Status>) {
        let is_up = {
            let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
            let link = by_id.entry(id).or_default();
            let is_up = match answer {
                Ok(()) => {
                    link.silent_since = None;
                    true
                }
                Err(status) => {
                    let since = *link.silent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < patience && !is_connect_error(status) {
                        return;
                    }
                    false
                }
            };
            if link.is_up.replace(is_up) == Some(is_up) {
                return;
            }
            is_up
        };
        journal.record(match (is_up, answer) {
            (false, Err(status)) => Event::LinkDown {
                peer: Id(id),
                why: cause(status),
            },
            _ => Event::LinkUp { peer: Id(id) },
        });
    }

    /// Whether `id` answers, if that is known.
    pub fn is_up(&self, id: u64) -> Option<bool> {
        let by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        by_id.get(&id)?.is_up
    }

    /// Forgets all but these.
    pub fn keep(&self, ids: &BTreeSet<u64>) {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        by_id.retain(|id, _| ids.contains(id));
    }
}

/// What is at the bottom of it: "Connection refused" rather than "transport error".
pub fn cause(status: &Status) -> String {
    let mut at: &dyn std::error::Error = status;
    while let Some(deeper) = at.source() {
        at = deeper;
    }
    match at.downcast_ref::<Status>() {
        Some(status) => status.message().to_string(),
        None => at.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_told_when_it_changes_and_a_short_silence_is_none() {
        let (links, journal) = (Links::default(), Journal::default());
        let silent = Status::unavailable("no answer in time");
        let says = || -> Vec<String> {
            let records = journal.after(0, 99);
            records.into_iter().map(|record| record.says).collect()
        };
        let hour = Duration::from_secs(3600);
        for answer in [Ok(()), Err(&silent), Err(&silent)] {
            links.asked(&journal, 2, hour, answer);
        }
        assert_eq!(says(), ["2 answers"]);
        for _ in 0..3 {
            links.asked(&journal, 2, Duration::ZERO, Err(&silent));
        }
        links.asked(&journal, 2, hour, Ok(()));
        assert_eq!(says()[1..], ["2 does not answer: no answer in time", "2 answers"]);
        links.keep(&BTreeSet::new());
        assert_eq!(links.is_up(2), None);
    }
}
