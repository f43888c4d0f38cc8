//! The command line as a person or a script meets it: what is ours, and what must not go wrong.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::cluster::{BINARY, Cluster};
use crate::support::process::{free_port, kill_and_reap, signal};

/// How long something may take to happen.
const PATIENCE: Duration = Duration::from_secs(30);

struct Pontoon {
    endpoints: String,
}

impl Pontoon {
    fn of(cluster: &Cluster) -> Pontoon {
        let endpoints: Vec<&str> = cluster
            .members
            .iter()
            .map(|member| member.client_url.as_str())
            .collect();
        Pontoon {
            endpoints: endpoints.join(","),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .env("PONTOONCTL_ENDPOINTS", &self.endpoints)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("pontoon runs")
    }

    fn says(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn code(&self, args: &[&str]) -> Option<i32> {
        self.output(args).status.code()
    }

    /// A command that goes on, and its lines.
    fn start(&self, args: &[&str]) -> Running {
        let mut child = self.command(args).spawn().expect("pontoon runs");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Running { child, lines }
    }

    fn wait_for(&self, args: &[&str], expected: &str) {
        assert!(
            eventually(|| self.says(args) == expected),
            "{args:?} never said {expected:?}"
        );
    }
}

/// Tries again for as long as is patient.
fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    fn lines(&self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.line()).collect()
    }

    /// Ctrl-C; the exit code.
    fn interrupt(mut self) -> Option<i32> {
        signal(&self.child, "INT");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill_and_reap(&mut self.child);
    }
}

#[test]
fn what_is_typed_wrong_is_told_by_its_code() {
    let nowhere = Pontoon {
        endpoints: format!("127.0.0.1:{}", free_port()),
    };
    let output = nowhere.output(&["get", "a"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains(&nowhere.endpoints) && said.contains("Connection refused"),
        "{said}"
    );
    assert!(said.contains("pontoon cluster"), "and what to do: {said}");
    assert!(output.stdout.is_empty());

    let codes = [
        (&["get"][..], 128),
        (&["get", "a", "--prefx"][..], 1),
        (&["fetch"][..], 1),
        (&["exists", "a"][..], 2),
        (&["get", "a", "-w", "xml"][..], 4),
        (&["get", "a", "--endpoints", "https://127.0.0.1:1"][..], 2),
        (&["get", "a", "--cacert", "ca.pem"][..], 128),
        (&["get", "a", "--insecure-transport=false"][..], 2),
        (
            &[
                "get",
                "a",
                "-d",
                "example.com",
                "--discovery-nameserver",
                "127.0.0.1:1",
            ][..],
            2,
        ),
        (
            &["get", "a", "-d", "example.com", "--discovery-nameserver", "dns"][..],
            128,
        ),
        (&["get", "a", "--command-timeout", "soon"][..], 128),
        (
            &["version", "--insecure-transport", "--insecure-discovery=true"][..],
            0,
        ),
    ];
    for (args, code) in codes {
        let output = nowhere.output(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert_eq!(output.stderr.is_empty(), code == 0, "{args:?}");
    }
    // The environment is etcdctl's, too; what is typed wins.
    let refused = nowhere
        .command(&["get", "a"])
        .env("ETCDCTL_CACERT", "ca.pem")
        .output();
    assert_eq!(refused.expect("pontoon runs").status.code(), Some(128));
}

#[test]
fn a_server_is_started_by_a_command_line_of_etcd() {
    let serve = |args: &[&str], environment: &[(&str, &str)]| {
        let output = Command::new(BINARY)
            .arg("serve")
            .args(args)
            .env_clear()
            .envs(environment.iter().copied())
            .output()
            .expect("pontoon runs");
        let both = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&both).into_owned())
    };
    for version in ["--version", "-version", "-version=true"] {
        let (code, said) = serve(&[version], &[]);
        assert_eq!(code, Some(0));
        assert!(said.contains("etcd Version: 3.5."), "{said}");
    }
    let go = [
        "-name=a",
        "-name",
        "b",
        "-listen-client-urls=http://127.0.0.1:1",
        "--strict-reconfig-check=false",
        "-experimental-max-learners",
        "2",
        "-print-config",
    ];
    let (code, said) = serve(&go, &[]);
    assert_eq!(code, Some(0), "{said}");
    let printed = |name: &str, value: &str| {
        said.lines()
            .any(|line| line.starts_with(&format!("{name} ")) && line.contains(&format!("{value:?}")))
    };
    for (name, value) in [
        ("name", "b"),
        ("listen-client-urls", "http://127.0.0.1:1"),
        ("strict-reconfig-check", "false"),
        ("max-learners", "2"),
    ] {
        assert!(printed(name, value), "{name} in {said}");
    }
    let (code, said) = serve(&["-nam=a"], &[]);
    assert_eq!(code, Some(1), "{said}");
    // A member that starts says which variables are none, and not what is in them.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", taken.local_addr().expect("an address"));
    let (code, said) = serve(
        &["-listen-client-urls", &url],
        &[("ETCD_ROOT_PASSWORD", "secret"), ("ETCDCTL_API", "3")],
    );
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("environment variable ETCD_ROOT_PASSWORD: unknown setting"),
        "{said}"
    );
    assert!(
        !said.contains("secret") && !said.contains("ETCDCTL_API"),
        "{said}"
    );
}

