//! etcdctl's verbs, over [`Client`]: the options that all of them have, and which file has which verb.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::args::{flag, optional, parse_duration, value};
use super::failed::{Failed, exit};
use super::format::{self, Answer, Form, Style};
use super::password;
use super::{
    auth, bench, browse, chaos, check, doctor, endpoint, events, explain, import, kv, lease, lock,
    maintenance, member, mirror, output, snapshot, top, watch,
};
use crate::api::ETCD_VERSION;
use crate::client::{Client, Options};
use crate::config::parse_servers;
use crate::dns::Resolver;
use crate::tls::{ClientTls, Files};

/// The name under which this is etcdctl.
pub const ETCDCTL: &str = "etcdctl";
/// etcd's name in DNS for what members serve to clients.
const SERVICE: &str = "etcd-client";
/// The version of the API that is spoken.
const API_VERSION: &str = "3.5";

/// Whether this was started by etcdctl's name, as a link to it may have.
pub fn is_etcdctl() -> bool {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == ETCDCTL)
}

/// The verbs, and the options that all of them have.
pub fn commands(command: Command) -> Command {
    let verbs = [
        kv::commands(),
        watch::commands(),
        browse::commands(),
        lease::commands(),
        lock::commands(),
        member::commands(),
        endpoint::commands(),
        maintenance::commands(),
        vec![snapshot::command()],
        auth::commands(),
        mirror::commands(),
        vec![import::command()],
        check::commands(),
        vec![
            events::command(),
            top::command(),
            bench::command(),
            chaos::command(),
        ],
        vec![doctor::command(), explain::command()],
        vec![Command::new("version").about("Print the versions")],
    ];
    let global = |arg: Arg| arg.global(true);
    let verbs = verbs.into_iter().flatten();
    // As everywhere in etcdctl, the last of several wins.
    let verbs = verbs.map(|verb| {
        verb.args(common_args().into_iter().map(global))
            .args_override_self(true)
    });
    // They may stand before the verb too. Other verbs, such as `serve`, have nothing to do with them.
    command
        .args(common_args())
        .args_override_self(true)
        .subcommands(verbs)
}

fn common_args() -> Vec<Arg> {
    let given = [
        value("endpoints", "Members to ask, comma-separated")
            .default_value("127.0.0.1:2379")
            .value_delimiter(',')
            .action(ArgAction::Append),
        value(
            "user",
            "Name and password, as NAME:PASSWORD; asked for the password if it is left out",
        ),
        value("password", "The password; --user is then the name alone"),
        value("write-out", "simple, json, fields, table or protobuf")
            .short('w')
            .default_value("simple"),
        flag("hex", "Print bytes in hexadecimal"),
        value("dial-timeout", "How long a connection may take").default_value("800ms"),
        value("command-timeout", "How long a call may take").default_value("10s"),
        value(
            "keepalive-time",
            "How long a connection may be silent before it is probed",
        )
        .default_value("10s"),
        value("keepalive-timeout", "How long the answer to a probe may take").default_value("6s"),
        value(
            "cacert",
            "TLS: authorities to trust (PEM); the web's if not given",
        ),
        value("cert", "TLS: certificate to show (PEM)"),
        value("key", "TLS: its key (PEM)").id("key-file"),
        flag(
            "insecure-skip-tls-verify",
            "TLS: take whatever certificate is shown: anybody may be at the other end",
        ),
        optional(
            "insecure-transport",
            "false: addresses without a scheme are https://",
        ),
        flag("debug", "Say on stderr which calls are made"),
    ];
    let discovery = [
        value(
            "discovery-srv",
            "Domain whose SRV records name the members to ask, instead of --endpoints",
        )
        .short('d'),
        value(
            "discovery-srv-name",
            "Which cluster of that domain: the records of _etcd-client-NAME, _etcd-client-ssl-NAME",
        ),
        value(
            "discovery-nameserver",
            "Name servers to ask for them, as 127.0.0.1:8600, comma-separated; the system's if not given",
        ),
        optional(
            "insecure-discovery",
            "false: members that records name without TLS are left out",
        ),
    ];
    let all = given.into_iter().chain(discovery);
    all.map(|arg| arg.help_heading("Options of all verbs")).collect()
}

/// What the options of all verbs say.
pub struct Context {
    /// The client.
    pub client: Arc<Client>,
    /// What it was made of, for a second one.
    pub options: Options,
    /// `-w`.
    pub form: Form,
    /// `--hex`.
    pub style: Style,
}

