//! Runs a command, for a limited time, and keeps the beginning of what it prints.
//!
//! A command may leave something running that holds its output open, such as a member that it started. So its end is
//! that of its own process; what is printed after that is read on, for as long as we run, and dropped. The command has
//! a process group of its own, which the limit ends as a whole, and which Ctrl-C at our terminal does not reach.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;

/// Bytes of the output that are kept.
const KEPT: usize = 4 << 10;
/// How long what was printed last may take to get here, if the pipe stays open.
const REST: Duration = Duration::from_millis(100);

/// Runs `sh -c COMMAND`. What it printed is in the error if it fails, or takes longer than `limit`.
pub async fn run(command: &str, limit: Duration) -> anyhow::Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start sh")?;
    let group = Group::of(&child);
    let said = Arc::new(Mutex::new(Vec::new()));
    let reading = tokio::spawn(read(pipe::Receiver::from_owned_fd(reader.into())?, said.clone()));
    let ended = tokio::time::timeout(limit, child.wait()).await;
    if ended.is_err() {
        group.kill();
    }
    // Past that it is read on: who still writes there is not to be stopped by it.
    let _ = tokio::time::timeout(REST, reading).await;
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let said = String::from_utf8_lossy(&said).trim().to_string();
    match ended {
        Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
        Ok(status) => bail!("`{command}` failed ({}): {said}", status?),
        Err(_) => bail!("`{command}` took longer than {limit:?}: {said}"),
    }
}

/// A command's processes.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Group {
        Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }

    /// Its leader was not waited for, so the group's id is its own.
    fn kill(&self) {
        if let Some(leader) = self.0 {
            // Where it fails they are gone.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

async fn read(mut pipe: pipe::Receiver, said: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT.saturating_sub(said.len());
        said.extend_from_slice(&buffer[..length.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_command_that_fails_says_why() {
        run("cat", PATIENCE).await.expect("there is nothing to read");
        let error = run("echo one; echo two >&2; exit 3", PATIENCE).await;
        let said = error.expect_err("it fails").to_string();
        assert!(said.contains("exit status: 3"), "{said}");
        assert!(said.ends_with("one\ntwo"), "{said}");
    }

    #[tokio::test]
    async fn much_output_holds_nothing_up_and_is_not_kept() {
        let error = run("head -c 1000000 /dev/zero | tr '\\0' x; false", PATIENCE).await;
        assert!(error.expect_err("it fails").to_string().len() < 2 * KEPT);
    }

    #[tokio::test]
    async fn what_is_left_running_is_not_waited_for_and_lives() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("written");
        // It writes to the pipe again once the command is gone, and then goes on.
        let left = format!(
            "(while kill -0 $$; do sleep 0.01; done; echo late; echo lives >{}) & exit 0",
            file.display()
        );
        tokio::time::timeout(PATIENCE, run(&left, PATIENCE))
            .await
            .expect("it is not waited for")
            .expect("it ends well");
        let lives = async {
            while std::fs::read_to_string(&file).unwrap_or_default() != "lives\n" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, lives).await.expect("it goes on");
    }

    #[tokio::test]
    async fn the_limit_ends_all_of_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("pid");
        let command = format!("sleep 1000 & echo $! >{}; wait", file.display());
        let error = run(&command, Duration::from_millis(300)).await;
        assert!(
            error
                .expect_err("it is late")
                .to_string()
                .contains("took longer than")
        );
        let id = std::fs::read_to_string(&file).expect("it began");
        let gone = async {
            loop {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.trim()));
                // Whoever adopts it may not have waited for it yet.
                if stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z ")) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .expect("it is killed too");
    }
}
