//! From events to what each watcher is sent of them: the same for live events and for those read back from the store.

use std::collections::BTreeMap;

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

/// By watcher's number; seldom more than one for each.
pub type Parcels = BTreeMap<u64, SmallVec<[Parcel; 1]>>;

/// Packs the events for all the watchers in an index.
pub fn fan_out<'a>(
    events: &[Event],
    index: &Index,
    interest: &dyn Fn(u64) -> Option<&'a Interest>,
    view: &View,
) -> storage::Result<Parcels> {
    let mut parcels = Parcels::new();
    let mut concerned = Vec::new();
    for event in events {
        let Some(kv) = &event.kv else { continue };
        index.watchers_of(&kv.key, &mut |number| concerned.push(number));
        let encoded = Encoded::new(event);
        for number in concerned.drain(..) {
            let Some(interest) = interest(number).filter(|it| it.wants(event, kv.mod_revision)) else {
                continue;
            };
            // A creation has none, also where the key was deleted in the same revision.
            let is_creation = kv.create_revision == kv.mod_revision;
            let bytes = match interest.prev_kv && !is_creation {
                true => encoded.with_previous(|| view.before(&kv.key, kv.mod_revision))?,
                false => encoded.plain(),
            };
            add(parcels.entry(number).or_default(), kv.mod_revision, bytes);
        }
    }
    Ok(parcels)
}

fn add(parcels: &mut SmallVec<[Parcel; 1]>, revision: i64, event: Bytes) {
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
