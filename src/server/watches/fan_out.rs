//! From events to what each watcher is sent of them: the same for live events and for those read back from the store.

use bytes::Bytes;
use smallvec::SmallVec;

use super::index::Index;
use super::message::{Encoded, Events};
use crate::pb::mvccpb::Event;
use crate::pb::mvccpb::event::EventType;
use crate::state::View;
use crate::storage;

/// Events of several revisions go into one message up to about this many bytes: below what clients take by default.
const PARCEL_BYTES: usize = 512 << 10;

/// What a watcher wants of the events on its keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interest {
    /// Events of earlier revisions are not wanted, or were sent.
    pub next: i64,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletes.
    pub no_delete: bool,
    /// Add the pair from before.
    pub prev_kv: bool,
}

impl Interest {
    fn wants(&self, event: &Event, revision: i64) -> bool {
        let filtered = match event.r#type() {
            EventType::Put => self.no_put,
            EventType::Delete => self.no_delete,
        };
        revision >= self.next && !filtered
    }
}

/// Encoded events for one message: all that a watcher sees of one revision, or of several.
#[derive(Debug, Default, PartialEq)]
pub struct Parcel {
    /// Main revision of the first.
    pub first: i64,
    /// Main revision of the last.
    pub last: i64,
    /// Each is the whole field.
    pub events: Events,
    bytes: usize,
}

/// What watchers are sent: mostly one parcel for each.
pub type Sent = SmallVec<[Parcel; 1]>;

/// The parcels of all watchers that events concern, by their numbers, in order.
#[derive(Debug, Default)]
pub struct Parcels(Vec<(u64, Sent)>);

impl Parcels {
    /// Takes out those of a watcher.
    pub fn take(&mut self, number: u64) -> Sent {
        match self.0.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => std::mem::take(&mut self.0[at].1),
            Err(_) => Sent::new(),
        }
    }
}

impl IntoIterator for Parcels {
    type Item = (u64, Sent);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// An event as one watcher gets it.
struct Delivery {
    watcher: u64,
    /// Main revision.
    revision: i64,
    event: Bytes,
}

/// Packs the events for all the watchers in an index.
pub fn fan_out<'a>(
    events: &[Event],
    index: &Index,
    interest: &dyn Fn(u64) -> Option<&'a Interest>,
    view: &View,
) -> storage::Result<Parcels> {
    let (mut deliveries, mut concerned) = (Vec::new(), Vec::new());
    for event in events {
        let Some(kv) = &event.kv else { continue };
        index.watchers_of(&kv.key, &mut |number| concerned.push(number));
        let encoded = Encoded::new(event);
        for watcher in concerned.drain(..) {
            let Some(interest) = interest(watcher).filter(|it| it.wants(event, kv.mod_revision)) else {
                continue;
            };
            // A creation has none, also where the key was deleted in the same revision.
            let is_creation = kv.create_revision == kv.mod_revision;
            let event = match interest.prev_kv && !is_creation {
                true => encoded.with_previous(|| view.before(&kv.key, kv.mod_revision))?,
                false => encoded.plain(),
            };
            deliveries.push(Delivery {
                watcher,
                revision: kv.mod_revision,
                event,
            });
        }
    }
    Ok(packed(deliveries))
}

/// One watcher's after another's, each in the order of events: which is mostly the order that they have.
fn packed(mut deliveries: Vec<Delivery>) -> Parcels {
    deliveries.sort_by_key(|delivery| delivery.watcher);
    let mut parcels: Vec<(u64, Sent)> = Vec::with_capacity(deliveries.len());
    for Delivery {
        watcher,
        revision,
        event,
    } in deliveries
    {
        if parcels.last().is_none_or(|(last, _)| *last != watcher) {
            parcels.push((watcher, Sent::new()));
        }
        if let Some((_, sent)) = parcels.last_mut() {
            add(sent, revision, event);
        }
    }
    Parcels(parcels)
}

fn add(parcels: &mut Sent, revision: i64, event: Bytes) {
    let fits = |parcel: &Parcel| parcel.last == revision || parcel.bytes < PARCEL_BYTES;
    if !parcels.last().is_some_and(fits) {
        parcels.push(Parcel {
            first: revision,
            ..Parcel::default()
        });
    }
    if let Some(parcel) = parcels.last_mut() {
        parcel.last = revision;
        parcel.bytes += event.len();
        parcel.events.push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_watcher_gets_its_events_in_their_order() {
        let delivery = |(watcher, revision)| Delivery {
            watcher,
            revision,
            event: Bytes::from(revision.to_string()),
        };
        let order = [(7, 2), (9, 2), (3, 2), (9, 3), (3, 3), (3, 4), (7, 5)];
        let mut parcels = packed(order.map(delivery).into());
        let mut revisions = |watcher| -> Vec<Bytes> {
            let sent = parcels.take(watcher);
            sent.into_iter().flat_map(|parcel| parcel.events).collect()
        };
        assert_eq!(revisions(3), ["2", "3", "4"]);
        assert_eq!(revisions(7), ["2", "5"]);
        assert_eq!(revisions(8), [""; 0]);
        let left: Vec<_> = parcels
            .into_iter()
            .map(|(watcher, sent)| (watcher, sent.len()))
            .collect();
        assert_eq!(left, [(3, 0), (7, 0), (9, 1)], "and each has one place");
    }

    #[test]
    fn a_revision_is_never_torn_and_a_message_seldom_large() {
        let mut parcels = SmallVec::new();
        let half = Bytes::from(vec![0; PARCEL_BYTES / 2]);
        for revision in [2, 3, 4, 4, 4, 5] {
            add(&mut parcels, revision, half.clone());
        }
        let spans: Vec<_> = parcels
            .iter()
            .map(|p| (p.first, p.last, p.events.len()))
            .collect();
        assert_eq!(spans, [(2, 3, 2), (4, 4, 3), (5, 5, 1)]);
    }
}
