//! Two judges of the command line. The same commands by etcd's own etcdctl and by ours, against the same server, give
//! the same output and the same exit code. And `scripts/etcdctl-tour.sh`, which takes etcd's etcdctl through every
//! service, prints the same of a real etcd and of ours.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::cluster::{BINARY, Cluster};
use crate::support::etcd::Etcd;
use crate::support::process::{kill_and_reap, signal};

/// Sections of `scripts/etcdctl-tour.sh`.
const TOUR: &[&str] = &[
    "kv",
    "txn",
    "lease",
    "watch",
    "lock",
    "elect",
    "member",
    "maintenance",
    "defrag",
    "snapshot",
    "auth",
];

/// How long a line may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// One command a line, with what it reads behind `<`. Of one behind `!`, etcdctl prints its help, and only the exit code
/// is compared. `''` is an empty word. Known by name, from what was printed
/// before: `$lease` and `$member`, the last that was made, and `$now`, the revision.
const SCRIPT: &str = r#"
put a 1
put a 2 --prev-kv
put a 3 --prev-kv -w json
put a 4 --prev-kv -w fields
put a 4 -w table
put "from < stdin" < some\nlines\n
put -- -dash -value
put a x --ignore-value
put a --ignore-value
put none --ignore-value
put none 1 --ignore-lease
put a 1 --ignore-lease --lease 5
put a 1 --lease 5
put a 1 --lease xyz
put a
put
put '' x
put dir/a 1
put dir/b 2
put dir/c 1
get a
get a -w json
get a -w fields
get a -w table
get a --hex
get none
get none -w json
get none -w fields
get dir/ --prefix
get dir/ --prefix -w json
get dir/ --prefix=true --keys-only=true --limit=2
get dir/ --prefix --print-value-only
get dir/ --prefix --print-value-only -w json
get dir/ --prefix --order=DESCEND --sort-by=VALUE
get dir/ --prefix --order=descend
get dir/a dir/c
get dir/a --from-key --consistency=s
get '' --prefix --keys-only
get -- -dash
get a --rev 1000000
get a --prefix --from-key
get a b --prefix
get a --order UP
get a --sort-by SIZE
get a --consistency x
! get a --no-such-option
get a -w yaml
get
! no-such-verb
txn < value("a") = "x"\nmod("a") > "0"\n\nput a 1\n\nget a\nput t "b \x41"\ndel none\n\n
txn -w json < create("t") > "0"\n\nput t 2 --prev-kv\nget dir/ --prefix --limit 1\ndel dir/a --prev-kv\n\n\n
txn -w fields < version("t") = "2"\nmod("t") != "1"\n\nput t 3 --prev-kv\nget dir/ --prefix --limit 1\ndel dir/b --prev-kv\n\n\n
txn -i < \nput t 4\n\n\n
txn < \nput t 4\nput t 5\n\n\n
txn < \nput t\n\n\n
txn < value("a" = "x"\n\n\n\n
txn < size("a") = "1"\n\n\n\n
txn < \nfetch a\n\n\n
txn < \nput t 4\n\n
del dir/c
del dir/ --prefix -w json
del -w fields a --prev-kv
del none
del a b --prefix
del
compaction $now
compaction 1
compaction 1000000
compaction x
compaction
get t --rev 2
lease grant 100 -w json
lease grant 100 -w fields
lease grant 0
lease grant x
lease grant
lease grant 1000
put l/1 x --lease $lease
lease timetolive $lease
lease timetolive $lease --keys
lease timetolive $lease --keys -w json
lease timetolive $lease -w fields
lease keep-alive $lease --once
lease keep-alive $lease --once -w json
lease keep-alive $lease --once -w fields
get l/1 -w fields
lease revoke $lease
lease revoke $lease
lease revoke x
lease timetolive $lease
lease timetolive $lease -w json
lease keep-alive $lease
lease keep-alive $lease --once
lease keep-alive
get l/ --prefix
member list
member list -w json
member list -w fields
member list -w table
member add
member add n
member add n --learner --peer-urls http://127.0.0.1:1,http://127.0.0.1:3
member list
member update $member --peer-urls http://127.0.0.1:2
member update $member
member update $member --peer-urls http://127.0.0.1:2 -w json
member promote $member
member remove $member -w json
member remove $member
member remove x
member remove
endpoint status
endpoint status -w json
endpoint status -w fields
endpoint status -w table
endpoint status --cluster
endpoint health -w json
endpoint health -w table
endpoint health -w fields
endpoint hashkv
endpoint hashkv -w json
endpoint hashkv -w fields
endpoint hashkv -w table --cluster
alarm list
alarm disarm
alarm disarm -w json
defrag
move-leader 1234567812345678
move-leader x
move-leader
watch
watch a --
lock
elect
elect a b c
elect -l a b
make-mirror
user add u:pw
user add u2 --new-user-password pw
user add u:pw -w json
user add :pw
user add
user add u3 --interactive=false < pw\n
user passwd u --interactive=false < pw\n
user list
user list -w json
role add r
role add r
role grant-permission r read a
role grant-permission r readwrite dir/ --prefix
role grant-permission r write k --from-key
role grant-permission r READ k z -w json
role grant-permission r own k
role grant-permission r read k z --prefix
role grant-permission r
role get r
role get r -w json
role get r -w fields
role get none
role list
role list -w fields
user grant-role u r
user grant-role u none
user grant-role u2 r -w fields
user get u
user get u -w json
user get u --detail
user get u2
user revoke-role u r
user revoke-role u r
role revoke-permission r a
role revoke-permission r dir/ --prefix
role revoke-permission r k --from-key
role revoke-permission r none
auth enable
auth disable
role delete r
role delete r
user delete u
user delete u2
user delete u3 -w json
user delete u
"#;

/// A program that speaks etcdctl's language to a server.
struct Ctl<'a> {
    program: &'a str,
    endpoint: &'a str,
}

