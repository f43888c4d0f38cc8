//! What the verbs print: etcdctl's forms, to the letter where scripts depend on it.
//!
//! An [`Answer`] knows its forms for programs: `json`, `fields`, `table`, `protobuf`. What it has none of, etcdctl has
//! none of. The form for people, `simple`, often says what was asked for too, and is made by the verb.

mod auth;
mod cluster;
mod endpoint;
mod kv;
mod lease;
mod watch;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::pb::etcdserverpb::ResponseHeader;

pub use auth::{range_name, role_lines};
pub use cluster::{alarm_lines, alarm_name, member_lines};
pub use endpoint::{Endpoints, Hash, Health, Status, size};
pub use kv::{Style, delete_lines, pair_lines, put_lines, txn_lines};
pub use watch::{event_lines, type_name};

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
    /// As it came over the wire.
    Protobuf,
}

impl Form {
    /// Reads `-w`.
    pub fn parse(text: &str) -> Option<Form> {
        match text {
            "simple" => Some(Form::Simple),
            "json" => Some(Form::Json),
            "fields" => Some(Form::Fields),
            "table" => Some(Form::Table),
            "protobuf" => Some(Form::Protobuf),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Form::Simple => "simple",
            Form::Json => "json",
            Form::Fields => "fields",
            Form::Table => "table",
            Form::Protobuf => "protobuf",
        }
    }
}

/// What can be printed for programs.
pub trait Answer {
    /// As Go's encoder writes etcd's types.
    fn json(&self) -> Value;
    /// One field a line.
    fn fields(&self) -> Option<Fields> {
        None
    }
    /// With borders.
    fn table(&self) -> Option<String> {
        None
    }
    /// As it came over the wire.
    fn protobuf(&self) -> Option<Vec<u8>> {
        None
    }
}

/// The bytes of an answer in a form; none if it has no such form.
pub fn render(form: Form, simple: Vec<u8>, answer: &impl Answer) -> Option<Vec<u8>> {
    match form {
        Form::Simple => Some(simple),
        Form::Json => Some(json_line(&answer.json()).into_bytes()),
        Form::Fields => answer.fields().map(|fields| fields.0.into_bytes()),
        Form::Table => answer.table().map(String::into_bytes),
        Form::Protobuf => answer.protobuf(),
    }
}

/// Go's encoder escapes what could end a script in a web page; these stand in strings only.
fn json_line(value: &Value) -> String {
    let text = value.to_string();
    let text = text
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026");
    text + "\n"
}

/// The lines of `-w fields`: `"Name" : value`.
#[derive(Debug, Default)]
pub struct Fields(String);

impl Fields {
    /// Beginning with the header.
    pub fn of(header: Option<&ResponseHeader>) -> Fields {
        Fields::default().header(header)
    }

    fn header(self, header: Option<&ResponseHeader>) -> Fields {
        let header = header.copied().unwrap_or_default();
        self.value("ClusterID", header.cluster_id)
            .value("MemberID", header.member_id)
            .value("Revision", header.revision)
            .value("RaftTerm", header.raft_term)
    }

    fn value(mut self, name: &str, value: impl std::fmt::Display) -> Fields {
        self.0.push_str(&format!("\"{name}\" : {value}\n"));
        self
    }

    fn text(self, name: &str, text: impl AsRef<[u8]>) -> Fields {
        let quoted = quote(text.as_ref());
        self.value(name, quoted)
    }

    /// The empty line behind each of several.
    fn blank(mut self) -> Fields {
        self.0.push('\n');
        self
    }

    fn all<T>(self, items: &[T], add: impl Fn(Fields, &T) -> Fields) -> Fields {
        items.iter().fold(self, add)
    }
}

/// In double quotes, as Go quotes: what can't be read is escaped.
pub fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                '\x07' => out.push_str("\\a"),
                '\x08' => out.push_str("\\b"),
                '\x0b' => out.push_str("\\v"),
                '\x0c' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 || c == '\x7f' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out + "\""
}

