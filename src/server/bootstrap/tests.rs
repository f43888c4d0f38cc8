//! Meeting and founding, by scripts and by members that answer each other.

use std::path::Path;

use tokio::net::TcpListener;
use tokio::sync::mpsc::Receiver;
use tokio_stream::wrappers::TcpListenerStream;

use super::belong::{Quiet, act, waiting};
use super::found::{check_found, found};
use super::meet::{Met, meet};
use super::*;
use crate::pb::pontoon::peer;
use crate::raft::Timing;
use crate::raft::identity::Identity;
use crate::raft::peer::{LeaseClock, PeerService, Wish};
use crate::raft::replica::{Options, Replica};
use crate::storage::fs::RealFs;

const ME: u64 = 7;

fn meeting() -> Meeting {
    let url = |name: &str| (name.to_string(), vec![format!("http://{name}")]);
    Meeting {
        introduction: Introduction {
            name: "a".to_string(),
            token: String::new(),
            initial_cluster: "a,b".to_string(),
            restored: String::new(),
        },
        members: BTreeMap::from(["a", "b"].map(url)),
        is_discovered: false,
        peer_urls: Vec::new(),
        existing_only: false,
        founding_wait: Duration::from_secs(2),
        join: Vec::new(),
        restored: None,
        waits: Waits::default(),
    }
}

fn reply(name: &str, member_id: u64) -> peer::IdentifyReply {
    peer::IdentifyReply {
        name: name.to_string(),
        member_id,
        initial_cluster: "a,b".to_string(),
        ..Default::default()
    }
}

/// What this member, `a`, which belongs to `cluster_id`, has against founding a cluster with who answers.
fn objection(cluster_id: u64, replies: &[peer::IdentifyReply]) -> String {
    let named = replies.iter().map(|reply| {
        let url = format!("http://{}", reply.name);
        (reply.name.clone(), (url, reply.clone()))
    });
    let met = Met {
        named: named.collect(),
        moved: Vec::new(),
    };
    let identity = Identity::new(ME, cluster_id, Box::new(|_| Ok(())));
    check_found(&identity, &meeting(), &met).err().unwrap_or_default()
}

#[test]
fn a_cluster_is_founded_when_all_have_met_and_nothing_speaks_against_it() {
    let mine = Identity::new(ME, 0, Box::new(|_| Ok(()))).own_cluster();
    let (a, b) = (reply("a", ME), reply("b", 8));
    let settled = |cluster_id| peer::IdentifyReply {
        cluster_id,
        ..b.clone()
    };
    let sought = |sought_by| peer::IdentifyReply {
        sought_by,
        ..b.clone()
    };
    let restored = peer::IdentifyReply {
        restored: "state".to_string(),
        ..b.clone()
    };
    for (cluster_id, replies, expected) in [
        (0, vec![a.clone(), b.clone()], ""),
        (0, vec![a.clone()], "waiting for b"),
        (
            0,
            vec![reply("a", 9), b.clone()],
            "another process answers at http://a",
        ),
        (0, vec![a.clone(), restored], "waiting for the founder"),
        (
            0,
            vec![a.clone(), sought(5)],
            "cluster 5 looks for a member at http://b",
        ),
        // It began before, and some have heard of it.
        (mine, vec![a.clone(), settled(mine)], ""),
        (mine, vec![a.clone(), sought(mine)], ""),
        (mine, vec![a.clone(), settled(5)], "belongs to cluster 5"),
    ] {
        let said = objection(cluster_id, &replies);
        let fits = said.contains(expected) && said.is_empty() == expected.is_empty();
        assert!(fits, "{expected:?}: {said:?}");
    }
}

/// Has no leases.
struct NoClock;

#[tonic::async_trait]
impl LeaseClock for NoClock {
    async fn answer(&self, _: peer::LeaseClockRequest) -> peer::LeaseClockReply {
        peer::LeaseClockReply::default()
    }
}

