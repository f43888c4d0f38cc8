//! Which certificates a member uses, from its settings.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::config::{Config, Tls};
use crate::tls::{ClientTls, Files, ServerTls, self_signed};

/// The sides of TLS that a member takes; those that are off are absent.
pub struct Certificates {
    /// Clients connect to it.
    pub clients: Option<Arc<ServerTls>>,
    /// Members connect to it.
    pub peers: Option<Arc<ServerTls>>,
    /// It connects to members.
    pub to_peers: Option<Arc<ClientTls>>,
}

impl Certificates {
    /// Reads the files, or makes what `--auto-tls` and `--peer-auto-tls` want below the data directory.
    pub fn open(config: &Config, data_dir: &Path) -> anyhow::Result<Self> {
        let clients = files(
            &config.client_tls,
            &config.advertise_client_urls,
            &data_dir.join("tls/client"),
        )?;
        let peers = files(
            &config.peer_tls,
            &config.initial_advertise_peer_urls,
            &data_dir.join("tls/peer"),
        )?;
        let server = |files: &Option<Files>, flag: &str| {
            let tls = files.clone().map(ServerTls::new).transpose();
            tls.with_context(|| flag.to_string())
        };
        let to_peers = match (&config.peer_tls, peers.clone()) {
            (Tls::Auto, Some(files)) => Some(ClientTls::trusting_anybody(files)?),
            (_, files) => files
                .map(ClientTls::new)
                .transpose()
                .context("--peer-cert-file")?,
        };
        Ok(Certificates {
            clients: server(&clients, "--cert-file")?.map(Arc::new),
            peers: server(&peers, "--peer-cert-file")?.map(Arc::new),
            to_peers: to_peers.map(Arc::new),
        })
    }
}

fn files(tls: &Tls, urls: &[String], dir: &Path) -> anyhow::Result<Option<Files>> {
    match tls {
        Tls::Off => Ok(None),
        Tls::On(files) => Ok(Some(files.clone())),
        Tls::Auto => self_signed(dir, urls.iter().map(|url| host(url)).collect()).map(Some),
    }
}

/// The host of `https://host:port`.
fn host(url: &str) -> String {
    let address = url.split_once("://").map_or(url, |(_, address)| address);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').to_string()
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn hosts_of_urls() {
        assert_eq!(host("https://n1:2380"), "n1");
        assert_eq!(host("https://[::1]:2380"), "::1");
        assert_eq!(host("https://10.0.0.1:2380"), "10.0.0.1");
    }
}
