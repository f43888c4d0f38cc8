//! The file of `--config-file`: TOML, or etcd's own form, YAML and JSON.
//!
//! The keys are the flags' names. etcd's form has some of them in sections, under shorter names, and its durations as
//! whole numbers of nanoseconds; both are put right here ([`SECTIONS`], [`NANOSECONDS`]), so that a file which etcd
//! takes means the same to us:
//!
//! ```yaml
//! name: n1
//! initial-cluster: n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380
//! heartbeat-interval: 100            # as a flag: milliseconds
//! corrupt-check-time: 60000000000    # a minute
//! peer-transport-security:
//!   cert-file: n1.pem                # --peer-cert-file
//! ```
//!
//! A key without a value is not set. etcd passes over keys that it does not know, misspelled ones among them; here they
//! are errors. Each value keeps the line where it stands.
//!
//! Files: [`tree`] the forms, read into one kind of tree.

#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};

use self::tree::{Entry, Form, Node};
use super::settings::{find, suggestion};

/// A section of etcd's form, what stands before its keys' names as flags, and keys that are called otherwise there.
struct Section {
    name: &'static str,
    prefix: &'static str,
    others: &'static [(&'static str, &'static str)],
}

const SECTIONS: &[Section] = &[
    Section {
        name: "client-transport-security",
        prefix: "",
        others: &[
            ("allowed-hostname", "client-cert-allowed-hostname"),
            ("allowed-cn", "client-cert-allowed-cn"),
            ("crl-file", "client-crl-file"),
            (
                "skip-client-san-verification",
                "client-skip-client-san-verification",
            ),
        ],
    },
    Section {
        name: "peer-transport-security",
        prefix: "peer-",
        others: &[
            ("allowed-hostname", "peer-cert-allowed-hostname"),
            ("allowed-cn", "peer-cert-allowed-cn"),
        ],
    },
    Section {
        name: "socket-options",
        prefix: "socket-",
        others: &[],
    },
];

/// Durations that etcd's form has in nanoseconds.
const NANOSECONDS: &[&str] = &[
    "backend-batch-interval",
    "compact-hash-check-time",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "downgrade-check-time",
    "grpc-keepalive-interval",
    "grpc-keepalive-min-time",
    "grpc-keepalive-timeout",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "watch-progress-notify-interval",
];

/// Settings by name, each with its value as text, and file and line.
pub type Found = BTreeMap<&'static str, (String, String)>;

/// Reads a file.
pub fn read(path: &Path) -> anyhow::Result<Found> {
    let said = || format!("--config-file {}", path.display());
    let text = std::fs::read_to_string(path).with_context(said)?;
    let (form, entries) = parse(path, &text).with_context(said)?;
    let mut file = File {
        path,
        form,
        found: Found::new(),
    };
    for entry in entries {
        file.take(entry)?;
    }
    Ok(file.found)
}

/// By the file's name; if that says nothing, TOML if it is TOML, as no YAML with a setting in it is.
fn parse(path: &Path, text: &str) -> anyhow::Result<(Form, Vec<Entry>)> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let form = match extension.to_str() {
        Some("toml") => Form::Toml,
        Some("yaml" | "yml" | "json") => Form::Yaml,
        _ => match (Form::Toml.parse(text), Form::Yaml.parse(text)) {
            (Ok(entries), _) => return Ok((Form::Toml, entries)),
            (_, Ok(entries)) => return Ok((Form::Yaml, entries)),
            (Err(toml), Err(yaml)) => bail!("neither TOML, YAML nor JSON; as YAML: {yaml}; as TOML: {toml}"),
        },
    };
    let entries = form.parse(text).map_err(anyhow::Error::msg)?;
    Ok((form, entries))
}

struct File<'a> {
    path: &'a Path,
    form: Form,
    found: Found,
}

impl File<'_> {
    fn take(&mut self, entry: Entry) -> anyhow::Result<()> {
        let section = SECTIONS.iter().find(|section| section.name == entry.key);
        match (section, entry.node) {
            (Some(section), Node::Section(entries)) => self.take_section(section, entries),
            (Some(_), Node::Nothing) => Ok(()),
            (Some(section), _) => {
                let place = self.place(entry.line);
                bail!("{place}: {:?} is a section, with settings below it", section.name)
            }
            (None, node) => self.set(&entry.key, &entry.key, entry.line, &node),
        }
    }

    fn take_section(&mut self, section: &Section, entries: Vec<Entry>) -> anyhow::Result<()> {
        for Entry { key, line, node } in entries {
            let other = section.others.iter().find(|(there, _)| *there == key);
            let name = match other {
                Some((_, name)) => name.to_string(),
                None => format!("{}{key}", section.prefix),
            };
            self.set(&name, &format!("{}: {key}", section.name), line, &node)?;
        }
        Ok(())
    }

    /// What the file calls `key` is the setting `name`.
    fn set(&mut self, name: &str, key: &str, line: usize, node: &Node) -> anyhow::Result<()> {
        let place = self.place(line);
        let Some(setting) = find(name) else {
            bail!("{place}: unknown setting {key:?}{}", suggestion(name));
        };
        let Some(value) = self.value(setting.name, node) else {
            bail!("{place}: {key:?}: expected a value, or a list of values, not settings below it");
        };
        if matches!(node, Node::Nothing) {
            return Ok(());
        }
        match self.found.insert(setting.name, (value, place.clone())) {
            None => Ok(()),
            Some((_, earlier)) => bail!("{place}: {key:?} is set already, at {earlier}"),
        }
    }

    fn value(&self, name: &str, node: &Node) -> Option<String> {
        match node {
            Node::Nothing => Some(String::new()),
            Node::Text(text) => Some(text.clone()),
            Node::Number(number) if self.form == Form::Yaml && NANOSECONDS.contains(&name) => {
                Some(format!("{number}ns"))
            }
            Node::Number(number) => Some(number.clone()),
            Node::List(nodes) => {
                let values: Option<Vec<String>> = nodes.iter().map(|node| self.value(name, node)).collect();
                Some(values?.join(","))
            }
            Node::Section(_) => None,
        }
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }
}
