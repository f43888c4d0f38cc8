//! What is encrypted, and how: each URL says for itself; versions and cipher suites are those configured.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{Request, StatusCode};
use pontoon::tls::{ClientTls, Files, Options, Protocol};
use tempfile::TempDir;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use crate::support::cluster::machine;
use crate::support::http::get;
use crate::support::process::free_port;
use crate::support::tls::{Addresses, Authority, Running, channel, flags_of, is_let_in, let_in, refusal};

/// The same address under the other scheme.
fn other_scheme(url: &str) -> String {
    match url.strip_prefix("https") {
        Some(rest) => format!("http{rest}"),
        None => url.replace("http", "https"),
    }
}

fn protocol(min: &str, max: &str, suites: &[&str]) -> Protocol {
    let suites: Vec<String> = suites.iter().map(ToString::to_string).collect();
    Protocol::new(min, max, &suites).expect("valid")
}

async fn status(url: &str, path: &str, files: &Files) -> Option<StatusCode> {
    let mut member = channel(url, ClientTls::new(files.clone()).expect("usable"));
    let request = Request::get(format!("{url}{path}"))
        .body(Body::empty())
        .expect("a request");
    let ready = member.ready().await.ok()?;
    Some(ready.call(request).await.ok()?.status())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_url_says_for_itself_whether_it_is_encrypted() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let ours = Authority::new(dir.path(), "ours");
    let files = ours.sign("server");
    let url = |scheme: &str| format!("{scheme}://127.0.0.1:{}", free_port());
    let (clients, metrics) = ([url("http"), url("https")], [url("http"), url("https")]);
    let mut addresses = Addresses::choose(1);
    addresses.clients[0] = clients.join(",");
    let mut flags = [flags_of("", &files), flags_of("peer-", &files)].concat();
    flags.push(format!("--listen-metrics-urls={}", metrics.join(",")));
    let _running = addresses.start(0, dir.path(), &flags);

    let stranger = Files {
        ca: ours.ca(),
        ..Files::default()
    };
    for url in &clients {
        let_in(url, files.clone()).await;
        assert!(
            !is_let_in(&other_scheme(url), files.clone()).await,
            "not as {url}"
        );
        assert_eq!(is_let_in(url, stranger.clone()).await, url.starts_with("http://"));
    }
    for url in &metrics {
        for path in ["/health", "/metrics"] {
            assert_eq!(
                status(url, path, &files).await,
                Some(StatusCode::OK),
                "{url}{path}"
            );
            assert_eq!(
                status(&other_scheme(url), path, &files).await,
                None,
                "not as {url}"
            );
            let told = status(url, path, &stranger).await.is_some();
            assert_eq!(told, url.starts_with("http://"), "{url}{path} to a stranger");
        }
    }
    // When its certificates end is told, for both ports: they are good now.
    let page = get(&metrics[0], "/metrics").await.text();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    for port in ["client", "peer"] {
        let name = format!("pontoon_certificate_expiry_timestamp_seconds{{port=\"{port}\"}} ");
        let ends = page.lines().find_map(|line| line.strip_prefix(&name));
        let ends: u64 = ends.and_then(|ends| ends.parse().ok()).expect("a time");
        assert!(ends > now.as_secs(), "{port}: {ends}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_reach_each_other_by_the_scheme_of_each() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let files = Authority::new(dir.path(), "ours").sign("member");
    let mut addresses = Addresses::choose(3);
    addresses.peers[0] = other_scheme(&addresses.peers[0]);
    addresses.clients = addresses.clients.iter().map(|url| other_scheme(url)).collect();
    let flags = flags_of("peer-", &files);
    let _running: Vec<Running> = (0..3).map(|at| addresses.start(at, dir.path(), &flags)).collect();
    for url in &addresses.clients {
        let_in(url, Files::default()).await;
    }
    for url in &addresses.peers {
        let_in(url, files.clone()).await;
        assert!(
            !is_let_in(&other_scheme(url), files.clone()).await,
            "not as {url}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_cipher_suites_are_those_configured_on_both_ports() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let files = Authority::new(dir.path(), "ours").sign("member");
    let chosen = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    let another = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let (tls12, tls13) = (protocol("", "TLS1.2", &[]), protocol("TLS1.3", "", &[]));
    let (with_chosen, with_another) = (
        protocol("", "TLS1.2", &[chosen]),
        protocol("", "TLS1.2", &[another]),
    );
    let cases = [
        (
            vec!["--tls-min-version=TLS1.3".to_string()],
            vec![&tls13],
            vec![&tls12],
        ),
        (
            vec!["--tls-max-version=TLS1.2".to_string()],
            vec![&tls12],
            vec![&tls13],
        ),
        (
            vec![format!("--cipher-suites={chosen}")],
            vec![&with_chosen, &tls13],
            vec![&with_another],
        ),
    ];
    for (at, (flags, spoken, unspoken)) in cases.into_iter().enumerate() {
        // Three members: what they speak they also speak to each other.
        let addresses = Addresses::choose(3);
        let dir = dir.path().join(at.to_string());
        std::fs::create_dir(&dir).expect("a directory");
        let flags = [flags, flags_of("", &files), flags_of("peer-", &files)].concat();
        let _running: Vec<Running> = (0..3).map(|at| addresses.start(at, &dir, &flags)).collect();
        for url in [&addresses.clients[0], &addresses.peers[0]] {
            let with = |protocol: &Protocol| Options {
                protocol: protocol.clone(),
                ..files.clone().into()
            };
            for protocol in &spoken {
                let_in(url, with(protocol)).await;
            }
            for protocol in &unspoken {
                assert!(
                    !is_let_in(url, with(protocol)).await,
                    "{flags:?}: {protocol:?} at {url}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_spoken_is_named_at_the_start() {
    let _machine = machine().await;
    let dir = TempDir::new().expect("a directory");
    let addresses = Addresses::choose(1);
    for (flags, said) in [
        (
            &["--cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA"][..],
            "--cipher-suites \"TLS_RSA_WITH_AES_128_CBC_SHA\": unknown, or not safe",
        ),
        (
            &["--tls-min-version=TLS1.0"],
            "--tls-min-version \"TLS1.0\": TLS1.2 or TLS1.3",
        ),
        (
            &[
                "--tls-min-version=TLS1.3",
                "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            ],
            "cannot be configured when only TLS1.3 is enabled",
        ),
    ] {
        let flags = [&["--auto-tls", "--peer-auto-tls"][..], flags].concat();
        let log = refusal(addresses.start(0, dir.path(), &flags)).await;
        assert!(log.contains(said), "{said:?} is not in {log}");
    }
}
