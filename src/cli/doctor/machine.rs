//! What can be seen on this machine: how fast its disk makes things durable, how much room there is, how many files may
//! be open, and what listens where no member does.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::finding::Finding;

/// Syncs that are tried, unless they take longer than [`TRY`] together.
const SYNCS: usize = 200;
const TRY: Duration = Duration::from_secs(3);
/// Bytes of each: a small entry of the log.
const RECORD: usize = 2300;
/// etcd's advice: 99 of 100 syncs of a disk that is fast enough take no longer.
const FAST: Duration = Duration::from_millis(10);
/// A tenth of the default election timeout: from here on leaders are lost to the disk.
pub const SLOW: Duration = Duration::from_millis(100);
/// Free space below which NOSPACE is raised (`--disk-reserve-bytes`), and below which that is near.
const RESERVE: u64 = 256 << 20;
const NEAR_RESERVE: u64 = 1 << 30;
/// Connections, log segments and the engine's files: a limit below this is met by busy members.
const FILES: u64 = 4096;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);

/// The limit of this process; a member that is started from here has the same.
pub fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.current {
        Some(limit) if limit < FILES => Finding::warn(
            "files",
            format!("{limit} files and connections may be open, of a process that is started from here"),
            format!(
                "raise it where members are started: ulimit -n 65536, or LimitNOFILE=65536; at least {FILES}"
            ),
        ),
        Some(limit) => Finding::ok("files", format!("{limit} files and connections may be open")),
        None => Finding::ok("files", "any number of files and connections may be open"),
    }
}

/// Writes and syncs, as the log does, in the data directory's disk.
pub fn sync(dir: &Path) -> Finding {
    let cannot = |error: io::Error| {
        Finding::fail(
            "disk",
            format!("{} can't be written to: {error}", dir.display()),
            "run this as the user that the member runs as; check the mount, and that the disk is not full",
        )
    };
    match time_syncs(dir) {
        Ok(took) => judge_syncs(dir, took),
        Err(error) => cannot(error),
    }
}

/// Where the directory will be made, if it is not there yet.
fn there(dir: &Path) -> PathBuf {
    let is_there = |dir: &&Path| dir.is_dir();
    let found = dir.ancestors().find(is_there).unwrap_or(Path::new("."));
    found.to_path_buf()
}

/// Removes the file, however it ends.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        // It is empty of meaning: who starts a member over it loses nothing.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn time_syncs(dir: &Path) -> io::Result<Vec<Duration>> {
    let path = there(dir).join(format!(".pontoon-doctor-{}", std::process::id()));
    let probe = Probe(path);
    let mut file = File::create_new(&probe.0)?;
    // As the log does: room is made first, so that only data is synced.
    file.write_all(&vec![0; SYNCS * RECORD])?;
    file.sync_all()?;
    let (began, mut took) = (Instant::now(), Vec::new());
    for number in 0..SYNCS {
        let start = Instant::now();
        file.write_all_at(&[1; RECORD], (number * RECORD) as u64)?;
        file.sync_data()?;
        took.push(start.elapsed());
        if began.elapsed() > TRY {
            break;
        }
    }
    took.sort_unstable();
    Ok(took)
}

fn judge_syncs(dir: &Path, took: Vec<Duration>) -> Finding {
    let at = |share: usize| took.get((took.len() * share / 100).min(took.len().saturating_sub(1)));
    let (median, slow) = (
        at(50).copied().unwrap_or_default(),
        at(99).copied().unwrap_or_default(),
    );
    let found = format!(
        "{}: a sync takes {median:.1?}, 99 of 100 take at most {slow:.1?} ({} tried)",
        dir.display(),
        took.len()
    );
    if slow > SLOW {
        return Finding::fail(
            "disk",
            found,
            "no member is steady on this disk: use one of its own, an SSD; or raise --election-timeout to 10 times that",
        );
    }
    if slow > FAST {
        let next = "every write waits for it: give the member a disk of its own, or a faster one";
        return Finding::warn("disk", found, next);
    }
    Finding::ok("disk", found)
}

/// What is free on the data directory's disk.
pub fn space(dir: &Path) -> Finding {
    let stat = match rustix::fs::statvfs(there(dir)) {
        Ok(stat) => stat,
        Err(error) => {
            return Finding::fail("space", format!("{}: {error}", dir.display()), "check the mount");
        }
    };
    let free = stat.f_bavail * stat.f_frsize;
    let found = format!("{}: {} free", dir.display(), bytesize::ByteSize(free));
    let next = "make room: below --disk-reserve-bytes (256 MiB by default) writes are refused with NOSPACE";
    match free {
        0..RESERVE => Finding::fail("space", found, next),
        RESERVE..NEAR_RESERVE => Finding::warn("space", found, next),
        _ => Finding::ok("space", found),
    }
}

/// No endpoint answered: what is there instead.
pub async fn nobody(endpoints: &[String]) -> Finding {
    let mut found = Vec::new();
    let mut all_are_free = true;
    for endpoint in endpoints {
        let address = endpoint
            .split("://")
            .last()
            .unwrap_or(endpoint)
            .trim_end_matches('/');
        let what = match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                all_are_free = false;
                "something listens, and speaks no etcd".to_string()
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "nothing listens, the port is free".to_string()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer: a firewall, or the wrong address".to_string(),
        };
        found.push(format!("{endpoint}: {what}"));
    }
    let next = match all_are_free {
        true => {
            "name the members with --endpoints; or start one: pontoon serve, or pontoon cluster for a trial"
        }
        false => {
            "see who has the port (ss -ltnp), whether it wants https://, and whether --cacert and --cert fit"
        }
    };
    Finding::fail("reach", format!("no member answers: {}", found.join("; ")), next)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_disk_is_judged_by_its_slow_syncs() {
        let times = |slow: u64| {
            let fast = std::iter::repeat_n(Duration::from_millis(1), 97);
            fast.chain(std::iter::repeat_n(Duration::from_millis(slow), 3))
                .collect()
        };
        for (slow, verdict) in [(2, Verdict::Ok), (20, Verdict::Warn), (200, Verdict::Fail)] {
            let finding = judge_syncs(Path::new("d"), times(slow));
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.found.contains(&format!("{slow}.0ms")), "{finding:?}");
        }
    }

    #[test]
    fn a_probe_leaves_nothing_behind_also_where_there_is_no_directory_yet() {
        let dir = tempfile::tempdir().expect("a directory");
        let finding = sync(&dir.path().join("not/yet/there"));
        assert!(finding.found.contains("99 of 100"), "{finding:?}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 0);
        assert!(space(dir.path()).found.contains("free"));
    }
}
