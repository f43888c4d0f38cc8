//! Files as people have them, and what is wrong with them.

use std::time::Duration;

use super::super::tests::gather;
use super::super::{Config, Values};

/// A file of this name, and what becomes of it beside flags and environment.
fn given(name: &str, text: &str, flags: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Values> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("written");
    let path = path.to_string_lossy();
    gather(&[&["--config-file", &path][..], flags].concat(), environment)
}

fn config(name: &str, text: &str) -> Config {
    let config = given(name, text, &[], &[]).and_then(|values| values.config());
    config.unwrap_or_else(|error| panic!("{text}\n{error:#}"))
}

/// What is said about a file, behind its directory.
fn refusal(name: &str, text: &str) -> String {
    let result = given(name, text, &[], &[]).and_then(|values| values.config());
    let error = format!("{:#}", result.expect_err("must be refused"));
    assert!(error.contains(name), "no file is named: {error}");
    error
}

/// Every key of the sample file that etcd's releases come with, with a value as it has.
const SAMPLE: &str = r#"
# A comment.
name: 'default'
data-dir:
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://localhost:2380
listen-client-urls: http://localhost:2379
max-snapshots: 5
max-wals: 5
cors:
initial-advertise-peer-urls: http://localhost:2380
advertise-client-urls: http://localhost:2379
discovery:
discovery-fallback: 'proxy'
discovery-proxy:
discovery-srv:
initial-cluster:
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-v2: true
enable-pprof: true
proxy: 'off'
proxy-failure-wait: 5000
proxy-refresh-interval: 30000
proxy-dial-timeout: 1000
proxy-write-timeout: 5000
proxy-read-timeout: 0
client-transport-security:
  cert-file:
  key-file:
  client-cert-auth: false
  trusted-ca-file:
  auto-tls: false
peer-transport-security:
  cert-file:
  key-file:
  client-cert-auth: false
  trusted-ca-file:
  auto-tls: false
  allowed-cn:
  allowed-hostname:
self-signed-cert-validity: 1
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: "1"
cipher-suites: [
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
]
tls-min-version: 'TLS1.2'
tls-max-version: 'TLS1.3'
"#;

#[test]
fn a_file_with_every_key_of_etcds_sample_is_taken() {
    let values = given("etcd.conf.yml", SAMPLE, &[], &[]).expect("taken");
    let config = values.config().expect("valid");
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir.to_string_lossy(), "default.pontoon");
    assert_eq!(config.snapshot_count, 10_000);
    assert_eq!(config.heartbeat_interval, Duration::from_millis(100));
    assert!(!config.strict_reconfig_check);
    assert_eq!(config.http.cors, ["*"]);
    assert_eq!(values.get("log-level"), "debug");
    assert_eq!(
        values.get("cipher-suites"),
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"
    );
    let warned = values.without_effect();
    assert!(
        warned.iter().any(|line| line.contains("max-wals 5")),
        "{warned:?}"
    );
    assert!(!warned.iter().any(|line| line.contains("wal-dir")), "{warned:?}");
}

#[test]
fn one_setting_is_the_same_in_every_form() {
    let toml = "name = 'n1'\nmax-txn-ops = 7\ncors = ['a', 'b']\npre-vote = true\n\
                [peer-transport-security]\ncert-file = 'p.pem'\n";
    let yaml = "name: n1\nmax-txn-ops: 7\ncors: [a, b]\npre-vote: true\npeer-transport-security:\n  cert-file: p.pem\n";
    let json = "{\n\t\"name\": \"n1\",\n\t\"max-txn-ops\": 7,\n\t\"cors\": [\"a\", \"b\"],\n\t\"pre-vote\": true,\n\
                \t\"peer-transport-security\": {\n\t\t\"cert-file\": \"p.pem\"\n\t}\n}\n";
    for (name, text) in [
        ("a.toml", toml),
        ("a.yaml", yaml),
        ("a.yml", yaml),
        ("a.json", json),
        ("toml", toml),
        ("yaml", yaml),
        ("json", json),
        ("etcd.conf", json),
    ] {
        let values = given(name, text, &[], &[]).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        for (setting, expected) in [
            ("name", "n1"),
            ("max-txn-ops", "7"),
            ("cors", "a,b"),
            ("pre-vote", "true"),
            ("peer-cert-file", "p.pem"),
        ] {
            assert_eq!(values.get(setting), expected, "{setting} in {name}");
        }
    }
    for name in ["a.toml", "a.yaml", "empty"] {
        assert_eq!(config(name, "# nothing yet\n").name, "default", "{name}");
    }
}

