//! `pontoon cluster`: a cluster to try and to break, of real processes on this machine.
//!
//! The members are processes of their own, started with the arguments that anybody would give them. This process only
//! stands between them ([`links`]), keeps them ([`member`]), and does to them what it is asked for by the page
//! ([`control`]).

mod control;
mod links;
mod member;
pub mod remote;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, Command};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::links::Links;
use self::member::{Member, State};
use crate::client::Client;
use crate::config::playground::Playground;
use crate::pb::etcdserverpb::{MoveLeaderRequest, RangeRequest};

/// Where the members keep everything, if nothing else is said.
pub const DATA_DIR: &str = "pontoon-cluster";
/// How long the cluster may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// How long a move of the leader may take.
const MOVE: Duration = Duration::from_secs(5);
/// Lines of a member's log that are shown when it dies.
const LAST_LINES: usize = 10;

/// The arguments.
pub fn command() -> Command {
    let nodes = Arg::new("nodes")
        .long("nodes")
        .value_name("N")
        .help("How many members, 1 to 7")
        .default_value("3");
    let dir = Arg::new("data-dir")
        .long("data-dir")
        .value_name("DIR")
        .help("Where the members keep everything");
    let port = Arg::new("base-port")
        .long("base-port")
        .value_name("PORT")
        .help("Clients of member 1; member 2 has 20000 more, as with docker compose; from 30000 on, 10 more")
        .default_value("2379");
    Command::new("cluster")
        .about("Run a whole cluster on this machine, to try it and to break it")
        .arg(nodes.value_parser(clap::value_parser!(u16).range(1..=7)))
        .arg(dir.default_value(DATA_DIR))
        .arg(port.value_parser(clap::value_parser!(u16).range(1..)))
}

/// The members, and all that is between them.
struct Cluster {
    members: Vec<Member>,
    links: Links,
    /// Where the page asks for faults.
    control: SocketAddr,
    token: String,
    /// Members that were started again.
    started: mpsc::UnboundedSender<usize>,
}

/// Starts the members, says what to do next, and stops them at the end.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let nodes = *matches.get_one::<u16>("nodes").context("--nodes")?;
    let base = *matches.get_one::<u16>("base-port").context("--base-port")?;
    let dir = PathBuf::from(matches.get_one::<String>("data-dir").context("--data-dir")?);
    let members: Vec<Member> = (0..nodes)
        .map(|at| Member::new(at, base, &dir))
        .collect::<anyhow::Result<_>>()?;
    check_ports(&members)?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create --data-dir {}", dir.display()))?;
    let (control, listener) = control::listen().await.context("cannot listen on 127.0.0.1")?;
    // By hand, one at a time: it can't fill up.
    let (started, restarts) = mpsc::unbounded_channel();
    let mut cluster = Cluster {
        links: Links::open(&members.iter().map(|member| member.peer_port).collect::<Vec<_>>())
            .context("cannot listen on 127.0.0.1")?,
        members,
        control,
        token: control::new_token(),
        started,
    };
    prepare(&mut cluster);
    let cluster = Arc::new(cluster);
    let mut children = Vec::new();
    for at in 0..cluster.members.len() {
        children.push(Some(cluster.spawn(at)?));
    }
    remote::leave(&dir, &format!("http://{}", cluster.control), &cluster.token)
        .with_context(|| format!("cannot write to {}", dir.display()))?;
    let faults = tokio::spawn(control::serve(cluster.clone(), listener));
    // Taken from now on, so that no member is left behind.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let outcome = tokio::select! {
        outcome = attend(&cluster, &mut children, restarts, &dir) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    faults.abort();
    remote::forget(&dir);
    stop(&cluster, children).await;
    outcome
}

