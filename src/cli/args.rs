//! Arguments as etcdctl takes them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::failed::Failed;

/// `--name`.
pub fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// `--name VALUE`.
pub fn value(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("VALUE").help(help)
}

/// `--name` or `--name=VALUE`.
pub fn optional(name: &'static str, help: &'static str) -> Arg {
    value(name, help)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
}

/// `--name N`, zero if it is not given.
pub fn number(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("N")
        .help(help)
        .value_parser(clap::value_parser!(i64))
        .default_value("0")
        .hide_default_value(true)
        .allow_negative_numbers(true)
}

/// An argument that may hold any bytes.
pub fn positional(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .value_name(name.to_uppercase())
        .help(help)
        .value_parser(clap::value_parser!(OsString))
}

/// An argument that is text.
pub fn word(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).value_name(name.to_uppercase()).help(help)
}

/// The bytes of an argument; empty if it is not given.
pub fn bytes(matches: &ArgMatches, name: &str) -> Bytes {
    given_bytes(matches, name).unwrap_or_default()
}

/// The bytes of an argument, if it is given.
pub fn given_bytes(matches: &ArgMatches, name: &str) -> Option<Bytes> {
    let given = matches.get_one::<OsString>(name).cloned();
    given.map(|given| Bytes::from(given.into_vec()))
}

/// A text; empty if it is not given.
pub fn text<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map_or("", String::as_str)
}

/// A [`number`].
pub fn int(matches: &ArgMatches, name: &str) -> i64 {
    matches.get_one::<i64>(name).copied().unwrap_or(0)
}

/// A decimal argument.
pub fn decimal(matches: &ArgMatches, name: &str, what: &str) -> Result<i64, Failed> {
    let text = text(matches, name);
    let parsed = text.parse();
    parsed.map_err(|error| Failed::arguments(format!("bad {what} {text:?}: {error}")))
}

/// A lease's id.
pub fn lease_id(text: &str) -> Result<i64, Failed> {
    let parsed = i64::from_str_radix(text, 16);
    parsed.map_err(|error| Failed::arguments(format!("bad lease ID {text:?} ({error}), expecting it in hex")))
}

/// A member's id.
pub fn member_id(text: &str) -> Result<u64, Failed> {
    let parsed = u64::from_str_radix(text, 16);
    parsed
        .map_err(|error| Failed::arguments(format!("bad member ID {text:?} ({error}), expecting it in hex")))
}

/// A duration such as `5s`.
pub fn parse_duration(name: &str, text: &str) -> Result<Duration, Failed> {
    let parsed = humantime::parse_duration(text);
    parsed.map_err(|error| Failed::arguments(format!("--{name} {text:?}: {error}; such as 5s or 500ms")))
}

/// KEY and RANGE_END, `--prefix` and `--from-key`.
pub fn key_range_args(command: Command, what: &'static str) -> Command {
    command
        .arg(positional("key", "The key").required(true))
        .arg(positional("range_end", "The key to stop before"))
        .arg(
            flag("prefix", "All keys that begin with KEY")
                .help(format!("{what} all keys that begin with KEY")),
        )
        .arg(flag("from-key", "All keys from KEY on").help(format!("{what} all keys from KEY on")))
}

/// Key and range end, from [`key_range_args`].
pub fn key_range(matches: &ArgMatches) -> Result<(Bytes, Bytes), Failed> {
    let (prefix, from_key) = (matches.get_flag("prefix"), matches.get_flag("from-key"));
    if prefix && from_key {
        return Err(Failed::arguments(
            "`--prefix` and `--from-key` cannot be set at the same time, choose one",
        ));
    }
    let end = given_bytes(matches, "range_end");
    if (prefix || from_key) && end.is_some() {
        return Err(Failed::arguments(
            "too many arguments: RANGE_END goes with neither `--prefix` nor `--from-key`",
        ));
    }
    let key = bytes(matches, "key");
    Ok(match (prefix, from_key) {
        (true, _) => prefix_range(key),
        (_, true) => (or_first(key), OPEN_END),
        _ => (key, end.unwrap_or_default()),
    })
}

/// As a range's end: there is none.
pub const OPEN_END: Bytes = Bytes::from_static(b"\0");

fn or_first(key: Bytes) -> Bytes {
    if key.is_empty() {
        Bytes::from_static(b"\0")
    } else {
        key
    }
}

/// The range of all keys that begin with `prefix`.
pub fn prefix_range(prefix: Bytes) -> (Bytes, Bytes) {
    let end = prefix_end(&prefix);
    (or_first(prefix), end)
}

/// The first key after all that begin with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte != 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => OPEN_END,
    }
}

