//! As etcd does, and as its documents tell: the same requests to both, and `etcdctl member add`.

use std::process::Command;

use pontoon::pb::etcdserverpb::cluster_client::ClusterClient;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, MoveLeaderRequest,
};
use tonic::Code;

use super::{await_list, await_local, await_put, id_of, list, move_leader, promote, refused};
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::etcd::Etcd;
use crate::support::process::wait_for;
use crate::support::rpc::channel;

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
