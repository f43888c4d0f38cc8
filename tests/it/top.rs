//! `pontoon top` in a terminal of its own, and its keys.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use crate::support::cluster::{BINARY, PATIENCE, machine};
use crate::support::playground::Playground;
use crate::support::process::{kill_and_reap, wait_for};

/// A verb in a terminal that `script` makes.
struct Terminal {
    child: Child,
    seen: std::path::PathBuf,
}

impl Terminal {
    /// So high that no event leaves the screen while the test looks for it.
    fn start(command: &str, seen: std::path::PathBuf) -> Option<Terminal> {
        let child = Command::new("script")
            .args(["-qfc", &format!("stty rows 200 cols 160; exec {command}")])
            .arg(&seen)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Terminal { child, seen }),
            Err(error) => {
                println!("there is no script(1) to make a terminal ({error}): top is left out");
                None
            }
        }
    }

    fn press(&mut self, keys: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(keys).and_then(|()| stdin.flush()).expect("typed");
    }

    /// Waits until this is shown on a screen after the first `from` bytes; where the next one may begin.
    async fn shows(&self, from: usize, part: &str) -> usize {
        wait_for(PATIENCE, part, || async {
            let bytes = std::fs::read(&self.seen).unwrap_or_default();
            let text = String::from_utf8_lossy(bytes.get(from..)?).into_owned();
            text.contains(part).then_some(bytes.len())
        })
        .await
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        kill_and_reap(&mut self.child);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_killed_and_started_by_keys() {
    let _machine = machine().await;
    let playground = Playground::start();
    let dir = tempfile::tempdir().expect("a directory");
    let endpoints: Vec<String> = (1..=3).map(|member| playground.url(member)).collect();
    let command = format!(
        "{BINARY} top --cluster {} --endpoints {}",
        playground.data_dir().display(),
        endpoints.join(",")
    );
    let Some(mut terminal) = Terminal::start(&command, dir.path().join("seen")) else {
        return;
    };
    terminal.shows(0, "★ leader").await;
    // The first is the one that is asked: another one takes over.
    let at = terminal.shows(0, "seen through node1").await;
    terminal.press(b"k");
    let at = terminal.shows(at, "node1 was killed").await;
    let at = terminal.shows(at, "✕ no answer").await;
    let at = terminal.shows(at, "seen through node").await;
    terminal.press(b"es");
    let at = terminal.shows(at, "node1 starts").await;
    // With a sentence below.
    terminal.shows(at, "node1 answers").await;
    terminal.shows(at, "Messages get there and back.").await;
    terminal.press(b"\x1b[Bp");
    let at = terminal.shows(at, "node2 stands still").await;
    terminal.press(b"p");
    terminal.shows(at, "node2 goes on").await;
    terminal.press(b"q");
    let ended = wait_for(PATIENCE, "the end", || {
        let ended = terminal.child.try_wait().expect("a child");
        async move { ended }
    })
    .await;
    assert!(ended.success());
}

#[test]
fn without_a_terminal_there_is_something_else() {
    let output = Command::new(BINARY)
        .arg("top")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(128));
    assert!(String::from_utf8_lossy(&output.stderr).contains("pontoon events --follow"));
}
