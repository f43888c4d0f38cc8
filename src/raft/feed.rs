//! What apply tells those who watch: the changes of each sealed point, in order, after it can be read.
//!
//! Apply never waits here. A feed that is full forgets everything and says so with a [`News::Jump`]; so does the
//! install of a snapshot, which applies no commands. After a jump the listener reads from the store what it was not
//! told. While there is no audience, nobody who would be told, the listener is left to sleep; it begins with a jump when
//! there is one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::pb::mvccpb::Event;
use crate::state::{Changes, View};

/// Bytes of events that may wait, about. The store holds them anyway: what this costs is what the events take beside
/// their keys and values.
const LIMIT: usize = 16 << 20;
/// What an event takes beside its key and value, about.
const EVENT: usize = 200;

/// Something new.
#[derive(Debug)]
pub enum News {
    /// All that happened since the last news, and the store as it then was: what a later compaction takes, pairs from
    /// before a change among it, can still be read from there.
    Changes(Changes, View),
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
    /// Whether the listener has anybody to tell.
    audience: bool,
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

    /// Tells what happened up to a sealed point, of which `view` is made.
    pub fn publish(&self, changes: Changes, view: impl FnOnce() -> View) {
        let mut queue = self.queue();
        if !queue.open {
            return;
        }
        queue.bytes += EVENT + size(&changes.events);
        if queue.bytes > LIMIT || !queue.audience {
            drop(queue);
            return self.jump(changes.last);
        }
        queue.waiting.push_back(News::Changes(changes, view()));
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
        let audience = queue.audience;
        drop(queue);
        drop(forgotten);
        if audience {
            self.shared.news.notify_one();
        }
    }

    /// Whether there is anybody to tell, from now on: then everything from now on is told, and before it that there was
    /// something else, if there was.
    pub fn set_audience(&self, audience: bool) {
        let mut queue = self.queue();
        let came = !std::mem::replace(&mut queue.audience, audience) && audience;
        let any = !queue.waiting.is_empty();
        drop(queue);
        if came && any {
            self.shared.news.notify_one();
        }
    }

    /// From now on news are kept for [`Feed::next`].
    pub fn listen(&self) {
        self.queue().open = true;
    }

    /// The next news, if there are any within `patience`.
    pub fn next(&self, patience: Duration) -> Option<News> {
        let queue = self.queue();
        let nothing_to_tell = |queue: &mut Queue| queue.waiting.is_empty() || !queue.audience;
        let waited = self
            .shared
            .news
            .wait_timeout_while(queue, patience, |queue| queue.open && nothing_to_tell(queue));
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if nothing_to_tell(&mut queue) {
            return None;
        }
        let news = queue.waiting.pop_front()?;
        queue.bytes -= match &news {
            News::Changes(changes, _) => EVENT + size(&changes.events),
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
    use crate::state::{Options, Reader, State};
    use crate::storage::Memory;

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

    /// News without their view.
    #[derive(Debug, PartialEq)]
    enum Told {
        Changes(Changes),
        Jump(i64),
    }

    fn next(feed: &Feed) -> Option<Told> {
        feed.next(Duration::ZERO).map(|news| match news {
            News::Changes(changes, _) => Told::Changes(changes),
            News::Jump(revision) => Told::Jump(revision),
        })
    }

    fn store() -> Reader {
        let (state, _) = State::open(Arc::new(Memory::default()), Options::default()).expect("opened");
        state.reader()
    }

    #[test]
    fn news_come_in_order_once_somebody_listens() {
        let (feed, store) = (Feed::default(), store());
        let publish = |revision| feed.publish(changes(revision, 1), || store.view());
        publish(2);
        feed.listen();
        feed.set_audience(true);
        publish(3);
        publish(4);
        assert_eq!(next(&feed), Some(Told::Changes(changes(3, 1))));
        assert_eq!(next(&feed), Some(Told::Changes(changes(4, 1))));
        assert_eq!(next(&feed), None);
        feed.close();
        publish(5);
        assert_eq!(next(&feed), None);
    }

    #[test]
    fn without_an_audience_it_is_enough_to_know_where_the_store_is() {
        let (feed, store) = (Feed::default(), store());
        let publish = |revision| feed.publish(changes(revision, 1), || store.view());
        feed.listen();
        publish(2);
        publish(3);
        assert_eq!(next(&feed), None);
        feed.set_audience(true);
        publish(4);
        assert_eq!(next(&feed), Some(Told::Jump(3)));
        assert_eq!(next(&feed), Some(Told::Changes(changes(4, 1))));
        publish(5);
        feed.set_audience(false);
        assert_eq!(next(&feed), None);
        publish(6);
        feed.set_audience(true);
        assert_eq!(next(&feed), Some(Told::Jump(6)));
        assert_eq!(next(&feed), None);
    }

    #[test]
    fn a_full_feed_forgets_and_says_so() {
        let (feed, store) = (Feed::default(), store());
        let publish = |revision, value| feed.publish(changes(revision, value), || store.view());
        feed.listen();
        feed.set_audience(true);
        for revision in 2..7 {
            publish(revision, LIMIT / 4);
        }
        assert_eq!(next(&feed), Some(Told::Jump(5)));
        assert_eq!(next(&feed), Some(Told::Changes(changes(6, LIMIT / 4))));
        publish(7, LIMIT / 2);
        feed.jump(9);
        assert_eq!(next(&feed), Some(Told::Jump(9)));
        assert_eq!(next(&feed), None);
        assert_eq!(feed.queue().bytes, 0);
    }
}
