//! What a side speaks: which versions of TLS, and which cipher suites.
//!
//! Suites go by IANA's names, as etcd and Go have them. A list of them is all that is spoken of TLS 1.2. TLS 1.3 has
//! suites of its own, all of them safe: they stay on, as in etcd, unless the list names some of them. What is weak (CBC,
//! RSA key exchange, RC4) is not there to be chosen.

use std::sync::Arc;

use anyhow::bail;
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion, version};

/// Versions and suites, never none of either.
#[derive(Debug, Clone, PartialEq)]
pub struct Protocol {
    versions: Vec<&'static SupportedProtocolVersion>,
    /// Of these versions, in the order that was given.
    suites: Vec<SupportedCipherSuite>,
}

impl Default for Protocol {
    fn default() -> Self {
        Protocol {
            versions: vec![&version::TLS13, &version::TLS12],
            suites: ring::DEFAULT_CIPHER_SUITES.to_vec(),
        }
    }
}

impl Protocol {
    /// From the versions and suites that etcd's flags name. Empty: the oldest that is safe, the newest, all that are
    /// safe.
    pub fn new(min: &str, max: &str, suites: &[String]) -> anyhow::Result<Self> {
        let oldest = parse_version("--tls-min-version", min, ProtocolVersion::TLSv1_2)?;
        let newest = parse_version("--tls-max-version", max, ProtocolVersion::TLSv1_3)?;
        if u16::from(oldest) > u16::from(newest) {
            bail!("--tls-min-version {min} is greater than --tls-max-version {max}");
        }
        if oldest == ProtocolVersion::TLSv1_3 && !suites.is_empty() {
            bail!("--cipher-suites cannot be configured when only TLS1.3 is enabled, by --tls-min-version");
        }
        let all = Protocol::default();
        let is_spoken =
            |version: ProtocolVersion| (u16::from(oldest)..=u16::from(newest)).contains(&u16::from(version));
        let mut chosen = choose(all.suites, suites)?;
        chosen.retain(|suite| is_spoken(suite.version().version));
        if chosen.is_empty() {
            bail!("--cipher-suites: none of them is of {max}, the --tls-max-version");
        }
        let mut versions = all.versions;
        versions.retain(|version| chosen.iter().any(|suite| suite.version() == *version));
        Ok(Protocol {
            versions,
            suites: chosen,
        })
    }

    pub(super) fn versions(&self) -> &[&'static SupportedProtocolVersion] {
        &self.versions
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        Arc::new(CryptoProvider {
            cipher_suites: self.suites.clone(),
            ..ring::default_provider()
        })
    }
}

fn parse_version(flag: &str, text: &str, default: ProtocolVersion) -> anyhow::Result<ProtocolVersion> {
    match text {
        "" => Ok(default),
        "TLS1.2" => Ok(ProtocolVersion::TLSv1_2),
        "TLS1.3" => Ok(ProtocolVersion::TLSv1_3),
        _ => bail!("{flag} {text:?}: TLS1.2 or TLS1.3"),
    }
}

/// Those that are named, and TLS 1.3's if none of them is.
fn choose(all: Vec<SupportedCipherSuite>, names: &[String]) -> anyhow::Result<Vec<SupportedCipherSuite>> {
    if names.is_empty() {
        return Ok(all);
    }
    let mut chosen = Vec::new();
    for given in names {
        let Some(suite) = all.iter().find(|suite| is_called(suite, given)) else {
            let known: Vec<String> = all.iter().map(name).collect();
            bail!(
                "--cipher-suites {given:?}: unknown, or not safe; supported are {}",
                known.join(", ")
            );
        };
        chosen.push(*suite);
    }
    if !chosen.iter().any(is_of_13) {
        chosen.extend(all.into_iter().filter(is_of_13));
    }
    Ok(chosen)
}

fn is_of_13(suite: &SupportedCipherSuite) -> bool {
    suite.version() == &version::TLS13
}

/// Go once left out the hash of ChaCha's suites.
fn is_called(suite: &SupportedCipherSuite, given: &str) -> bool {
    let name = name(suite);
    name == given || (given.ends_with("_POLY1305") && name.strip_suffix("_SHA256") == Some(given))
}

/// IANA's.
fn name(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocol(min: &str, max: &str, suites: &[&str]) -> anyhow::Result<Protocol> {
        let suites: Vec<String> = suites.iter().map(ToString::to_string).collect();
        Protocol::new(min, max, &suites)
    }

    fn spoken(min: &str, max: &str, suites: &[&str]) -> Vec<String> {
        let protocol = protocol(min, max, suites).expect("valid");
        protocol.suites.iter().map(name).collect()
    }

    const OF_13: [&str; 3] = [
        "TLS_AES_256_GCM_SHA384",
        "TLS_AES_128_GCM_SHA256",
        "TLS_CHACHA20_POLY1305_SHA256",
    ];

    #[test]
    fn nothing_given_is_all_that_is_safe() {
        assert_eq!(protocol("", "", &[]).expect("valid"), Protocol::default());
        assert_eq!(
            protocol("TLS1.2", "TLS1.3", &[]).expect("valid"),
            Protocol::default()
        );
    }

    #[test]
    fn versions_bound_what_is_spoken() {
        let versions = |min, max| protocol(min, max, &[]).expect("valid").versions;
        assert_eq!(versions("TLS1.3", ""), [&version::TLS13]);
        assert_eq!(versions("", "TLS1.2"), [&version::TLS12]);
        assert_eq!(spoken("TLS1.3", "", &[]), OF_13);
    }

    #[test]
    fn named_suites_are_all_of_tls_12_and_leave_tls_13_alone() {
        let named = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        assert_eq!(spoken("", "", &[named]), [&[named][..], &OF_13].concat());
        assert_eq!(spoken("", "TLS1.2", &[named]), [named]);
        assert_eq!(
            spoken("", "TLS1.2", &["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"]),
            ["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"]
        );
    }

    #[test]
    fn suites_of_tls_13_can_be_named_too() {
        let both = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"];
        assert_eq!(spoken("", "", &both), both);
        let only = protocol("", "", &both[1..]).expect("valid");
        assert_eq!(only.versions, [&version::TLS13], "no suite of TLS 1.2 is left");
    }

    #[test]
    fn what_cannot_be_spoken_is_refused() {
        for (min, max, suites, said) in [
            (
                "TLS1.1",
                "",
                &[][..],
                "--tls-min-version \"TLS1.1\": TLS1.2 or TLS1.3",
            ),
            ("", "1.3", &[], "--tls-max-version \"1.3\": TLS1.2 or TLS1.3"),
            (
                "TLS1.3",
                "TLS1.2",
                &[],
                "is greater than --tls-max-version TLS1.2",
            ),
            (
                "TLS1.3",
                "",
                &["TLS_AES_128_GCM_SHA256"],
                "cannot be configured when only TLS1.3 is enabled",
            ),
            (
                "",
                "TLS1.2",
                &["TLS_AES_128_GCM_SHA256"],
                "none of them is of TLS1.2, the --tls-max-version",
            ),
            (
                "",
                "",
                &["TLS_RSA_WITH_RC4_128_SHA"],
                "unknown, or not safe; supported are TLS_",
            ),
            ("", "", &["TLS_AES_256_GCM"], "unknown, or not safe"),
        ] {
            let error = protocol(min, max, suites).expect_err("refused").to_string();
            assert!(error.contains(said), "{said:?} is not in {error}");
        }
    }
}
