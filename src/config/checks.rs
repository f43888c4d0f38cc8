//! From text to settings that the server can use; what can't be meant is an error that names the setting and where it
//! was set.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use super::sources::Values;
use super::{Config, Connections, Discovery, HttpOptions, Retention, tls};

/// etcd's quota where none is set.
const DEFAULT_QUOTA: u64 = 2 << 30;

impl Values {
    /// Checks the values and makes them usable.
    pub fn config(&self) -> anyhow::Result<Config> {
        let name = self.get("name").to_string();
        if name.is_empty() || name.contains([',', '=']) {
            bail!("{}: a name is not empty and has no ',' or '='", self.said("name"));
        }
        let listen_client_urls = self.urls("listen-client-urls")?;
        let listen_peer_urls = self.urls("listen-peer-urls")?;
        let initial_advertise_peer_urls = self.urls_or("initial-advertise-peer-urls", &listen_peer_urls)?;
        let config = Config {
            data_dir: self.data_dir(&name),
            advertise_client_urls: self.urls_or("advertise-client-urls", &listen_client_urls)?,
            initial_cluster: self.initial_cluster(&name, &initial_advertise_peer_urls)?,
            discovery: self.discovery()?,
            initial_cluster_token: self.get("initial-cluster-token").to_string(),
            initial_cluster_existing: self.is_existing()?,
            founding_wait: match self.get("founding-wait") {
                "" => 2 * self.duration("election-timeout")?,
                _ => self.duration("founding-wait")?,
            },
            join: match self.get("join") {
                "" => Vec::new(),
                _ => self.urls("join")?,
            },
            strict_reconfig_check: self.boolean("strict-reconfig-check")?,
            max_learners: usize::try_from(self.number("max-learners", 0)?)?,
            force_new_cluster: self.boolean("force-new-cluster")?,
            heartbeat_interval: self.duration("heartbeat-interval")?,
            election_timeout: self.duration("election-timeout")?,
            snapshot_count: self.number("snapshot-count", 0)?,
            max_request_bytes: usize::try_from(self.number("max-request-bytes", 1)?)?,
            max_txn_ops: u32::try_from(self.number("max-txn-ops", 1)?).context(self.said("max-txn-ops"))?,
            watch_progress_notify_interval: self.duration("watch-progress-notify-interval")?,
            max_in_flight: usize::try_from(self.number("max-in-flight", 1)?)?,
            connections: self.connections()?,
            auth_token: self.auth_token()?,
            auth_token_ttl: Duration::from_secs(self.number("auth-token-ttl", 1)?),
            bcrypt_cost: self.bcrypt_cost()?,
            lease_checkpoint_interval: self.duration("lease-checkpoint-interval")?,
            auto_compaction: self.retention()?,
            corrupt_check_time: Some(self.duration("corrupt-check-time")?).filter(|every| !every.is_zero()),
            initial_corrupt_check: self.boolean("initial-corrupt-check")?,
            quota_bytes: self.quota()?,
            disk_reserve_bytes: self.number("disk-reserve-bytes", 0)?,
            listen_metrics_urls: match self.get("listen-metrics-urls") {
                "" => Vec::new(),
                _ => self.urls("listen-metrics-urls")?,
            },
            metrics_extensive: self.is_extensive()?,
            http: HttpOptions {
                gateway: self.boolean("enable-grpc-gateway")?,
                page: self.boolean("enable-web-page")?,
                control: None,
                cors: self.list("cors"),
                hosts: self.list("host-whitelist"),
            },
            detours: BTreeMap::new(),
            client_tls: self.tls(&tls::CLIENTS)?,
            peer_tls: self.tls(&tls::PEERS)?,
            name,
            listen_client_urls,
            listen_peer_urls,
            initial_advertise_peer_urls,
        };
        if config.lease_checkpoint_interval < Duration::from_secs(1) {
            bail!("{}: at least 1s", self.said("lease-checkpoint-interval"));
        }
        if config.watch_progress_notify_interval.is_zero() {
            bail!(
                "{}: must not be zero",
                self.said("watch-progress-notify-interval")
            );
        }
        if config.heartbeat_interval.is_zero() || config.election_timeout < 5 * config.heartbeat_interval {
            bail!(
                "{}: must be at least 5 times --heartbeat-interval, which is {}",
                self.said("election-timeout"),
                self.get("heartbeat-interval")
            );
        }
        if config.max_request_bytes > 32 << 20 {
            bail!("{}: at most 33554432 (32 MiB)", self.said("max-request-bytes"));
        }
        Ok(config)
    }