/// Gives the members what each is started with.
fn prepare(cluster: &mut Cluster) {
    let all: Vec<String> = cluster
        .members
        .iter()
        .map(|member| format!("{}={}", member.name, member.peer_url()))
        .collect();
    let urls: Vec<String> = cluster.members.iter().map(Member::peer_url).collect();
    let control = format!("http://{}", cluster.control);
    for (at, member) in cluster.members.iter_mut().enumerate() {
        member.args = arguments(member, &all.join(","));
        let door = |(to, url): (usize, &String)| {
            let door = cluster.links.door(at, to)?;
            Some((url.clone(), format!("http://{door}")))
        };
        let detours = urls.iter().enumerate().filter_map(door).collect();
        member.playground = Playground {
            control: control.clone(),
            detours,
        };
    }
}

fn arguments(member: &Member, all: &str) -> Vec<String> {
    let (client_url, peer_url) = (member.client_url(), member.peer_url());
    let data_dir = member.data_dir.to_string_lossy();
    let pairs: [(&str, &str); 10] = [
        ("--name", &member.name),
        ("--listen-client-urls", &client_url),
        ("--advertise-client-urls", &client_url),
        ("--listen-peer-urls", &peer_url),
        ("--initial-advertise-peer-urls", &peer_url),
        ("--initial-cluster", all),
        ("--initial-cluster-token", "pontoon-cluster"),
        // All its members are started here, and none on ports that another one has.
        ("--founding-wait", "0"),
        ("--log-format", "pretty"),
        ("--data-dir", &data_dir),
    ];
    let pairs = pairs
        .iter()
        .flat_map(|(name, value)| [name.to_string(), value.to_string()]);
    std::iter::once("serve".to_string()).chain(pairs).collect()
}

impl Cluster {
    /// The place of the member of that name.
    fn member(&self, name: &str) -> anyhow::Result<usize> {
        let place = self.members.iter().position(|member| member.name == name);
        place.with_context(|| format!("there is no member {name:?}"))
    }

    fn spawn(&self, at: usize) -> anyhow::Result<Child> {
        let child = self.members[at].start()?;
        self.links.set_running(at, true);
        Ok(child)
    }

    /// Has a member started again.
    fn start(&self, name: &str) -> anyhow::Result<String> {
        let at = self.member(name)?;
        if self.members[at].state().0 != State::Stopped {
            bail!("{name} runs already");
        }
        self.started.send(at).context("the cluster ends")?;
        Ok(format!("{name} starts"))
    }

    /// Asks whoever leads to let this member lead.
    async fn lead(&self, name: &str) -> anyhow::Result<String> {
        let target = &self.members[self.member(name)?];
        let client = |url: String| Client::new(&[url], Duration::from_secs(1), MOVE);
        let status = client(target.client_url())?.status().await?;
        let id =
            |header: Option<crate::pb::etcdserverpb::ResponseHeader>| header.map_or(0, |it| it.member_id);
        let target_id = id(status.header);
        for member in &self.members {
            let asked = client(member.client_url())?;
            let Ok(status) = asked.status().await else {
                continue;
            };
            if status.leader != 0 && status.leader == id(status.header) {
                asked.move_leader(MoveLeaderRequest { target_id }).await?;
                return Ok(format!("{name} leads"));
            }
        }
        bail!("nobody leads")
    }
}

/// Before anything is started, so that a taken port is named instead of met halfway.
fn check_ports(members: &[Member]) -> anyhow::Result<()> {
    for port in members
        .iter()
        .flat_map(|member| [member.client_port, member.peer_port])
    {
        if let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
            bail!("port {port} is not free ({error}): stop what uses it, or choose others with --base-port");
        }
    }
    Ok(())
}

