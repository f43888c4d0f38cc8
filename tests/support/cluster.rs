//! A cluster of real processes on loopback, and everything that can be done to it.
//!
//! Every member has a data directory, a log file and a faulty proxy in front of its peer port; the peers know it by
//! the proxy's address. Dropping the cluster kills its processes; if the test is failing it first shows the end of
//! each member's log. One cluster runs at a time: elections want an idle machine.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use pontoon::pb::etcdserverpb::cluster_client::ClusterClient;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::{MemberListRequest, MemberListResponse, StatusRequest, StatusResponse};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use super::process::{await_exit, free_port, freeze, kill_and_reap, signal, spawn_logged, tail, wait_for};
use super::proxy::{Link, Proxy};
use super::rpc::{Client, channel};

/// How long a cluster may take to become ready, and a member to come back: generous, as machines may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The built server.
pub const BINARY: &str = env!("CARGO_BIN_EXE_pontoon");

/// The machine, held by one test at a time.
pub async fn machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::const_new(());
    MACHINE.lock().await
}

/// One member: where it lives and, while it runs, its process.
pub struct Member {
    pub name: String,
    pub client_url: String,
    /// Where the peers find it: its proxy.
    pub peer_url: String,
    /// Where it really listens for peers.
    pub listen_peer_url: String,
    dir: PathBuf,
    /// Flags by which it finds its cluster.
    finds: Vec<String>,
    child: Option<Child>,
    proxy: Proxy,
}

impl Member {
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}

/// A running cluster.
pub struct Cluster {
    pub members: Vec<Member>,
    token: String,
    flags: Vec<String>,
    dir: TempDir,
    _machine: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts a cluster of `size` members and waits until every one of them serves.
    pub async fn start(size: usize) -> Cluster {
        Cluster::start_with(size, &[]).await
    }

    /// The same, with more flags for each member.
    pub async fn start_with(size: usize, flags: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepare(size, flags).await;
        for member in 0..size {
            cluster.spawn(member);
        }
        cluster.await_ready().await;
        cluster
    }

    /// Chooses addresses and directories; starts nothing yet.
    pub async fn prepare(size: usize, flags: &[&str]) -> Cluster {
        let machine = machine().await;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut members = Vec::new();
        for number in 1..=size {
            members.push(Member::prepare(number, dir.path()).await);
        }
        let mut cluster = Cluster {
            token: format!("test-{}-{}", std::process::id(), free_port()),
            members,
            flags: flags.iter().map(ToString::to_string).collect(),
            dir,
            _machine: machine,
        };
        let all = cluster.initial_cluster();
        for member in 0..size {
            cluster.set_finds(member, &["--initial-cluster", &all]);
        }
        cluster
    }

    /// `--initial-cluster` with all members as they are now.
    pub fn initial_cluster(&self) -> String {
        let members = self.members.iter();
        let urls: Vec<String> = members.map(|m| format!("{}={}", m.name, m.peer_url)).collect();
        urls.join(",")
    }

    /// One more member, with addresses and a directory; it knows no cluster yet.
    pub async fn one_more(&mut self) -> usize {
        let member = Member::prepare(self.members.len() + 1, self.dir.path()).await;
        self.members.push(member);
        self.members.len() - 1
    }

    /// How a member finds its cluster, from its next start on.
    pub fn set_finds(&mut self, member: usize, flags: &[&str]) {
        self.members[member].finds = flags.iter().map(ToString::to_string).collect();
    }