    fn data_dir(&self, name: &str) -> PathBuf {
        match self.get("data-dir") {
            "" => PathBuf::from(format!("{name}.pontoon")),
            dir => PathBuf::from(dir),
        }
    }

    fn connections(&self) -> anyhow::Result<Connections> {
        let streams = self.number("max-concurrent-streams", 0)?;
        let streams = u32::try_from(streams).context(self.said("max-concurrent-streams"))?;
        let pause = |name: &str| match self.duration(name)? {
            Duration::ZERO => bail!("{}: more than 0", self.said(name)),
            pause => Ok(pause),
        };
        Ok(Connections {
            max_streams: Some(streams).filter(|streams| !matches!(*streams, 0 | u32::MAX)),
            ping_interval: pause("grpc-keepalive-interval")?,
            ping_timeout: pause("grpc-keepalive-timeout")?,
        })
    }

    fn auth_token(&self) -> anyhow::Result<String> {
        match self.get("auth-token") {
            kind if kind == "simple" || kind.starts_with("jwt,") => Ok(kind.to_string()),
            _ => bail!(
                "{}: simple, or jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…",
                self.said("auth-token")
            ),
        }
    }

    fn bcrypt_cost(&self) -> anyhow::Result<u32> {
        let cost = self.number("bcrypt-cost", 4)?;
        match u32::try_from(cost) {
            Ok(cost) if cost <= 31 => Ok(cost),
            _ => bail!("{}: 4 to 31", self.said("bcrypt-cost")),
        }
    }

    fn retention(&self) -> anyhow::Result<Option<Retention>> {
        let text = self.get("auto-compaction-retention");
        match self.get("auto-compaction-mode") {
            "revision" => {
                let keep = i64::try_from(self.number("auto-compaction-retention", 0)?)?;
                let every = self.duration("auto-compaction-interval")?;
                if every.is_zero() {
                    bail!("{}: more than 0", self.said("auto-compaction-interval"));
                }
                Ok((keep > 0).then_some(Retention::Revisions { keep, every }))
            }
            "periodic" => {
                let period = match text.parse::<u32>() {
                    Ok(hours) => Duration::from_secs(3600 * u64::from(hours)),
                    Err(_) => humantime::parse_duration(text).with_context(|| {
                        format!(
                            "{}: hours, or such as 30m",
                            self.said("auto-compaction-retention")
                        )
                    })?,
                };
                Ok((!period.is_zero()).then_some(Retention::Period(period)))
            }
            _ => bail!("{}: periodic or revision", self.said("auto-compaction-mode")),
        }
    }

    fn quota(&self) -> anyhow::Result<Option<u64>> {
        let text = self.get("quota-backend-bytes");
        if text
            .strip_prefix('-')
            .is_some_and(|digits| digits.parse::<u64>().is_ok())
        {
            return Ok(None);
        }
        match self.number("quota-backend-bytes", 0)? {
            0 => Ok(Some(DEFAULT_QUOTA)),
            bytes => Ok(Some(bytes)),
        }
    }

    fn is_existing(&self) -> anyhow::Result<bool> {
        match self.get("initial-cluster-state") {
            "new" => Ok(false),
            "existing" => Ok(true),
            _ => bail!("{}: new or existing", self.said("initial-cluster-state")),
        }
    }

    pub(super) fn boolean(&self, name: &str) -> anyhow::Result<bool> {
        // As Go's flags and as YAML write it.
        match self.get(name).to_ascii_lowercase().as_str() {
            "true" | "t" | "1" | "yes" | "on" => Ok(true),
            "false" | "f" | "0" | "no" | "off" => Ok(false),
            _ => bail!("{}: true or false", self.said(name)),
        }
    }

    fn is_extensive(&self) -> anyhow::Result<bool> {
        match self.get("metrics") {
            "basic" => Ok(false),
            "extensive" => Ok(true),
            _ => bail!("{}: basic or extensive", self.said("metrics")),
        }
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let parts = self.get(name).split(',').map(str::trim);
        parts
            .filter(|part| !part.is_empty())
            .map(ToString::to_string)
            .collect()
    }

    fn urls(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let urls: Vec<String> = self
            .get(name)
            .split(',')
            .map(|url| url.trim().trim_end_matches('/').to_string())
            .collect();
        for url in &urls {
            check_url(url).with_context(|| self.said(name))?;
        }
        Ok(urls)
    }

