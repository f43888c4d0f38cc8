//! Leases: what they answer, when they end, and that they end neither early nor never, whatever happens to members.
//!
//! `PONTOON_LEASES` sets how many leases live at once (100,000 for the long form), `PONTOON_LEASE_FAULTS` the number of
//! faults of the property test, `PONTOON_SEED` its seed.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use pontoon::pb::etcdserverpb::{RangeRequest, ResponseHeader};
use pontoon::pb::mvccpb::KeyValue;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::{Code, Status};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::from_env;
use crate::support::leases::{Leases, attach};
use crate::support::process::wait_for;
use crate::support::rpc::{Client, Request, Response};

/// How long one call of a client may take before it tries elsewhere.
const CALL: Duration = Duration::from_secs(3);

fn leases(cluster: &Cluster, member: usize) -> Leases {
    Leases::new(&cluster.members[member].client_url)
}

async fn put(client: &mut Client, key: &str, lease: i64) -> Result<i64, Status> {
    Ok(client.call(Request::Put(attach(key, lease))).await?.revision())
}

/// The pairs below a prefix, and the revision at which they were read.
async fn below(client: &mut Client, prefix: &str) -> Result<(Vec<KeyValue>, i64), Status> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix") += 1;
    let request = RangeRequest {
        key: prefix.as_bytes().to_vec().into(),
        range_end: end.into(),
        ..RangeRequest::default()
    };
    match client.call(Request::Range(request)).await? {
        Response::Range(range) => Ok((range.kvs, range.header.map_or(0, |header| header.revision))),
        other => panic!("a range answers a range: {other:?}"),
    }
}

