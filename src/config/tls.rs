//! The settings of TLS. They are alike for both ports, but for their names.
//!
//! Whether anything is encrypted is for the URLs to say. What is given without an effect is an error: whoever names an
//! authority, a list of revoked certificates or the names to be let in means to keep somebody out.

use std::path::PathBuf;

use anyhow::bail;

use super::Values;
use crate::tls::{Admission, Files, Options, Protocol};

/// How a port is encrypted, where its URLs want it.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Tls {
    /// No URL wants it.
    #[default]
    Off,
    /// With these certificates; without one of its own nothing is served, but `https://` can be connected to.
    On(Options),
    /// With a certificate that the member makes itself.
    Auto(Protocol),
}

/// The names of one port's settings.
pub(super) struct Names {
    /// Before most of them.
    prefix: &'static str,
    crl: &'static str,
    allowed_cn: Option<&'static str>,
    allowed_hostname: &'static str,
    skip_address: Option<&'static str>,
    /// URLs that are served with these settings.
    served: &'static [&'static str],
    /// URLs that are connected to with these settings.
    reached: &'static [&'static str],
    /// Where other such URLs may be found.
    discovers: Option<&'static str>,
}

/// Where clients connect to, and whoever looks after the member.
pub(super) const CLIENTS: Names = Names {
    prefix: "",
    crl: "client-crl-file",
    allowed_cn: None,
    allowed_hostname: "client-cert-allowed-hostname",
    skip_address: None,
    served: &["listen-client-urls", "listen-metrics-urls"],
    reached: &[],
    discovers: None,
};

/// Where members connect to each other.
pub(super) const PEERS: Names = Names {
    prefix: "peer-",
    crl: "peer-crl-file",
    allowed_cn: Some("peer-cert-allowed-cn"),
    allowed_hostname: "peer-cert-allowed-hostname",
    skip_address: Some("peer-skip-client-san-verification"),
    served: &["listen-peer-urls"],
    reached: &["initial-advertise-peer-urls", "initial-cluster", "join"],
    discovers: Some("discovery-srv"),
};

impl Names {
    fn of(&self, rest: &str) -> String {
        format!("{}{rest}", self.prefix)
    }
}

impl Values {
    /// How the port of these names is encrypted; what is missing for it, or can't be meant, is an error.
    pub(super) fn tls(&self, names: &Names) -> anyhow::Result<Tls> {
        let options = self.tls_options(names)?;
        self.check_authority(names)?;
        let (cert, key) = (names.of("cert-file"), names.of("key-file"));
        let (ca, auto) = (names.of("trusted-ca-file"), names.of("auto-tls"));
        let makes_its_own = self.boolean(&auto)?;
        let is_served = self.is_encrypted(names.served);
        let may_find = names.discovers.is_some_and(|name| self.is_given(name));
        if !is_served && !may_find && !self.is_encrypted(names.reached) {
            if makes_its_own || [&cert, &key, &ca].iter().any(|name| self.is_given(name)) {
                bail!(
                    "--{cert}: certificates are given, but no URL that is listened on begins with https://"
                );
            }
            return Ok(Tls::Off);
        }
        match (self.is_given(&cert), self.is_given(&key), makes_its_own) {
            (true, true, _) => Ok(Tls::On(options)),
            (false, false, true) if self.is_given(&ca) => {
                bail!("--{auto}: makes a certificate of no authority; with --{ca} give --{cert} and --{key}")
            }
            (false, false, true) => Ok(Tls::Auto(options.protocol)),
            (false, false, false) if !is_served => Ok(Tls::On(options)),
            _ => bail!("an https:// URL needs --{cert} and --{key}, or --{auto}"),
        }
    }