impl Ctl<'_> {
    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(self.program);
        command
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", self.endpoint)
            .env_remove("PONTOONCTL_ENDPOINTS")
            .args(words)
            .stderr(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// What it prints, and its exit code.
    fn outcome(&self, words: &[String], input: Option<&str>) -> (String, Option<i32>) {
        let mut command = self.command(words);
        command.stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        let mut child = command.spawn().expect("it runs");
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // It may have seen enough before it has read all.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().expect("it ends");
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            output.status.code(),
        )
    }

    fn says(&self, line: &str) -> String {
        self.outcome(&words(line), None).0
    }

    /// Forgets what an earlier run left behind; returns the revision from which this one counts.
    fn begin(&self) -> i64 {
        self.says("del '' --prefix");
        self.revision()
    }

    fn revision(&self) -> i64 {
        let said = self.says("get x -w json");
        let rest = said.split("\"revision\":").nth(1).expect("a revision");
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    /// Every command of the script, with what came of it.
    fn play(&self) -> Vec<(String, String)> {
        let base = self.begin();
        let mut known = BTreeMap::new();
        let mut played = Vec::new();
        for line in SCRIPT.lines().filter(|line| !line.is_empty()) {
            known.insert("$now", self.revision().to_string());
            let (command, input) = match line.rsplit_once(" < ") {
                Some((command, input)) if !command.ends_with("from") => (command, Some(unescaped(input))),
                _ => (line, None),
            };
            let (command, only_code) = match command.strip_prefix("! ") {
                Some(command) => (command, true),
                None => (command, false),
            };
            let mut given = words(command);
            for word in &mut given {
                if let Some(value) = known.get(word.as_str()) {
                    word.clone_from(value);
                }
            }
            let (said, code) = self.outcome(&given, input.as_deref());
            learn(&said, &mut known);
            let all_numbers = command.starts_with("endpoint");
            let said = normalised(&said, base, all_numbers);
            // Members come in the order of their ids, which are random.
            let said = if command.starts_with("member") {
                sorted(&said)
            } else {
                said
            };
            let said = if only_code { String::new() } else { said };
            played.push((line.to_string(), format!("{said}exit {code:?}")));
        }
        played
    }

    /// A command that goes on: lines are written to it, and after each so many lines are read of it.
    fn converse(&self, command: &str, steps: &[(&str, usize)], base: i64) -> String {
        let (mut child, lines) = self.start(command);
        let mut said = String::new();
        for (input, count) in steps {
            if let (false, Some(stdin)) = (input.is_empty(), &mut child.stdin) {
                writeln!(stdin, "{input}").expect("it reads");
            }
            for _ in 0..*count {
                match lines.recv_timeout(PATIENCE) {
                    Ok(line) => said.push_str(&format!("{line}\n")),
                    Err(_) => said.push_str("nothing more\n"),
                }
            }
        }
        kill_and_reap(&mut child);
        normalised(&said, base, false)
    }

    /// A command and the lines that it prints.
    fn start(&self, command: &str) -> (Child, Receiver<String>) {
        let mut command = self.command(&words(command));
        let mut child = command.stdin(Stdio::piped()).spawn().expect("it runs");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        (child, lines)
    }

    /// A lock or an election: its first lines, what others see of it, and how it ends when told to.
    fn hold(&self, command: &str, lines_of_it: usize, name: &str) -> String {
        let (mut child, lines) = self.start(command);
        let mut said = String::new();
        for _ in 0..lines_of_it {
            let line = lines.recv_timeout(PATIENCE).expect("it is held");
            said.push_str(&format!("{line}\n"));
        }
        said += &self.says(&format!("get {name} --prefix"));
        signal(&child, "INT");
        let status = child.wait().expect("it ends");
        said += &format!("exit {:?}\n", status.code());
        said += &self.says(&format!("get {name} --prefix"));
        normalised(&said, 0, false)
    }

    /// Watches, locks and elections.
    fn play_streams(&self) -> Vec<(String, String)> {
        let base = self.begin();
        let from = base + 1;
        for line in ["put w/a 1", "put w/a 2", "del w/a", "put w/b \"x\""] {
            self.says(line);
        }
        let mut played = Vec::new();
        let watches = [
            ("watch w/ --prefix --rev FROM".to_string(), 12),
            ("watch w/ --prefix --rev FROM --prev-kv".to_string(), 16),
            ("watch w/a w/b --rev FROM --hex".to_string(), 9),
            ("watch w/a --rev FROM -w json".to_string(), 1),
            ("watch w/a --rev FROM -w fields --prev-kv".to_string(), 37),
            (
                "watch w/a --rev FROM -- sh -c \"env | grep ^ETCD_WATCH_ | sort\"".to_string(),
                21,
            ),
        ];
        for (command, lines) in watches {
            let command = command.replace("FROM", &from.to_string());
            let said = self.converse(&command, &[("", lines)], base);
            played.push((command.replace(&from.to_string(), "FROM"), said));
        }
        let watch = format!("watch w/a --rev {from}");
        let exec = format!("watch w/b --rev {from} -- echo event");
        let steps = [
            ("nonsense", 0),
            (watch.as_str(), 9),
            (exec.as_str(), 4),
            ("progress", 2),
        ];
        played.push(("watch -i".to_string(), self.converse("watch -i", &steps, base)));
        self.says(&format!("compaction {}", from + 1));
        let (said, code) = self.outcome(&words(&format!("watch w/a --rev {from}")), None);
        played.push(("watch, compacted".to_string(), format!("{said}exit {code:?}")));

        played.push(("lock".to_string(), self.hold("lock l", 1, "l")));
        let (said, code) = self.outcome(&words("lock l -- echo held"), None);
        played.push(("lock, command".to_string(), format!("{said}exit {code:?}")));
        played.push(("elect".to_string(), self.hold("elect e me", 2, "e")));
        played
    }
}

