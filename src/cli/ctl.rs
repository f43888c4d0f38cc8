//! etcdctl's verbs, over [`Client`].

use std::io::{BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use super::exit;
use super::format::{self, Form, Pairs};
use super::{snapshot, txn};
use crate::client::{Client, ClientError};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest};

/// A failed verb: what to say, and etcdctl's exit code for it.
pub struct Failed {
    message: String,
    code: u8,
}

impl Failed {
    /// Wrong input.
    pub fn input(message: impl Into<String>) -> Self {
        Failed {
            message: message.into(),
            code: exit::INVALID_INPUT,
        }
    }

    /// Something went wrong here.
    pub fn error(message: impl Into<String>) -> Self {
        Failed {
            message: message.into(),
            code: exit::ERROR,
        }
    }

    fn arguments(message: impl Into<String>) -> Self {
        Failed {
            message: message.into(),
            code: exit::BAD_ARGUMENTS,
        }
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        let code = match error {
            ClientError::Unreachable { .. } => exit::BAD_CONNECTION,
            ClientError::Server(_) => exit::ERROR,
            ClientError::Address(_) => exit::BAD_ARGUMENTS,
        };
        Failed {
            message: error.to_string(),
            code,
        }
    }
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn value(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("VALUE").help(help)
}

fn number(name: &'static str, help: &'static str) -> Arg {
    value(name, help)
        .value_parser(clap::value_parser!(i64))
        .default_value("0")
        .allow_negative_numbers(true)
}

fn positional(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .value_name(name.to_uppercase())
        .help(help)
        .allow_hyphen_values(true)
}

/// The verbs, and the flags that all of them have.
pub fn commands(command: Command) -> Command {
    let global = |arg: Arg| arg.global(true).help_heading("Options of all verbs");
    command
        .arg(global(
            value("endpoints", "Members to ask, comma-separated").default_value("127.0.0.1:2379"),
        ))
        .arg(global(
            value("dial-timeout", "How long a connection may take").default_value("800ms"),
        ))
        .arg(global(
            value("command-timeout", "How long a call may take").default_value("10s"),
        ))
        .arg(global(
            value("write-out", "simple, json, fields or table")
                .short('w')
                .default_value("simple"),
        ))
        .arg(global(flag("hex", "Print bytes in hexadecimal")))
        .subcommand(get_command())
        .subcommand(put_command())
        .subcommand(del_command())
        .subcommand(
            Command::new("txn")
                .about("Compare, then change: one transaction, read from stdin")
                .arg(
                    flag(
                        "interactive",
                        "Ask for the parts (also done when stdin is a terminal)",
                    )
                    .short('i'),
                ),
        )
        .subcommand(
            Command::new("compaction")
                .visible_alias("compact")
                .about("Forget what came before a revision")
                .arg(positional("revision", "The oldest revision to keep").required(true))
                .arg(flag("physical", "Wait until the space is reclaimed")),
        )
        .subcommand(
            Command::new("member")
                .about("The members of the cluster")
                .subcommand_required(true)
                .subcommand(Command::new("list").about("List the members")),
        )
        .subcommand(
            Command::new("endpoint")
                .about("The endpoints, one by one")
                .subcommand_required(true)
                .arg(flag("cluster", "Ask all members of the cluster").global(true))
                .subcommand(Command::new("status").about("How each is"))
                .subcommand(snapshot::command())
                .subcommand(Command::new("health").about("Whether each can commit")),
        )
        .subcommand(snapshot::command())
        .subcommand(Command::new("health").about("Whether the member here is healthy, by its exit code"))
        .subcommand(Command::new("version").about("Print the versions"))
}

fn get_command() -> Command {
    Command::new("get")
        .about("Read a key or a range")
        .arg(positional("key", "The key").required(true))
        .arg(positional(
            "range_end",
            "Read up to this key, which is not included",
        ))
        .arg(flag("prefix", "All keys that begin with KEY"))
        .arg(flag("from-key", "All keys from KEY on"))
        .arg(number("limit", "Most pairs to print"))
        .arg(number("rev", "As of this revision"))
        .arg(value("order", "ASCEND or DESCEND").default_value(""))
        .arg(value("sort-by", "KEY, VERSION, CREATE, MODIFY or VALUE").default_value(""))
        .arg(
            value(
                "consistency",
                "l: linearizable, s: serializable, local and maybe stale",
            )
            .default_value("l"),
        )
        .arg(flag("keys-only", "Keys only"))
        .arg(flag(
            "count-only",
            "The number of keys only (with -w fields or json)",
        ))
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
}

fn put_command() -> Command {
    Command::new("put")
        .about("Set a key")
        .arg(positional("key", "The key").required(true))
        .arg(positional(
            "value",
            "The value; read from stdin if it is not given",
        ))
        .arg(value("lease", "Lease to attach the key to, in hexadecimal").default_value("0"))
        .arg(flag("prev-kv", "Print the pair as it was before"))
        .arg(flag("ignore-value", "Keep the value"))
        .arg(flag("ignore-lease", "Keep the lease"))
}

fn del_command() -> Command {
    Command::new("del")
        .about("Delete a key or a range")
        .arg(positional("key", "The key").required(true))
        .arg(positional(
            "range_end",
            "Delete up to this key, which is not included",
        ))
        .arg(flag("prefix", "All keys that begin with KEY"))
        .arg(flag("from-key", "All keys from KEY on"))
        .arg(flag("prev-kv", "Print the pairs as they were before"))
}

/// What the flags of all verbs say.
pub struct Context {
    /// Goes to `--endpoints`.
    pub client: Client,
    /// `-w`.
    pub form: Form,
    pairs: Pairs,
    dial_timeout: Duration,
    timeout: Duration,
}

impl Context {
    fn new(matches: &ArgMatches) -> Result<Context, Failed> {
        let form = setting(matches, "write-out");
        let form = Form::parse(&form).ok_or_else(|| {
            Failed::arguments(format!("--write-out {form:?}: simple, json, fields or table"))
        })?;
        let endpoints: Vec<String> = setting(matches, "endpoints")
            .split(',')
            .map(str::to_string)
            .collect();
        let dial_timeout = duration(matches, "dial-timeout")?;
        let timeout = duration(matches, "command-timeout")?;
        let client = Client::new(&endpoints, dial_timeout, timeout)?;
        let pairs = Pairs {
            hex: matches.get_flag("hex"),
            ..Pairs::default()
        };
        Ok(Context {
            client,
            form,
            pairs,
            dial_timeout,
            timeout,
        })
    }

