//! Encrypted: three members that trust one authority, clients with and without its certificates.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use pontoon::pb::etcdserverpb::auth_client::AuthClient;
use pontoon::pb::etcdserverpb::kv_client::KvClient;
use pontoon::pb::etcdserverpb::*;
use pontoon::tls::{self, ClientTls, Files};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::support::cluster::{BINARY, PATIENCE, machine};
use crate::support::process::{free_port, kill_and_reap, spawn_logged, tail, wait_for};

/// An authority that signs certificates for 127.0.0.1.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Authority {
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

    fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Signs, or signs anew, a certificate with this common name.
    fn sign(&self, name: &str) -> Files {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_string()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
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
}

/// A process that ends with the test.
struct Running(Child, PathBuf);

impl Drop for Running {
    fn drop(&mut self) {
        kill_and_reap(&mut self.0);
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.1.display(), tail(&self.1));
        }
    }
}

struct Addresses {
    clients: Vec<String>,
    peers: Vec<String>,
}

impl Addresses {
    fn choose(count: usize) -> Addresses {
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

    fn start(&self, at: usize, dir: &Path, flags: &[&str]) -> Running {
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

fn connect(url: &str, tls: ClientTls) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_string()).expect("a URL");
    tls::channel(
        &endpoint.connect_timeout(Duration::from_secs(2)),
        Some(Arc::new(tls)),
    )
}

async fn put(channel: &Channel) -> Result<(), Status> {
    let request = PutRequest {
        key: "key".into(),
        value: "value".into(),
        ..PutRequest::default()
    };
    KvClient::new(channel.clone()).put(request).await.map(drop)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_clients_show_certificates_of_one_authority() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let (ours, theirs) = (
        Authority::new(dir.path(), "ours"),
        Authority::new(dir.path(), "theirs"),
    );
    let (server, peer) = (ours.sign("server"), ours.sign("peer"));
    let flags = [
        ["--cert-file", text(&server.cert)],
        ["--key-file", text(&server.key)],
        ["--trusted-ca-file", text(&server.ca)],
        ["--client-cert-auth", "true"],
        ["--peer-cert-file", text(&peer.cert)],
        ["--peer-key-file", text(&peer.key)],
        ["--peer-trusted-ca-file", text(&peer.ca)],
        ["--peer-client-cert-auth", "true"],
        ["--peer-cert-allowed-cn", "peer"],
    ]
    .concat();
    let addresses = Addresses::choose(3);
    let _running: Vec<Running> = (0..3).map(|at| addresses.start(at, dir.path(), &flags)).collect();

    let root = connect(
        &addresses.clients[1],
        ClientTls::new(ours.sign("root")).expect("usable"),
    );
    wait_for(PATIENCE, "a put through TLS", || async { put(&root).await.ok() }).await;

    // Without a certificate, with one of another authority, and in the clear: nobody gets in.
    let only_the_ca = Files {
        ca: ours.ca(),
        ..Files::default()
    };
    let stranger = Files {
        ca: ours.ca(),
        ..theirs.sign("root")
    };
    for files in [only_the_ca, stranger] {
        let channel = connect(&addresses.clients[1], ClientTls::new(files).expect("usable"));
        assert!(put(&channel).await.is_err(), "it must be refused");
    }
    let plain = addresses.clients[1].replace("https", "http");
    let endpoint = Endpoint::from_shared(plain).expect("a URL");
    assert!(put(&tls::channel(&endpoint, None)).await.is_err());
    // A server that shows a certificate of an authority that we don't trust is not talked to.
    let distrustful = connect(
        &addresses.clients[1],
        ClientTls::new(theirs.sign("root")).expect("usable"),
    );
    assert!(put(&distrustful).await.is_err());

    common_names_are_users(&addresses, &ours, &root).await;
    a_renewed_certificate_is_used_at_once(&addresses, &ours, &theirs).await;
}

/// With access control on, a certificate's common name is who asks, if there is no token.
async fn common_names_are_users(addresses: &Addresses, ours: &Authority, root: &Channel) {
    let mut auth = AuthClient::new(root.clone());
    let user = AuthUserAddRequest {
        name: "root".to_string(),
        options: Some(pontoon::pb::authpb::UserAddOptions { no_password: true }),
        ..Default::default()
    };
    auth.user_add(user).await.expect("added");
    let grant = AuthUserGrantRoleRequest {
        user: "root".to_string(),
        role: "root".to_string(),
    };
    auth.user_grant_role(grant).await.expect("granted");
    auth.auth_enable(AuthEnableRequest {}).await.expect("enabled");
    put(root).await.expect("root by its certificate");
    let other = ours.sign("somebody");
    let other = connect(&addresses.clients[2], ClientTls::new(other).expect("usable"));
    assert_eq!(
        put(&other).await.expect_err("refused").code(),
        Code::PermissionDenied
    );
    auth.auth_disable(AuthDisableRequest {}).await.expect("disabled");
}

/// The file is replaced while the members run; whoever connects then sees the new certificate.
async fn a_renewed_certificate_is_used_at_once(addresses: &Addresses, ours: &Authority, theirs: &Authority) {
    let renewed = theirs.sign("server");
    std::fs::copy(&renewed.key, ours.dir.join("server.key")).expect("copied");
    std::fs::copy(&renewed.cert, ours.dir.join("server.pem")).expect("copied");
    let files = Files {
        ca: theirs.ca(),
        ..ours.sign("late")
    };
    let channel = connect(&addresses.clients[0], ClientTls::new(files).expect("usable"));
    wait_for(PATIENCE, "the renewed certificate", || async {
        put(&channel).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_members_make_themselves_encrypt() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let addresses = Addresses::choose(3);
    let flags = ["--auto-tls", "true", "--peer-auto-tls", "true"];
    let _running: Vec<Running> = (0..3).map(|at| addresses.start(at, dir.path(), &flags)).collect();
    let anybody = || ClientTls::trusting_anybody(Files::default()).expect("usable");
    for url in &addresses.clients {
        let channel = connect(url, anybody());
        wait_for(PATIENCE, "a put through TLS", || async {
            put(&channel).await.ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_for_tls_is_named() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let addresses = Addresses::choose(1);
    for (flags, said) in [
        (vec![], "needs --cert-file and --key-file"),
        (
            vec![
                "--cert-file",
                "/nowhere.pem",
                "--key-file",
                "/nowhere.key",
                "--peer-auto-tls",
            ],
            "/nowhere.pem: no certificate can be read from it",
        ),
        (
            vec!["--auto-tls", "--peer-auto-tls", "--client-cert-auth"],
            "--client-cert-auth: needs --trusted-ca-file",
        ),
    ] {
        let mut member = addresses.start(0, dir.path(), &flags);
        let status = wait_for(PATIENCE, "the member to refuse", || {
            let ended = member.0.try_wait().expect("a child can be waited for");
            async move { ended }
        })
        .await;
        assert_eq!(status.code(), Some(1));
        let log = tail(&member.1);
        assert!(log.contains(said), "{said:?} is not in {log}");
    }
}