/// The members that run, in turn, until one does it.
async fn somewhere<T, F>(cluster: &Cluster, what: &str, act: impl Fn(usize) -> F) -> T
where
    F: Future<Output = Result<T, Status>>,
{
    wait_for(PATIENCE, what, || async {
        for member in 0..cluster.members.len() {
            if cluster.members[member].is_running()
                && let Ok(Ok(done)) = tokio::time::timeout(CALL, act(member)).await
            {
                return Some(done);
            }
        }
        None
    })
    .await
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("a refusal");
    (status.code(), status.message().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lives_and_ends_alike_on_every_member() {
    let cluster = Cluster::start(3).await;
    for member in 0..3 {
        let mut here = leases(&cluster, member);
        let mut elsewhere = leases(&cluster, (member + 1) % 3);
        let (mut client, mut other) = (cluster.client(member), cluster.client((member + 1) % 3));
        let granted = here.grant(0, 1000).await.expect("a grant");
        assert!(granted.id > 0 && granted.ttl == 1000, "{granted:?}");
        let id = granted.id;
        for key in ["k/b", "k/a", "k/c"] {
            put(&mut client, key, id).await.expect("a put");
        }
        // One detached, one attached elsewhere, one deleted.
        put(&mut client, "k/a", 0).await.expect("a put");
        let before = put(&mut client, "k/d", id).await.expect("a put");
        let times = elsewhere.times(id, true).await.expect("times");
        let keys: Vec<&[u8]> = times.keys.iter().map(|key| &key[..]).collect();
        assert_eq!(keys, [b"k/b", b"k/c", b"k/d"]);
        assert!(
            (990..=1000).contains(&times.ttl) && times.granted_ttl == 1000,
            "{times:?}"
        );
        let listed = elsewhere.list().await.expect("a list");
        assert_eq!(
            listed.leases.iter().map(|lease| lease.id).collect::<Vec<_>>(),
            [id]
        );
        let revoked = elsewhere.revoke(id).await.expect("a revoke");
        assert_eq!(
            revoked.header.expect("a header").revision,
            before + 1,
            "one revision"
        );
        let (left, _) = below(&mut other, "k/").await.expect("a range");
        assert_eq!(left.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), [b"k/a"]);
        assert_eq!(here.times(id, false).await.expect("times").ttl, -1);
        assert_eq!(here.keep_alive(&[id]).await.expect("an answer")[0].ttl, 0);
        let unknown = (
            Code::NotFound,
            "etcdserver: requested lease not found".to_string(),
        );
        assert_eq!(refusal(here.revoke(id).await), unknown);
        assert_eq!(refusal(put(&mut client, "k/a", id).await), unknown);
    }
}

/// An answer without what differs between clusters, and without what depends on the moment.
fn plain(header: Option<ResponseHeader>) -> i64 {
    header.expect("a header").revision
}

/// A script of calls, and what is answered to each.
async fn script(endpoint: &str) -> Vec<String> {
    let (mut leases, mut client) = (Leases::new(endpoint), Client::new(endpoint));
    let mut said = Vec::new();
    let mut say = |what: &str, answer: String| said.push(format!("{what}: {answer}"));
    for (id, ttl) in [
        (7, 100),
        (7, 100),
        (8, 0),
        (9, -5),
        (10, 1),
        (11, 9_000_000_000),
        (12, 9_000_000_001),
        (-3, 50),
        (i64::MAX, 60),
        (13, i64::MIN),
        (14, 3),
    ] {
        let answer = leases.grant(id, ttl).await;
        let answer = answer.map(|granted| (plain(granted.header), granted.id, granted.ttl, granted.error));
        say(
            &format!("grant {id} {ttl}"),
            format!("{:?}", answer.map_err(|s| (s.code(), s.message().to_string()))),
        );
    }
    for (key, lease) in [("a", 7), ("b", 7), ("c", -3), ("d", 99), ("a", -3), ("e", 7)] {
        let answer = put(&mut client, key, lease).await;
        say(
            &format!("put {key} {lease}"),
            format!("{:?}", answer.map_err(|s| (s.code(), s.message().to_string()))),
        );
    }
    for id in [7, -3, 99, 0, 8, 9, 10, 11, 13] {
        let times = leases.times(id, true).await.expect("times");
        let mut keys = times.keys;
        keys.sort();
        // A second may have passed since the grant.
        let ttl = if times.ttl > 0 {
            times.granted_ttl - times.ttl <= 5
        } else {
            times.ttl == 0
        };
        say(
            &format!("times {id}"),
            format!(
                "{:?}",
                (
                    plain(times.header),
                    times.id,
                    times.ttl.min(0),
                    ttl,
                    times.granted_ttl,
                    keys
                )
            ),
        );
    }
    let renewed = leases.keep_alive(&[7, 99, -3, 7, 0]).await.expect("answers");
    for answer in renewed {
        say(
            "keep alive",
            format!("{:?}", (plain(answer.header), answer.id, answer.ttl)),
        );
    }
    let (pairs, _) = below(&mut client, "a").await.expect("a range");
    say("a", format!("{pairs:?}"));
    for id in [7, 7, 99, 0, -3, 8] {
        let answer = leases.revoke(id).await.map(|revoked| plain(revoked.header));
        say(
            &format!("revoke {id}"),
            format!("{:?}", answer.map_err(|s| (s.code(), s.message().to_string()))),
        );
        let (pairs, revision) = below(&mut client, "a").await.expect("a range");
        say("left", format!("{pairs:?} at {revision}"));
    }
    let listed = leases.list().await.expect("a list");
    // 9, 10, 13 and 14 are about to expire.
    let long: Vec<i64> = listed
        .leases
        .iter()
        .map(|lease| lease.id)
        .filter(|id| [11, i64::MAX].contains(id))
        .collect();
    say("list", format!("{long:?}"));
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_etcds() {
    crate::support::etcd::answers_are_etcds(script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_lease_takes_its_keys_in_one_revision() {
    let cluster = Cluster::start(3).await;
    let (mut leases, mut client) = (leases(&cluster, 0), cluster.client(1));
    let began = Instant::now();
    leases.grant(7, 2).await.expect("a grant");
    for key in ["k/1", "k/2", "k/3"] {
        put(&mut client, key, 7).await.expect("a put");
    }
    put(&mut client, "other", 0).await.expect("a put");
    let (_, before) = below(&mut client, "k/").await.expect("a range");
    let mut open = leases.open().await.expect("a stream");
    assert_eq!(open.renew(7).await.expect("an answer").ttl, 2);
    let renewed = Instant::now();
    let (pairs, revision) = wait_for(PATIENCE, "the keys to vanish", || async {
        let (pairs, revision) = below(&mut cluster.client(1), "k/").await.ok()?;
        (pairs.len() < 3).then_some((pairs, revision))
    })
    .await;
    println!(
        "gone {:?} after the renewal, {:?} after the grant",
        renewed.elapsed(),
        began.elapsed()
    );
    assert!(began.elapsed() >= Duration::from_secs(2), "it ended early");
    assert_eq!((pairs.len(), revision), (0, before + 1), "all in one revision");
    let answer = open.renew(7).await.expect("the stream goes on");
    assert_eq!((answer.ttl, answer.id), (0, 7));
    assert_eq!(plain(answer.header), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_kept_alive_through_any_member_while_the_leader_is_killed() {
    let mut cluster = Cluster::start(3).await;
    leases(&cluster, 0).grant(7, 4).await.expect("a grant");
    put(&mut cluster.client(0), "held", 7).await.expect("a put");
    let leader = cluster.leader().await;
    cluster.kill(leader);
    let until = Instant::now() + Duration::from_secs(6);
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    for member in others.iter().cycle() {
        let ttl = leases(&cluster, *member).keep_alive_within(PATIENCE, 7).await;
        assert_eq!(ttl.expect("a renewal"), 4, "through member {member}");
        if Instant::now() > until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let (held, _) = below(&mut cluster.client((leader + 1) % 3), "held")
        .await
        .expect("a range");
    assert_eq!(held.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_a_stream_of_renewals_ends() {
    let mut cluster = Cluster::start(3).await;
    leases(&cluster, 0).grant(7, 1000).await.expect("a grant");
    let mut open = leases(&cluster, 0).open().await.expect("a stream");
    assert_eq!(open.renew(7).await.expect("an answer").ttl, 1000);
    cluster.kill(1);
    cluster.kill(2);
    let status = open.renew(7).await.expect_err("no answer without a quorum");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_member_ends_its_streams_of_renewals() {
    let mut cluster = Cluster::start(3).await;
    leases(&cluster, 0).grant(7, 1000).await.expect("a grant");
    let mut open = leases(&cluster, 1).open().await.expect("a stream");
    assert_eq!(open.renew(7).await.expect("an answer").ttl, 1000);
    let ended = tokio::spawn(async move { open.end().await });
    assert_eq!(cluster.terminate(1).await.code(), Some(0));
    let status = ended.await.expect("the stream ends");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_leader_renews_nothing() {
    let cluster = Cluster::start(3).await;
    leases(&cluster, 0).grant(7, 1000).await.expect("a grant");
    let leader = cluster.leader().await;
    // Connected before the pause, so that the renewal waits at the paused process's door.
    let mut waiting = leases(&cluster, leader).open().await.expect("a stream");
    assert_eq!(waiting.renew(7).await.expect("an answer").ttl, 1000);
    cluster.pause(leader);
    let renewal = tokio::spawn(async move { waiting.renew(7).await });
    let other = (leader + 1) % 3;
    wait_for(PATIENCE, "another member to revoke", || async {
        let revoke = async { leases(&cluster, other).revoke(7).await };
        match tokio::time::timeout(CALL, revoke).await {
            Ok(Ok(_)) => Some(()),
            // An earlier attempt came through.
            Ok(Err(status)) if status.code() == Code::NotFound => Some(()),
            _ => None,
        }
    })
    .await;
    cluster.resume(leader);
    if let Ok(answer) = renewal.await.expect("it ends") {
        assert_eq!(
            answer.ttl, 0,
            "the lease was revoked before the deposed leader could answer"
        );
    }
}

/// What is left of lease 7, asked wherever it is answered.
async fn left(cluster: &Cluster) -> i64 {
    let times = |member: usize| async move { leases(cluster, member).times(7, false).await };
    somewhere(cluster, "the time left", times).await.ttl
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_left_survives_leaders_and_restarts() {
    let mut cluster = Cluster::start_with(3, &["--lease-checkpoint-interval", "1s"]).await;
    leases(&cluster, 0).grant(7, 60).await.expect("a grant");
    // Long enough ago that one interval, one election timeout and the rounding don't hide it.
    let seen = wait_for(PATIENCE, "some of the time to pass", || async {
        Some(left(&cluster).await).filter(|left| *left <= 56)
    })
    .await;
    let (leader, bound) = (cluster.leader().await, seen + 3);
    cluster.kill(leader);
    let after_kill = left(&cluster).await;
    assert!(
        after_kill <= bound,
        "{after_kill} s after a change of leaders, {seen} s before"
    );
    assert!(after_kill > 0);
    cluster.restart(leader).await;
    for member in 0..3 {
        cluster.kill(member);
    }
    for member in 0..3 {
        cluster.spawn(member);
    }
    let after_restart = left(&cluster).await;
    // Checkpointed anew by the leader in between, or not.
    assert!(
        after_restart <= bound + 2,
        "{after_restart} s after a restart of all, {seen} s before"
    );
    // A renewal removes the checkpoint: no leader goes back to it.
    let renew = |member: usize| {
        let mut here = leases(&cluster, member);
        async move { here.keep_alive_within(CALL, 7).await }
    };
    assert_eq!(somewhere(&cluster, "a renewal", renew).await, 60);
    let renewed = Instant::now();
    let leader = cluster.leader().await;
    cluster.kill(leader);
    let after_renewal = left(&cluster).await;
    let passed = renewed.elapsed().as_secs() as i64 + 1;
    assert!(
        after_renewal >= 60 - passed,
        "{after_renewal} s left {passed} s after a renewal"
    );
}

/// What one client of one lease saw.
#[derive(Default)]
struct Seen {
    /// When each renewal that was answered had been sent.
    renewed: Vec<Instant>,
    /// When it was first known to be gone.
    gone: Option<Instant>,
}

/// Keeps one lease alive, through a random member each time, for `length`; then lets go and waits for its end.
async fn keep(endpoints: Vec<String>, id: i64, ttl: i64, length: Duration, seed: u64) -> Seen {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut seen = Seen::default();
    let key = format!("lease {id}");
    let began = Instant::now();
    while seen.gone.is_none() {
        let endpoint = &endpoints[rng.random_range(0..endpoints.len())];
        let sent = Instant::now();
        if began.elapsed() < length {
            match Leases::new(endpoint).keep_alive_within(CALL, id).await {
                Ok(0) => seen.gone = Some(Instant::now()),
                Ok(answered) if answered > 0 => seen.renewed.push(sent),
                _ => {}
            }
        }
        let read = tokio::time::timeout(CALL, async { Client::new(endpoint).get(&key).await });
        if let Ok(Ok(None)) = read.await {
            seen.gone.get_or_insert(Instant::now());
        }
        assert!(
            began.elapsed() < length + PATIENCE + Duration::from_secs(ttl as u64),
            "lease {id} does not end"
        );
        // Now and then nearly too late.
        let pause = rng.random_range(100..ttl as u64 * 900);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_ends_early_whatever_happens_to_members() {
    let (seed, faults) = (from_env("PONTOON_SEED", 1), from_env("PONTOON_LEASE_FAULTS", 3));
    println!("PONTOON_SEED={seed} PONTOON_LEASE_FAULTS={faults}");
    let mut rng = StdRng::seed_from_u64(seed);
    let flags = ["--snapshot-count", "100", "--lease-checkpoint-interval", "1s"];
    let mut cluster = Cluster::start_with(3, &flags).await;
    let endpoints: Vec<String> = cluster
        .members
        .iter()
        .map(|member| member.client_url.clone())
        .collect();
    // Of all lengths: some are checkpointed, some are not.
    let ttls: Vec<i64> = (0..12).map(|id| 2 + id % 4).collect();
    for (id, ttl) in (1..).zip(&ttls) {
        leases(&cluster, 0).grant(id, *ttl).await.expect("a grant");
        // The key may not outlive it, nor may it be there before: a lease that ended already is no lease to test.
        put(&mut cluster.client(0), &format!("lease {id}"), id)
            .await
            .expect("a put");
    }
    let length = Duration::from_millis(2500 * faults);
    let keepers = (1..)
        .zip(&ttls)
        .map(|(id, ttl)| tokio::spawn(keep(endpoints.clone(), id, *ttl, length, seed + id as u64)));
    let keepers: Vec<_> = keepers.collect();
    for _ in 0..faults {
        let victim = match rng.random_range(0..3) {
            0 => rng.random_range(0..3),
            _ => cluster.leader().await,
        };
        let down = Duration::from_millis(rng.random_range(200..2500));
        if rng.random_bool(0.4) {
            println!("pausing {victim} for {down:?}");
            cluster.pause(victim);
            tokio::time::sleep(down).await;
            cluster.resume(victim);
        } else {
            println!("killing {victim} for {down:?}");
            cluster.kill(victim);
            tokio::time::sleep(down).await;
            cluster.spawn(victim);
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..800))).await;
    }
    let seen = join_all(keepers).await;
    let mut renewals = 0;
    for ((id, ttl), seen) in (1..).zip(&ttls).zip(seen) {
        let seen: Seen = seen.expect("it ends");
        let gone = seen.gone.expect("it ended");
        renewals += seen.renewed.len();
        for sent in seen.renewed {
            let lived = gone.saturating_duration_since(sent);
            let promised = Duration::from_secs(*ttl as u64);
            assert!(
                gone < sent || lived >= promised,
                "lease {id} was gone {lived:?} after a renewal of {promised:?}"
            );
            assert!(gone >= sent, "lease {id} was renewed after it was gone");
        }
    }
    println!("{renewals} renewals");
    assert!(renewals > 12, "hardly anything was renewed");
}

/// Memory that a member's process uses, in KiB.
fn memory(cluster: &Cluster, member: usize) -> u64 {
    let path = format!(
        "/proc/{}/status",
        cluster.members[member].process_id().expect("it runs")
    );
    let status = std::fs::read_to_string(path).expect("a process on Linux");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("its memory");
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_leases_live() {
    let count = from_env("PONTOON_LEASES", 5000) as i64;
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let before = memory(&cluster, leader);
    let began = Instant::now();
    let client = leases(&cluster, leader);
    let grants = futures::stream::iter(1..=count).map(|id| {
        let mut client = client.clone();
        async move { client.grant(id, 10_000 + id).await.expect("a grant").id }
    });
    let granted: Vec<i64> = grants.buffered(256).collect().await;
    let (granting, after) = (began.elapsed(), memory(&cluster, leader));
    println!(
        "{count} leases granted in {granting:?}; the leader's memory grew from {before} to {after} KiB, {} bytes a lease",
        after.saturating_sub(before) * 1024 / count as u64
    );
    let follower = (leader + 1) % 3;
    let began = Instant::now();
    let listed = leases(&cluster, follower).list().await.expect("a list");
    println!("listed in {:?}", began.elapsed());
    let listed: Vec<i64> = listed.leases.iter().map(|lease| lease.id).collect();
    assert_eq!(listed, granted, "in the order of their expiry");
    let began = Instant::now();
    let renewed = leases(&cluster, follower)
        .keep_alive(&granted)
        .await
        .expect("answers");
    println!("renewed in {:?} through a follower", began.elapsed());
    let order: Vec<i64> = renewed.iter().map(|answer| answer.id).collect();
    assert_eq!(order, granted, "one answer each, in order");
    assert!(renewed.iter().all(|answer| answer.ttl == 10_000 + answer.id));
}
