//! Settings: typed by people, used by the server.
//!
//! Every setting has one row in [`SETTINGS`]. Its value comes from, in this order: the flag `--name`; the environment,
//! `PONTOON_NAME` before `ETCD_NAME`; the file given by `--config-file` (TOML, `name = …`); the default. A file never
//! switches off flags or environment. Where each value came from is kept, for `--print-config` and for errors.

mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};

pub use self::tls::Tls;

/// What a setting does in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// What it says.
    Served,
    /// Accepted, as compose files set it; nothing yet.
    NoneYet,
}

struct Setting {
    name: &'static str,
    default: &'static str,
    help: &'static str,
    effect: Effect,
}

const fn served(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting {
        name,
        default,
        help,
        effect: Effect::Served,
    }
}

const fn none_yet(name: &'static str) -> Setting {
    Setting {
        name,
        default: "",
        help: "Accepted for etcd's sake; has no effect yet",
        effect: Effect::NoneYet,
    }
}

const SETTINGS: &[Setting] = &[
    served("name", "default", "This member's name, unique in the cluster"),
    served(
        "data-dir",
        "",
        "Where this member keeps everything [default: <name>.pontoon]",
    ),
    served(
        "listen-client-urls",
        "http://localhost:2379",
        "Where to listen for clients, comma-separated URLs",
    ),
    served(
        "advertise-client-urls",
        "",
        "Where clients reach this member [default: the listen URLs]",
    ),
    served(
        "listen-peer-urls",
        "http://localhost:2380",
        "Where to listen for the other members",
    ),
    served(
        "initial-advertise-peer-urls",
        "",
        "Where the others reach this member [default: the listen URLs]",
    ),
    served(
        "initial-cluster",
        "",
        "All members, the same on each: name=url,name=url [default: this member alone]",
    ),
    served(
        "initial-cluster-token",
        "etcd-cluster",
        "Members with another token are strangers",
    ),
    served(
        "initial-cluster-state",
        "new",
        "new; or existing: never found a cluster, only join one",
    ),
    served(
        "founding-wait",
        "",
        "Before founding a cluster, how long to listen for one that lost a member here; 0: found it anyway \
         [default: two election timeouts]",
    ),
    served(
        "join",
        "",
        "Become a member of a running cluster: peer or client URLs of any of its members",
    ),
    served(
        "strict-reconfig-check",
        "true",
        "Refuse membership changes that could cost the majority",
    ),
    served("max-learners", "1", "Most learners at once"),
    served(
        "force-new-cluster",
        "false",
        "Make this surviving member a cluster of its own, once, when the majority is lost for good",
    ),
    served(
        "heartbeat-interval",
        "100ms",
        "How often a leader is heard of (a number is milliseconds)",
    ),
    served(
        "election-timeout",
        "1000ms",
        "How soon a dead leader is replaced, about (a number is milliseconds)",
    ),
    served(
        "snapshot-count",
        "0",
        "Take a snapshot after so many entries too; 0: by bytes written only",
    ),
    served("max-request-bytes", "1572864", "Largest request, in bytes"),
    served("max-txn-ops", "128", "Most operations in one transaction"),
    served(
        "watch-progress-notify-interval",
        "10m",
        "How often an idle watch that asks for it is told of the progress",
    ),
    served(
        "max-in-flight",
        "5000",
        "Most writes under way at once; more get \"too many requests\"",
    ),
    served(
        "max-concurrent-streams",
        "4294967295",
        "Most requests and streams of a client's connection at once; 0: any number",
    ),
    served(
        "grpc-keepalive-interval",
        "10s",
        "How often a client that is silent is asked whether it is there (a number is milliseconds)",
    ),
    served(
        "grpc-keepalive-timeout",
        "20s",
        "After how long without an answer its connection is closed (a number is milliseconds)",
    ),
    served(
        "auth-token",
        "simple",
        "Tokens that users get when they log in: simple, or jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…",
    ),
    served(
        "auth-token-ttl",
        "300",
        "Seconds after which a token that is not used is void",
    ),
    served(
        "bcrypt-cost",
        "10",
        "How costly it is to try a password, 4 to 31: each step doubles it",
    ),
    served(
        "lease-checkpoint-interval",
        "1m",
        "How often the time left of a long lease is logged: by so much a change of leaders may prolong it",
    ),
    served(
        "auto-compaction-mode",
        "periodic",
        "What auto-compaction-retention counts: periodic (time) or revision",
    ),
    served(
        "auto-compaction-retention",
        "0",
        "How much of the past is kept: hours, or such as 30m; or revisions; 0: all of it",
    ),
    served(
        "auto-compaction-interval",
        "5m",
        "How often old revisions are looked for in mode revision (a number is milliseconds)",
    ),
    served(
        "corrupt-check-time",
        "0s",
        "How often members are compared with each other (a number is milliseconds); 0: never",
    ),
    served(
        "initial-corrupt-check",
        "false",
        "Compare this member with the others before it serves",
    ),
    served(
        "quota-backend-bytes",
        "0",
        "Size of the applied state at which NOSPACE is raised; 0: 2 GiB, negative: never",
    ),
    served(
        "disk-reserve-bytes",
        "268435456",
        "Free space of the disk below which NOSPACE is raised; 0: never",
    ),
    served(
        "listen-metrics-urls",
        "",
        "Where to serve health and metrics too, comma-separated URLs",
    ),
    served(
        "metrics",
        "basic",
        "basic; or extensive: durations of calls by method too",
    ),
    served(
        "enable-grpc-gateway",
        "true",
        "Serve etcd's JSON gateway below /v3/",
    ),
    served(
        "cors",
        "*",
        "Origins whose pages may read HTTP answers, comma-separated",
    ),
    served(
        "host-whitelist",
        "*",
        "Host names by which HTTP clients may call, comma-separated",
    ),
    served(
        "cert-file",
        "",
        "Certificate (PEM) of the client port, for https:// in --listen-client-urls and --listen-metrics-urls",
    ),
    served("key-file", "", "Its key (PEM)"),
    served(
        "trusted-ca-file",
        "",
        "Authorities (PEM): clients must show a certificate of theirs",
    ),
    served(
        "client-cert-auth",
        "false",
        "Clients must show a certificate; needs --trusted-ca-file",
    ),
    served(
        "client-crl-file",
        "",
        "Revoked certificates of clients (PEM, or one list in DER)",
    ),
    served(
        "client-cert-allowed-hostname",
        "",
        "Clients must show a certificate for one of these hosts, comma-separated",
    ),
    served(
        "auto-tls",
        "false",
        "Encrypt with a certificate that this member makes and signs itself",
    ),
    served(
        "peer-cert-file",
        "",
        "Certificate (PEM) of the peer port, also shown to the other members",
    ),
    served("peer-key-file", "", "Its key (PEM)"),
    served(
        "peer-trusted-ca-file",
        "",
        "Authorities (PEM): members must show a certificate of theirs",
    ),
    served(
        "peer-client-cert-auth",
        "false",
        "Members must show a certificate; needs --peer-trusted-ca-file",
    ),
    served(
        "peer-crl-file",
        "",
        "Revoked certificates of members (PEM, or one list in DER)",
    ),
    served(
        "peer-cert-allowed-cn",
        "",
        "Members must show a certificate with one of these common names, comma-separated",
    ),
    served(
        "peer-cert-allowed-hostname",
        "",
        "Members must show a certificate for one of these hosts, comma-separated",
    ),
    served(
        "peer-skip-client-san-verification",
        "false",
        "Take a member's certificate from any address, not only from those that it is for",
    ),
    served(
        "peer-auto-tls",
        "false",
        "As --auto-tls, between members: encrypted, but anybody may be at the other end",
    ),
    served(
        "cipher-suites",
        "",
        "Cipher suites of TLS 1.2, by their IANA names, comma-separated [default: all that are safe]",
    ),
    served(
        "tls-min-version",
        "TLS1.2",
        "Oldest version of TLS: TLS1.2 or TLS1.3",
    ),
    served(
        "tls-max-version",
        "",
        "Newest version of TLS: TLS1.2 or TLS1.3 [default: the newest]",
    ),
    served(
        "log-level",
        "info",
        "error, warn, info, debug, trace, or a tracing filter",
    ),
    served(
        "log-format",
        "auto",
        "auto, pretty or json; auto: pretty on a terminal",
    ),
    none_yet("logger"),
    none_yet("log-outputs"),
    none_yet("wal-dir"),
    none_yet("enable-pprof"),
    none_yet("enable-v2"),
    none_yet("pre-vote"),
    none_yet("max-snapshots"),
    none_yet("max-wals"),
    none_yet("initial-election-tick-advance"),
    none_yet("grpc-keepalive-min-time"),
    none_yet("unsafe-no-fsync"),
    none_yet("backend-batch-interval"),
    none_yet("backend-batch-limit"),
    none_yet("backend-bbolt-freelist-type"),
    none_yet("enable-lease-checkpoint"),
    none_yet("enable-lease-checkpoint-persist"),
    none_yet("compact-hash-check-enabled"),
    none_yet("compact-hash-check-time"),
    none_yet("compaction-batch-limit"),
    none_yet("snapshot-catchup-entries"),
];

