//! Events of a watch.

use prost::Message;
use serde_json::{Value, json};

use super::kv::{json_kv, kv_fields};
use super::{Answer, Fields, Style, json_header, object, pair_lines};
use crate::pb::etcdserverpb::WatchResponse;
use crate::pb::mvccpb::Event;
use crate::pb::mvccpb::event::EventType;

/// The name of an event's type.
pub fn type_name(event: &Event) -> &'static str {
    match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    }
}

/// An event: its type, the pair before if there is one, the pair.
pub fn event_lines(event: &Event, style: Style) -> Vec<u8> {
    let kind = format!("{}\n", type_name(event)).into_bytes();
    let before = pair_lines(event.prev_kv.as_slice(), style);
    [kind, before, pair_lines(event.kv.as_slice(), style)].concat()
}

fn json_event(event: &Event) -> Value {
    let pair = |kv: &Option<_>| kv.as_ref().map_or(Value::Null, json_kv);
    object(vec![
        ("type", json!(event.r#type)),
        ("kv", pair(&event.kv)),
        ("prev_kv", pair(&event.prev_kv)),
    ])
}

fn add_event(fields: Fields, event: &Event) -> Fields {
    fields
        .value("Type", type_name(event))
        .all(event.prev_kv.as_slice(), |fields, kv| {
            kv_fields(fields, "Prev", kv)
        })
        .all(event.kv.as_slice(), |fields, kv| kv_fields(fields, "", kv))
}

impl Answer for WatchResponse {
    fn json(&self) -> Value {
        json!({
            "Header": json_header(self.header.as_ref()),
            "Events": self.events.iter().map(json_event).collect::<Value>(),
            "CompactRevision": self.compact_revision,
            "Canceled": self.canceled,
            "Created": self.created,
        })
    }

    fn fields(&self) -> Option<Fields> {
        Some(Fields::of(self.header.as_ref()).all(&self.events, add_event))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}
