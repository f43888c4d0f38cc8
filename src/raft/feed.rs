//! What apply tells those who watch: the changes of each sealed point, in order, after it can be read.
//!
//! Apply never waits here. A feed that is full forgets everything and says so with a [`News::Jump`]; so does the
//! install of a snapshot, which applies no commands. After a jump the listener reads from the store what it was not
//! told.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::pb::mvccpb::Event;
use crate::state::Changes;

/// Bytes of events that may wait, about. The store holds them anyway: what this costs is what the events take beside
/// their keys and values.
const LIMIT: usize = 16 << 20;
/// What an event takes beside its key and value, about.
const EVENT: usize = 200;

/// Something new.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// All that happened since the last news.
    Changes(Changes),
    /// The store is at this revision; what happened before is not told.
    Jump(i64),
}

/// The way from apply to its one listener. Cheap to clone.
#[derive(Clone, Default)]
pub struct Feed {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    news: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Nothing is kept before somebody listens.
    open: bool,
    waiting: VecDeque<News>,
    bytes: usize,
}

fn size(events: &[Event]) -> usize {
    let pair = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    events.iter().map(|event| EVENT + pair(event)).sum()
}

impl Feed {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what happened up to a sealed point.
    pub fn publish(&self, changes: Changes) {
        let mut queue = self.queue();
        if !queue.open {
            return;
        }
        queue.bytes += EVENT + size(&changes.events);
        if queue.bytes > LIMIT {
            drop(queue);
            return self.jump(changes.last);
        }
        queue.waiting.push_back(News::Changes(changes));
        drop(queue);
        self.shared.news.notify_one();
    }

    /// Tells that the store is at `revision` now, and nothing of how it came there.
    pub fn jump(&self, revision: i64) {
        let mut queue = self.queue();
        if !queue.open {
            return;
        }
        let forgotten = std::mem::replace(&mut queue.waiting, VecDeque::from([News::Jump(revision)]));
        queue.bytes = EVENT;
        drop(queue);
        drop(forgotten);
        self.shared.news.notify_one();
    }

    /// From now on news are kept for [`Feed::next`].
    pub fn listen(&self) {
        self.queue().open = true;
    }

    /// The next news, if there are any within `patience`.
    pub fn next(&self, patience: Duration) -> Option<News> {
        let queue = self.queue();
        let waited = self
            .shared
            .news
            .wait_timeout_while(queue, patience, |queue| queue.open && queue.waiting.is_empty());
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let news = queue.waiting.pop_front()?;
        queue.bytes -= match &news {
            News::Changes(changes) => EVENT + size(&changes.events),
            News::Jump(_) => EVENT,
        };
        Some(news)
    }

    /// Nobody listens any more; a listener that waits returns.
    pub fn close(&self) {
        let mut queue = self.queue();
        *queue = Queue::default();
        drop(queue);
        self.shared.news.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb::KeyValue;

    fn changes(last: i64, value: usize) -> Changes {
        let kv = KeyValue {
            mod_revision: last,
            value: vec![0; value].into(),
            ..KeyValue::default()
        };
        let event = Event {
            kv: Some(kv),
            ..Event::default()
        };
        Changes {
            events: vec![event],
            last,
        }
    }

    fn next(feed: &Feed) -> Option<News> {
        feed.next(Duration::ZERO)
    }

    #[test]
    fn news_come_in_order_once_somebody_listens() {
        let feed = Feed::default();
        feed.publish(changes(2, 1));
        feed.listen();
        feed.publish(changes(3, 1));
        feed.publish(changes(4, 1));
        assert_eq!(next(&feed), Some(News::Changes(changes(3, 1))));
        assert_eq!(next(&feed), Some(News::Changes(changes(4, 1))));
        assert_eq!(next(&feed), None);
        feed.close();
        feed.publish(changes(5, 1));
        assert_eq!(next(&feed), None);
    }

    #[test]
    fn a_full_feed_forgets_and_says_so() {
        let feed = Feed::default();
        feed.listen();
        for revision in 2..7 {
            feed.publish(changes(revision, LIMIT / 4));
        }
        assert_eq!(next(&feed), Some(News::Jump(5)));
        assert_eq!(next(&feed), Some(News::Changes(changes(6, LIMIT / 4))));
        feed.publish(changes(7, LIMIT / 2));
        feed.jump(9);
        assert_eq!(next(&feed), Some(News::Jump(9)));
        assert_eq!(next(&feed), None);
        assert_eq!(feed.queue().bytes, 0);
    }
}