/// What automatic compaction keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Everything of this last while.
    Period(Duration),
    /// This many of the newest revisions, looked at so often.
    Revisions {
        /// How many.
        keep: i64,
        /// How often.
        every: Duration,
    },
}

/// Settings that etcd once spelled with `experimental-`, as compose files still do.
const ONCE_EXPERIMENTAL: &[&str] = &[
    "backend-bbolt-freelist-type",
    "compact-hash-check-enabled",
    "compact-hash-check-time",
    "compaction-batch-limit",
    "corrupt-check-time",
    "enable-lease-checkpoint",
    "enable-lease-checkpoint-persist",
    "initial-corrupt-check",
    "max-learners",
    "peer-skip-client-san-verification",
    "snapshot-catchup-entries",
    "watch-progress-notify-interval",
];

/// The names of a setting, the usual one first.
fn spellings(name: &str) -> impl Iterator<Item = String> {
    let once = ONCE_EXPERIMENTAL
        .contains(&name)
        .then(|| format!("experimental-{name}"));
    std::iter::once(name.to_string()).chain(once)
}

/// etcd's quota where none is set.
const DEFAULT_QUOTA: u64 = 2 << 30;

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

/// How HTTP is served.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// `--enable-grpc-gateway`.
    pub gateway: bool,
    /// `--cors`: origins whose pages may read answers; `*` for all.
    pub cors: Vec<String>,
    /// `--host-whitelist`: names by which clients may call this member; `*` for all.
    pub hosts: Vec<String>,
}

