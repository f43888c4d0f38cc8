//! Three members outlive one: killed, stopped politely, paused, cut off, wiped.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::http;
use crate::support::process::wait_for;
use crate::support::proxy::Link;
use crate::support::rpc::{Request, Response, everything, put_request};
use crate::support::workload::get;

/// Keys that are put while a leader is lost.
const KEYS: usize = 40;

/// Puts through any member that answers; returns how long it took until one did.
async fn put_somewhere(cluster: &Cluster, key: &str, value: &str) -> Duration {
    let start = Instant::now();
    wait_for(PATIENCE, "a put to be acknowledged", || async {
        for member in 0..cluster.members.len() {
            let put = async { cluster.client(member).put(key, value).await };
            if cluster.members[member].is_running()
                && let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(3), put).await
            {
                return Some(());
            }
        }
        None
    })
    .await;
    start.elapsed()
}

/// A serializable get: what this member holds by itself.
async fn local(cluster: &Cluster, member: usize, key: &str) -> Option<String> {
    let answer = cluster.client(member).call(get(key, true)).await;
    let Ok(Response::Range(range)) = answer else {
        return None;
    };
    range
        .kvs
        .first()
        .map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
}

/// Waits until a member holds a value by itself.
async fn await_local(cluster: &Cluster, member: usize, key: &str, value: &str) {
    let what = format!("{} to hold {key}={value}", cluster.members[member].name);
    wait_for(PATIENCE, &what, || async {
        local(cluster, member, key).await.filter(|held| held == value)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_takes_writes_and_reads() {
    let cluster = Cluster::start(3).await;
    for writer in 0..3 {
        let value = format!("by member {writer}");
        let revision = cluster.client(writer).put("key", &value).await.expect("a put");
        assert_eq!(revision, 2 + writer as i64);
        for reader in 0..3 {
            // Linearizable: no waiting, whichever member is asked.
            let found = cluster.client(reader).get("key").await.expect("a get");
            assert_eq!(
                found.as_deref(),
                Some(value.as_str()),
                "written by {writer}, read by {reader}"
            );
        }
    }
}

/// As with etcd, which answers a write where it was sent once it is applied there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wrote_through_a_member_finds_it_there() {
    let cluster = Cluster::start(3).await;
    for member in 0..3 {
        let mut client = cluster.client(member);
        for number in 0..300 {
            let value = number.to_string();
            client.put("key", &value).await.expect("a put");
            let answer = client.call(get("key", true)).await;
            let Ok(Response::Range(range)) = answer else {
                panic!("no range: {answer:?}");
            };
            assert_eq!(range.kvs[0].value, value, "by itself, member {member}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_agree_on_who_they_are() {
    let cluster = Cluster::start(3).await;
    let lists = futures::future::join_all((0..3).map(|member| cluster.member_list(member))).await;
    let mut ids = Vec::new();
    for list in lists {
        let list = list.expect("a member list");
        let cluster_id = list.header.expect("a header").cluster_id;
        let mut members: Vec<_> = list
            .members
            .iter()
            .map(|m| (m.name.clone(), m.id, m.client_ur_ls.clone(), m.is_learner))
            .collect();
        members.sort();
        ids.push((cluster_id, members));
    }
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:#?}");
    let names: Vec<&str> = ids[0].1.iter().map(|member| member.0.as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);
    for (member, (_, _, urls, learner)) in cluster.members.iter().zip(&ids[0].1) {
        assert_eq!(urls, std::slice::from_ref(&member.client_url));
        assert!(!learner);
    }
}

/// The slowest timers that may be set,
const SLOW_TIMERS: [&str; 2] = ["--election-timeout=50000", "--heartbeat-interval=100"];
/// and the shortest of them after a start: 0.35 of that.
const TIMER: Duration = Duration::from_millis(17_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_starts_again_does_not_wait_for_its_timers() {
    for size in [1, 3] {
        let mut cluster = Cluster::start_with(size, &SLOW_TIMERS).await;
        put_somewhere(&cluster, "before", "1").await;
        (0..size).for_each(|member| cluster.kill(member));
        (0..size).for_each(|member| cluster.spawn(member));
        let gap = put_somewhere(&cluster, "after", "2").await;
        println!("{size} started again: the next write was acknowledged after {gap:?}");
        assert!(gap < TIMER, "{size} members: the gap was {gap:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_starts_does_not_depose_a_leader() {
    let mut cluster = Cluster::start_with(3, &SLOW_TIMERS).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let term = cluster.status(leader).await.expect("its status").raft_term;
    for _ in 0..3 {
        cluster.kill(follower);
        put_somewhere(&cluster, "while it is gone", "1").await;
        cluster.restart(follower).await;
        await_local(&cluster, follower, "while it is gone", "1").await;
        let now = cluster.status(leader).await.expect("its status");
        assert_eq!(
            (now.leader, now.raft_term),
            (now.header.expect("a header").member_id, term)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_catches_up() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_somewhere(&cluster, "before", "1").await;
    cluster.kill(leader);
    let gap = put_somewhere(&cluster, "while it is gone", "2").await;
    println!("killed the leader: the next write was acknowledged after {gap:?}");
    assert!(gap < Duration::from_secs(10), "the gap was {gap:?}");
    assert_ne!(cluster.leader().await, leader);
    cluster.restart(leader).await;
    await_local(&cluster, leader, "while it is gone", "2").await;
    assert_eq!(local(&cluster, leader, "before").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_told_to_stop_hands_over_first() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_somewhere(&cluster, "before", "1").await;
    let start = Instant::now();
    let status = cluster.terminate(leader).await;
    assert_eq!(status.code(), Some(0), "SIGTERM is an order, not an accident");
    println!("SIGTERM: the process ended after {:?}", start.elapsed());
    let gap = put_somewhere(&cluster, "after", "2").await;
    println!("the next write was acknowledged {gap:?} later");
    assert!(
        gap < Duration::from_millis(900),
        "leadership was not handed over: the gap was {gap:?}"
    );
    cluster.restart(leader).await;
    await_local(&cluster, leader, "after", "2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_killed_at_once_come_back_with_everything() {
    let mut cluster = Cluster::start(3).await;
    let mut client = cluster.client(0);
    for number in 0..200 {
        client
            .put(&format!("key {number}"), &format!("value {number}"))
            .await
            .expect("a put");
    }
    for member in 0..3 {
        cluster.kill(member);
    }
    for member in 0..3 {
        cluster.spawn(member);
    }
    cluster.await_ready().await;
    for member in 0..3 {
        let answer = cluster
            .client(member)
            .call(Request::Range(everything()))
            .await
            .expect("a range");
        let Response::Range(range) = answer else {
            unreachable!("a range answers a range")
        };
        assert_eq!(range.count, 200);
        assert_eq!(range.header.expect("a header").revision, 201);
        for kv in &range.kvs {
            let number = String::from_utf8_lossy(&kv.key).replace("key ", "");
            assert_eq!(kv.value, format!("value {number}").as_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_acknowledged() {
    let mut cluster = Cluster::start(3).await;
    put_somewhere(&cluster, "key", "1").await;
    cluster.kill(1);
    cluster.kill(2);
    let mut client = cluster.client(0);
    let put = tokio::time::timeout(Duration::from_secs(3), client.put("key", "2")).await;
    assert!(
        !matches!(put, Ok(Ok(_))),
        "one of three acknowledged a write: {put:?}"
    );
    let read = tokio::time::timeout(Duration::from_secs(3), client.get("key")).await;
    assert!(
        !matches!(read, Ok(Ok(_))),
        "one of three answered a linearizable read: {read:?}"
    );
    assert!(
        local(&cluster, 0, "key").await.is_some(),
        "a serializable read needs no quorum"
    );
    cluster.spawn(1);
    cluster.await_serving(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_serves_no_stale_read() {
    let cluster = Cluster::start(3).await;
    put_somewhere(&cluster, "key", "old").await;
    let leader = cluster.leader().await;
    // Connected before the pause, so that the request waits at the paused process's door.
    let mut waiting = cluster.client(leader);
    waiting.get("key").await.expect("a get");
    cluster.pause(leader);
    let read = tokio::spawn(async move {
        let answer = waiting
            .call_within(Duration::from_secs(20), get("key", false))
            .await;
        answer.map(|answer| match answer {
            Response::Range(range) => range.kvs.first().map(|kv| kv.value.clone()).unwrap_or_default(),
            other => panic!("not a range: {other:?}"),
        })
    });
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    wait_for(PATIENCE, "the others to acknowledge a put", || async {
        let put = async { cluster.client(others[0]).put("key", "new").await };
        tokio::time::timeout(Duration::from_secs(3), put).await.ok()?.ok()
    })
    .await;
    cluster.resume(leader);
    // The paused read began before the put, so "old" would be allowed for it; one that begins now has no excuse.
    let fresh = cluster.client(leader).get("key").await;
    if let Ok(found) = fresh {
        assert_eq!(
            found.as_deref(),
            Some("new"),
            "the resumed leader served a stale read"
        );
    }
    if let Ok(value) = read.await.expect("the read ends") {
        assert!(value == "new" || value == "old", "{value:?}");
    }
    await_local(&cluster, leader, "key", "new").await;
}

/// So that members are connected, and all know the leader.
async fn put_through_each(cluster: &Cluster) {
    for member in 0..3 {
        cluster.client(member).put("warm", "1").await.expect("a put");
    }
}

/// Puts so many keys through both of a leader's followers at once, within five seconds each.
fn put_through_followers(cluster: &Cluster, leader: usize, count: usize) -> JoinHandle<()> {
    let puts = (0..count).map(|number| {
        let mut client = cluster.client((leader + 1 + number % 2) % 3);
        async move {
            let put = put_request(format!("key {number}").as_bytes(), b"once");
            let answer = client
                .call_within(Duration::from_secs(5), Request::Put(put))
                .await;
            answer.expect("a put");
        }
    });
    let puts: Vec<_> = puts.collect();
    tokio::spawn(async {
        futures::future::join_all(puts).await;
    })
}

/// Waits until a member has so many proposals under way.
async fn await_proposals(cluster: &Cluster, member: usize, count: usize) {
    wait_for(PATIENCE, "proposals to be under way", || async {
        let page = http::get(&cluster.members[member].client_url, "/metrics")
            .await
            .text();
        let pending = format!("etcd_server_proposals_pending {count}");
        page.lines().any(|line| line == pending).then_some(())
    })
    .await;
}

/// Every one of the keys is there, and was put once.
async fn assert_put_once(cluster: &Cluster, count: usize) {
    for member in 0..3 {
        let all = Request::Range(everything());
        let answer = cluster.client(member).call_within(PATIENCE, all).await;
        let Ok(Response::Range(range)) = answer else {
            panic!("no range: {answer:?}")
        };
        let keys = range.kvs.iter().filter(|kv| kv.key.starts_with(b"key "));
        let versions: Vec<i64> = keys.map(|kv| kv.version).collect();
        assert_eq!(versions, vec![1; count]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_finish_what_a_paused_leader_was_handed() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_through_each(&cluster).await;
    cluster.pause(leader);
    let puts = put_through_followers(&cluster, leader, KEYS);
    puts.await.expect("all are put");
    // It wakes with all of it at its door.
    cluster.resume(leader);
    await_local(&cluster, leader, "key 0", "once").await;
    assert_put_once(&cluster, KEYS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_finish_what_a_killed_leader_was_handed() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_through_each(&cluster).await;
    cluster.pause(leader);
    let puts = put_through_followers(&cluster, leader, KEYS);
    // At its door, or about to be.
    await_proposals(&cluster, (leader + 1) % 3, KEYS / 2).await;
    cluster.kill(leader);
    puts.await.expect("all are put");
    cluster.restart(leader).await;
    await_local(&cluster, leader, "key 0", "once").await;
    assert_put_once(&cluster, KEYS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_member_rejoins_under_a_new_id() {
    let mut cluster = Cluster::start_with(3, &["--snapshot-count", "200"]).await;
    let mut client = cluster.client(0);
    for number in 0..600 {
        client
            .put(&format!("key {}", number % 50), &number.to_string())
            .await
            .expect("a put");
    }
    let wiped = 2;
    let id_before = cluster
        .status(wiped)
        .await
        .expect("a status")
        .header
        .expect("a header")
        .member_id;
    cluster.kill(wiped);
    cluster.wipe(wiped);
    cluster.restart(wiped).await;
    await_local(&cluster, wiped, "key 49", "599").await;
    let id = cluster
        .status(wiped)
        .await
        .expect("a status")
        .header
        .expect("a header")
        .member_id;
    assert_ne!(
        id, id_before,
        "an id whose votes are forgotten must not vote again"
    );
    // It serves while it takes the old one's place, in two steps.
    wait_for(PATIENCE, "the old member to leave the list", || async {
        let list = cluster.member_list(0).await.ok()?;
        let is_gone = list.members.iter().all(|member| member.id != id_before);
        (list.members.len() == 3 && is_gone).then_some(())
    })
    .await;
    // It counts again: with another member gone, the two are a quorum.
    cluster.kill(0);
    put_somewhere(&cluster, "at last", "2 of 3").await;
    await_local(&cluster, wiped, "at last", "2 of 3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_be_reached_stops_nobody() {
    let cluster = Cluster::start(3).await;
    put_somewhere(&cluster, "key", "1").await;
    for link in [Link::Cut, Link::Hold] {
        let follower = cluster.follower().await;
        cluster.set_link(follower, link);
        let deadline = Instant::now() + Duration::from_secs(4);
        let mut worst = Duration::ZERO;
        while Instant::now() < deadline {
            worst = worst.max(put_somewhere(&cluster, "key", &format!("{link:?}")).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("{link:?}: the slowest write took {worst:?}");
        assert!(worst < Duration::from_secs(3), "{link:?}: a write took {worst:?}");
        cluster.set_link(follower, Link::Up);
        await_local(&cluster, follower, "key", &format!("{link:?}")).await;
    }
}