/// A blank member that answers its peers, where, and who asks it for a place.
async fn blank(dir: &Path, name: &str, member_id: u64) -> (Replica, String, Receiver<Wish>) {
    let timing = Timing {
        heartbeat: Duration::from_millis(100),
        election: Duration::from_secs(1),
    };
    let options = Options {
        wal_dir: dir.join(name).join("wal"),
        has_log: false,
        snapshot_dir: dir.join(name).join("snapshots"),
        state_dir: dir.join(name).join("state"),
        fs: Arc::new(RealFs),
        trust_state: true,
        timing,
        peer_tls: None,
        detours: BTreeMap::new(),
        snapshot_count: 0,
        engine_cache: 1 << 20,
        identity: Arc::new(Identity::new(member_id, 0, Box::new(|_| Ok(())))),
        lease_sink: Arc::new(|_| {}),
        token_sink: Arc::new(|_| {}),
        metrics: Arc::default(),
    };
    let replica = Replica::open(options).await.expect("opened");
    let introduction = Introduction {
        name: name.to_string(),
        ..meeting().introduction
    };
    let (wishes, asked) = tokio::sync::mpsc::channel(1);
    let service = PeerService::server(replica.clone(), introduction, wishes, Arc::new(NoClock));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let connections = TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(connections));
    (replica, url, asked)
}

fn at(members: &[(&str, &str)]) -> Meeting {
    let members = members.iter();
    Meeting {
        members: members
            .map(|(name, url)| (name.to_string(), vec![url.to_string()]))
            .collect(),
        ..meeting()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_stood_still_does_not_begin_without_those_it_had_met() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (a, a_url, _) = blank(dir.path(), "a", ME).await;
    let (b, b_url, _) = blank(dir.path(), "b", 8).await;
    let meeting = at(&[("a", &a_url), ("b", &b_url)]);
    let met = meet(&a, &meeting).await.expect("met");
    assert_eq!(check_found(a.identity(), &meeting, &met), Ok(()));
    // While it stands still, another founder takes its place.
    b.identity().adopt(5).expect("adopted");
    let refusal = found(&a, &meeting, &met.named)
        .await
        .expect_err("must be refused");
    assert!(refusal.contains("reached cluster 5"), "{refusal}");
    assert!(!a.is_initialized().await, "nothing has begun");
    // Should that one be lost before it begins, b says what to do.
    let said = waiting(&b).await;
    assert!(said.contains("cluster 5; if that has never served"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_blank_disk_comes_back_through_anybody_who_helps() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (a, a_url, _) = blank(dir.path(), "a", ME).await;
    let (b, b_url, _) = blank(dir.path(), "b", 8).await;
    // It lives where c was before it moved.
    let (d, d_url, mut asked) = blank(dir.path(), "d", 9).await;
    let meeting = at(&[("a", &a_url), ("b", &b_url), ("c", &d_url)]);
    let wrong = meet(&a, &meeting).await.err().expect("the flags are wrong");
    assert!(wrong.to_string().contains("\"d\" answers there"), "{wrong}");

    b.identity().adopt(5).expect("adopted");
    d.identity().adopt(5).expect("adopted");
    tokio::spawn(async move {
        for member_id in [3, ME] {
            if let Some(Wish::Join(_, answer)) = asked.recv().await {
                let place = peer::JoinReply {
                    cluster_id: 5,
                    member_id,
                    ..Default::default()
                };
                answer.send(place).expect("it waits");
            }
        }
    });
    // b, which is asked first, can't help.
    let met = meet(&a, &meeting).await.expect("met");
    let mut quiet = Quiet::default();
    let other = act(&a, &meeting, &met, &mut quiet).await.expect_err("not its id");
    assert!(other.contains("a place as 3"), "{other}");
    assert_eq!(a.identity().cluster_id(), 0);
    assert_eq!(act(&a, &meeting, &met, &mut quiet).await, Ok(()));
    assert_eq!(a.identity().cluster_id(), 5);
}

#[test]
fn a_founder_listens_first_and_begins_anew_when_something_is_heard() {
    let (start, wait) = (Instant::now(), Duration::from_secs(2));
    let mut quiet = Quiet::default();
    let mut at = |seconds, objection: Result<(), &str>| {
        let objection = objection.map_err(str::to_string);
        let now = start + Duration::from_secs(seconds);
        quiet.lasts(objection, now, wait).is_ok()
    };
    assert!(!at(0, Ok(())));
    assert!(!at(1, Err("a cluster calls")));
    assert!(!at(2, Ok(())));
    assert!(!at(3, Ok(())));
    assert!(at(4, Ok(())));
    assert!(!at(5, Err("a cluster calls")));
    assert_eq!(Quiet::default().lasts(Ok(()), start, Duration::ZERO), Ok(()));
}
