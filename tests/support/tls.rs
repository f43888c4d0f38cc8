//! Encrypted members: authorities, certificates, and who is let in with them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use pontoon::pb::etcdserverpb::PutRequest;
use pontoon::pb::etcdserverpb::kv_client::KvClient;
use pontoon::tls::{self, ClientTls, Files, Options};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams, DnType,
    IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::cluster::{BINARY, PATIENCE};
use super::process::{await_exit, free_port, kill_and_reap, spawn_logged, tail, wait_for};

/// An authority that signs certificates for 127.0.0.1.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Where what it signed is kept.
    pub dir: PathBuf,
}

impl Authority {
    /// Its certificate is in a directory of its name below `dir`.
    pub fn new(dir: &Path, name: &str) -> Authority {
        let dir = dir.join(name);
        std::fs::create_dir(&dir).expect("a directory");
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.join("ca.pem"), cert.pem()).expect("written");
        Authority {
            issuer: Issuer::new(params, key),
            dir,
        }
    }

    /// Its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Signs, or signs anew, a certificate for 127.0.0.1 with this common name.
    pub fn sign(&self, name: &str) -> Files {
        self.sign_for(name, &["127.0.0.1"])
    }

    /// The same, for these addresses and names. Its serial number is made of the common name.
    pub fn sign_for(&self, name: &str, hosts: &[&str]) -> Files {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(serial(name));
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = Files {
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
            ca: self.ca(),
            ..Files::default()
        };
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        std::fs::write(&files.cert, cert.pem()).expect("written");
        files
    }

    /// The list of the certificates that are revoked, by their common names.
    pub fn revoke(&self, names: &[&str]) -> CertificateRevocationList {
        let revoked = |name: &&str| RevokedCertParams {
            serial_number: serial(name),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: names.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list")
    }
}

fn serial(name: &str) -> SerialNumber {
    name.as_bytes().to_vec().into()
}

/// A process that ends with the test.
pub struct Running(pub Child, pub PathBuf);

impl Drop for Running {
    fn drop(&mut self) {
        kill_and_reap(&mut self.0);
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.1.display(), tail(&self.1));
        }
    }
}

/// Where members listen and are reached: URLs, `https://` unless a test changes them.
pub struct Addresses {
    pub clients: Vec<String>,
    pub peers: Vec<String>,
}

impl Addresses {
    /// For so many members.
    pub fn choose(count: usize) -> Addresses {
        let urls = || {
            (0..count)
                .map(|_| format!("https://127.0.0.1:{}", free_port()))
                .collect()
        };
        Addresses {
            clients: urls(),
            peers: urls(),
        }
    }

    /// Starts the member `at`, with its data and its log below `dir`.
    pub fn start(&self, at: usize, dir: &Path, flags: &[impl AsRef<OsStr>]) -> Running {
        let all: Vec<String> = self
            .peers
            .iter()
            .enumerate()
            .map(|(at, url)| format!("n{at}={url}"))
            .collect();
        let mut command = Command::new(BINARY);
        command
            .args(["serve", "--name", &format!("n{at}"), "--data-dir"])
            .arg(dir.join(format!("n{at}")));
        for (flag, url) in [
            ("--listen-client-urls", &self.clients[at]),
            ("--advertise-client-urls", &self.clients[at]),
            ("--listen-peer-urls", &self.peers[at]),
            ("--initial-advertise-peer-urls", &self.peers[at]),
            ("--initial-cluster", &all.join(",")),
        ] {
            command.args([flag, url]);
        }
        command.args(["--founding-wait", "0"]).args(flags);
        let log = dir.join(format!("n{at}.log"));
        Running(spawn_logged(&mut command, &log), log)
    }
}

/// A connection that shows and trusts what is in these options, made when it is used.
pub fn connect(url: &str, options: impl Into<Options>) -> Channel {
    channel(url, ClientTls::new(options).expect("usable files"))
}

/// A connection over these certificates, made when it is used.
pub fn channel(url: &str, tls: ClientTls) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_string()).expect("a URL");
    tls::channel(
        &endpoint.connect_timeout(Duration::from_secs(2)),
        Some(Arc::new(tls)),
    )
}

/// Puts a key.
pub async fn put(channel: &Channel) -> Result<(), Status> {
    let request = PutRequest {
        key: "key".into(),
        value: "value".into(),
        ..PutRequest::default()
    };
    KvClient::new(channel.clone()).put(request).await.map(drop)
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is text")
}

/// Whether a port lets in who shows and speaks this. Puts are for the client port; the peer port does not know them.
pub async fn is_let_in(url: &str, options: impl Into<Options>) -> bool {
    match put(&connect(url, options)).await {
        Ok(()) => true,
        Err(status) => status.code() == Code::Unimplemented,
    }
}

/// Waits until a port lets in who shows and speaks this.
pub async fn let_in(url: &str, options: impl Into<Options>) {
    let options = options.into();
    wait_for(PATIENCE, &format!("{url} to let in {options:?}"), || async {
        is_let_in(url, options.clone()).await.then_some(())
    })
    .await;
}

/// `--cert-file` and the other two with these files; `prefix`: `peer-` for the peer port.
pub fn flags_of(prefix: &str, files: &Files) -> Vec<String> {
    [
        ("cert-file", &files.cert),
        ("key-file", &files.key),
        ("trusted-ca-file", &files.ca),
    ]
    .iter()
    .map(|(flag, path)| format!("--{prefix}{flag}={}", path.display()))
    .collect()
}

/// Waits until the member refused to start, and returns what it said.
pub async fn refusal(mut member: Running) -> String {
    let status = tokio::time::timeout(PATIENCE, await_exit(&mut member.0)).await;
    let status = status.expect("the member refuses in time");
    assert_eq!(status.code(), Some(1));
    tail(&member.1)
}
