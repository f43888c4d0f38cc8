//! ls, tree, exists: what etcdctl lacks. Keys are taken as paths, with `/` between their parts.

use std::collections::BTreeMap;
use std::process::ExitCode;

use bytes::Bytes;
use clap::{ArgMatches, Command};

use super::args::{bytes, int, number, positional, prefix_end, prefix_range};
use super::ctl::Context;
use super::failed::{Failed, exit};
use super::output;
use crate::pb::etcdserverpb::RangeRequest;

/// Keys that are asked for at a time.
const PAGE: i64 = 1000;

const HELP_LS: &str = "\
Prints the keys below PREFIX up to the next slash: those that end there, and, with a slash behind \
them, those that go on. All as of one revision.

  pontoon put app/db/host a; pontoon put app/db/port 1; pontoon put app/name x
  pontoon ls app/
  app/db/
  app/name";

/// The verbs.
pub fn commands() -> Vec<Command> {
    let prefix = || positional("prefix", "Where to begin; everywhere if it is not given");
    vec![
        Command::new("ls")
            .about("List the keys below a prefix, one level deep")
            .arg(prefix())
            .after_help(HELP_LS),
        Command::new("tree")
            .about("Draw the keys below a prefix as a tree")
            .arg(prefix())
            .arg(number("depth", "How many levels; all if it is not given"))
            .arg(
                number("limit", "Most keys to draw; more are an error [default: 100000]")
                    .default_value("100000"),
            ),
        Command::new("exists")
            .about("Whether there is such a key, by the exit code: 0 yes, 1 no, 2 and more: not known")
            .arg(positional("key", "The key").required(true)),
    ]
}

/// Runs one.
pub async fn run(context: &Context, verb: &str, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match verb {
        "ls" => ls(context, bytes(matches, "prefix")).await,
        "tree" => tree(context, matches).await,
        _ => exists(context, matches).await.map_err(|failed| Failed {
            // 1 is an answer.
            code: failed.code.max(exit::BAD_CONNECTION),
            ..failed
        }),
    }
}

async fn exists(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let request = RangeRequest {
        key: bytes(matches, "key"),
        count_only: true,
        ..RangeRequest::default()
    };
    let count = context.client.range(request).await?.count;
    Ok(ExitCode::from(if count == 0 { exit::ERROR } else { 0 }))
}

/// A part of the keys of a range, in order, as of one revision.
struct Pages<'a> {
    context: &'a Context,
    next: Bytes,
    end: Bytes,
    revision: i64,
}

impl<'a> Pages<'a> {
    fn of(context: &'a Context, prefix: Bytes) -> Pages<'a> {
        let (next, end) = prefix_range(prefix);
        Pages {
            context,
            next,
            end,
            revision: 0,
        }
    }

    /// The next keys, and whether there are more.
    async fn next(&mut self) -> Result<(Vec<Bytes>, bool), Failed> {
        let request = RangeRequest {
            key: self.next.clone(),
            range_end: self.end.clone(),
            limit: PAGE,
            revision: self.revision,
            keys_only: true,
            ..RangeRequest::default()
        };
        let response = self.context.client.range(request).await?;
        if self.revision == 0 {
            self.revision = response.header.as_ref().map_or(0, |header| header.revision);
        }
        let keys: Vec<Bytes> = response.kvs.into_iter().map(|kv| kv.key).collect();
        if let Some(last) = keys.last() {
            self.next = [last, &b"\0"[..]].concat().into();
        }
        Ok((keys, response.more))
    }

    /// Goes on behind all keys that begin with `prefix`; says whether there is a behind.
    fn skip(&mut self, prefix: &[u8]) -> bool {
        let behind = prefix_end(prefix);
        let is_end = behind == b"\0"[..] || (self.end != b"\0"[..] && behind >= self.end);
        self.next = behind;
        !is_end
    }
}

/// Where a key below `prefix` is cut: behind its next slash.
fn level<'a>(key: &'a [u8], prefix: &[u8]) -> &'a [u8] {
    let below = &key[prefix.len()..];
    match below.iter().position(|byte| *byte == b'/') {
        Some(slash) => &key[..prefix.len() + slash + 1],
        None => key,
    }
}