    /// Flags of every member, from its next start on.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(ToString::to_string).collect();
    }

    /// A stopped member will be at other addresses, and keep its data.
    pub async fn relocate(&mut self, member: usize) {
        let member = &mut self.members[member];
        assert!(member.child.is_none(), "{} still runs", member.name);
        let elsewhere = Member::at_free_ports(member.name.clone(), member.dir.clone()).await;
        let finds = std::mem::take(&mut member.finds);
        *member = Member { finds, ..elsewhere };
    }

    /// A directory that goes with the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The command that runs a member: the same at every start.
    pub fn command(&self, member: usize) -> Command {
        let member = &self.members[member];
        let mut command = Command::new(BINARY);
        command
            .arg("serve")
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(member.data_dir());
        command.args(["--listen-client-urls", &member.client_url]);
        command.args(["--advertise-client-urls", &member.client_url]);
        command.args(["--listen-peer-urls", &member.listen_peer_url]);
        command.args(["--initial-advertise-peer-urls", &member.peer_url]);
        command.args(&member.finds);
        command.args(["--initial-cluster-token", &self.token]);
        command.args(&self.flags);
        if !self.flags.iter().any(|flag| flag == "--founding-wait") {
            command.args(["--founding-wait", "0"]);
        }
        command
    }

    /// Starts a member's process; doesn't wait for it to serve.
    pub fn spawn(&mut self, member: usize) {
        let mut command = self.command(member);
        let member = &mut self.members[member];
        assert!(member.child.is_none(), "{} runs already", member.name);
        member.child = Some(spawn_logged(&mut command, &member.log_file()));
    }

    /// Starts a member that was down, and waits until it serves.
    pub async fn restart(&mut self, member: usize) {
        self.spawn(member);
        self.await_serving(member).await;
    }

    /// kill -9.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].child.take() {
            kill_and_reap(&mut child);
        }
    }

    /// SIGTERM; returns how the process ended.
    pub async fn terminate(&mut self, member: usize) -> ExitStatus {
        let mut child = self.members[member].child.take().expect("the member runs");
        signal(&child, "TERM");
        let ended = tokio::time::timeout(PATIENCE, await_exit(&mut child)).await;
        kill_and_reap(&mut child);
        ended.expect("the member ends when told to")
    }

    /// SIGSTOP: the process stands still and doesn't know it.
    pub fn pause(&self, member: usize) {
        freeze(self.members[member].child.as_ref().expect("the member runs"));
    }

    /// SIGCONT.
    pub fn resume(&self, member: usize) {
        signal(
            self.members[member].child.as_ref().expect("the member runs"),
            "CONT",
        );
    }

    /// Loses a stopped member's disk.
    pub fn wipe(&self, member: usize) {
        let member = &self.members[member];
        assert!(member.child.is_none(), "{} still runs", member.name);
        std::fs::remove_dir_all(member.data_dir()).expect("the data directory can be removed");
    }

    /// What the others can send to a member, from now on.
    pub fn set_link(&self, member: usize, link: Link) {
        self.members[member].proxy.set(link);
    }

    /// Waits until a member's process has ended by itself.
    pub async fn ends(&mut self, member: usize) -> ExitStatus {
        let mut child = self.members[member].child.take().expect("the member runs");
        let ended = tokio::time::timeout(PATIENCE, await_exit(&mut child)).await;
        kill_and_reap(&mut child);
        ended.expect("the member ends by itself")
    }

    /// Whether a member's process has ended by itself.
    pub fn has_ended(&mut self, member: usize) -> Option<ExitStatus> {
        self.members[member]
            .child
            .as_mut()?
            .try_wait()
            .expect("a child can be waited for")
    }

    /// A client of one member.
    pub fn client(&self, member: usize) -> Client {
        Client::new(&self.members[member].client_url)
    }

    /// A member's status, if it answers at once.
    pub async fn status(&self, member: usize) -> Option<StatusResponse> {
        let mut client = MaintenanceClient::new(channel(&self.members[member].client_url));
        let answer = tokio::time::timeout(
            Duration::from_millis(500),
            client.status(StatusRequest::default()),
        );
        answer.await.ok()?.ok().map(tonic::Response::into_inner)
    }

    /// The member list, as one member knows it.
    pub async fn member_list(&self, member: usize) -> Result<MemberListResponse, tonic::Status> {
        let mut client = ClusterClient::new(channel(&self.members[member].client_url));
        Ok(client
            .member_list(MemberListRequest { linearizable: true })
            .await?
            .into_inner())
    }

    /// The member that says of itself that it leads, with the highest term if there are two.
    pub async fn leader_now(&self) -> Option<usize> {
        let mut found = None;
        for member in 0..self.members.len() {
            if !self.members[member].is_running() {
                continue;
            }
            let Some(status) = self.status(member).await else {
                continue;
            };
            let id = status.header.as_ref().map_or(0, |header| header.member_id);
            if status.leader == id && id != 0 {
                found = found.max(Some((status.raft_term, member)));
            }
        }
        found.map(|(_, member)| member)
    }

    /// Waits for a leader.
    pub async fn leader(&self) -> usize {
        wait_for(PATIENCE, "a leader", || self.leader_now()).await
    }

    /// Some member that doesn't lead.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (leader + 1) % self.members.len()
    }

    /// Waits until a member answers a linearizable read.
    pub async fn await_serving(&self, member: usize) {
        let client = self.client(member);
        let what = format!("{} to serve", self.members[member].name);
        wait_for(PATIENCE, &what, || {
            let mut client = client.clone();
            async move { client.get("/ready").await.ok() }
        })
        .await;
    }

    /// Waits until every running member serves.
    pub async fn await_ready(&self) {
        for member in 0..self.members.len() {
            if self.members[member].is_running() {
                self.await_serving(member).await;
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                kill_and_reap(&mut child);
            }
            if std::thread::panicking() {
                eprintln!(
                    "--- end of the log of {}:\n{}",
                    member.name,
                    tail(&member.log_file())
                );
            }
        }
    }
}

impl Member {
    async fn prepare(number: usize, parent: &Path) -> Member {
        let name = format!("n{number}");
        let dir = parent.join(&name);
        std::fs::create_dir(&dir).expect("the member's directory can be made");
        Member::at_free_ports(name, dir).await
    }

    async fn at_free_ports(name: String, dir: PathBuf) -> Member {
        let listen_port = free_port();
        let proxy = Proxy::start(listen_port).await;
        Member {
            client_url: format!("http://127.0.0.1:{}", free_port()),
            peer_url: format!("http://127.0.0.1:{}", proxy.port()),
            listen_peer_url: format!("http://127.0.0.1:{listen_port}"),
            name,
            dir,
            finds: Vec::new(),
            child: None,
            proxy,
        }
    }
}
