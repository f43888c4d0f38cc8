//! Whatever comes in: a clear error, no panic, nothing lost.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use pontoon::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, DowngradeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use crate::support::cluster::{BINARY, Cluster, PATIENCE};
use crate::support::process::{free_port, spawn_logged, tail, wait_for};
use crate::support::rpc::{Client, Refusal, Request, channel, everything, op, put_request};

/// What a test leaves behind for [`is_unharmed`] to find.
const KEPT: (&str, &str) = ("kept", "as it was");

async fn keep(cluster: &Cluster) {
    cluster.client(0).put(KEPT.0, KEPT.1).await.expect("a put");
}

/// The member still runs, serves, holds what it held, and never panicked.
async fn is_unharmed(cluster: &mut Cluster) {
    let found = cluster.client(0).get(KEPT.0).await.expect("a get");
    assert_eq!(found.as_deref(), Some(KEPT.1));
    cluster
        .client(0)
        .put("writes", "still work")
        .await
        .expect("a put");
    for member in 0..cluster.members.len() {
        assert_eq!(cluster.has_ended(member), None);
        let log = std::fs::read_to_string(cluster.members[member].log_file()).expect("a log");
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn range(key: &str) -> RangeRequest {
    RangeRequest {
        key: key.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

fn put(key: &str) -> PutRequest {
    put_request(key.as_bytes(), b"")
}

fn delete(key: &str, end: &str) -> DeleteRangeRequest {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    DeleteRangeRequest {
        key: bytes(key),
        range_end: bytes(end),
        prev_kv: false,
    }
}

fn txn(success: Vec<RequestOp>) -> Request {
    Request::Txn(TxnRequest {
        success,
        ..Default::default()
    })
}

fn compare_empty_key() -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Version as i32,
        target_union: Some(TargetUnion::Version(1)),
        ..Default::default()
    }
}

/// Each bad request, and etcd's answer to it. The store is at revision 4 and compacted at 3.
fn bad_requests() -> Vec<(&'static str, Request, Code, &'static str)> {
    use Code::{InvalidArgument, NotFound, OutOfRange};
    const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
    const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
    const EMPTY: &str = "etcdserver: key is not provided";
    const NO_KEY: &str = "etcdserver: key not found";
    const DUPLICATE: &str = "etcdserver: duplicate key given in txn request";
    const TOO_MANY: &str = "etcdserver: too many operations in txn request";
    const SORT: &str = "etcdserver: invalid sort option";
    let range_op = |request| op(Op::RequestRange(request));
    let put_op = |request| op(Op::RequestPut(request));
    let delete_op = |request| op(Op::RequestDeleteRange(request));
    vec![
        (
            "get, empty key",
            Request::Range(range("")),
            InvalidArgument,
            EMPTY,
        ),
        ("put, empty key", Request::Put(put("")), InvalidArgument, EMPTY),
        (
            "del, empty key",
            Request::Delete(delete("", "")),
            InvalidArgument,
            EMPTY,
        ),
        (
            "txn, empty key in an op",
            txn(vec![put_op(put(""))]),
            InvalidArgument,
            EMPTY,
        ),
        (
            "txn, empty key in a compare",
            Request::Txn(TxnRequest {
                compare: vec![compare_empty_key()],
                ..Default::default()
            }),
            InvalidArgument,
            EMPTY,
        ),
        (
            "get, future revision",
            Request::Range(RangeRequest {
                revision: 99,
                ..range("a")
            }),
            OutOfRange,
            FUTURE,
        ),
        (
            "get, compacted revision",
            Request::Range(RangeRequest {
                revision: 2,
                ..range("a")
            }),
            OutOfRange,
            COMPACTED,
        ),
        (
            "compact, future revision",
            Request::Compact(CompactionRequest {
                revision: 99,
                physical: false,
            }),
            OutOfRange,
            FUTURE,
        ),
        (
            "compact, again",
            Request::Compact(CompactionRequest {
                revision: 3,
                physical: true,
            }),
            OutOfRange,
            COMPACTED,
        ),
        (
            "txn that writes, future revision in a range",
            txn(vec![
                put_op(put("x")),
                range_op(RangeRequest {
                    revision: 99,
                    ..range("a")
                }),
            ]),
            OutOfRange,
            FUTURE,
        ),
        (
            "txn that writes, compacted revision in a range",
            txn(vec![
                put_op(put("x")),
                range_op(RangeRequest {
                    revision: 2,
                    ..range("a")
                }),
            ]),
            OutOfRange,
            COMPACTED,
        ),
        (
            "get, unknown sort order",
            Request::Range(RangeRequest {
                sort_order: 9,
                ..range("a")
            }),
            InvalidArgument,
            SORT,
        ),
        (
            "get, unknown sort target",
            Request::Range(RangeRequest {
                sort_target: 9,
                ..range("a")
            }),
            InvalidArgument,
            SORT,
        ),
        (
            "put, value to be ignored",
            Request::Put(PutRequest {
                ignore_value: true,
                value: "x".into(),
                ..put("a")
            }),
            InvalidArgument,
            "etcdserver: value is provided",
        ),
        (
            "put, lease to be ignored",
            Request::Put(PutRequest {
                ignore_lease: true,
                lease: 1,
                ..put("a")
            }),
            InvalidArgument,
            "etcdserver: lease is provided",
        ),
        (
            "put, ignore the value of nothing",
            Request::Put(PutRequest {
                ignore_value: true,
                ..put("none")
            }),
            InvalidArgument,
            NO_KEY,
        ),
        (
            "put, ignore the lease of nothing",
            Request::Put(PutRequest {
                ignore_lease: true,
                ..put("none")
            }),
            InvalidArgument,
            NO_KEY,
        ),
        (
            "put, no such lease",
            Request::Put(PutRequest {
                lease: 12345,
                ..put("a")
            }),
            NotFound,
            "etcdserver: requested lease not found",
        ),
        (
            "put, oversized",
            Request::Put(put_request(b"big", &vec![0; 1_700_000])),
            InvalidArgument,
            "etcdserver: request is too large",
        ),
        (
            "txn, an op with nothing in it",
            txn(vec![RequestOp { request: None }]),
            InvalidArgument,
            NO_KEY,
        ),
        (
            "txn, one key put twice",
            txn(vec![put_op(put("x")), put_op(put("x"))]),
            InvalidArgument,
            DUPLICATE,
        ),
        (
            "txn, a key put and deleted",
            txn(vec![put_op(put("x")), delete_op(delete("a", "z"))]),
            InvalidArgument,
            DUPLICATE,
        ),
        (
            "txn, 129 ops",
            txn((0..129).map(|_| range_op(range("a"))).collect()),
            InvalidArgument,
            TOO_MANY,
        ),
        (
            "txn, 127 ops and 2 nested",
            txn((0..126)
                .map(|_| range_op(range("a")))
                .chain([op(Op::RequestTxn(TxnRequest {
                    success: (0..2).map(|_| range_op(range("a"))).collect(),
                    ..Default::default()
                }))])
                .collect()),
            InvalidArgument,
            TOO_MANY,
        ),
        // etcd applies this one and panics, on every member and again at each restart.
        (
            "txn, a put that ignores the value of a key deleted up to the end",
            txn(vec![
                delete_op(delete("a", "\0")),
                put_op(PutRequest {
                    ignore_value: true,
                    ..put("a")
                }),
            ]),
            InvalidArgument,
            NO_KEY,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_etcds_code_and_text() {
    let mut cluster = Cluster::start(3).await;
    keep(&cluster).await;
    let mut client = cluster.client(0);
    assert_eq!(client.put("a", "1").await.expect("a put"), 3);
    assert_eq!(client.put("a", "2").await.expect("a put"), 4);
    client
        .call(Request::Compact(CompactionRequest {
            revision: 3,
            physical: true,
        }))
        .await
        .expect("a compaction");
    for (name, request, code, text) in bad_requests() {
        for member in 0..3 {
            let answer = cluster.client(member).ask(request.clone()).await;
            let expected = Err(Refusal {
                code,
                text: text.to_string(),
            });
            assert_eq!(answer, expected, "{name}, asked of member {member}");
        }
    }
    let now = client
        .call(Request::Range(everything()))
        .await
        .expect("a range")
        .revision();
    assert_eq!(now, 4, "a refused request changed something");
    is_unharmed(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_beyond_the_transports_limit_is_refused_as_grpc_go_does() {
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    let request = Request::Put(put_request(b"big", &vec![0; 3 << 20]));
    let refusal = cluster.client(0).ask(request).await.expect_err("too large");
    assert_eq!(refusal.code, Code::ResourceExhausted, "{refusal:?}");
    assert!(
        refusal
            .text
            .starts_with("grpc: received message larger than max ("),
        "{refusal:?}"
    );
    assert!(refusal.text.ends_with(" vs. 2097152)"), "{refusal:?}");
    is_unharmed(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_served_yet_names_itself() {
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    let mut maintenance = MaintenanceClient::new(channel(&cluster.members[0].client_url));
    let status = maintenance
        .downgrade(DowngradeRequest::default())
        .await
        .expect_err("not served");
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(
        status.message().contains("/etcdserverpb.Maintenance/Downgrade"),
        "{status:?}"
    );
    let status = call_raw(
        &cluster.members[0].client_url,
        "/no.such.Service/Method",
        Bytes::new(),
    )
    .await;
    assert_eq!(status.expect_err("no such method").code(), Code::Unimplemented);
    is_unharmed(&mut cluster).await;
}

/// What a stranger may send: nothing, noise, other protocols, and a good beginning with a bad end.
fn noises() -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut noise = vec![0; 64 << 10];
    rng.fill_bytes(&mut noise);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let huge_frame = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    vec![
        Vec::new(),
        noise.clone(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"POST /etcdserverpb.KV/Put HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n".to_vec(),
        // The beginning of a TLS handshake.
        [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &noise[..500]].concat(),
        [&preface, &noise[..1000]].concat(),
        [&preface, &settings[..], &huge_frame, &noise].concat(),
        preface[..10].to_vec(),
    ]
}

fn shout(port: u16, noise: &[u8]) {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
    // The server may hang up at any point: that is its right.
    let _ = stream.write_all(noise);
    let _ = stream.read(&mut [0; 4096]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_on_both_ports_disturbs_nobody() {
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    for url in [
        &cluster.members[0].client_url,
        &cluster.members[0].listen_peer_url,
    ] {
        let port: u16 = url
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .expect("a port");
        let shouts: Vec<_> = (0..10)
            .flat_map(|_| noises())
            .map(|noise| tokio::task::spawn_blocking(move || shout(port, &noise)))
            .collect();
        for shout in shouts {
            shout.await.expect("shouting doesn't panic");
        }
    }
    is_unharmed(&mut cluster).await;
}

/// Sends bytes as they are.
#[derive(Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

async fn call_raw(url: &str, method: &str, message: Bytes) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel(url));
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = method.parse().expect("a path");
    Ok(grpc
        .unary(tonic::Request::new(message), path, RawCodec)
        .await?
        .into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_make_no_sense_are_refused_on_both_ports() {
    const KV: [&str; 5] = ["Range", "Put", "DeleteRange", "Txn", "Compact"];
    const PEER: [&str; 10] = [
        "Identify",
        "Append",
        "Heartbeat",
        "Vote",
        "ConfirmVote",
        "Snapshot",
        "TransferLeader",
        "Forward",
        "ReadIndex",
        "Join",
    ];
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    let (clients, peers) = (
        cluster.members[0].client_url.clone(),
        cluster.members[0].listen_peer_url.clone(),
    );
    let kv = KV.map(|method| (&clients, format!("/etcdserverpb.KV/{method}")));
    let peer = PEER.map(|method| (&peers, format!("/pontoon.peer.Peer/{method}")));
    let mut rng = StdRng::seed_from_u64(8);
    for (url, method) in kv.into_iter().chain(peer) {
        for _ in 0..40 {
            let mut message = vec![0; rng.random_range(0..200)];
            rng.fill_bytes(&mut message);
            let call = call_raw(url, &method, message.clone().into());
            let answer = tokio::time::timeout(Duration::from_secs(5), call).await;
            let answer = answer.unwrap_or_else(|_| panic!("{method} never answers to {message:?}"));
            // Noise that happens to be a valid message may be executed on the client port; no peer is so welcome.
            let is_peer = method.starts_with("/pontoon.peer");
            assert!(
                !is_peer || answer.is_err(),
                "{method} answered {answer:?} to {message:?}"
            );
        }
    }
    let found = cluster.client(0).get(KEPT.0).await.expect("a get");
    assert_eq!(found.as_deref(), Some(KEPT.1));
    is_unharmed(&mut cluster).await;
}

/// A member by itself, to be started wrongly.
struct Lone<'a> {
    name: &'a str,
    data_dir: &'a Path,
    client_port: u16,
    peer_port: u16,
    initial_cluster: String,
    token: &'a str,
}

impl<'a> Lone<'a> {
    fn new(name: &'a str, data_dir: &'a Path) -> Lone<'a> {
        let peer_port = free_port();
        Lone {
            name,
            data_dir,
            client_port: free_port(),
            peer_port,
            initial_cluster: format!("{name}=http://127.0.0.1:{peer_port}"),
            token: "alone",
        }
    }

    fn command(&self) -> Command {
        let client = format!("http://127.0.0.1:{}", self.client_port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = Command::new(BINARY);
        command
            .args(["serve", "--name", self.name, "--data-dir"])
            .arg(self.data_dir);
        command.args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ]);
        command.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        command.args([
            "--initial-cluster",
            &self.initial_cluster,
            "--initial-cluster-token",
            self.token,
            "--founding-wait",
            "0",
        ]);
        command
    }

    /// Runs it until it ends by itself, which it must soon; returns how, and what it said.
    async fn refused(&self) -> (ExitStatus, String) {
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = tokio::process::Command::from(command).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, output)
            .await
            .expect("it gives up")
            .expect("it starts");
        let said = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8_lossy(&said).into_owned())
    }

    /// It must refuse to start, saying all of `words`, and without a panic.
    async fn must_refuse(&self, words: &[&str]) {
        let (status, said) = self.refused().await;
        assert!(!status.success(), "it should not have started: {said}");
        assert!(!said.contains("panicked"), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_belongs_to_one_member_and_one_process() {
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    let data_dir = cluster.members[0].data_dir();
    Lone::new("n1", &data_dir)
        .must_refuse(&["in use by another process"])
        .await;
    cluster.kill(0);
    Lone::new("n2", &data_dir)
        .must_refuse(&["belongs to member \"n1\"", "--name is \"n2\""])
        .await;
    cluster.restart(0).await;
    is_unharmed(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_a_newer_format_is_left_alone() {
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    cluster.kill(0);
    let data_dir = cluster.members[0].data_dir();
    let file = data_dir.join("member.toml");
    let text = std::fs::read_to_string(&file).expect("member.toml");
    let newer = text.replace("format = 1", "format = 999");
    assert_ne!(text, newer, "the format is not where this test looks for it");
    std::fs::write(&file, newer).expect("it can be written");
    Lone::new("n1", &data_dir)
        .must_refuse(&["format 999", "newer version"])
        .await;
    std::fs::write(&file, "not toml at all [").expect("it can be written");
    Lone::new("n1", &data_dir)
        .must_refuse(&["member.toml is damaged"])
        .await;
    std::fs::write(&file, text).expect("it can be written");
    cluster.restart(0).await;
    is_unharmed(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let data_dir = dir.path().join("data");
    let member = Lone {
        client_port: port,
        ..Lone::new("n1", &data_dir)
    };
    member
        .must_refuse(&["--listen-client-urls", &format!("127.0.0.1:{port}"), "in use"])
        .await;
    let member = Lone {
        peer_port: port,
        ..Lone::new("n1", &data_dir)
    };
    member
        .must_refuse(&["--listen-peer-urls", &format!("127.0.0.1:{port}"), "in use"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("a file");
    std::fs::write(&file, "").expect("it can be written");
    let data_dir = file.join("data");
    Lone::new("n1", &data_dir)
        .must_refuse(&["--data-dir", &data_dir.display().to_string()])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_at_the_peer_port_is_kept_out() {
    let mut cluster = Cluster::start(1).await;
    keep(&cluster).await;
    let before = cluster.member_list(0).await.expect("a member list").members;
    // Says it belongs to a cluster with our member, but has another token.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let data_dir = dir.path().join("data");
    let stranger = Lone::new("n2", &data_dir);
    let initial_cluster = format!("{},n1={}", stranger.initial_cluster, cluster.members[0].peer_url);
    let stranger = Lone {
        initial_cluster,
        token: "another cluster",
        ..stranger
    };
    let mut process = spawn_logged(&mut stranger.command(), &log);
    let what = "the stranger to say why it is alone";
    wait_for(PATIENCE, what, || async {
        tail(&log).contains("not yet in a cluster").then_some(())
    })
    .await;
    let mut client = Client::new(&format!("http://127.0.0.1:{}", stranger.client_port));
    let alone = client
        .call_within(Duration::from_secs(2), Request::Put(put("from a stranger")))
        .await;
    assert!(alone.is_err(), "it serves by itself: {alone:?}");
    crate::support::process::kill_and_reap(&mut process);
    assert!(!tail(&log).contains("panicked"), "{}", tail(&log));
    assert_eq!(
        cluster.member_list(0).await.expect("a member list").members,
        before
    );
    is_unharmed(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_the_directory_of_another_cluster_joins_neither() {
    let mut cluster = Cluster::start(3).await;
    keep(&cluster).await;
    let victim = cluster.follower().await;
    let name = cluster.members[victim].name.clone();
    // The same name, alone, somewhere else: its directory belongs to another cluster.
    let other = cluster.dir().join("other");
    let lone = Lone::new(&name, &other);
    let mut process = spawn_logged(&mut lone.command(), &cluster.dir().join("other log"));
    let mut client = Client::new(&format!("http://127.0.0.1:{}", lone.client_port));
    wait_for(PATIENCE, "the other cluster to serve", || {
        let mut client = client.clone();
        async move { client.put("kept", "elsewhere").await.ok() }
    })
    .await;
    crate::support::process::kill_and_reap(&mut process);
    cluster.kill(victim);
    cluster.wipe(victim);
    std::fs::rename(&other, cluster.members[victim].data_dir()).expect("directories can be moved");
    cluster.spawn(victim);
    // It is alone in its own cluster, and leads that; the two others go on without it.
    wait_for(PATIENCE, "it to serve its own cluster", || async {
        let status = cluster.status(victim).await;
        status.filter(|status| status.leader != 0)
    })
    .await;
    let healthy = (victim + 1) % 3;
    let found = cluster.client(healthy).get(KEPT.0).await.expect("a get");
    assert_eq!(found.as_deref(), Some(KEPT.1));
    cluster
        .client(healthy)
        .put("writes", "still work")
        .await
        .expect("a put");
    let ids: Vec<u64> = futures::future::join_all((0..3).map(|member| cluster.status(member)))
        .await
        .into_iter()
        .flatten()
        .map(|status| status.header.expect("a header").cluster_id)
        .collect();
    let have = |id: &u64| ids.iter().filter(|other| *other == id).count();
    assert!(ids.iter().any(|id| have(id) >= 2), "{ids:x?}");
    client = cluster.client(victim);
    if let Ok(Ok(found)) = tokio::time::timeout(Duration::from_secs(3), client.get(KEPT.0)).await {
        assert_eq!(
            found.as_deref(),
            Some("elsewhere"),
            "data of two clusters is mixed"
        );
    }
    let log = std::fs::read_to_string(cluster.members[victim].log_file()).expect("a log");
    assert!(!log.contains("panicked"), "{log}");
}

/// A small file system, if this process may mount one.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(size: &str) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = format!("size={size}");
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null());
        command
            .status()
            .is_ok_and(|status| status.success())
            .then_some(SmallDisk { dir })
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = Command::new("mount")
            .args(["-o", &options])
            .arg(self.dir.path())
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "a mounted tmpfs can grow"
        );
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing() {
    let Some(disk) = SmallDisk::mount("300m") else {
        println!("skipped: this process may not mount a small disk");
        return;
    };
    let _machine = crate::support::cluster::machine().await;
    let log = disk.dir.path().with_extension("log");
    let data_dir = disk.dir.path().join("data");
    let member = Lone::new("n1", &data_dir);
    // Without the early warning, so that it really fills up.
    let mut command = member.command();
    command.args(["--disk-reserve-bytes", "0"]);
    let mut process = spawn_logged(&mut command, &log);
    let mut client = Client::new(&format!("http://127.0.0.1:{}", member.client_port));
    wait_for(PATIENCE, "the member to serve", || {
        let mut client = client.clone();
        async move { client.get("ready").await.ok() }
    })
    .await;
    let value = "v".repeat(1 << 20);
    let mut acknowledged = 0;
    let refusal = loop {
        let key = format!("key {acknowledged}");
        let put = client.put(&key, &value);
        match tokio::time::timeout(Duration::from_secs(15), put).await {
            Ok(Ok(_)) => acknowledged += 1,
            Ok(Err(status)) => break status.to_string(),
            Err(_) => break "no answer".to_string(),
        }
        assert!(acknowledged < 1000, "the disk never filled up");
    };
    println!("full after {acknowledged} MiB: {refusal}");
    let ended = tokio::time::timeout(
        Duration::from_secs(10),
        crate::support::process::await_exit(&mut process),
    )
    .await;
    println!(
        "the process {}",
        ended.map_or("goes on".to_string(), |status| format!("ended with {status}"))
    );
    crate::support::process::kill_and_reap(&mut process);
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(!said.contains("panicked"), "{said}");
    assert!(
        said.contains("No space left on device"),
        "the log doesn't say what is wrong: {}",
        tail(&log)
    );
    disk.grow("2g");
    let mut process = spawn_logged(&mut member.command(), &log);
    let what = format!("the member to serve again: {}", tail(&log));
    wait_for(PATIENCE, &what, || {
        let mut client = client.clone();
        async move { client.get("ready").await.ok() }
    })
    .await;
    for number in 0..acknowledged {
        let found = client.get(&format!("key {number}")).await.expect("a get");
        assert_eq!(
            found.as_ref(),
            Some(&value),
            "key {number} was acknowledged and is not there"
        );
    }
    crate::support::process::kill_and_reap(&mut process);
    let _ = std::fs::remove_file(&log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_nearly_full_stops_writes_and_not_the_member() {
    use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
    use pontoon::pb::etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction};

    let Some(disk) = SmallDisk::mount("300m") else {
        println!("skipped: this process may not mount a small disk");
        return;
    };
    let _machine = crate::support::cluster::machine().await;
    let log = disk.dir.path().with_extension("log");
    let data_dir = disk.dir.path().join("data");
    let member = Lone::new("n1", &data_dir);
    let mut command = member.command();
    command.args(["--disk-reserve-bytes", "104857600"]);
    let mut process = spawn_logged(&mut command, &log);
    let url = format!("http://127.0.0.1:{}", member.client_port);
    let mut client = Client::new(&url);
    wait_for(PATIENCE, "the member to serve", || {
        let mut client = client.clone();
        async move { client.get("ready").await.ok() }
    })
    .await;
    let value = "v".repeat(1 << 20);
    let mut acknowledged = 0;
    let refused = loop {
        match client.put(&format!("key {acknowledged}"), &value).await {
            Ok(_) => acknowledged += 1,
            Err(refused) => break refused,
        }
        assert!(acknowledged < 1000, "the disk is not watched");
    };
    println!("nearly full after {acknowledged} MiB");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // The member goes on: what is there can be read, and room can be made.
    assert_eq!(client.get("key 0").await.expect("a read"), Some(value.clone()));
    client.call(delete_request("key 0")).await.expect("a delete");
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(said.contains("the disk is nearly full"), "{}", tail(&log));
    disk.grow("2g");
    let mut maintenance = MaintenanceClient::new(crate::support::rpc::channel(&url));
    let what = "writes to go on once the alarm is cleared";
    wait_for(PATIENCE, what, || {
        let (mut maintenance, mut client) = (maintenance.clone(), client.clone());
        async move {
            let alarms = maintenance
                .alarm(AlarmRequest::default())
                .await
                .ok()?
                .into_inner()
                .alarms;
            for alarm in alarms {
                assert_eq!(alarm.alarm(), AlarmType::Nospace);
                let clear = AlarmRequest {
                    action: AlarmAction::Deactivate as i32,
                    member_id: alarm.member_id,
                    alarm: alarm.alarm,
                };
                maintenance.alarm(clear).await.ok()?;
            }
            client.put("small", "v").await.ok()
        }
    })
    .await;
    let alarms = maintenance
        .alarm(AlarmRequest::default())
        .await
        .expect("alarms")
        .into_inner()
        .alarms;
    assert_eq!(alarms, []);
    assert_eq!(client.get("key 1").await.expect("a read"), Some(value));
    crate::support::process::kill_and_reap(&mut process);
    let _ = std::fs::remove_file(&log);
}

fn delete_request(key: &str) -> Request {
    Request::Delete(delete(key, ""))
}