/// Without what is empty, as Go's encoder does with `omitempty`, which etcdctl's JSON comes from.
fn object(fields: Vec<(&str, Value)>) -> Value {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Bool(value) => !value,
        Value::Object(_) => false,
    };
    whole(fields.into_iter().filter(|(_, value)| !empty(value)))
}

/// With what is empty.
fn whole<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let fields = fields.into_iter().map(|(name, value)| (name.to_string(), value));
    Value::Object(fields.collect::<Map<_, _>>())
}

fn base64(bytes: &[u8]) -> Value {
    Value::String(STANDARD.encode(bytes))
}

fn json_header(header: Option<&ResponseHeader>) -> Value {
    header.map_or(Value::Null, |header| object(header_values(header)))
}

fn header_values(header: &ResponseHeader) -> Vec<(&'static str, Value)> {
    vec![
        ("cluster_id", json!(header.cluster_id)),
        ("member_id", json!(header.member_id)),
        ("revision", json!(header.revision)),
        ("raft_term", json!(header.raft_term)),
    ]
}

/// An answer that is a header and no more.
macro_rules! only_header {
    ($($response:ty),* $(,)?) => {
        $(
            impl super::Answer for $response {
                fn json(&self) -> serde_json::Value {
                    super::object(vec![("header", super::json_header(self.header.as_ref()))])
                }
                fn fields(&self) -> Option<super::Fields> {
                    Some(super::Fields::of(self.header.as_ref()))
                }
                fn protobuf(&self) -> Option<Vec<u8>> {
                    Some(prost::Message::encode_to_vec(self))
                }
            }
        )*
    };
}
use only_header;

/// Rows under a head, with borders, as etcdctl draws them: the head in the middle, the cells to the right.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(|cell| cell.to_uppercase()).collect();
    let length = |cell: &String| cell.chars().count();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.chain([&head[column]]).map(length).max().unwrap_or(0)
        })
        .collect();
    let border: String = widths
        .iter()
        .map(|width| format!("+{}", "-".repeat(width + 2)))
        .collect();
    let border = border + "+\n";
    let line = |row: &[String], cell: fn(&str, usize) -> String| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(text, width)| format!("| {} ", cell(text, *width)));
        cells.collect::<String>() + "|\n"
    };
    let rows: String = rows
        .iter()
        .map(|row| line(row, |text, width| format!("{text:>width$}")))
        .collect();
    let head = line(&head, |text, width| format!("{text:^width$}"));
    format!("{border}{head}{border}{rows}{border}")
}

/// Rows as lines of `a, b, c`.
fn comma_lines(rows: Vec<Vec<String>>) -> Vec<u8> {
    let lines = rows.into_iter().map(|row| format!("{}\n", row.join(", ")));
    lines.collect::<String>().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_go_quotes() {
        assert_eq!(quote(b"a\"b\\c\n"), r#""a\"b\\c\n""#);
        assert_eq!(quote(b"\0\x7f\xff\xc3\xa9"), "\"\\x00\\x7f\\xff\u{e9}\"");
        assert_eq!(quote("\u{85}".as_bytes()), "\"\\u0085\"");
    }

    #[test]
    fn a_table_is_drawn_as_etcdctl_draws_it() {
        let rows = vec![
            vec!["1".to_string(), "started".to_string()],
            vec!["22".to_string(), String::new()],
        ];
        let drawn = "\
+----+---------+
| ID | STATUS  |
+----+---------+
|  1 | started |
| 22 |         |
+----+---------+
";
        assert_eq!(table(&["Id", "Status"], rows), drawn);
    }

    #[test]
    fn json_is_escaped_as_go_escapes() {
        assert_eq!(
            json_line(&json!({"a": "<&>"})),
            "{\"a\":\"\\u003c\\u0026\\u003e\"}\n"
        );
    }
}
