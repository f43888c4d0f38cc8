//! README.md, and docs/operating.md behind it, block by block, as a newcomer would type it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::cluster::machine;

/// Where the README's cluster serves its clients, each with its peers on the next port.
const CLIENT_PORTS: [u16; 3] = [2379, 22379, 32379];

/// Where this run's cluster serves them: the README's own ports, or others where those are taken, as by a cluster that
/// somebody runs on the same machine.
struct Ports([u16; 3]);

impl Ports {
    fn choose() -> Ports {
        let free = |port: &u16| {
            [*port, *port + 1]
                .iter()
                .all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        };
        // `--base-port` puts the others 10 and 20 higher. Below the ports that other tests are given.
        let elsewhere = (11_000..11_960)
            .step_by(30)
            .map(|base| [base, base + 10, base + 20]);
        std::iter::once(CLIENT_PORTS)
            .chain(elsewhere)
            .find(|ports| ports.iter().all(free))
            .map(Ports)
            .expect("somewhere there are six free ports")
    }

    /// The block, with its addresses where this run has them.
    fn put_in(&self, block: &str) -> String {
        let block = block.replace(
            "pontoon cluster",
            &format!("pontoon cluster --base-port {}", self.0[0]),
        );
        CLIENT_PORTS.iter().zip(&self.0).fold(block, |block, (from, to)| {
            block.replace(&format!("127.0.0.1:{from}"), &format!("127.0.0.1:{to}"))
        })
    }
}

/// The documents, in the order in which they are read.
const DOCUMENTS: [&str; 2] = ["README.md", "docs/operating.md"];

fn read(document: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    std::fs::read_to_string(path).expect("a document")
}

/// The shell blocks, with what stands behind `sh`.
fn blocks() -> Vec<(String, String)> {
    let text = DOCUMENTS.map(read).join("\n");
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.strip_prefix("```sh") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((kind.trim().to_string(), block.join("\n")));
        }
    }
    blocks
}

/// A shell in `dir` that finds the tested binary as `pontoon`, and the cluster where no address is given.
fn shell(dir: &Path, ports: &Ports, block: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_pontoon"));
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", binary.parent().expect("a directory").display());
    let mut command = Command::new("bash");
    command
        .args(["-euc", &ports.put_in(block)])
        .current_dir(dir)
        .env("PATH", path)
        .env("PONTOONCTL_ENDPOINTS", format!("127.0.0.1:{}", ports.0[0]))
        // etcdctl refuses a flag beside a variable.
        .env_remove("ETCDCTL_ENDPOINTS")
        .stdin(Stdio::null());
    command
}

/// Stopped as Ctrl-C would, at the end of the test, however it ends.
struct Cluster(Child);

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, ports: &Ports, block: &str) -> Cluster {
    // Cargo has built the binary already.
    let script = format!("exec {}", block.replace("cargo run --release --", "pontoon"));
    let output = std::fs::File::create(dir.join("banner")).expect("a file");
    let errors = output.try_clone().expect("a file");
    let child = shell(dir, ports, &script)
        .stdout(output)
        .stderr(errors)
        .spawn()
        .expect("started");
    let cluster = Cluster(child);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let banner = std::fs::read_to_string(dir.join("banner")).unwrap_or_default();
        if banner.contains("Ctrl-C stops all of it") {
            return cluster;
        }
        assert!(Instant::now() < deadline, "no banner: {banner}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test]
async fn every_shell_block_of_the_readme_does_what_it_says() {
    let _machine = machine().await;
    let ports = Ports::choose();
    let dir = tempfile::tempdir().expect("a directory");
    let mut cluster = None;
    let mut ran = Vec::new();
    for (kind, block) in blocks() {
        match kind.as_str() {
            // Run by scripts/compose-test.sh, and by cargo.
            "docker" => continue,
            "" if block == "cargo test" => continue,
            "" if block.contains("cargo run") => cluster = Some(start(dir.path(), &ports, &block)),
            "etcdctl" if Command::new("etcdctl").arg("version").output().is_err() => {
                println!("etcdctl is not installed: its block is left out");
            }
            "curl" if Command::new("curl").arg("--version").output().is_err() => {
                println!("curl is not installed: its block is left out");
            }
            _ => {
                let output = shell(dir.path(), &ports, &block).output().expect("a shell");
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{block}\n{said}{errors}");
                if kind == "events" {
                    for part in [
                        "node3",
                        "starts for the first time",
                        "serves clients",
                        " leads in term ",
                    ] {
                        assert!(said.contains(part), "no {part}: {said}");
                    }
                    ran.push(kind);
                    continue;
                }
                let expected = match kind.as_str() {
                    "" => "OK\nhello\nworld\n",
                    "etcdctl" => "OK\nhello\nagain\n",
                    "curl" => "OK\nblue\ncolour\tblue\n{\"header\":{\"cluster_id\":",
                    "cli" => "OK\nOK\napp/\n├── db/\n│   └── host\n└── name\nno port\n",
                    "lock" => "nobody else makes a backup now\n",
                    "break" => "OK\nhello\nstill here\n",
                    "bench" => "+-",
                    "chaos" => "round  fault",
                    "backup" => "Snapshot saved at backup.db\n",
                    other => panic!("a block of unknown kind {other}"),
                };
                assert!(said.starts_with(expected), "{block}\n{said}");
            }
        }
        ran.push(kind);
    }
    assert!(
        cluster.is_some() && ran.iter().any(|kind| kind == "break"),
        "ran only {ran:?}"
    );
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() })
        .collect()
}

/// Links, to a file or to a heading of one, that lead nowhere.
fn broken_links(document: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = read(document);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let images = text.split([' ', '\n']).filter_map(|word| {
        let quoted = word
            .strip_prefix("src=\"")
            .or_else(|| word.strip_prefix("srcset=\""));
        quoted?.split('"').next()
    });
    let own = targets.chain(images).filter(|target| !target.starts_with("http"));
    let leads_nowhere = |target: &&str| {
        let (file, heading) = target.split_once('#').unwrap_or((target, ""));
        let linked = match file {
            "" => path.clone(),
            file => path.with_file_name(file),
        };
        let has_heading = || {
            let text = std::fs::read_to_string(&linked).unwrap_or_default();
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            headings.any(|line| anchor(line.trim_start_matches('#').trim()) == heading)
        };
        !linked.exists() || (!heading.is_empty() && !has_heading())
    };
    own.filter(leads_nowhere).map(str::to_string).collect()
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let others = ["docs/architecture.md", "docs/performance.md", "deploy/README.md"];
    for document in DOCUMENTS.into_iter().chain(others) {
        assert_eq!(broken_links(document), Vec::<String>::new(), "{document}");
    }
}
