//! kill -9 of random members under load: nothing acknowledged is lost, and the story adds up.
//!
//! Clients on every member write, read, swap and delete a few shared keys while members are killed and come back.
//! Then the whole past is read from the store, both checkers judge what the clients saw, and the members are compared
//! with each other. `PONTOON_KILLS` sets the number of kills (50 and more for the long form), `PONTOON_SEED` the seed.

use std::time::Duration;

use pontoon::pb::etcdserverpb::RangeRequest;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::history::{Past, Recorder, Tally, longest_gap};
use crate::support::process::wait_for;
use crate::support::rpc::{Client, Request, Response, everything};
use crate::support::workload::Workload;
use crate::support::{from_env, linearize, order};

/// Kills in the short form.
const KILLS: u64 = 8;

/// Clients on each member.
const CLIENTS: usize = 3;

/// What happens to the cluster in one round.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    KillLeader,
    KillAny,
    KillTwo,
    KillAll,
    PauseLeader,
}

pub const FAULTS: [Fault; 8] = [
    Fault::KillLeader,
    Fault::KillAny,
    Fault::KillTwo,
    Fault::KillLeader,
    Fault::PauseLeader,
    Fault::KillAll,
    Fault::KillAny,
    Fault::KillLeader,
];

/// Does it, and undoes it; returns how many processes were killed.
pub async fn strike(cluster: &mut Cluster, fault: Fault, rng: &mut StdRng) -> u64 {
    let any = rng.random_range(0..cluster.members.len());
    let down = Duration::from_millis(rng.random_range(0..1500));
    let victims = match fault {
        Fault::KillLeader => vec![cluster.leader().await],
        Fault::KillAny => vec![any],
        Fault::KillTwo => vec![any, (any + 1) % cluster.members.len()],
        Fault::KillAll => (0..cluster.members.len()).collect(),
        Fault::PauseLeader => {
            let leader = cluster.leader().await;
            cluster.pause(leader);
            tokio::time::sleep(Duration::from_millis(500) + down).await;
            cluster.resume(leader);
            return 0;
        }
    };
    for &victim in &victims {
        cluster.kill(victim);
    }
    tokio::time::sleep(down).await;
    for &victim in &victims {
        cluster.spawn(victim);
    }
    victims.len() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_lose_nothing() {
    let (seed, kills) = (from_env("PONTOON_SEED", 1), from_env("PONTOON_KILLS", KILLS));
    // Small, so that snapshots are taken, logs purged and members caught up by a snapshot on the way.
    let mut cluster = Cluster::start_with(3, &["--snapshot-count", "300"]).await;
    let endpoints: Vec<String> = cluster
        .members
        .iter()
        .map(|member| member.client_url.clone())
        .collect();
    let workload = Workload::start(&endpoints, CLIENTS, seed);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut killed = 0;
    let mut round = 0;
    while killed < kills {
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..1200))).await;
        let fault = FAULTS[round % FAULTS.len()];
        let writes = Tally::of(&workload.recorder.operations()).writes;
        killed += strike(&mut cluster, fault, &mut rng).await;
        cluster.await_ready().await;
        await_progress(&workload.recorder, writes).await;
        round += 1;
    }
    let recorder = workload.finish().await;
    cluster.await_ready().await;
    println!("{killed} kills");
    let revision = judge(&cluster.client(0), &recorder, seed).await;
    members_are_equal(&cluster, revision).await;
}

/// A round counts only if the clients got something done in it.
pub async fn await_progress(recorder: &Recorder, writes: usize) {
    wait_for(PATIENCE, "writes to go on", || async {
        (Tally::of(&recorder.operations()).writes > writes + 20).then_some(())
    })
    .await;
}

/// Everything that clients saw fits the store's own past; its last revision.
pub async fn judge(client: &Client, recorder: &Recorder, seed: u64) -> i64 {
    let operations = recorder.operations();
    let tally = Tally::of(&operations);
    let past = Past::read(client).await.expect("the past can be read");
    println!(
        "seed {seed}: {} writes and {} reads acknowledged, {} unknown, {} refused; \
         {} revisions; longest time without a write {:?}",
        tally.writes,
        tally.reads,
        tally.unknown,
        tally.refused,
        past.last(),
        longest_gap(&operations)
    );
    assert!(
        tally.writes > 200 && tally.reads > 200,
        "the clients did too little for the run to mean anything"
    );
    let places =
        order::check(&operations, &past).unwrap_or_else(|why| panic!("checker A, seed {seed}: {why}"));
    linearize::check(&operations, &places).unwrap_or_else(|why| panic!("checker B, seed {seed}: {why}"));
    past.last()
}

/// Each member by itself holds the same pairs at the same revision.
async fn members_are_equal(cluster: &Cluster, revision: i64) {
    let mut first: Option<Response> = None;
    for member in 0..cluster.members.len() {
        let request = RangeRequest {
            revision,
            serializable: true,
            ..everything()
        };
        let what = format!("{} to reach revision {revision}", cluster.members[member].name);
        let held = wait_for(PATIENCE, &what, || {
            let (mut client, request) = (cluster.client(member), Request::Range(request.clone()));
            async move { client.call(request).await.ok().map(Response::strip) }
        })
        .await;
        match &first {
            None => first = Some(held),
            Some(first) => assert_eq!(
                *first, held,
                "{} differs from the first",
                cluster.members[member].name
            ),
        }
    }
}
