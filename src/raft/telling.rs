//! When followers are told how far entries are committed: with the next ones, if these come soon, and with answers.
//!
//! openraft tells it at once, by a request without entries. With one client that is two messages more for each put, each
//! of which wakes a follower, and the next put comes a moment later and tells the same:
//!
//! ```text
//!   entries 7   committed 7   entries 8   committed 8      as openraft has it
//!   entries 7                 entries 8 + committed 7 ...  as they are sent
//! ```
//!
//! So what only tells that waits for the next request, for a moment ([`WITHIN`]). A follower that waits to be told has it
//! from the answer to what it asked ([`hear`]): a read index, up to which it has to apply before it reads; or what became
//! of commands that it forwarded, whose clients it answers once it has applied them.

use std::pin::pin;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use tokio::task::unconstrained;

use super::{LogId, Raft, Types, Vote};

/// How much later a follower may be told, and its watchers with it, if nothing follows.
pub(super) const WITHIN: Duration = Duration::from_millis(1);

type Request = AppendEntriesRequest<Types>;

/// The requests to one follower, but each that only tells how far entries are committed together with the next, if that
/// comes within this time. The first is sent as it is: it tells where the follower's log stands.
pub(super) fn together<S>(requests: S, within: Duration) -> impl Stream<Item = Request> + Send
where
    S: Stream<Item = Request> + Send + Unpin + 'static,
{
    futures::stream::unfold(
        (requests.fuse(), true),
        move |(mut requests, is_first)| async move {
            let mut request = requests.next().await?;
            let mut patience = pin!(tokio::time::sleep(within));
            while request.entries.is_empty() && !is_first {
                tokio::select! {
                    biased;
                    // It tells no less.
                    Some(next) = requests.next() => request = next,
                    () = &mut patience => break,
                }
            }
            Some((request, (requests, false)))
        },
    )
}

/// Takes the word of who appended this entry as leader that it is committed, and all before it. openraft commits as much
/// of that as its log has from this or a later leader, and the rest as soon as it has. Nothing is claimed of what stands
/// before, so no entry is refused, or removed.
///
/// Nobody waits for openraft's answer, which comes behind a sync of what else was appended. If its queue is full, that is
/// as good as not told: the next request tells it.
pub(super) fn hear(raft: &Raft, committed: LogId) {
    let leader = committed.leader_id;
    let told = raft.append_entries(AppendEntriesRequest {
        vote: Vote::new_committed(leader.term, leader.node_id),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: Some(committed),
    });
    let _ = unconstrained(told).now_or_never();
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
        within: Duration,
    ) -> (
        mpsc::UnboundedSender<Request>,
        impl Stream<Item = Request> + Unpin,
    ) {
        let (requests, queue) = mpsc::unbounded();
        requests.unbounded_send(request(1, 0)).expect("it is open");
        let mut stream = Box::pin(together(queue, within));
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
        let (requests, mut stream) = stream(LONG);
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
        let (requests, mut stream) = stream(Duration::ZERO);
        requests.unbounded_send(request(2, 0)).expect("it is open");
        assert_eq!(told(stream.next().await), Some((2, 0)));
        // The last one is not lost, either.
        requests.unbounded_send(request(3, 0)).expect("it is open");
        drop(requests);
        assert_eq!(told(stream.next().await), Some((3, 0)));
        assert_eq!(told(stream.next().await), None);
    }
}
