//! The promise of [`crate::raft::fates`]: a command that was handed to a leader is said to be made if it is, and not to be
//! made if it never will be, whoever leads meanwhile; so what is made again until it is made, is made once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

use super::cluster::{Cluster, until, versions};
use crate::pb::etcdserverpb::PutRequest;
use crate::pb::pontoon::command::{Command, Header, command::Op};
use crate::raft::entry::{LeaderId, leader_id};
use crate::raft::fates::Fate;
use crate::raft::proposals::{entry_of, fate_of};
use crate::raft::replica::ProposeError;
use crate::raft::telling::hear;

const ELECTION: Duration = Duration::from_millis(500);

/// A put of `key`, by the name of `id`.
fn named(id: u64, key: &str) -> Bytes {
    let put = PutRequest {
        key: Bytes::from(key.to_string()),
        ..PutRequest::default()
    };
    let header = Header {
        id,
        ..Header::default()
    };
    let command = Command {
        header: Some(header),
        op: Some(Op::Put(put)),
    };
    command.encode_to_vec().into()
}

/// Whom a member takes for the leader.
fn leader_of(cluster: &Cluster, member: u64) -> Option<LeaderId> {
    let metrics = cluster.members[member as usize].raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let leader = metrics.current_leader?;
    Some(leader_id(metrics.vote.leader_id.term, leader))
}

async fn led_by_0() -> (Cluster, LeaderId) {
    let cluster = Cluster::start(ELECTION, false, false).await;
    let warm = cluster.must_put(0, "warm").await;
    cluster.all_applied(warm.index).await;
    let leader = leader_of(&cluster, 2).expect("it follows");
    (cluster, leader)
}

