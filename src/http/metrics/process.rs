//! Who this is, how long its certificates are good, and what the kernel tells of the process.

use super::text::Page;
use crate::api::{CLUSTER_VERSION, ETCD_VERSION};
use crate::server::Server;

/// Adds it to the page.
pub fn write(page: &mut Page, server: &Server) {
    build(page, server);
    certificates(page, server);
    process(page);
}

fn build(page: &mut Page, server: &Server) {
    page.fact(
        "etcd_server_id",
        "This member's id.",
        "server_id",
        &format!("{:x}", server.member_id()),
    );
    page.fact(
        "etcd_server_version",
        "The version of etcd that this member answers as.",
        "server_version",
        ETCD_VERSION,
    );
    page.fact(
        "etcd_cluster_version",
        "The version of etcd that the whole cluster answers as.",
        "cluster_version",
        CLUSTER_VERSION,
    );
    page.fact(
        "pontoon_version",
        "The version of this program.",
        "version",
        env!("CARGO_PKG_VERSION"),
    );
}

fn certificates(page: &mut Page, server: &Server) {
    let name = "pontoon_certificate_expiry_timestamp_seconds";
    page.head(
        "gauge",
        name,
        "When the certificate that this port shows ends, since 1970.",
    );
    for (port, tls) in server.certificates() {
        page.sample(name, &[("port", port)], tls.not_after());
    }
}

fn process(page: &mut Page) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    // In KiB.
    let memory = |name: &str| field(&status, name).map_or(0, |kib| kib * 1024);
    page.gauge(
        "process_resident_memory_bytes",
        "Memory in use.",
        memory("VmRSS:"),
    );
    page.gauge(
        "process_virtual_memory_bytes",
        "Memory mapped.",
        memory("VmSize:"),
    );
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count());
    let limits = read("/proc/self/limits");
    let most = field(&limits, "Max open files").unwrap_or(0);
    page.gauge("process_open_fds", "File descriptors in use.", open);
    page.gauge("process_max_fds", "File descriptors that may be used.", most);
    page.gauge("os_fd_used", "File descriptors in use.", open);
    page.gauge("os_fd_limit", "File descriptors that may be used.", most);
    let stat = read("/proc/self/stat");
    let ticks = ticks(&stat);
    page.counter(
        "process_cpu_seconds_total",
        "Time of processors used.",
        ticks.map_or(0.0, |(used, _)| used),
    );
    let booted = field(&read("/proc/stat"), "btime").unwrap_or(0) as f64;
    page.gauge(
        "process_start_time_seconds",
        "When the process was started, since 1970.",
        ticks.map_or(0.0, |(_, started)| booted + started),
    );
}

/// The first number behind `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Seconds of processor time used, and seconds after boot when the process was started.
fn ticks(stat: &str) -> Option<(f64, f64)> {
    // Behind the program's name, which may hold anything; a tick is 1/100 s wherever Linux runs.
    let rest: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let tick = |at: usize| rest.get(at)?.parse::<f64>().ok();
    Some(((tick(11)? + tick(12)?) / 100.0, tick(19)? / 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_understood() {
        let stat = "42 (a (odd) name) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0 1234 1 1";
        assert_eq!(ticks(stat), Some((3.0, 12.34)));
        assert_eq!(field("Name: x\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(
            field(
                "Max open files            1024                 4096 files\n",
                "Max open files"
            ),
            Some(1024)
        );
    }
}
