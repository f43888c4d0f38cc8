//! Every setting: its name, what it is by default, and what it does.

use clap::{Arg, ArgAction, Command};

/// What a setting does in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// What it says.
    Served,
    /// Accepted, as compose files set it; nothing yet.
    NoneYet,
    /// Refused, if it asks for anything: to ignore it would do harm. Why, and what to do instead.
    Refused(&'static str),
}

/// One setting.
pub struct Setting {
    /// As a flag, without the dashes.
    pub name: &'static str,
    /// As text.
    pub default: &'static str,
    /// What it does, for `--help`.
    pub help: &'static str,
    /// Whether it does that.
    pub effect: Effect,
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

const fn refused(name: &'static str, why: &'static str) -> Setting {
    Setting {
        name,
        default: "",
        help: "Not served",
        effect: Effect::Refused(why),
    }
}

/// Why there is no discovery service.
const NO_DISCOVERY: &str = "there is no discovery service here: name the members with --initial-cluster, or let DNS \
                            name them with --discovery-srv";
/// Why a client's common name is no reason to let it in.
const NO_CLIENT_NAMES: &str = "clients are let in by authority, --trusted-ca-file, and by host, \
                               --client-cert-allowed-hostname; their names are users, if access control is on";

/// All of them, in the order of `--help`.
pub const SETTINGS: &[Setting] = &[
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
        "discovery-srv",
        "",
        "Domain whose SRV records name all members' peer URLs, instead of --initial-cluster",
    ),
    served(
        "discovery-srv-name",
        "",
        "Which cluster of that domain: the records of _etcd-server-NAME, _etcd-server-ssl-NAME",
    ),
    served(
        "discovery-nameserver",
        "",
        "Name servers to ask for them, as 10.0.0.2 or 127.0.0.1:8600, comma-separated [default: those of the system]",
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
        "enable-web-page",
        "true",
        "Serve the page at / of the client port, by which the cluster is watched",
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
    none_yet("bootstrap-defrag-threshold-megabytes"),
    none_yet("compaction-sleep-interval"),
    none_yet("client-cert-file"),
    none_yet("client-key-file"),
    none_yet("client-skip-client-san-verification"),
    none_yet("peer-client-cert-file"),
    none_yet("peer-client-key-file"),
    none_yet("debug"),
    none_yet("discovery-fallback"),
    none_yet("discovery-proxy"),
    none_yet("distributed-tracing-address"),
    none_yet("distributed-tracing-instance-id"),
    none_yet("distributed-tracing-sampling-rate"),
    none_yet("distributed-tracing-service-name"),
    none_yet("downgrade-check-time"),
    none_yet("enable-distributed-tracing"),
    none_yet("enable-log-rotation"),
    none_yet("feature-gates"),
    none_yet("log-output"),
    none_yet("log-package-levels"),
    none_yet("log-rotation-config-json"),
    none_yet("memory-mlock"),
    none_yet("proxy-dial-timeout"),
    none_yet("proxy-failure-wait"),
    none_yet("proxy-read-timeout"),
    none_yet("proxy-refresh-interval"),
    none_yet("proxy-write-timeout"),
    none_yet("raft-read-timeout"),
    none_yet("raft-write-timeout"),
    none_yet("self-signed-cert-validity"),
    none_yet("socket-reuse-address"),
    none_yet("socket-reuse-port"),
    none_yet("stop-grpc-service-on-defrag"),
    none_yet("txn-mode-write-with-shared-buffer"),
    none_yet("v2-deprecation"),
    none_yet("warning-apply-duration"),
    none_yet("warning-unary-request-duration"),
    refused("client-cert-allowed-cn", NO_CLIENT_NAMES),
    refused("discovery", NO_DISCOVERY),
    refused("discovery-config", NO_DISCOVERY),
    refused("discovery-endpoints", NO_DISCOVERY),
    refused("discovery-token", NO_DISCOVERY),
    refused("enable-v2v3", "API v2 is not served"),
    refused(
        "listen-client-http-urls",
        "HTTP and gRPC are served on one port, that of --listen-client-urls",
    ),
    refused("proxy", "API v2 is not served, and so has no proxy"),
];

/// Settings that etcd once spelled with `experimental-`, as compose files still do.
const ONCE_EXPERIMENTAL: &[&str] = &[
    "backend-bbolt-freelist-type",
    "bootstrap-defrag-threshold-megabytes",
    "compact-hash-check-enabled",
    "compact-hash-check-time",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "distributed-tracing-address",
    "distributed-tracing-instance-id",
    "distributed-tracing-sampling-rate",
    "distributed-tracing-service-name",
    "downgrade-check-time",
    "enable-distributed-tracing",
    "enable-lease-checkpoint",
    "enable-lease-checkpoint-persist",
    "enable-v2v3",
    "initial-corrupt-check",
    "max-learners",
    "memory-mlock",
    "peer-skip-client-san-verification",
    "snapshot-catchup-entries",
    "stop-grpc-service-on-defrag",
    "txn-mode-write-with-shared-buffer",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "watch-progress-notify-interval",
];

/// The names of a setting, the usual one first.
pub fn spellings(name: &str) -> impl Iterator<Item = String> {
    let once = ONCE_EXPERIMENTAL
        .contains(&name)
        .then(|| format!("experimental-{name}"));
    std::iter::once(name.to_string()).chain(once)
}

/// The setting of this name, in any of its spellings.
pub fn find(name: &str) -> Option<&'static Setting> {
    let is_it = |setting: &&Setting| spellings(setting.name).any(|spelling| spelling == name);
    SETTINGS.iter().find(is_it)
}

/// The arguments of `pontoon serve`, added to a command. As Go's flags have it, the last of several wins.
pub fn arguments(command: Command) -> Command {
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let file = Arg::new("config-file")
        .long("config-file")
        .value_name("FILE")
        .help("Settings in TOML, or in YAML or JSON as etcd has them");
    let print = switch("print-config").help("Print each setting and where it came from, and exit");
    let version = switch("version").help("Print the versions, and exit");
    command
        .args(SETTINGS.iter().map(argument))
        .args([file, print, version])
        .args_override_self(true)
}

fn argument(setting: &Setting) -> Arg {
    let help = match setting.default {
        "" => setting.help.to_string(),
        default => format!("{} [default: {default}]", setting.help),
    };
    let argument = Arg::new(setting.name)
        .long(setting.name)
        .aliases(spellings(setting.name).skip(1))
        .value_name("VALUE")
        .help(help)
        .hide(setting.effect != Effect::Served)
        .allow_negative_numbers(true)
        .action(ArgAction::Set);
    let may_be_alone = matches!(setting.default, "true" | "false") || setting.effect != Effect::Served;
    match may_be_alone {
        // `--flag` alone means true, as etcd has it.
        true => argument.num_args(0..=1).default_missing_value("true"),
        false => argument,
    }
}

/// The setting that was meant, if one is close.
pub fn suggestion(key: &str) -> String {
    let common = |name: &str| name.chars().zip(key.chars()).take_while(|(a, b)| a == b).count();
    let closest = SETTINGS
        .iter()
        .max_by_key(|setting| common(setting.name))
        .filter(|setting| common(setting.name) >= 3);
    closest
        .map(|setting| format!(": is {:?} meant?", setting.name))
        .unwrap_or_default()
}
