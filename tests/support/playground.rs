//! `pontoon cluster`, as somebody starts it to try it and to break it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cluster::{BINARY, PATIENCE};
use super::process::{signal, tail};

/// A running one, ended as by Ctrl-C.
pub struct Playground {
    child: Child,
    banner: String,
    base: u16,
    dir: tempfile::TempDir,
}

impl Playground {
    /// Starts it, and waits until it is ready.
    pub fn start() -> Playground {
        let dir = tempfile::tempdir().expect("a directory");
        // Members are 10 apart; below the ports that other tests are given.
        let free = |base: &u16| {
            (0..3).all(|n| (0..2).all(|m| TcpListener::bind(("127.0.0.1", base + 10 * n + m)).is_ok()))
        };
        // Test processes that run side by side begin at different places.
        let first = std::process::id() % 32;
        let bases = (0..32).map(|n| 10_000 + 30 * ((first + n) % 32) as u16);
        let base = bases.into_iter().find(free).expect("free ports");
        let out = std::fs::File::create(dir.path().join("banner")).expect("a file");
        let mut command = Command::new(BINARY);
        command
            .args(["cluster", "--base-port", &base.to_string(), "--data-dir"])
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .stderr(out.try_clone().expect("a file"))
            .stdout(out);
        let child = command.spawn().expect("started");
        let mut playground = Playground {
            child,
            banner: String::new(),
            base,
            dir,
        };
        let deadline = Instant::now() + PATIENCE;
        while !playground.banner.contains("Ctrl-C stops all of it") {
            assert!(Instant::now() < deadline, "no banner: {}", playground.banner);
            std::thread::sleep(Duration::from_millis(50));
            playground.banner =
                std::fs::read_to_string(playground.dir.path().join("banner")).expect("a banner");
        }
        playground
    }

    /// The page's address, with the token.
    pub fn page(&self) -> &str {
        let mut lines = self.banner.lines().map(str::trim);
        lines.find(|line| line.contains("#token=")).expect("an address")
    }

    /// The token alone.
    pub fn token(&self) -> &str {
        self.page().split_once("#token=").expect("a token").1
    }

    /// Where the cluster keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Client URL of a member, counted from 1.
    pub fn url(&self, member: u16) -> String {
        format!("http://127.0.0.1:{}", self.base + 10 * (member - 1))
    }

    /// What a verb prints, asked of all members.
    pub fn pontoon(&self, args: &[&str]) -> String {
        let endpoints: Vec<String> = (1..=3).map(|member| self.url(member)).collect();
        let output = Command::new(BINARY)
            .args(args)
            .args(["--endpoints", &endpoints.join(",")])
            .output();
        let output = output.expect("pontoon runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in ["node1", "node2", "node3"] {
                let log = self.dir.path().join("data").join(format!("{member}.log"));
                eprintln!("--- end of the log of {member}:\n{}", tail(&log));
            }
        }
        signal(&self.child, "TERM");
        let _ = self.child.wait();
    }
}