    fn one(&self, endpoint: &str) -> Result<Client, Failed> {
        Ok(Client::new(
            &[endpoint.to_string()],
            self.dial_timeout,
            self.timeout,
        )?)
    }

    /// In the form asked for. There is no table for pairs, as in etcdctl.
    fn print(&self, simple: Vec<u8>, json: impl FnOnce() -> Value) -> Result<(), Failed> {
        match self.form {
            Form::Simple => write_out(&simple),
            Form::Json => write_out(format!("{}\n", json()).as_bytes()),
            Form::Fields => write_out(format::fields(&json()).as_bytes()),
            Form::Table => Err(Failed {
                message: "table is not supported as output of this verb".to_string(),
                code: 4,
            }),
        }
    }
}

/// The flag, or PONTOONCTL_… or ETCDCTL_… of the environment, or the default.
fn setting(matches: &ArgMatches, name: &str) -> String {
    let typed = matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
    let upper = name.to_uppercase().replace('-', "_");
    let environment = || {
        ["PONTOONCTL_", "ETCDCTL_"]
            .iter()
            .find_map(|prefix| std::env::var(format!("{prefix}{upper}")).ok())
    };
    let given = matches.get_one::<String>(name).cloned().unwrap_or_default();
    if typed {
        given
    } else {
        environment().unwrap_or(given)
    }
}

fn duration(matches: &ArgMatches, name: &str) -> Result<Duration, Failed> {
    let text = setting(matches, name);
    humantime::parse_duration(&text)
        .map_err(|error| Failed::arguments(format!("--{name} {text:?}: {error}; such as 5s or 500ms")))
}

/// Runs a verb.
pub async fn run(matches: &ArgMatches, verb: &str, verb_matches: &ArgMatches) -> ExitCode {
    let result = match Context::new(matches) {
        Ok(context) => dispatch(&context, verb, verb_matches).await,
        Err(failed) => Err(failed),
    };
    match result {
        Ok(code) => code,
        Err(failed) => {
            eprintln!("Error: {}", failed.message);
            ExitCode::from(failed.code)
        }
    }
}

async fn dispatch(context: &Context, verb: &str, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match (verb, matches.subcommand()) {
        ("get", _) => get(context, matches).await?,
        ("put", _) => put(context, matches).await?,
        ("del", _) => del(context, matches).await?,
        ("txn", _) => txn_verb(context, matches).await?,
        ("compaction", _) => compaction(context, matches).await?,
        ("member", _) => member_list(context).await?,
        ("endpoint", Some(("status", matches))) => return status(context, matches).await,
        ("endpoint", Some(("health", matches))) => return health(context, matches).await,
        ("snapshot", _) => snapshot::run(context, matches).await?,
        ("health", _) => return own_health(context).await,
        _ => println!("pontoon version: {}\nAPI version: 3.5", env!("CARGO_PKG_VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}

/// A reader that went away (`pontoon get … | head`) is no error.
pub fn write_out(bytes: &[u8]) -> Result<(), Failed> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failed {
            message: format!("cannot write: {error}"),
            code: exit::ERROR,
        }),
        _ => Ok(()),
    }
}

fn bytes(matches: &ArgMatches, name: &str) -> Bytes {
    Bytes::from(matches.get_one::<String>(name).cloned().unwrap_or_default())
}

fn int(matches: &ArgMatches, name: &str) -> i64 {
    matches.get_one::<i64>(name).copied().unwrap_or(0)
}

/// Key and range end, from KEY, RANGE_END, `--prefix` and `--from-key`.
fn key_range(matches: &ArgMatches) -> Result<(Bytes, Bytes), Failed> {
    let (key, end) = (bytes(matches, "key"), bytes(matches, "range_end"));
    let (prefix, from_key) = (matches.get_flag("prefix"), matches.get_flag("from-key"));
    if prefix && from_key {
        return Err(Failed::arguments(
            "`--prefix` and `--from-key` cannot be set at the same time, choose one",
        ));
    }
    if (prefix || from_key) && !end.is_empty() {
        return Err(Failed::arguments(
            "RANGE_END goes with neither `--prefix` nor `--from-key`",
        ));
    }
    let zero = || Bytes::from_static(b"\0");
    let or_all = |key: Bytes| if key.is_empty() { zero() } else { key };
    Ok(match (prefix, from_key) {
        (true, _) => (or_all(key.clone()), prefix_end(&key)),
        (_, true) => (or_all(key), zero()),
        _ => (key, end),
    })
}

/// The first key after all that begin with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte != 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::from_static(b"\0"),
    }
}

