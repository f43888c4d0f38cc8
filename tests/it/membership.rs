//! Members come and go, move, and lose their disks; nothing that was acknowledged is lost, and whoever asks for too much
//! is refused with etcd's words.

mod life;
mod script;

use std::time::Instant;

use pontoon::pb::etcdserverpb::cluster_client::ClusterClient;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest, MoveLeaderResponse,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::process::wait_for;
use crate::support::rpc::{Response, channel};
use crate::support::workload::get;

fn cluster_client(cluster: &Cluster, member: usize) -> ClusterClient<Channel> {
    ClusterClient::new(channel(&cluster.members[member].client_url))
}

async fn add(
    cluster: &Cluster,
    asked: usize,
    url: &str,
    is_learner: bool,
) -> Result<MemberAddResponse, Status> {
    let request = MemberAddRequest {
        peer_ur_ls: vec![url.to_string()],
        is_learner,
    };
    let response = cluster_client(cluster, asked).member_add(request).await?;
    Ok(response.into_inner())
}

async fn remove(cluster: &Cluster, asked: usize, id: u64) -> Result<Vec<Member>, Status> {
    let response = cluster_client(cluster, asked)
        .member_remove(MemberRemoveRequest { id })
        .await?;
    Ok(response.into_inner().members)
}

async fn promote(cluster: &Cluster, asked: usize, id: u64) -> Result<Vec<Member>, Status> {
    let response = cluster_client(cluster, asked)
        .member_promote(MemberPromoteRequest { id })
        .await?;
    Ok(response.into_inner().members)
}

async fn update(cluster: &Cluster, asked: usize, id: u64, url: &str) -> Result<Vec<Member>, Status> {
    let request = MemberUpdateRequest {
        id,
        peer_ur_ls: vec![url.to_string()],
    };
    let response = cluster_client(cluster, asked).member_update(request).await?;
    Ok(response.into_inner().members)
}

async fn move_leader(cluster: &Cluster, asked: usize, target_id: u64) -> Result<MoveLeaderResponse, Status> {
    let mut client = MaintenanceClient::new(channel(&cluster.members[asked].client_url));
    let response = client.move_leader(MoveLeaderRequest { target_id }).await?;
    Ok(response.into_inner())
}

/// `n1 n2 n3(learner) ?`: the list, as a member has it; `?` has not started.
async fn list(cluster: &Cluster, member: usize, linearizable: bool) -> Result<String, Status> {
    let request = MemberListRequest { linearizable };
    let list = cluster_client(cluster, member)
        .member_list(request)
        .await?
        .into_inner();
    let header = list.header.expect("a header");
    assert!(header.cluster_id != 0 && header.revision == 0, "{header:?}");
    let mut words: Vec<String> = list.members.iter().map(word).collect();
    words.sort();
    Ok(words.join(" "))
}

fn word(member: &Member) -> String {
    let name = if member.name.is_empty() { "?" } else { &member.name };
    let learner = if member.is_learner { "(learner)" } else { "" };
    format!("{name}{learner}")
}

async fn await_list(cluster: &Cluster, member: usize, expected: &str) {
    let what = format!("{} to list {expected}", cluster.members[member].name);
    wait_for(PATIENCE, &what, || async {
        list(cluster, member, true)
            .await
            .ok()
            .filter(|list| list == expected)
    })
    .await;
}

async fn id_of(cluster: &Cluster, member: usize) -> u64 {
    let status = wait_for(PATIENCE, "a status", || cluster.status(member)).await;
    status.header.expect("a header").member_id
}

/// A refusal: code and text.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.expect_err("must be refused");
    assert_eq!((status.code(), status.message()), (code, text));
}

/// What this member holds by itself.
async fn await_local(cluster: &Cluster, member: usize, key: &str, value: &str) {
    let what = format!("{} to hold {key}={value}", cluster.members[member].name);
    wait_for(PATIENCE, &what, || async {
        let Ok(Response::Range(range)) = cluster.client(member).call(get(key, true)).await else {
            return None;
        };
        range
            .kvs
            .first()
            .filter(|kv| kv.value == value.as_bytes())
            .map(|_| ())
    })
    .await;
}

async fn await_put(cluster: &Cluster, member: usize, key: &str, value: &str) {
    let what = format!("a put by {}", cluster.members[member].name);
    wait_for(PATIENCE, &what, || async {
        cluster.client(member).put(key, value).await.ok()
    })
    .await;
}

/// The flags by which etcd's documents start a member that was added.
fn existing(cluster: &mut Cluster, member: usize) {
    let all = cluster.initial_cluster();
    cluster.set_finds(
        member,
        &["--initial-cluster", &all, "--initial-cluster-state", "existing"],
    );
}

