//! `pontoon chaos`: members are broken, come back, and nothing is lost; and what is lost is found.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::cluster::{BINARY, Cluster, PATIENCE, machine};
use crate::support::playground::Playground;
use crate::support::process::{free_port, kill_and_reap, signal, wait_for};

fn chaos(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .arg("chaos")
        .args(args)
        .args(["-w", "json"])
        .env_remove("ETCDCTL_ENDPOINTS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The report, and the exit code.
fn report(output: &Output) -> (Value, Option<i32>) {
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {errors}"));
    (report, output.status.code())
}

/// Runs it to its end.
fn run(args: &[&str]) -> (Value, Option<i32>) {
    let output = tokio::task::block_in_place(|| chaos(args).output());
    report(&output.expect("pontoon runs"))
}

/// So many rounds were played, all members served, and no promise was broken.
fn is_good((report, code): &(Value, Option<i32>), rounds: usize) {
    assert_eq!(
        report["rounds"].as_array().map(Vec::len),
        Some(rounds),
        "{report:#}"
    );
    assert_eq!(report["good"], true, "{report:#}");
    assert_eq!(
        (&report["writes"]["lost"], &report["reads"]["stale"]),
        (&0.into(), &0.into())
    );
    for count in [
        &report["writes"]["acknowledged"],
        &report["reads"]["linearizable"],
    ] {
        assert!(count.as_u64().is_some_and(|count| count > 0), "{report:#}");
    }
    assert_eq!(*code, Some(0), "{report:#}");
}

/// Every round has all its figures, and the victim led.
fn fails_over(report: &Value) {
    for round in report["rounds"].as_array().expect("rounds") {
        assert_eq!(round["led"], true, "{report:#}");
        for figure in [
            "detect_ms",
            "elect_ms",
            "first_write_ms",
            "catch_up_ms",
            "pause_ms",
        ] {
            assert!(round[figure].is_f64(), "no {figure}: {report:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_survives_each_fault_and_loses_nothing() {
    let _machine = machine().await;
    let playground = Playground::start();
    let dir = playground.data_dir().to_string_lossy().into_owned();
    let does = |fault, times| run(&[fault, "--times", times, "--cluster", &dir]);
    let killed = does("kill-leader", "2");
    is_good(&killed, 2);
    fails_over(&killed.0);
    for fault in ["pause-leader", "partition-leader"] {
        let broken = does(fault, "1");
        is_good(&broken, 1);
        fails_over(&broken.0);
    }
    let restarted = does("rolling-restart", "1");
    is_good(&restarted, 3);
    let rounds = restarted.0["rounds"].as_array().expect("rounds");
    let names: Vec<&str> = rounds
        .iter()
        .filter_map(|round| round["member"].as_str())
        .collect();
    assert_eq!(names, ["node1", "node2", "node3"]);
    let left = playground.pontoon(&["get", "--prefix", "pontoon/", "--keys-only"]);
    assert_eq!(left, "", "the keys are removed");
}

/// Members that scripts kill and start, and the last of each is ended with the test.
struct Scripts {
    dir: PathBuf,
}

impl Scripts {
    /// For members that run already.
    fn of(cluster: &Cluster) -> Scripts {
        let dir = cluster.dir().to_path_buf();
        for (at, member) in cluster.members.iter().enumerate() {
            let command = cluster.command(at);
            let words: Vec<String> = std::iter::once(command.get_program())
                .chain(command.get_args())
                .map(|word| format!("'{}'", word.to_string_lossy()))
                .collect();
            let log = member.log_file();
            let script = format!(
                "{} >>'{}' 2>&1 &\necho $! >'{}'\n",
                words.join(" "),
                log.display(),
                pid_file(&dir, &member.name).display()
            );
            std::fs::write(dir.join(format!("{}.sh", member.name)), script).expect("a script");
            let id = member.process_id().expect("it runs").to_string();
            std::fs::write(pid_file(&dir, &member.name), id).expect("a file");
        }
        Scripts { dir }
    }

    fn kill(&self) -> String {
        format!("kill -9 $(cat '{}')", pid_file(&self.dir, "{name}").display())
    }

    fn restart(&self) -> String {
        format!("sh '{}'", self.dir.join("{name}.sh").display())
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        for name in ["n1", "n2", "n3"] {
            let id = std::fs::read_to_string(pid_file(&self.dir, name)).unwrap_or_default();
            let _ = Command::new("kill").args(["-9", id.trim()]).status();
        }
    }
}

/// Where clients reach all members.
fn endpoints_of(cluster: &Cluster) -> String {
    let urls: Vec<&str> = cluster
        .members
        .iter()
        .map(|member| member.client_url.as_str())
        .collect();
    urls.join(",")
}

fn pid_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.pid"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_broken_by_commands() {
    let cluster = Cluster::start(3).await;
    let scripts = Scripts::of(&cluster);
    let endpoints = endpoints_of(&cluster);
    let (kill, restart) = (scripts.kill(), scripts.restart());
    let broken = [
        &["kill-leader", "--times", "2", "--endpoints", &endpoints][..],
        &["--kill-with", &kill, "--restart-with", &restart],
    ];
    let broken = run(&broken.concat());
    is_good(&broken, 2);
    fails_over(&broken.0);
    // A command that fails breaks the run off, and says why; what it may have done is undone.
    let refused = [
        &["pause-leader", "--endpoints", &cluster.members[0].client_url][..],
        &["--pause-with", "echo cannot pause {name}; exit 7"],
        &["--resume-with", "true {name}"],
    ];
    let (report, code) = run(&refused.concat());
    let verdict = report["verdict"].as_str().expect("a verdict");
    assert!(
        verdict.contains("exit status: 7") && verdict.contains("cannot pause n"),
        "{verdict}"
    );
    assert_eq!((&report["writes"]["lost"], code), (&0.into(), Some(1)));
}

/// One that runs, killed at the end of the test if it still does.
struct Running(Option<Child>);

impl Running {
    fn start(args: &[&str]) -> Running {
        Running(Some(chaos(args).spawn().expect("pontoon runs")))
    }

    fn child(&self) -> &Child {
        self.0.as_ref().expect("it runs")
    }

    fn ends(mut self) -> (Value, Option<i32>) {
        let child = self.0.take().expect("it runs");
        let output = tokio::task::block_in_place(|| child.wait_with_output());
        report(&output.expect("it ends"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            kill_and_reap(child);
        }
    }
}

/// Writes of one writer that may be under way at once, at most: what was begun before so many others was answered.
const UNDER_WAY: u64 = 30;

/// What a verb prints, if it does well.
fn says(endpoints: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(BINARY);
    command.args(args).args(["--endpoints", endpoints]);
    let output = tokio::task::block_in_place(|| command.output()).expect("pontoon runs");
    let said = String::from_utf8(output.stdout).expect("text");
    output.status.success().then(|| said.trim().to_string())
}

/// Deletes all writes of writer 3 of the run that goes on, and the counter of writer 0.
///
/// What was not acknowledged may be missing. So no member may break before this returns: then each of these writers has
/// more behind it than can be under way, and knows of some that they were done.
async fn delete_what_was_acknowledged(endpoints: &str) {
    let first = ["get", "--prefix", "pontoon/chaos/", "--keys-only", "--limit", "1"];
    let prefix = wait_for(PATIENCE, "the run's keys", || async {
        let key = says(endpoints, &first)?;
        Some(key.split_once("counter/")?.0.to_string())
    })
    .await;
    for writer in ["03", "00"] {
        let counter = format!("{prefix}counter/{writer}");
        wait_for(PATIENCE, "acknowledged writes", || async {
            let count = says(endpoints, &["get", &counter, "--print-value-only"])?;
            (count.parse::<u64>().ok()? > UNDER_WAY).then_some(())
        })
        .await;
    }
    for part in ["write/03/", "counter/00"] {
        let below = format!("{prefix}{part}");
        wait_for(PATIENCE, "the deletion", || async {
            says(endpoints, &["del", "--prefix", &below])
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_and_what_is_stale_is_found() {
    let cluster = Cluster::start(3).await;
    let scripts = Scripts::of(&cluster);
    let endpoints = endpoints_of(&cluster);
    // The first fault waits for what is done behind its back, or for the end of the test.
    let held = cluster.dir().join("held");
    std::fs::write(&held, "").expect("a file");
    let kill = format!(
        "while [ -e '{}' ]; do sleep 0.02; done; {}",
        held.display(),
        scripts.kill()
    );
    let restart = scripts.restart();
    let running = [
        &["kill-leader", "--times", "2", "--endpoints", &endpoints][..],
        &["--kill-with", &kill, "--restart-with", &restart],
    ];
    let running = Running::start(&running.concat());
    delete_what_was_acknowledged(&endpoints).await;
    std::fs::remove_file(&held).expect("it was there");
    let (report, code) = running.ends();
    for count in [&report["writes"]["lost"], &report["reads"]["stale"]] {
        assert!(count.as_u64().is_some_and(|count| count > 0), "{report:#}");
    }
    assert_eq!(report["rounds"].as_array().map(Vec::len), Some(2), "{report:#}");
    let broken = report["broken"].to_string();
    assert!(
        broken.contains("of writer 3, on n1 (linearizable), n1 (serializable), n2"),
        "{broken}"
    );
    assert!(broken.contains("stale: counter 0 was read as 0 when"), "{broken}");
    assert_eq!((&report["good"], code), (&false.into(), Some(1)));
}

/// Whether a member stands still: the state is the first word behind the name, which is in brackets.
fn stands_still(dir: &Path, member: &str) -> bool {
    let id = std::fs::read_to_string(pid_file(dir, member)).unwrap_or_default();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.trim())).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('T'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_puts_right_what_is_broken() {
    let _machine = machine().await;
    let playground = Playground::start();
    let dir = playground.data_dir();
    let running = Running::start(&[
        "pause-leader",
        "--times",
        "1000",
        "--cluster",
        &dir.to_string_lossy(),
    ]);
    let stands = || {
        ["node1", "node2", "node3"]
            .iter()
            .any(|member| stands_still(&dir, member))
    };
    wait_for(PATIENCE, "a member that stands still", || async {
        stands().then_some(())
    })
    .await;
    signal(running.child(), "INT");
    let (report, code) = running.ends();
    assert!(!stands(), "all go on");
    assert_eq!(
        (&report["writes"]["lost"], code),
        (&0.into(), Some(5)),
        "{report:#}"
    );
    let left = playground.pontoon(&["get", "--prefix", "pontoon/", "--keys-only"]);
    assert_eq!(left, "", "the keys are removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_begin_says_why_and_what_next() {
    let nowhere = tempfile::tempdir().expect("a directory");
    let says = |args: &[&str], code: i32, parts: &[&str]| {
        let output = tokio::task::block_in_place(|| chaos(args).current_dir(nowhere.path()).output());
        let output = output.expect("pontoon runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        for part in parts {
            assert!(said.contains(part), "no {part}: {said}");
        }
    };
    let kill = ["--kill-with", "kill {name}", "--restart-with", "start {name}"];
    says(
        &["kill-leader"],
        2,
        &[
            "no `pontoon cluster` runs in pontoon-cluster",
            "start one",
            "--kill-with",
        ],
    );
    says(
        &["kill-leader", "--endpoints", "127.0.0.1:1"],
        128,
        &[
            "take no faults from a client",
            "--kill-with CMD --restart-with CMD",
        ],
    );
    says(
        &["pause-leader", "--pause-with", "stop {name}"],
        128,
        &["needs --resume-with", "docker compose unpause"],
    );
    says(
        &[
            "kill-leader",
            "--kill-with",
            "kill it",
            "--restart-with",
            "start {name}",
        ],
        128,
        &["--kill-with", "{name}"],
    );
    let free = format!("127.0.0.1:{}", free_port());
    let asked = [&["kill-leader", "--endpoints", &free][..], &kill].concat();
    says(
        &asked,
        2,
        &["cannot reach", "nothing was broken", "pontoon doctor"],
    );

    // A member alone, and two of three.
    let mut cluster = Cluster::start(1).await;
    let alone = cluster.members[0].client_url.clone();
    let asked = [&["kill-leader", "--endpoints", &alone][..], &kill].concat();
    says(&asked, 2, &["with 1 voters none may be lost"]);
    cluster.kill(0);
    drop(cluster);
    let mut cluster = Cluster::start(3).await;
    cluster.kill(2);
    let one = cluster.members[0].client_url.clone();
    let asked = [&["kill-leader", "--endpoints", &one][..], &kill].concat();
    says(&asked, 2, &["n3 does not answer at", "nothing was broken"]);
}
