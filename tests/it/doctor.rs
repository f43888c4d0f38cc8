//! `pontoon doctor` and `pontoon explain`: what is wrong, and what to do.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::cluster::{BINARY, Cluster, PATIENCE};
use crate::support::etcd::Etcd;
use crate::support::process::{free_port, wait_for};

fn pontoon(endpoints: &str, args: &[&str]) -> Output {
    Command::new(BINARY)
        .args(args)
        .args(["--endpoints", endpoints])
        .env_remove("ETCDCTL_ENDPOINTS")
        .output()
        .expect("pontoon runs")
}

/// By check: verdict, what was found and what to do.
type Findings = BTreeMap<String, (String, String, String)>;

/// What is found, and the exit code.
fn doctor(endpoints: &str, args: &[&str]) -> (Findings, Option<i32>) {
    let args = [&["doctor", "-w", "json"][..], args].concat();
    let output = tokio::task::block_in_place(|| pontoon(endpoints, &args));
    let findings: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&output.stderr)));
    let text = |finding: &Value, name: &str| finding[name].as_str().expect("a text").to_string();
    let one = |finding: &Value| {
        let rest = ["verdict", "found", "next"].map(|name| text(finding, name));
        (text(finding, "check"), rest.into())
    };
    let findings = findings.as_array().expect("a list").iter().map(one).collect();
    (findings, output.status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_well_is_told_from_one_that_loses_members() {
    let mut cluster = Cluster::start(3).await;
    let endpoint = cluster.members[0].client_url.clone();
    let dir = cluster.dir().join("new");
    let (findings, code) = doctor(&endpoint, &[]);
    for check in [
        "quorum", "reach", "leader", "lag", "alarms", "versions", "clocks", "open",
    ] {
        assert_eq!(findings[check].0, "ok", "{findings:#?}");
    }
    assert!(
        findings.contains_key("files") && findings.contains_key("syncs"),
        "{findings:#?}"
    );
    let version = format!("all run pontoon {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(findings["versions"].1, version);
    assert_eq!(code, Some(0), "{findings:#?}");

    // How fast the disk is nobody knows, but it was tried, and nothing is left of that.
    let (findings, _) = doctor(&endpoint, &["--data-dir", &dir.to_string_lossy()]);
    assert!(
        findings["disk"].1.contains("99 of 100 take at most"),
        "{findings:#?}"
    );
    assert!(
        findings["space"].1.contains("free") && !dir.exists(),
        "{findings:#?}"
    );

    cluster.kill(2);
    let (findings, code) = doctor(&endpoint, &[]);
    assert_eq!(findings["quorum"].0, "warn", "{findings:#?}");
    assert!(
        findings["quorum"].1.contains("none of them may be lost"),
        "{findings:#?}"
    );
    assert!(findings["reach"].1.contains("n3"), "{findings:#?}");
    assert_eq!(code, Some(0));
    cluster.kill(1);
    let (findings, code) = doctor(&endpoint, &["--command-timeout", "2s"]);
    assert_eq!(findings["quorum"].0, "fail", "{findings:#?}");
    assert_eq!(code, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_without_a_member_is_told_from_one_with_something_else() {
    let free = format!("127.0.0.1:{}", free_port());
    let (findings, code) = doctor(&free, &[]);
    assert!(findings["reach"].1.contains("the port is free"), "{findings:#?}");
    assert!(findings["reach"].2.contains("pontoon serve"), "{findings:#?}");
    assert_eq!(code, Some(1));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let (findings, _) = doctor(&address, &["--command-timeout", "1s"]);
    assert!(
        findings["reach"]
            .1
            .contains("something listens, and speaks no etcd"),
        "{findings:#?}"
    );
    let output = tokio::task::block_in_place(|| pontoon(&free, &["doctor"]));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        lines.contains("fail  reach ") && lines.contains("next: "),
        "{lines}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_is_looked_at_as_far_as_it_shows() {
    let Some(binary) = Etcd::find() else {
        return println!("skipped: no etcd on this machine");
    };
    let etcd = Etcd::start(&binary).await;
    let (findings, code) = wait_for(PATIENCE, "a leader", || async {
        let looked = doctor(&etcd.endpoint, &[]);
        (looked.0.get("quorum")?.0 == "ok").then_some(looked)
    })
    .await;
    assert_eq!(findings["versions"].1, format!("all run etcd {}", etcd.version));
    assert_eq!(code, Some(0), "{findings:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_names_the_code_that_explains_it() {
    let cluster = Cluster::start(1).await;
    let endpoint = &cluster.members[0].client_url;
    let refused = tokio::task::block_in_place(|| pontoon(endpoint, &["get", "a", "--rev", "1000"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("What it means: pontoon explain future-revision"),
        "{said}"
    );
    let explain = |args: &[&str]| {
        let output = Command::new(BINARY)
            .arg("explain")
            .args(args)
            .output()
            .expect("pontoon runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let by_code = explain(&["future-revision"]);
    assert_eq!(by_code.0, Some(0));
    for part in [
        "Meaning: ",
        "Usually: ",
        "Next:    ",
        "mvcc: required revision is a future revision (OutOfRange)",
    ] {
        assert!(by_code.1.contains(part), "{}", by_code.1);
    }
    let by_text = explain(&["etcdserver: mvcc: required revision is a future revision"]);
    assert_eq!(by_text, by_code);
    assert!(explain(&[]).1.lines().count() > 50);
    assert_eq!(explain(&["no-such-code"]).0, Some(128));
}