impl Context {
    async fn new(root: &ArgMatches, verb: &ArgMatches) -> Result<Context, Failed> {
        let settings = Settings { root, verb };
        let form = settings.get("write-out");
        let form = Form::parse(&form).ok_or_else(|| {
            Failed::feature(format!(
                "--write-out {form:?}: simple, json, fields, table or protobuf"
            ))
        })?;
        let endpoints = settings.endpoints().await?;
        let options = Options {
            dial_timeout: settings.duration("dial-timeout")?,
            timeout: settings.duration("command-timeout")?,
            keepalive_time: settings.duration("keepalive-time")?,
            keepalive_timeout: settings.duration("keepalive-timeout")?,
            login: login(&settings.get("user"), &settings.get("password"))?,
            tls: settings.tls(&endpoints)?,
        };
        if settings.is_set("debug") {
            log_calls();
        }
        Ok(Context {
            client: Arc::new(Client::with(&endpoints, options.clone())?),
            options,
            form,
            style: Style {
                hex: settings.is_set("hex"),
                ..Style::default()
            },
        })
    }

    /// Prints an answer in the form asked for.
    pub fn print(&self, simple: Vec<u8>, answer: &impl Answer) -> Result<(), Failed> {
        match format::render(self.form, simple, answer) {
            Some(bytes) => output::write(&bytes),
            None => Err(self.no_such_form()),
        }
    }

    /// The same, with a line for people.
    pub fn print_line(&self, simple: String, answer: &impl Answer) -> Result<(), Failed> {
        self.print((simple + "\n").into_bytes(), answer)
    }

    /// There is no table for pairs, for example.
    pub fn no_such_form(&self) -> Failed {
        Failed::feature(format!("{} not supported as output format", self.form.name()))
    }
}

/// The option, before or behind the verb; or PONTOONCTL_… or ETCDCTL_… of the environment; or the default.
struct Settings<'a> {
    root: &'a ArgMatches,
    verb: &'a ArgMatches,
}

impl Settings<'_> {
    fn get(&self, name: &str) -> String {
        let typed = |matches: &ArgMatches| matches.value_source(name) == Some(ValueSource::CommandLine);
        let given = |matches: &ArgMatches| match matches.try_get_many::<String>(name) {
            Ok(values) => values.unwrap_or_default().cloned().collect::<Vec<_>>().join(","),
            Err(_) => if matches.get_flag(name) { "true" } else { "" }.to_string(),
        };
        match [self.verb, self.root].into_iter().find(|matches| typed(matches)) {
            Some(matches) => given(matches),
            None => environment(name).unwrap_or_else(|| given(self.root)),
        }
    }

    fn is_set(&self, name: &str) -> bool {
        matches!(self.get(name).as_str(), "true" | "1")
    }

    fn duration(&self, name: &str) -> Result<Duration, Failed> {
        parse_duration(name, &self.get(name))
    }

    /// Certificates, if something asks for TLS.
    fn tls(&self, endpoints: &[String]) -> Result<Option<Arc<ClientTls>>, Failed> {
        let path = |name| PathBuf::from(self.get(name));
        let files = Files {
            ca: path("cacert"),
            cert: path("cert"),
            key: path("key-file"),
            ..Files::default()
        };
        let trusts_anybody = self.is_set("insecure-skip-tls-verify");
        let is_wanted = files != Files::default()
            || trusts_anybody
            || self.get("insecure-transport") == "false"
            || endpoints.iter().any(|endpoint| endpoint.contains("https://"));
        tls(files, trusts_anybody, is_wanted)
    }

    /// As they are given, or as DNS has them. Where that has none to take, the default would be another cluster's.
    async fn endpoints(&self) -> Result<Vec<String>, Failed> {
        let domain = self.get("discovery-srv");
        if domain.is_empty() {
            return Ok(self.get("endpoints").split(',').map(str::to_string).collect());
        }
        let servers = parse_servers(&self.get("discovery-nameserver"));
        let servers =
            servers.map_err(|error| Failed::arguments(format!("--discovery-nameserver: {error:#}")))?;
        let found = Resolver::new(&servers)
            .urls(SERVICE, &self.get("discovery-srv-name"), &domain)
            .await;
        let mut urls =
            found.map_err(|error| Failed::new(exit::BAD_CONNECTION, format!("--discovery-srv: {error}")))?;
        let is_wanted = |url: &String| match self.get("insecure-discovery") == "false" {
            true => url.starts_with("https://"),
            false => true,
        };
        let all = urls.len();
        urls.retain(is_wanted);
        match (urls.is_empty(), all) {
            (false, _) => Ok(urls),
            (true, 0) => Err(Failed::new(
                exit::BAD_CONNECTION,
                format!("--discovery-srv: DNS names no endpoint of {domain}"),
            )),
            (true, _) => Err(Failed::new(
                exit::BAD_CONNECTION,
                format!("--insecure-discovery=false: DNS names endpoints of {domain} without TLS only"),
            )),
        }
    }
}

