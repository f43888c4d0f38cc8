//! Watch, guarantee by guarantee, through real processes.

use std::time::Duration;

use futures::StreamExt;
use pontoon::pb::etcdserverpb::kv_client::KvClient;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::watch_create_request::FilterType;
use pontoon::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, TxnRequest, WatchCreateRequest, WatchResponse,
};
use tonic::Code;

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::process::wait_for;
use crate::support::proxy::Link;
use crate::support::rpc::{Client, Request, channel, op, put_request};
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

/// As by etcd's newest releases: those before 3.6 take it for the oldest there is, or for compacted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_nothing_before_the_first_revision() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    let mut stream = open(&cluster, 0).await;
    let mut refused = async |from: i64| {
        let answer = stream.create(watch_all(from)).await;
        let why = "etcdserver: mvcc: required revision has been compacted";
        assert!(answer.created && answer.canceled, "{answer:?}");
        assert_eq!((answer.watch_id, answer.compact_revision), (-1, 0));
        assert_eq!(answer.cancel_reason, why);
    };
    refused(-1).await;
    let last = client.put("a", "1").await.expect("a put");
    compact(&mut client, last).await;
    refused(i64::MIN).await;
    let answer = stream.create(watch_all(last)).await;
    assert!(
        !answer.canceled && answer.watch_id == 0,
        "a refusal takes no id: {answer:?}"
    );
    assert_eq!(stream.told(1).await, [format!("+a=1 @{last}")]);
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
    // The delete shows the pair from before the transaction, the creation after it none.
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
    assert_eq!(puts.told(1).await, ["+a=4 @6"]);
    compact(&mut client, 5).await;
    let mut past = open(&cluster, 0).await;
    past.create(WatchCreateRequest {
        prev_kv: true,
        ..watch("a", "", 5)
    })
    .await;
    assert_eq!(past.told(3).await, ["+a=3 @5", "-a<3 @6", "+a=4 @6"]);
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

/// Puts `count` pairs from several clients at once, through members that answer; returns the last revision.
async fn write_much(cluster: &Cluster, members: &[usize], count: usize, value: &str) -> i64 {
    let clients: Vec<Client> = members.iter().map(|member| cluster.client(*member)).collect();
    let put = |number: usize| {
        let mut client = clients[number % clients.len()].clone();
        async move { client.put(&format!("k{}", number % 7), value).await }
    };
    let answers: Vec<_> = futures::stream::iter(0..count)
        .map(put)
        .buffer_unordered(500)
        .collect()
        .await;
    answers
        .into_iter()
        .map(|answer| answer.expect("a put"))
        .max()
        .expect("some")
}