/// What a connection of a client may do.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// `--max-concurrent-streams`; none: any number.
    pub max_streams: Option<u32>,
    /// `--grpc-keepalive-interval`.
    pub ping_interval: Duration,
    /// `--grpc-keepalive-timeout`.
    pub ping_timeout: Duration,
}

/// The settings as the server uses them.
#[derive(Debug, Clone)]
pub struct Config {
    /// `--name`.
    pub name: String,
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// `--listen-client-urls`.
    pub listen_client_urls: Vec<String>,
    /// `--advertise-client-urls`.
    pub advertise_client_urls: Vec<String>,
    /// `--listen-metrics-urls`.
    pub listen_metrics_urls: Vec<String>,
    /// `--metrics extensive`.
    pub metrics_extensive: bool,
    /// `--enable-grpc-gateway`, `--cors`, `--host-whitelist`.
    pub http: HttpOptions,
    /// `--listen-peer-urls`.
    pub listen_peer_urls: Vec<String>,
    /// `--initial-advertise-peer-urls`.
    pub initial_advertise_peer_urls: Vec<String>,
    /// `--initial-cluster`: name and peer URLs of each member.
    pub initial_cluster: BTreeMap<String, Vec<String>>,
    /// `--initial-cluster-token`.
    pub initial_cluster_token: String,
    /// `--initial-cluster-state existing`.
    pub initial_cluster_existing: bool,
    /// `--founding-wait`.
    pub founding_wait: Duration,
    /// `--join`.
    pub join: Vec<String>,
    /// `--strict-reconfig-check`.
    pub strict_reconfig_check: bool,
    /// `--max-learners`.
    pub max_learners: usize,
    /// `--force-new-cluster`.
    pub force_new_cluster: bool,
    /// `--heartbeat-interval`.
    pub heartbeat_interval: Duration,
    /// `--election-timeout`.
    pub election_timeout: Duration,
    /// `--snapshot-count`.
    pub snapshot_count: u64,
    /// `--max-request-bytes`.
    pub max_request_bytes: usize,
    /// `--max-txn-ops`.
    pub max_txn_ops: u32,
    /// `--watch-progress-notify-interval`.
    pub watch_progress_notify_interval: Duration,
    /// `--max-in-flight`.
    pub max_in_flight: usize,
    /// `--max-concurrent-streams`, `--grpc-keepalive-interval`, `--grpc-keepalive-timeout`.
    pub connections: Connections,
    /// `--auth-token`.
    pub auth_token: String,
    /// `--auth-token-ttl`.
    pub auth_token_ttl: Duration,
    /// `--bcrypt-cost`.
    pub bcrypt_cost: u32,
    /// `--lease-checkpoint-interval`.
    pub lease_checkpoint_interval: Duration,
    /// `--auto-compaction-mode` and `--auto-compaction-retention`; none: nothing is compacted by itself.
    pub auto_compaction: Option<Retention>,
    /// `--corrupt-check-time`; none: never.
    pub corrupt_check_time: Option<Duration>,
    /// `--initial-corrupt-check`.
    pub initial_corrupt_check: bool,
    /// `--quota-backend-bytes`; none: no quota.
    pub quota_bytes: Option<u64>,
    /// `--disk-reserve-bytes`.
    pub disk_reserve_bytes: u64,
    /// TLS of the client port.
    pub client_tls: Tls,
    /// TLS between members.
    pub peer_tls: Tls,
}