async fn get(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let (key, range_end) = key_range(matches)?;
    let word = |name: &str| {
        matches
            .get_one::<String>(name)
            .map_or(String::new(), |word| word.to_uppercase())
    };
    let sort_order = match word("order").as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        other => {
            return Err(Failed::arguments(format!(
                "bad sort order {other:?}: ASCEND or DESCEND"
            )));
        }
    };
    let sort_target = match word("sort-by").as_str() {
        "" | "KEY" => SortTarget::Key,
        "VERSION" => SortTarget::Version,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        other => {
            return Err(Failed::arguments(format!(
                "bad sort target {other:?}: KEY, VERSION, CREATE, MODIFY or VALUE"
            )));
        }
    };
    let serializable = match word("consistency").as_str() {
        "L" => false,
        "S" => true,
        other => {
            return Err(Failed::arguments(format!(
                "unknown consistency {other:?}: l or s"
            )));
        }
    };
    let (keys_only, count_only) = (matches.get_flag("keys-only"), matches.get_flag("count-only"));
    if keys_only && count_only {
        return Err(Failed::arguments(
            "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
        ));
    }
    let request = RangeRequest {
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
    };
    let response = context.client.range(request).await?;
    let values_only = matches.get_flag("print-value-only");
    // etcdctl prints an empty line for the missing value.
    let pairs = Pairs {
        values_only,
        ..context.pairs
    };
    context.print(format::simple_pairs(&response.kvs, pairs), || {
        format::json_range(&response)
    })
}

async fn put(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let (ignore_value, ignore_lease) = (matches.get_flag("ignore-value"), matches.get_flag("ignore-lease"));
    let value = match matches.get_one::<String>("value") {
        Some(value) => Bytes::from(value.clone()),
        None if ignore_value => Bytes::new(),
        None => {
            let mut value = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut value);
            read.map_err(|error| Failed::input(format!("cannot read the value from stdin: {error}")))?;
            value.into()
        }
    };
    let lease = matches.get_one::<String>("lease").cloned().unwrap_or_default();
    let lease = i64::from_str_radix(&lease, 16)
        .map_err(|error| Failed::arguments(format!("bad lease ID {lease:?}: {error}")))?;
    let request = PutRequest {
        key: bytes(matches, "key"),
        value,
        lease,
        prev_kv: matches.get_flag("prev-kv"),
        ignore_value,
        ignore_lease,
    };
    let response = context.client.put(request).await?;
    context.print(format::simple_put(&response, context.pairs), || {
        format::json_put(&response)
    })
}

async fn del(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let (key, range_end) = key_range(matches)?;
    let request = DeleteRangeRequest {
        key,
        range_end,
        prev_kv: matches.get_flag("prev-kv"),
    };
    let response = context.client.delete_range(request).await?;
    context.print(format::simple_delete(&response, context.pairs), || {
        format::json_delete(&response)
    })
}

async fn txn_verb(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let stdin = std::io::stdin();
    let asks = matches.get_flag("interactive") || stdin.is_terminal();
    let lines = stdin.lock().lines().map_while(Result::ok);
    let request = txn::read(lines, asks)?;
    let response = context.client.txn(request).await?;
    context.print(format::simple_txn(&response, context.pairs), || {
        format::json_txn(&response)
    })
}

