//! The stores, held against openraft's own conformance suite, and a snapshot from one member to another.

mod appends;
mod cluster;
mod confirm;
mod crash;
mod failure;
mod fates;
mod lost_entries;
mod telling;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use openraft::storage::RaftStateMachine;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{RaftSnapshotBuilder, StorageError};
use prost::Message;
use tokio::sync::{oneshot, watch};

use self::cluster::Cluster;
use super::entry::new_log_id;
use super::log_store::LogStore;
use super::replica::{Failure, next_change};
use super::saving::Defragmenter;
use super::snapshot::SnapshotStore;
use super::state_machine::{Mark, Shell, StateMachine};
use super::{CommandBytes, Entry, LogId, Types};
use crate::pb::etcdserverpb::{CompactionRequest, PutRequest};
use crate::pb::pontoon::command::{Command, command::Op};
use crate::state::{Options, State};
use crate::storage::fs::{Fs, SimFs};
use crate::storage::wal::{Wal, WalOptions};
use crate::storage::{Engine, Memory};

fn memory() -> Arc<dyn Engine> {
    Arc::new(Memory::default())
}

fn shell(snapshots: Arc<SnapshotStore>) -> Shell {
    Shell {
        snapshots,
        defragmenter: Defragmenter::new(Path::new("/nowhere"), Arc::new(|| Ok(memory()))),
        options: Options::default(),
        applied: watch::channel(0).0,
        lease_sink: Arc::new(|_| {}),
        token_sink: Arc::new(|_| {}),
        members: watch::channel(()).0,
        feed: Default::default(),
        fates: Default::default(),
        failure: Failure::default(),
        metrics: Arc::default(),
        closed: oneshot::channel().0,
    }
}

fn state_machine(fs: Arc<dyn Fs>) -> StateMachine {
    let snapshots = SnapshotStore::open(fs, &PathBuf::from("/snapshots")).expect("opened");
    let (state, _) = State::open(memory(), Options::default()).expect("opened");
    StateMachine::new(state, Mark::default(), shell(Arc::new(snapshots)))
}

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine> for Builder {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<Types>> {
        let fs: Arc<dyn Fs> = Arc::new(SimFs::default());
        let options = WalOptions {
            segment_bytes: 1 << 16,
            ..WalOptions::default()
        };
        let wal = Wal::open(fs.clone(), &PathBuf::from("/wal"), options).expect("opened");
        Ok(((), LogStore::new(wal), state_machine(fs)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stores_pass_openrafts_own_suite() {
    Suite::test_all(Builder).await.expect("conformant");
}

fn command(op: Op) -> CommandBytes {
    let command = Command {
        header: None,
        op: Some(op),
    };
    CommandBytes(Bytes::from(command.encode_to_vec()))
}

/// Applies commands as openraft would.
async fn apply_entries(machine: &mut StateMachine, entries: impl Iterator<Item = (LogId, Op)>) {
    for (log_id, op) in entries {
        let payload = openraft::EntryPayload::Normal(command(op));
        let entry = <Entry as openraft::entry::RaftEntry>::new(log_id, payload);
        let entries = futures::stream::iter([Ok((entry, None))]);
        machine.apply(entries).await.expect("applied");
    }
}

/// Applies commands from an index on; returns the last.
async fn apply_from(machine: &mut StateMachine, first: u64, ops: impl Iterator<Item = Op>) -> u64 {
    let ops: Vec<Op> = ops.collect();
    let last = first + ops.len() as u64 - 1;
    let ids = (first..).map(|index| new_log_id(1, 1, index));
    apply_entries(machine, ids.zip(ops)).await;
    last
}

async fn apply(machine: &mut StateMachine, ops: impl Iterator<Item = Op>) -> u64 {
    apply_from(machine, 1, ops).await
}

fn put(key: u32, value: u32) -> Op {
    let (key, value) = (
        Bytes::from(format!("key {key}")),
        Bytes::from(format!("value {value}")),
    );
    Op::Put(PutRequest {
        key,
        value,
        ..PutRequest::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_makes_another_member_the_same() {
    let fs: Arc<dyn Fs> = Arc::new(SimFs::default());
    let mut from = state_machine(fs.clone());
    let writes = (0..3000).map(|at| put(at % 700, at));
    let compact = Op::Compact(CompactionRequest {
        revision: 1500,
        physical: false,
    });
    let last = apply(&mut from, writes.chain([compact])).await;
    let mut builder = from.get_snapshot_builder().await;
    // Written after the snapshot began: not part of it.
    let before = from.reader().hash_kv(0).expect("readable");
    apply(&mut from, [put(1, 1)].into_iter()).await;
    let snapshot = builder.build_snapshot().await.expect("built");
    assert_eq!(snapshot.meta.last_log_id, Some(new_log_id(1, 1, last)));

    let mut to = state_machine(fs);
    let reader = to.reader();
    apply(&mut to, (0..50).map(|at| put(at, 0))).await;
    to.install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .expect("installed");
    assert_eq!(
        to.applied_state().await.expect("known").0,
        Some(new_log_id(1, 1, last))
    );
    assert_eq!(
        reader.hash_kv(0).expect("readable"),
        before,
        "a reader from before sees the new state"
    );
    assert_eq!(reader.compacted(), 1500);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_change_is_not_woken_by_what_was_before() {
    let cluster = Cluster::start(Duration::from_millis(500), false, false).await;
    let warm = cluster.must_put(0, "warm").await;
    cluster.all_applied(warm.index).await;
    let changed = next_change(cluster.members[0].raft.server_metrics());
    assert!(changed.now_or_never().is_none(), "an idle leader has news");
}
