//! Members come and go, move, and lose their disks; nothing that was acknowledged is lost, and whoever asks for too much
//! is refused with etcd's words.

use std::process::Command;
use std::time::{Duration, Instant};

use pontoon::pb::etcdserverpb::cluster_client::ClusterClient;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest, MoveLeaderResponse,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::crash::{await_progress, judge};
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::etcd::Etcd;
use crate::support::from_env;
use crate::support::history::Tally;
use crate::support::http;
use crate::support::process::wait_for;
use crate::support::rpc::{Response, channel};
use crate::support::workload::{Workload, get};

/// How a removed member ends.
const REMOVED: i32 = 6;

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

/// Whom a request of the script is about.
#[derive(Debug, Clone, Copy)]
enum Whom {
    Me,
    Learner,
    Nobody,
}

/// A request of the script; one without a URL of its own means that of the member that is asked.
#[derive(Debug, Clone, Copy)]
enum Ask {
    AddLearner(Option<&'static str>),
    Remove(Whom),
    Promote(Whom),
    Update(Whom, Option<&'static str>),
    MoveLeader(Whom),
}

// Not in it: an update to a URL that is none, by which etcd 3.4 ends, and one of a learner, which it then lists as a
// voter.
const SCRIPT: &[Ask] = &[
    Ask::AddLearner(Some("")),
    Ask::AddLearner(Some("127.0.0.1:1")),
    Ask::AddLearner(Some("http://127.0.0.1")),
    Ask::AddLearner(Some("http://127.0.0.1:1/path")),
    Ask::AddLearner(Some("ftp://127.0.0.1:1")),
    Ask::AddLearner(None),
    Ask::Remove(Whom::Nobody),
    Ask::Promote(Whom::Nobody),
    Ask::Update(Whom::Nobody, Some("http://127.0.0.1:1")),
    Ask::Remove(Whom::Me),
    Ask::Promote(Whom::Me),
    Ask::MoveLeader(Whom::Me),
    Ask::MoveLeader(Whom::Nobody),
    Ask::AddLearner(Some("http://127.0.0.1:1")),
    Ask::AddLearner(Some("http://127.0.0.1:2")),
    Ask::Promote(Whom::Learner),
    Ask::MoveLeader(Whom::Learner),
    Ask::Update(Whom::Learner, None),
    Ask::Update(Whom::Me, Some("http://127.0.0.1:3")),
    Ask::Remove(Whom::Learner),
    Ask::Remove(Whom::Learner),
    Ask::Promote(Whom::Learner),
];

/// What a server of one member answers to the script: how many members, and how each is listed; or the refusal.
async fn follow_script(endpoint: &str) -> Vec<Result<Vec<String>, (Code, String)>> {
    let mut cluster = ClusterClient::new(channel(endpoint));
    let mut maintenance = MaintenanceClient::new(channel(endpoint));
    let list = cluster
        .member_list(MemberListRequest::default())
        .await
        .expect("a list");
    let me = list.into_inner().members.remove(0);
    let mut learner = 0;
    let mut answers = Vec::new();
    for ask in SCRIPT {
        let id = |whom: Whom| match whom {
            Whom::Me => me.id,
            Whom::Learner => learner,
            Whom::Nobody => 7,
        };
        let urls = |url: Option<&str>| url.map_or(me.peer_ur_ls.clone(), |url| vec![url.to_string()]);
        let members = match *ask {
            Ask::AddLearner(url) => {
                let request = MemberAddRequest {
                    peer_ur_ls: urls(url),
                    is_learner: true,
                };
                cluster.member_add(request).await.map(|added| {
                    let added = added.into_inner();
                    learner = added.member.expect("a member").id;
                    added.members
                })
            }
            Ask::Remove(whom) => {
                let request = MemberRemoveRequest { id: id(whom) };
                cluster
                    .member_remove(request)
                    .await
                    .map(|r| r.into_inner().members)
            }
            Ask::Promote(whom) => {
                let request = MemberPromoteRequest { id: id(whom) };
                cluster
                    .member_promote(request)
                    .await
                    .map(|r| r.into_inner().members)
            }
            Ask::Update(whom, url) => {
                let request = MemberUpdateRequest {
                    id: id(whom),
                    peer_ur_ls: urls(url),
                };
                cluster
                    .member_update(request)
                    .await
                    .map(|r| r.into_inner().members)
            }
            Ask::MoveLeader(whom) => {
                let request = MoveLeaderRequest { target_id: id(whom) };
                maintenance.move_leader(request).await.map(|_| Vec::new())
            }
        };
        let listed = |member: &Member| {
            let place = if member.id == me.id {
                "me"
            } else {
                &member.peer_ur_ls[0]
            };
            format!(
                "{place} learner {} started {}",
                member.is_learner,
                !member.name.is_empty()
            )
        };
        answers.push(match members {
            Ok(members) => {
                let mut lines: Vec<String> = members.iter().map(listed).collect();
                lines.sort();
                Ok(lines)
            }
            Err(status) => Err((status.code(), status.message().to_string())),
        });
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_answers_as_etcd_does() {
    let Some(binary) = Etcd::find() else {
        println!("skipped: no etcd on this machine");
        return;
    };
    let cluster = Cluster::start(1).await;
    let ours = follow_script(&cluster.members[0].client_url).await;
    let etcd = Etcd::start(&binary).await;
    let theirs = follow_script(&etcd.endpoint).await;
    for ((ask, ours), theirs) in SCRIPT.iter().zip(&ours).zip(&theirs) {
        match (ours, theirs) {
            // Older versions forget the code of some refusals.
            (Err((_, ours)), Err((Code::Unknown, theirs))) => assert_eq!(ours, theirs, "{ask:?}"),
            _ => assert_eq!(ours, theirs, "{ask:?}"),
        }
    }
}

/// As etcd's documents tell: `member add` prints what to start the member with.
fn etcdctl_member_add(cluster: &Cluster, name: &str, url: &str, learner: bool) -> Option<(u64, Vec<String>)> {
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .arg("--endpoints")
        .arg(cluster.members[0].client_url.replace("http://", ""))
        .args(["member", "add", name, "--peer-urls", url]);
    if learner {
        command.arg("--learner");
    }
    let Ok(output) = command.output() else {
        println!("skipped: no etcdctl on this machine");
        return None;
    };
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let id = text.split_whitespace().nth(1).expect("Member ID added to …");
    let id = u64::from_str_radix(id, 16).expect("an id");
    let variables = text.lines().filter_map(|line| line.strip_prefix("ETCD_"));
    let flags = variables.flat_map(|line| {
        let (name, value) = line.split_once('=').expect("NAME=\"value\"");
        let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
        [flag, value.trim_matches('"').to_string()]
    });
    let flags: Vec<String> = flags.collect();
    Some((id, flags))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_adds_a_voter_and_a_learner_as_its_documents_tell() {
    let mut cluster = Cluster::start(1).await;
    cluster.client(0).put("key", "before").await.expect("a put");
    for (learner, then) in [(false, "n1 n2"), (true, "n1 n2 n3(learner)")] {
        let new = cluster.one_more().await;
        let (name, url) = (
            cluster.members[new].name.clone(),
            cluster.members[new].peer_url.clone(),
        );
        let Some((id, flags)) = etcdctl_member_add(&cluster, &name, &url, learner) else {
            return;
        };
        // The member itself has name and advertised URL already.
        let told = flags
            .chunks(2)
            .filter(|flag| flag[0].starts_with("--initial-cluster"));
        let told: Vec<&str> = told.flatten().map(String::as_str).collect();
        assert_eq!(told.len(), 4, "{flags:?}");
        cluster.set_finds(new, &told);
        cluster.spawn(new);
        assert_eq!(
            id_of(&cluster, new).await,
            id,
            "it lives under the id that was announced"
        );
        await_list(&cluster, 0, then).await;
        await_local(&cluster, new, "key", "before").await;
    }
    let learner = 2;
    const NOT_FOR_LEARNERS: &str = "etcdserver: rpc not supported for learner";
    refused(
        cluster.client(learner).get("key").await,
        Code::FailedPrecondition,
        NOT_FOR_LEARNERS,
    );
    refused(
        cluster.client(learner).put("key", "x").await,
        Code::FailedPrecondition,
        NOT_FOR_LEARNERS,
    );
    refused(
        list(&cluster, learner, false).await,
        Code::FailedPrecondition,
        NOT_FOR_LEARNERS,
    );
    assert!(cluster.status(learner).await.expect("a status").is_learner);
    // It lags, as far as the leader knows.
    let id = id_of(&cluster, learner).await;
    let leader = cluster.leader().await;
    refused(
        move_leader(&cluster, leader, id).await,
        Code::FailedPrecondition,
        "etcdserver: bad leader transferee",
    );
    // Restarted with the same flags: the data directory decides.
    cluster.kill(learner);
    cluster.spawn(learner);
    assert_eq!(id_of(&cluster, learner).await, id);
    wait_for(PATIENCE, "the learner to be promoted", || async {
        promote(&cluster, 0, id).await.ok()
    })
    .await;
    await_list(&cluster, learner, "n1 n2 n3").await;
    // It votes: any two of the three carry on.
    cluster.kill(0);
    await_put(&cluster, learner, "key", "two of three").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_never_counts_for_the_majority() {
    let mut cluster = Cluster::start(1).await;
    let new = cluster.one_more().await;
    let url = cluster.members[new].peer_url.clone();
    add(&cluster, 0, &url, true).await.expect("added");
    existing(&mut cluster, new);
    cluster.spawn(new);
    await_list(&cluster, 0, "n1 n2(learner)").await;
    await_put(&cluster, 0, "key", "1").await;
    await_local(&cluster, new, "key", "1").await;
    cluster.kill(new);
    cluster.client(0).put("key", "2").await.expect("one of one");
    cluster.spawn(new);
    await_local(&cluster, new, "key", "2").await;
    // The learner alone is nobody: it neither leads nor acknowledges.
    cluster.kill(0);
    let url = cluster.members[new].client_url.clone();
    wait_for(
        PATIENCE,
        "the learner to miss its leader for three election timeouts",
        || async {
            let state = http::get(&url, "/ui/state").await.json();
            let here = state["members"]
                .as_array()?
                .iter()
                .find(|member| member["here"] == true)?
                .clone();
            (here["figures"]["silence_ms"].as_u64()? > 3000).then_some(())
        },
    )
    .await;
    let status = cluster.status(new).await.expect("a status");
    assert!(status.is_learner);
    assert_ne!(status.leader, status.header.expect("a header").member_id);
    cluster.restart(0).await;
    await_put(&cluster, 0, "key", "3").await;
    await_local(&cluster, new, "key", "3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_joins_and_the_same_command_starts_it_again() {
    let mut cluster = Cluster::start_with(1, &["--snapshot-count", "100"]).await;
    for number in 0..300 {
        cluster
            .client(0)
            .put(&format!("key {number}"), "x")
            .await
            .expect("a put");
    }
    // One is told a client's address, the other a peer's.
    for (url, then) in [
        (cluster.members[0].client_url.clone(), "n1 n2"),
        (cluster.members[0].peer_url.clone(), "n1 n2 n3"),
    ] {
        let new = cluster.one_more().await;
        join(&mut cluster, new, &url);
        cluster.spawn(new);
        cluster.await_serving(new).await;
        await_list(&cluster, new, then).await;
        await_local(&cluster, new, "key 299", "x").await;
    }
    let id = id_of(&cluster, 2).await;
    cluster.kill(2);
    cluster.restart(2).await;
    assert_eq!(id_of(&cluster, 2).await, id);
    // Its disk is lost: the same command gives it a new identity in the same place.
    cluster.kill(2);
    cluster.wipe(2);
    cluster.restart(2).await;
    assert_ne!(id_of(&cluster, 2).await, id);
    await_list(&cluster, 2, "n1 n2 n3").await;
    await_local(&cluster, 2, "key 299", "x").await;
    // A second process of the same name does not put the first one out.
    let twin = cluster.one_more().await;
    cluster.members[twin].name = "n2".to_string();
    let url = cluster.members[0].client_url.clone();
    join(&mut cluster, twin, &url);
    cluster.spawn(twin);
    let log = cluster.members[twin].log_file();
    wait_for(PATIENCE, "the twin to be refused", || async {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains("another member named").then_some(())
    })
    .await;
    await_list(&cluster, 0, "n1 n2 n3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_lost_its_disk_does_not_found_its_cluster_again() {
    let mut cluster = Cluster::start_with(1, &["--founding-wait", "2s"]).await;
    let url = cluster.members[0].client_url.clone();
    for _ in 0..2 {
        let new = cluster.one_more().await;
        join(&mut cluster, new, &url);
        cluster.restart(new).await;
    }
    await_list(&cluster, 1, "n1 n2 n3").await;
    await_put(&cluster, 1, "key", "before").await;
    // Its command names nobody else: it meets itself alone.
    cluster.kill(0);
    cluster.wipe(0);
    cluster.spawn(0);
    let log = cluster.members[0].log_file();
    wait_for(PATIENCE, "the founder to hear of its old cluster", || async {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains("looks for a member at").then_some(())
    })
    .await;
    assert!(cluster.status(0).await.is_none(), "it does not serve");
    cluster.terminate(0).await;
    let url = cluster.members[1].client_url.clone();
    join(&mut cluster, 0, &url);
    cluster.restart(0).await;
    await_list(&cluster, 0, "n1 n2 n3").await;
    await_local(&cluster, 0, "key", "before").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_members_stop_and_say_why() {
    let mut cluster = Cluster::start(4).await;
    let all: Vec<usize> = (0..4).collect();
    let leader = cluster.leader().await;
    let others: Vec<usize> = all.iter().copied().filter(|member| *member != leader).collect();
    // A follower; one that is down and learns it when it comes back; the leader.
    let (follower, absent, witness) = (others[0], others[1], others[2]);
    let id = id_of(&cluster, follower).await;
    remove(&cluster, witness, id).await.expect("removed");
    assert_eq!(cluster.ends(follower).await.code(), Some(REMOVED));
    let absent_id = id_of(&cluster, absent).await;
    cluster.kill(absent);
    wait_for(PATIENCE, "the absent one to be removed", || async {
        remove(&cluster, witness, absent_id).await.ok()
    })
    .await;
    let term = cluster.status(witness).await.expect("a status").raft_term;
    // Twice: it remembers.
    for _ in 0..2 {
        cluster.spawn(absent);
        assert_eq!(cluster.ends(absent).await.code(), Some(REMOVED));
    }
    cluster.spawn(follower);
    assert_eq!(cluster.ends(follower).await.code(), Some(REMOVED));
    let log = std::fs::read_to_string(cluster.members[absent].log_file()).expect("a log");
    assert!(log.contains("was removed from its cluster"), "{log}");
    let status = cluster.status(witness).await.expect("a status");
    assert_eq!(status.raft_term, term, "nobody was disturbed");
    await_put(&cluster, witness, "key", "before").await;
    let start = Instant::now();
    let id = id_of(&cluster, leader).await;
    remove(&cluster, leader, id).await.expect("the leader may go");
    cluster.client(witness).put("key", "after").await.expect("a put");
    println!(
        "removing the leader: the next write was acknowledged after {:?}",
        start.elapsed()
    );
    assert_eq!(cluster.ends(leader).await.code(), Some(REMOVED));
    await_list(&cluster, witness, &cluster.members[witness].name.clone()).await;
    assert_eq!(
        cluster
            .client(witness)
            .get("key")
            .await
            .expect("a get")
            .as_deref(),
        Some("after")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_move_are_found_again() {
    let mut cluster = Cluster::start_with(3, &["--snapshot-count", "50"]).await;
    await_put(&cluster, 0, "key", "1").await;
    let ids = [
        id_of(&cluster, 0).await,
        id_of(&cluster, 1).await,
        id_of(&cluster, 2).await,
    ];
    // One, first a follower and then the leader: it tells the others, whose flags know nothing of it.
    for _ in 0..2 {
        let moved = if cluster.leader().await == 2 {
            2
        } else {
            cluster.leader().await
        };
        cluster.terminate(moved).await;
        cluster.relocate(moved).await;
        let all = cluster.initial_cluster();
        cluster.set_finds(moved, &["--initial-cluster", &all]);
        cluster.restart(moved).await;
        let url = cluster.members[moved].peer_url.clone();
        wait_for(PATIENCE, "the new address to be listed", || async {
            let list = cluster.member_list((moved + 1) % 3).await.ok()?;
            list.members
                .iter()
                .find(|m| m.peer_ur_ls.contains(&url))
                .map(|_| ())
        })
        .await;
        let follower = (moved + 1) % 3;
        await_put(&cluster, moved, "key", &format!("{moved} moved")).await;
        await_local(&cluster, follower, "key", &format!("{moved} moved")).await;
    }
    // More than the log keeps, so that what is known of addresses comes from snapshots too.
    for number in 0..200 {
        await_put(&cluster, 0, "key", &number.to_string()).await;
    }
    // An operator's word stands, whatever the member's flags say.
    let elsewhere = cluster.members[1].listen_peer_url.clone();
    update(&cluster, 0, ids[1], &elsewhere).await.expect("updated");
    cluster.kill(1);
    cluster.restart(1).await;
    let list = cluster.member_list(1).await.expect("a list");
    let listed = list.members.iter().find(|m| m.id == ids[1]).expect("it is there");
    assert_eq!(listed.peer_ur_ls, [elsewhere]);
    // All of them at once: each is told where the others are, as a new machine's flags would.
    for member in 0..3 {
        cluster.kill(member);
        cluster.relocate(member).await;
    }
    let all = cluster.initial_cluster();
    for member in 0..3 {
        cluster.set_finds(member, &["--initial-cluster", &all]);
        cluster.spawn(member);
    }
    cluster.await_ready().await;
    await_put(&cluster, 2, "key", "all moved").await;
    for (member, id) in ids.iter().enumerate() {
        await_local(&cluster, member, "key", "all moved").await;
        assert_eq!(id_of(&cluster, member).await, *id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growing_to_five_and_shrinking_to_one_under_load_loses_nothing() {
    let seed = from_env("PONTOON_SEED", 1);
    let mut cluster = Cluster::start_with(1, &["--snapshot-count", "300"]).await;
    let endpoint = vec![cluster.members[0].client_url.clone()];
    let workload = Workload::start(&endpoint, 4, seed);
    let mut names = vec!["n1".to_string()];
    for number in 2..=5 {
        let writes = Tally::of(&workload.recorder.operations()).writes;
        let new = cluster.one_more().await;
        if number % 2 == 0 {
            let url = cluster.members[0].client_url.clone();
            join(&mut cluster, new, &url);
        } else {
            let url = cluster.members[new].peer_url.clone();
            add(&cluster, number - 2, &url, false).await.expect("added");
            existing(&mut cluster, new);
        }
        cluster.spawn(new);
        names.push(format!("n{number}"));
        await_list(&cluster, 0, &names.join(" ")).await;
        cluster.await_serving(new).await;
        await_progress(&workload.recorder, writes).await;
    }
    // Down again, the leader first whenever it is not the one that the clients talk to.
    while names.len() > 1 {
        let writes = Tally::of(&workload.recorder.operations()).writes;
        let leader = cluster.leader().await;
        let last = (1..5).rev().find(|member| cluster.members[*member].is_running());
        let goes = if leader == 0 {
            last.expect("one runs")
        } else {
            leader
        };
        let id = id_of(&cluster, goes).await;
        wait_for(PATIENCE, "a member to be removed", || async {
            match remove(&cluster, 0, id).await {
                Ok(_) => Some(()),
                Err(status) => (status.code() == Code::NotFound).then_some(()),
            }
        })
        .await;
        assert_eq!(cluster.ends(goes).await.code(), Some(REMOVED));
        names.retain(|name| *name != cluster.members[goes].name);
        await_list(&cluster, 0, &names.join(" ")).await;
        await_progress(&workload.recorder, writes).await;
    }
    let recorder = workload.finish().await;
    judge(&cluster.client(0), &recorder, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_killed_in_the_middle_of_a_change_leaves_nothing_half_done() {
    let rounds = from_env("PONTOON_CHANGES", 3);
    let mut cluster = Cluster::start(3).await;
    let mut acknowledged = 0;
    for round in 0..rounds {
        let leader = cluster.leader().await;
        let asked = (leader + 1) % 3;
        let client = cluster_client(&cluster, asked);
        let url = format!("http://127.0.0.1:{}", round + 1);
        let change = tokio::spawn(async move {
            let mut client = client;
            let request = MemberAddRequest {
                peer_ur_ls: vec![url],
                is_learner: round % 2 == 0,
            };
            client.member_add(request).await
        });
        // A little later each time: before, during and after.
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        cluster.kill(leader);
        let made = change.await.expect("no panic");
        acknowledged += usize::from(made.is_ok());
        cluster.restart(leader).await;
        // Whatever became of it, the members agree, and the next change is possible.
        let list = cluster.member_list(asked).await.expect("a list").members;
        for member in 0..3 {
            assert_eq!(cluster.member_list(member).await.expect("a list").members, list);
        }
        let extra: Vec<&Member> = list.iter().filter(|member| member.name.is_empty()).collect();
        assert!(made.is_err() || extra.len() == 1, "{made:?} {list:#?}");
        for member in extra {
            wait_for(PATIENCE, "the place to be removed", || async {
                remove(&cluster, asked, member.id).await.ok()
            })
            .await;
        }
        await_put(&cluster, asked, "key", &round.to_string()).await;
    }
    println!("{acknowledged} of {rounds} changes were acknowledged");
    // The same with the vote of a lost disk: the next leader finishes it.
    let leader = cluster.leader().await;
    let wiped = (leader + 1) % 3;
    cluster.kill(wiped);
    cluster.wipe(wiped);
    cluster.spawn(wiped);
    wait_for(PATIENCE, "the newcomer to be added", || async {
        let list = cluster.member_list(leader).await.ok()?;
        (list.members.len() == 4).then_some(())
    })
    .await;
    cluster.kill(leader);
    cluster.restart(leader).await;
    cluster.await_serving(wiped).await;
    await_list(&cluster, leader, "n1 n2 n3").await;
    await_put(&cluster, wiped, "key", "three again").await;
}