/// The arguments of `pontoon serve`, added to a command.
pub fn arguments(command: Command) -> Command {
    let one = |setting: &Setting| {
        let help = match setting.default {
            "" => setting.help.to_string(),
            default => format!("{} [default: {default}]", setting.help),
        };
        Arg::new(setting.name)
            .long(setting.name)
            .aliases(spellings(setting.name).skip(1))
            .value_name("VALUE")
            .help(help)
            .hide(setting.effect != Effect::Served)
            // `--flag` alone means true, as etcd has it.
            .num_args(0..=1)
            .default_missing_value("true")
            .require_equals(false)
            .action(ArgAction::Set)
    };
    let file = Arg::new("config-file")
        .long("config-file")
        .value_name("FILE")
        .help("Settings in TOML");
    let print = Arg::new("print-config")
        .long("print-config")
        .action(ArgAction::SetTrue)
        .help("Print each setting and where it came from, and exit");
    command.args(SETTINGS.iter().map(one)).arg(file).arg(print)
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

    /// Checks the values and makes them usable.
    pub fn config(&self) -> anyhow::Result<Config> {
        let name = self.get("name").to_string();
        if name.is_empty() || name.contains([',', '=']) {
            bail!("{}: a name is not empty and has no ',' or '='", self.said("name"));
        }
        let listen_client_urls = self.urls("listen-client-urls")?;
        let listen_peer_urls = self.urls("listen-peer-urls")?;
        let initial_advertise_peer_urls = self.urls_or("initial-advertise-peer-urls", &listen_peer_urls)?;
        let config = Config {
            data_dir: self.data_dir(&name),
            advertise_client_urls: self.urls_or("advertise-client-urls", &listen_client_urls)?,
            initial_cluster: self.initial_cluster(&name, &initial_advertise_peer_urls)?,
            initial_cluster_token: self.get("initial-cluster-token").to_string(),
            initial_cluster_existing: self.is_existing()?,
            founding_wait: match self.get("founding-wait") {
                "" => 2 * self.duration("election-timeout")?,
                _ => self.duration("founding-wait")?,
            },
            join: match self.get("join") {
                "" => Vec::new(),
                _ => self.urls("join")?,
            },
            strict_reconfig_check: self.boolean("strict-reconfig-check")?,
            max_learners: usize::try_from(self.number("max-learners", 0)?)?,
            force_new_cluster: self.boolean("force-new-cluster")?,
            heartbeat_interval: self.duration("heartbeat-interval")?,
            election_timeout: self.duration("election-timeout")?,
            snapshot_count: self.number("snapshot-count", 0)?,
            max_request_bytes: usize::try_from(self.number("max-request-bytes", 1)?)?,
            max_txn_ops: u32::try_from(self.number("max-txn-ops", 1)?).context(self.said("max-txn-ops"))?,
            watch_progress_notify_interval: self.duration("watch-progress-notify-interval")?,
            max_in_flight: usize::try_from(self.number("max-in-flight", 1)?)?,
            connections: self.connections()?,
            auth_token: self.auth_token()?,
            auth_token_ttl: Duration::from_secs(self.number("auth-token-ttl", 1)?),
            bcrypt_cost: self.bcrypt_cost()?,
            lease_checkpoint_interval: self.duration("lease-checkpoint-interval")?,
            auto_compaction: self.retention()?,
            corrupt_check_time: Some(self.duration("corrupt-check-time")?).filter(|every| !every.is_zero()),
            initial_corrupt_check: self.boolean("initial-corrupt-check")?,
            quota_bytes: self.quota()?,
            disk_reserve_bytes: self.number("disk-reserve-bytes", 0)?,
            listen_metrics_urls: match self.get("listen-metrics-urls") {
                "" => Vec::new(),
                _ => self.urls("listen-metrics-urls")?,
            },
            metrics_extensive: self.is_extensive()?,
            http: HttpOptions {
                gateway: self.boolean("enable-grpc-gateway")?,
                cors: self.list("cors"),
                hosts: self.list("host-whitelist"),
            },
            client_tls: self.tls(&tls::CLIENTS)?,
            peer_tls: self.tls(&tls::PEERS)?,
            name,
            listen_client_urls,
            listen_peer_urls,
            initial_advertise_peer_urls,
        };
        if config.lease_checkpoint_interval < Duration::from_secs(1) {
            bail!("{}: at least 1s", self.said("lease-checkpoint-interval"));
        }
        if config.watch_progress_notify_interval.is_zero() {
            bail!(
                "{}: must not be zero",
                self.said("watch-progress-notify-interval")
            );
        }
        if config.heartbeat_interval.is_zero() || config.election_timeout < 5 * config.heartbeat_interval {
            bail!(
                "{}: must be at least 5 times --heartbeat-interval, which is {}",
                self.said("election-timeout"),
                self.get("heartbeat-interval")
            );
        }
        if config.max_request_bytes > 32 << 20 {
            bail!("{}: at most 33554432 (32 MiB)", self.said("max-request-bytes"));
        }
        Ok(config)
    }

    /// How errors name a setting.
    fn said(&self, name: &str) -> String {
        match self.values.get(name) {
            Some((value, origin)) => format!("--{name} {value:?} ({origin})"),
            None => format!("--{name}"),
        }
    }

    fn data_dir(&self, name: &str) -> PathBuf {
        match self.get("data-dir") {
            "" => PathBuf::from(format!("{name}.pontoon")),
            dir => PathBuf::from(dir),
        }
    }

    fn connections(&self) -> anyhow::Result<Connections> {
        let streams = self.number("max-concurrent-streams", 0)?;
        let streams = u32::try_from(streams).context(self.said("max-concurrent-streams"))?;
        let pause = |name: &str| match self.duration(name)? {
            Duration::ZERO => bail!("{}: more than 0", self.said(name)),
            pause => Ok(pause),
        };
        Ok(Connections {
            max_streams: Some(streams).filter(|streams| !matches!(*streams, 0 | u32::MAX)),
            ping_interval: pause("grpc-keepalive-interval")?,
            ping_timeout: pause("grpc-keepalive-timeout")?,
        })
    }

    fn auth_token(&self) -> anyhow::Result<String> {
        match self.get("auth-token") {
            kind if kind == "simple" || kind.starts_with("jwt,") => Ok(kind.to_string()),
            _ => bail!(
                "{}: simple, or jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…",
                self.said("auth-token")
            ),
        }
    }

    fn bcrypt_cost(&self) -> anyhow::Result<u32> {
        let cost = self.number("bcrypt-cost", 4)?;
        match u32::try_from(cost) {
            Ok(cost) if cost <= 31 => Ok(cost),
            _ => bail!("{}: 4 to 31", self.said("bcrypt-cost")),
        }
    }

    fn retention(&self) -> anyhow::Result<Option<Retention>> {
        let text = self.get("auto-compaction-retention");
        match self.get("auto-compaction-mode") {
            "revision" => {
                let keep = i64::try_from(self.number("auto-compaction-retention", 0)?)?;
                let every = self.duration("auto-compaction-interval")?;
                if every.is_zero() {
                    bail!("{}: more than 0", self.said("auto-compaction-interval"));
                }
                Ok((keep > 0).then_some(Retention::Revisions { keep, every }))
            }
            "periodic" => {
                let period = match text.parse::<u32>() {
                    Ok(hours) => Duration::from_secs(3600 * u64::from(hours)),
                    Err(_) => humantime::parse_duration(text).with_context(|| {
                        format!(
                            "{}: hours, or such as 30m",
                            self.said("auto-compaction-retention")
                        )
                    })?,
                };
                Ok((!period.is_zero()).then_some(Retention::Period(period)))
            }
            _ => bail!("{}: periodic or revision", self.said("auto-compaction-mode")),
        }
    }

    fn quota(&self) -> anyhow::Result<Option<u64>> {
        let text = self.get("quota-backend-bytes");
        if text
            .strip_prefix('-')
            .is_some_and(|digits| digits.parse::<u64>().is_ok())
        {
            return Ok(None);
        }
        match self.number("quota-backend-bytes", 0)? {
            0 => Ok(Some(DEFAULT_QUOTA)),
            bytes => Ok(Some(bytes)),
        }
    }

    fn is_existing(&self) -> anyhow::Result<bool> {
        match self.get("initial-cluster-state") {
            "new" => Ok(false),
            "existing" => Ok(true),
            _ => bail!("{}: new or existing", self.said("initial-cluster-state")),
        }
    }

    fn boolean(&self, name: &str) -> anyhow::Result<bool> {
        match self.get(name) {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => bail!("{}: true or false", self.said(name)),
        }
    }

    fn is_extensive(&self) -> anyhow::Result<bool> {
        match self.get("metrics") {
            "basic" => Ok(false),
            "extensive" => Ok(true),
            _ => bail!("{}: basic or extensive", self.said("metrics")),
        }
    }

    fn list(&self, name: &str) -> Vec<String> {
        let parts = self.get(name).split(',').map(str::trim);
        parts
            .filter(|part| !part.is_empty())
            .map(ToString::to_string)
            .collect()
    }

    fn urls(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let urls: Vec<String> = self
            .get(name)
            .split(',')
            .map(|url| url.trim().trim_end_matches('/').to_string())
            .collect();
        for url in &urls {
            check_url(url).with_context(|| self.said(name))?;
        }
        Ok(urls)
    }

    /// The URLs, or those listened on, by a name that others can use.
    fn urls_or(&self, name: &str, listen: &[String]) -> anyhow::Result<Vec<String>> {
        if !self.get(name).is_empty() {
            return self.urls(name);
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() {
            "localhost"
        } else {
            host.trim()
        };
        Ok(listen
            .iter()
            .map(|url| {
                url.replace("://0.0.0.0:", &format!("://{host}:"))
                    .replace("://[::]:", &format!("://{host}:"))
            })
            .collect())
    }

    fn initial_cluster(&self, name: &str, own: &[String]) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        if self.get("initial-cluster").is_empty() {
            return Ok(BTreeMap::from([(name.to_string(), own.to_vec())]));
        }
        let members = parse_initial_cluster(self.get("initial-cluster"))
            .with_context(|| self.said("initial-cluster"))?;
        if !members.contains_key(name) {
            bail!(
                "{}: this member, --name {name:?}, is not in it",
                self.said("initial-cluster")
            );
        }
        Ok(members)
    }

    fn duration(&self, name: &str) -> anyhow::Result<Duration> {
        let text = self.get(name);
        match text.parse::<u64>() {
            Ok(milliseconds) => Ok(Duration::from_millis(milliseconds)),
            Err(_) => humantime::parse_duration(text)
                .with_context(|| format!("{}: milliseconds, or such as 500ms or 2s", self.said(name))),
        }
    }

    fn number(&self, name: &str, least: u64) -> anyhow::Result<u64> {
        let text = self.get(name);
        let size = text.parse::<bytesize::ByteSize>().map(|size| size.as_u64());
        match size {
            Ok(number) if number >= least => Ok(number),
            _ => bail!("{}: must be a number, {least} or more", self.said(name)),
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

/// Reads `--initial-cluster`.
pub fn parse_initial_cluster(text: &str) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for member in text.split(',') {
        let said = || format!("{member:?} is not name=url");
        let (name, url) = member.split_once('=').with_context(said)?;
        let url = url.trim().trim_end_matches('/');
        check_url(url).with_context(said)?;
        members
            .entry(name.trim().to_string())
            .or_default()
            .push(url.to_string());
    }
    Ok(members)
}

/// The members in order, as members compare what they were started with.
pub fn initial_cluster_text(members: &BTreeMap<String, Vec<String>>) -> String {
    let members: Vec<String> = members
        .iter()
        .map(|(name, urls)| format!("{name}={}", urls.join(";")))
        .collect();
    members.join(",")
}

fn check_url(url: &str) -> anyhow::Result<()> {
    let Some((scheme, address)) = url.split_once("://") else {
        bail!("{url:?} is not http://host:port or https://host:port")
    };
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .map(|(_, port)| port.parse::<u16>());
    match (scheme, port) {
        ("http" | "https", Some(Ok(_))) => Ok(()),
        _ => bail!("{url:?} is not http://host:port or https://host:port"),
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

/// The setting that was meant, if one is close.
fn suggestion(key: &str) -> String {
    let common = |name: &str| name.chars().zip(key.chars()).take_while(|(a, b)| a == b).count();
    let closest = SETTINGS
        .iter()
        .max_by_key(|setting| common(setting.name))
        .filter(|setting| common(setting.name) >= 3);
    closest
        .map(|setting| format!(": is {:?} meant?", setting.name))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn gather(arguments_given: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Values> {
        let command = arguments(Command::new("serve"));
        let matches = command.try_get_matches_from([&["serve"], arguments_given].concat())?;
        let get = |name: &str| {
            environment
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_string())
        };
        Values::gather(&matches, &get)
    }

    pub fn refusal(arguments_given: &[&str]) -> String {
        let result = gather(arguments_given, &[]).and_then(|values| values.config());
        format!("{:#}", result.expect_err("must be refused"))
    }

    #[test]
    fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(
            file.path(),
            "name = \"f\"\nmax-txn-ops = 7\nheartbeat-interval = \"20ms\"\n",
        )
        .expect("written");
        let path = file.path().to_string_lossy().into_owned();
        let environment = [
            ("ETCD_NAME", "etcd"),
            ("PONTOON_NAME", "env"),
            ("ETCD_MAX_TXN_OPS", "9"),
        ];
        let values = gather(&["--config-file", &path, "--name", "flag"], &environment).expect("gathered");
        assert_eq!(values.get("name"), "flag");
        assert_eq!(values.get("max-txn-ops"), "9");
        assert_eq!(
            values.config().expect("valid").heartbeat_interval,
            Duration::from_millis(20)
        );
        let printed = values.to_string();
        for origin in [
            "# flag",
            "# env ETCD_MAX_TXN_OPS",
            &format!("# {path}:3"),
            "# default",
        ] {
            assert!(printed.contains(origin), "{origin} in {printed}");
        }
        assert_eq!(gather(&[], &environment).expect("gathered").get("name"), "env");
    }

    #[test]
    fn an_unknown_setting_in_the_file_is_an_error_with_its_line() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "\nheartbeat-intervall = 1\n").expect("written");
        let error = gather(&["--config-file", &file.path().to_string_lossy()], &[])
            .err()
            .expect("refused")
            .to_string();
        assert!(
            error.contains(":2: unknown setting") && error.contains("heartbeat-interval\" meant"),
            "{error}"
        );
    }

    #[test]
    fn bad_values_name_the_flag_the_value_and_what_is_allowed() {
        for (arguments_given, expected) in [
            (
                &["--election-timeout", "300"][..],
                "--election-timeout \"300\" (flag): must be at least 5 times",
            ),
            (
                &["--initial-cluster", "a=http://h:1"],
                "this member, --name \"default\", is not in it",
            ),
            (&["--listen-client-urls", "localhost"], "is not http://host:port"),
            (
                &["--listen-peer-urls", "https://h:1"],
                "needs --peer-cert-file and --peer-key-file, or --peer-auto-tls",
            ),
            (&["--initial-cluster-state", "old"], "new or existing"),
            (&["--max-txn-ops", "0"], "must be a number, 1 or more"),
            (
                &["--heartbeat-interval", "soon"],
                "milliseconds, or such as 500ms",
            ),
            (
                &["--cert-file", "x"],
                "no URL that is listened on begins with https://",
            ),
        ] {
            let error = refusal(arguments_given);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_kept_is_read_as_etcd_does() {
        let hour = Duration::from_secs(3600);
        for (mode, text, expected) in [
            ("periodic", "0", None),
            ("periodic", "1", Some(Retention::Period(hour))),
            ("periodic", "1h", Some(Retention::Period(hour))),
            ("periodic", "30m", Some(Retention::Period(hour / 2))),
            ("revision", "0", None),
            (
                "revision",
                "1000",
                Some(Retention::Revisions {
                    keep: 1000,
                    every: hour / 12,
                }),
            ),
        ] {
            let given = [
                "--auto-compaction-mode",
                mode,
                "--auto-compaction-retention",
                text,
            ];
            let config = gather(&given, &[]).and_then(|values| values.config());
            assert_eq!(config.expect("valid").auto_compaction, expected, "{mode} {text}");
        }
        assert!(refusal(&["--auto-compaction-mode", "hourly"]).contains("periodic or revision"));
        assert!(refusal(&["--auto-compaction-retention", "soon"]).contains("hours, or such as 30m"));
    }

    #[test]
    fn what_etcd_once_called_experimental_is_known_by_that_name_too() {
        let values = gather(
            &["--experimental-corrupt-check-time", "10m"],
            &[("ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK", "true")],
        );
        let config = values.and_then(|values| values.config()).expect("valid");
        assert_eq!(config.corrupt_check_time, Some(Duration::from_secs(600)));
        assert!(config.initial_corrupt_check);
    }

    #[test]
    fn the_quota_is_read_as_etcd_does() {
        for (text, expected) in [
            ("0", Some(2 << 30)),
            ("-1", None),
            ("8589934592", Some(8 << 30)),
            ("8GiB", Some(8 << 30)),
        ] {
            let values = gather(&[&format!("--quota-backend-bytes={text}")], &[]).expect("gathered");
            assert_eq!(values.config().expect("valid").quota_bytes, expected, "{text}");
        }
        assert!(refusal(&["--quota-backend-bytes=-x"]).contains("--quota-backend-bytes"));
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let values = gather(&["--max-wals", "5", "--enable-v2"], &[]).expect("gathered");
        assert_eq!(values.without_effect().len(), 2);
        assert!(values.config().is_ok());
    }
}
