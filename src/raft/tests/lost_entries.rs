//! A leader hands entries to its followers while its own disk is still writing them, and may commit through the
//! followers alone. If it then loses power, it comes back without entries that are committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::cluster::{Cluster, put, until};
use crate::raft::Raft;

const ELECTION: Duration = Duration::from_millis(500);

/// What became of a write that was acknowledged while its leader's disk had stalled, and of one made after the leader
/// lost power and came back.
struct Outcome {
    same_log_id: bool,
    held_by_all: bool,
    members_agree: bool,
}

async fn a_leader_loses_what_its_followers_have(leader_restore: bool) -> Outcome {
    let mut cluster = Cluster::start(ELECTION, false, leader_restore).await;
    let warm = cluster.must_put(0, "warm").await;
    cluster.all_applied(warm.index).await;

    cluster.members[0].disk.stall(true);
    let first = cluster.must_put(0, "first").await;
    cluster.lose_power(0, |_| false).await;
    assert!(!cluster.holds(0, "first"), "its disk never had it");

    let next = match leader_restore {
        true => 0,
        false => 1,
    };
    if leader_restore {
        until("it to go on leading its old term", || cluster.leads(0)).await;
    } else {
        assert!(!cluster.leads(0));
        cluster.elect(1).await;
    }
    let second = cluster.must_put(next, "second").await;
    cluster.all_applied(second.index).await;
    let hashes = cluster.hashes();
    Outcome {
        same_log_id: first == second,
        held_by_all: (0..3).all(|id| cluster.holds(id, "first") && cluster.holds(id, "second")),
        members_agree: hashes.iter().all(|hash| *hash == hashes[0]),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lost_entries_follows_when_it_comes_back() {
    let outcome = a_leader_loses_what_its_followers_have(false).await;
    assert!(outcome.held_by_all && outcome.members_agree && !outcome.same_log_id);
}

/// The same schedule with openraft's default, which [`crate::raft::Timing::config`] turns off: this is what the test above is
/// there to find.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_went_on_leading_would_make_members_diverge() {
    let outcome = a_leader_loses_what_its_followers_have(true).await;
    assert!(outcome.same_log_id, "one log id was given to two entries");
    assert!(!outcome.held_by_all && !outcome.members_agree);
}

/// Puts one key after another, through whoever leads; returns those that were acknowledged.
async fn write_on(rafts: impl Fn() -> Vec<Raft>, name: usize, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        let leader = rafts().into_iter().find(|raft| raft.is_leader());
        if let Some(leader) = leader {
            // Never the same key again: a write of unknown fate stays unknown.
            let key = format!("{name}/{at}");
            at += 1;
            if put(leader, key.clone()).await.is_ok() {
                acknowledged.push(key);
                continue;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    acknowledged
}

/// One thing that goes wrong, and whatever it leaves.
async fn trouble(cluster: &mut Cluster, rng: &mut StdRng) {
    let id = rng.random_range(0..3);
    let other = (id + rng.random_range(1..3)) % 3;
    match rng.random_range(0..8) {
        0 => cluster.network.link(id, other, false),
        1 | 2 => cluster.network.mend(),
        3 => cluster.members[id as usize].disk.stall(true),
        4 => {
            let raft = cluster.members[id as usize].raft.clone();
            let _ = raft.trigger().snapshot().await;
        }
        5 => {
            // Everywhere at once.
            for id in 0..3 {
                cluster.lose_power(id, |_| rng.random()).await;
            }
        }
        _ => cluster.lose_power(id, |_| rng.random()).await,
    }
}

async fn troubles(seed: u64) -> (usize, u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(ELECTION / 2, true, false).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|name| {
            let network = cluster.network.clone();
            tokio::spawn(write_on(move || network.rafts(), name, stop.clone()))
        })
        .collect();
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(rng.random_range(20..250))).await;
        trouble(&mut cluster, &mut rng).await;
    }
    cluster.network.mend();
    for member in &cluster.members {
        member.disk.stall(false);
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.expect("it ends"));
    }
    let last = cluster.put_somewhere("last").await;
    cluster.all_applied(last.index).await;
    for id in 0..3 {
        let lost: Vec<&String> = acknowledged
            .iter()
            .filter(|key| !cluster.holds(id, key))
            .collect();
        assert!(lost.is_empty(), "seed {seed}: member {id} lost {lost:?}");
    }
    let hashes = cluster.hashes();
    assert!(
        hashes.iter().all(|hash| *hash == hashes[0]),
        "seed {seed}: members differ: {hashes:?}"
    );
    (acknowledged.len(), last.leader_id.term)
}

/// `PONTOON_SEED` and `PONTOON_TROUBLES` set the first seed and how many follow it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_disks_lose_members_agree_and_keep_what_was_acknowledged() {
    let number = |name: &str, default| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let (first, count) = (number("PONTOON_SEED", 1), number("PONTOON_TROUBLES", 5));
    let mut all = 0;
    for seed in first..first + count {
        let (acknowledged, term) = troubles(seed).await;
        println!("seed {seed}: {acknowledged} writes acknowledged, term {term} at the end");
        all += acknowledged;
    }
    assert!(all > 50, "too little was written to mean anything");
}

/// A disk that fails stops its member; the others go on, and it comes back with what they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_fails_stops_and_the_others_go_on() {
    let mut cluster = Cluster::start(ELECTION, true, false).await;
    cluster.must_put(0, "before").await;
    cluster.members[0].disk.fail_sync_after(0);
    // Its followers may have it: unknown, or acknowledged.
    let _ = cluster.put(0, "during").await;
    until("the member to stop", || !cluster.leads(0)).await;
    cluster.put_elsewhere(0, "after").await;
    cluster.lose_power(0, |_| false).await;
    let last = cluster.put_somewhere("last").await;
    cluster.all_applied(last.index).await;
    assert!((0..3).all(|id| cluster.holds(id, "before") && cluster.holds(id, "after")));
}