    /// The URLs, or those listened on, by a name that others can use.
    fn urls_or(&self, name: &str, listen: &[String]) -> anyhow::Result<Vec<String>> {
        if !self.get(name).is_empty() {
            return self.urls(name);
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() {
            "localhost"
        } else {
            host.trim()
        };
        Ok(listen
            .iter()
            .map(|url| {
                url.replace("://0.0.0.0:", &format!("://{host}:"))
                    .replace("://[::]:", &format!("://{host}:"))
            })
            .collect())
    }

    fn initial_cluster(&self, name: &str, own: &[String]) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let is_discovered = !self.get("discovery-srv").is_empty();
        if is_discovered && !self.get("initial-cluster").is_empty() {
            bail!(
                "{}: the members are named by --discovery-srv; give one of the two",
                self.said("initial-cluster")
            );
        }
        if is_discovered {
            return Ok(BTreeMap::new());
        }
        if self.get("initial-cluster").is_empty() {
            return Ok(BTreeMap::from([(name.to_string(), own.to_vec())]));
        }
        let members = parse_initial_cluster(self.get("initial-cluster"))
            .with_context(|| self.said("initial-cluster"))?;
        if !members.contains_key(name) {
            bail!(
                "{}: this member, --name {name:?}, is not in it",
                self.said("initial-cluster")
            );
        }
        Ok(members)
    }

    fn discovery(&self) -> anyhow::Result<Option<Discovery>> {
        let domain = self.get("discovery-srv");
        if domain.is_empty() {
            return match ["discovery-srv-name", "discovery-nameserver"]
                .iter()
                .find(|name| !self.get(name).is_empty())
            {
                Some(name) => bail!("{}: needs --discovery-srv", self.said(name)),
                None => Ok(None),
            };
        }
        let servers = parse_servers(self.get("discovery-nameserver"));
        Ok(Some(Discovery {
            domain: domain.to_string(),
            name: self.get("discovery-srv-name").to_string(),
            servers: servers.with_context(|| self.said("discovery-nameserver"))?,
        }))
    }

    fn duration(&self, name: &str) -> anyhow::Result<Duration> {
        let text = self.get(name);
        let duration = match text.parse::<u64>() {
            Ok(milliseconds) => Duration::from_millis(milliseconds),
            Err(_) => humantime::parse_duration(text)
                .with_context(|| format!("{}: milliseconds, or such as 500ms or 2s", self.said(name)))?,
        };
        if !duration.is_zero() && duration < Duration::from_millis(1) {
            bail!(
                "{}: at least 1ms; a number in YAML or JSON is of nanoseconds here, as etcd has it: write such as 2s",
                self.said(name)
            );
        }
        Ok(duration)
    }

    fn number(&self, name: &str, least: u64) -> anyhow::Result<u64> {
        let text = self.get(name);
        let size = text.parse::<bytesize::ByteSize>().map(|size| size.as_u64());
        match size {
            Ok(number) if number >= least => Ok(number),
            _ => bail!("{}: must be a number, {least} or more", self.said(name)),
        }
    }
}

/// Reads a list of name servers, comma-separated, with or without ports.
pub fn parse_servers(text: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let server = |server: &str| {
        let with_port = server.parse::<SocketAddr>();
        with_port
            .or_else(|_| server.parse::<IpAddr>().map(|address| (address, 53).into()))
            .with_context(|| format!("{server:?} is no address such as 10.0.0.2 or 127.0.0.1:8600"))
    };
    let servers = text.split(',').map(str::trim).filter(|server| !server.is_empty());
    servers.map(server).collect()
}

/// Reads `--initial-cluster`.
pub fn parse_initial_cluster(text: &str) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for member in text.split(',') {
        let said = || format!("{member:?} is not name=url");
        let (name, url) = member.split_once('=').with_context(said)?;
        let url = url.trim().trim_end_matches('/');
        check_url(url).with_context(said)?;
        members
            .entry(name.trim().to_string())
            .or_default()
            .push(url.to_string());
    }
    Ok(members)
}

/// The members in order, as members compare what they were started with.
pub fn initial_cluster_text(members: &BTreeMap<String, Vec<String>>) -> String {
    let members: Vec<String> = members
        .iter()
        .map(|(name, urls)| format!("{name}={}", urls.join(";")))
        .collect();
    members.join(",")
}

fn check_url(url: &str) -> anyhow::Result<()> {
    let Some((scheme, address)) = url.split_once("://") else {
        bail!("{url:?} is not http://host:port or https://host:port")
    };
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .map(|(_, port)| port.parse::<u16>());
    match (scheme, port) {
        ("http" | "https", Some(Ok(_))) => Ok(()),
        _ => bail!("{url:?} is not http://host:port or https://host:port"),
    }
}
