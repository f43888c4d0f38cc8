//! get, put, del, txn, compaction.

use std::io::{BufRead, IsTerminal, Read};
use std::os::unix::fs::FileTypeExt;
use std::process::ExitCode;

use bytes::Bytes;
use clap::{ArgMatches, Command};

use super::args::{
    bytes, decimal, flag, given_bytes, int, key_range, key_range_args, lease_id, number, positional, text,
    value, word,
};
use super::ctl::Context;
use super::failed::{Failed, exit};
use super::format::{Form, Style, delete_lines, pair_lines, put_lines, txn_lines};
use super::{output, txn};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest};

const EXAMPLES_GET: &str = "\
Examples:
  pontoon get greeting
  pontoon get users/ --prefix --keys-only
  pontoon get users/a users/m                  from users/a up to, not including, users/m
  pontoon get counter --rev 17 -w json         as it was at revision 17
  pontoon get --fail lock/owner > /dev/null || echo nobody";

const EXAMPLES_PUT: &str = "\
Examples:
  pontoon put greeting hello
  pontoon put config < config.json
  pontoon put session/7 alive --lease 694d8f2b1c3a5e07
  pontoon put -- key -value-with-a-dash";

const HELP_TXN: &str = "\
A transaction is read from stdin, in three parts with an empty line behind each: compares, what to \
do if all of them hold, what to do if not.

  pontoon txn <<EOF
  mod(\"config\") = \"17\"
  value(\"owner\") = \"me\"

  put config \"new value\"
  get config

  get config

  EOF

Compares: create, mod, version, value or lease of a key, with =, !=, < or >. What to do: get, put \
and del, with their options.";

/// The verbs.
pub fn commands() -> Vec<Command> {
    vec![
        get_command(),
        put_command(),
        del_command(),
        Command::new("txn")
            .about("Compare, then change: one transaction, read from stdin")
            .arg(flag("interactive", "Ask for the parts").short('i'))
            .after_help(HELP_TXN),
        Command::new("compaction")
            .visible_alias("compact")
            .about("Forget what came before a revision")
            .arg(word("revision", "The oldest revision to keep").required(true))
            .arg(flag("physical", "Wait until the space is reclaimed")),
    ]
}

/// `get`.
pub fn get_command() -> Command {
    let command = Command::new("get")
        .about("Read a key or a range")
        .after_help(EXAMPLES_GET);
    key_range_args(command, "Read")
        .arg(number("limit", "Most pairs to print"))
        .arg(number("rev", "As of this revision"))
        .arg(value("order", "ASCEND or DESCEND"))
        .arg(value("sort-by", "KEY, VERSION, CREATE, MODIFY or VALUE"))
        .arg(
            value(
                "consistency",
                "l: linearizable; s: serializable, which is local and maybe stale",
            )
            .default_value("l"),
        )
        .arg(flag("keys-only", "Keys only"))
        .arg(flag("count-only", "The number of keys only"))
        .arg(flag("print-value-only", "Values only"))
        .arg(number(
            "min-mod-rev",
            "Only keys changed at or after this revision",
        ))
        .arg(number(
            "max-mod-rev",
            "Only keys changed at or before this revision",
        ))
        .arg(number(
            "min-create-rev",
            "Only keys created at or after this revision",
        ))
        .arg(number(
            "max-create-rev",
            "Only keys created at or before this revision",
        ))
        .arg(flag("fail", "Exit with 1 if there is no such key"))
}

/// `put`.
pub fn put_command() -> Command {
    Command::new("put")
        .about("Set a key")
        .arg(positional("key", "The key").required(true))
        .arg(positional(
            "value",
            "The value; read from stdin if it is not given",
        ))
        .arg(value("lease", "Lease to attach the key to, in hexadecimal").default_value("0"))
        .arg(flag("prev-kv", "Print the pair as it was before"))
        .arg(flag("ignore-value", "Keep the value, and change the lease"))
        .arg(flag("ignore-lease", "Keep the lease, and change the value"))
        .after_help(EXAMPLES_PUT)
}

/// `del`.
pub fn del_command() -> Command {
    let command = Command::new("del").about("Delete a key or a range");
    key_range_args(command, "Delete").arg(flag("prev-kv", "Print the pairs as they were before"))
}

/// Runs one.
pub async fn run(context: &Context, verb: &str, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match verb {
        "get" => get(context, matches).await,
        "put" => put(context, matches).await,
        "del" => del(context, matches).await,
        "txn" => txn_verb(context, matches).await,
        _ => compaction(context, matches).await,
    }
}

/// What `get` asks for.
pub fn get_request(matches: &ArgMatches) -> Result<RangeRequest, Failed> {
    let (key, range_end) = key_range(matches)?;
    let sort_order = match text(matches, "order").to_uppercase().as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        other => {
            return Err(Failed::feature(format!(
                "bad sort order {other}: ASCEND or DESCEND"
            )));
        }
    };
    let sort_target = match text(matches, "sort-by").to_uppercase().as_str() {
        "" | "KEY" => SortTarget::Key,
        "VERSION" => SortTarget::Version,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        other => {
            let known = "KEY, VERSION, CREATE, MODIFY or VALUE";
            return Err(Failed::feature(format!("bad sort target {other}: {known}")));
        }
    };
    let serializable = match text(matches, "consistency") {
        "l" => false,
        "s" => true,
        other => {
            return Err(Failed::feature(format!("unknown consistency {other:?}: l or s")));
        }
    };
    let (keys_only, count_only) = (matches.get_flag("keys-only"), matches.get_flag("count-only"));
    if keys_only && count_only {
        return Err(Failed::arguments(
            "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
        ));
    }
    Ok(RangeRequest {
        key,
        range_end,
        limit: int(matches, "limit"),
        revision: int(matches, "rev"),
        sort_order: sort_order as i32,
        sort_target: sort_target as i32,
        serializable,
        keys_only,
        count_only,
        min_mod_revision: int(matches, "min-mod-rev"),
        max_mod_revision: int(matches, "max-mod-rev"),
        min_create_revision: int(matches, "min-create-rev"),
        max_create_revision: int(matches, "max-create-rev"),
    })
}

async fn get(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let request = get_request(matches)?;
    let values_only = matches.get_flag("print-value-only");
    if values_only && context.form != Form::Simple {
        return Err(Failed::arguments(
            "print-value-only is only for `--write-out=simple`",
        ));
    }
    let count_only = request.count_only;
    let response = context.client.range(request).await?;
    let style = Style {
        values_only,
        ..context.style
    };
    let simple = match count_only {
        true => format!("{}\n", response.count).into_bytes(),
        false => pair_lines(&response.kvs, style),
    };
    context.print(simple, &response)?;
    let missing = matches.get_flag("fail") && response.count == 0;
    Ok(ExitCode::from(if missing { exit::ERROR } else { 0 }))
}

/// What `put` asks for; `stdin` gives the value if there is none.
pub fn put_request(
    matches: &ArgMatches,
    stdin: impl FnOnce() -> Result<Bytes, Failed>,
) -> Result<PutRequest, Failed> {
    let (ignore_value, ignore_lease) = (matches.get_flag("ignore-value"), matches.get_flag("ignore-lease"));
    let value = match given_bytes(matches, "value") {
        Some(_) if ignore_value => {
            return Err(Failed::arguments(
                "put command needs only 1 argument when 'ignore-value' is set",
            ));
        }
        Some(value) => value,
        None if ignore_value => Bytes::new(),
        None => stdin()?,
    };
    Ok(PutRequest {
        key: bytes(matches, "key"),
        value,
        lease: lease_id(text(matches, "lease"))?,
        prev_kv: matches.get_flag("prev-kv"),
        ignore_value,
        ignore_lease,
    })
}

/// The error for a value that is nowhere.
pub fn no_value() -> Failed {
    Failed::arguments("put command needs 1 argument and input from stdin or 2 arguments")
}

/// A value from a pipe or a file. A terminal, or nothing at all (`/dev/null`), gives none: it is more likely to have been
/// forgotten.
fn value_from_stdin() -> Result<Bytes, Failed> {
    let is_device = std::fs::metadata("/dev/stdin").is_ok_and(|stdin| stdin.file_type().is_char_device());
    if is_device || std::io::stdin().is_terminal() {
        return Err(no_value());
    }
    let mut value = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut value);
    read.map_err(|error| Failed::input(format!("cannot read the value from stdin: {error}")))?;
    Ok(value.into())
}

