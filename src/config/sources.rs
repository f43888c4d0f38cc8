//! Where values come from: flags, environment, a file, defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::bail;
use clap::ArgMatches;

use super::file;
use super::settings::{Effect, SETTINGS, Setting, find, spellings, suggestion};

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
            .or_else(|| from_environment("config-file", environment).map(|(path, _)| path));
        let file = match file {
            Some(path) => file::read(Path::new(&path))?,
            None => file::Found::new(),
        };
        let value = |setting: &Setting| {
            let flag = matches
                .get_one::<String>(setting.name)
                .map(|value| (value.clone(), Origin::Flag));
            let from_file = || {
                let (value, place) = file.get(setting.name)?;
                Some((value.clone(), Origin::File(place.clone())))
            };
            flag.or_else(|| from_environment(setting.name, environment))
                .or_else(from_file)
                .unwrap_or_else(|| (setting.default.to_string(), Origin::Default))
        };
        let values = Values {
            values: SETTINGS
                .iter()
                .map(|setting| (setting.name, value(setting)))
                .collect(),
        };
        values.check_refused()?;
        Ok(values)
    }

    /// What is not served, and can't be ignored, must not ask for anything.
    fn check_refused(&self) -> anyhow::Result<()> {
        for setting in SETTINGS {
            let asks = !matches!(self.get(setting.name), "" | "false" | "off" | "0");
            if let Effect::Refused(why) = setting.effect
                && asks
            {
                bail!("{}: {why}", self.said(setting.name));
            }
        }
        Ok(())
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

/// A variable without a value is not set, as compose files have it for what is left to the default.
fn from_environment(name: &str, environment: Environment<'_>) -> Option<(String, Origin)> {
    spellings(name).find_map(|name| {
        let upper = name.to_uppercase().replace('-', "_");
        PREFIXES.iter().find_map(|prefix| {
            let variable = format!("{prefix}{upper}");
            let value = environment(&variable).filter(|value| !value.is_empty());
            value.map(|value| (value, Origin::Env(variable)))
        })
    })
}

/// What a setting's name as a variable begins with.
const PREFIXES: [&str; 2] = ["PONTOON_", "ETCD_"];

/// Of these variables those that look like a setting and are none, each with the one that may be meant. Values are not
/// told: a password may be among them.
pub fn unknown_variables(variables: impl Iterator<Item = String>) -> Vec<String> {
    let unknown = |variable: String| {
        let rest = PREFIXES.iter().find_map(|prefix| variable.strip_prefix(prefix))?;
        let name = rest.to_lowercase().replace('_', "-");
        let is_known = variable == super::playground::VARIABLE
            || name == "config-file"
            || find(&name).is_some()
            || is_of_a_platform(rest);
        (!is_known).then(|| {
            format!(
                "environment variable {variable}: unknown setting{}",
                suggestion(&name)
            )
        })
    };
    variables.filter_map(unknown).collect()
}

/// Kubernetes tells every container of services, one of which may be called `etcd`; images of etcd tell their version.
fn is_of_a_platform(rest: &str) -> bool {
    rest == "VERSION"
        || rest == "PORT"
        || rest.starts_with("PORT_")
        || rest.contains("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || rest.contains("_PORT_")
}
