//! What the verbs print: etcdctl's forms (simple, json, fields, table), to the letter where scripts depend on it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{
    DeleteRangeResponse, Member, MemberListResponse, PutResponse, RangeResponse, ResponseHeader, ResponseOp,
    StatusResponse, TxnResponse,
};
use crate::pb::mvccpb::KeyValue;

/// `-w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people and shells.
    Simple,
    /// For programs.
    Json,
    /// One field a line.
    Fields,
    /// With borders.
    Table,
}

impl Form {
    /// Reads `-w`.
    pub fn parse(text: &str) -> Option<Form> {
        match text {
            "simple" => Some(Form::Simple),
            "json" => Some(Form::Json),
            "fields" => Some(Form::Fields),
            "table" => Some(Form::Table),
            _ => None,
        }
    }
}

/// How `get` and `txn` print pairs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pairs {
    /// Values only.
    pub values_only: bool,
    /// Keys only.
    pub keys_only: bool,
    /// Unprintable bytes as `\x..`.
    pub hex: bool,
}

fn text(bytes: &Bytes, hex: bool) -> Vec<u8> {
    match hex {
        true => bytes
            .iter()
            .flat_map(|byte| format!("\\x{byte:02x}").into_bytes())
            .collect(),
        false => bytes.to_vec(),
    }
}

/// Each pair in two lines.
pub fn simple_pairs(kvs: &[KeyValue], pairs: Pairs) -> Vec<u8> {
    let mut out = Vec::new();
    for kv in kvs {
        if !pairs.values_only {
            out.extend(text(&kv.key, pairs.hex));
            out.push(b'\n');
        }
        if !pairs.keys_only {
            out.extend(text(&kv.value, pairs.hex));
            out.push(b'\n');
        }
    }
    out
}

/// A transaction's answer.
pub fn simple_txn(response: &TxnResponse, pairs: Pairs) -> Vec<u8> {
    let mut out = if response.succeeded {
        b"SUCCESS\n".to_vec()
    } else {
        b"FAILURE\n".to_vec()
    };
    for op in &response.responses {
        out.push(b'\n');
        match &op.response {
            Some(Response::ResponsePut(put)) => out.extend(simple_put(put, pairs)),
            Some(Response::ResponseRange(range)) => out.extend(simple_pairs(&range.kvs, pairs)),
            Some(Response::ResponseDeleteRange(delete)) => out.extend(simple_delete(delete, pairs)),
            Some(Response::ResponseTxn(txn)) => out.extend(simple_txn(txn, pairs)),
            None => {}
        }
    }
    out
}

/// `OK`, and the pair before.
pub fn simple_put(response: &PutResponse, pairs: Pairs) -> Vec<u8> {
    let mut out = b"OK\n".to_vec();
    out.extend(simple_pairs(response.prev_kv.as_slice(), pairs));
    out
}

/// How many, and the pairs before.
pub fn simple_delete(response: &DeleteRangeResponse, pairs: Pairs) -> Vec<u8> {
    let mut out = format!("{}\n", response.deleted).into_bytes();
    out.extend(simple_pairs(&response.prev_kvs, pairs));
    out
}

fn object(fields: Vec<(&str, Value)>) -> Value {
    // As Go's encoder does with `omitempty`, which etcdctl's JSON comes from.
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Bool(value) => !value,
        Value::Object(_) => false,
    };
    let fields = fields.into_iter().filter(|(_, value)| !empty(value));
    Value::Object(
        fields
            .map(|(name, value)| (name.to_string(), value))
            .collect::<Map<_, _>>(),
    )
}

fn base64(bytes: &Bytes) -> Value {
    Value::String(STANDARD.encode(bytes))
}

/// A header.
pub fn json_header(header: Option<&ResponseHeader>) -> Value {
    let Some(header) = header else { return Value::Null };
    object(vec![
        ("cluster_id", json!(header.cluster_id)),
        ("member_id", json!(header.member_id)),
        ("revision", json!(header.revision)),
        ("raft_term", json!(header.raft_term)),
    ])
}

fn json_kv(kv: &KeyValue) -> Value {
    object(vec![
        ("key", base64(&kv.key)),
        ("create_revision", json!(kv.create_revision)),
        ("mod_revision", json!(kv.mod_revision)),
        ("version", json!(kv.version)),
        ("value", base64(&kv.value)),
        ("lease", json!(kv.lease)),
    ])
}

fn json_kvs(kvs: &[KeyValue]) -> Value {
    kvs.iter().map(json_kv).collect()
}

/// A range's answer.
pub fn json_range(response: &RangeResponse) -> Value {
    object(vec![
        ("header", json_header(response.header.as_ref())),
        ("kvs", json_kvs(&response.kvs)),
        ("more", json!(response.more)),
        ("count", json!(response.count)),
    ])
}

/// A put's answer.
pub fn json_put(response: &PutResponse) -> Value {
    let prev_kv = response.prev_kv.as_ref().map_or(Value::Null, json_kv);
    object(vec![
        ("header", json_header(response.header.as_ref())),
        ("prev_kv", prev_kv),
    ])
}

/// A delete's answer.
pub fn json_delete(response: &DeleteRangeResponse) -> Value {
    object(vec![
        ("header", json_header(response.header.as_ref())),
        ("deleted", json!(response.deleted)),
        ("prev_kvs", json_kvs(&response.prev_kvs)),
    ])
}

/// A transaction's answer.
pub fn json_txn(response: &TxnResponse) -> Value {
    object(vec![
        ("header", json_header(response.header.as_ref())),
        ("succeeded", json!(response.succeeded)),
        ("responses", response.responses.iter().map(json_op).collect()),
    ])
}

