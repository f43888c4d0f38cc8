//! What people type, and what becomes of it.

use clap::Command;

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

/// What compose files and charts set, without what is served here by the same name, and tested elsewhere.
const OF_ETCD: &[&str] = &[
    "name",
    "data-dir",
    "listen-client-urls",
    "advertise-client-urls",
    "listen-peer-urls",
    "initial-advertise-peer-urls",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "auto-compaction-mode",
    "auto-compaction-retention",
    "quota-backend-bytes",
    "max-request-bytes",
    "max-txn-ops",
    "snapshot-count",
    "heartbeat-interval",
    "election-timeout",
    "log-level",
    "logger",
    "log-outputs",
    "log-format",
    "cert-file",
    "key-file",
    "client-cert-auth",
    "trusted-ca-file",
    "client-crl-file",
    "auto-tls",
    "peer-cert-file",
    "peer-key-file",
    "peer-client-cert-auth",
    "peer-trusted-ca-file",
    "peer-crl-file",
    "peer-auto-tls",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "wal-dir",
    "listen-metrics-urls",
    "metrics",
    "enable-pprof",
    "cors",
    "host-whitelist",
    "auth-token",
    "auth-token-ttl",
    "bcrypt-cost",
    "grpc-keepalive-min-time",
    "grpc-keepalive-interval",
    "grpc-keepalive-timeout",
    "max-concurrent-streams",
    "strict-reconfig-check",
    "pre-vote",
    "initial-election-tick-advance",
    "force-new-cluster",
    "enable-grpc-gateway",
    "watch-progress-notify-interval",
    "experimental-watch-progress-notify-interval",
    "initial-corrupt-check",
    "experimental-initial-corrupt-check",
    "corrupt-check-time",
    "experimental-corrupt-check-time",
    "experimental-compact-hash-check-enabled",
    "experimental-compact-hash-check-time",
    "experimental-enable-lease-checkpoint",
    "experimental-max-learners",
    "max-learners",
    "enable-v2",
    "unsafe-no-fsync",
    "backend-batch-interval",
    "backend-batch-limit",
    "max-snapshots",
    "max-wals",
];

#[test]
fn etcds_flags_are_known_as_flags_and_as_variables() {
    let command = arguments(Command::new("serve"));
    let is_known = |name: &str| {
        command.get_arguments().any(|argument| {
            let aliases = argument.get_all_aliases().unwrap_or_default();
            argument.get_long() == Some(name) || aliases.contains(&name)
        })
    };
    let unknown: Vec<&&str> = OF_ETCD.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let variable = "ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL";
    let values = gather(&[], &[(variable, "3s")]).and_then(|values| values.config());
    assert_eq!(
        values.expect("valid").watch_progress_notify_interval,
        Duration::from_secs(3)
    );
}

#[test]
fn streams_and_pings_of_connections_are_read_as_etcd_does() {
    let connections = |given: &[&str]| {
        let config = gather(given, &[]).and_then(|values| values.config());
        config.expect("valid").connections
    };
    for (text, expected) in [("0", None), ("4294967295", None), ("250", Some(250))] {
        let given = ["--max-concurrent-streams", text];
        assert_eq!(connections(&given).max_streams, expected, "{text}");
    }
    let pings = connections(&["--grpc-keepalive-interval", "2h", "--grpc-keepalive-timeout=5s"]);
    assert_eq!(pings.ping_interval, Duration::from_secs(7200));
    assert_eq!(pings.ping_timeout, Duration::from_secs(5));
    assert!(refusal(&["--max-concurrent-streams", "4294967296"]).contains("--max-concurrent-streams"));
    assert!(refusal(&["--grpc-keepalive-interval", "0"]).contains("more than 0"));
}

#[test]
fn the_last_of_several_wins_and_switches_are_spelled_as_go_does() {
    let given = [
        "--name=a",
        "--name",
        "b",
        "--listen-client-urls",
        "http://a:1",
        "--listen-client-urls=http://b:1",
        "--experimental-max-learners=3",
        "--max-learners",
        "4",
        "--strict-reconfig-check=F",
        "--enable-grpc-gateway",
        "--quota-backend-bytes",
        "-1",
    ];
    let config = gather(&given, &[])
        .and_then(|values| values.config())
        .expect("valid");
    assert_eq!(config.name, "b");
    assert_eq!(config.listen_client_urls, ["http://b:1"]);
    assert_eq!(config.max_learners, 4);
    assert!(!config.strict_reconfig_check && config.http.gateway);
    assert_eq!(config.quota_bytes, None);
    assert!(refusal(&["--name"]).contains("value is required"));
    assert!(refusal(&["--strict-reconfig-check=maybe"]).contains("true or false"));
    assert!(refusal(&["--discovery-endpoints", "http://a:1"]).contains("no discovery service"));
}

#[test]
fn variables_that_look_like_settings_and_are_none_are_told_without_their_values() {
    let variables = [
        "ETCD_NAME",
        "ETCD_CONFIG_FILE",
        "ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK",
        "ETCD_MAX_TXN_OPPS",
        "PONTOON_DATA_DIRECTORY",
        "ETCDCTL_ENDPOINTS",
        "PONTOONCTL_NAME",
        "PATH",
        // What Kubernetes sets where a service is called etcd, and images of etcd.
        "ETCD_SERVICE_HOST",
        "ETCD_SERVICE_PORT_CLIENT",
        "ETCD_PORT",
        "ETCD_PORT_2379_TCP_ADDR",
        "ETCD_CLIENT_PORT_2379_TCP",
        "ETCD_VERSION",
    ];
    let told = unknown_variables(variables.iter().map(ToString::to_string));
    assert_eq!(
        told,
        [
            "environment variable ETCD_MAX_TXN_OPPS: unknown setting: is \"max-txn-ops\" meant?",
            "environment variable PONTOON_DATA_DIRECTORY: unknown setting: is \"data-dir\" meant?",
        ]
    );
}
