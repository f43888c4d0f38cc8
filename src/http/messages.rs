//! Messages of any type, as JSON and as gRPC: what lets one piece of code serve every method.
//!
//! etcd's gateway prints fields by their names in the proto files, 64-bit integers as text, bytes in base64, enums by
//! name, and leaves out what has its default; it reads either spelling of a name, numbers or text, and ignores what it
//! does not know. [`DynamicMessage`] does the same from the descriptors that the binary carries anyway. Code generated
//! for each message (pbjson) would be faster to run, and the binary somewhat smaller; but it is compiled with this
//! crate at every change, and each method would need its own types named. A person or a script on the other end of HTTP
//! sees no difference.

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde::Deserialize;
use serde_json::Value;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Reads the first value in `text`; nothing but space is the empty message.
pub fn from_json(of: &MessageDescriptor, text: &[u8]) -> Result<DynamicMessage, Status> {
    let text = text.trim_ascii();
    if text.is_empty() || text.starts_with(b"null") {
        return Ok(DynamicMessage::new(of.clone()));
    }
    let bad = |error: serde_json::Error| Status::invalid_argument(error.to_string());
    // What follows the first value is ignored, as etcd does.
    let mut reader = serde_json::Deserializer::from_slice(text);
    let mut value = Value::deserialize(&mut reader).map_err(bad)?;
    keep_known(of, &mut value);
    DynamicMessage::deserialize(of.clone(), value).map_err(bad)
}

/// Drops the fields that a message does not have. The library could ignore them, but then unknown names of enums too,
/// which etcd refuses.
fn keep_known(of: &MessageDescriptor, value: &mut Value) {
    let Value::Object(fields) = value else { return };
    fields.retain(|name, value| {
        let field = of
            .get_field_by_json_name(name)
            .or_else(|| of.get_field_by_name(name));
        let Some(field) = field else { return false };
        if let Kind::Message(of) = field.kind() {
            match value {
                Value::Array(values) => values.iter_mut().for_each(|value| keep_known(&of, value)),
                value => keep_known(&of, value),
            }
        }
        true
    });
}

/// Prints a message.
pub fn to_json(message: &DynamicMessage) -> Result<Vec<u8>, Status> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut text = serde_json::Serializer::new(Vec::with_capacity(2 * message.encoded_len() + 64));
    match message.serialize_with_options(&mut text, &options) {
        Ok(()) => Ok(text.into_inner()),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

/// Sends messages of any type and receives those of one.
#[derive(Debug, Clone)]
pub struct AnyCodec {
    /// What is received.
    pub answers: MessageDescriptor,
}

impl Codec for AnyCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = AnyEncoder;
    type Decoder = AnyDecoder;

    fn encoder(&mut self) -> AnyEncoder {
        AnyEncoder
    }

    fn decoder(&mut self) -> AnyDecoder {
        AnyDecoder(self.answers.clone())
    }
}

/// See [`AnyCodec`].
pub struct AnyEncoder;

impl Encoder for AnyEncoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message
            .encode(into)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// See [`AnyCodec`].
pub struct AnyDecoder(MessageDescriptor);

impl Decoder for AnyDecoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        DynamicMessage::decode(self.0.clone(), from)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// Cuts a stream of bytes into JSON objects that follow each other, whatever stands between them.
///
/// Each byte is looked at once, however small the pieces come.
#[derive(Debug, Default)]
pub struct Objects {
    bytes: BytesMut,
    /// Bytes looked at already.
    seen: usize,
    depth: usize,
    in_text: bool,
    is_escaped: bool,
}

impl Objects {
    /// More of the stream.
    pub fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// Bytes that wait for the end of their object.
    pub fn waiting(&self) -> usize {
        self.bytes.len()
    }

    /// The next object, once all of it is here.
    pub fn pop(&mut self) -> Option<Bytes> {
        while self.seen < self.bytes.len() {
            let byte = self.bytes[self.seen];
            self.seen += 1;
            if self.step(byte) {
                return Some(self.bytes.split_to(std::mem::take(&mut self.seen)).freeze());
            }
        }
        None
    }

    /// What is left when the stream has ended, unless it is only space: an object that is cut off, or none at all.
    pub fn rest(&mut self) -> Option<Bytes> {
        let rest = std::mem::take(self).bytes.freeze();
        (!rest.trim_ascii().is_empty()).then_some(rest)
    }

