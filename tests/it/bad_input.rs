//! Whatever comes in: a clear error, no panic, nothing lost.

mod disk;
mod noise;
mod start;

use bytes::Bytes;
use pontoon::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, DowngradeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
};
use tonic::Code;

use self::noise::call_raw;
use crate::support::cluster::Cluster;
use crate::support::rpc::{Refusal, Request, channel, everything, op, put_request};

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