/// `-name`, `-name=value` of a server's command line, as Go's flags are often written, with two dashes. etcdctl does not
/// take them.
pub fn with_two_dashes(serve: &Command, given: Vec<OsString>) -> Vec<OsString> {
    let is_serve = given.get(1).is_some_and(|verb| verb == serve.get_name());
    let mut verbatim = !is_serve;
    let spelled = |word: OsString| {
        let text = word.to_string_lossy();
        verbatim |= text == "--";
        let name = text
            .strip_prefix('-')
            .map(|rest| rest.split('=').next().unwrap_or(rest));
        match name.filter(|name| !verbatim && is_long(serve, name)) {
            Some(_) => format!("-{text}").into(),
            None => word,
        }
    };
    given.into_iter().map(spelled).collect()
}

fn is_long(command: &Command, name: &str) -> bool {
    let is_it = |arg: &Arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        arg.get_long() == Some(name) || aliases.contains(&name)
    };
    name == "help" || command.get_arguments().any(is_it)
}

/// `--flag=true` and `--flag=false` as scripts write them for etcdctl: spelled `--flag`, or left out. What follows `--`,
/// or the command that `lock` is to run, is not ours to touch.
pub fn spelled_out(command: &Command, given: Vec<OsString>) -> Vec<OsString> {
    let mut verb = command;
    let mut switches = own_switches(command);
    let (mut kept, mut verbatim, mut arguments) = (Vec::new(), false, 0);
    for arg in given {
        let word = arg.to_string_lossy().into_owned();
        if let Some(sub) = verb.find_subcommand(&word) {
            verb = sub;
            switches.extend(own_switches(sub));
        } else if !word.starts_with('-') {
            arguments += 1;
        }
        // The program's own name is the first of the arguments, the lock's the second.
        verbatim |= word == "--" || (verb.get_name() == "lock" && arguments > 2);
        let switch = word.strip_prefix("--").and_then(|word| word.split_once('='));
        match switch {
            Some((name, given)) if !verbatim && switches.iter().any(|known| known == name) => match given {
                "true" | "1" => kept.push(format!("--{name}").into()),
                "false" | "0" => {}
                _ => kept.push(arg),
            },
            _ => kept.push(arg),
        }
    }
    kept
}

/// The names of a command's options that take no value.
fn own_switches(command: &Command) -> Vec<String> {
    let switches = command
        .get_arguments()
        .filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
    switches
        .filter_map(|arg| arg.get_long().map(str::to_string))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(prefix_end(b"ab"), &b"ac"[..]);
        assert_eq!(prefix_end(b"a\xff"), &b"b"[..]);
        assert_eq!(prefix_end(b"\xff\xff"), &b"\0"[..]);
        assert_eq!(prefix_end(b""), &b"\0"[..]);
    }

    #[test]
    fn a_servers_flags_may_have_one_dash() {
        let serve = Command::new("serve")
            .arg(value("name", "").alias("called"))
            .arg(flag("v", "").short('v'));
        let spelled = |line: &str| {
            let given = line.split(' ').map(OsString::from).collect();
            let words: Vec<String> = with_two_dashes(&serve, given)
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            words.join(" ")
        };
        for (given, expected) in [
            ("p serve -name=-x=1 -called y", "p serve --name=-x=1 --called y"),
            ("p serve --name x -help", "p serve --name x --help"),
            ("p serve -nam x -1 -- -name y", "p serve -nam x -1 -- -name y"),
            ("p get -name x", "p get -name x"),
        ] {
            assert_eq!(spelled(given), expected);
        }
    }

    #[test]
    fn switches_may_be_given_a_value() {
        let command = Command::new("p")
            .arg(flag("hex", ""))
            .subcommand(Command::new("lock"))
            .subcommand(Command::new("put").arg(value("prefix", "")))
            .subcommand(Command::new("get").arg(flag("prefix", "")).arg(value("rev", "")));
        let spelled = |line: &str| {
            let given = line.split(' ').map(OsString::from).collect();
            let words = spelled_out(&command, given);
            let words: Vec<String> = words
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            words.join(" ")
        };
        assert_eq!(
            spelled("p get --prefix=true --rev=1 a"),
            "p get --prefix --rev=1 a"
        );
        assert_eq!(
            spelled("p --hex=false get a -- --hex=true"),
            "p get a -- --hex=true"
        );
        assert_eq!(
            spelled("p lock --hex=true l run --hex=true"),
            "p lock --hex l run --hex=true"
        );
        assert_eq!(spelled("p put --prefix=false a"), "p put --prefix=false a");
        assert_eq!(spelled("p get --prefix=maybe a"), "p get --prefix=maybe a");
    }
}
