//! What `pontoon cluster` tells the members that it starts: where faults are made, and that peers are dialled through it.
//!
//! It is in the variable [`VARIABLE`], and no setting: nobody sets it by hand. A member that could be reached from
//! elsewhere refuses to start with it. The member itself makes no fault: its peers' connections lead through the
//! process that started it, and signals come from there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::Config;

/// Where it is.
pub const VARIABLE: &str = "PONTOON_PLAYGROUND";

/// What such a member is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Playground {
    /// Where the page asks for faults; it needs the token for that, which no member has.
    pub control: String,
    /// Peer URLs, each with where it is dialled instead.
    pub detours: BTreeMap<String, String>,
}

impl Playground {
    /// Reads the variable's value, for a member with these settings.
    pub fn parse(text: &str, config: &Config) -> anyhow::Result<Playground> {
        let playground: Playground = serde_json::from_str(text).context(VARIABLE)?;
        let listened = [
            &config.listen_client_urls,
            &config.listen_peer_urls,
            &config.listen_metrics_urls,
        ];
        let urls = listened.into_iter().flatten();
        let urls = urls
            .chain(playground.detours.values())
            .chain([&playground.control]);
        for url in urls {
            if !is_here(url) {
                bail!(
                    "{VARIABLE} is for members that `pontoon cluster` starts to be broken, on this machine alone; {url} is \
                     not"
                );
            }
        }
        Ok(playground)
    }
}

/// Whether only this machine reaches `url`, in plain.
fn is_here(url: &str) -> bool {
    let uri: Option<http::Uri> = url.parse().ok();
    let host = uri.as_ref().filter(|uri| uri.scheme_str() == Some("http"));
    let host = host
        .and_then(http::Uri::host)
        .map(|host| host.trim_matches(['[', ']']));
    host.and_then(|host| host.parse::<IpAddr>().ok())
        .is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_here() {
        for here in ["http://127.0.0.1:2379", "http://[::1]:1", "http://127.9.9.9:1/"] {
            assert!(is_here(here), "{here}");
        }
        for elsewhere in [
            "http://0.0.0.0:2379",
            "http://10.0.0.1:1",
            "http://localhost.evil.example:1",
            "https://127.0.0.1:1",
            "127.0.0.1:1",
            "",
        ] {
            assert!(!is_here(elsewhere), "{elsewhere}");
        }
    }
}
