//! Lock and Election: one owner at a time, in the order of arrival, together with clients that do it themselves.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pontoon::pb::mvccpb::KeyValue;
use pontoon::pb::v3electionpb::election_client::ElectionClient;
use pontoon::pb::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use pontoon::pb::v3lockpb::lock_client::LockClient;
use pontoon::pb::v3lockpb::{LockRequest, UnlockRequest};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::leases::{Leases, attach};
use crate::support::process::{kill_and_reap, signal, wait_for};
use crate::support::rpc::{Client, Request, Response, channel, everything};

/// A client of one member, with a lease of its own.
#[derive(Clone)]
struct Party {
    lease: i64,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
}

impl Party {
    fn at(endpoint: &str, lease: i64) -> Party {
        Party {
            lease,
            lock: LockClient::new(channel(endpoint)),
            election: ElectionClient::new(channel(endpoint)),
        }
    }

    async fn with_lease(cluster: &Cluster, member: usize, lease: i64) -> Party {
        let endpoint = &cluster.members[member].client_url;
        Leases::new(endpoint).grant(lease, 600).await.expect("a grant");
        Party::at(endpoint, lease)
    }

    /// The key that owns the lock.
    async fn lock(&mut self, name: &str) -> Result<String, Status> {
        let request = LockRequest {
            name: name.as_bytes().to_vec().into(),
            lease: self.lease,
        };
        let key = self.lock.lock(request).await?.into_inner().key;
        Ok(String::from_utf8_lossy(&key).into_owned())
    }

    fn locking(&self, name: &'static str) -> JoinHandle<Result<String, Status>> {
        let mut party = self.clone();
        tokio::spawn(async move { party.lock(name).await })
    }

    async fn unlock(&mut self, key: &str) -> Result<(), Status> {
        let request = UnlockRequest {
            key: key.as_bytes().to_vec().into(),
        };
        self.lock.unlock(request).await.map(drop)
    }

    async fn campaign(&mut self, name: &str, value: &str) -> Result<LeaderKey, Status> {
        let request = CampaignRequest {
            name: name.as_bytes().to_vec().into(),
            lease: self.lease,
            value: value.as_bytes().to_vec().into(),
        };
        let response = self.election.campaign(request).await?.into_inner();
        Ok(response.leader.expect("a leader's key"))
    }

    fn campaigning(&self, name: &'static str, value: &'static str) -> JoinHandle<Result<LeaderKey, Status>> {
        let mut party = self.clone();
        tokio::spawn(async move { party.campaign(name, value).await })
    }

    async fn proclaim(&mut self, leader: Option<LeaderKey>, value: &str) -> Result<(), Status> {
        let value = value.as_bytes().to_vec().into();
        self.election
            .proclaim(ProclaimRequest { leader, value })
            .await
            .map(drop)
    }

    async fn resign(&mut self, leader: Option<LeaderKey>) -> Result<(), Status> {
        self.election.resign(ResignRequest { leader }).await.map(drop)
    }

    async fn leader(&mut self, name: &str) -> Result<String, Status> {
        let request = LeaderRequest {
            name: name.as_bytes().to_vec().into(),
        };
        Ok(value(&self.election.leader(request).await?.into_inner()))
    }

    async fn observe(&mut self, name: &str) -> Streaming<LeaderResponse> {
        let request = LeaderRequest {
            name: name.as_bytes().to_vec().into(),
        };
        self.election
            .observe(request)
            .await
            .expect("a stream")
            .into_inner()
    }
}

fn value(response: &LeaderResponse) -> String {
    let kv = response.kv.as_ref().expect("a pair");
    String::from_utf8_lossy(&kv.value).into_owned()
}

/// The next leader that is told of.
async fn next(observed: &mut Streaming<LeaderResponse>) -> String {
    let next = tokio::time::timeout(PATIENCE, observed.message()).await;
    value(&next.expect("in time").expect("no error").expect("no end"))
}

/// Every pair that there is.
async fn pairs(client: &mut Client) -> Vec<KeyValue> {
    match client.call(Request::Range(everything())).await.expect("a range") {
        Response::Range(range) => range.kvs,
        other => panic!("a range answers a range: {other:?}"),
    }
}

async fn keys(client: &mut Client) -> Vec<String> {
    let pairs = pairs(client).await;
    pairs
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
        .collect()
}

/// Waits until a key is there, or is gone.
async fn await_key(cluster: &Cluster, key: &str, there: bool) {
    wait_for(PATIENCE, &format!("{key} there: {there}"), || async {
        let found = keys(&mut cluster.client(0)).await.contains(&key.to_string());
        (found == there).then_some(())
    })
    .await;
}