    /// Whether this byte ends an object.
    fn step(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.in_text => self.is_escaped = true,
            b'"' => self.in_text = !self.in_text,
            _ if self.in_text => {}
            b'{' => self.depth += 1,
            b'}' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    fn message(name: &str) -> MessageDescriptor {
        pb::REFLECTION.get_message_by_name(name).expect("a message")
    }

    /// What comes out when `json` went in.
    fn through(name: &str, json: &str) -> String {
        let message =
            from_json(&message(name), json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
        String::from_utf8(to_json(&message).expect("JSON")).expect("text")
    }

    #[test]
    fn json_is_printed_as_etcd_prints_it() {
        let range = "etcdserverpb.RangeRequest";
        for (name, input, printed) in [
            (
                range,
                r#"{"key":"Zm9v","limit":"5","sortOrder":"DESCEND","sort_target":1}"#,
                r#"{"key":"Zm9v","limit":"5","sort_order":"DESCEND","sort_target":"VERSION"}"#,
            ),
            (
                range,
                r#"{"key":"","limit":0,"sort_order":"NONE","serializable":false}"#,
                "{}",
            ),
            (
                range,
                r#"{"key":null,"unknown":{"deep":[1]}, "serializable":true}"#,
                r#"{"serializable":true}"#,
            ),
            (range, "  ", "{}"),
            (range, "null", "{}"),
            (range, r#"{"limit":-1} and more"#, r#"{"limit":"-1"}"#),
            (
                "etcdserverpb.LeaseGrantResponse",
                r#"{"ID":"9223372036854775807","TTL":60}"#,
                r#"{"ID":"9223372036854775807","TTL":"60"}"#,
            ),
            (
                "etcdserverpb.HashKVResponse",
                r#"{"hash":4294967295,"compact_revision":-1}"#,
                r#"{"hash":4294967295,"compact_revision":"-1"}"#,
            ),
            (
                "etcdserverpb.MemberListResponse",
                r#"{"members":[{"ID":1,"peerURLs":["http://a:1"],"clientURLs":[]}]}"#,
                r#"{"members":[{"ID":"1","peerURLs":["http://a:1"]}]}"#,
            ),
            (
                "mvccpb.Event",
                r#"{"type":"DELETE","kv":{"key":"AA==","mod_revision":"7"}}"#,
                r#"{"type":"DELETE","kv":{"key":"AA==","mod_revision":"7"}}"#,
            ),
            (
                "mvccpb.Event",
                r#"{"type":"PUT","prevKv":{"version":1}}"#,
                r#"{"prev_kv":{"version":"1"}}"#,
            ),
            // A choice is printed even if it holds its default.
            (
                "etcdserverpb.Compare",
                r#"{"target":"CREATE","create_revision":0,"range_end":"AA=="}"#,
                r#"{"target":"CREATE","create_revision":"0","range_end":"AA=="}"#,
            ),
            (
                "etcdserverpb.ResponseOp",
                r#"{"response_put":{}}"#,
                r#"{"response_put":{}}"#,
            ),
            (
                "authpb.Permission",
                r#"{"permType":2,"key":"YQ=="}"#,
                r#"{"permType":"READWRITE","key":"YQ=="}"#,
            ),
        ] {
            let printed_now: serde_json::Value = serde_json::from_str(&through(name, input)).expect("JSON");
            let expected: serde_json::Value = serde_json::from_str(printed).expect("JSON");
            assert_eq!(printed_now, expected, "{input}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in [
            "{",
            "[]",
            "7",
            "{\"key\":\"!!!\"}",
            "{\"limit\":\"x\"}",
            "{\"limit\":1.5}",
            "{\"sort_target\":\"NOPE\"}",
            "{key:1}",
            "{\"serializable\":\"yes\"}",
        ] {
            let error = from_json(&message("etcdserverpb.RangeRequest"), bad.as_bytes()).expect_err(bad);
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{bad}");
            assert!(!error.message().is_empty(), "{bad}");
        }
        let deep = "{\"success\":[{\"request_txn\":".repeat(10_000);
        from_json(&message("etcdserverpb.TxnRequest"), deep.as_bytes()).expect_err("too deep");
    }

    #[test]
    fn objects_are_found_however_the_stream_is_cut() {
        let stream = br#" {"a":"}{\"\\"} {"b":{"c":{}}}{}
            {"cut": "#;
        for cut in 1..stream.len() {
            let (mut objects, mut found) = (Objects::default(), Vec::new());
            for part in stream.chunks(cut) {
                objects.push(part);
                while let Some(object) = objects.pop() {
                    found.push(String::from_utf8_lossy(&object).trim().to_string());
                }
            }
            assert_eq!(
                found,
                [r#"{"a":"}{\"\\"}"#, r#"{"b":{"c":{}}}"#, "{}"],
                "cut at {cut}"
            );
            assert!(objects.rest().is_some_and(|rest| rest.ends_with(b"{\"cut\": ")));
            assert_eq!(objects.rest(), None);
        }
    }
}