async fn ls(context: &Context, prefix: Bytes) -> Result<ExitCode, Failed> {
    let mut pages = Pages::of(context, prefix.clone());
    loop {
        let (keys, more) = pages.next().await?;
        let mut lines = Vec::new();
        let mut last: &[u8] = b"";
        for key in &keys {
            let name = level(key, &prefix);
            if name != last {
                lines.extend([name, b"\n"].concat());
                last = name;
            }
        }
        output::write(&lines)?;
        // What else is below the last name is not of interest, however much it is.
        let goes_on = !last.ends_with(b"/") || pages.skip(last);
        if !more || !goes_on {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// A part of a key, and those below it.
#[derive(Default)]
struct Node(BTreeMap<Vec<u8>, Node>);

impl Node {
    fn add(&mut self, path: &[u8], depth: usize) {
        if path.is_empty() || depth == 0 {
            return;
        }
        let part = level(path, b"");
        self.0
            .entry(part.to_vec())
            .or_default()
            .add(&path[part.len()..], depth - 1);
    }

    fn draw(&self, before: &str, out: &mut Vec<u8>) {
        let last = self.0.len().saturating_sub(1);
        for (at, (part, below)) in self.0.iter().enumerate() {
            let (branch, indent) = if at == last {
                ("└── ", "    ")
            } else {
                ("├── ", "│   ")
            };
            out.extend([before.as_bytes(), branch.as_bytes(), part, b"\n"].concat());
            below.draw(&format!("{before}{indent}"), out);
        }
    }
}

async fn tree(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let prefix = bytes(matches, "prefix");
    let (limit, depth) = (int(matches, "limit"), int(matches, "depth"));
    let depth = usize::try_from(depth)
        .ok()
        .filter(|depth| *depth > 0)
        .unwrap_or(usize::MAX);
    let mut pages = Pages::of(context, prefix.clone());
    let (mut root, mut count) = (Node::default(), 0);
    loop {
        let (keys, more) = pages.next().await?;
        count += keys.len();
        if i64::try_from(count).is_ok_and(|count| count > limit) {
            let reason = format!("more than {limit} keys: give a longer PREFIX, or a higher --limit");
            return Err(Failed::error(reason));
        }
        for key in &keys {
            root.add(&key[prefix.len()..], depth);
        }
        if !more {
            break;
        }
    }
    let mut out = [&prefix[..], b"\n"].concat();
    root.draw("", &mut out);
    output::write(&out)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_cut_behind_its_next_slash() {
        assert_eq!(level(b"a/b/c", b""), b"a/");
        assert_eq!(level(b"a/b/c", b"a/"), b"a/b/");
        assert_eq!(level(b"a/b/c", b"a"), b"a/");
        assert_eq!(level(b"a/b", b"a/"), b"a/b");
        assert_eq!(level(b"/a", b""), b"/");
    }

    #[test]
    fn a_tree_is_drawn() {
        let mut root = Node::default();
        for key in ["a", "a/b", "a/c/d", "e"] {
            root.add(key.as_bytes(), usize::MAX);
        }
        let mut out = Vec::new();
        root.draw("", &mut out);
        let drawn = "├── a\n├── a/\n│   ├── b\n│   └── c/\n│       └── d\n└── e\n";
        assert_eq!(String::from_utf8_lossy(&out), drawn);
    }

    #[test]
    fn a_tree_can_be_cut() {
        let mut root = Node::default();
        root.add(b"a/b/c", 2);
        let mut out = Vec::new();
        root.draw("", &mut out);
        assert_eq!(String::from_utf8_lossy(&out), "└── a/\n    └── b/\n");
    }
}
