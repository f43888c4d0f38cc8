//! Members come and go, move, and lose their disks, under load too.

use std::time::{Duration, Instant};

use pontoon::pb::etcdserverpb::{Member, MemberAddRequest};
use tonic::Code;

use super::{add, await_list, await_local, await_put, cluster_client, existing, id_of, join, remove, update};
use crate::crash::{await_progress, judge};
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::from_env;
use crate::support::history::Tally;
use crate::support::http;
use crate::support::process::wait_for;
use crate::support::workload::Workload;

/// How a removed member ends.
const REMOVED: i32 = 6;

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
