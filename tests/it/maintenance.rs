//! Maintenance of real members: the quota and how to recover from it, defragmenting, hashes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pontoon::pb::etcdserverpb::alarm_request::AlarmAction;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DeleteRangeRequest,
    HashKvRequest, HashKvResponse, HashRequest, PutRequest, StatusResponse,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::process::{await_exit, kill_and_reap, spawn_logged, wait_for};
use crate::support::rpc::{Client, Request, channel, everything, put_request};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
/// Small enough to be filled in a moment, and larger than what an empty engine takes.
const QUOTA: &str = "16777216";
/// Bytes of one value: many fit, and an engine does not keep it in a file of its own.
const VALUE: usize = 64 << 10;

/// More than ten values, and far less than the quota.
const LEFT: i64 = 2 << 20;

fn maintenance(cluster: &Cluster, member: usize) -> MaintenanceClient<Channel> {
    MaintenanceClient::new(channel(&cluster.members[member].client_url))
}

async fn status(cluster: &Cluster, member: usize) -> StatusResponse {
    wait_for(PATIENCE, "a status", || cluster.status(member)).await
}

async fn alarms(cluster: &Cluster, member: usize) -> Vec<AlarmMember> {
    let answer = maintenance(cluster, member).alarm(AlarmRequest::default()).await;
    answer.expect("alarms").into_inner().alarms
}

