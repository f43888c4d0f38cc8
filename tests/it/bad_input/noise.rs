//! Bytes that are no requests, on both ports.

use std::net::TcpStream;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::{KEPT, is_unharmed, keep};
use crate::support::cluster::Cluster;
use crate::support::rpc::channel;

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

pub async fn call_raw(url: &str, method: &str, message: Bytes) -> Result<Bytes, Status> {
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
