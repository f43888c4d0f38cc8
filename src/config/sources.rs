//! Where values come from: flags, environment, a file, defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};
use clap::ArgMatches;

use super::settings::{Effect, SETTINGS, Setting, spellings, suggestion};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Flag,
    Env(String),
    File(String),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Env(name) => write!(f, "env {name}"),
            Origin::File(place) => f.write_str(place),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// The values, as text, each with where it came from.
pub struct Values {
    values: BTreeMap<&'static str, (String, Origin)>,
}

/// Environment, as a function of the name.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Values {
    /// Gathers the values of all settings.
    pub fn gather(matches: &ArgMatches, environment: Environment<'_>) -> anyhow::Result<Values> {
        let file = matches
            .get_one::<String>("config-file")
            .cloned()
            .or_else(|| environment("PONTOON_CONFIG_FILE"));
        let file = match file {
            Some(path) => read_file(Path::new(&path))?,
            None => BTreeMap::new(),
        };
        let value = |setting: &Setting| {
            let flag = matches
                .get_one::<String>(setting.name)
                .map(|value| (value.clone(), Origin::Flag));
            let from_file = || file.get(setting.name).cloned();
            flag.or_else(|| from_environment(setting.name, environment))
                .or_else(from_file)
                .unwrap_or_else(|| (setting.default.to_string(), Origin::Default))
        };
        Ok(Values {
            values: SETTINGS
                .iter()
                .map(|setting| (setting.name, value(setting)))
                .collect(),
        })
    }

    /// The value of a setting.
    pub fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", |(value, _)| value)
    }

    /// What was set without an effect in this version, each with where.
    pub fn without_effect(&self) -> Vec<String> {
        let unused = SETTINGS
            .iter()
            .filter(|setting| setting.effect == Effect::NoneYet);
        let set = unused.filter_map(|setting| {
            let (value, origin) = self.values.get(setting.name)?;
            let line = || {
                format!(
                    "--{} {value} ({origin}) is accepted, but has no effect yet",
                    setting.name
                )
            };
            (*origin != Origin::Default).then(line)
        });
        set.collect()
    }

    /// How errors name a setting.
    pub(super) fn said(&self, name: &str) -> String {
        match self.values.get(name) {
            Some((value, origin)) => format!("--{name} {value:?} ({origin})"),
            None => format!("--{name}"),
        }
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for setting in SETTINGS {
            let (value, origin) = &self.values[setting.name];
            if setting.effect == Effect::Served || *origin != Origin::Default {
                writeln!(
                    f,
                    "{:<30} = {:<40} # {origin}",
                    setting.name,
                    format!("{value:?}")
                )?;
            }
        }
        Ok(())
    }
}

fn from_environment(name: &str, environment: Environment<'_>) -> Option<(String, Origin)> {
    spellings(name).find_map(|name| {
        let upper = name.to_uppercase().replace('-', "_");
        ["PONTOON_", "ETCD_"].iter().find_map(|prefix| {
            let variable = format!("{prefix}{upper}");
            environment(&variable).map(|value| (value, Origin::Env(variable)))
        })
    })
}

fn read_file(path: &Path) -> anyhow::Result<BTreeMap<String, (String, Origin)>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--config-file {}", path.display()))?;
    let table: toml::Table = text
        .parse()
        .with_context(|| format!("--config-file {}", path.display()))?;
    let mut values = BTreeMap::new();
    for (key, value) in table {
        let place = format!("{}:{}", path.display(), line_of(&text, &key));
        if !SETTINGS.iter().any(|setting| setting.name == key) {
            bail!("{place}: unknown setting {key:?}{}", suggestion(&key));
        }
        values.insert(key, (to_text(value), Origin::File(place)));
    }
    Ok(values)
}

fn to_text(value: toml::Value) -> String {
    match value {
        toml::Value::String(text) => text,
        toml::Value::Array(values) => values.into_iter().map(to_text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn line_of(text: &str, key: &str) -> usize {
    text.lines()
        .position(|line| line.trim_start().trim_start_matches(['"', '\'']).starts_with(key))
        .map_or(0, |at| at + 1)
}