async fn disarm(cluster: &Cluster, member: usize) {
    for alarm in alarms(cluster, member).await {
        let request = AlarmRequest {
            action: AlarmAction::Deactivate as i32,
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        let cleared = maintenance(cluster, member)
            .alarm(request)
            .await
            .expect("disarmed");
        assert_eq!(cleared.into_inner().alarms, [alarm]);
    }
}

async fn defragment(cluster: &Cluster, member: usize) {
    let mut client = maintenance(cluster, member);
    let answer = client.defragment(DefragmentRequest::default());
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("in time");
    assert_eq!(answer.expect("defragmented").into_inner().header, None);
}

async fn hash_kv(cluster: &Cluster, member: usize, revision: i64) -> Result<HashKvResponse, Status> {
    let answer = maintenance(cluster, member)
        .hash_kv(HashKvRequest { revision })
        .await?;
    Ok(answer.into_inner())
}

fn big_put(key: &str) -> PutRequest {
    put_request(key.as_bytes(), &[b'v'; VALUE])
}

/// Puts over a few keys, so that most of it is the past, until it is refused; how often it went well.
async fn fill(client: &mut Client) -> usize {
    for count in 0..5000 {
        match client
            .call(Request::Put(big_put(&format!("k{}", count % 10))))
            .await
        {
            Ok(_) => {}
            Err(refused) => {
                assert_eq!(
                    (refused.code(), refused.message()),
                    (Code::ResourceExhausted, NO_SPACE)
                );
                return count;
            }
        }
    }
    panic!("the quota did not trip");
}

/// Compacts all that there is, and waits until every member has reclaimed it: little more than the ten keys is left.
async fn compact(cluster: &Cluster) {
    let revision = status(cluster, 0).await.header.expect("a header").revision;
    let request = CompactionRequest {
        revision,
        physical: true,
    };
    cluster
        .client(0)
        .call(Request::Compact(request))
        .await
        .expect("compacted");
    let in_use = status(cluster, 0).await.db_size_in_use;
    assert!(
        in_use < LEFT,
        "a physical compaction is answered when it is done: {in_use} bytes are left"
    );
    for member in 1..cluster.members.len() {
        wait_for(PATIENCE, "the others to reclaim", || async move {
            (status(cluster, member).await.db_size_in_use < LEFT).then_some(())
        })
        .await;
    }
}

fn delete(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

/// Bytes of all files below.
fn bytes_below(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let metadata = entry.metadata().expect("a file's data");
        bytes += match metadata.is_dir() {
            true => bytes_below(&entry.path()),
            false => metadata.len(),
        };
    }
    bytes
}

fn state_bytes(cluster: &Cluster, member: usize) -> u64 {
    bytes_below(&cluster.members[member].data_dir().join("state"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_trips_alike_everywhere_and_compact_defrag_disarm_recovers() {
    let mut cluster = Cluster::start_with(3, &["--quota-backend-bytes", QUOTA]).await;
    let mut client = cluster.client(0);
    let written = fill(&mut client).await;
    println!("full after {written} puts of {VALUE} bytes");
    assert!(written > 20, "the quota is not used");
    let raised = alarms(&cluster, 0).await;
    assert!(!raised.is_empty() && raised.iter().all(|alarm| alarm.alarm() == AlarmType::Nospace));
    for member in 0..3 {
        let mut client = cluster.client(member);
        let what = format!("member {member} to refuse");
        wait_for(PATIENCE, &what, || {
            let mut client = client.clone();
            async move { client.put("small", "v").await.err() }
        })
        .await;
        let refused = client.put("small", "v").await.expect_err("no room");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::ResourceExhausted, NO_SPACE)
        );
        assert!(client.get("k1").await.expect("reads go on").is_some());
        let status = status(&cluster, member).await;
        let line = format!("memberID:{} alarm:NOSPACE ", raised[0].member_id);
        assert!(status.errors.contains(&line), "{:?}", status.errors);
        assert_eq!(status.db_size_quota.to_string(), QUOTA);
    }
    client
        .call(Request::Delete(delete("k1")))
        .await
        .expect("deletes go on");
    // An alarm is a part of the state: it outlives a restart.
    cluster.kill(2);
    cluster.restart(2).await;
    assert!(cluster.client(2).put("small", "v").await.is_err());

    compact(&cluster).await;
    for member in 0..3 {
        let before = state_bytes(&cluster, member);
        defragment(&cluster, member).await;
        let after = state_bytes(&cluster, member);
        println!("member {member}: {before} to {after} bytes");
        assert!(after < before / 2, "member {member}: {before} to {after} bytes");
    }
    disarm(&cluster, 1).await;
    for member in 0..3 {
        let client = cluster.client(member);
        wait_for(PATIENCE, "writes to go on", || {
            let mut client = client.clone();
            async move { client.put("small", "v").await.ok() }
        })
        .await;
    }
    assert_eq!(alarms(&cluster, 0).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_recovers_from_the_quota_as_its_users_do() {
    let etcdctl = |arguments: &[&str], endpoint: &str| {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", endpoint])
            .args(arguments);
        let output = command.stdin(Stdio::null()).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        Some((
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        ))
    };
    if etcdctl(&["version"], "").is_none() {
        println!("skipped: etcdctl is not installed");
        return;
    }
    let cluster = Cluster::start_with(1, &["--quota-backend-bytes", QUOTA]).await;
    let endpoint = cluster.members[0].client_url.clone();
    fill(&mut cluster.client(0)).await;
    let run = |arguments: &[&str]| etcdctl(arguments, &endpoint).expect("it runs");
    let (went_well, said) = run(&["put", "a", "b"]);
    assert!(!went_well && said.contains(NO_SPACE), "{said}");
    let (_, said) = run(&["alarm", "list"]);
    assert!(said.contains("alarm:NOSPACE"), "{said}");
    let revision = status(&cluster, 0)
        .await
        .header
        .expect("a header")
        .revision
        .to_string();
    for arguments in [
        &["compact", &revision, "--physical"][..],
        &["defrag"],
        &["alarm", "disarm"],
        &["put", "a", "b"],
    ] {
        let (went_well, said) = run(arguments);
        assert!(went_well, "{arguments:?}: {said}");
    }
    let (_, said) = run(&["alarm", "list"]);
    assert_eq!(said, "");
    let (went_well, said) = run(&["endpoint", "hashkv"]);
    assert!(went_well, "{said}");
}

/// Writes on and on, and counts what was acknowledged: `key(n)` holds `n` for every n below it.
async fn write_on(mut client: Client, stop: Arc<AtomicBool>, acknowledged: Arc<AtomicUsize>) {
    while !stop.load(Ordering::Relaxed) {
        let number = acknowledged.load(Ordering::Relaxed);
        match client
            .put(&format!("count {number:06}"), &number.to_string())
            .await
        {
            Ok(_) => drop(acknowledged.fetch_add(1, Ordering::Relaxed)),
            // Of unknown outcome: the same again does no harm.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn assert_nothing_is_lost(client: &mut Client, acknowledged: usize) {
    for number in 0..acknowledged {
        let found = client.get(&format!("count {number:06}")).await.expect("a read");
        assert_eq!(found, Some(number.to_string()));
    }
}

/// Leaves a state whose files are mostly free space.
async fn fragment(cluster: &Cluster, rounds: usize) {
    let mut client = cluster.client(0);
    for count in 0..rounds {
        client
            .call(Request::Put(big_put(&format!("k{}", count % 10))))
            .await
            .expect("put");
    }
    compact(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defragmenting_under_load_shrinks_the_files_and_loses_nothing() {
    let mut cluster = Cluster::start(1).await;
    fragment(&cluster, 400).await;
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writer = tokio::spawn(write_on(cluster.client(0), stop.clone(), acknowledged.clone()));
    let before = state_bytes(&cluster, 0);
    for _ in 0..3 {
        defragment(&cluster, 0).await;
    }
    let after = state_bytes(&cluster, 0);
    println!(
        "{before} to {after} bytes while {} puts went on",
        acknowledged.load(Ordering::Relaxed)
    );
    assert!(after < before / 2, "{before} to {after}");
    stop.store(true, Ordering::Relaxed);
    writer.await.expect("the writer ends");
    let count = acknowledged.load(Ordering::Relaxed);
    let hash = hash_kv(&cluster, 0, 0).await.expect("a hash");
    assert_nothing_is_lost(&mut cluster.client(0), count).await;
    // What is on disk is the same, too.
    assert!(cluster.terminate(0).await.success());
    cluster.restart(0).await;
    assert_nothing_is_lost(&mut cluster.client(0), count).await;
    let again = hash_kv(&cluster, 0, hash.hash_revision).await.expect("a hash");
    assert_eq!(
        (hash.hash, hash.compact_revision),
        (again.hash, again.compact_revision)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_killed_while_it_defragments_comes_back_whole() {
    let mut cluster = Cluster::start(1).await;
    fragment(&cluster, 200).await;
    for number in 0..100 {
        let key = format!("big {number}");
        cluster
            .client(0)
            .call(Request::Put(big_put(&key)))
            .await
            .expect("put");
    }
    let mut halfway = 0;
    for round in 0..6 {
        let hash = hash_kv(&cluster, 0, 0).await.expect("a hash");
        let mut client = maintenance(&cluster, 0);
        let asked = tokio::spawn(async move { client.defragment(DefragmentRequest::default()).await });
        let state = cluster.members[0].data_dir().join("state");
        let engines = || std::fs::read_dir(&state).map_or(0, Iterator::count);
        wait_for(PATIENCE, "the copy to begin or to end", || {
            let seen = engines() > 1 || asked.is_finished();
            async move { seen.then_some(()) }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(30 * round)).await;
        cluster.kill(0);
        halfway += usize::from(engines() > 1);
        let _ = asked.await;
        cluster.restart(0).await;
        assert_eq!(engines(), 1, "what is not in use is removed");
        let again = hash_kv(&cluster, 0, hash.hash_revision).await.expect("a hash");
        assert_eq!(hash.hash, again.hash, "round {round}");
    }
    println!("{halfway} of 6 kills hit a copy under way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_are_equal_on_all_members_and_say_what_they_cover() {
    let cluster = Cluster::start(3).await;
    let mut client = cluster.client(0);
    for number in 0..50 {
        client
            .put(&format!("k{}", number % 7), &number.to_string())
            .await
            .expect("put");
    }
    client.call(Request::Delete(delete("k3"))).await.expect("deleted");
    let latest = client
        .call(Request::Range(everything()))
        .await
        .expect("read")
        .revision();
    let fresh = hash_kv(&cluster, 0, 0).await.expect("a hash");
    assert_eq!((fresh.hash_revision, fresh.compact_revision), (latest, -1));
    let all_equal = async |revision: i64| {
        let first = hash_kv(&cluster, 0, revision).await.expect("a hash");
        for member in 1..3 {
            // A linearizable read: the member has caught up.
            cluster.client(member).get("k1").await.expect("read");
            let other = hash_kv(&cluster, member, revision).await.expect("a hash");
            assert_eq!(
                (first.hash, first.compact_revision, first.hash_revision),
                (other.hash, other.compact_revision, other.hash_revision)
            );
        }
        first
    };
    let old = all_equal(latest - 10).await;
    assert_ne!(old.hash, all_equal(latest).await.hash);
    let request = CompactionRequest {
        revision: latest - 5,
        physical: true,
    };
    client.call(Request::Compact(request)).await.expect("compacted");
    let compacted = all_equal(latest).await;
    assert_eq!(compacted.compact_revision, latest - 5);
    assert_ne!(compacted.hash, fresh.hash);
    for (revision, text) in [
        (latest + 1, "a future revision"),
        (latest - 6, "has been compacted"),
    ] {
        let refused = hash_kv(&cluster, 1, revision).await.expect_err("refused");
        assert_eq!(refused.code(), Code::OutOfRange);
        assert!(refused.message().ends_with(text), "{refused}");
    }
    let mut hashes = Vec::new();
    for member in 0..3 {
        let answer = maintenance(&cluster, member)
            .hash(HashRequest::default())
            .await
            .expect("a hash");
        hashes.push(answer.into_inner().hash);
    }
    assert!(
        hashes[0] != 0 && hashes.iter().all(|hash| *hash == hashes[0]),
        "{hashes:?}"
    );
}

async fn compacted(cluster: &Cluster, member: usize) -> i64 {
    hash_kv(cluster, member, 0)
        .await
        .map_or(-1, |answer| answer.compact_revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_goes_by_itself_after_a_while() {
    let cluster = Cluster::start_with(1, &["--auto-compaction-retention", "1s"]).await;
    let mut client = cluster.client(0);
    let first = client.put("k", "old").await.expect("put");
    let last = client.put("k", "new").await.expect("put");
    wait_for(PATIENCE, "the compaction", || async {
        (compacted(&cluster, 0).await == last).then_some(())
    })
    .await;
    let mut request = everything();
    request.revision = first;
    let refused = client
        .call(Request::Range(request))
        .await
        .expect_err("it is gone");
    assert_eq!(
        refused.message(),
        "etcdserver: mvcc: required revision has been compacted"
    );
    assert_eq!(client.get("k").await.expect("read").as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_revisions_are_kept_on_every_member() {
    let flags = [
        ["--auto-compaction-mode", "revision"],
        ["--auto-compaction-retention", "10"],
        ["--auto-compaction-interval", "200ms"],
    ];
    let cluster = Cluster::start_with(3, flags.as_flattened()).await;
    let mut last = 0;
    for number in 0..30 {
        last = cluster
            .client(1)
            .put("k", &number.to_string())
            .await
            .expect("put");
    }
    for member in 0..3 {
        wait_for(PATIENCE, "the compaction", || async {
            (compacted(&cluster, member).await == last - 10).then_some(())
        })
        .await;
    }
}

/// Changes a value in the files of a stopped member, as a bad disk would, but so that they still open.
fn corrupt(cluster: &Cluster, member: usize, from: &[u8], to: &[u8]) {
    use pontoon::storage::{Batch, keys, open_engine};
    let state = cluster.members[member].data_dir().join("state");
    let engine = std::fs::read_dir(state)
        .expect("a state")
        .next()
        .expect("an engine")
        .expect("readable");
    let engine = open_engine(&engine.path(), 1 << 20).expect("it opens");
    let mut batch = Batch::default();
    for pair in engine.scan(keys::blocks()) {
        let (key, value) = pair.expect("readable");
        if let Some(at) = value.windows(from.len()).position(|window| window == from) {
            let mut changed = value.to_vec();
            changed[at..at + to.len()].copy_from_slice(to);
            batch.put(key, changed.into());
        }
    }
    assert!(!batch.is_empty(), "the value is not in the files");
    engine.commit(batch).expect("changed");
    engine.flush().expect("on disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_data_differs_is_found_and_nothing_is_read_any_more() {
    let mut cluster = Cluster::start_with(3, &["--corrupt-check-time", "300ms"]).await;
    cluster.client(0).put("k", "precious").await.expect("put");
    let id = status(&cluster, 2).await.header.expect("a header").member_id;
    cluster.client(2).get("k").await.expect("it has it");
    assert!(cluster.terminate(2).await.success());
    assert_eq!(alarms(&cluster, 0).await, []);
    corrupt(&cluster, 2, b"precious", b"pernicio");
    cluster.spawn(2);
    wait_for(PATIENCE, "the alarm", || async {
        let raised = alarms(&cluster, 0).await;
        let expected = AlarmMember {
            member_id: id,
            alarm: AlarmType::Corrupt as i32,
        };
        (raised == [expected]).then_some(())
    })
    .await;
    for member in 0..3 {
        let mut client = cluster.client(member);
        wait_for(PATIENCE, "reads and writes to be refused", || {
            let mut client = client.clone();
            async move {
                client
                    .get("k")
                    .await
                    .err()
                    .filter(|refused| refused.code() == Code::DataLoss)
            }
        })
        .await;
        let refused = client.put("k", "v").await.expect_err("refused");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::DataLoss, "etcdserver: corrupt cluster")
        );
    }
    // The member is told so by itself, too, if it is asked to look before it serves.
    cluster.kill(2);
    let mut command = cluster.command(2);
    command.arg("--initial-corrupt-check");
    let log = cluster.dir().join("corrupt.log");
    let mut process = spawn_logged(&mut command, &log);
    let ended = tokio::time::timeout(PATIENCE, await_exit(&mut process)).await;
    kill_and_reap(&mut process);
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(!ended.expect("it does not serve").success(), "{said}");
    assert!(said.contains("differs from that of the majority"), "{said}");
    // With its disk wiped it is a new member, with a copy of what the others have; then the alarm may go.
    cluster.wipe(2);
    disarm(&cluster, 0).await;
    cluster.restart(2).await;
    assert_eq!(
        cluster.client(2).get("k").await.expect("read").as_deref(),
        Some("precious")
    );
}