async fn compaction(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let text = matches.get_one::<String>("revision").cloned().unwrap_or_default();
    let revision = text
        .parse()
        .map_err(|error| Failed::arguments(format!("bad revision {text:?}: {error}")))?;
    context
        .client
        .compact(CompactionRequest {
            revision,
            physical: matches.get_flag("physical"),
        })
        .await?;
    write_out(format!("compacted revision {revision}\n").as_bytes())
}

async fn member_list(context: &Context) -> Result<(), Failed> {
    let response = context.client.member_list().await?;
    let rows = format::member_rows(&response);
    match context.form {
        Form::Table => {
            let head = ["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"];
            write_out(format!("{}\n", format::table(&head, rows)).as_bytes())
        }
        _ => context.print(comma_lines(rows), || format::json_members(&response)),
    }
}

fn comma_lines(rows: Vec<Vec<String>>) -> Vec<u8> {
    rows.into_iter()
        .flat_map(|row| format!("{}\n", row.join(", ")).into_bytes())
        .collect()
}

/// The endpoints given, or with `--cluster` those that the members advertise.
async fn endpoints(context: &Context, matches: &ArgMatches) -> Result<Vec<String>, Failed> {
    if !matches.get_flag("cluster") {
        let bare = |url: &String| url.trim_start_matches("http://").to_string();
        return Ok(context.client.endpoints().iter().map(bare).collect());
    }
    let members = context.client.member_list().await?.members;
    Ok(members
        .into_iter()
        .flat_map(|member| member.client_ur_ls)
        .collect())
}

async fn status(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let (mut rows, mut values, mut failed) = (Vec::new(), Vec::new(), false);
    for endpoint in endpoints(context, matches).await? {
        match context.one(&endpoint)?.status().await {
            Ok(response) => {
                rows.push(format::status_row(&endpoint, &response));
                values.push(format::json_status(&endpoint, &response));
            }
            Err(error) => {
                eprintln!("Failed to get the status of endpoint {endpoint} ({error})");
                failed = true;
            }
        }
    }
    let head = [
        "Endpoint",
        "ID",
        "Version",
        "DB Size",
        "Is Leader",
        "Is Learner",
        "Raft Term",
        "Raft Index",
        "Raft Applied Index",
        "Errors",
    ];
    match context.form {
        Form::Table => write_out(format!("{}\n", format::table(&head, rows)).as_bytes())?,
        _ => context.print(comma_lines(rows), || Value::Array(values))?,
    }
    Ok(if failed {
        ExitCode::from(exit::ERROR)
    } else {
        ExitCode::SUCCESS
    })
}

/// As etcdctl does: a read that needs a quorum.
async fn check_health(client: &Client) -> Result<Duration, ClientError> {
    let started = Instant::now();
    client
        .range(RangeRequest {
            key: Bytes::from_static(b"health"),
            ..RangeRequest::default()
        })
        .await?;
    Ok(started.elapsed())
}

async fn health(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let (mut rows, mut values, mut healthy) = (Vec::new(), Vec::new(), true);
    for endpoint in endpoints(context, matches).await? {
        let started = Instant::now();
        let error = check_health(&context.one(&endpoint)?)
            .await
            .err()
            .map(|error| error.to_string());
        let took = format!("{:?}", started.elapsed());
        healthy &= error.is_none();
        if context.form == Form::Simple {
            match &error {
                None => println!("{endpoint} is healthy: successfully committed proposal: took = {took}"),
                Some(error) => eprintln!("{endpoint} is unhealthy: failed to commit proposal: {error}"),
            }
        }
        let error = error.unwrap_or_default();
        values.push(serde_json::json!({"endpoint": endpoint, "health": error.is_empty(), "took": took, "error": error}));
        rows.push(vec![endpoint, error.is_empty().to_string(), took, error]);
    }
    match context.form {
        Form::Simple => {}
        Form::Table => {
            let table = format::table(&["Endpoint", "Health", "Took", "Error"], rows);
            write_out(format!("{table}\n").as_bytes())?;
        }
        _ => context.print(Vec::new(), || Value::Array(values))?,
    }
    if healthy {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("Error: unhealthy cluster");
    Ok(ExitCode::from(exit::UNHEALTHY))
}

async fn own_health(context: &Context) -> Result<ExitCode, Failed> {
    match check_health(&context.client).await {
        Ok(took) => println!("healthy: took {took:?}"),
        Err(error) => {
            eprintln!("unhealthy: {error}");
            return Ok(ExitCode::from(exit::ERROR));
        }
    }
    Ok(ExitCode::SUCCESS)
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
}
