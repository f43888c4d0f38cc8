//! Who is kept out though an authority vouches for them: the revoked, members by other names, members from elsewhere.

use std::path::Path;

use pontoon::tls::{Admission, Files, Options};
use tempfile::TempDir;

use crate::support::cluster::{PATIENCE, machine};
use crate::support::process::wait_for;
use crate::support::tls::{Addresses, Authority, Running, flags_of, is_let_in, let_in, refusal};

/// One member that shows and trusts these files on both ports.
fn start(addresses: &Addresses, dir: &Path, files: &Files, more: &[String]) -> Running {
    let flags = [&flags_of("", files)[..], &flags_of("peer-", files), more].concat();
    addresses.start(0, dir, &flags)
}

async fn kept_out(url: &str, files: &Files) {
    wait_for(PATIENCE, &format!("{url} to keep out {files:?}"), || async {
        (!is_let_in(url, files.clone()).await).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_is_refused() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let ours = Authority::new(dir.path(), "ours");
    let (of_clients, of_peers) = (dir.path().join("clients.crl"), dir.path().join("peers.crl"));
    // Both forms that lists of etcd's users have: PEM and DER.
    let revoke_client = |names: &[&str]| std::fs::write(&of_clients, ours.revoke(names).pem().expect("PEM"));
    let revoke_peer = |names: &[&str]| std::fs::write(&of_peers, ours.revoke(names).der());
    revoke_client(&["lost"])
        .and_then(|()| revoke_peer(&["lost"]))
        .expect("written");
    let lists = [
        format!("--client-crl-file={}", of_clients.display()),
        format!("--peer-crl-file={}", of_peers.display()),
    ];
    let addresses = Addresses::choose(1);
    let _running = start(&addresses, dir.path(), &ours.sign("member"), &lists);

    let (sound, lost, stolen) = (ours.sign("sound"), ours.sign("lost"), ours.sign("stolen"));
    for url in [&addresses.clients[0], &addresses.peers[0]] {
        let_in(url, sound.clone()).await;
        let_in(url, stolen.clone()).await;
        kept_out(url, &lost).await;
    }
    // Revoked while the member runs: from the next connection on.
    revoke_client(&["lost", "stolen"]).expect("written");
    kept_out(&addresses.clients[0], &stolen).await;
    let_in(&addresses.peers[0], stolen.clone()).await;
    revoke_peer(&["lost", "stolen"]).expect("written");
    for url in [&addresses.clients[0], &addresses.peers[0]] {
        kept_out(url, &stolen).await;
        let_in(url, sound.clone()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_list_of_revoked_certificates_is_refused_at_the_start() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let ours = Authority::new(dir.path(), "ours");
    let addresses = Addresses::choose(1);
    for text in ["", "nothing"] {
        let list = dir.path().join("a.crl");
        std::fs::write(&list, text).expect("written");
        for flag in ["--client-crl-file", "--peer-crl-file"] {
            let more = [format!("{flag}={}", list.display())];
            let log = refusal(start(&addresses, dir.path(), &ours.sign("member"), &more)).await;
            assert!(
                log.contains("a.crl: no revocation list can be read from it"),
                "{log}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_connects_from_where_its_certificate_says() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let ours = Authority::new(dir.path(), "ours");
    let member = ours.sign("member");
    let elsewhere = ours.sign_for("elsewhere", &["127.0.0.2"]);
    let addresses = Addresses::choose(1);
    let (client, peer) = (&addresses.clients[0], &addresses.peers[0]);

    let running = start(&addresses, dir.path(), &member, &[]);
    for (name, hosts) in [
        ("address", &["127.0.0.1"][..]),
        ("name", &["localhost"]),
        ("both", &["127.0.0.2", "localhost"]),
        ("nothing", &[]),
    ] {
        let_in(peer, ours.sign_for(name, hosts)).await;
    }
    for (name, hosts) in [
        ("others", &["127.0.0.2", "::2"][..]),
        ("unknown", &["nowhere.invalid"]),
    ] {
        kept_out(peer, &ours.sign_for(name, hosts)).await;
    }
    kept_out(peer, &elsewhere).await;
    // Clients come from anywhere.
    let_in(client, elsewhere.clone()).await;
    drop(running);

    for flag in [
        "--peer-skip-client-san-verification",
        "--experimental-peer-skip-client-san-verification",
    ] {
        let _running = start(&addresses, dir.path(), &member, &[flag.to_string()]);
        let_in(peer, elsewhere.clone()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_known_by_the_names_in_their_certificates() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let ours = Authority::new(dir.path(), "ours");
    let member = ours.sign_for("member", &["127.0.0.1", "member.invalid"]);
    let client = ours.sign_for("client", &["127.0.0.1", "client.invalid"]);
    for (at, flag, rule) in [
        (
            0,
            "--peer-cert-allowed-hostname=other.invalid,member.invalid",
            Admission {
                hosts: vec!["member.invalid".to_string()],
                ..Admission::default()
            },
        ),
        (
            1,
            "--peer-cert-allowed-cn=other,member",
            Admission {
                common_names: vec!["member".to_string()],
                ..Admission::default()
            },
        ),
    ] {
        let addresses = Addresses::choose(3);
        let dir = dir.path().join(at.to_string());
        std::fs::create_dir(&dir).expect("a directory");
        let mut flags = [flags_of("", &member), flags_of("peer-", &member)].concat();
        flags.extend([flag, "--client-cert-allowed-hostname=client.invalid"].map(String::from));
        let running: Vec<Running> = (0..3).map(|at| addresses.start(at, &dir, &flags)).collect();
        // The members let each other in, or there would be no leader; on the client port they are no clients.
        for url in &addresses.clients {
            let_in(url, client.clone()).await;
            kept_out(url, &member).await;
        }
        for url in &addresses.peers {
            let_in(url, member.clone()).await;
            kept_out(url, &client).await;
        }
        drop(running);
        // Whoever connects looks at the name too: these members show the client's certificate.
        let addresses = Addresses::choose(1);
        let dir = dir.join("strangers");
        std::fs::create_dir(&dir).expect("a directory");
        let _running = start(&addresses, &dir, &client, &[]);
        let_in(&addresses.peers[0], member.clone()).await;
        let picky = Options {
            admission: rule,
            ..member.clone().into()
        };
        assert!(!is_let_in(&addresses.peers[0], picky).await, "{flag}");
    }
}
