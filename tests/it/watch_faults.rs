//! kill -9, pauses and restarts of random members under load: every watcher is told the store's whole past, in order,
//! once, revision by revision, whichever members it was told it by.
//!
//! `PONTOON_KILLS` sets the number of kills (50 and more for the long form), `PONTOON_SEED` the seed.

use std::time::Duration;

use pontoon::pb::etcdserverpb::WatchCreateRequest;
use pontoon::pb::mvccpb::KeyValue;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::crash::{FAULTS, await_progress, strike};
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::from_env;
use crate::support::history::{Past, Tally};
use crate::support::observer::Observer;
use crate::support::watcher::{watch, watch_all};
use crate::support::workload::Workload;

/// Kills in the short form.
const KILLS: u64 = 5;
/// Clients on each member.
const CLIENTS: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_the_whole_past_through_kills_and_pauses() {
    let (seed, kills) = (from_env("PONTOON_SEED", 2), from_env("PONTOON_KILLS", KILLS));
    let mut cluster = Cluster::start_with(3, &["--snapshot-count", "300"]).await;
    let endpoints: Vec<String> = cluster.members.iter().map(|m| m.client_url.clone()).collect();
    let workload = Workload::start(&endpoints, CLIENTS, seed);
    // One that stays with each member, one that goes round for all keys, one for a few of them.
    let at = |members: &[usize]| members.iter().map(|member| endpoints[*member].clone()).collect();
    let all = || watch_all(1);
    let few: WatchCreateRequest = watch("k2", "k5", 1);
    let observers = [
        (Observer::start(at(&[0]), all()), false),
        (Observer::start(at(&[1]), all()), false),
        (Observer::start(at(&[2]), all()), false),
        (Observer::start(at(&[0, 1, 2]), all()), false),
        (Observer::start(at(&[2, 1, 0]), few.clone()), true),
    ];
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut killed, mut round) = (0, 0);
    while killed < kills {
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..800))).await;
        let writes = Tally::of(&workload.recorder.operations()).writes;
        killed += strike(&mut cluster, FAULTS[round % FAULTS.len()], &mut rng).await;
        cluster.await_ready().await;
        await_progress(&workload.recorder, writes).await;
        round += 1;
    }
    workload.finish().await;
    cluster.await_ready().await;
    let past = Past::read(&cluster.client(0))
        .await
        .expect("the past can be read");
    let in_few = |kv: &KeyValue| few.key <= kv.key && kv.key < few.range_end;
    for (observer, only_few) in observers {
        let told = observer.finish(PATIENCE, past.last()).await;
        told.check(&past, |kv| !only_few || in_few(kv));
        println!(
            "seed {seed}, {killed} kills: {} revisions of {} told over {} streams, {} times of the progress",
            told.events.len(),
            past.last(),
            told.streams,
            told.progress
        );
        assert!(
            told.events.len() > 20,
            "too little was told for the run to mean anything"
        );
    }
}
