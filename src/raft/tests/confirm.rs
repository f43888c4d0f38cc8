//! The promise of [`crate::raft::read_index`]: a leader that has been replaced confirms nothing that is older than what its
//! successor acknowledged, however it was replaced.

use std::time::Duration;

use openraft::ReadPolicy;

use super::cluster::{Cluster, until};
use crate::raft::read_index::ReadIndexError;
use crate::raft::{LogId, Vote};

const ELECTION: Duration = Duration::from_millis(500);

/// A cluster led by member 0, with one write that all have.
async fn led_by_0(election: Duration) -> Cluster {
    let cluster = Cluster::start(election, false, false).await;
    let warm = cluster.must_put(0, "warm").await;
    cluster.all_applied(warm.index).await;
    cluster
}

/// Member 1 is elected by 2 and acknowledges a write, without 0 hearing of it.
async fn replace_0_by_1(cluster: &Cluster) -> LogId {
    for other in [1, 2] {
        cluster.network.link(0, other, false);
    }
    cluster.elect(1).await;
    let new = cluster.must_put(1, "new").await;
    assert!(cluster.leads(0), "it knows of nothing");
    new
}

fn assert_not_older(answer: Result<LogId, ReadIndexError>, acknowledged: &LogId) {
    if let Ok(at) = answer {
        assert!(
            at.index >= acknowledged.index,
            "read at {at}, but {acknowledged} was acknowledged"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_confirmed_without_any_disk() {
    let cluster = led_by_0(ELECTION).await;
    let acknowledged = cluster.must_put(0, "acknowledged").await;
    for member in &cluster.members {
        member.disk.stall(true);
    }
    let read = cluster.members[0].rounds.read_index().await;
    assert!(read.is_ok_and(|at| at.index >= acknowledged.index));
    for member in &cluster.members {
        member.disk.stall(false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_cut_off_and_replaced_is_not_confirmed() {
    let cluster = led_by_0(ELECTION).await;
    let new = replace_0_by_1(&cluster).await;
    assert!(cluster.members[0].rounds.read_index().await.is_err());
    // Now the others can be asked, though they can't be told anything.
    cluster.network.let_questions_cross(true);
    assert_eq!(
        cluster.members[0].rounds.read_index().await,
        Err(ReadIndexError::NoQuorum),
        "they answer, with another vote"
    );
    let read = cluster.members[1].rounds.read_index().await;
    assert!(
        read.is_ok_and(|at| at.index >= new.index),
        "the new one is confirmed"
    );
}

/// Whichever other member is away, and from then on only the one that answers is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_confirmed_by_whoever_is_there() {
    for away in [1, 2] {
        let cluster = led_by_0(4 * ELECTION).await;
        cluster.network.link(0, away, false);
        let rounds = &cluster.members[0].rounds;
        assert!(rounds.read_index().await.is_ok());
        let asked = *cluster.network.questions.borrow();
        for _ in 0..20 {
            assert!(rounds.read_index().await.is_ok());
        }
        let asked = *cluster.network.questions.borrow() - asked;
        assert!(asked < 40, "both are asked each time: {asked}");
    }
}

/// A follower that asks says which vote it holds: with the leader's own that makes a quorum of three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_asks_confirms_the_leader_by_its_own_vote() {
    let cluster = led_by_0(ELECTION).await;
    let acknowledged = cluster.must_put(0, "acknowledged").await;
    // Nobody else could answer.
    cluster.network.hold_questions(true);
    let asked = cluster.members[0].rounds.read_index_for(asker(&cluster, 1)).await;
    assert!(asked.is_ok_and(|at| at.index >= acknowledged.index));
    assert_eq!(*cluster.network.questions.borrow(), 0);
    // A stranger's vote is none.
    cluster.network.hold_questions(false);
    let (_, vote) = asker(&cluster, 1);
    let asked = cluster.members[0].rounds.read_index_for((7, vote)).await;
    assert!(asked.is_ok_and(|at| at.index >= acknowledged.index));
    assert!(*cluster.network.questions.borrow() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_turned_to_another_leader_does_not_confirm_the_former() {
    let cluster = led_by_0(ELECTION).await;
    let new = replace_0_by_1(&cluster).await;
    for other in [1, 2] {
        let asked = cluster.members[0]
            .rounds
            .read_index_for(asker(&cluster, other))
            .await;
        assert!(asked.is_err());
    }
    let asked = cluster.members[1].rounds.read_index_for(asker(&cluster, 2)).await;
    assert!(asked.is_ok_and(|at| at.index >= new.index));
}

/// A member as it would ask now.
fn asker(cluster: &Cluster, id: u64) -> (u64, Option<Vote>) {
    let vote = cluster.members[id as usize].log.vote().expect("readable");
    (id, vote)
}

/// It stands still between the moment when it looked at its state and the moment when its questions are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_replaced_during_its_round_is_not_confirmed() {
    let cluster = led_by_0(ELECTION).await;
    cluster.network.hold_questions(true);
    let rounds = cluster.members[0].rounds.clone();
    let round = tokio::spawn(async move { rounds.read_index().await });
    until("the round to begin", || *cluster.network.questions.borrow() == 2).await;
    let new = replace_0_by_1(&cluster).await;
    // A read that comes now, after the write was acknowledged, must not share the round.
    let rounds = cluster.members[0].rounds.clone();
    let late = tokio::spawn(async move { rounds.read_index().await });
    cluster.network.let_questions_cross(true);
    cluster.network.hold_questions(false);
    assert_not_older(round.await.expect("it ends"), &new);
    assert_not_older(late.await.expect("it ends"), &new);
}

/// A voter that restarts keeps its vote, but not the lease that it gave: it lets a new leader in while the old one
/// still trusts its own clock. A lease read is stale then; ours is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_voters_restarted_is_not_confirmed_though_its_lease_runs() {
    for attempt in 0..10 {
        let mut cluster = led_by_0(16 * ELECTION).await;
        cluster.network.link(0, 2, false);
        cluster.network.link(0, 1, false);
        cluster.lose_power(1, |_| false).await;
        let stand = cluster.members[2].raft.trigger();
        stand.elect(false).await.expect("it runs");
        until("the new leader", || cluster.leads(2)).await;
        let new = cluster.must_put(2, "new").await;
        let by_lease = cluster.members[0]
            .raft
            .get_read_linearizer(ReadPolicy::LeaseRead)
            .await;
        let Ok(by_lease) = by_lease else {
            println!("attempt {attempt} was too slow: the lease ran out");
            continue;
        };
        assert!(
            by_lease.read_log_id().log_id().index < new.index,
            "a lease read is stale"
        );
        cluster.network.let_questions_cross(true);
        assert!(cluster.members[0].rounds.read_index().await.is_err());
        return;
    }
    panic!("never quick enough");
}

/// Its disk says that it led; it does not lead any more, and knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarted_is_not_confirmed() {
    let mut cluster = led_by_0(ELECTION).await;
    cluster.lose_power(0, |_| false).await;
    assert_eq!(
        cluster.members[0].rounds.read_index().await,
        Err(ReadIndexError::NotLeader)
    );
}
