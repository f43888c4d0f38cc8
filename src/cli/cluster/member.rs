//! One member of `pontoon cluster`: its process, and what can be done to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command as Process};

use crate::config::playground::{self, Playground};

/// How long a member may take to stop when told to.
const STOP: Duration = Duration::from_secs(10);

/// What is done to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Stop,
    /// SIGSTOP: it stands still and does not know it.
    Pause,
    /// SIGCONT.
    Resume,
    /// It is started again.
    Start,
    /// It loses its disk.
    Wipe,
}

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Running.
    Running,
    /// Stopped by SIGSTOP.
    Paused,
    /// There is none.
    Stopped,
}

/// One member.
pub struct Member {
    /// Its name.
    pub name: String,
    /// For its clients.
    pub client_port: u16,
    /// For the other members.
    pub peer_port: u16,
    /// Where its log goes.
    pub log: PathBuf,
    /// Holds its process id while it runs, so that it can be killed by that and nothing else can by mistake.
    pub pid: PathBuf,
    /// Its data.
    pub data_dir: PathBuf,
    /// What it is started with.
    pub args: Vec<String>,
    /// What it is told of where it runs.
    pub playground: Playground,
    /// Its process id, and what that does; whether we told it to end.
    now: Mutex<Now>,
}

#[derive(Clone, Copy)]
struct Now {
    process: Option<u32>,
    state: State,
    told_to_end: bool,
}

impl Member {
    /// Number `at` of those whose first client port is `base`, in `dir`.
    pub fn new(at: u16, base: u16, dir: &Path) -> anyhow::Result<Member> {
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
            data_dir: dir.join(&name),
            args: Vec::new(),
            playground: Playground::default(),
            now: Mutex::new(Now {
                process: None,
                state: State::Stopped,
                told_to_end: false,
            }),
            name,
        })
    }

    /// Where clients reach it.
    pub fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Where the others look for it.
    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its process does, and its id.
    pub fn state(&self) -> (State, Option<u32>) {
        let now = self.now();
        (now.state, now.process)
    }

    /// Starts it.
    pub fn start(&self) -> anyhow::Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut process = Process::new(std::env::current_exe().context("cannot find the pontoon binary")?);
        process
            .args(&self.args)
            .env("NO_COLOR", "1")
            .env(playground::VARIABLE, serde_json::to_string(&self.playground)?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            // Not in the terminal's group: Ctrl-C is for this process, which then stops the members in order.
            .process_group(0);
        let child = process.spawn().context("cannot start a member")?;
        let id = child.id().context("a member was gone at once")?;
        std::fs::write(&self.pid, format!("{id}\n"))
            .with_context(|| format!("cannot write {}", self.pid.display()))?;
        *self.now() = Now {
            process: Some(id),
            state: State::Running,
            told_to_end: false,
        };
        Ok(child)
    }

    /// The process is gone, and its id may soon be another's. Whether we wanted that.
    pub fn ended(&self) -> bool {
        // Gone already if it was never written.
        let _ = std::fs::remove_file(&self.pid);
        let mut now = self.now();
        now.process = None;
        now.state = State::Stopped;
        now.told_to_end
    }

    /// Sends a signal to the process, which has not been waited for, so that its id is its own.
    fn signal(&self, now: &Now, signal: Signal) -> anyhow::Result<()> {
        let id = now.process.and_then(|id| Pid::from_raw(id.cast_signed()));
        let id = id.with_context(|| format!("{} does not run", self.name))?;
        kill_process(id, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Kills, stops, pauses, resumes it or wipes its disk; says what was done.
    pub fn act(&self, act: Act) -> anyhow::Result<String> {
        let mut now = self.now();
        let name = &self.name;
        match (act, now.state) {
            (Act::Wipe, State::Stopped) => {
                remove(&self.data_dir)?;
                Ok(format!("{name} lost its disk"))
            }
            (Act::Wipe, _) => bail!("{name} still runs: kill it first"),
            (Act::Start, _) => bail!("{name} runs already"),
            (_, State::Stopped) => bail!("{name} does not run"),
            (Act::Kill, _) => {
                now.told_to_end = true;
                self.signal(&now, Signal::KILL)?;
                Ok(format!("{name} was killed"))
            }
            (Act::Stop, state) => {
                now.told_to_end = true;
                self.signal(&now, Signal::TERM)?;
                if state == State::Paused {
                    // Or it would not hear of it.
                    self.signal(&now, Signal::CONT)?;
                }
                Ok(format!("{name} was told to stop"))
            }
            (Act::Pause, _) => {
                self.signal(&now, Signal::STOP)?;
                now.state = State::Paused;
                Ok(format!("{name} stands still"))
            }
            (Act::Resume, _) => {
                self.signal(&now, Signal::CONT)?;
                now.state = State::Running;
                Ok(format!("{name} goes on"))
            }
        }
    }

    /// Stops it for good.
    pub async fn end(&self, child: &mut Child) {
        // If it is gone it needs no telling.
        let _ = self.act(Act::Stop);
        if tokio::time::timeout(STOP, child.wait()).await.is_err() {
            eprintln!("{} did not stop in time and is killed", self.name);
            // If that fails it is gone.
            let _ = child.kill().await;
        }
        self.ended();
    }
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