fn join(cluster: &mut Cluster, member: usize, url: &str) {
    cluster.set_finds(member, &["--join", url]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_is_refused_with_etcds_words() {
    const NOT_STARTED: &str = "etcdserver: re-configuration failed due to not enough started members";
    const IN_USE: &str = "etcdserver: Peer URLs already exists";
    const NOT_FOUND: &str = "etcdserver: member not found";
    const BAD: &str = "etcdserver: given member URLs are invalid";
    let cluster = Cluster::start(1).await;
    let (me, mine) = (id_of(&cluster, 0).await, cluster.members[0].peer_url.clone());
    for bad in ["", "127.0.0.1:1", "http://127.0.0.1", "ftp://127.0.0.1:1"] {
        refused(add(&cluster, 0, bad, false).await, Code::InvalidArgument, BAD);
        refused(update(&cluster, 0, me, bad).await, Code::InvalidArgument, BAD);
    }
    refused(
        add(&cluster, 0, &mine, false).await,
        Code::FailedPrecondition,
        IN_USE,
    );
    refused(remove(&cluster, 0, 7).await, Code::NotFound, NOT_FOUND);
    refused(promote(&cluster, 0, 7).await, Code::NotFound, NOT_FOUND);
    refused(
        update(&cluster, 0, 7, "http://h:1").await,
        Code::NotFound,
        NOT_FOUND,
    );
    refused(
        remove(&cluster, 0, me).await,
        Code::FailedPrecondition,
        NOT_STARTED,
    );
    refused(
        promote(&cluster, 0, me).await,
        Code::FailedPrecondition,
        "etcdserver: can only promote a learner member",
    );
    // Nobody starts at these: the one member carries on alone all the time.
    let learner = add(&cluster, 0, "http://127.0.0.1:1", true).await.expect("added");
    let learner = learner.member.expect("the member");
    assert!(learner.is_learner && learner.name.is_empty() && learner.client_ur_ls.is_empty());
    assert_eq!(list(&cluster, 0, true).await.expect("a list"), "?(learner) n1");
    refused(
        add(&cluster, 0, "http://127.0.0.1:2", true).await,
        Code::FailedPrecondition,
        "etcdserver: too many learner members in cluster",
    );
    refused(
        promote(&cluster, 0, learner.id).await,
        Code::FailedPrecondition,
        "etcdserver: can only promote a learner member which is in sync with leader",
    );
    let voter = add(&cluster, 0, "http://127.0.0.1:3", false)
        .await
        .expect("added");
    assert_eq!(voter.members.len(), 3);
    let voter = voter.member.expect("the member");
    assert!(!voter.is_learner && voter.name.is_empty());
    refused(
        add(&cluster, 0, "http://127.0.0.1:4", false).await,
        Code::FailedPrecondition,
        NOT_STARTED,
    );
    refused(
        update(&cluster, 0, voter.id, "http://127.0.0.1:1").await,
        Code::FailedPrecondition,
        IN_USE,
    );
    cluster
        .client(0)
        .put("key", "while two have not started")
        .await
        .expect("a put");
    for id in [learner.id, voter.id] {
        remove(&cluster, 0, id).await.expect("removed");
        refused(remove(&cluster, 0, id).await, Code::NotFound, NOT_FOUND);
    }
    assert_eq!(list(&cluster, 0, false).await.expect("a list"), "n1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_endangers_the_majority_is_refused() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (down, up) = ((leader + 1) % 3, (leader + 2) % 3);
    let ids = [
        id_of(&cluster, 0).await,
        id_of(&cluster, 1).await,
        id_of(&cluster, 2).await,
    ];
    refused(
        move_leader(&cluster, up, ids[up]).await,
        Code::FailedPrecondition,
        "etcdserver: not leader",
    );
    refused(
        move_leader(&cluster, leader, 7).await,
        Code::FailedPrecondition,
        "etcdserver: bad leader transferee",
    );
    assert_eq!(
        move_leader(&cluster, leader, ids[leader]).await.expect("leads"),
        MoveLeaderResponse::default()
    );
    let start = Instant::now();
    move_leader(&cluster, leader, ids[up]).await.expect("moved");
    println!("moving the leader took {:?}", start.elapsed());
    assert_eq!(cluster.leader().await, up);
    cluster.kill(down);
    // Noticed after a moment.
    wait_for(PATIENCE, "the dead member to be missed", || async {
        let added = add(&cluster, leader, "http://127.0.0.1:1", false).await;
        let Ok(added) = added else { return Some(()) };
        remove(&cluster, leader, added.member.expect("a member").id)
            .await
            .expect("removed");
        None
    })
    .await;
    // Asked of a follower: the leader answers.
    refused(
        add(&cluster, leader, "http://127.0.0.1:1", false).await,
        Code::Unavailable,
        "etcdserver: unhealthy cluster",
    );
    refused(
        remove(&cluster, leader, ids[leader]).await,
        Code::Unavailable,
        "etcdserver: unhealthy cluster",
    );
    let left = remove(&cluster, leader, ids[down])
        .await
        .expect("a dead one may go");
    assert_eq!(left.len(), 2);
    await_put(&cluster, leader, "key", "two of two").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_careful_a_cluster_is_can_be_set() {
    let flags = ["--max-learners", "2", "--strict-reconfig-check=false"];
    let cluster = Cluster::start_with(1, &flags).await;
    let mut added = Vec::new();
    for (port, is_learner) in [(1, true), (2, true), (3, false), (4, false)] {
        let url = format!("http://127.0.0.1:{port}");
        let answer = add(&cluster, 0, &url, is_learner).await;
        added.push(answer.expect("added").member.expect("the member").id);
    }
    refused(
        add(&cluster, 0, "http://127.0.0.1:5", true).await,
        Code::FailedPrecondition,
        "etcdserver: too many learner members in cluster",
    );
    let listed = list(&cluster, 0, true).await.expect("a list");
    assert_eq!(listed, "? ? ?(learner) ?(learner) n1");
    // What is not a question of care is asked all the same.
    let me = id_of(&cluster, 0).await;
    refused(
        remove(&cluster, 0, me).await,
        Code::FailedPrecondition,
        "etcdserver: re-configuration failed due to not enough started members",
    );
    refused(
        promote(&cluster, 0, added[0]).await,
        Code::FailedPrecondition,
        "etcdserver: can only promote a learner member which is in sync with leader",
    );
    await_put(&cluster, 0, "key", "nobody of them votes yet").await;
    for id in added {
        remove(&cluster, 0, id).await.expect("removed");
    }
    assert_eq!(list(&cluster, 0, true).await.expect("a list"), "n1");
}
