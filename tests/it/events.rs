//! What happened, told: by `pontoon events` and over HTTP, through any member, with others dead and without a leader.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use pontoon::pb::etcdserverpb::auth_client::AuthClient;
use pontoon::pb::etcdserverpb::{AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest};
use serde_json::Value;

use crate::support::cluster::{BINARY, Cluster, PATIENCE};
use crate::support::http::{Http, ask, get};
use crate::support::process::{kill_and_reap, wait_for};
use crate::support::rpc::channel;

/// What the members' journals have, as seen through one of them, oldest first.
fn events(cluster: &Cluster, through: usize) -> Vec<Value> {
    let output = Command::new(BINARY)
        .args(["events", "-w", "json", "--endpoints"])
        .arg(&cluster.members[through].client_url)
        .output()
        .expect("pontoon runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

async fn id(cluster: &Cluster, member: usize) -> String {
    let status = wait_for(PATIENCE, "a status", || cluster.status(member)).await;
    format!("{:x}", status.header.expect("a header").member_id)
}

/// The first that fits, which has to come.
async fn wait_for_event(
    cluster: &Cluster,
    through: usize,
    what: &str,
    fits: impl Fn(&Value) -> bool,
) -> Value {
    wait_for(PATIENCE, what, || async {
        events(cluster, through).into_iter().find(|event| fits(event))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_lost_and_followed_with_every_vote_told() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let through = (leader + 1) % 3;
    let (dead, survivor) = (id(&cluster, leader).await, id(&cluster, through).await);
    let before = events(&cluster, through);
    for member in 0..3 {
        let name = &cluster.members[member].name;
        let of_member = |kind: &str| {
            let fits = |event: &&Value| event["name"] == **name && event["kind"] == kind;
            before.iter().filter(fits).count()
        };
        assert_eq!(
            (of_member("started"), of_member("serving")),
            (1, 1),
            "{before:#?}"
        );
    }

    cluster.kill(leader);
    let lost = wait_for_event(&cluster, through, "the loss of the leader", |event| {
        event["kind"] == "leader-lost" && event["leader"] == *dead
    })
    .await;
    assert!(lost["silent_ms"].as_u64().is_some_and(|ms| ms < 60_000), "{lost}");
    let elected = wait_for_event(&cluster, through, "another leader", |event| {
        event["kind"] == "leader-elected"
            && event["leader"] != *dead
            && event["term"].as_u64() > lost["term"].as_u64()
    })
    .await;
    assert!(elected["at"].as_u64() >= lost["at"].as_u64());
    let silent = wait_for_event(&cluster, through, "the vote of the dead", |event| {
        event["kind"] == "vote" && event["voter"] == *dead && event["answer"] == "none"
    })
    .await;
    assert!(
        silent["why"].as_str().is_some_and(|why| !why.is_empty()),
        "{silent}"
    );
    wait_for_event(&cluster, through, "the loss of the link", |event| {
        event["kind"] == "link-down" && event["peer"] == *dead
    })
    .await;
    let all = events(&cluster, through);
    let has = |fits: &dyn Fn(&Value) -> bool| assert!(all.iter().any(fits), "{all:#?}");
    has(&|event| event["kind"] == "vote" && event["answer"] == "granted" && event["pre"] == false);
    has(&|event| event["kind"] == "asked" && event["granted"] == true && event["pre"] == false);
    has(&|event| event["kind"] == "role" && event["to"] == "leader" && event["term"] == elected["term"]);
    // What the dead one told while somebody looked is not gone with it.
    has(&|event| event["member"] == *dead && event["kind"] == "serving");
    assert!(all.iter().all(|event| {
        let says = |field: &str| event[field].as_str().is_some_and(|text| !text.is_empty());
        says("says") && says("explain")
    }));

    cluster.restart(leader).await;
    wait_for_event(
        &cluster,
        through,
        "the start of the one that was killed",
        |event| event["member"] == *dead && event["kind"] == "started" && event["left"] == "killed",
    )
    .await;
    wait_for_event(&cluster, through, "the link to it", |event| {
        event["member"] == *survivor && event["kind"] == "link-up" && event["peer"] == *dead
    })
    .await;

    // In order, a leader that is told to stop hands over: nobody loses it by silence.
    let next = cluster.leader().await;
    let id_of_next = id(&cluster, next).await;
    let through = (next + 1) % 3;
    // Whoever looks does not hold up its stop.
    let mut listener = Http::connect(&cluster.members[next].client_url).await;
    listener.ask("GET", "/ui/events", &[], b"").await;
    assert_eq!(listener.head().await.expect("an answer").status, 200);
    cluster.terminate(next).await;
    let log = std::fs::read_to_string(cluster.members[next].log_file()).expect("a log");
    assert!(!log.contains("cut off"), "{log}");
    let lost = wait_for_event(&cluster, through, "a handover", |event| {
        event["kind"] == "leader-lost"
            && event["leader"] == *id_of_next
            && event["term"].as_u64() >= elected["term"].as_u64()
    })
    .await;
    assert_eq!(lost["why"], "superseded", "{lost}");
}

struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        kill_and_reap(&mut self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_follows_goes_on_through_another_member_and_saves() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let dead = id(&cluster, leader).await;
    let urls: Vec<&str> = [leader, (leader + 1) % 3]
        .iter()
        .map(|member| cluster.members[*member].client_url.as_str())
        .collect();
    let saved = cluster.dir().join("incident");
    let child = Command::new(BINARY)
        .args(["events", "--follow", "--explain", "--endpoints", &urls.join(",")])
        .arg("--save")
        .arg(&saved)
        .stdout(Stdio::piped())
        .spawn()
        .expect("pontoon runs");
    let mut follower = Follower(child);
    let mut lines = BufReader::new(follower.0.stdout.take().expect("a pipe")).lines();
    let mut line = |part: &str| {
        let found = lines
            .by_ref()
            .map_while(Result::ok)
            .find(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("no {part}"))
    };
    let name = cluster.members[leader].name.clone();
    line("serves clients");
    cluster.kill(leader);
    line(&format!("{name}, leader of term"));
    line("leads in term");
    line("A majority voted for it");
    wait_for(PATIENCE, "the loss to be saved", || async {
        let text = std::fs::read_to_string(&saved).ok()?;
        let mut events = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find(|event| event["kind"] == "leader-lost" && event["leader"] == *dead)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_members_stand_is_told_without_a_leader_and_keys_only_without_access_control() {
    let mut cluster = Cluster::start(3).await;
    let through = cluster.follower().await;
    let url = cluster.members[through].client_url.clone();
    cluster
        .client(through)
        .put("secret-key", "secret-value")
        .await
        .expect("put");
    let state = wait_for(PATIENCE, "all members to be up to date", || async {
        let state = get(&url, "/ui/state").await.json();
        let applied = |member: &Value| member["figures"]["applied"].as_u64();
        let members = state["members"].as_array()?.clone();
        let same = members
            .iter()
            .all(|member| applied(member).is_some() && applied(member) == applied(&members[0]));
        same.then_some(state)
    })
    .await;
    let members = state["members"].as_array().expect("members");
    assert_eq!(members.len(), 3);
    assert_eq!(members.iter().filter(|member| member["here"] == true).count(), 1);
    let leads = |member: &&Value| member["figures"]["role"] == "leader";
    let leader = members.iter().find(leads).expect("a leader");
    assert_eq!(
        leader["figures"]["matched"]
            .as_object()
            .map(|matched| matched.len()),
        Some(3)
    );
    let links = leader["figures"]["links"].as_object().expect("links");
    assert!(
        links.len() == 2 && links.values().all(|link| link["up"] == true),
        "{links:?}"
    );
    let text = state.to_string();
    assert!(text.contains("secret-key") && !text.contains("secret-value"));

    // As a stream, and for reading only.
    let mut http = Http::connect(&url).await;
    http.ask("GET", "/ui/events", &[], b"").await;
    let head = http.head().await.expect("an answer");
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    let first = String::from_utf8(http.chunk().await.expect("a chunk")).expect("text");
    assert!(first.starts_with("event: hello\ndata: {"), "{first}");
    assert!(first.contains("\n\nevent: members\n") && first.contains("\n\nevent: journal\n"));
    drop(http);
    assert_eq!(ask(&url, "POST", "/ui/state", &[], b"").await.status, 405);

    let mut auth = AuthClient::new(channel(&url));
    let user = AuthUserAddRequest {
        name: "root".to_string(),
        password: "root".to_string(),
        ..AuthUserAddRequest::default()
    };
    auth.user_add(user).await.expect("a user");
    let grant = AuthUserGrantRoleRequest {
        user: "root".to_string(),
        role: "root".to_string(),
    };
    auth.user_grant_role(grant).await.expect("a role");
    auth.auth_enable(AuthEnableRequest {}).await.expect("enabled");
    wait_for(
        PATIENCE,
        "keys to be kept from those who are not known",
        || async {
            let text = get(&url, "/ui/state").await.text();
            (!text.contains("secret-key")).then_some(())
        },
    )
    .await;

    for other in (0..3).filter(|other| *other != through) {
        cluster.kill(other);
    }
    let state = wait_for(PATIENCE, "the leader to be gone", || async {
        let state = get(&url, "/ui/state").await.json();
        let members = state["members"].as_array()?.clone();
        let here = members.iter().find(|member| member["here"] == true)?.clone();
        here["figures"]["leader"].is_null().then_some(state)
    })
    .await;
    let members = state["members"].as_array().expect("members");
    assert_eq!(members.len(), 3, "the dead are shown too");
}
