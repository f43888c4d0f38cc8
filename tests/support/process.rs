//! A child process with a log file, ended when dropped; free ports; waiting for conditions.

use std::fs::File;
use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How much of a log is shown when something failed.
const TAIL_BYTES: usize = 4000;

/// A child process. Its output goes to `log` in its directory; dropping it kills it and removes the directory.
pub struct Process {
    child: Child,
    dir: TempDir,
}

impl Process {
    /// Starts `command` with output to a file in `dir`. No ETCD_* or PONTOON_* variable is inherited.
    pub fn spawn(mut command: Command, dir: TempDir) -> Process {
        let child = spawn_logged(&mut command, &dir.path().join("log"));
        Process { child, dir }
    }

    /// The directory that goes with the process.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The end of what it wrote.
    pub fn log_tail(&self) -> String {
        tail(&self.dir.path().join("log"))
    }

    /// Ready when the process has ended.
    pub async fn exited(&mut self) -> ExitStatus {
        await_exit(&mut self.child).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        kill_and_reap(&mut self.child);
    }
}

/// Starts `command` with both outputs appended to `log`, and a clean environment as far as it is ours.
pub fn spawn_logged(command: &mut Command, log: &PathBuf) -> Child {
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("ETCD") || name_text.starts_with("PONTOON") {
            command.env_remove(&name);
        }
    }
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("the log file opens");
    let errors = output.try_clone().expect("the log file clones");
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    child.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"))
}

/// Polls until the child has ended: tests need no precise moment.
pub async fn await_exit(child: &mut Child) -> ExitStatus {
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Kills and reaps a child, if it still runs.
pub fn kill_and_reap(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal by the name that kill(1) knows.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(child.id().to_string())
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "kill -{name} {} failed",
        child.id()
    );
}

/// Stops a child, and returns when every thread of it stands still: one that was running goes on for a moment after the
/// signal was sent.
pub fn freeze(child: &Child) {
    signal(child, "STOP");
    let start = Instant::now();
    while !stands_still(child.id()) {
        assert!(start.elapsed() < Duration::from_secs(30), "SIGSTOP has no effect");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The state is the first word behind the name, which is in brackets.
fn stands_still(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("the child runs");
    threads.filter_map(Result::ok).all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

/// The last lines of a file.
pub fn tail(file: &std::path::Path) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned()
}

/// A loopback port that nobody listens on and that no other caller was given; for a process that is started.
pub fn free_port() -> u16 {
    let listener = free_listener();
    listener.local_addr().expect("it is bound").port()
}

/// A listener on such a port; for who listens itself: a port that was let go a moment ago may still be held by a process
/// that another test forked meanwhile, until it becomes another program.
///
/// Taken from below the range from which the kernel picks ports of outgoing connections, or one of those could
/// occupy it before the server does; test processes that run side by side begin at different places.
pub fn free_listener() -> TcpListener {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (std::process::id().wrapping_mul(131) + step) % COUNT;
        let port = u16::try_from(port).expect("within 16 bits");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener;
        }
    }
    panic!("no free port on 127.0.0.1");
}

/// Repeats `probe` until it gives something; panics after `limit`.
pub async fn wait_for<T, F>(limit: Duration, what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    while start.elapsed() < limit {
        let left = limit.saturating_sub(start.elapsed());
        if let Ok(Some(found)) = tokio::time::timeout(left, probe()).await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited {limit:?} in vain for {what}");
}
