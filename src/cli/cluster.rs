//! `pontoon cluster`: a cluster to try, of real processes on this machine.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, Command};
use tokio::process::{Child, Command as Process};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Client;
use crate::pb::etcdserverpb::RangeRequest;

/// How long the cluster may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// How long a member may take to stop when told to.
const STOP: Duration = Duration::from_secs(10);
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
        .about("Run a whole cluster on this machine, to try it")
        .arg(nodes.value_parser(clap::value_parser!(u16).range(1..=7)))
        .arg(dir.default_value("pontoon-cluster"))
        .arg(port.value_parser(clap::value_parser!(u16).range(1..)))
}

/// One member.
struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    log: PathBuf,
    /// Holds its process id while it runs, so that it can be killed by that and nothing else can by mistake.
    pid: PathBuf,
}

/// Starts the members, says what to do next, and stops them at the end.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let nodes = *matches.get_one::<u16>("nodes").context("--nodes")?;
    let base = *matches.get_one::<u16>("base-port").context("--base-port")?;
    let dir = PathBuf::from(matches.get_one::<String>("data-dir").context("--data-dir")?);
    let members: Vec<Member> = (0..nodes)
        .map(|at| member(at, base, &dir))
        .collect::<anyhow::Result<_>>()?;
    check_ports(&members)?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create --data-dir {}", dir.display()))?;
    let mut children = Vec::new();
    for member in &members {
        children.push(start(member, &members, &dir)?);
    }
    // Taken from now on, so that no member is left behind.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let outcome = tokio::select! {
        outcome = attend(&members, &mut children, &dir) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stop(&members, children).await;
    outcome
}

fn member(at: u16, base: u16, dir: &Path) -> anyhow::Result<Member> {
    // 2379, 22379, 32379 as in docker-compose.yml; close together where there is no room for that.
    let spread: [u16; 3] = [0, 20_000, 30_000];
    let offset = match spread.get(usize::from(at)) {
        Some(offset) if base < 10_000 => *offset,
        _ if base < 10_000 => 30_000 + 10 * (at - 2),
        _ => 10 * at,
    };
    let port = base
        .checked_add(offset)
        .filter(|port| *port < u16::MAX)
        .context("--base-port is too high")?;
    let name = format!("node{}", at + 1);
    Ok(Member {
        client_port: port,
        peer_port: port + 1,
        log: dir.join(format!("{name}.log")),
        pid: dir.join(format!("{name}.pid")),
        name,
    })
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

fn start(member: &Member, members: &[Member], dir: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(&member.log)?;
    let all: Vec<String> = members
        .iter()
        .map(|member| format!("{}=http://127.0.0.1:{}", member.name, member.peer_port))
        .collect();
    let client_url = format!("http://127.0.0.1:{}", member.client_port);
    let peer_url = format!("http://127.0.0.1:{}", member.peer_port);
    let mut process = Process::new(std::env::current_exe().context("cannot find the pontoon binary")?);
    process
        .arg("serve")
        .args(["--name", &member.name])
        .args([
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
        ])
        .args([
            "--listen-peer-urls",
            &peer_url,
            "--initial-advertise-peer-urls",
            &peer_url,
        ])
        .args([
            "--initial-cluster",
            &all.join(","),
            "--initial-cluster-token",
            "pontoon-cluster",
        ])
        // All its members are started here, and none on ports that another one has.
        .args(["--founding-wait", "0"])
        .args(["--log-format", "pretty"])
        .arg("--data-dir")
        .arg(dir.join(&member.name))
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        // Not in the terminal's group: Ctrl-C is for this process, which then stops the members in order.
        .process_group(0);
    let child = process.spawn().context("cannot start a member")?;
    let id = child.id().context("a member was gone at once")?;
    std::fs::write(&member.pid, format!("{id}\n"))
        .with_context(|| format!("cannot write {}", member.pid.display()))?;
    Ok(child)
}

/// Says when the cluster is ready, and from then on when a member dies.
async fn attend(members: &[Member], children: &mut [Child], dir: &Path) -> anyhow::Result<()> {
    let ready = tokio::time::timeout(READY, wait_ready(members));
    tokio::select! {
        ready = ready => if ready.is_err() {
            bail!("the cluster was not ready within {READY:?}: see the logs in {}", dir.display());
        },
        (at, status) = first_exit(children) => {
            report(&members[at], status);
            bail!("a member did not start");
        }
    }
    banner(members, children, dir);
    let mut alive: Vec<(usize, &mut Child)> = children.iter_mut().enumerate().collect();
    while !alive.is_empty() {
        let exits = alive.iter_mut().enumerate().map(|(place, (at, child))| {
            let at = *at;
            Box::pin(async move { (place, at, child.wait().await) })
        });
        let ((place, at, status), _, _) = futures::future::select_all(exits).await;
        report(
            &members[at],
            status.map(|status| status.to_string()).unwrap_or_default(),
        );
        alive.remove(place);
    }
    bail!("no member is left")
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

async fn first_exit(children: &mut [Child]) -> (usize, String) {
    let exits = children.iter_mut().map(|child| Box::pin(child.wait()));
    let (status, at, _) = futures::future::select_all(exits).await;
    (at, status.map(|status| status.to_string()).unwrap_or_default())
}

fn banner(members: &[Member], children: &[Child], dir: &Path) {
    println!(
        "A cluster of {} is ready. Everything it keeps is in {}.\n",
        members.len(),
        dir.display()
    );
    for (member, child) in members.iter().zip(children) {
        println!(
            "  {}  clients 127.0.0.1:{:<5}  process {}",
            member.name,
            member.client_port,
            child.id().unwrap_or(0)
        );
    }
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
        "  kill -9 $(cat {})      one member dies; the others carry on",
        members[0].pid.display()
    );
    println!("\nCtrl-C stops all of it; the same command starts it again.");
}

fn report(member: &Member, status: String) {
    forget(member);
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
    eprintln!("The others carry on while they are a majority. To have it back, stop and start the cluster.");
}

async fn stop(members: &[Member], mut children: Vec<Child>) {
    for child in &children {
        if let Some(id) = child.id() {
            // A member that is gone already needs no telling.
            let _ = Process::new("kill")
                .arg(id.to_string())
                .stderr(Stdio::null())
                .status()
                .await;
        }
    }
    for (member, child) in members.iter().zip(&mut children) {
        if tokio::time::timeout(STOP, child.wait()).await.is_err() {
            eprintln!("{} did not stop in time and is killed", member.name);
            // If that fails it is gone.
            let _ = child.kill().await;
        }
        forget(member);
    }
}

/// The process is gone, and its id may soon be another's.
fn forget(member: &Member) {
    // Gone already if the member had died before.
    let _ = std::fs::remove_file(&member.pid);
}