async fn ended<T>(waiting: JoinHandle<Result<T, Status>>) -> Result<T, Status> {
    let ended = tokio::time::timeout(PATIENCE, waiting).await;
    ended.expect("it ends in time").expect("it does not panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_goes_from_one_to_the_next_in_order_of_arrival() {
    let cluster = Cluster::start(3).await;
    let mut first = Party::with_lease(&cluster, 0, 0xa).await;
    let second = Party::with_lease(&cluster, 1, 0xb).await;
    let third = Party::with_lease(&cluster, 2, 0xc).await;
    let fourth = Party::with_lease(&cluster, 0, 0xd).await;
    assert_eq!(first.lock("job").await.expect("the lock"), "job/a");
    assert_eq!(first.lock("job").await.expect("it has it already"), "job/a");
    let waiting = second.locking("job");
    await_key(&cluster, "job/b", true).await;
    let gives_up = third.locking("job");
    await_key(&cluster, "job/c", true).await;
    let last = fourth.locking("job");
    await_key(&cluster, "job/d", true).await;
    assert!(!waiting.is_finished() && !last.is_finished());
    // A waiter that goes away leaves the queue, and wakes nobody by that.
    gives_up.abort();
    await_key(&cluster, "job/c", false).await;
    first.unlock("job/a").await.expect("unlocked");
    assert_eq!(ended(waiting).await.expect("the lock"), "job/b");
    assert!(!last.is_finished(), "two own the lock");
    // The owner's lease ends, and the lock with it.
    Leases::new(&cluster.members[2].client_url)
        .revoke(0xb)
        .await
        .expect("revoked");
    assert_eq!(ended(last).await.expect("the lock"), "job/d");
    assert_eq!(keys(&mut cluster.client(1)).await, ["job/d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_lease_ends_is_told() {
    let cluster = Cluster::start(1).await;
    let mut owner = Party::with_lease(&cluster, 0, 0xa).await;
    let other = Party::with_lease(&cluster, 0, 0xb).await;
    owner.lock("job").await.expect("the lock");
    let leader = owner.campaign("post", "me").await.expect("leads");
    let (locking, campaigning) = (other.locking("job"), other.campaigning("post", "you"));
    await_key(&cluster, "job/b", true).await;
    await_key(&cluster, "post/b", true).await;
    Leases::new(&cluster.members[0].client_url)
        .revoke(0xb)
        .await
        .expect("revoked");
    let said = |status: Status| (status.code(), status.message().to_string());
    assert_eq!(
        said(ended(locking).await.expect_err("no lock")),
        (tonic::Code::Unknown, "mutex: session is expired".to_string())
    );
    assert_eq!(
        said(ended(campaigning).await.expect_err("no leadership")),
        (tonic::Code::Unknown, "election: not leader".to_string())
    );
    owner.resign(Some(leader)).await.expect("resigned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_are_observed_one_after_the_other() {
    let cluster = Cluster::start(3).await;
    let mut first = Party::with_lease(&cluster, 0, 0xa).await;
    let second = Party::with_lease(&cluster, 1, 0xb).await;
    let mut early = second.clone().observe("post").await;
    let leader = first.campaign("post", "one").await.expect("leads");
    assert_eq!((&leader.key[..], leader.lease), (&b"post/a"[..], 0xa));
    assert_eq!(next(&mut early).await, "one");
    let mut late = Party::at(&cluster.members[2].client_url, 0).observe("post").await;
    assert_eq!(next(&mut late).await, "one");
    let waiting = second.campaigning("post", "other");
    await_key(&cluster, "post/b", true).await;
    first
        .proclaim(Some(leader.clone()), "two")
        .await
        .expect("proclaimed");
    let again = first.campaign("post", "three").await.expect("leads already");
    assert_eq!(again, leader);
    for observed in [&mut early, &mut late] {
        assert_eq!(next(observed).await, "two");
        assert_eq!(next(observed).await, "three");
    }
    assert_eq!(first.leader("post").await.expect("a leader"), "three");
    let mut stale = leader.clone();
    stale.rev += 1;
    let refused = first
        .proclaim(Some(stale.clone()), "four")
        .await
        .expect_err("not leader");
    assert_eq!(refused.message(), "election: not leader");
    first.resign(Some(stale)).await.expect("nothing to resign from");
    assert!(!waiting.is_finished());
    first.resign(Some(leader)).await.expect("resigned");
    let leader = ended(waiting).await.expect("leads");
    for observed in [&mut early, &mut late] {
        assert_eq!(next(observed).await, "other");
    }
    first
        .resign(Some(leader))
        .await
        .expect("anybody may who knows the key");
    let refused = first.leader("post").await.expect_err("nobody leads");
    assert_eq!(refused.message(), "election: no leader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_handed_on_while_the_leader_is_killed() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (here, there) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut owner = Party::with_lease(&cluster, here, 0xa).await;
    let other = Party::with_lease(&cluster, there, 0xb).await;
    owner.lock("job").await.expect("the lock");
    let waiting = other.locking("job");
    await_key(&cluster, "job/b", true).await;
    let mut observed = Party::at(&cluster.members[there].client_url, 0)
        .observe("post")
        .await;
    cluster.kill(leader);
    let post = owner.campaign("post", "one").await;
    let post = post.expect("a transaction that can be made twice survives a leader");
    assert_eq!(next(&mut observed).await, "one");
    assert!(!waiting.is_finished(), "two own the lock");
    owner.unlock("job/a").await.expect("unlocked");
    assert_eq!(ended(waiting).await.expect("the lock"), "job/b");
    owner.resign(Some(post)).await.expect("resigned");
}

/// What is said to a series of calls, by any server.
async fn script(endpoint: &str) -> Vec<String> {
    let mut leases = Leases::new(endpoint);
    for id in [7, 8] {
        leases.grant(id, 600).await.expect("a grant");
    }
    let mut client = Client::new(endpoint);
    let mut said = Vec::new();
    let mut say = |what: &str, answer: Result<String, Status>| {
        let answer = answer.map_err(|status| (status.code(), status.message().to_string()));
        said.push(format!("{what}: {answer:?}"));
    };
    let none = |answer: Result<(), Status>| answer.map(|()| "done".to_string());
    let mut seven = Party::at(endpoint, 7);
    let mut unknown = Party::at(endpoint, 99);
    say("lock", seven.lock("job").await);
    say("lock again", seven.lock("job").await);
    say("nameless", seven.lock("").await);
    say("unknown lease", unknown.lock("job").await);
    say("unlock nothing", none(seven.unlock("").await));
    say("unlock what is not there", none(seven.unlock("no/key").await));
    say("unlock", none(seven.unlock("job/7").await));
    let plain = |leader: LeaderKey| format!("{leader:?}");
    let led = seven.campaign("post", "one").await;
    let leader = led.as_ref().ok().cloned();
    say("campaign", led.map(plain));
    say("campaign again", seven.campaign("post", "one").await.map(plain));
    say(
        "campaign with another value",
        seven.campaign("post", "two").await.map(plain),
    );
    say(
        "campaign with an unknown lease",
        unknown.campaign("post", "x").await.map(plain),
    );
    say("leader", seven.leader("post").await);
    say("no leader", seven.leader("nobody").await);
    let changed = |change: &dyn Fn(&mut LeaderKey)| {
        let mut key = leader.clone().expect("it leads");
        change(&mut key);
        Some(key)
    };
    say("proclaim", none(seven.proclaim(changed(&|_| ()), "three").await));
    say("proclaim nothing", none(seven.proclaim(None, "x").await));
    say(
        "proclaim emptily",
        none(seven.proclaim(Some(LeaderKey::default()), "x").await),
    );
    say(
        "proclaim late",
        none(seven.proclaim(changed(&|key| key.rev -= 1), "x").await),
    );
    say(
        "proclaim with an unknown lease",
        none(seven.proclaim(changed(&|key| key.lease = 99), "x").await),
    );
    say(
        "proclaim with another lease",
        none(seven.proclaim(changed(&|key| key.lease = 8), "four").await),
    );
    say("pairs", Ok(format!("{:?}", pairs(&mut client).await)));
    say("resign nothing", none(seven.resign(None).await));
    say(
        "resign without a key",
        none(seven.resign(changed(&|key| key.key.clear())).await),
    );
    say(
        "resign late",
        none(seven.resign(changed(&|key| key.rev -= 1)).await),
    );
    say("leader", seven.leader("post").await);
    say(
        "resign",
        none(seven.resign(changed(&|key| key.name.clear())).await),
    );
    say("leader", seven.leader("post").await);
    // Without a lease: the server grants one, for a minute.
    let mut nobody = Party::at(endpoint, 0);
    say(
        "lock without a lease",
        nobody.lock("free").await.map(|key| key[..5].to_string()),
    );
    let listed = leases.list().await.expect("a list").leases;
    let ids = listed
        .into_iter()
        .map(|lease| lease.id)
        .filter(|id| ![7, 8].contains(id));
    for id in ids {
        say(
            "its lease",
            Ok(leases
                .times(id, false)
                .await
                .expect("times")
                .granted_ttl
                .to_string()),
        );
    }
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_etcds() {
    crate::support::etcd::answers_are_etcds(script).await;
}

/// A running etcdctl, ended when dropped.
struct Etcdctl {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Etcdctl {
    /// Starts it, if this machine has one.
    fn start(cluster: &Cluster, args: &[&str]) -> Option<Etcdctl> {
        let endpoints: Vec<&str> = cluster.members.iter().map(|member| &*member.client_url).collect();
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &endpoints.join(",")])
            .args(args);
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = started else {
            println!("skipped: no etcdctl on this machine");
            return None;
        };
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        Some(Etcdctl { child, lines })
    }

    /// The next line that it prints; waits for it.
    fn line(&mut self) -> String {
        let mut line = String::new();
        tokio::task::block_in_place(|| self.lines.read_line(&mut line)).expect("a line");
        line.trim_end().to_string()
    }

    /// Everything else, until it ends.
    fn rest(&mut self) -> String {
        let mut rest = String::new();
        tokio::task::block_in_place(|| self.lines.read_to_string(&mut rest)).expect("text");
        rest
    }

    fn interrupt(&self) {
        signal(&self.child, "INT");
    }
}

impl Drop for Etcdctl {
    fn drop(&mut self) {
        kill_and_reap(&mut self.child);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_stands_in_the_same_queue() {
    let cluster = Cluster::start(3).await;
    let mut party = Party::with_lease(&cluster, 0, 0xa).await;
    // It owns, we wait.
    let Some(mut owner) = Etcdctl::start(&cluster, &["lock", "job"]) else {
        return;
    };
    let key = owner.line();
    assert!(key.starts_with("job/"), "{key}");
    let waiting = party.locking("job");
    await_key(&cluster, "job/a", true).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "two own the lock");
    owner.interrupt();
    assert_eq!(ended(waiting).await.expect("the lock"), "job/a");
    assert_eq!(owner.rest().trim(), "");
    // We own, it waits.
    let mut waiter = Etcdctl::start(&cluster, &["lock", "job", "echo", "mine"]).expect("as before");
    wait_for(PATIENCE, "etcdctl to wait", || async {
        (keys(&mut cluster.client(0)).await.len() == 2).then_some(())
    })
    .await;
    party.unlock("job/a").await.expect("unlocked");
    assert_eq!(waiter.line(), "mine");
    assert_eq!(waiter.rest(), "");
    // The same for elections.
    let mut candidate = Etcdctl::start(&cluster, &["elect", "post", "etcdctl"]).expect("as before");
    let key = candidate.line();
    assert!(key.starts_with("post/"), "{key}");
    assert_eq!(candidate.line(), "etcdctl");
    let waiting = party.campaigning("post", "party");
    await_key(&cluster, "post/a", true).await;
    let mut observer = Etcdctl::start(&cluster, &["elect", "-l", "post"]).expect("as before");
    assert_eq!((observer.line(), observer.line()), (key, "etcdctl".to_string()));
    candidate.interrupt();
    let leader = ended(waiting).await.expect("leads");
    assert_eq!(
        (observer.line(), observer.line()),
        ("post/a".to_string(), "party".to_string())
    );
    party.resign(Some(leader)).await.expect("resigned");
}

/// A key of somebody else below the same name is no exception: whoever created first is at the head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_key_below_the_name_stands_in_the_queue() {
    let cluster = Cluster::start(1).await;
    let party = Party::with_lease(&cluster, 0, 0xa).await;
    let mut client = cluster.client(0);
    client
        .call(Request::Put(attach("job/foreign", 0)))
        .await
        .expect("a put");
    // Changed, not deleted: that is no turn.
    let waiting = party.locking("job");
    await_key(&cluster, "job/a", true).await;
    client
        .call(Request::Put(attach("job/foreign", 0)))
        .await
        .expect("a put");
    client.call(Request::Put(attach("job0", 0))).await.expect("a put");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    let delete = pontoon::pb::etcdserverpb::DeleteRangeRequest {
        key: b"job/foreign".to_vec().into(),
        ..Default::default()
    };
    client.call(Request::Delete(delete)).await.expect("a delete");
    assert_eq!(ended(waiting).await.expect("the lock"), "job/a");
}
