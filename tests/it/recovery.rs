//! The majority is lost for good: one survivor goes on with its data, as a cluster of its own, and grows again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use pontoon::pb::etcdserverpb::MemberRemoveRequest;
use pontoon::pb::etcdserverpb::cluster_client::ClusterClient;

use crate::support::cluster::{BINARY, Cluster, PATIENCE};
use crate::support::process::wait_for;
use crate::support::rpc::{Request, Response, channel, everything};
use crate::support::workload::get;

fn recover(dir: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("recover").arg("--data-dir").arg(dir).args(flags);
    command.output().expect("it runs")
}

fn text(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(said).expect("text")
}

/// Every file of a directory, with its bytes.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => {
                let bytes = std::fs::read(&path).expect("a file");
                found.insert(path.to_string_lossy().into_owned(), bytes);
            }
        }
    }
    found
}

/// Three members with `keys` keys, all of which `survivor` has; the other two are killed.
async fn lose_two(keys: usize, survivor: usize) -> Cluster {
    let mut cluster = Cluster::start_with(3, &["--snapshot-count", "100"]).await;
    let mut client = cluster.client(0);
    for number in 0..keys {
        client
            .put(&format!("key {number:03}"), "acknowledged")
            .await
            .expect("a put");
    }
    let last = format!("key {:03}", keys - 1);
    wait_for(PATIENCE, "the survivor to have all keys", || async {
        match cluster.client(survivor).call(get(&last, true)).await {
            Ok(Response::Range(range)) => range.kvs.first().map(|_| ()),
            _ => None,
        }
    })
    .await;
    for member in (0..3).filter(|member| *member != survivor) {
        cluster.kill(member);
    }
    cluster
}

async fn holds_all(cluster: &Cluster, member: usize, keys: usize) {
    let answer = cluster.client(member).call(Request::Range(everything())).await;
    let Ok(Response::Range(range)) = answer else {
        panic!("{answer:?}")
    };
    let acknowledged = range.kvs.iter().filter(|kv| kv.key.starts_with(b"key "));
    assert_eq!(acknowledged.count(), keys);
}

async fn cluster_id(cluster: &Cluster, member: usize) -> u64 {
    let status = wait_for(PATIENCE, "a status", || cluster.status(member)).await;
    status.header.expect("a header").cluster_id
}

async fn names(cluster: &Cluster, member: usize) -> Vec<String> {
    let list = cluster.member_list(member).await.expect("a list");
    let mut names: Vec<String> = list.members.into_iter().map(|member| member.name).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_recovers_with_all_its_data_and_grows_again() {
    const KEYS: usize = 250;
    let mut cluster = lose_two(KEYS, 2).await;
    let old = cluster_id(&cluster, 2).await;
    let dir = cluster.members[2].data_dir();
    let running = recover(&dir, &[]);
    assert!(
        !running.status.success() && text(&running).contains("in use"),
        "{}",
        text(&running)
    );
    cluster.terminate(2).await;

    let before = contents(&dir);
    let looked = recover(&dir, &["--dry-run"]);
    assert!(looked.status.success(), "{}", text(&looked));
    for part in [
        "n3",
        "left behind:  n1",
        "last entry:   term",
        "nothing was changed",
    ] {
        assert!(text(&looked).contains(part), "{part} in {}", text(&looked));
    }
    assert!(contents(&dir) == before, "a dry run changes nothing");

    let done = recover(&dir, &[]);
    assert!(done.status.success(), "{}", text(&done));
    cluster.restart(2).await;
    holds_all(&cluster, 2, KEYS).await;
    assert_eq!(names(&cluster, 2).await, ["n3"]);
    assert_ne!(cluster_id(&cluster, 2).await, old);
    let mut client = cluster.client(2);
    client.put("key after", "x").await.expect("a put");

    // One of the old members runs again: it belongs to the old cluster, and disturbs nobody.
    let term = cluster.status(2).await.expect("a status").raft_term;
    cluster.spawn(0);
    wait_for(PATIENCE, "the old member to start", || cluster.status(0)).await;
    assert_eq!(cluster_id(&cluster, 0).await, old);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    client.put("key at last", "x").await.expect("a put");
    assert_eq!(cluster.status(2).await.expect("a status").raft_term, term);
    cluster.kill(0);

    let url = cluster.members[2].client_url.clone();
    for member in [0, 1] {
        cluster.wipe(member);
        cluster.set_finds(member, &["--join", &url]);
        cluster.restart(member).await;
        holds_all(&cluster, member, KEYS + 2).await;
    }
    assert_eq!(names(&cluster, 0).await, ["n1", "n2", "n3"]);
    cluster.kill(2);
    let again = cluster.client(0);
    wait_for(PATIENCE, "two of the new three to carry on", || {
        let mut client = again.clone();
        async move { client.put("key in three", "x").await.ok() }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn force_new_cluster_acts_once() {
    const KEYS: usize = 30;
    let mut cluster = lose_two(KEYS, 0).await;
    cluster.kill(0);
    let all = cluster.initial_cluster();
    cluster.set_finds(0, &["--initial-cluster", &all, "--force-new-cluster"]);
    cluster.restart(0).await;
    holds_all(&cluster, 0, KEYS).await;
    assert_eq!(names(&cluster, 0).await, ["n1"]);
    let id = cluster_id(&cluster, 0).await;
    let new = cluster.one_more().await;
    let url = cluster.members[0].peer_url.clone();
    cluster.set_finds(new, &["--join", &url]);
    cluster.restart(new).await;
    // The flag was left where it is.
    cluster.kill(0);
    cluster.restart(0).await;
    assert_eq!(names(&cluster, 0).await, ["n1", "n4"]);
    assert_eq!(cluster_id(&cluster, 0).await, id);
    holds_all(&cluster, new, KEYS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_of_a_removed_member_is_taken_if_it_is_the_last() {
    let mut cluster = Cluster::start(2).await;
    cluster.client(0).put("key 000", "x").await.expect("a put");
    let status = wait_for(PATIENCE, "a status", || cluster.status(1)).await;
    let id = status.header.expect("a header").member_id;
    let mut client = ClusterClient::new(channel(&cluster.members[0].client_url));
    client
        .member_remove(MemberRemoveRequest { id })
        .await
        .expect("removed");
    cluster.ends(1).await;
    cluster.kill(0);
    cluster.wipe(0);

    let done = recover(&cluster.members[1].data_dir(), &[]);
    assert!(
        done.status.success() && text(&done).contains("was removed from its cluster"),
        "{}",
        text(&done)
    );
    cluster.restart(1).await;
    holds_all(&cluster, 1, 1).await;
    let url = cluster.members[1].client_url.clone();
    cluster.set_finds(0, &["--join", &url]);
    cluster.restart(0).await;
    cluster.kill(1);
    cluster.restart(1).await;
    assert_eq!(names(&cluster, 1).await, ["n1", "n2"]);
    holds_all(&cluster, 0, 1).await;
}

#[test]
fn only_a_member_can_be_recovered() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = recover(dir.path(), &[]);
    assert!(
        !output.status.success() && text(&output).contains("holds no member"),
        "{}",
        text(&output)
    );
    assert!(contents(dir.path()).is_empty());
}
