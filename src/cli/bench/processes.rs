//! What the servers' processes used, as the kernel counts it below `/proc`.

use std::path::PathBuf;

use super::super::failed::Failed;

/// What a process has used since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_s: f64,
    /// Bytes of memory it holds now.
    pub resident_bytes: u64,
    /// Bytes it caused to be written to disks; none where that may not be read.
    pub written_bytes: Option<u64>,
}

impl Usage {
    /// Of a process, now.
    pub fn of(process: u32) -> Result<Usage, Failed> {
        let file = |name: &str| PathBuf::from(format!("/proc/{process}/{name}"));
        let read = |name: &str| {
            std::fs::read_to_string(file(name))
                .map_err(|error| Failed::arguments(format!("cannot read {}: {error}", file(name).display())))
        };
        let odd = |name: &str| Failed::error(format!("cannot make sense of {}", file(name).display()));
        let ticks = cpu_ticks(&read("stat")?).ok_or_else(|| odd("stat"))?;
        let status = read("status")?;
        Ok(Usage {
            cpu_s: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            // A process that has ended has none.
            resident_bytes: line(&status, "VmRSS:").map_or(0, |kib| kib * 1024),
            written_bytes: read("io").ok().and_then(|io| line(&io, "write_bytes:")),
        })
    }

    /// Of several processes, now.
    pub fn of_all(processes: &[u32]) -> Result<Vec<Usage>, Failed> {
        processes.iter().map(|process| Usage::of(*process)).collect()
    }

    /// What was used since `before`; memory is what is held now.
    pub fn since(self, before: &Usage) -> Usage {
        let written = self.written_bytes.zip(before.written_bytes);
        Usage {
            cpu_s: self.cpu_s - before.cpu_s,
            written_bytes: written.map(|(now, before)| now.saturating_sub(before)),
            ..self
        }
    }
}

/// `utime` and `stime` of `/proc/PID/stat`: its 14th and 15th words. The second is the name, in brackets, and may have
/// blanks and brackets in it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut words = behind_name.split_ascii_whitespace().skip(11);
    let user: u64 = words.next()?.parse().ok()?;
    let system: u64 = words.next()?.parse().ok()?;
    Some(user + system)
}

/// The number behind a name at the beginning of a line.
fn line(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_user_and_system_time() {
        let stat = "77 (a) b) S 1 77 77 0 -1 4194560 100 0 0 0 1234 66 5 6 20 0 9 0 300 1000 200";
        assert_eq!(cpu_ticks(stat), Some(1300));
        assert_eq!(cpu_ticks("77 (short) S 1 2 3"), None);
        assert_eq!(cpu_ticks(""), None);
    }

    #[test]
    fn lines_are_found_by_their_name() {
        let status = "Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t  512 kB\n";
        assert_eq!(line(status, "VmRSS:"), Some(512));
        assert_eq!(line("rchar: 1\nwrite_bytes: 4096\n", "write_bytes:"), Some(4096));
        assert_eq!(line(status, "VmSwap:"), None);
    }

    #[test]
    fn usage_is_a_difference_but_for_memory() {
        let usage = |cpu_s, resident_bytes, written| Usage {
            cpu_s,
            resident_bytes,
            written_bytes: written,
        };
        let used = usage(3.0, 50, Some(700)).since(&usage(1.0, 90, Some(300)));
        assert_eq!(used, usage(2.0, 50, Some(400)));
        assert_eq!(
            usage(3.0, 50, None).since(&usage(1.0, 90, None)).written_bytes,
            None
        );
    }

    #[test]
    fn this_process_has_used_something() {
        let usage = Usage::of(std::process::id()).expect("this process runs");
        assert!(usage.resident_bytes > 0);
        assert!(Usage::of(u32::MAX).is_err());
    }
}