#[test]
fn every_verb_has_a_help_text_a_completion_and_a_man_page() {
    let pontoon = Pontoon {
        endpoints: String::new(),
    };
    let help = pontoon.says(&["--help"]);
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let verbs: Vec<&str> = verbs
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() > 25 && verbs.contains(&"make-mirror"), "{verbs:?}");
    let dir = tempfile::tempdir().expect("a directory");
    let man = dir.path().join("man").display().to_string();
    pontoon.says(&["man", &man]);
    let bash = pontoon.says(&["completion", "bash"]);
    for verb in verbs {
        let help = pontoon.says(&[verb, "--help"]);
        assert!(help.contains("Usage: pontoon"), "{verb}: {help}");
        assert!(
            bash.contains(&format!("pontoon__{}", verb.replace('-', "__"))) || bash.contains(verb),
            "{verb}"
        );
        assert!(
            Path::new(&man).join(format!("pontoon-{verb}.1")).is_file(),
            "{verb}"
        );
    }
    assert!(pontoon.says(&["man"]).contains(".TH pontoon 1"));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(
            pontoon.says(&["completion", shell]).contains("move-leader"),
            "{shell}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcdctl_lacks() {
    let cluster = Cluster::start(1).await;
    let pontoon = Pontoon::of(&cluster);
    for (key, value) in [
        ("app/db/host", "a"),
        ("app/db/port", "1"),
        ("app/name", "x"),
        ("app", "y"),
        ("b", "z"),
    ] {
        pontoon.says(&["put", key, value]);
    }
    assert_eq!(pontoon.says(&["ls"]), "app\napp/\nb\n");
    assert_eq!(pontoon.says(&["ls", "app/"]), "app/db/\napp/name\n");
    assert_eq!(pontoon.says(&["ls", "none"]), "");
    let tree = "app/\n├── db/\n│   ├── host\n│   └── port\n└── name\n";
    assert_eq!(pontoon.says(&["tree", "app/"]), tree);
    assert_eq!(
        pontoon.says(&["tree", "app/", "--depth", "1"]),
        "app/\n├── db/\n└── name\n"
    );
    assert_eq!(pontoon.code(&["tree", "--limit", "3"]), Some(1));
    assert_eq!(
        [pontoon.code(&["exists", "b"]), pontoon.code(&["exists", "c"])],
        [Some(0), Some(1)]
    );
    assert_eq!(pontoon.says(&["get", "--fail", "b"]), "b\nz\n");
    assert_eq!(
        [pontoon.code(&["get", "--fail", "c"]), pontoon.code(&["get", "c"])],
        [Some(1), Some(0)]
    );
    assert_eq!(pontoon.says(&["get", "app/", "--prefix", "--count-only"]), "3\n");

    // More keys below one name than are asked for at a time.
    let ops: String = (0..100).map(|at| format!("put many/{at:03}/x y\n")).collect();
    let script = format!("\n{ops}\n\n");
    let file = cluster.dir().join("txn");
    std::fs::write(&file, script).expect("a file");
    let stdin = std::fs::File::open(&file).expect("the file");
    let done = pontoon
        .command(&["txn"])
        .stdin(stdin)
        .output()
        .expect("pontoon runs");
    assert!(done.status.success());
    assert_eq!(pontoon.says(&["ls", "many/"]).lines().count(), 100);

    // A reader that has seen enough.
    let line = format!(
        "{BINARY} get '' --prefix --endpoints {} | head -1; exit ${{PIPESTATUS[0]}}",
        pontoon.endpoints
    );
    let output = Command::new("bash")
        .args(["-c", &line])
        .output()
        .expect("bash runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "app\n");
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));

    // By the name of etcdctl, with its environment.
    let link = cluster.dir().join("etcdctl");
    symlink(BINARY, &link).expect("a link");
    let etcdctl = |args: &[&str]| {
        let mut command = Command::new(&link);
        command
            .env("ETCDCTL_ENDPOINTS", &pontoon.endpoints)
            .env("ETCDCTL_API", "3");
        command
            .env("ETCDCTL_WRITE_OUT", "json")
            .args(args)
            .output()
            .expect("it runs")
    };
    assert!(String::from_utf8_lossy(&etcdctl(&["get", "b"]).stdout).starts_with("{\"header\":"));
    assert!(String::from_utf8_lossy(&etcdctl(&["version"]).stdout).starts_with("etcdctl version: 3."));
    assert!(!etcdctl(&["serve"]).status.success(), "etcdctl serves nothing");

    // A load, for a moment.
    let output = pontoon.output(&["check", "perf", "--duration", "1s", "--auto-compact"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("Throughput") && said.contains("Compacted with revision"),
        "{said}"
    );
    assert_eq!(pontoon.says(&["get", "/pontoon-check-perf/", "--prefix"]), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_elsewhere_and_so_does_a_mirror() {
    let mut cluster = Cluster::start(3).await;
    let pontoon = Pontoon::of(&cluster);
    pontoon.says(&["put", "from/0", "0"]);
    let watch = pontoon.start(&["watch", "from/", "--prefix", "--rev", "1"]);
    let endpoints = pontoon.endpoints.clone();
    let mirror = pontoon.start(&[
        "make-mirror",
        "--prefix",
        "from/",
        "--dest-prefix",
        "to/",
        &endpoints,
    ]);
    pontoon.says(&["put", "from/1", "1"]);
    assert_eq!(watch.lines(6), ["PUT", "from/0", "0", "PUT", "from/1", "1"]);
    pontoon.wait_for(&["get", "to/", "--prefix"], "to/0\n0\nto/1\n1\n");

    // The endpoint that both are on: the first.
    cluster.kill(0);
    let others = Pontoon {
        endpoints: endpoints.split_once(',').expect("three").1.to_string(),
    };
    for at in 2..6 {
        let (key, value) = (format!("from/{at}"), at.to_string());
        // Of unknown fate while there is no leader: made again, it is another event.
        let put = || others.code(&["put", &key, &value]) == Some(0);
        assert!(eventually(put), "{key} can't be put");
        loop {
            let event = watch.lines(3);
            assert_eq!(event[0], "PUT");
            if event[1..] == [key.clone(), value.clone()] {
                break;
            }
        }
    }
    others.says(&["del", "from/5"]);
    // The last put may have come twice.
    let rest = std::iter::repeat_with(|| watch.lines(3)).find(|event| event[0] == "DELETE");
    assert_eq!(rest.map(|event| event[1].clone()).as_deref(), Some("from/5"));
    others.wait_for(
        &["get", "to/", "--prefix", "--keys-only"],
        "to/0\n\nto/1\n\nto/2\n\nto/3\n\nto/4\n\n",
    );
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_released_however_its_holder_ends() {
    let cluster = Cluster::start(1).await;
    let pontoon = Pontoon::of(&cluster);
    let first = pontoon.start(&["lock", "l", "--ttl", "60"]);
    assert!(first.line().starts_with("l/"));
    // Waits for the first, far shorter than for its lease.
    let second = pontoon.start(&[
        "lock",
        "l",
        "--ttl",
        "60",
        "sh",
        "-c",
        "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV; sleep 600",
    ]);
    assert_eq!(first.interrupt(), Some(0));
    let line = second.line();
    let (key, revision) = line.split_once(' ').expect("two words");
    assert!(key.starts_with("l/") && revision.parse::<i64>().is_ok(), "{line}");
    // The command is told to end, and its end is ours.
    assert_eq!(second.interrupt(), Some(128 + 15));
    assert_eq!(pontoon.says(&["get", "l", "--prefix"]), "");
    let holder = pontoon.start(&["lock", "l", "--ttl", "60"]);
    assert!(holder.line().starts_with("l/"));
    let waiter = pontoon.start(&["elect", "l", "--", "me too"]);
    let queued = || pontoon.says(&["get", "l", "--prefix", "--count-only"]) == "2\n";
    assert!(eventually(queued), "it is not in the queue");
    assert_eq!([waiter.interrupt(), holder.interrupt()], [Some(1), Some(0)]);
    assert_eq!(pontoon.says(&["get", "l", "--prefix"]), "");
    assert_eq!(pontoon.code(&["lock", "l", "--", "sh", "-c", "exit 7"]), Some(7));
    assert_eq!(pontoon.code(&["lock", "l", "--", "no-such-command"]), Some(1));
    assert_eq!(pontoon.says(&["lease", "list"]), "found 0 leases\n");

    let leader = pontoon.start(&["elect", "e", "one"]);
    assert_eq!(leader.lines(2)[1], "one");
    let observer = pontoon.start(&["elect", "-l", "e"]);
    assert_eq!(observer.lines(2)[1], "one");
    let next = pontoon.start(&["elect", "e", "two"]);
    assert_eq!(leader.interrupt(), Some(0));
    assert_eq!(next.lines(2)[1], "two");
    assert_eq!(observer.lines(2)[1], "two");
    assert_eq!([next.interrupt(), observer.interrupt()], [Some(0), Some(0)]);
}
