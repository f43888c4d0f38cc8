//! Three members as child processes, for the examples.
#![allow(dead_code, reason = "no example needs all of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use pontoon::client::Client;
use pontoon::pb::etcdserverpb::RangeRequest;

/// How many there are.
pub const MEMBERS: usize = 3;
const FIRST_PORT: u16 = 24790;

/// Where a member serves clients.
pub fn endpoint(at: usize) -> String {
    format!("127.0.0.1:{}", FIRST_PORT + 10 * at as u16)
}

/// A client of one member.
pub fn client(at: usize) -> anyhow::Result<Client> {
    Ok(Client::new(
        &[endpoint(at)],
        Duration::from_millis(500),
        Duration::from_secs(10),
    )?)
}

/// Three members as child processes.
pub struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    children: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts all of them on blank directories below `dir`.
    pub fn start(binary: PathBuf, dir: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut cluster = Cluster {
            binary,
            dir,
            children: (0..MEMBERS).map(|_| None).collect(),
        };
        (0..MEMBERS).try_for_each(|at| cluster.run(at))?;
        Ok(cluster)
    }

    /// Starts one, on what its directory holds.
    pub fn run(&mut self, at: usize) -> anyhow::Result<()> {
        self.run_on(at, &self.data_dir(at), false)
    }

    /// Starts one on another directory; `alone`, as the only member of its cluster.
    pub fn run_on(&mut self, at: usize, data_dir: &Path, alone: bool) -> anyhow::Result<()> {
        let url = |at: usize, peer: u16| format!("http://127.0.0.1:{}", FIRST_PORT + 10 * at as u16 + peer);
        let members = if alone { at..at + 1 } else { 0..MEMBERS };
        let all: Vec<String> = members.map(|at| format!("n{at}={}", url(at, 1))).collect();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("n{at}.log")))?;
        let child = Command::new(Path::new(&self.binary))
            .args([
                "serve",
                "--name",
                &format!("n{at}"),
                "--initial-cluster",
                &all.join(","),
            ])
            .args([
                "--listen-client-urls",
                &url(at, 0),
                "--listen-peer-urls",
                &url(at, 1),
            ])
            .arg("--data-dir")
            .arg(data_dir)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.children[at] = Some(child);
        Ok(())
    }

    /// Where all of them store, and nothing else does.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where one stores.
    pub fn data_dir(&self, at: usize) -> PathBuf {
        self.dir.join(format!("n{at}"))
    }

    /// Memory that each takes, in bytes.
    pub fn memory(&self) -> anyhow::Result<Vec<u64>> {
        let running = self.children.iter().flatten();
        running
            .map(|child| {
                let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
                let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
                let kib = line.and_then(|line| line.split_whitespace().next());
                Ok(kib.context("no VmRSS")?.parse::<u64>()? << 10)
            })
            .collect()
    }

    /// Whether one that was started has not ended.
    pub fn is_running(&mut self, at: usize) -> anyhow::Result<bool> {
        let ended = self.children[at].as_mut().map(Child::try_wait).transpose()?;
        Ok(matches!(ended, Some(None)))
    }

    /// Waits until each serves linearizable reads.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        for at in 0..MEMBERS {
            let client = client(at)?;
            let probe = || RangeRequest {
                key: Bytes::from_static(b"health"),
                ..RangeRequest::default()
            };
            while client.range(probe()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Which one leads.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        loop {
            for at in 0..MEMBERS {
                if let Ok(status) = client(at)?.status().await
                    && status
                        .header
                        .is_some_and(|header| header.member_id == status.leader)
                {
                    return Ok(at);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills one (SIGKILL), if it runs.
    pub fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        if let Some(mut child) = self.children[at].take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Kills all, and removes what they stored.
    pub fn stop(&mut self) {
        for at in 0..MEMBERS {
            if let Err(error) = self.kill(at) {
                eprintln!("member {at}: {error}");
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("{}: {error}", self.dir.display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            // Gone already, perhaps.
            let _ = child.kill();
        }
    }
}
