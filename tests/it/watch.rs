//! Watch, guarantee by guarantee, through real processes.

use std::time::Duration;

use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::watch_create_request::FilterType;
use pontoon::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, TxnRequest, WatchCreateRequest, WatchResponse,
};
use tonic::Code;

use crate::support::cluster::Cluster;
use crate::support::rpc::{Client, Request, op, put_request};
use crate::support::watcher::{WatchStream, revision, watch, watch_all};

/// Long enough to see that nothing comes.
const SILENCE: Duration = Duration::from_millis(300);

async fn open(cluster: &Cluster, member: usize) -> WatchStream {
    WatchStream::open(&cluster.members[member].client_url)
        .await
        .expect("a stream")
}

async fn delete(client: &mut Client, key: &str) {
    let request = DeleteRangeRequest {
        key: key.as_bytes().to_vec().into(),
        ..DeleteRangeRequest::default()
    };
    client.call(Request::Delete(request)).await.expect("a delete");
}

async fn compact(client: &mut Client, revision: i64) {
    let request = CompactionRequest {
        revision,
        physical: true,
    };
    client
        .call(Request::Compact(request))
        .await
        .expect("a compaction");
}

fn header_revision(response: &WatchResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_begins_in_the_past_now_or_in_the_future() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    client.put("a", "1").await.expect("a put");
    client.put("a", "2").await.expect("a put");
    let mut stream = open(&cluster, 0).await;
    for (start, id) in [(2, 0), (0, 1), (5, 2)] {
        let answer = stream.create(watch("a", "", start)).await;
        assert_eq!(
            (answer.watch_id, answer.canceled, header_revision(&answer)),
            (id, false, 3)
        );
        let header = answer.header.expect("a header");
        assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
    }
    client.put("a", "3").await.expect("a put");
    client.put("b", "3").await.expect("a put");
    client.put("a", "4").await.expect("a put");
    let mut told = vec![Vec::new(); 3];
    while told.iter().map(Vec::len).sum::<usize>() < 4 + 2 + 1 {
        let response = stream.next().await.expect("a response");
        told[response.watch_id as usize].extend(response.events.iter().map(revision));
    }
    assert_eq!(told, [vec![2, 3, 4, 6], vec![4, 6], vec![6]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_events_of_a_revision_come_in_one_message() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    let mut live = open(&cluster, 0).await;
    live.create(watch_all(0)).await;
    for round in 0..30 {
        let put = |key: usize| {
            op(Op::RequestPut(put_request(
                format!("{key}").as_bytes(),
                &[b'x'; 9000],
            )))
        };
        let txn = TxnRequest {
            success: (0..100).map(put).collect(),
            ..TxnRequest::default()
        };
        client.call(Request::Txn(txn)).await.expect("a transaction");
        if round % 3 == 0 {
            client.put("0", "alone").await.expect("a put");
        }
    }
    let mut past = open(&cluster, 0).await;
    past.create(watch_all(1)).await;
    for stream in [&mut live, &mut past] {
        let (mut last, mut messages) = (1, 0);
        while last < 41 {
            let response = stream.next().await.expect("a response");
            let revisions: Vec<i64> = response.events.iter().map(revision).collect();
            assert!(
                revisions.is_sorted() && revisions[0] > last,
                "{last}, then {revisions:?}"
            );
            for of_one in revisions.chunk_by(|a, b| a == b) {
                assert!(
                    of_one.len() == 100 || of_one.len() == 1,
                    "{} of 100",
                    of_one.len()
                );
            }
            last = *revisions.last().expect("events");
            assert!(header_revision(&response) >= last);
            messages += 1;
        }
        assert!(messages >= 10, "{messages} messages for 30 MB");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_start_is_cancelled_with_the_compacted_revision() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    for value in ["1", "2", "3"] {
        client.put("a", value).await.expect("a put");
    }
    delete(&mut client, "a").await;
    compact(&mut client, 5).await;
    let mut stream = open(&cluster, 0).await;
    let answer = stream.create(watch("a", "", 2)).await;
    assert!(!answer.canceled && header_revision(&answer) == 5);
    let end = stream.next().await.expect("a response");
    assert!(end.canceled && !end.created && end.cancel_reason.is_empty());
    assert_eq!(
        (end.watch_id, end.compact_revision, header_revision(&end)),
        (0, 5, 0)
    );
    // At the compacted revision nothing is missing, not even a delete that no read can see.
    stream.create(watch("a", "", 5)).await;
    client.put("a", "4").await.expect("a put");
    assert_eq!(stream.told(2).await, ["-a @5", "+a=4 @6"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_chosen_by_the_client_or_counted() {
    let cluster = Cluster::start(1).await;
    let mut stream = open(&cluster, 0).await;
    let with_id = |watch_id| WatchCreateRequest {
        watch_id,
        ..watch("a", "", 0)
    };
    for (asked, given) in [(1, 1), (0, 0), (0, 2), (-5, -5)] {
        assert_eq!(stream.create(with_id(asked)).await.watch_id, given);
    }
    let refused = stream.create(with_id(2)).await;
    assert!(refused.canceled && refused.watch_id == -1);
    assert_eq!(
        refused.cancel_reason,
        "mvcc: duplicate watch ID provided on the WatchStream"
    );
    let refused = stream.create(watch("b", "a", 0)).await;
    assert!(refused.canceled && refused.watch_id == -1);
    assert_eq!(refused.cancel_reason, "mvcc: watcher range is empty");
    // Unknown: no answer. Known: one, and the id is free again.
    stream.cancel(77).await;
    stream.cancel(2).await;
    let canceled = stream.next().await.expect("a response");
    assert_eq!((canceled.watch_id, canceled.canceled), (2, true));
    assert_eq!(
        (canceled.compact_revision, canceled.cancel_reason.as_str()),
        (0, "")
    );
    assert_eq!(stream.create(with_id(2)).await.watch_id, 2);
    // Another stream counts for itself.
    assert_eq!(open(&cluster, 0).await.create(with_id(0)).await.watch_id, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_and_previous_pairs() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    let filtered = |filter: FilterType| WatchCreateRequest {
        filters: vec![filter as i32],
        prev_kv: true,
        ..watch("a", "c", 0)
    };
    let mut puts = open(&cluster, 0).await;
    let mut deletes = open(&cluster, 0).await;
    puts.create(filtered(FilterType::Nodelete)).await;
    deletes.create(filtered(FilterType::Noput)).await;
    client.put("a", "1").await.expect("a put");
    client.put("a", "2").await.expect("a put");
    delete(&mut client, "a").await;
    client.put("a", "3").await.expect("a put");
    assert_eq!(puts.told(3).await, ["+a=1 @2", "+a=2<1 @3", "+a=3 @5"]);
    assert_eq!(deletes.told(1).await, ["-a<2 @4"]);
    // Both changes show the pair from before the transaction.
    let everything_after = DeleteRangeRequest {
        key: b"a".to_vec().into(),
        range_end: b"\0".to_vec().into(),
        ..DeleteRangeRequest::default()
    };
    let txn = TxnRequest {
        success: vec![
            op(Op::RequestDeleteRange(everything_after)),
            op(Op::RequestPut(put_request(b"a", b"4"))),
        ],
        ..TxnRequest::default()
    };
    client.call(Request::Txn(txn)).await.expect("a transaction");
    assert_eq!(deletes.told(1).await, ["-a<3 @6"]);
    assert_eq!(puts.told(1).await, ["+a=4<3 @6"]);
    compact(&mut client, 5).await;
    let mut past = open(&cluster, 0).await;
    past.create(WatchCreateRequest {
        prev_kv: true,
        ..watch("a", "", 5)
    })
    .await;
    assert_eq!(past.told(3).await, ["+a=3 @5", "-a<3 @6", "+a=4<3 @6"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_claimed_only_once_everything_was_sent() {
    let cluster = Cluster::start_with(1, &["--watch-progress-notify-interval", "500ms"]).await;
    let mut client = cluster.client(0);
    let mut stream = open(&cluster, 0).await;
    stream.ask_progress().await;
    assert_eq!(stream.next_within(SILENCE).await, None, "no watcher");
    stream.create(watch("a", "", 0)).await;
    for round in 0..50 {
        let written = client.put("a", &round.to_string()).await.expect("a put");
        let mut seen = 0;
        let mut claimed = 0;
        // Silence is allowed, so asked again and again.
        while claimed < written {
            stream.ask_progress().await;
            let response = stream.next().await.expect("a response");
            match response.watch_id {
                -1 => {
                    claimed = header_revision(&response);
                    assert!(response.events.is_empty());
                    assert!(
                        claimed < written || seen == written,
                        "{claimed} claimed, {seen} seen"
                    );
                }
                _ => seen = response.events.last().map_or(seen, revision),
            }
        }
    }
    // Unasked, by those who want it, when idle.
    let mut idle = open(&cluster, 0).await;
    let notify = |start| WatchCreateRequest {
        progress_notify: true,
        ..watch("b", "", start)
    };
    idle.create(notify(0)).await;
    idle.create(watch("b", "", 0)).await;
    idle.create(notify(1000)).await;
    let told = idle.next().await.expect("a response");
    assert_eq!(
        (told.watch_id, told.events.len(), header_revision(&told)),
        (0, 0, 51)
    );
    let next = idle.next().await.expect("a response");
    assert_eq!(next.watch_id, 0, "the others did not ask, or wait for the future");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_revision_is_cut_into_fragments_for_those_who_ask() {
    let cluster = Cluster::start_with(1, &["--max-request-bytes", "20000"]).await;
    let mut client = cluster.client(0);
    for key in 0..100 {
        let value = "x".repeat(10_000);
        client.put(&format!("{key:02}"), &value).await.expect("a put");
    }
    let all = DeleteRangeRequest {
        key: b"\0".to_vec().into(),
        range_end: b"\0".to_vec().into(),
        ..DeleteRangeRequest::default()
    };
    let create = |fragment| WatchCreateRequest {
        fragment,
        prev_kv: true,
        ..watch_all(0)
    };
    let (mut whole, mut cut) = (open(&cluster, 0).await, open(&cluster, 0).await);
    whole.create(create(false)).await;
    cut.create(create(true)).await;
    client.call(Request::Delete(all)).await.expect("a delete");
    let whole = whole.next().await.expect("a response");
    assert_eq!((whole.events.len(), whole.fragment), (100, false));
    let mut events = Vec::new();
    let mut fragments = 0;
    loop {
        let response = cut.next().await.expect("a response");
        assert!(prost::Message::encoded_len(&response) <= 20_000 + 512 * 1024 + 100);
        events.extend(response.events);
        fragments += 1;
        if !response.fragment {
            break;
        }
    }
    assert_eq!(fragments, 2);
    assert_eq!(events, whole.events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_its_requests_and_ends_with_the_member() {
    let mut cluster = Cluster::start(1).await;
    let mut stream = open(&cluster, 0).await;
    stream
        .send(pontoon::pb::etcdserverpb::watch_request::RequestUnion::CreateRequest(watch("a", "", 0)))
        .await;
    stream.close_requests();
    assert!(stream.next().await.expect("a response").created);
    let mut client = cluster.client(0);
    for value in ["1", "2"] {
        client.put("a", value).await.expect("a put");
        assert_eq!(
            stream.events(1).await[0].kv.as_ref().expect("a pair").value,
            value
        );
    }
    let start = std::time::Instant::now();
    let (status, end) = tokio::join!(cluster.terminate(0), stream.next());
    assert!(status.success());
    assert_eq!(end.expect_err("the end").code(), Code::Unavailable);
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "open streams are not drained, they are ended"
    );
}
