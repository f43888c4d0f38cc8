//! Pairs, and the answers of the KV service.

use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use super::{Answer, Fields, base64, json_header, object, only_header};
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{
    CompactionResponse, DeleteRangeResponse, PutResponse, RangeResponse, ResponseOp, TxnResponse,
};
use crate::pb::mvccpb::KeyValue;

/// How pairs are printed for people.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Values only.
    pub values_only: bool,
    /// Bytes as `\x..`.
    pub hex: bool,
}

fn add_line(out: &mut Vec<u8>, bytes: &Bytes, style: Style) {
    match style.hex {
        true => bytes
            .iter()
            .for_each(|byte| out.extend(format!("\\x{byte:02x}").into_bytes())),
        false => out.extend_from_slice(bytes),
    }
    out.push(b'\n');
}

/// Each pair in two lines.
pub fn pair_lines(kvs: &[KeyValue], style: Style) -> Vec<u8> {
    let mut out = Vec::new();
    for kv in kvs {
        if !style.values_only {
            add_line(&mut out, &kv.key, style);
        }
        add_line(&mut out, &kv.value, style);
    }
    out
}

/// `OK`, and the pair before.
pub fn put_lines(response: &PutResponse, style: Style) -> Vec<u8> {
    let before = pair_lines(response.prev_kv.as_slice(), style);
    [b"OK\n".to_vec(), before].concat()
}

/// How many, and the pairs before.
pub fn delete_lines(response: &DeleteRangeResponse, style: Style) -> Vec<u8> {
    let before = pair_lines(&response.prev_kvs, style);
    [format!("{}\n", response.deleted).into_bytes(), before].concat()
}

/// Which branch was taken, and its answers.
pub fn txn_lines(response: &TxnResponse, style: Style) -> Vec<u8> {
    let branch = if response.succeeded {
        "SUCCESS\n"
    } else {
        "FAILURE\n"
    };
    let mut out = branch.as_bytes().to_vec();
    for op in &response.responses {
        out.push(b'\n');
        out.extend(match &op.response {
            Some(Response::ResponsePut(put)) => put_lines(put, style),
            Some(Response::ResponseRange(range)) => pair_lines(&range.kvs, style),
            Some(Response::ResponseDeleteRange(delete)) => delete_lines(delete, style),
            Some(Response::ResponseTxn(txn)) => txn_lines(txn, style),
            None => Vec::new(),
        });
    }
    out
}

pub(super) fn json_kv(kv: &KeyValue) -> Value {
    object(vec![
        ("key", base64(&kv.key)),
        ("create_revision", json!(kv.create_revision)),
        ("mod_revision", json!(kv.mod_revision)),
        ("version", json!(kv.version)),
        ("value", base64(&kv.value)),
        ("lease", json!(kv.lease)),
    ])
}

/// A pair's fields; `before` is what their names begin with.
pub(super) fn kv_fields(fields: Fields, before: &str, kv: &KeyValue) -> Fields {
    let name = |name: &str| format!("{before}{name}");
    fields
        .text(&name("Key"), &kv.key)
        .value(&name("CreateRevision"), kv.create_revision)
        .value(&name("ModRevision"), kv.mod_revision)
        .value(&name("Version"), kv.version)
        .text(&name("Value"), &kv.value)
        .value(&name("Lease"), kv.lease)
}

fn add_range(fields: Fields, response: &RangeResponse) -> Fields {
    fields
        .header(response.header.as_ref())
        .all(&response.kvs, |fields, kv| kv_fields(fields, "", kv))
        .value("More", response.more)
        .value("Count", response.count)
}

fn add_put(fields: Fields, response: &PutResponse) -> Fields {
    let fields = fields.header(response.header.as_ref());
    fields.all(response.prev_kv.as_slice(), |fields, kv| {
        kv_fields(fields, "Prev", kv)
    })
}

fn add_delete(fields: Fields, response: &DeleteRangeResponse) -> Fields {
    fields
        .header(response.header.as_ref())
        .value("Deleted", response.deleted)
        .all(&response.prev_kvs, |fields, kv| kv_fields(fields, "Prev", kv))
}

