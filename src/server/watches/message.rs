//! What a watcher is sent. An event is encoded once for all the watchers that see it alike; a message is a small head
//! of its own around bytes that it shares with the messages of others.

use std::cell::OnceCell;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::pb::etcdserverpb::{ResponseHeader, WatchResponse};
use crate::pb::mvccpb::Event;

/// The field's number in `WatchResponse`.
const EVENTS: u32 = 11;
/// What a message takes in memory beside its events, about.
const HEAD: usize = 256;

/// One answer of a watch stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Everything but the events. Of the header only the revision is set: the service completes it.
    pub head: WatchResponse,
    /// The events, each as the whole field that it is in the encoded answer.
    pub events: Vec<Bytes>,
}

impl Message {
    /// An answer without events.
    pub fn new(revision: i64, head: WatchResponse) -> Message {
        let header = ResponseHeader {
            revision,
            ..ResponseHeader::default()
        };
        Message {
            head: WatchResponse {
                header: Some(header),
                ..head
            },
            events: Vec::new(),
        }
    }

    /// The header's revision.
    pub fn revision(&self) -> i64 {
        self.head.header.as_ref().map_or(0, |header| header.revision)
    }

    /// Bytes that it takes in memory, about; those of events that it shares count in full.
    pub fn size(&self) -> usize {
        HEAD + self.events.iter().map(Bytes::len).sum::<usize>()
    }

    /// As it is on the wire.
    pub fn encode(&self, out: &mut impl BufMut) {
        // Fails only without room, which a growing buffer has.
        let _ = self.head.encode(out);
        for event in &self.events {
            out.put_slice(event);
        }
    }

    /// Its length on the wire.
    pub fn encoded_len(&self) -> usize {
        self.head.encoded_len() + self.events.iter().map(Bytes::len).sum::<usize>()
    }

    /// The answer with its events decoded, for those who don't put it on the wire.
    pub fn into_response(self) -> WatchResponse {
        let mut out = BytesMut::with_capacity(self.encoded_len());
        self.encode(&mut out);
        WatchResponse::decode(out.freeze()).expect("what was encoded here can be decoded")
    }

    /// Cut into messages of about `limit` bytes; all but the last say that more follows.
    pub fn into_fragments(mut self, limit: usize) -> Vec<Message> {
        let mut fragments = Vec::new();
        let mut size = 0;
        for event in std::mem::take(&mut self.events) {
            if size + event.len() > limit && !self.events.is_empty() {
                let mut fragment = self.clone();
                fragment.head.fragment = true;
                fragments.push(fragment);
                self.events.clear();
                size = 0;
            }
            size += event.len();
            self.events.push(event);
        }
        fragments.push(self);
        fragments
    }
}

/// An event, encoded when a watcher first wants it so.
pub struct Encoded<'a> {
    event: &'a Event,
    plain: OnceCell<Bytes>,
    with_previous: OnceCell<Bytes>,
}

impl<'a> Encoded<'a> {
    /// Encodes nothing yet.
    pub fn new(event: &'a Event) -> Self {
        Encoded {
            event,
            plain: OnceCell::new(),
            with_previous: OnceCell::new(),
        }
    }

    /// Without the pair from before.
    pub fn plain(&self) -> Bytes {
        self.plain.get_or_init(|| field(self.event)).clone()
    }

    /// With the pair from before, which `previous` looks up.
    pub fn with_previous<E>(
        &self,
        previous: impl FnOnce() -> Result<Option<crate::pb::mvccpb::KeyValue>, E>,
    ) -> Result<Bytes, E> {
        if let Some(bytes) = self.with_previous.get() {
            return Ok(bytes.clone());
        }
        let bytes = match previous()? {
            Some(kv) => field(&Event {
                prev_kv: Some(kv),
                ..self.event.clone()
            }),
            None => self.plain(),
        };
        Ok(self.with_previous.get_or_init(|| bytes).clone())
    }
}

fn field(event: &Event) -> Bytes {
    let length = event.encoded_len();
    let mut out = BytesMut::with_capacity(1 + encoded_len_varint(length as u64) + length);
    encode_key(EVENTS, WireType::LengthDelimited, &mut out);
    encode_varint(length as u64, &mut out);
    event.encode_raw(&mut out);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb::KeyValue;

    fn event(key: &str, value: usize) -> Event {
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: vec![b'v'; value].into(),
            mod_revision: 7,
            ..KeyValue::default()
        };
        Event {
            kv: Some(kv),
            ..Event::default()
        }
    }

    fn message(events: &[Event]) -> Message {
        let head = WatchResponse {
            watch_id: 3,
            ..WatchResponse::default()
        };
        Message {
            events: events.iter().map(|event| Encoded::new(event).plain()).collect(),
            ..Message::new(9, head)
        }
    }

    #[test]
    fn shared_bytes_make_the_answer_that_was_meant() {
        let events = [event("a", 0), event("b", 5), event("c", 500)];
        let response = message(&events).into_response();
        assert_eq!(response.events, events);
        assert_eq!(
            (response.watch_id, response.header.map(|h| h.revision)),
            (3, Some(9))
        );
    }

    #[test]
    fn the_pair_from_before_is_looked_up_once() {
        let (event, before) = (event("a", 3), event("a", 1).kv);
        let encoded = Encoded::new(&event);
        let mut lookups = 0;
        for _ in 0..2 {
            let bytes = encoded.with_previous(|| -> Result<_, ()> {
                lookups += 1;
                Ok(before.clone())
            });
            let mut message = message(&[]);
            message.events = vec![bytes.expect("looked up")];
            assert_eq!(message.into_response().events[0].prev_kv, before);
        }
        assert_eq!(lookups, 1);
        assert_eq!(
            encoded.with_previous(|| Err(())),
            Ok(encoded.with_previous.get().unwrap().clone())
        );
    }

    #[test]
    fn fragments_hold_all_events_in_order() {
        let events: Vec<Event> = (0..10).map(|n| event(&n.to_string(), 100)).collect();
        for (limit, count) in [(1, 10), (250, 5), (100_000, 1)] {
            let fragments = message(&events).into_fragments(limit);
            assert_eq!(fragments.len(), count);
            let marks: Vec<bool> = fragments.iter().map(|f| f.head.fragment).collect();
            assert_eq!(marks, (1..=count).map(|n| n < count).collect::<Vec<_>>());
            let all = fragments.into_iter().flat_map(|f| f.into_response().events);
            assert_eq!(all.collect::<Vec<_>>(), events);
        }
    }
}
