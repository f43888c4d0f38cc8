//! Plain HTTP beside gRPC on the client port: health, metrics, keys and values for curl, and what does no harm.

use std::time::Duration;

use pontoon::pb::etcdserverpb::kv_client::KvClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::http::{Answer, Http, ask, get};
use crate::support::process::{free_port, wait_for};
use crate::support::rpc::{channel, everything, put_request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_says_why_a_member_is_not_well() {
    let mut cluster = Cluster::start(3).await;
    let member = cluster.follower().await;
    let url = cluster.members[member].client_url.clone();
    let answer = get(&url, "/health").await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, r#"{"health":"true","reason":""}"#)
    );
    assert_eq!(get(&url, "/readyz").await.text(), "ok\n");
    assert_eq!(get(&url, "/livez").await.text(), "ok\n");
    let verbose = get(&url, "/readyz?verbose&exclude=non_learner").await.text();
    assert!(
        verbose.contains("[+]linearizable_read ok\n") && verbose.contains("[+]non_learner excluded: ok\n"),
        "{verbose}"
    );
    let version = get(&url, "/version").await.json();
    assert_eq!(version["etcdcluster"], "3.5.0");

    for other in (0..3).filter(|other| *other != member) {
        cluster.kill(other);
    }
    let answer = wait_for(PATIENCE, "the member to see that it is alone", || async {
        let answer = get(&url, "/health").await;
        (answer.status == 503 && answer.text().contains("RAFT NO LEADER")).then_some(answer)
    })
    .await;
    assert_eq!(answer.json()["health"], "false");
    let status = cluster.status(member).await.expect("it answers");
    assert_eq!(
        (status.leader, &status.errors[..]),
        (0, &["etcdserver: no leader".to_string()][..])
    );
    // Alone is not broken: a local read works, and a restart would not help.
    assert_eq!(get(&url, "/health?serializable=true").await.status, 200);
    assert_eq!(get(&url, "/livez").await.status, 200);
    let ready = get(&url, "/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(
        ready.text().contains("[-]linearizable_read failed: etcdserver: "),
        "{}",
        ready.text()
    );
    assert!(
        ready.text().contains("[+]serializable_read ok\n"),
        "{}",
        ready.text()
    );
    assert_eq!(get(&url, "/readyz/serializable_read").await.status, 200);
    assert_eq!(get(&url, "/readyz?exclude=linearizable_read").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_waits_for_its_cluster_says_so_and_for_whom() {
    let mut cluster = Cluster::prepare(2, &[]).await;
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    cluster.set_flags(&["--listen-metrics-urls", &url]);
    cluster.spawn(0);
    wait_for(PATIENCE, "the member to listen", || async {
        TcpStream::connect(("127.0.0.1", port)).await.ok()
    })
    .await;
    let answer = wait_for(PATIENCE, "the member to miss the other one", || async {
        let answer = get(&url, "/livez").await;
        answer.text().contains("waiting for n2").then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.text().starts_with("[-]in_a_cluster failed: not yet: "),
        "{}",
        answer.text()
    );
    assert_eq!(get(&url, "/readyz/serializable_read").await.status, 503);
    assert_eq!(get(&url, "/metrics").await.status, 503);
    let health = get(&url, "/health").await;
    assert_eq!((health.status, &health.json()["health"]), (503, &"false".into()));
    assert_eq!(get(&url, "/version").await.status, 200);

    cluster.set_flags(&[]);
    cluster.spawn(1);
    cluster.await_ready().await;
    assert_eq!(get(&url, "/livez").await.text(), "ok\n");
    assert_eq!(get(&url, "/metrics").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_reads_and_writes_without_json() {
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let url = &cluster.members[follower].client_url;
    let put = |path: &'static str, headers: &'static [(&str, &str)], value: &'static [u8]| {
        ask(url, "PUT", path, headers, value)
    };
    let said = |answer: &Answer| (answer.status, answer.text());
    let ok = (200, "OK\n".to_string());
    assert_eq!(said(&put("/kv/colour", &[], b"blue").await), ok);
    assert_eq!(said(&put("/kv//a%20b%00", &[], b"\xff\x00").await), ok);
    assert_eq!(said(&put("/kv/colours", &[], b"red\tand\nwhite").await), ok);

    let colour = get(url, "/kv/colour").await;
    assert_eq!(said(&colour), (200, "blue".to_string()));
    assert_eq!(colour.header("etag"), Some("\"2\""));
    assert_eq!(colour.header("pontoon-revision"), Some("4"));
    assert_eq!(colour.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(get(url, "/kv//a%20b%00").await.body, b"\xff\x00");
    assert_eq!(
        said(&get(url, "/kv/none").await),
        (404, "key not found\n".to_string())
    );
    assert_eq!(get(url, "/kv/").await.status, 400);
    let head = {
        let mut http = Http::connect(url).await;
        http.ask("HEAD", "/kv/colour", &[], b"").await;
        http.head().await.expect("an answer")
    };
    assert_eq!((head.status, head.header("content-length")), (200, Some("4")));

    let lines = "colour\tblue\ncolours\tred\\tand\\nwhite\n".to_string();
    assert_eq!(said(&get(url, "/kv/col?prefix").await), (200, lines));
    assert_eq!(
        said(&get(url, "/kv/?prefix&keys").await).1,
        "/a b\0\ncolour\ncolours\n"
    );
    let cut = get(url, "/kv/?prefix&keys&limit=1").await;
    assert_eq!(
        (cut.text().as_str(), cut.header("pontoon-more")),
        ("/a b\0\n", Some("true"))
    );

    assert_eq!(
        said(&put("/kv/colour", &[("If-Match", "\"2\"")], b"green").await),
        ok
    );
    assert_eq!(
        put("/kv/colour", &[("If-Match", "\"2\"")], b"black").await.status,
        412
    );
    assert_eq!(
        put("/kv/colour", &[("If-None-Match", "*")], b"black")
            .await
            .status,
        412
    );
    assert_eq!(said(&put("/kv/new", &[("If-None-Match", "*")], b"1").await), ok);
    assert_eq!(get(url, "/kv/colour").await.text(), "green");
    assert_eq!(get(url, "/kv/colour?rev=4").await.text(), "blue");
    assert_eq!(get(url, "/kv/colour?rev=99").await.status, 400);
    assert_eq!(get(url, "/kv/colour?rev=x").await.text(), "rev= is a number\n");
    assert_eq!(
        ask(url, "GET", "/kv/colour", &[("If-None-Match", "\"5\"")], b"")
            .await
            .status,
        304
    );

    assert_eq!(
        ask(url, "DELETE", "/kv/new", &[("If-Match", "\"2\"")], b"")
            .await
            .status,
        412
    );
    assert_eq!(
        said(&ask(url, "DELETE", "/kv/new", &[], b"").await),
        (200, "1\n".to_string())
    );
    assert_eq!(ask(url, "DELETE", "/kv/new", &[], b"").await.status, 404);
    assert_eq!(
        said(&ask(url, "DELETE", "/kv/col?prefix", &[], b"").await),
        (200, "2\n".to_string())
    );
    assert_eq!(get(url, "/kv/colour").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_does_no_harm() {
    let cluster = Cluster::start_with(1, &["--max-request-bytes", "10000"]).await;
    let url = &cluster.members[0].client_url;
    let mut held = Vec::new();
    for junk in [
        &b"\0\0\0\0"[..],
        b"PRI * HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"GET",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        &[b'A'; 100_000],
    ] {
        let mut http = Http::connect(url).await;
        http.send(junk).await;
        held.push(http);
    }
    // A good request, and garbage right behind it.
    let mut http = Http::connect(url).await;
    http.send("GET /version HTTP/1.1\r\nHost: x\r\n\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n\x01\x02 garbage\r\n\r\n").await;
    for _ in 0..2 {
        assert_eq!(http.answer().await.expect("an answer").status, 200);
    }
    assert!(http.is_closed().await);

    let long = "h".repeat(200_000);
    let mut http = Http::connect(url).await;
    http.ask("GET", "/version", &[("x-long", &long)], b"").await;
    assert!(http.head().await.is_none_or(|answer| answer.status == 431));
    let many: Vec<(String, String)> = (0..5000).map(|n| (format!("x-{n}"), "v".to_string())).collect();
    let many: Vec<(&str, &str)> = many
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut http = Http::connect(url).await;
    http.ask("GET", "/version", &many, b"").await;
    assert!(http.head().await.is_none_or(|answer| answer.status == 431));

    // Bodies end at the limit of gRPC messages: 512 KiB above the flag.
    let large = vec![b'v'; 10_000 + 512 * 1024 + 1];
    for (method, path) in [("PUT", "/kv/a"), ("POST", "/v3/kv/put"), ("POST", "/v3/watch")] {
        let answer = ask(url, method, path, &[], &large).await;
        assert!(
            [429, 501].contains(&answer.status),
            "{method} {path}: {} {}",
            answer.status,
            answer.text()
        );
    }
    let too_large = ask(url, "PUT", "/kv/a", &[], &large[..20_000]).await;
    assert_eq!(
        (too_large.status, too_large.text().as_str()),
        (400, "etcdserver: request is too large\n")
    );
    cluster
        .client(0)
        .put("still", "here")
        .await
        .expect("gRPC is served");
    assert_eq!(get(url, "/kv/still").await.text(), "here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_stops_while_connections_are_open() {
    let mut cluster = Cluster::start(1).await;
    let url = cluster.members[0].client_url.clone();
    let silent = Http::connect(&url).await;
    let mut idle = Http::connect(&url).await;
    idle.ask("GET", "/version", &[], b"").await;
    idle.answer().await.expect("an answer");
    let mut half = Http::connect(&url).await;
    half.send("GET /version HT").await;
    let began = std::time::Instant::now();
    let status = cluster.terminate(0).await;
    assert!(status.success(), "{status}");
    assert!(idle.is_closed().await && half.is_closed().await);
    drop(silent);
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_watches_and_puts_for_a_time() {
    let cluster = Cluster::start(3).await;
    let url = &cluster.members[cluster.follower().await].client_url;
    for value in ["one", "two"] {
        assert_eq!(
            ask(url, "PUT", "/kv/w%0a", &[], value.as_bytes()).await.status,
            200
        );
    }
    let mut http = Http::connect(url).await;
    http.ask("GET", "/kv/w?watch&prefix&rev=2", &[], b"").await;
    assert_eq!(http.head().await.expect("an answer").status, 200);
    let mut said = String::new();
    while said.lines().count() < 2 {
        said += &String::from_utf8(http.chunk().await.expect("a line")).expect("text");
    }
    assert_eq!(said, "2\tPUT\tw\\n\tone\n3\tPUT\tw\\n\ttwo\n");
    assert_eq!(ask(url, "DELETE", "/kv/w%0a", &[], b"").await.status, 200);
    assert_eq!(http.chunk().await.expect("a line"), b"4\tDELETE\tw\\n\n");

    assert_eq!(
        ask(url, "PUT", "/kv/short?ttl=1000", &[], b"lived").await.status,
        200
    );
    let lease = get(url, "/kv/short")
        .await
        .header("pontoon-lease")
        .expect("a lease")
        .to_string();
    let other = ask(url, "PUT", &format!("/kv/other?lease={lease}"), &[], b"").await;
    assert_eq!(other.status, 200, "{}", other.text());
    assert_eq!(
        get(url, "/kv/other").await.header("pontoon-lease"),
        Some(lease.as_str())
    );
    assert_eq!(ask(url, "PUT", "/kv/none?lease=123", &[], b"").await.status, 404);
    assert_eq!(ask(url, "PUT", "/kv/none?lease=xyz", &[], b"").await.status, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_connection_are_bounded_if_that_is_asked_for() {
    // Of HTTP/2: an empty SETTINGS, and the number of SETTINGS_MAX_CONCURRENT_STREAMS.
    const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    for (flags, expected) in [
        (&[][..], None),
        (&["--max-concurrent-streams", "7"], Some(7)),
        (&["--max-concurrent-streams", "0"], None),
    ] {
        let cluster = Cluster::start_with(1, flags).await;
        let address = cluster.members[0]
            .client_url
            .trim_start_matches("http://")
            .to_string();
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", EMPTY_SETTINGS].concat();
        stream.write_all(&preface).await.expect("sent");
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        assert_eq!(head[3], 4, "the first frame has the settings");
        let mut settings = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut settings).await.expect("settings");
        let streams = settings.chunks(6).find_map(|setting| {
            let number = u16::from_be_bytes(setting[..2].try_into().expect("two bytes"));
            let value = u32::from_be_bytes(setting[2..].try_into().expect("four bytes"));
            (number == MAX_CONCURRENT_STREAMS).then_some(value)
        });
        assert_eq!(streams, expected, "{flags:?}");
    }
}

/// What HTTP says of an answer: a date, and a length. gRPC has no use for either, so neither is sent at each call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_grpc_have_no_headers_that_nobody_reads() {
    let cluster = Cluster::start(1).await;
    let url = &cluster.members[0].client_url;
    let mut client = KvClient::new(channel(url));
    let header = |answer: &tonic::metadata::MetadataMap| {
        ["date", "content-length"].map(|name| answer.get(name).is_some())
    };
    let put = client.put(put_request(b"key", b"value")).await.expect("a put");
    assert_eq!(header(put.metadata()), [false, false]);
    let range = client.range(everything()).await.expect("a range");
    assert_eq!(header(range.metadata()), [false, false]);
    let plain = get(url, "/kv/key").await;
    assert!(plain.header("date").is_some() && plain.header("content-length") == Some("5"));
}