/// A variable's value: ours before etcdctl's.
fn environment(name: &str) -> Option<String> {
    let upper = name.trim_end_matches("-file").to_uppercase().replace('-', "_");
    let ours = ["PONTOONCTL_", "ETCDCTL_"];
    ours.iter()
        .find_map(|prefix| std::env::var(format!("{prefix}{upper}")).ok())
}

/// Reads certificates, if TLS is wanted.
pub fn tls(files: Files, trusts_anybody: bool, is_wanted: bool) -> Result<Option<Arc<ClientTls>>, Failed> {
    if !is_wanted {
        return Ok(None);
    }
    let tls = match trusts_anybody {
        true => ClientTls::trusting_anybody(files),
        false => ClientTls::new(files),
    };
    tls.map(|tls| Some(Arc::new(tls)))
        .map_err(|error| Failed::arguments(format!("{error:#}")))
}

/// Name and password, as `--user` and `--password` give them.
pub fn login(user: &str, password: &str) -> Result<Option<(String, String)>, Failed> {
    if user.is_empty() {
        return Ok(None);
    }
    if !password.is_empty() {
        return Ok(Some((user.to_string(), password.to_string())));
    }
    match user.split_once(':') {
        Some((name, password)) => Ok(Some((name.to_string(), password.to_string()))),
        None => Ok(Some((user.to_string(), password::ask("Password: ")?))),
    }
}

fn log_calls() {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("pontoon=debug")
        .with_writer(std::io::stderr);
    subscriber.with_target(false).init();
}

/// Runs a verb.
pub async fn run(matches: &ArgMatches, verb: &str, verb_matches: &ArgMatches) -> ExitCode {
    let result = match verb {
        // Nobody is asked.
        "explain" => explain::run(verb_matches),
        _ => match Context::new(matches, verb_matches).await {
            Ok(context) => dispatch(&context, verb, verb_matches).await,
            Err(failed) => Err(failed),
        },
    };
    match result {
        Ok(code) => code,
        Err(failed) => {
            if !failed.message.is_empty() {
                output::say(format!("Error: {}", failed.message));
                say_where_it_is_explained(&failed.message);
            }
            ExitCode::from(failed.code)
        }
    }
}

/// etcdctl has nothing to explain; scripts may compare what it says.
fn say_where_it_is_explained(message: &str) {
    if let Some(code) = explain::code_in(message).filter(|_| !is_etcdctl()) {
        output::say(format!("What it means: pontoon explain {code}"));
    }
}

async fn dispatch(context: &Context, verb: &str, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    match verb {
        "get" | "put" | "del" | "txn" | "compaction" => kv::run(context, verb, matches).await,
        "watch" => watch::run(context, matches).await,
        "ls" | "tree" | "exists" => browse::run(context, verb, matches).await,
        "lease" => lease::run(context, matches).await,
        "lock" | "elect" => lock::run(context, verb, matches).await,
        "member" => member::run(context, matches).await,
        "endpoint" | "health" => endpoint::run(context, verb, matches).await,
        "alarm" | "defrag" | "move-leader" => maintenance::run(context, verb, matches).await,
        "snapshot" => snapshot::run(context, matches).await,
        "auth" | "user" | "role" => auth::run(context, verb, matches).await,
        "import" => import::run(context, matches).await,
        "make-mirror" => mirror::run(context, matches).await,
        "check" => check::run(context, matches).await,
        "events" => events::run(context, matches).await,
        "top" => top::run(context, matches).await,
        "bench" => bench::run(context, matches).await,
        "chaos" => chaos::run(context, matches).await,
        "doctor" => doctor::run(context, matches).await,
        _ => version(),
    }
}

/// As etcdctl, its version is the one whose verbs these are: that is what scripts ask it for.
fn version() -> Result<ExitCode, Failed> {
    if is_etcdctl() {
        output::line(format!("etcdctl version: {ETCD_VERSION}"))?;
    }
    output::line(format!("pontoon version: {}", env!("CARGO_PKG_VERSION")))?;
    output::line(format!("API version: {API_VERSION}"))?;
    Ok(ExitCode::SUCCESS)
}