/// Go names the members of the union as its generated code does.
fn json_op(op: &ResponseOp) -> Value {
    let response = match &op.response {
        Some(Response::ResponseRange(range)) => json!({"response_range": json_range(range)}),
        Some(Response::ResponsePut(put)) => json!({"response_put": json_put(put)}),
        Some(Response::ResponseDeleteRange(delete)) => json!({"response_delete_range": json_delete(delete)}),
        Some(Response::ResponseTxn(txn)) => json!({"response_txn": json_txn(txn)}),
        None => Value::Null,
    };
    json!({"Response": {"Response": response}})
}

/// The members.
pub fn json_members(response: &MemberListResponse) -> Value {
    let member = |member: &Member| {
        object(vec![
            ("ID", json!(member.id)),
            ("name", json!(member.name)),
            ("peerURLs", json!(member.peer_ur_ls)),
            ("clientURLs", json!(member.client_ur_ls)),
            ("isLearner", json!(member.is_learner)),
        ])
    };
    object(vec![
        ("header", json_header(response.header.as_ref())),
        ("members", response.members.iter().map(member).collect()),
    ])
}

/// An endpoint's status.
pub fn json_status(endpoint: &str, response: &StatusResponse) -> Value {
    let status = object(vec![
        ("header", json_header(response.header.as_ref())),
        ("version", json!(response.version)),
        ("dbSize", json!(response.db_size)),
        ("leader", json!(response.leader)),
        ("raftIndex", json!(response.raft_index)),
        ("raftTerm", json!(response.raft_term)),
        ("raftAppliedIndex", json!(response.raft_applied_index)),
        ("errors", json!(response.errors)),
        ("dbSizeInUse", json!(response.db_size_in_use)),
        ("isLearner", json!(response.is_learner)),
    ]);
    json!({"Endpoint": endpoint, "Status": status})
}

/// Rows under a head, with borders, as etcdctl draws them.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_FULL_CONDENSED);
    table.set_header(head.iter().map(|cell| cell.to_uppercase()));
    table.add_rows(rows);
    table.to_string()
}

/// The members, one a row.
pub fn member_rows(response: &MemberListResponse) -> Vec<Vec<String>> {
    let row = |member: &Member| {
        let status = if member.name.is_empty() {
            "unstarted"
        } else {
            "started"
        };
        vec![
            format!("{:x}", member.id),
            status.to_string(),
            member.name.clone(),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            member.is_learner.to_string(),
        ]
    };
    response.members.iter().map(row).collect()
}

/// An endpoint's status in a row.
pub fn status_row(endpoint: &str, response: &StatusResponse) -> Vec<String> {
    let member_id = response.header.as_ref().map_or(0, |header| header.member_id);
    vec![
        endpoint.to_string(),
        format!("{member_id:x}"),
        response.version.clone(),
        size(response.db_size),
        (response.leader == member_id).to_string(),
        response.is_learner.to_string(),
        response.raft_term.to_string(),
        response.raft_index.to_string(),
        response.raft_applied_index.to_string(),
        response.errors.join(", "),
    ]
}

/// Bytes as etcdctl says them: decimal units, two digits.
pub fn size(bytes: i64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 10.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// One field a line, from the JSON form.
pub fn fields(value: &Value) -> String {
    let mut out = String::new();
    add_fields("", value, &mut out);
    out
}

fn add_fields(name: &str, value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| add_fields(&field_name(name), value, out)),
        Value::Array(values) => values.iter().for_each(|value| add_fields(name, value, out)),
        Value::String(text) => {
            let decoded = STANDARD
                .decode(text)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok());
            let text = match name {
                "Key" | "Value" => decoded.unwrap_or_else(|| text.clone()),
                _ => text.clone(),
            };
            out.push_str(&format!("\"{name}\" : {text:?}\n"));
        }
        other => out.push_str(&format!("\"{name}\" : {other}\n")),
    }
}

/// `create_revision` → `CreateRevision`, as etcdctl's fields are named.
fn field_name(name: &str) -> String {
    let words = name.split('_').map(|word| match word {
        "id" => "ID".to_string(),
        _ => word[..1].to_uppercase() + &word[1..],
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn json_is_what_etcdctl_prints() {
        let header = ResponseHeader {
            cluster_id: 1,
            member_id: 2,
            revision: 3,
            raft_term: 4,
        };
        let response = RangeResponse {
            header: Some(header),
            kvs: vec![kv()],
            more: false,
            count: 1,
        };
        assert_eq!(
            json_range(&response).to_string(),
            r#"{"header":{"cluster_id":1,"member_id":2,"revision":3,"raft_term":4},"kvs":[{"key":"aw==","create_revision":2,"mod_revision":3,"version":2,"value":"dg=="}],"count":1}"#
        );
    }

    #[test]
    fn pairs_in_lines() {
        let both = Pairs::default();
        assert_eq!(simple_pairs(&[kv()], both), b"k\nv\n");
        assert_eq!(
            simple_pairs(
                &[kv()],
                Pairs {
                    values_only: true,
                    ..both
                }
            ),
            b"v\n"
        );
        assert_eq!(
            simple_pairs(&[kv()], Pairs { hex: true, ..both }),
            b"\\x6b\n\\x76\n"
        );
        assert_eq!(
            simple_delete(
                &DeleteRangeResponse {
                    deleted: 3,
                    ..Default::default()
                },
                both
            ),
            b"3\n"
        );
    }

    #[test]
    fn sizes_and_fields() {
        assert_eq!(
            [size(20480), size(999), size(1_500_000)],
            ["20 kB", "999 B", "1.5 MB"]
        );
        assert!(fields(&json_kv(&kv())).starts_with("\"Key\" : \"k\"\n\"CreateRevision\" : 2\n"));
    }
}