    fn tls_options(&self, names: &Names) -> anyhow::Result<Options> {
        let path = |name: &str| PathBuf::from(self.get(name));
        let skips_address = names.skip_address.map(|name| self.boolean(name)).transpose()?;
        Ok(Options {
            files: Files {
                cert: path(&names.of("cert-file")),
                key: path(&names.of("key-file")),
                ca: path(&names.of("trusted-ca-file")),
                crl: path(names.crl),
            },
            protocol: self.protocol()?,
            admission: Admission {
                common_names: names.allowed_cn.map(|name| self.list(name)).unwrap_or_default(),
                hosts: self.list(names.allowed_hostname),
                from_its_address: skips_address == Some(false),
            },
        })
    }

    fn protocol(&self) -> anyhow::Result<Protocol> {
        let (min, max) = ("tls-min-version", "tls-max-version");
        Protocol::new(self.get(min), self.get(max), &self.list("cipher-suites"))
    }

    /// Who connects shows a certificate only if there is an authority to trust.
    fn check_authority(&self, names: &Names) -> anyhow::Result<()> {
        let ca = names.of("trusted-ca-file");
        if self.is_given(&ca) {
            return Ok(());
        }
        let must_show = names.of("client-cert-auth");
        if self.boolean(&must_show)? {
            bail!("--{must_show}: needs --{ca}");
        }
        for name in names
            .allowed_cn
            .iter()
            .chain([&names.crl, &names.allowed_hostname])
        {
            if self.is_given(name) {
                bail!("--{name}: needs --{ca}");
            }
        }
        Ok(())
    }

    fn is_given(&self, name: &str) -> bool {
        !self.get(name).is_empty()
    }

