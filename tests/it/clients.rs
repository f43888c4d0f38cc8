//! Clients in another language, which nobody here wrote, on three members whose leader is killed while they work:
//! `tests/clients/over_json.py` over the JSON gateway, `tests/clients/over_grpc.py` over gRPC.
//!
//! Their libraries come from Python's package index into `target/clients`; where that can't be done the cases say so
//! and end.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Mutex;

use crate::support::cluster::Cluster;

/// What the scripts use.
const LIBRARIES: [&str; 2] = ["etcd3gw==2.7.0", "aetcd==1.0.0"];
/// How long a script may take in all.
const LIMIT: Duration = Duration::from_secs(180);

/// A Python that has the libraries.
async fn python() -> Option<PathBuf> {
    // Made once, by the case that comes first.
    static MAKING: Mutex<()> = Mutex::const_new(());
    let _making = MAKING.lock().await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients");
    let python = dir.join("bin/python");
    let succeeds = |command: &mut Command| match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(error) => {
            println!("{command:?}: {error}");
            false
        }
    };
    let has_libraries = |python: &Path| {
        python.exists() && succeeds(Command::new(python).args(["-c", "import etcd3gw, aetcd"]))
    };
    if !has_libraries(&python) {
        let made = succeeds(Command::new("python3").args(["-m", "venv"]).arg(&dir))
            && succeeds(
                Command::new(&python)
                    .args(["-m", "pip", "install", "-q", "--no-input", "--timeout", "20"])
                    .args(LIBRARIES),
            );
        if !made || !has_libraries(&python) {
            println!("skipped: Python's client libraries are not to be had here");
            return None;
        }
    }
    Some(python)
}

/// Runs a script to its end; kills the member that it names.
async fn run(script: &str) {
    let Some(python) = python().await else { return };
    let mut cluster = Cluster::start(3).await;
    let urls: Vec<&str> = cluster
        .members
        .iter()
        .map(|member| member.client_url.as_str())
        .collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(script);
    let mut child = tokio::process::Command::new(python)
        .arg(path)
        .arg(urls.join(","))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("Python runs");
    let mut input = child.stdin.take().expect("a pipe");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut said = Vec::new();
    let talk = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if let Some(member) = line.strip_prefix("kill ") {
                cluster.kill(member.parse().expect("a member"));
                input.write_all(b"killed\n").await.expect("it listens");
            }
            said.push(line);
        }
        child.wait().await.expect("it ends")
    };
    let status = tokio::time::timeout(LIMIT, talk).await;
    let status = status.unwrap_or_else(|_| panic!("{script} did not end"));
    assert!(status.success(), "{script}: {status}; it said {said:?}");
    assert_eq!(
        said.last().map(String::as_str),
        Some("done"),
        "{script} said {said:?}"
    );
    assert!(said.iter().any(|line| line.starts_with("kill ")), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd3gw_works_over_the_gateway_while_the_leader_dies() {
    run("over_json.py").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aetcd_works_over_grpc_while_the_leader_dies() {
    run("over_grpc.py").await;
}
