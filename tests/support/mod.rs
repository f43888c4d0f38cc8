//! What the cases share: clusters of real processes, a real etcd, a sequential model, and checkers of histories.

pub mod browser;
pub mod cluster;
pub mod etcd;
pub mod generate;
pub mod history;
pub mod http;
pub mod leases;
pub mod linearize;
pub mod model;
pub mod observer;
pub mod order;
pub mod playground;
pub mod process;
pub mod proxy;
pub mod rpc;
pub mod ties;
pub mod tls;
pub mod watcher;
pub mod workload;

/// A number from the environment, to replace a seed or a length.
pub fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().expect("a number"))
}
