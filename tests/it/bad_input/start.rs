//! A member that is started wrongly refuses to, and says why; one that belongs elsewhere disturbs nobody.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{KEPT, is_unharmed, keep, put};
use crate::support::cluster::{BINARY, Cluster, PATIENCE};
use crate::support::process::{free_port, kill_and_reap, spawn_logged, tail, wait_for};
use crate::support::rpc::{Client, Request};

/// A member by itself, to be started wrongly.
pub struct Lone<'a> {
    name: &'a str,
    data_dir: &'a Path,
    client_port: u16,
    peer_port: u16,
    initial_cluster: String,
    token: &'a str,
}

impl<'a> Lone<'a> {
    pub fn new(name: &'a str, data_dir: &'a Path) -> Lone<'a> {
        let peer_port = free_port();
        Lone {
            name,
            data_dir,
            client_port: free_port(),
            peer_port,
            initial_cluster: format!("{name}=http://127.0.0.1:{peer_port}"),
            token: "alone",
        }
    }

    pub fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    pub fn command(&self) -> Command {
        let client = self.client_url();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = Command::new(BINARY);
        command
            .args(["serve", "--name", self.name, "--data-dir"])
            .arg(self.data_dir);
        command.args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ]);
        command.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        command.args([
            "--initial-cluster",
            &self.initial_cluster,
            "--initial-cluster-token",
            self.token,
            "--founding-wait",
            "0",
        ]);
        command
    }

    /// Runs it until it ends by itself, which it must soon; returns how, and what it said.
    async fn refused(&self) -> (ExitStatus, String) {
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = tokio::process::Command::from(command).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, output)
            .await
            .expect("it gives up")
            .expect("it starts");
        let said = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8_lossy(&said).into_owned())
    }

    /// It must refuse to start, saying all of `words`, and without a panic.
    async fn must_refuse(&self, words: &[&str]) {
        let (status, said) = self.refused().await;
        assert!(!status.success(), "it should not have started: {said}");
        assert!(!said.contains("panicked"), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_belongs_to_one_member_and_one_process() {
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    let data_dir = cluster.members[0].data_dir();
    Lone::new("n1", &data_dir)
        .must_refuse(&["in use by another process"])
        .await;
    cluster.kill(0);
    Lone::new("n2", &data_dir)
        .must_refuse(&["belongs to member \"n1\"", "--name is \"n2\""])
        .await;
    cluster.restart(0).await;
    is_unharmed(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_a_newer_format_is_left_alone() {
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    cluster.kill(0);
    let data_dir = cluster.members[0].data_dir();
    let file = data_dir.join("member.toml");
    let text = std::fs::read_to_string(&file).expect("member.toml");
    let newer = text.replace("format = 1", "format = 999");
    assert_ne!(text, newer, "the format is not where this test looks for it");
    std::fs::write(&file, newer).expect("it can be written");
    Lone::new("n1", &data_dir)
        .must_refuse(&["format 999", "newer version"])
        .await;
    std::fs::write(&file, "not toml at all [").expect("it can be written");
    Lone::new("n1", &data_dir)
        .must_refuse(&["member.toml is damaged"])
        .await;
    std::fs::write(&file, text).expect("it can be written");
    cluster.restart(0).await;
    is_unharmed(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let data_dir = dir.path().join("data");
    let member = Lone {
        client_port: port,
        ..Lone::new("n1", &data_dir)
    };
    member
        .must_refuse(&["--listen-client-urls", &format!("127.0.0.1:{port}"), "in use"])
        .await;
    let member = Lone {
        peer_port: port,
        ..Lone::new("n1", &data_dir)
    };
    member
        .must_refuse(&["--listen-peer-urls", &format!("127.0.0.1:{port}"), "in use"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("a file");
    std::fs::write(&file, "").expect("it can be written");
    let data_dir = file.join("data");
    Lone::new("n1", &data_dir)
        .must_refuse(&["--data-dir", &data_dir.display().to_string()])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_at_the_peer_port_is_kept_out() {
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    let before = cluster.member_list(0).await.expect("a member list").members;
    // Says it belongs to a cluster with our member, but has another token.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let data_dir = dir.path().join("data");
    let stranger = Lone::new("n2", &data_dir);
    let initial_cluster = format!("{},n1={}", stranger.initial_cluster, cluster.members[0].peer_url);
    let stranger = Lone {
        initial_cluster,
        token: "another cluster",
        ..stranger
    };
    let mut process = spawn_logged(&mut stranger.command(), &log);
    let what = "the stranger to say why it is alone";
    wait_for(PATIENCE, what, || async {
        tail(&log).contains("not yet in a cluster").then_some(())
    })
    .await;
    let mut client = Client::new(&stranger.client_url());
    let alone = client
        .call_within(Duration::from_secs(2), Request::Put(put("from a stranger")))
        .await;
    assert!(alone.is_err(), "it serves by itself: {alone:?}");
    kill_and_reap(&mut process);
    assert!(!tail(&log).contains("panicked"), "{}", tail(&log));
    assert_eq!(
        cluster.member_list(0).await.expect("a member list").members,
        before
    );
    is_unharmed(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_the_directory_of_another_cluster_joins_neither() {
    let mut cluster = Cluster::start(3).await;
    keep(&cluster).await;
    let victim = cluster.follower().await;
    let name = cluster.members[victim].name.clone();
    // The same name, alone, somewhere else: its directory belongs to another cluster.
    let other = cluster.dir().join("other");
    let lone = Lone::new(&name, &other);
    let mut process = spawn_logged(&mut lone.command(), &cluster.dir().join("other log"));
    let mut client = Client::new(&lone.client_url());
    wait_for(PATIENCE, "the other cluster to serve", || {
        let mut client = client.clone();
        async move { client.put("kept", "elsewhere").await.ok() }
    })
    .await;
    kill_and_reap(&mut process);
    cluster.kill(victim);
    cluster.wipe(victim);
    std::fs::rename(&other, cluster.members[victim].data_dir()).expect("directories can be moved");
    cluster.spawn(victim);
    // It is alone in its own cluster, and leads that; the two others go on without it.
    wait_for(PATIENCE, "it to serve its own cluster", || async {
        let status = cluster.status(victim).await;
        status.filter(|status| status.leader != 0)
    })
    .await;
    let healthy = (victim + 1) % 3;
    let found = cluster.client(healthy).get(KEPT.0).await.expect("a get");
    assert_eq!(found.as_deref(), Some(KEPT.1));
    cluster
        .client(healthy)
        .put("writes", "still work")
        .await
        .expect("a put");
    let ids: Vec<u64> = futures::future::join_all((0..3).map(|member| cluster.status(member)))
        .await
        .into_iter()
        .flatten()
        .map(|status| status.header.expect("a header").cluster_id)
        .collect();
    let have = |id: &u64| ids.iter().filter(|other| *other == id).count();
    assert!(ids.iter().any(|id| have(id) >= 2), "{ids:x?}");
    client = cluster.client(victim);
    if let Ok(Ok(found)) = tokio::time::timeout(Duration::from_secs(3), client.get(KEPT.0)).await {
        assert_eq!(
            found.as_deref(),
            Some("elsewhere"),
            "data of two clusters is mixed"
        );
    }
    let log = std::fs::read_to_string(cluster.members[victim].log_file()).expect("a log");
    assert!(!log.contains("panicked"), "{log}");
}