/// Words of a line; `''` is an empty one, quotes keep blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (word, behind) = match rest.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
            Some((word, behind)) => (word, behind),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(match word {
            "''" => String::new(),
            word => word.to_string(),
        });
        rest = behind.trim_start();
    }
    words
}

fn sorted(said: &str) -> String {
    let mut parts: Vec<&str> = said.split(['\n', ',', '{', '}', '"', '[', ']']).collect();
    parts.sort_unstable();
    parts.join("\n")
}

fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n")
}

/// Ids that later commands need.
fn learn(said: &str, known: &mut BTreeMap<&'static str, String>) {
    let words: Vec<&str> = said.split_whitespace().collect();
    match words.as_slice() {
        ["lease", id, "granted", ..] => known.insert("$lease", id.to_string()),
        ["Member", id, "added", ..] => known.insert("$member", id.to_string()),
        _ => None,
    };
}

/// Without what differs between two runs: revisions count from `base`; ids, times and sizes are replaced.
fn normalised(said: &str, base: i64, all_numbers: bool) -> String {
    // Debian's etcdctl 3.4 is built with other names for the members of a union.
    let mut text = said
        .replace("\"ResponsePut\"", "\"response_put\"")
        .replace("\"ResponseRange\"", "\"response_range\"")
        .replace("\"ResponseDeleteRange\"", "\"response_delete_range\"");
    if all_numbers {
        while text.contains("--") || text.contains("  ") {
            text = text.replace("--", "-").replace("  ", " ");
        }
    }
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
    let (mut out, mut name, mut rest) = (String::new(), String::new(), text.as_str());
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_word(c) != is_word(first)).unwrap_or(rest.len());
        let (token, behind) = rest.split_at(end);
        rest = behind;
        if !is_word(first) {
            out.push_str(token);
            continue;
        }
        let number: Option<i64> = token.parse().ok();
        let is_time = ["ms", "µs", "s"].iter().any(|unit| {
            token
                .strip_suffix(unit)
                .is_some_and(|number| number.parse::<f64>().is_ok())
        });
        let is_id = (11..=20).contains(&token.len()) && token.chars().all(|c| c.is_ascii_hexdigit());
        let is_revision = name.to_lowercase().ends_with("revision");
        match number {
            _ if is_id => out.push_str("ID"),
            _ if is_time => out.push_str("TIME"),
            _ if all_numbers && token.parse::<f64>().is_ok() => out.push('N'),
            Some(number) if number >= base && is_revision => out.push_str(&format!("base+{}", number - base)),
            Some(_) if ["ttl", "TTL"].contains(&name.as_str()) => out.push_str("TTL"),
            Some(number) if number >= base && name == "notify" => {
                out.push_str(&format!("base+{}", number - base))
            }
            Some(_) => out.push_str(token),
            None => {
                name = token.to_string();
                out.push_str(token);
            }
        }
    }
    // Ids are random, and one in sixteen is a digit shorter and padded.
    out.replace("Member  ID", "Member ID")
}

