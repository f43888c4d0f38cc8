//! What a watcher is sent. An event is encoded once for all the watchers that see it alike; a message is a small head
//! of its own around bytes that it shares with the messages of others.

use std::cell::OnceCell;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, bool, encode_key, encode_varint, encoded_len_varint, int64, message};
use smallvec::SmallVec;

use crate::pb::etcdserverpb::{ResponseHeader, WatchResponse};
use crate::pb::mvccpb::Event;

/// The fields' numbers in `WatchResponse`.
const HEADER: u32 = 1;
const WATCH_ID: u32 = 2;
const FRAGMENT: u32 = 7;
const EVENTS: u32 = 11;
/// What a message takes in memory beside its events, about.
const HEAD: usize = 256;

/// Encoded events, each the whole field that it is in an answer. Mostly it is one: it needs no memory of its own then.
pub type Events = SmallVec<[Bytes; 1]>;

/// One answer of a watch stream: it is made for each of thousands of watchers, by one thread for another, so it is small.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// For the header; the service knows the rest of it.
    pub revision: i64,
    content: Content,
}

#[derive(Debug, Clone, PartialEq)]
enum Content {
    /// What there is to say of a watcher; without header and events.
    Control(Box<WatchResponse>),
    /// What it watches for.
    Events {
        watch_id: i64,
        /// More of the same revision follows.
        fragment: bool,
        events: Events,
    },
}

impl Message {
    /// An answer without events.
    pub fn control(revision: i64, said: WatchResponse) -> Message {
        Message {
            revision,
            content: Content::Control(Box::new(said)),
        }
    }

    /// A watcher's events.
    pub fn events(revision: i64, watch_id: i64, events: Events) -> Message {
        Message::fragment(revision, watch_id, events, false)
    }

    fn fragment(revision: i64, watch_id: i64, events: Events, fragment: bool) -> Message {
        Message {
            revision,
            content: Content::Events {
                watch_id,
                fragment,
                events,
            },
        }
    }

    /// How many events it has.
    pub fn count(&self) -> usize {
        self.encoded_events().len()
    }

    /// Bytes that it takes in memory, about; those of events that it shares count in full.
    pub fn size(&self) -> usize {
        HEAD + self.events_len()
    }

    fn encoded_events(&self) -> &[Bytes] {
        match &self.content {
            Content::Control(_) => &[],
            Content::Events { events, .. } => events,
        }
    }

    fn events_len(&self) -> usize {
        self.encoded_events().iter().map(Bytes::len).sum()
    }

    /// As it is on the wire, appended to a buffer, with its header in front ([`encoded`]).
    pub fn encode(&self, header: &[u8], out: &mut BytesMut) {
        out.put_slice(header);
        match &self.content {
            Content::Control(said) => said.encode_raw(out),
            Content::Events {
                watch_id,
                fragment,
                events,
            } => {
                if *watch_id != 0 {
                    int64::encode(WATCH_ID, watch_id, out);
                }
                if *fragment {
                    bool::encode(FRAGMENT, fragment, out);
                }
                events.iter().for_each(|event| out.put_slice(event));
            }
        }
    }

    /// The answer with its events decoded, for those who don't put it on the wire. Its header has the revision only.
    pub fn into_response(self) -> WatchResponse {
        let header = ResponseHeader {
            revision: self.revision,
            ..ResponseHeader::default()
        };
        let mut out = BytesMut::new();
        self.encode(&encoded(&header), &mut out);
        WatchResponse::decode(out.freeze()).expect("what was encoded here can be decoded")
    }
}

/// A header as an answer has it: thousands of answers at one revision have the same.
pub fn encoded(header: &ResponseHeader) -> Bytes {
    let mut out = BytesMut::new();
    message::encode(HEADER, header, &mut out);
    out.freeze()
}

/// A watcher's events in messages of about `limit` bytes; all but the last say that more follows.
pub fn fragments(revision: i64, watch_id: i64, events: Events, limit: usize) -> Vec<Message> {
    let mut fragments = Vec::new();
    let (mut some, mut size) = (Events::new(), 0);
    for event in events {
        if size + event.len() > limit && !some.is_empty() {
            let full = std::mem::take(&mut some);
            fragments.push(Message::fragment(revision, watch_id, full, true));
            size = 0;
        }
        size += event.len();
        some.push(event);
    }
    fragments.push(Message::events(revision, watch_id, some));
    fragments
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

    fn encoded_all(events: &[Event]) -> Events {
        events.iter().map(|event| Encoded::new(event).plain()).collect()
    }

    #[test]
    fn an_answer_is_what_prost_would_send() {
        let header = ResponseHeader {
            cluster_id: u64::MAX,
            member_id: 1 << 40,
            revision: 9,
            raft_term: 3,
        };
        let events = vec![event("a", 0), event("b", 500)];
        let control = WatchResponse {
            watch_id: 4,
            canceled: true,
            cancel_reason: "why".to_string(),
            ..WatchResponse::default()
        };
        let mut answers = vec![(Message::control(9, control.clone()), control)];
        for (watch_id, fragment) in [(0, false), (-1, true), (300, false)] {
            let message = Message::fragment(9, watch_id, encoded_all(&events), fragment);
            let answer = WatchResponse {
                watch_id,
                fragment,
                events: events.clone(),
                ..WatchResponse::default()
            };
            answers.push((message, answer));
        }
        for (message, answer) in answers {
            let (mut out, header) = (BytesMut::new(), Some(header));
            message.encode(&encoded(&header.unwrap_or_default()), &mut out);
            assert_eq!(out, WatchResponse { header, ..answer }.encode_to_vec());
        }
    }

    #[test]
    fn shared_bytes_make_the_answer_that_was_meant() {
        let events = [event("a", 0), event("b", 5), event("c", 500)];
        let response = Message::events(9, 3, encoded_all(&events)).into_response();
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
            let events = Events::from([bytes.expect("looked up")]);
            assert_eq!(
                Message::events(9, 3, events).into_response().events[0].prev_kv,
                before
            );
        }
        assert_eq!(lookups, 1);
        assert_eq!(
            encoded.with_previous(|| Err(())),
            Ok(encoded.with_previous.get().expect("it was looked up").clone())
        );
    }

    #[test]
    fn fragments_hold_all_events_in_order() {
        let events: Vec<Event> = (0..10).map(|n| event(&n.to_string(), 100)).collect();
        for (limit, count) in [(1, 10), (250, 5), (100_000, 1)] {
            let fragments = fragments(9, 3, encoded_all(&events), limit);
            let answers: Vec<_> = fragments.into_iter().map(Message::into_response).collect();
            let marks: Vec<bool> = answers.iter().map(|answer| answer.fragment).collect();
            assert_eq!(marks, (1..=count).map(|n| n < count).collect::<Vec<_>>());
            let all = answers.into_iter().flat_map(|answer| answer.events);
            assert_eq!(all.collect::<Vec<_>>(), events);
        }
    }
}
