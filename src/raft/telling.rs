//! When followers are told how far entries are committed: with the next ones, if these come soon.
//!
//! openraft tells it at once, by a request without entries. With one client that is two messages more for each put, each
//! of which wakes a follower, and the next put comes a moment later and tells the same:
//!
//! ```text
//!   entries 7   committed 7   entries 8   committed 8      as openraft has it
//!   entries 7                 entries 8 + committed 7 ...  as they are sent
//! ```
//!
//! So what only tells that waits for the next request, for a moment ([`WITHIN`]), unless the follower waits to be told:
//! because it asked for a read index, up to which it has to apply before it reads ([`Contact::hurry`]); or because it
//! forwarded commands, whose clients it answers once it has applied them ([`Contact::wait_for_commits`]).

use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;

use super::Types;
use super::contact::Contact;

/// How much later a follower may be told, and its watchers with it, if nothing follows.
pub(super) const WITHIN: Duration = Duration::from_millis(1);

type Request = AppendEntriesRequest<Types>;

/// The requests to one follower, but each that only tells how far entries are committed together with the next, if that
/// comes within this time. The first is sent as it is: it tells where the follower's log stands.
pub(super) fn together<S>(
    requests: S,
    contact: Contact,
    within: Duration,
) -> impl Stream<Item = Request> + Send
where
    S: Stream<Item = Request> + Send + Unpin + 'static,
{
    let state = (requests.fuse(), contact, true);
    futures::stream::unfold(state, move |(mut requests, contact, is_first)| async move {
        let mut request = requests.next().await?;
        let mut patience = pin!(tokio::time::sleep(within));
        while request.entries.is_empty() && !is_first && !contact.waits() {
            tokio::select! {
                biased;
                // It tells no less.
                Some(next) = requests.next() => request = next,
                () = contact.hurried() => break,
                () = &mut patience => break,
            }
        }
        Some((request, (requests, contact, false)))
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::channel::mpsc;
    use openraft::entry::RaftEntry;

    use super::*;
    use crate::raft::entry::new_log_id;
    use crate::raft::{Entry, Vote};

    /// Commits up to `committed`, and brings as many entries.
    fn request(committed: u64, entries: u64) -> Request {
        let entry = |index| Entry::new_blank(new_log_id(1, 1, index));
        Request {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            entries: (0..entries).map(entry).collect(),
            leader_commit: Some(new_log_id(1, 1, committed)),
        }
    }

    type Told = Option<(u64, usize)>;

    /// What a request commits, and how many entries it brings.
    fn told(request: Option<Request>) -> Told {
        let request = request?;
        Some((request.leader_commit?.index, request.entries.len()))
    }

    /// What is sent by now, if anything is, or the end.
    fn sent(stream: &mut (impl Stream<Item = Request> + Unpin)) -> Option<Told> {
        stream.next().now_or_never().map(told)
    }

    /// A stream whose first request was sent, and its other end.
    fn stream(
        contact: Contact,
        within: Duration,
    ) -> (
        mpsc::UnboundedSender<Request>,
        impl Stream<Item = Request> + Unpin,
    ) {
        let (requests, queue) = mpsc::unbounded();
        requests.unbounded_send(request(1, 0)).expect("it is open");
        let mut stream = Box::pin(together(queue, contact, within));
        assert_eq!(
            sent(&mut stream),
            Some(Some((1, 0))),
            "the first is sent as it is"
        );
        (requests, stream)
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn what_only_tells_what_is_committed_goes_with_the_next_entries() {
        let (requests, mut stream) = stream(Contact::default(), LONG);
        let send = |request| requests.unbounded_send(request).expect("it is open");
        send(request(2, 3));
        assert_eq!(sent(&mut stream), Some(Some((2, 3))), "entries wait for nothing");
        send(request(3, 0));
        assert_eq!(sent(&mut stream), None);
        send(request(4, 0));
        send(request(4, 1));
        send(request(5, 1));
        assert_eq!(sent(&mut stream), Some(Some((4, 1))));
        assert_eq!(sent(&mut stream), Some(Some((5, 1))));
        assert_eq!(sent(&mut stream), None);
    }

    #[tokio::test]
    async fn it_is_sent_alone_if_nothing_follows() {
        let (requests, mut stream) = stream(Contact::default(), Duration::ZERO);
        requests.unbounded_send(request(2, 0)).expect("it is open");
        assert_eq!(told(stream.next().await), Some((2, 0)));
        // The last one is not lost, either.
        requests.unbounded_send(request(3, 0)).expect("it is open");
        drop(requests);
        assert_eq!(told(stream.next().await), Some((3, 0)));
        assert_eq!(told(stream.next().await), None);
    }

    #[tokio::test]
    async fn a_follower_that_waits_is_told_at_once() {
        let contact = Contact::default();
        let (requests, mut stream) = stream(contact.clone(), LONG);
        requests.unbounded_send(request(2, 0)).expect("it is open");
        assert_eq!(sent(&mut stream), None);
        contact.hurry();
        assert_eq!(sent(&mut stream), Some(Some((2, 0))));
        // Also if it said so before.
        contact.hurry();
        requests.unbounded_send(request(3, 0)).expect("it is open");
        assert_eq!(sent(&mut stream), Some(Some((3, 0))));
    }

    #[tokio::test]
    async fn a_follower_that_forwarded_is_told_at_once_of_all_until_it_is_answered() {
        let contact = Contact::default();
        let (requests, mut stream) = stream(contact.clone(), LONG);
        let send = |request| requests.unbounded_send(request).expect("it is open");
        let waits = [contact.wait_for_commits(), contact.wait_for_commits()];
        for committed in [2, 3] {
            send(request(committed, 0));
            assert_eq!(sent(&mut stream), Some(Some((committed, 0))));
        }
        drop(waits);
        send(request(4, 0));
        assert_eq!(sent(&mut stream), None);
    }
}