async fn put(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let request = put_request(matches, value_from_stdin)?;
    let response = context.client.put(request).await?;
    context.print(put_lines(&response, context.style), &response)?;
    Ok(ExitCode::SUCCESS)
}

/// What `del` asks for.
pub fn del_request(matches: &ArgMatches) -> Result<DeleteRangeRequest, Failed> {
    let (key, range_end) = key_range(matches)?;
    Ok(DeleteRangeRequest {
        key,
        range_end,
        prev_kv: matches.get_flag("prev-kv"),
    })
}

async fn del(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let response = context.client.delete_range(del_request(matches)?).await?;
    context.print(delete_lines(&response, context.style), &response)?;
    Ok(ExitCode::SUCCESS)
}

async fn txn_verb(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let stdin = std::io::stdin();
    let asks = matches.get_flag("interactive") || stdin.is_terminal();
    let lines = stdin.lock().split(b'\n').map_while(Result::ok);
    let request = txn::read(lines, asks)?;
    let response = context.client.txn(request).await?;
    context.print(txn_lines(&response, context.style), &response)?;
    Ok(ExitCode::SUCCESS)
}

async fn compaction(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let revision =
        decimal(matches, "revision", "revision").map_err(|failed| Failed::error(failed.message))?;
    let request = CompactionRequest {
        revision,
        physical: matches.get_flag("physical"),
    };
    context.client.compact(request).await?;
    output::line(format!("compacted revision {revision}"))?;
    Ok(ExitCode::SUCCESS)
}