fn add_txn(fields: Fields, response: &TxnResponse) -> Fields {
    let fields = fields
        .header(response.header.as_ref())
        .value("Succeeded", response.succeeded);
    fields.all(&response.responses, |fields, op| match &op.response {
        Some(Response::ResponseRange(range)) => add_range(fields, range),
        Some(Response::ResponsePut(put)) => add_put(fields, put),
        Some(Response::ResponseDeleteRange(delete)) => add_delete(fields, delete),
        Some(Response::ResponseTxn(txn)) => add_txn(fields, txn),
        None => fields,
    })
}

/// Go names the members of the union as its generated code does.
fn json_op(op: &ResponseOp) -> Value {
    let response = match &op.response {
        Some(Response::ResponseRange(range)) => json!({"response_range": range.json()}),
        Some(Response::ResponsePut(put)) => json!({"response_put": put.json()}),
        Some(Response::ResponseDeleteRange(delete)) => json!({"response_delete_range": delete.json()}),
        Some(Response::ResponseTxn(txn)) => json!({"response_txn": txn.json()}),
        None => Value::Null,
    };
    json!({"Response": response})
}

impl Answer for RangeResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("kvs", self.kvs.iter().map(json_kv).collect()),
            ("more", json!(self.more)),
            ("count", json!(self.count)),
        ])
    }

    fn fields(&self) -> Option<Fields> {
        Some(add_range(Fields::default(), self))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for PutResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("prev_kv", self.prev_kv.as_ref().map_or(Value::Null, json_kv)),
        ])
    }

    fn fields(&self) -> Option<Fields> {
        Some(add_put(Fields::default(), self))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for DeleteRangeResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("deleted", json!(self.deleted)),
            ("prev_kvs", self.prev_kvs.iter().map(json_kv).collect()),
        ])
    }

    fn fields(&self) -> Option<Fields> {
        Some(add_delete(Fields::default(), self))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for TxnResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("succeeded", json!(self.succeeded)),
            ("responses", self.responses.iter().map(json_op).collect()),
        ])
    }

    fn fields(&self) -> Option<Fields> {
        Some(add_txn(Fields::default(), self))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

only_header!(CompactionResponse);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::ResponseHeader;

    fn kv() -> KeyValue {
        KeyValue {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 0,
        }
    }

    fn range() -> RangeResponse {
        let header = ResponseHeader {
            cluster_id: 1,
            member_id: 2,
            revision: 3,
            raft_term: 4,
        };
        RangeResponse {
            header: Some(header),
            kvs: vec![kv()],
            more: false,
            count: 1,
        }
    }

    #[test]
    fn json_is_what_etcdctl_prints() {
        assert_eq!(
            range().json().to_string(),
            r#"{"header":{"cluster_id":1,"member_id":2,"revision":3,"raft_term":4},"kvs":[{"key":"aw==","create_revision":2,"mod_revision":3,"version":2,"value":"dg=="}],"count":1}"#
        );
    }

    #[test]
    fn fields_are_what_etcdctl_prints() {
        let fields = range().fields().map(|fields| fields.0).unwrap_or_default();
        let (head, rest) = fields.split_once("\"Key\"").expect("a key");
        assert_eq!(
            head,
            "\"ClusterID\" : 1\n\"MemberID\" : 2\n\"Revision\" : 3\n\"RaftTerm\" : 4\n"
        );
        assert_eq!(
            rest,
            " : \"k\"\n\"CreateRevision\" : 2\n\"ModRevision\" : 3\n\"Version\" : 2\n\"Value\" : \"v\"\n\"Lease\" : 0\n\
             \"More\" : false\n\"Count\" : 1\n"
        );
    }

    #[test]
    fn pairs_in_lines() {
        let style = Style::default();
        assert_eq!(pair_lines(&[kv()], style), b"k\nv\n");
        let values_only = Style {
            values_only: true,
            ..style
        };
        assert_eq!(pair_lines(&[kv()], values_only), b"v\n");
        assert_eq!(
            pair_lines(&[kv()], Style { hex: true, ..style }),
            b"\\x6b\n\\x76\n"
        );
        let deleted = DeleteRangeResponse {
            deleted: 3,
            ..Default::default()
        };
        assert_eq!(delete_lines(&deleted, style), b"3\n");
    }
}