    fn is_encrypted(&self, urls: &[&str]) -> bool {
        urls.iter().any(|name| self.get(name).contains("https://"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gather, refusal};
    use super::*;

    const FILES: [&str; 6] = [
        "--cert-file",
        "c.pem",
        "--key-file",
        "c.key",
        "--trusted-ca-file",
        "ca.pem",
    ];
    const PEER_FILES: [&str; 6] = [
        "--peer-cert-file",
        "p.pem",
        "--peer-key-file",
        "p.key",
        "--peer-trusted-ca-file",
        "ca.pem",
    ];

    fn both(given: &[&str]) -> (Tls, Tls) {
        let config = gather(given, &[])
            .and_then(|values| values.config())
            .expect("valid");
        (config.client_tls, config.peer_tls)
    }

    fn options(tls: Tls) -> Options {
        match tls {
            Tls::On(options) => options,
            other => panic!("it is {other:?}"),
        }
    }

    #[test]
    fn one_url_of_a_port_is_enough() {
        for urls in [
            [
                "--listen-client-urls",
                "http://127.0.0.1:2379,https://10.0.0.1:2379",
            ],
            ["--listen-metrics-urls", "https://10.0.0.1:2381"],
        ] {
            let (clients, peers) = both(&[&urls[..], &FILES].concat());
            assert_eq!(options(clients).files.cert, PathBuf::from("c.pem"), "{urls:?}");
            assert_eq!(peers, Tls::Off);
        }
    }

    #[test]
    fn members_at_https_are_connected_to_from_a_plain_port() {
        let urls = ["--initial-cluster", "default=http://a:1,b=https://b:1"];
        let advertised = ["--initial-advertise-peer-urls", "http://a:1"];
        let (_, peers) = both(&[&urls[..], &advertised].concat());
        assert_eq!(options(peers).files, Files::default());
        let (_, peers) = both(&[&urls[..], &advertised, &PEER_FILES].concat());
        assert_eq!(options(peers).files.ca, PathBuf::from("ca.pem"));
    }

    #[test]
    fn versions_suites_and_names_are_read() {
        let urls = [
            "--listen-client-urls",
            "https://a:1",
            "--listen-peer-urls",
            "https://a:2",
        ];
        let suite = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        let more = [
            "--cipher-suites",
            suite,
            "--tls-max-version",
            "TLS1.2",
            "--peer-cert-allowed-cn",
            "a,b",
            "--client-cert-allowed-hostname",
            "c",
            "--experimental-peer-skip-client-san-verification",
        ];
        let (clients, peers) = both(&[&urls[..], &FILES, &PEER_FILES, &more].concat());
        let (clients, peers) = (options(clients), options(peers));
        let protocol = Protocol::new("", "TLS1.2", &[suite.to_string()]).expect("valid");
        assert_eq!((&clients.protocol, &peers.protocol), (&protocol, &protocol));
        assert_eq!(peers.admission.common_names, ["a", "b"]);
        assert_eq!(clients.admission.hosts, ["c"]);
        assert!(!peers.admission.from_its_address && !clients.admission.from_its_address);
        let (_, peers) = both(&[&urls[..], &FILES, &PEER_FILES].concat());
        assert!(options(peers).admission.from_its_address);
    }

    #[test]
    fn environment_and_file_set_it_as_flags_do() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "cipher-suites = [\"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\"]\ntls-max-version = \"TLS1.2\"\n\
                    listen-peer-urls = \"https://a:2\"\npeer-cert-file = \"p.pem\"\npeer-key-file = \"p.key\"\n";
        std::fs::write(file.path(), text).expect("written");
        let file = file.path().to_string_lossy().into_owned();
        let environment = [
            ("ETCD_EXPERIMENTAL_PEER_SKIP_CLIENT_SAN_VERIFICATION", "true"),
            ("ETCD_PEER_TRUSTED_CA_FILE", "ca.pem"),
            ("ETCD_PEER_CRL_FILE", "a.crl"),
            (
                "PONTOON_CIPHER_SUITES",
                "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            ),
        ];
        let values = gather(&["--config-file", &file], &environment);
        let config = values.and_then(|values| values.config()).expect("valid");
        let peers = options(config.peer_tls);
        let suites = [
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        ];
        let protocol = Protocol::new("TLS1.2", "TLS1.2", &suites.map(String::from)).expect("valid");
        assert_eq!(peers.protocol, protocol);
        assert!(!peers.admission.from_its_address);
        assert_eq!(peers.files.crl, PathBuf::from("a.crl"));
    }

    #[test]
    fn what_would_keep_nobody_out_is_refused() {
        let https = [
            "--listen-client-urls",
            "https://a:1",
            "--listen-peer-urls",
            "https://a:2",
            "--auto-tls",
            "--peer-auto-tls",
        ];
        for (given, said) in [
            (
                &["--client-crl-file", "x"][..],
                "--client-crl-file: needs --trusted-ca-file",
            ),
            (
                &["--peer-crl-file", "x"],
                "--peer-crl-file: needs --peer-trusted-ca-file",
            ),
            (
                &["--peer-cert-allowed-cn", "x"],
                "--peer-cert-allowed-cn: needs --peer-trusted-ca-file",
            ),
            (
                &["--peer-cert-allowed-hostname", "x"],
                "--peer-cert-allowed-hostname: needs --peer-trusted-ca-file",
            ),
            (
                &["--client-cert-allowed-hostname", "x"],
                "--client-cert-allowed-hostname: needs --trusted-ca-file",
            ),
            (
                &["--client-cert-auth"],
                "--client-cert-auth: needs --trusted-ca-file",
            ),
            (
                &["--cipher-suites", "TLS_NULL"],
                "--cipher-suites \"TLS_NULL\": unknown",
            ),
        ] {
            for given in [given.to_vec(), [&https[..], given].concat()] {
                let error = refusal(&given);
                assert!(error.contains(said), "{said:?} is not in {error}");
            }
        }
        let error = refusal(&[&https[..], &["--trusted-ca-file", "x"]].concat());
        assert!(
            error.contains("--auto-tls: makes a certificate of no authority"),
            "{error}"
        );
        for given in [&FILES[..], &["--key-file", "x"], &["--auto-tls"], &PEER_FILES] {
            assert!(refusal(given).contains("no URL that is listened on begins with https://"));
        }
    }
}