#[test]
fn a_number_is_what_it_is_in_etcds_form() {
    let yaml = config(
        "a.yaml",
        "heartbeat-interval: 50\nelection-timeout: 500\ngrpc-keepalive-timeout: 3000000000\ncorrupt-check-time: 0\n\
         watch-progress-notify-interval: 5s\nauto-compaction-retention: 2\n",
    );
    assert_eq!(yaml.heartbeat_interval, Duration::from_millis(50));
    assert_eq!(yaml.election_timeout, Duration::from_millis(500));
    assert_eq!(yaml.connections.ping_timeout, Duration::from_secs(3));
    assert_eq!(yaml.corrupt_check_time, None);
    assert_eq!(yaml.watch_progress_notify_interval, Duration::from_secs(5));
    let toml = config("a.toml", "grpc-keepalive-timeout = 3000\n");
    assert_eq!(toml.connections.ping_timeout, Duration::from_secs(3));
    let said = refusal("a.json", "{\"grpc-keepalive-timeout\": 3000}");
    assert!(
        said.contains("grpc-keepalive-timeout") && said.contains("nanoseconds"),
        "{said}"
    );
}

#[test]
fn flags_and_environment_win_over_a_file_of_any_form() {
    let environment = [
        ("ETCD_NAME", "env"),
        ("ETCD_DATA_DIR", ""),
        ("ETCD_MAX_TXN_OPS", "9"),
    ];
    let text = "name: file\ndata-dir: here\nmax-txn-ops: 1\nmax-learners: 2\n";
    let values = given("a.yml", text, &["--max-txn-ops", "8"], &environment).expect("taken");
    let config = values.config().expect("valid");
    assert_eq!(
        (config.name.as_str(), config.max_txn_ops, config.max_learners),
        ("env", 8, 2)
    );
    // A variable without a value is not set.
    assert_eq!(config.data_dir.to_string_lossy(), "here");
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("etcd.yml");
    std::fs::write(&path, "name: n7\n").expect("written");
    for variable in ["ETCD_CONFIG_FILE", "PONTOON_CONFIG_FILE"] {
        let values = gather(&[], &[(variable, &path.to_string_lossy())]).expect("gathered");
        assert_eq!(values.get("name"), "n7", "{variable}");
    }
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_line() {
    for (name, text, said) in [
        (
            "a.yml",
            "name: a\nmax-txn-opps: 1\n",
            "a.yml:2: unknown setting \"max-txn-opps\": is \"max-txn-ops\" meant?",
        ),
        (
            "a.yml",
            "client-transport-security:\n  cert-file: x\npeer-transport-security:\n  cert-fil: y\n",
            "a.yml:4: unknown setting \"peer-transport-security: cert-fil\": is \"peer-cert-file\" meant?",
        ),
        ("a.yml", "\nname: a\nname: b\n", "line 3"),
        (
            "a.yml",
            "auto-tls: false\nclient-transport-security: {auto-tls: true}\n",
            "is set already, at ",
        ),
        ("a.yml", "name: [a\n", "line "),
        (
            "a.yml",
            "- name\n",
            "line 1: expected settings, such as `name: n1`",
        ),
        ("a.yml", "name: a\n---\nname: b\n", "a second document begins"),
        (
            "a.yml",
            "name:\n  first: a\n",
            "a.yml:1: \"name\": expected a value, or a list of values",
        ),
        (
            "a.yml",
            "peer-transport-security: yes\n",
            "\"peer-transport-security\" is a section",
        ),
        ("a.yml", "max-txn-ops: many\n", "--max-txn-ops \"many\" ("),
        (
            "a.yml",
            "\n\nclient-transport-security:\n  client-cert-auth: maybe\n",
            "a.yml:4): true or false",
        ),
        (
            "a.json",
            "{\"name\": \"a\",\n\"heartbeat-interval\": true}",
            "a.json:2): milliseconds, or such as 500ms",
        ),
        ("a.json", "{\"name\": \"a\"", "line "),
        ("a.toml", "name: a\n", "TOML parse error at line 1"),
        ("a.toml", "[name]\nfirst = 1\n", "expected a value"),
        ("conf", "a b c\n", "neither TOML, YAML nor JSON"),
        (
            "a.yml",
            "discovery: https://discovery.example/1\n",
            "there is no discovery service here",
        ),
        (
            "a.yml",
            "client-transport-security:\n  allowed-cn: [a]\n",
            "clients are let in by authority",
        ),
        (
            "a.yml",
            "listen-client-http-urls: http://a:1\n",
            "HTTP and gRPC are served on one port",
        ),
    ] {
        let error = refusal(name, text);
        assert!(error.contains(said), "{text}\n{said:?} is not in {error:?}");
    }
    let error = gather(&["--config-file", "/nowhere/a.yml"], &[])
        .err()
        .expect("refused");
    assert!(
        format!("{error:#}").contains("--config-file /nowhere/a.yml: "),
        "{error:#}"
    );
}