/// A follower enters a command and hands it over; the leader's answer does not come back.
async fn hand_over(
    cluster: &Cluster,
    from: u64,
    to: LeaderId,
    id: u64,
    key: &str,
) -> oneshot::Receiver<Fate> {
    let (teller, fate) = oneshot::channel();
    assert!(cluster.members[from as usize].fates.enter(id, to, teller));
    let leader = &cluster.members[to.node_id as usize];
    drop(leader.proposals.propose(Some(to), named(id, key)).await);
    fate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deposed_leader_kept_to_itself_is_not_made() {
    let (cluster, leader) = led_by_0().await;
    for other in [1, 2] {
        cluster.network.link(0, other, false);
    }
    let fate = hand_over(&cluster, 2, leader, 7, "kept").await;
    cluster.elect(1).await;
    assert!(matches!(fate.await, Ok(Err(ProposeError::NotProposed(_)))));
    cluster.network.mend();
    let last = cluster.put_elsewhere(0, "last").await;
    cluster.all_applied(last.index).await;
    assert!((0..3).all(|id| !cluster.holds(id, "kept")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_successor_commits_is_made() {
    let (cluster, leader) = led_by_0().await;
    // Member 1 gets it, and nobody hears of that.
    cluster.network.link(0, 2, false);
    cluster.network.silence(1, 0);
    let last = || {
        let metrics = cluster.members[1].raft.metrics();
        metrics.borrow_watched().last_log_index
    };
    let before = last();
    let fate = hand_over(&cluster, 2, leader, 7, "passed on").await;
    until("member 1 to get it", || last() > before).await;
    assert!(!cluster.holds(1, "passed on"), "it is not committed");
    cluster.elect(1).await;
    assert!(matches!(fate.await, Ok(Ok(_))));
    assert!(cluster.holds(2, "passed on"), "who is told can read it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_in_another_term_of_its_leader_is_not_made() {
    let (cluster, leader) = led_by_0().await;
    cluster.elect(1).await;
    cluster.must_put(1, "meanwhile").await;
    cluster.elect(0).await;
    until("it to lead with a quorum", || {
        leader_of(&cluster, 0).is_some_and(|now| now > leader)
    })
    .await;
    let proposals = &cluster.members[0].proposals;
    let late = fate_of(proposals.propose(Some(leader), named(7, "late")).await).await;
    assert!(matches!(late, Err(ProposeError::NotProposed(_))));
    let last = cluster.must_put(0, "last").await;
    cluster.all_applied(last.index).await;
    assert!((0..3).all(|id| !cluster.holds(id, "late")));
    // And who still takes it for the leader of that term is told so before anything is sent.
    let (teller, fate) = oneshot::channel();
    assert!(!cluster.members[2].fates.enter(8, leader, teller));
    assert!(matches!(fate.await, Ok(Err(ProposeError::NotProposed(_)))));
}

/// Keys that were put, and whether they are.
#[derive(Default)]
struct Written {
    made: Vec<String>,
    not_made: Vec<String>,
    unknown: Vec<String>,
}

/// How commands came to their end: shows that the faults of the test below are faults.
#[derive(Default)]
struct Seen {
    again: AtomicUsize,
    without_the_leader: AtomicUsize,
}

/// One attempt, as `server/propose.rs` makes it, over a network that is slow at times.
async fn attempt(
    cluster: &Arc<Cluster>,
    from: u64,
    id: u64,
    key: &str,
    delay: Duration,
    seen: &Seen,
) -> Option<Fate> {
    let Some(leader) = leader_of(cluster, from) else {
        return Some(Err(ProposeError::NotProposed("no leader".to_string())));
    };
    let member = &cluster.members[from as usize];
    if leader.node_id == from {
        let fate = fate_of(member.proposals.propose(Some(leader), named(id, key)).await);
        return tokio::time::timeout(2 * ELECTION, fate).await.ok();
    }
    let (teller, fate) = oneshot::channel();
    if member.fates.enter(id, leader, teller) {
        let (cluster, command) = (cluster.clone(), named(id, key));
        // Goes on whatever becomes of the requester: a request in a socket.
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let proposals = &cluster.members[leader.node_id as usize].proposals;
            let entry = entry_of(proposals.propose(Some(leader), command).await).await;
            if cluster.network.is_heard(leader.node_id, from) {
                let member = &cluster.members[from as usize];
                if let Ok((entry, _)) = &entry {
                    hear(&member.raft, *entry);
                }
                member
                    .fates
                    .answered(leader, [(id, entry.map(|(_, reply)| reply))]);
            }
        });
    }
    let fate = tokio::time::timeout(4 * ELECTION, fate).await;
    member.fates.forget(id);
    let fate = fate.ok()?.ok();
    if leader_of(cluster, from) != Some(leader) {
        seen.without_the_leader.fetch_add(1, Ordering::Relaxed);
    }
    fate
}

/// Puts one key after another through a member, each until it is known to be made; gives up those of unknown fate.
/// Returns the keys.
async fn write_on(
    cluster: Arc<Cluster>,
    from: u64,
    name: usize,
    mut rng: StdRng,
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
) -> Written {
    let mut written = Written::default();
    for at in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (key, id) = (format!("{name}/{at}"), rng.random());
        loop {
            let delay = match rng.random_bool(0.2) {
                true => rng.random_range(Duration::ZERO..ELECTION),
                false => Duration::ZERO,
            };
            match attempt(&cluster, from, id, &key, delay, &seen).await {
                Some(Ok(_)) => break written.made.push(key),
                Some(Err(ProposeError::NotProposed(_))) if stop.load(Ordering::Relaxed) => {
                    break written.not_made.push(key);
                }
                Some(Err(ProposeError::NotProposed(_))) => {
                    seen.again.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Some(Err(ProposeError::Unknown(_))) | None => break written.unknown.push(key),
            }
        }
    }
    written
}

async fn every_command_is_made_once(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let cluster = Arc::new(Cluster::start(ELECTION, true, false).await);
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let writers: Vec<_> = (0..9)
        .map(|name| {
            let rng = StdRng::seed_from_u64(rng.random());
            tokio::spawn(write_on(
                cluster.clone(),
                name as u64 % 3,
                name,
                rng,
                stop.clone(),
                seen.clone(),
            ))
        })
        .collect();
    for _ in 0..12 {
        let (a, b) = (rng.random_range(0..3), rng.random_range(1..3));
        match rng.random_range(0..3) {
            0 => cluster.network.link(a, (a + b) % 3, false),
            1 => cluster.network.silence(a, (a + b) % 3),
            _ => (1..3).for_each(|other| cluster.network.link(a, (a + other) % 3, false)),
        }
        tokio::time::sleep(rng.random_range(Duration::ZERO..ELECTION / 4)).await;
        let next = rng.random_range(0..3);
        let _ = cluster.members[next].raft.trigger().elect(false).await;
        tokio::time::sleep(rng.random_range(Duration::ZERO..ELECTION / 2)).await;
        cluster.network.mend();
        tokio::time::sleep(rng.random_range(Duration::ZERO..ELECTION)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = Written::default();
    for writer in writers {
        let more = writer.await.expect("it ends");
        written.made.extend(more.made);
        written.not_made.extend(more.not_made);
        written.unknown.extend(more.unknown);
    }
    let last = cluster.put_somewhere("last").await;
    cluster.all_applied(last.index).await;
    println!(
        "seed {seed}: {} made, {} not, {} of unknown fate; {} attempts made again, {} answered when their leader had gone",
        written.made.len(),
        written.not_made.len(),
        written.unknown.len(),
        seen.again.load(Ordering::Relaxed),
        seen.without_the_leader.load(Ordering::Relaxed)
    );
    for member in &cluster.members {
        let versions = |key| versions(&member.reader, key);
        for key in &written.made {
            assert_eq!(versions(key), 1, "seed {seed}: {key}");
        }
        for key in &written.not_made {
            assert_eq!(versions(key), 0, "seed {seed}: {key}");
        }
        for key in &written.unknown {
            assert!(versions(key) <= 1, "seed {seed}: {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_again_until_it_is_made_is_made_once() {
    for seed in 0..4 {
        every_command_is_made_once(seed).await;
    }
}
