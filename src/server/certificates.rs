//! Which certificates a member uses, from its settings.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::config::{Config, Tls};
use crate::tls::files::self_signed;
use crate::tls::{ClientTls, Options, ServerTls};

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
        let clients = options(
            &config.client_tls,
            &config.advertise_client_urls,
            &data_dir.join("tls/client"),
        )?;
        let peers = options(
            &config.peer_tls,
            &config.initial_advertise_peer_urls,
            &data_dir.join("tls/peer"),
        )?;
        let to_peers = match (&config.peer_tls, peers.clone()) {
            (Tls::Auto(_), Some(options)) => Some(ClientTls::trusting_anybody(options)?),
            (_, options) => options
                .map(ClientTls::new)
                .transpose()
                .context("--peer-cert-file")?,
        };
        Ok(Certificates {
            clients: server(clients, "--cert-file")?,
            peers: server(peers, "--peer-cert-file")?,
            to_peers: to_peers.map(Arc::new),
        })
    }
}

/// The side that is connected to, if it has a certificate: who only connects to `https://` needs none.
fn server(options: Option<Options>, flag: &str) -> anyhow::Result<Option<Arc<ServerTls>>> {
    let options = options.filter(|options| !options.files.cert.as_os_str().is_empty());
    let tls = options.map(ServerTls::new).transpose();
    Ok(tls.with_context(|| flag.to_string())?.map(Arc::new))
}

fn options(tls: &Tls, urls: &[String], dir: &Path) -> anyhow::Result<Option<Options>> {
    match tls {
        Tls::Off => Ok(None),
        Tls::On(options) => Ok(Some(options.clone())),
        Tls::Auto(protocol) => Ok(Some(Options {
            protocol: protocol.clone(),
            ..self_signed(dir, urls.iter().map(|url| host(url)).collect())?.into()
        })),
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