/// Says when the cluster is ready, and from then on when a member dies; starts again those that are to be.
async fn attend(
    cluster: &Cluster,
    children: &mut [Option<Child>],
    mut restarts: mpsc::UnboundedReceiver<usize>,
    dir: &Path,
) -> anyhow::Result<()> {
    let ready = tokio::time::timeout(READY, wait_ready(&cluster.members));
    tokio::select! {
        ready = ready => if ready.is_err() {
            bail!("the cluster was not ready within {READY:?}: see the logs in {}", dir.display());
        },
        (at, status) = next_exit(children) => {
            report(&cluster.members[at], &status);
            bail!("a member did not start");
        }
    }
    banner(cluster, dir);
    let mut any_told = false;
    loop {
        let runs = children.iter().any(Option::is_some);
        tokio::select! {
            (at, status) = next_exit(children), if runs => {
                children[at] = None;
                cluster.links.set_running(at, false);
                match cluster.members[at].ended() {
                    true => any_told = true,
                    false => report(&cluster.members[at], &status),
                }
                if children.iter().all(Option::is_none) && !any_told {
                    bail!("no member is left");
                }
            }
            Some(at) = restarts.recv() => {
                if children[at].is_none() {
                    children[at] = Some(cluster.spawn(at)?);
                }
            }
        }
    }
}

/// Waits for the next of those that run to end.
async fn next_exit(children: &mut [Option<Child>]) -> (usize, String) {
    let running = children
        .iter_mut()
        .enumerate()
        .filter_map(|(at, child)| Some((at, child.as_mut()?)));
    let exits = running.map(|(at, child)| Box::pin(async move { (at, child.wait().await) }));
    let ((at, status), _, _) = futures::future::select_all(exits).await;
    (at, status.map(|status| status.to_string()).unwrap_or_default())
}

async fn wait_ready(members: &[Member]) {
    for member in members {
        let endpoint = format!("127.0.0.1:{}", member.client_port);
        while !answers(&endpoint).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn answers(endpoint: &str) -> bool {
    let second = Duration::from_secs(1);
    let Ok(client) = Client::new(&[endpoint.to_string()], second, second) else {
        return false;
    };
    client
        .range(RangeRequest {
            key: bytes::Bytes::from_static(b"health"),
            ..RangeRequest::default()
        })
        .await
        .is_ok()
}

fn banner(cluster: &Cluster, dir: &Path) {
    let members = &cluster.members;
    println!(
        "A cluster of {} is ready. Everything it keeps is in {}.\n",
        members.len(),
        dir.display()
    );
    for member in members {
        println!(
            "  {}  clients 127.0.0.1:{:<5}  process {}",
            member.name,
            member.client_port,
            member.state().1.unwrap_or(0)
        );
    }
    println!("\nWatch it, and break it, in a browser:");
    println!("  {}/#token={}", members[0].client_url(), cluster.token);
    let ports: Vec<String> = members
        .iter()
        .map(|member| format!("127.0.0.1:{}", member.client_port))
        .collect();
    let last = ports.last().cloned().unwrap_or_default();
    println!("\nIn another terminal:");
    println!("  pontoon put hello world --endpoints {}", ports[0]);
    println!("  pontoon get hello --endpoints {last}");
    println!(
        "  pontoon endpoint status -w table --endpoints {}",
        ports.join(",")
    );
    println!(
        "  pontoon top --cluster {} --endpoints {}",
        dir.display(),
        ports.join(",")
    );
    println!("  pontoon events --follow --endpoints {}", ports.join(","));
    println!(
        "  kill -9 $(cat {})      one member dies; the others carry on",
        members[0].pid.display()
    );
    println!("\nCtrl-C stops all of it; the same command starts it again.");
}

fn report(member: &Member, status: &str) {
    eprintln!(
        "\n{} stopped ({status}). Its last words, from {}:",
        member.name,
        member.log.display()
    );
    let log = std::fs::read(&member.log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
        eprintln!("  {line}");
    }
    eprintln!("The others carry on while they are a majority. The page can start it again.");
}

async fn stop(cluster: &Cluster, mut children: Vec<Option<Child>>) {
    // All at once: the last one could not hand over to anybody, and need not try.
    let running = children.iter_mut().enumerate();
    let running = running.filter_map(|(at, child)| Some(cluster.members[at].end(child.as_mut()?)));
    futures::future::join_all(running).await;
}
