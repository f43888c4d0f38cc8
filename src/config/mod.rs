//! Settings: typed by people, used by the server.
//!
//! Every setting has one row in a table ([`settings`]). Its value comes from, in this order: the flag `--name`; the
//! environment, `PONTOON_NAME` before `ETCD_NAME`; the file given by `--config-file` (TOML, YAML, JSON); the default.
//! A file never switches off flags or environment, as etcd's does: what is typed would be ignored without a word, and
//! a container could not set a member's name beside a file that all members share. Where each value came from is kept,
//! for `--print-config` and for errors.
//!
//! Files: [`settings`] which there are · [`sources`] where their values come from · [`file`] what a file says ·
//! [`checks`] what they must be · [`tls`] what TLS wants.

mod checks;
mod file;
pub mod playground;
mod settings;
mod sources;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use self::checks::{initial_cluster_text, parse_initial_cluster, parse_servers};
pub use self::settings::arguments;
pub use self::sources::{Environment, Values, unknown_variables};
pub use self::tls::Tls;

/// What automatic compaction keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Everything of this last while.
    Period(Duration),
    /// This many of the newest revisions, looked at so often.
    Revisions {
        /// How many.
        keep: i64,
        /// How often.
        every: Duration,
    },
}

/// How HTTP is served.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// `--enable-grpc-gateway`.
    pub gateway: bool,
    /// `--cors`: origins whose pages may read answers; `*` for all.
    pub cors: Vec<String>,
    /// `--enable-web-page`.
    pub page: bool,
    /// Where `pontoon cluster`, which started this member, makes faults.
    pub control: Option<String>,
    /// `--host-whitelist`: names by which clients may call this member; `*` for all.
    pub hosts: Vec<String>,
}

/// Where DNS says who the members are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// `--discovery-srv`.
    pub domain: String,
    /// `--discovery-srv-name`; may be empty.
    pub name: String,
    /// `--discovery-nameserver`; none: those of the system.
    pub servers: Vec<SocketAddr>,
}

/// What a connection of a client may do.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// `--max-concurrent-streams`; none: any number.
    pub max_streams: Option<u32>,
    /// `--grpc-keepalive-interval`.
    pub ping_interval: Duration,
    /// `--grpc-keepalive-timeout`.
    pub ping_timeout: Duration,
}

/// The settings as the server uses them.
#[derive(Debug, Clone)]
pub struct Config {
    /// `--name`.
    pub name: String,
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// `--listen-client-urls`.
    pub listen_client_urls: Vec<String>,
    /// `--advertise-client-urls`.
    pub advertise_client_urls: Vec<String>,
    /// `--listen-metrics-urls`.
    pub listen_metrics_urls: Vec<String>,
    /// `--metrics extensive`.
    pub metrics_extensive: bool,
    /// `--enable-grpc-gateway`, `--enable-web-page`, `--cors`, `--host-whitelist`.
    pub http: HttpOptions,
    /// Peer URLs that are dialled elsewhere: `pontoon cluster` stands between its members.
    pub detours: BTreeMap<String, String>,
    /// `--listen-peer-urls`.
    pub listen_peer_urls: Vec<String>,
    /// `--initial-advertise-peer-urls`.
    pub initial_advertise_peer_urls: Vec<String>,
    /// `--initial-cluster`: name and peer URLs of each member; empty with [`Config::discovery`].
    pub initial_cluster: BTreeMap<String, Vec<String>>,
    /// `--discovery-srv`.
    pub discovery: Option<Discovery>,
    /// `--initial-cluster-token`.
    pub initial_cluster_token: String,
    /// `--initial-cluster-state existing`.
    pub initial_cluster_existing: bool,
    /// `--founding-wait`.
    pub founding_wait: Duration,
    /// `--join`.
    pub join: Vec<String>,
    /// `--strict-reconfig-check`.
    pub strict_reconfig_check: bool,
    /// `--max-learners`.
    pub max_learners: usize,
    /// `--force-new-cluster`.
    pub force_new_cluster: bool,
    /// `--heartbeat-interval`.
    pub heartbeat_interval: Duration,
    /// `--election-timeout`.
    pub election_timeout: Duration,
    /// `--snapshot-count`.
    pub snapshot_count: u64,
    /// `--max-request-bytes`.
    pub max_request_bytes: usize,
    /// `--max-txn-ops`.
    pub max_txn_ops: u32,
    /// `--watch-progress-notify-interval`.
    pub watch_progress_notify_interval: Duration,
    /// `--max-in-flight`.
    pub max_in_flight: usize,
    /// `--max-concurrent-streams`, `--grpc-keepalive-interval`, `--grpc-keepalive-timeout`.
    pub connections: Connections,
    /// `--auth-token`.
    pub auth_token: String,
    /// `--auth-token-ttl`.
    pub auth_token_ttl: Duration,
    /// `--bcrypt-cost`.
    pub bcrypt_cost: u32,
    /// `--lease-checkpoint-interval`.
    pub lease_checkpoint_interval: Duration,
    /// `--auto-compaction-mode` and `--auto-compaction-retention`; none: nothing is compacted by itself.
    pub auto_compaction: Option<Retention>,
    /// `--corrupt-check-time`; none: never.
    pub corrupt_check_time: Option<Duration>,
    /// `--initial-corrupt-check`.
    pub initial_corrupt_check: bool,
    /// `--quota-backend-bytes`; none: no quota.
    pub quota_bytes: Option<u64>,
    /// `--disk-reserve-bytes`.
    pub disk_reserve_bytes: u64,
    /// TLS of the client port.
    pub client_tls: Tls,
    /// TLS between members.
    pub peer_tls: Tls,
}
