//! Encrypted: three members that trust one authority, clients with and without its certificates.

use pontoon::pb::etcdserverpb::auth_client::AuthClient;
use pontoon::pb::etcdserverpb::*;
use pontoon::pb::v3lockpb::LockRequest;
use pontoon::pb::v3lockpb::lock_client::LockClient;
use pontoon::tls::{self, ClientTls, Files};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::support::cluster::{PATIENCE, machine};
use crate::support::process::wait_for;
use crate::support::tls::{Addresses, Authority, Running, channel, connect, put, refusal, text};

async fn lock(channel: &Channel) -> Result<(), Status> {
    let request = LockRequest {
        name: "lock".into(),
        ..LockRequest::default()
    };
    LockClient::new(channel.clone()).lock(request).await.map(drop)
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

    let root = connect(&addresses.clients[1], ours.sign("root"));
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
        let channel = connect(&addresses.clients[1], files);
        assert!(put(&channel).await.is_err(), "it must be refused");
    }
    let plain = addresses.clients[1].replace("https", "http");
    let endpoint = Endpoint::from_shared(plain).expect("a URL");
    assert!(put(&tls::channel(&endpoint, None)).await.is_err());
    // A server that shows a certificate of an authority that we don't trust is not talked to.
    let distrustful = connect(&addresses.clients[1], theirs.sign("root"));
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
    lock(root).await.expect("and in what is done in its name");
    let other = ours.sign("somebody");
    let other = connect(&addresses.clients[2], other);
    assert_eq!(
        put(&other).await.expect_err("refused").code(),
        Code::PermissionDenied
    );
    assert!(lock(&other).await.is_err());
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
    let channel = connect(&addresses.clients[0], files);
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
        let member = channel(url, anybody());
        wait_for(PATIENCE, "a put through TLS", || async {
            put(&member).await.ok()
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
        let log = refusal(addresses.start(0, dir.path(), &flags)).await;
        assert!(log.contains(said), "{said:?} is not in {log}");
    }
}
