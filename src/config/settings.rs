//! Every setting: its name, what it is by default, and what it does.

use clap::{Arg, ArgAction, Command};

/// What a setting does in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// What it says.
    Served,
    /// Accepted, as compose files set it; nothing yet.
    NoneYet,
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
pub fn spellings(name: &str) -> impl Iterator<Item = String> {
    let once = ONCE_EXPERIMENTAL
        .contains(&name)
        .then(|| format!("experimental-{name}"));
    std::iter::once(name.to_string()).chain(once)
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
