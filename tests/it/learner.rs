//! A learner: what it refuses, what it serves all the same, and its way to the leadership, all by the JSON gateway.

use pontoon::pb::etcdserverpb::SnapshotRequest;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::served::{ask, methods};
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::http::{get, post};
use crate::support::process::wait_for;
use crate::support::rpc::{Request, Response, channel, everything};

const REFUSAL: (Code, &str) = (
    Code::FailedPrecondition,
    "etcdserver: rpc not supported for learner",
);
const LEARNER: usize = 1;

/// The answer of a member, which must be one.
async fn call(cluster: &Cluster, member: usize, path: &str, body: Value) -> Value {
    let answer = post(&cluster.members[member].client_url, path, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_refuses_what_only_voters_answer_until_it_is_one() {
    let mut cluster = Cluster::start(1).await;
    cluster.client(0).put("key", "value").await.expect("a put");
    assert_eq!(cluster.one_more().await, LEARNER);
    let url = cluster.members[LEARNER].peer_url.clone();
    let added = call(
        &cluster,
        0,
        "/v3/cluster/member/add",
        json!({"peerURLs": [url], "isLearner": true}),
    )
    .await;
    let id = added["member"]["ID"].clone();
    assert_eq!(added["member"]["isLearner"], true, "{added}");
    let all = cluster.initial_cluster();
    cluster.set_finds(
        LEARNER,
        &["--initial-cluster", &all, "--initial-cluster-state", "existing"],
    );
    cluster.spawn(LEARNER);
    it_has_what_the_leader_has(&cluster).await;
    every_other_method_is_refused(&cluster).await;
    it_can_be_looked_after(&cluster).await;
    it_becomes_the_leader(&mut cluster, &id).await;
}

/// Read without asking anybody, which a learner serves; a linearizable read it does not.
async fn it_has_what_the_leader_has(cluster: &Cluster) {
    let mut request = everything();
    request.serializable = true;
    wait_for(PATIENCE, "the learner to catch up", || async {
        let mut client = cluster.client(LEARNER);
        match client.call(Request::Range(request.clone())).await.ok()? {
            Response::Range(range) => (range.count == 1).then_some(()),
            _ => None,
        }
    })
    .await;
    let refused = cluster.client(LEARNER).get("key").await.expect_err("not here");
    assert_eq!((refused.code(), refused.message()), REFUSAL);
    let url = &cluster.members[LEARNER].client_url;
    let answer = post(url, "/v3/kv/put", r#"{"key":"YQ=="}"#).await;
    assert_eq!((answer.status, &answer.json()["error"]), (400, &json!(REFUSAL.1)));
}

async fn every_other_method_is_refused(cluster: &Cluster) {
    let mut served = Vec::new();
    for (method, path) in methods() {
        match ask(cluster, LEARNER, &method, &path).await {
            Err(status) if (status.code(), status.message()) == REFUSAL => {}
            _ => served.push(method),
        }
    }
    // An empty range is refused too, but for a reason of its own.
    let range = post(&cluster.members[LEARNER].client_url, "/v3/kv/range", "{}").await;
    assert_eq!(range.status, 400);
    assert_eq!(served, ["Maintenance/Snapshot", "Maintenance/Status"]);
}

async fn it_can_be_looked_after(cluster: &Cluster) {
    let url = &cluster.members[LEARNER].client_url;
    assert!(cluster.status(LEARNER).await.expect("a status").is_learner);
    let mut client = MaintenanceClient::new(channel(url));
    let snapshot = client.snapshot(SnapshotRequest {}).await.expect("a stream");
    let (mut snapshot, mut bytes) = (snapshot.into_inner(), 0);
    while let Some(piece) = snapshot.message().await.expect("a piece") {
        bytes += piece.blob.len();
    }
    assert_eq!(bytes % 512, 32, "a database and its checksum");
    let check = HealthClient::new(channel(url))
        .check(HealthCheckRequest::default())
        .await;
    assert!(check.is_ok(), "{check:?}");
    assert_eq!(get(url, "/livez").await.status, 200);
    let ready = get(url, "/readyz").await;
    assert_eq!(ready.status, 503, "clients are sent to voters");
    assert!(ready.text().contains("[-]non_learner"), "{}", ready.text());
}

async fn it_becomes_the_leader(cluster: &mut Cluster, id: &Value) {
    let promoted = wait_for(PATIENCE, "the learner to be promoted", || async {
        let url = &cluster.members[0].client_url;
        let answer = post(url, "/v3/cluster/member/promote", &json!({"ID": id}).to_string()).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    let members = promoted["members"].as_array().expect("members").clone();
    assert!(
        members.iter().all(|member| member.get("isLearner").is_none()),
        "{members:?}"
    );
    cluster.await_serving(LEARNER).await;
    wait_for(PATIENCE, "the leadership to be given over", || async {
        let url = &cluster.members[0].client_url;
        let body = json!({"targetID": id}).to_string();
        let answer = post(url, "/v3/maintenance/transfer-leadership", &body).await;
        (answer.status == 200).then(|| assert_eq!(answer.json(), json!({})))
    })
    .await;
    assert_eq!(cluster.leader().await, LEARNER);
    let first = members
        .iter()
        .find(|member| member["ID"] != *id)
        .expect("two members");
    let body = json!({"ID": first["ID"]});
    let left = call(cluster, LEARNER, "/v3/cluster/member/remove", body).await;
    assert_eq!(left["members"].as_array().map(Vec::len), Some(1), "{left}");
    assert_eq!(cluster.ends(0).await.code(), Some(6));
    cluster.client(LEARNER).put("key", "alone").await.expect("a put");
}