fn etcdctl_is_here() -> bool {
    let found = Command::new("etcdctl")
        .arg("version")
        .env("ETCDCTL_API", "3")
        .output();
    if found.is_err() {
        println!("skipped: no etcdctl on this machine");
    }
    found.is_ok()
}

fn compare(endpoint: &str) {
    let play = |program: &str| {
        let ctl = Ctl { program, endpoint };
        [ctl.play(), ctl.play_streams()].concat()
    };
    let (theirs, ours) = (play("etcdctl"), play(BINARY));
    assert_eq!(theirs.len(), ours.len());
    let differ = theirs
        .iter()
        .zip(&ours)
        .filter(|(theirs, ours)| theirs.1 != ours.1);
    let differ: Vec<String> = differ
        .map(|((line, theirs), (_, ours))| format!("$ {line}\n--- etcdctl\n{theirs}\n--- pontoon\n{ours}\n"))
        .collect();
    assert!(
        differ.is_empty(),
        "{} of {} differ:\n{}",
        differ.len(),
        ours.len(),
        differ.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_says_of_etcd_what_etcdctl_says() {
    let Some(binary) = Etcd::find().filter(|_| etcdctl_is_here()) else {
        println!("skipped: no etcd on this machine");
        return;
    };
    let etcd = Etcd::start(&binary).await;
    compare(&etcd.endpoint);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_says_of_pontoon_what_etcdctl_says() {
    if !etcdctl_is_here() {
        return;
    }
    let cluster = Cluster::start(1).await;
    compare(&cluster.members[0].client_url);
}

/// What the tour prints.
fn tour(endpoint: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/etcdctl-tour.sh");
    let output = Command::new(script)
        .arg(endpoint)
        .args(TOUR)
        .env_remove("ETCDCTL_ENDPOINTS")
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    // Of a reference and of a member of ours, by their names.
    String::from_utf8_lossy(&output.stdout)
        .replace("reference", "NAME")
        .replace("n1", "NAME")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tour_through_all_services_is_the_same_as_with_etcd() {
    let Some(binary) = Etcd::find().filter(|_| etcdctl_is_here()) else {
        println!("skipped: no etcd on this machine");
        return;
    };
    let cluster = Cluster::start(1).await;
    let etcd = Etcd::start(&binary).await;
    let theirs = tour(&etcd.endpoint);
    let ours = tour(&cluster.members[0].client_url);
    assert!(theirs.lines().count() > 300, "{theirs}");
    for (at, (theirs_line, ours_line)) in theirs.lines().zip(ours.lines()).enumerate() {
        assert_eq!(
            theirs_line, ours_line,
            "line {at} differs: etcd's, ours;\n--- all of etcd's\n{theirs}\n--- all of ours\n{ours}"
        );
    }
    assert_eq!(theirs.lines().count(), ours.lines().count());
}
