//! TOML, and YAML with JSON in it, read into one kind of tree, in which each key knows its line.

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use toml::de::{DeTable, DeValue};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Ours.
    Toml,
    /// etcd's; JSON is a part of YAML.
    Yaml,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// The key stands there, without a value.
    Nothing,
    /// A text, or true or false.
    Text(String),
    /// A number.
    Number(String),
    /// Several values.
    List(Vec<Node>),
    /// Keys below this one.
    Section(Vec<Entry>),
}

/// A key, the line where it stands, and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub line: usize,
    pub node: Node,
}

impl Form {
    /// The keys of a file; or what is wrong with it, and in which line.
    pub fn parse(self, text: &str) -> Result<Vec<Entry>, String> {
        match self {
            Form::Toml => toml_entries(text),
            Form::Yaml => yaml_entries(text),
        }
    }
}

fn toml_entries(text: &str) -> Result<Vec<Entry>, String> {
    let table = DeTable::parse(text).map_err(|error| error.to_string())?;
    Ok(toml_table(text, table.get_ref()))
}

fn toml_table(text: &str, table: &DeTable<'_>) -> Vec<Entry> {
    let entry = |(key, value): (
        &toml::Spanned<toml::de::DeString<'_>>,
        &toml::Spanned<DeValue<'_>>,
    )| {
        let before = text.as_bytes().iter().take(key.span().start);
        Entry {
            key: key.get_ref().to_string(),
            line: 1 + before.filter(|byte| **byte == b'\n').count(),
            node: toml_node(text, value.get_ref()),
        }
    };
    table.iter().map(entry).collect()
}

fn toml_node(text: &str, value: &DeValue<'_>) -> Node {
    match value {
        DeValue::String(value) => Node::Text(value.to_string()),
        DeValue::Integer(value) => Node::Number(value.to_string()),
        DeValue::Float(value) => Node::Number(value.to_string()),
        DeValue::Boolean(value) => Node::Text(value.to_string()),
        DeValue::Datetime(value) => Node::Text(value.to_string()),
        DeValue::Array(values) => {
            let nodes = values.iter().map(|value| toml_node(text, value.get_ref()));
            Node::List(nodes.collect())
        }
        DeValue::Table(table) => Node::Section(toml_table(text, table)),
    }
}

fn yaml_entries(text: &str) -> Result<Vec<Entry>, String> {
    let documents = MarkedYaml::load_from_str(text)
        .map_err(|error| format!("line {}: {}", error.marker().line(), error.info()))?;
    let expected = "expected settings, such as `name: n1`";
    match documents.as_slice() {
        [] => Ok(Vec::new()),
        [only] => match yaml_node(only)? {
            Node::Nothing => Ok(Vec::new()),
            Node::Section(entries) => Ok(entries),
            _ => Err(format!("line {}: {expected}", only.span.start.line())),
        },
        [_, second, ..] => Err(format!(
            "line {}: a second document begins: {expected}, in one",
            second.span.start.line()
        )),
    }
}

fn yaml_node(node: &MarkedYaml<'_>) -> Result<Node, String> {
    let line = node.span.start.line();
    Ok(match &node.data {
        YamlData::Value(Scalar::Null) => Node::Nothing,
        YamlData::Value(Scalar::Boolean(value)) => Node::Text(value.to_string()),
        YamlData::Value(Scalar::Integer(value)) => Node::Number(value.to_string()),
        YamlData::Value(Scalar::FloatingPoint(value)) => Node::Number(value.to_string()),
        YamlData::Value(Scalar::String(value)) => Node::Text(value.to_string()),
        YamlData::Sequence(values) => Node::List(values.iter().map(yaml_node).collect::<Result<_, _>>()?),
        YamlData::Mapping(pairs) => {
            let entry = |(key, value): (&MarkedYaml<'_>, &MarkedYaml<'_>)| yaml_entry(key, value);
            Node::Section(pairs.iter().map(entry).collect::<Result<_, _>>()?)
        }
        YamlData::Tagged(..) | YamlData::Alias(_) | YamlData::Representation(..) | YamlData::BadValue => {
            return Err(format!("line {line}: a value that no setting can have"));
        }
    })
}

fn yaml_entry(key: &MarkedYaml<'_>, value: &MarkedYaml<'_>) -> Result<Entry, String> {
    let line = key.span.start.line();
    match yaml_node(key)? {
        Node::Text(key) | Node::Number(key) => Ok(Entry {
            key,
            line,
            node: yaml_node(value)?,
        }),
        _ => Err(format!("line {line}: a key that is no name")),
    }
}
