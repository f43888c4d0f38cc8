//! Backups: etcd's own tools take ours, we take etcd's, and what comes out is what went in: every key at every revision.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pontoon::pb::etcdserverpb::lease_client::LeaseClient;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseLeasesRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, SnapshotRequest, TxnRequest,
};
use pontoon::pb::mvccpb::KeyValue;
use tokio::task::JoinHandle;

use crate::support::cluster::{BINARY, Cluster, PATIENCE};
use crate::support::etcd::{Etcd, memory_dir};
use crate::support::process::{await_exit, kill_and_reap, signal, spawn_logged, tail, wait_for};
use crate::support::proxy::{Link, Proxy};
use crate::support::rpc::{Client, Request, Response, channel, everything, op, put_request};

fn pontoon(args: &[&str]) -> Output {
    Command::new(BINARY)
        .args(args)
        .env_clear()
        .output()
        .expect("pontoon runs")
}

/// What it prints.
fn says(args: &[&str]) -> String {
    let output = pontoon(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pontoon {args:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// What it complains about.
fn complains(args: &[&str]) -> String {
    let output = pontoon(args);
    assert!(!output.status.success(), "pontoon {args:?} should have failed");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a readable path")
}

fn save(endpoint: &str, file: &Path) {
    says(&["snapshot", "save", text(file), "--endpoints", endpoint]);
}

fn status(file: &Path) -> serde_json::Value {
    serde_json::from_str(&says(&["snapshot", "status", text(file), "-w", "json"])).expect("JSON")
}

/// Restores for each of these members of a prepared cluster.
fn restore(cluster: &Cluster, members: impl IntoIterator<Item = usize>, file: &Path, flags: &[&str]) {
    for member in members {
        let member = &cluster.members[member];
        let dir = member.data_dir();
        let args = [
            "snapshot",
            "restore",
            text(file),
            "--name",
            &member.name,
            "--data-dir",
            text(&dir),
        ];
        says(&[&args, flags].concat());
    }
}

/// A cluster of this size, each member restored from the file.
async fn restored(size: usize, file: &Path, flags: &[&str]) -> Cluster {
    let mut cluster = Cluster::prepare(size, &[]).await;
    restore(&cluster, 0..size, file, flags);
    for member in 0..size {
        cluster.spawn(member);
    }
    cluster.await_ready().await;
    cluster
}

async fn call(client: &mut Client, request: Request) -> Response {
    client.call(request).await.expect("answered")
}

/// Every pair at a revision (0: now), and the revision now.
async fn all(client: &mut Client, revision: i64) -> Result<(Vec<KeyValue>, i64), tonic::Status> {
    let request = RangeRequest {
        revision,
        ..everything()
    };
    match client.call(Request::Range(request)).await? {
        Response::Range(range) => Ok((range.kvs, range.header.map_or(0, |header| header.revision))),
        other => panic!("a range answers {other:?}"),
    }
}

/// Both say the same of all the revisions up to `last` that can be read.
async fn compare(one: &mut Client, other: &mut Client, compacted: i64, last: i64) {
    let step = ((last - compacted) / 25).max(1) as usize;
    let revisions = (compacted.max(1)..=last).rev().step_by(step);
    for revision in revisions.chain([compacted.max(1)]) {
        let (mine, _) = all(one, revision).await.expect("kept");
        let (theirs, _) = all(other, revision).await.expect("kept");
        assert_eq!(mine, theirs, "at revision {revision}");
    }
}

/// All kinds of changes: deletes, several in one revision, a lease with keys, a compaction. The compacted revision.
async fn fill(endpoint: &str) -> i64 {
    let mut client = Client::new(endpoint);
    let mut leases = LeaseClient::new(channel(endpoint));
    for (id, ttl) in [(77, 5000), (78, 6000)] {
        leases
            .lease_grant(LeaseGrantRequest { id, ttl })
            .await
            .expect("granted");
    }
    for round in 0..20 {
        for key in 0..10usize {
            let value = vec![b'a' + round; 10 + 300 * key];
            let put = put_request(format!("key {key}").as_bytes(), &value);
            call(&mut client, Request::Put(put)).await;
        }
        let leased = PutRequest {
            lease: 77,
            ..put_request(format!("leased {}", round % 3).as_bytes(), b"v")
        };
        let delete = DeleteRangeRequest {
            key: b"key 2".to_vec().into(),
            range_end: b"key 5".to_vec().into(),
            ..Default::default()
        };
        let several = TxnRequest {
            success: vec![
                op(Op::RequestPut(put_request(b"txn/a", &[round]))),
                op(Op::RequestPut(leased)),
                op(Op::RequestDeleteRange(delete)),
            ],
            ..Default::default()
        };
        call(&mut client, Request::Txn(several)).await;
    }
    // Larger than a page of the file, and larger than what many a client takes at once.
    call(
        &mut client,
        Request::Put(put_request(b"large", &vec![b'l'; 700_000])),
    )
    .await;
    let revision = 60;
    let compact = CompactionRequest {
        revision,
        physical: true,
    };
    call(&mut client, Request::Compact(compact)).await;
    let gone = DeleteRangeRequest {
        key: b"key 9".to_vec().into(),
        ..Default::default()
    };
    call(&mut client, Request::Delete(gone)).await;
    revision
}

/// Ids and granted TTLs.
/// The ids and TTLs, in seconds, of a cluster's leases, of which none ends meanwhile.
async fn leases(endpoint: &str) -> Vec<(i64, i64)> {
    let mut client = LeaseClient::new(channel(endpoint));
    let mut leases = Vec::new();
    for id in lease_ids(endpoint).await {
        let ask = LeaseTimeToLiveRequest { id, keys: false };
        let answer = client.lease_time_to_live(ask).await.expect("told").into_inner();
        assert!(answer.ttl > 0, "lease {id} has run out");
        leases.push((id, answer.granted_ttl));
    }
    leases
}

async fn lease_ids(endpoint: &str) -> Vec<i64> {
    let mut client = LeaseClient::new(channel(endpoint));
    let list = client.lease_leases(LeaseLeasesRequest {}).await.expect("listed");
    let mut ids: Vec<i64> = list.into_inner().leases.iter().map(|lease| lease.id).collect();
    ids.sort_unstable();
    ids
}

async fn hash(endpoint: &str, revision: i64) -> u32 {
    let mut client = MaintenanceClient::new(channel(endpoint));
    let hash = client.hash_kv(HashKvRequest { revision }).await.expect("hashed");
    hash.into_inner().hash
}

/// Clients that write until they are told to stop.
fn load(cluster: &Cluster, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let write = |member: usize| {
        let (mut client, stop) = (cluster.client(member), stop.clone());
        tokio::spawn(async move {
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let key = format!("load/{member}/{}", number % 500);
                // Whether one of them fails is no matter here.
                let _ = client.put(&key, &number.to_string()).await;
            }
        })
    };
    (0..cluster.members.len()).map(write).collect()
}

/// etcd's tools that open backups, each with the etcd that runs what it restores.
fn judges() -> Vec<(PathBuf, PathBuf)> {
    let mut judges = Vec::new();
    for etcd in Etcd::find_all() {
        let beside = |tool: &str| Some(etcd.with_file_name(tool)).filter(|file| file.is_file());
        // The older ones have etcdctl only; in the newer ones etcdutl does it.
        if let Some(tool) = beside("etcdutl").or(beside("etcdctl")) {
            judges.push((tool, etcd));
        }
    }
    if judges.is_empty() {
        println!("skipped: no etcd with its tools on this machine");
    }
    judges
}

fn judged(tool: &Path, args: &[&str]) -> String {
    let mut command = Command::new(tool);
    let output = command
        .args(args)
        .env("ETCDCTL_API", "3")
        .output()
        .expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {args:?}: {errors}", tool.display());
    String::from_utf8(output.stdout).expect("text")
}

/// An etcd that one of its tools has made from a backup.
async fn restored_by(tool: &Path, etcd: &PathBuf, file: &Path) -> Etcd {
    let dir = memory_dir();
    let data = dir.path().join("data");
    judged(
        tool,
        &["snapshot", "restore", text(file), "--data-dir", text(&data)],
    );
    Etcd::start_in(etcd, dir).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_becomes_an_etcd_with_the_same_keys_and_revisions() {
    let judges = judges();
    if judges.is_empty() {
        return;
    }
    let cluster = Cluster::start(3).await;
    let compacted = fill(&cluster.members[0].client_url).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(&cluster, &stop);
    let follower = cluster.follower().await;
    let endpoint = &cluster.members[follower].client_url;
    let mut own = cluster.client(follower);
    let before = all(&mut own, 0).await.expect("read").1;
    let file = cluster.dir().join("backup");
    save(endpoint, &file);
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("it ends");
    }
    let status = status(&file);
    let revision = status["revision"].as_i64().expect("a number");
    assert!(
        revision >= before,
        "what was there before it began is in it: {revision} {before}"
    );
    for (tool, etcd) in judges {
        println!("{} judges", tool.display());
        let theirs = judged(&tool, &["snapshot", "status", text(&file), "-w", "json"]);
        let theirs: serde_json::Value = serde_json::from_str(&theirs).expect("JSON");
        for field in ["hash", "revision", "totalKey", "totalSize"] {
            assert_eq!(theirs[field], status[field], "{field}");
        }
        let etcd = restored_by(&tool, &etcd, &file).await;
        let mut theirs = etcd.client();
        assert_eq!(all(&mut theirs, 0).await.expect("read").1, revision);
        compare(&mut own, &mut theirs, compacted, revision).await;
        assert!(all(&mut theirs, compacted - 1).await.is_err());
        assert_eq!(leases(&etcd.endpoint).await, leases(endpoint).await);
        // It goes on from there.
        let next = theirs.put("after", "restore").await.expect("written");
        assert_eq!(next, revision + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_snapshot_becomes_a_cluster_with_the_same_keys_and_revisions() {
    let Some(binary) = Etcd::find() else {
        println!("skipped: no etcd on this machine");
        return;
    };
    let dir = memory_dir();
    let file = dir.path().join("snapshot");
    let etcd = Etcd::start(&binary).await;
    let compacted = fill(&etcd.endpoint).await;
    save(&etcd.endpoint, &file);
    let mut theirs = etcd.client();
    let revision = all(&mut theirs, 0).await.expect("read").1;
    for size in [1, 3] {
        let mut cluster = restored(size, &file, &[]).await;
        for member in 0..size {
            let mut client = cluster.client(member);
            let now = all(&mut client, 0).await.expect("read").1;
            assert_eq!(now, revision + member as i64, "the last writes are ours");
            compare(&mut theirs, &mut client, compacted, revision).await;
            assert!(all(&mut client, compacted - 1).await.is_err());
            let endpoint = &cluster.members[member].client_url;
            assert_eq!(leases(endpoint).await, leases(&etcd.endpoint).await);
            let next = client.put("after", "restore").await.expect("written");
            assert_eq!(next, revision + 1 + member as i64);
        }
        let last = size - 1;
        // It is a cluster as any other: killed, it comes back; wiped, a member gets everything anew.
        cluster.kill(last);
        cluster.restart(last).await;
        if size > 1 {
            cluster.kill(last);
            cluster.wipe(last);
            cluster.restart(last).await;
        }
        let mut client = cluster.client(last);
        compare(&mut theirs, &mut client, compacted, revision).await;
        let now = all(&mut client, 0).await.expect("read").1;
        let first = hash(&cluster.members[0].client_url, now).await;
        for member in &cluster.members {
            assert_eq!(hash(&member.client_url, now).await, first, "{}", member.name);
        }
    }
}

/// A backup of ours comes back as it was; the members that were not restored get it from those that were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_restored_member_is_enough_and_different_backups_are_refused() {
    let dir = memory_dir();
    let (file, later) = (dir.path().join("backup"), dir.path().join("later"));
    let revision = {
        let cluster = Cluster::start(1).await;
        let endpoint = &cluster.members[0].client_url;
        fill(endpoint).await;
        save(endpoint, &file);
        let revision = all(&mut cluster.client(0), 0).await.expect("read").1;
        cluster.client(0).put("one", "more").await.expect("written");
        save(endpoint, &later);
        revision
    };
    let mut cluster = Cluster::prepare(3, &[]).await;
    restore(&cluster, [1], &file, &[]);
    restore(&cluster, [2], &later, &[]);
    for member in 0..3 {
        cluster.spawn(member);
    }
    let log = cluster.members[0].log_file();
    wait_for(PATIENCE, "the members to see that they differ", || {
        let found = tail(&log).contains("restored from different backups");
        async move { found.then_some(()) }
    })
    .await;
    cluster.kill(2);
    cluster.wipe(2);
    cluster.restart(2).await;
    cluster.await_ready().await;
    for member in 0..3 {
        let mut client = cluster.client(member);
        assert_eq!(all(&mut client, 0).await.expect("read").1, revision);
        assert!(
            !cluster.members[member]
                .data_dir()
                .join("restored.snapshot")
                .exists()
        );
    }
    let hashes = [0, 1, 2].map(|member: usize| cluster.members[member].client_url.clone());
    assert_eq!(hash(&hashes[0], revision).await, hash(&hashes[1], revision).await);
    assert_eq!(hash(&hashes[0], revision).await, hash(&hashes[2], revision).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bumped_revision_is_above_what_clients_have_seen() {
    let dir = memory_dir();
    let (file, again) = (dir.path().join("backup"), dir.path().join("again"));
    let (pairs, revision) = {
        let cluster = Cluster::start(1).await;
        let endpoint = &cluster.members[0].client_url;
        fill(endpoint).await;
        save(endpoint, &file);
        all(&mut cluster.client(0), 0).await.expect("read")
    };
    let bumped = revision + 1_000_000;
    let flags = ["--bump-revision", "1000000", "--mark-compacted"];
    let cluster = restored(1, &file, &flags).await;
    let mut client = cluster.client(0);
    assert_eq!(all(&mut client, 0).await.expect("read"), (pairs.clone(), bumped));
    let compacted = all(&mut client, revision).await.expect_err("it is below");
    assert_eq!(
        compacted.message(),
        "etcdserver: mvcc: required revision has been compacted"
    );
    save(&cluster.members[0].client_url, &again);
    for (tool, etcd) in judges() {
        let etcd = restored_by(&tool, &etcd, &again).await;
        assert_eq!(
            all(&mut etcd.client(), 0).await.expect("read"),
            (pairs.clone(), bumped)
        );
    }
    assert_eq!(client.put("next", "").await.expect("written"), bumped + 1);
    let half = complains(&["snapshot", "restore", text(&file), "--bump-revision", "5"]);
    assert!(half.contains("go together"), "{half}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_and_used_directories_are_refused() {
    let mut cluster = Cluster::start(1).await;
    let endpoint = cluster.members[0].client_url.clone();
    fill(&endpoint).await;
    let file = cluster.dir().join("backup");
    save(&endpoint, &file);
    let whole = std::fs::read(&file).expect("read");
    assert_eq!(whole.len() % 512, 32, "etcdctl asks for that");
    let damaged = cluster.dir().join("damaged");
    let target = cluster.dir().join("new");
    let refused = |bytes: &[u8], flags: &[&str]| {
        std::fs::write(&damaged, bytes).expect("written");
        let args = ["snapshot", "restore", text(&damaged), "--data-dir", text(&target)];
        let said = complains(&[&args, flags].concat());
        assert!(
            !target.join("member.toml").exists(),
            "nothing is left that would start"
        );
        assert!(said.contains(text(&damaged)), "{said}");
        said
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    assert!(refused(&flipped, &[]).contains("its checksum is wrong"));
    assert!(refused(&whole[..whole.len() / 1024 * 512 + 32], &[]).contains("its checksum is wrong"));
    assert!(refused(&whole[..whole.len() - 32], &[]).contains("--skip-hash-check"));
    assert!(refused(&whole[..8192], &["--skip-hash-check"]).contains("cut short"));
    assert!(refused(b"PK\x03\x04", &["--skip-hash-check"]).contains("does not begin as a bbolt file"));
    let said = complains(&["snapshot", "status", text(&damaged)]);
    assert!(said.contains("does not begin as a bbolt file"), "{said}");
    let said = complains(&["snapshot", "restore", "/no/such/file"]);
    assert!(said.contains("No such file"), "{said}");

    let used = cluster.members[0].data_dir();
    let said = complains(&["snapshot", "restore", text(&file), "--data-dir", text(&used)]);
    assert!(said.contains("is not empty"), "{said}");
    // What was restored for another cluster, or not to the end, does not start.
    cluster.kill(0);
    cluster.wipe(0);
    restore(&cluster, [0], &file, &["--initial-cluster-token", "another"]);
    let starts = |cluster: &Cluster| {
        let output = cluster.command(0).output().expect("it runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = starts(&cluster);
    assert!(said.contains("was restored with"), "{said}");
    std::fs::write(used.join("restoring"), "").expect("written");
    let said = starts(&cluster);
    assert!(said.contains("a restore into it was broken off"), "{said}");
}

/// Killed, or cut off, at any moment: FILE is not there, or it is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_that_is_broken_off_leaves_no_file() {
    let cluster = Cluster::start(1).await;
    let endpoint = &cluster.members[0].client_url;
    for key in 0..16 {
        let put = put_request(format!("{key}").as_bytes(), &vec![key; 1 << 20]);
        call(&mut cluster.client(0), Request::Put(put)).await;
    }
    let port = endpoint
        .rsplit_once(':')
        .expect("a port")
        .1
        .parse()
        .expect("a port");
    let proxy = Proxy::start(port).await;
    let through = format!("http://127.0.0.1:{}", proxy.port());
    let file = cluster.dir().join("backup");
    let part = cluster.dir().join("backup.part");
    let command = || {
        let mut command = Command::new(BINARY);
        command.args(["snapshot", "save", text(&file), "--endpoints", &through]);
        spawn_logged(&mut command, &cluster.dir().join("save.log"))
    };
    for _ in 0..5 {
        let mut saving = command();
        let begun = wait_for(PATIENCE, "some of the backup", || {
            let length = std::fs::metadata(&part).map_or(0, |meta| meta.len());
            let ended = file.exists();
            async move { (length > 0 || ended).then_some(length) }
        })
        .await;
        proxy.set(Link::Hold);
        kill_and_reap(&mut saving);
        println!("killed after {begun} bytes");
        if file.exists() {
            status(&file);
            std::fs::remove_file(&file).expect("removed");
        }
        proxy.set(Link::Up);
    }
    // The server goes away: an error, and no file either.
    let mut saving = command();
    wait_for(PATIENCE, "some of the backup", || {
        let begun = part.exists();
        async move { begun.then_some(()) }
    })
    .await;
    proxy.set(Link::Cut);
    let ended = saving.wait().expect("it ends");
    assert_eq!(ended.success(), file.exists());
    if file.exists() {
        status(&file);
    }
    assert!(!part.exists(), "what is left of it is removed");
}

/// As clients count on it: what remains counts down to zero, then comes the checksum.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_counts_down_and_ends_with_the_checksum() {
    let cluster = Cluster::start(1).await;
    let endpoint = &cluster.members[0].client_url;
    fill(endpoint).await;
    for key in 0..3 {
        let put = put_request(&[key], &vec![key; 1 << 20]);
        call(&mut cluster.client(0), Request::Put(put)).await;
    }
    let mut client = MaintenanceClient::new(channel(endpoint));
    let stream = client.snapshot(SnapshotRequest {}).await.expect("begun");
    let mut stream = stream.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.expect("sent") {
        messages.push(message);
    }
    let checksum = messages.pop().expect("some");
    assert_eq!((checksum.blob.len(), checksum.remaining_bytes), (32, 0));
    let total: u64 = messages.iter().map(|message| message.blob.len() as u64).sum();
    assert_eq!(total % 512, 0);
    assert!(messages.len() > 2);
    let mut sent = 0;
    for message in &messages {
        sent += message.blob.len() as u64;
        assert_eq!(message.remaining_bytes, total - sent);
    }
    let revision = all(&mut cluster.client(0), 0).await.expect("read").1;
    let header = messages[0].header.as_ref().expect("a header");
    assert_eq!(header.revision, revision);
    // Its spool is gone once it is sent; how soon is the server's business.
    let spool = cluster.members[0].data_dir().join("spool");
    wait_for(Duration::from_secs(30), "the spool to be empty", || {
        let files = std::fs::read_dir(&spool).map_or(0, Iterator::count);
        async move { (files == 0).then_some(()) }
    })
    .await;
}

/// What an import brings over: keys, values and leases.
async fn same_pairs(source: &str, target: &str) {
    let pairs = |kvs: Vec<KeyValue>| -> Vec<(Vec<u8>, Vec<u8>, i64)> {
        kvs.into_iter()
            .map(|kv| (kv.key.to_vec(), kv.value.to_vec(), kv.lease))
            .collect()
    };
    let theirs = all(&mut Client::new(source), 0).await.expect("read").0;
    let ours = all(&mut Client::new(target), 0).await.expect("read").0;
    assert_eq!(pairs(theirs), pairs(ours));
    assert_eq!(leases(source).await, leases(target).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_etcd_is_imported_and_followed_until_clients_go_over() {
    let Some(binary) = Etcd::find() else {
        println!("skipped: no etcd on this machine");
        return;
    };
    let cluster = Cluster::start(1).await;
    let etcd = Etcd::start(&binary).await;
    let (from, to) = (&etcd.endpoint, &cluster.members[0].client_url);
    fill(from).await;
    let import = ["import", "--from", from, "--to", to, "--until-caught-up"];
    let said = says(&import);
    assert!(
        said.starts_with("imported ") && said.contains("2 leases"),
        "{said}"
    );
    same_pairs(from, to).await;

    // It is not done twice by mistake; what has changed meanwhile is set right.
    let said = complains(&import);
    assert!(said.contains("into an empty cluster"), "{said}");
    let said = complains(&["import", "--from", to, "--to", to]);
    assert!(said.contains("are the same cluster"), "{said}");
    let mut source = etcd.client();
    source.put("key 0", "changed").await.expect("written");
    let gone = DeleteRangeRequest {
        key: b"large".to_vec().into(),
        ..Default::default()
    };
    call(&mut source, Request::Delete(gone)).await;
    says(&[&import[..], &["--resume"]].concat());
    same_pairs(from, to).await;

    // And it follows, until it is told that this is all.
    let log = cluster.dir().join("import.log");
    let mut command = Command::new(BINARY);
    command.args(["import", "--from", from, "--to", to, "--resume"]);
    let mut following = spawn_logged(&mut command, &log);
    wait_for(PATIENCE, "the import to catch up", || {
        let found = tail(&log).contains("caught up");
        async move { found.then_some(()) }
    })
    .await;
    for number in 0..200 {
        let key = format!("more/{}", number % 60);
        source.put(&key, &number.to_string()).await.expect("written");
    }
    let mut lessor = LeaseClient::new(channel(from));
    lessor
        .lease_grant(LeaseGrantRequest { id: 79, ttl: 7000 })
        .await
        .expect("granted");
    let leased = PutRequest {
        lease: 79,
        ..put_request(b"leased/late", b"v")
    };
    call(&mut source, Request::Put(leased)).await;
    lessor
        .lease_revoke(pontoon::pb::etcdserverpb::LeaseRevokeRequest { id: 77 })
        .await
        .expect("revoked");
    wait_for(PATIENCE, "the revoked lease to go", || async {
        (lease_ids(to).await == lease_ids(from).await).then_some(())
    })
    .await;
    signal(&following, "INT");
    let ended = tokio::time::timeout(PATIENCE, await_exit(&mut following)).await;
    kill_and_reap(&mut following);
    assert!(ended.expect("it ends").success(), "{}", tail(&log));
    assert!(tail(&log).contains("clients may go over"), "{}", tail(&log));
    same_pairs(from, to).await;
}