/// Waits until a member acknowledges a write, as after the death of the leader.
async fn await_writable(cluster: &Cluster, member: usize) {
    wait_for(PATIENCE, "a write to be acknowledged", || async {
        cluster.client(member).put("k0", "at last").await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_tells_everything_in_order_once() {
    let cluster = Cluster::start(3).await;
    let mut streams = Vec::new();
    for member in 0..3 {
        let mut stream = open(&cluster, member).await;
        stream.create(watch_all(2)).await;
        streams.push(stream);
    }
    let last = write_much(&cluster, &[0, 1, 2], 600, "x").await;
    assert_eq!(last, 601);
    let mut first = None;
    for mut stream in streams {
        let events = stream.events(600).await;
        let revisions: Vec<i64> = events.iter().map(revision).collect();
        assert_eq!(revisions, (2..=601).collect::<Vec<_>>());
        assert_eq!(
            first.get_or_insert_with(|| events.clone()),
            &events,
            "members differ"
        );
        assert_eq!(stream.next_within(SILENCE).await, None, "there is no more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_resumes_at_any_kept_revision_on_any_member() {
    let mut cluster = Cluster::start(3).await;
    write_much(&cluster, &[0], 60, "x").await;
    compact(&mut cluster.client(0), 20).await;
    // One that has its past from the log of a restart.
    cluster.terminate(2).await;
    cluster.restart(2).await;
    for member in 0..3 {
        for from in [20, 21, 35, 60, 61] {
            let mut stream = open(&cluster, member).await;
            stream.create(watch_all(from)).await;
            let told: Vec<i64> = stream
                .events(62 - from as usize)
                .await
                .iter()
                .map(revision)
                .collect();
            // What is overwritten before the compacted revision is gone, what happened at it is not.
            assert_eq!(
                told,
                (from..=61).collect::<Vec<_>>(),
                "member {member}, from {from}"
            );
        }
        let mut stream = open(&cluster, member).await;
        stream.create(watch_all(19)).await;
        assert_eq!(stream.next().await.expect("a response").compact_revision, 20);
    }
}

/// What a stream that watches from the beginning is told, up to a revision.
async fn is_told_everything(stream: &mut WatchStream, last: i64) {
    let events = stream.events(last as usize - 1).await;
    let told: Vec<i64> = events.iter().map(revision).collect();
    assert_eq!(told, (2..=last).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_when_the_leader_is_killed_and_resumes_elsewhere() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    let mut stays = open(&cluster, others[0]).await;
    let mut leaves = open(&cluster, leader).await;
    stays.create(watch_all(2)).await;
    leaves.create(watch_all(2)).await;
    let before = write_much(&cluster, &[0, 1, 2], 50, "x").await;
    let mut told: Vec<i64> = leaves.events(50).await.iter().map(revision).collect();
    cluster.kill(leader);
    assert!(leaves.next().await.is_err(), "the stream is broken");
    await_writable(&cluster, others[0]).await;
    let last = write_much(&cluster, &others, 50, "y").await;
    let next = told.last().expect("told") + 1;
    assert_eq!(next, before + 1);
    let mut resumed = open(&cluster, others[1]).await;
    resumed.create(watch_all(next)).await;
    told.extend(
        resumed
            .events((last - before) as usize)
            .await
            .iter()
            .map(revision),
    );
    assert_eq!(told, (2..=last).collect::<Vec<_>>());
    is_told_everything(&mut stays, last).await;
    // The old leader comes back, and tells the same.
    cluster.restart(leader).await;
    let mut back = open(&cluster, leader).await;
    back.create(watch_all(2)).await;
    is_told_everything(&mut back, last).await;
}

/// Entries that are kept in the log behind a snapshot: who is further behind gets the snapshot.
const KEPT_ENTRIES: usize = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_over_the_install_of_a_snapshot() {
    let cluster = Cluster::start_with(3, &["--snapshot-count", "1000"]).await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    let mut stream = open(&cluster, behind).await;
    stream.create(watch_all(2)).await;
    // Deaf, not mute: the client's stream stays open.
    cluster.set_link(behind, Link::Cut);
    let last = write_much(&cluster, &[leader], KEPT_ENTRIES + 3000, "x").await;
    wait_for(
        PATIENCE,
        "the log to be purged of what the one behind lacks",
        || async {
            let log = std::fs::read_to_string(cluster.members[leader].log_file()).ok()?;
            log.contains("a snapshot waits for").then_some(())
        },
    )
    .await;
    cluster.set_link(behind, Link::Up);
    is_told_everything(&mut stream, last).await;
    // It did come by a snapshot: those are loaded into an engine of their own.
    let state = cluster.members[behind].data_dir().join("state");
    let engines: Vec<_> = std::fs::read_dir(state)
        .expect("a directory")
        .filter_map(|dir| dir.ok())
        .collect();
    assert!(engines.iter().all(|dir| dir.file_name() != "1"), "{engines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_holds_up_nobody_and_misses_nothing() {
    let cluster = Cluster::start(1).await;
    let mut slow = open(&cluster, 0).await;
    let mut quick = open(&cluster, 0).await;
    slow.create(watch_all(0)).await;
    quick.create(watch_all(0)).await;
    let value = "x".repeat(100_000);
    // Far more than connection and outbox hold.
    for _ in 0..300 {
        let written = cluster.client(0).put("a", &value).await.expect("a put");
        assert_eq!(
            quick.events(1).await.iter().map(revision).collect::<Vec<_>>(),
            [written]
        );
    }
    let told: Vec<i64> = slow.events(300).await.iter().map(revision).collect();
    assert_eq!(told, (2..=301).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watchers_on_one_member() {
    const STREAMS: usize = 50;
    const EACH: usize = 200;
    let cluster = Cluster::start(1).await;
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let mut stream = open(&cluster, 0).await;
        for watcher in 0..EACH {
            // Half of them for a key of their own, half for all of these keys.
            let request = match watcher % 2 {
                0 => watch(&format!("one/{number}/{watcher}"), "", 0),
                _ => watch("all/", "all0", 0),
            };
            assert!(!stream.create(request).await.canceled);
        }
        streams.push(stream);
    }
    let mut client = cluster.client(0);
    for number in 0..3 {
        client.put(&format!("all/{number}"), "x").await.expect("a put");
    }
    for number in 0..STREAMS {
        client
            .put(&format!("one/{number}/{}", 2 * number), "x")
            .await
            .expect("a put");
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut told = vec![0; EACH];
        while told.iter().sum::<usize>() < 3 * EACH / 2 + 1 {
            let response = stream.next().await.expect("a response");
            told[response.watch_id as usize] += response.events.len();
        }
        let expected = |watcher: usize| match watcher % 2 {
            0 => usize::from(watcher == 2 * number),
            _ => 3,
        };
        assert_eq!(told, (0..EACH).map(expected).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_require_a_leader_are_sent_away_by_a_member_without_one() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (alone, others) = ((leader + 1) % 3, [leader, (leader + 2) % 3]);
    let endpoint = cluster.members[alone].client_url.clone();
    let require = || WatchStream::open_with(&endpoint, &[("hasleader", "true")]);
    let mut patient = open(&cluster, alone).await;
    let mut demanding = require().await.expect("there is a leader");
    patient.create(watch_all(0)).await;
    demanding.create(watch_all(0)).await;
    cluster.kill(others[0]);
    cluster.kill(others[1]);
    let end = demanding.next().await.expect_err("the end");
    assert_eq!(
        (end.code(), end.message()),
        (Code::Unavailable, "etcdserver: no leader")
    );
    let refused = require().await.err().expect("refused");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "etcdserver: no leader")
    );
    let mut kv = KvClient::new(channel(&endpoint));
    let mut put = tonic::Request::new(put_request(b"a", b"1"));
    put.metadata_mut()
        .insert("hasleader", "true".parse().expect("ASCII"));
    let refused = kv.put(put).await.expect_err("refused at once");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "etcdserver: no leader")
    );
    for other in others {
        cluster.restart(other).await;
    }
    cluster.await_ready().await;
    cluster.client(alone).put("a", "1").await.expect("a put");
    assert_eq!(
        patient.told(1).await,
        ["+a=1 @2"],
        "whoever did not ask for it stays"
    );
    let mut again = wait_for(PATIENCE, "a stream that requires a leader", || async {
        require().await.ok()
    })
    .await;
    assert!(!again.create(watch_all(0)).await.canceled);
}
