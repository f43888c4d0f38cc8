//! The sockets that a member listens on: one or more for each URL, which says for itself whether they are encrypted.
//!
//! They are bound first, so that a port that is taken is found before anything is written; certificates, which may lie
//! in the data directory, are there later.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::net::TcpListener;

use crate::tls::ServerTls;

/// A socket of a URL, before anything is accepted on it.
pub struct Bound {
    listener: TcpListener,
    url: String,
}

/// A socket to accept connections on.
pub struct Socket {
    /// Where they come in.
    pub listener: TcpListener,
    /// What encrypts them; none: they are plain.
    pub tls: Option<Arc<ServerTls>>,
}

impl Bound {
    /// Encrypts those of `https://`, and no others. An `https://` socket without certificates is an error: it is never
    /// served plain.
    pub fn encrypt(bound: Vec<Bound>, tls: Option<&Arc<ServerTls>>) -> anyhow::Result<Vec<Socket>> {
        let encrypt = |Bound { listener, url }: Bound| {
            let tls = match (url.starts_with("https://"), tls) {
                (false, _) => None,
                (true, Some(tls)) => Some(tls.clone()),
                (true, None) => bail!("{url}: there are no certificates for it"),
            };
            Ok(Socket { listener, tls })
        };
        if tls.is_some() {
            for plain in bound.iter().filter(|bound| !bound.url.starts_with("https://")) {
                tracing::warn!(
                    url = plain.url,
                    "not encrypted, and takes anybody: certificates are for https://"
                );
            }
        }
        bound.into_iter().map(encrypt).collect()
    }
}

/// Listens on every address that the URLs of `flag` name.
pub async fn bind(urls: &[String], flag: &str) -> anyhow::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for url in urls {
        let listeners = bind_one(url, flag).await?;
        bound.extend(listeners.into_iter().map(|listener| Bound {
            listener,
            url: url.clone(),
        }));
    }
    Ok(bound)
}

async fn bind_one(url: &str, flag: &str) -> anyhow::Result<Vec<TcpListener>> {
    let address = url
        .split_once("://")
        .map_or(url, |(_, address)| address)
        .trim_end_matches('/');
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await
        .with_context(|| format!("{flag}: {url}: cannot resolve {address}"))?
        .collect();
    // A name such as localhost may stand for an IPv6 address that this machine does not have.
    let mut problem = None;
    let mut listeners = Vec::new();
    for address in resolved {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                bail!("{flag}: {address} is in use by another process: stop it, or choose another port")
            }
            Err(error) => problem = Some(error),
        }
    }
    if listeners.is_empty() {
        let problem = problem.map_or("it resolves to no address".to_string(), |error| error.to_string());
        bail!("{flag}: cannot listen on {url}: {problem}");
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Options;
    use crate::tls::files::self_signed;

    async fn bound(urls: &[&str]) -> Vec<Bound> {
        let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
        bind(&urls, "--listen").await.expect("bound")
    }

    #[tokio::test]
    async fn each_url_says_for_itself_whether_it_is_encrypted() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let files = self_signed(dir.path(), vec!["localhost".to_string()]).expect("made");
        let tls = Arc::new(ServerTls::new(Options::from(files)).expect("usable"));
        let both = bound(&["http://127.0.0.1:0", "https://127.0.0.1:0"]).await;
        let sockets = Bound::encrypt(both, Some(&tls)).expect("encrypted");
        let encrypted: Vec<bool> = sockets.iter().map(|socket| socket.tls.is_some()).collect();
        assert_eq!(encrypted, [false, true]);
    }

    #[tokio::test]
    async fn https_is_never_served_plain() {
        let error = Bound::encrypt(bound(&["https://127.0.0.1:0"]).await, None).err();
        let error = error.expect("refused").to_string();
        assert!(error.contains("there are no certificates for it"), "{error}");
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let first = bound(&["http://127.0.0.1:0"]).await;
        let address = first[0].listener.local_addr().expect("bound");
        let again = bind(&[format!("http://{address}")], "--listen-client-urls").await;
        let error = again.err().expect("refused").to_string();
        assert!(
            error.contains(&format!("--listen-client-urls: {address} is in use")),
            "{error}"
        );
    }
}
