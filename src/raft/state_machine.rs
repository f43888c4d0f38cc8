//! openraft's state machine over ours: apply, publish, answer; and saving behind it.
//!
//! One call of `apply` brings a run of committed entries. Each is applied in memory; then the batch is *sealed* with
//! the shell's mark (the applied log id and the membership), which publishes its revision to readers in one step;
//! then the applied index is announced to waiting reads, and what changed to those who watch ([`Feed`]); and only then
//! do proposers get their answers, those who proposed here and those who handed a command to a leader ([`Fates`]).
//! Whoever has an answer, or an event, can therefore read what it says.
//!
//! The engine (sled) is written behind: a thread of its own commits everything sealed so far, mark included, as one
//! batch, and reclaims compacted versions in slices. What it lags, the log replays. If it falls too far behind, apply
//! waits for it: that bounds memory.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use tokio::sync::watch;

use super::entry::{decode_log_id, decode_stored_membership, encode_log_id, encode_stored_membership};
use super::fates::Fates;
use super::feed::Feed;
use super::pace::Pace;
use super::saving::{Defragmenter, Saving};
use super::snapshot::{SnapshotFile, SnapshotStore};
use super::{CommandBytes, LogId, Reply, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::journal::Event;
use crate::metrics::Metrics;
use crate::pb::pontoon::command::command::Op;
use crate::pb::pontoon::command::reply::Response;
use crate::pb::pontoon::command::{Command, Done};
use crate::raft::replica::Failure;
use crate::state::{
    Changes, Counts, LeaseChange, LeaseChanges, Place, Reader, SnapshotSource, State, TokenChange,
};

/// Entries sealed and answered together at most: bounds the wait of the first for the last.
const SEAL_EVERY: usize = 256;
/// Bytes applied but not yet in the engine at which apply waits for the saver.
const UNSAVED_LIMIT: usize = 128 << 20;

/// The shell's part of the state, saved with it in every batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mark {
    /// The last entry that is part of the state.
    pub applied: Option<LogId>,
    /// The last membership among those entries.
    pub membership: StoredMembership,
}

impl Mark {
    /// As the state keeps it: opaque bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::from([u8::from(self.applied.is_some())]);
        out.extend_from_slice(&self.applied.as_ref().map(encode_log_id).unwrap_or_default());
        out.extend_from_slice(&encode_stored_membership(&self.membership));
        out.into()
    }

    /// Reads what [`Mark::encode`] wrote.
    pub fn decode(bytes: &Bytes) -> io::Result<Mark> {
        let short = || io::Error::new(io::ErrorKind::InvalidData, "applied mark is cut short");
        let (applied, rest) = match bytes.first().ok_or_else(short)? {
            0 => (None, 1),
            _ => (Some(decode_log_id(bytes.get(1..25).ok_or_else(short)?)?), 25),
        };
        Ok(Mark {
            applied,
            membership: decode_stored_membership(bytes.slice(rest..))?,
        })
    }
}

/// Learns of tokens.
pub type TokenSink = Arc<dyn Fn(TokenChange) + Send + Sync>;
/// Told how leases changed: in the log's order, after it is sealed and before its index is announced.
pub type LeaseSink = Arc<dyn Fn(&[LeaseChange]) + Send + Sync>;

/// What the state machine needs besides the state.
pub struct Shell {
    /// Where snapshot files are.
    pub snapshots: Arc<SnapshotStore>,
    /// Makes the state compact on disk, and engines for those that are installed.
    pub defragmenter: Defragmenter,
    /// Size of memory caches and the like.
    pub options: crate::state::Options,
    /// The lease clock.
    pub lease_sink: LeaseSink,
    /// Announces the applied index.
    pub applied: watch::Sender<u64>,
    /// Told of tokens as they are applied, before anybody is answered.
    pub token_sink: TokenSink,
    /// Announces that the members' records may have changed.
    pub members: watch::Sender<()>,
    /// Tells those who watch.
    pub feed: Feed,
    /// Tells those who handed commands to a leader.
    pub fates: Arc<Fates>,
    /// Reports what must stop this member.
    pub failure: Failure,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Dropped when the state machine is gone and all of it is saved.
    pub closed: tokio::sync::oneshot::Sender<()>,
}

/// The replicated state machine, as openraft drives it.
pub struct StateMachine {
    state: State,
    mark: Mark,
    /// Applied, and not yet told.
    leases: LeaseChanges,
    /// Whether members' records changed since the last seal.
    members_changed: bool,
    /// What was applied since the last seal, and the revision that it led to.
    changes: Changes,
    saving: Saving,
    pace: Pace,
    shell: Shell,
}

/// Entries that are applied, and not sealed yet.
#[derive(Default)]
struct Run {
    /// When the first of them came.
    began: Option<Instant>,
    entries: usize,
    answers: Vec<(openraft::storage::ApplyResponder<Types>, Reply)>,
    /// By their ids, commands that were not proposed here, if any such are waited for.
    others: Vec<(u64, Reply)>,
}

/// In this order: the rest is saved, all of it is flushed, then `shell.closed` tells.
impl Drop for StateMachine {
    fn drop(&mut self) {
        self.shell.fates.end();
        self.saving.stop();
        if let Err(error) = self.state.flush() {
            // What is lost is only applied state: the next start rebuilds it.
            tracing::warn!(%error, "cannot flush the applied state");
        }
    }
}

impl StateMachine {
    /// Takes over an opened state, and starts saving behind it.
    pub fn new(state: State, mark: Mark, shell: Shell) -> Self {
        shell
            .applied
            .send_replace(mark.applied.map_or(0, |log_id| log_id.index));
        shell.fates.skipped(mark.applied.map(|applied| applied.leader_id));
        let saving = start_saving(&state, &shell);
        let changes = Changes {
            last: state.reader().revision(),
            ..Changes::default()
        };
        StateMachine {
            state,
            mark,
            leases: LeaseChanges::new(),
            members_changed: false,
            changes,
            saving,
            pace: Pace::new(shell.metrics.clone()),
            shell,
        }
    }

    /// Sees what is sealed; stays valid when a snapshot is installed.
    pub fn reader(&self) -> Reader {
        self.state.reader()
    }

    /// Everything as it is now, between two batches of entries, with the last entry that is in it.
    pub fn backup(&self) -> (SnapshotSource, Option<LogId>) {
        (self.state.snapshot(), self.mark.applied)
    }

    /// The command's id, and what it came to.
    fn apply_command(&mut self, log_id: LogId, command: &CommandBytes) -> io::Result<(u64, Reply)> {
        let command = Command::decode(command.0.clone()).map_err(io::Error::other)?;
        self.members_changed |= matches!(
            command.op,
            Some(Op::SetMember(_) | Op::UpdateMember(_) | Op::ClaimMember(_))
        );
        let place = Place {
            term: log_id.leader_id.term,
            index: log_id.index,
        };
        let mut outcome = self.state.apply(place, &command).map_err(io::Error::other)?;
        self.count(outcome.counts);
        self.leases.extend(outcome.leases);
        if let Some(change) = outcome.tokens {
            (self.shell.token_sink)(change);
        }
        self.changes.events.append(&mut outcome.events);
        self.changes.last = outcome.revision;
        let id = command.header.map_or(0, |header| header.id);
        Ok((id, Reply(outcome.response)))
    }

    fn apply_membership(&mut self, membership: StoredMembership) -> Reply {
        self.state
            .set_membership(&super::membership::seats(membership.membership()));
        self.mark.membership = membership;
        self.members_changed = true;
        Reply(Ok(Response::Done(Done {})))
    }

    /// Ends a run: the last one of it can be read, and everyone is answered.
    fn end(&mut self, run: &mut Run) {
        self.publish();
        for (responder, reply) in run.answers.drain(..) {
            responder.send(reply);
        }
        if let Some(applied) = &self.mark.applied {
            self.shell.fates.applied(applied.leader_id, run.others.drain(..));
        }
        if let Some(began) = run.began.take() {
            let entries = std::mem::take(&mut run.entries);
            let index = self.mark.applied.map_or(0, |log_id| log_id.index);
            self.pace.applied(began, Instant::now(), entries, index);
        }
    }

    /// Makes what was applied visible, then tells those who wait for it.
    fn publish(&mut self) {
        self.state.seal(self.mark.encode());
        if !self.leases.is_empty() {
            self.count_leases();
            (self.shell.lease_sink)(&self.leases);
            self.leases.clear();
        }
        if std::mem::take(&mut self.members_changed) {
            self.shell.members.send_replace(());
        }
        self.shell
            .applied
            .send_replace(self.mark.applied.map_or(0, |log_id| log_id.index));
        if !self.changes.events.is_empty() {
            let next = Changes {
                last: self.changes.last,
                ..Changes::default()
            };
            let changes = std::mem::replace(&mut self.changes, next);
            self.shell.feed.publish(changes, || self.state.reader().view());
        }
    }

    fn count(&self, counts: Counts) {
        let metrics = &self.shell.metrics;
        metrics.ranges.add(counts.ranges);
        metrics.puts.add(counts.puts);
        metrics.deletes.add(counts.deletes);
        metrics.txns.add(counts.txns);
    }

    fn count_leases(&self) {
        for change in &self.leases {
            match change {
                LeaseChange::Granted(_) => self.shell.metrics.leases_granted.increment(),
                LeaseChange::Revoked { .. } => self.shell.metrics.leases_revoked.increment(),
                LeaseChange::Checkpointed(_) => {}
            }
        }
    }

    fn load(&self, file: &SnapshotFile) -> io::Result<(State, Mark)> {
        let engine = self.shell.defragmenter.fresh_engine()?;
        let (state, mark) =
            State::restore(engine, self.shell.options.clone(), file.records()?).map_err(io::Error::other)?;
        Ok((state, Mark::decode(&mark)?))
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.mark.applied, self.mark.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut run = Run::default();
        while let Some((entry, responder)) = entries.try_next().await? {
            run.began.get_or_insert_with(Instant::now);
            let (id, reply) = match &entry.payload {
                EntryPayload::Blank => (0, Reply(Ok(Response::Done(Done {})))),
                EntryPayload::Normal(command) => self.apply_command(entry.log_id, command)?,
                EntryPayload::Membership(membership) => {
                    let membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    (0, self.apply_membership(membership))
                }
            };
            self.mark.applied = Some(entry.log_id);
            match responder {
                Some(responder) => run.answers.push((responder, reply)),
                None if self.shell.fates.are_awaited() => run.others.push((id, reply)),
                None => {}
            }
            run.entries += 1;
            if run.entries == SEAL_EVERY {
                self.end(&mut run);
            }
        }
        self.end(&mut run);
        self.saving.wait_below(UNSAVED_LIMIT).await;
        Ok(())
    }

    /// A snapshot that meets a full disk would stop this member. One that nobody waits for is left for later: the log,
    /// which it would shorten, goes on.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let (all, own) = self.state.reader().snapshot_bytes();
        if force || self.shell.snapshots.has_room(all, own) {
            return Some(self.get_snapshot_builder().await);
        }
        tracing::warn!(
            all,
            own,
            "no snapshot is taken, as the disk has no room for it: make room, or give this member a larger disk"
        );
        None
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            source: Some(self.state.snapshot()),
            mark: self.mark.clone(),
            snapshots: self.shell.snapshots.clone(),
            metrics: self.shell.metrics.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        let (state, mark) = tokio::task::block_in_place(|| self.load(&file))?;
        if mark.applied != meta.last_log_id {
            return Err(io::Error::other(
                "the snapshot's contents and its description differ",
            ));
        }
        // Durable before it is state: the log before it is about to be purged.
        tokio::task::block_in_place(|| self.shell.snapshots.installed(&file, meta))?;
        self.saving.stop();
        self.saving = start_saving(&state, &self.shell);
        self.state.replace(state);
        self.mark = mark;
        self.members_changed = true;
        self.publish();
        self.shell
            .fates
            .skipped(self.mark.applied.map(|applied| applied.leader_id));
        self.changes.last = self.state.reader().revision();
        self.shell.feed.jump(self.changes.last);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.shell.snapshots.current())
    }
}

fn start_saving(state: &State, shell: &Shell) -> Saving {
    Saving::start(
        state.saver(),
        shell.defragmenter.clone(),
        shell.failure.clone(),
        shell.metrics.clone(),
    )
}

/// Writes one snapshot, while entries go on being applied.
pub struct Builder {
    source: Option<SnapshotSource>,
    mark: Mark,
    snapshots: Arc<SnapshotStore>,
    metrics: Arc<Metrics>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let source = self
            .source
            .take()
            .ok_or_else(|| io::Error::other("a builder builds once"))?;
        let meta = SnapshotMeta {
            last_log_id: self.mark.applied,
            last_membership: self.mark.membership.clone(),
        };
        let (snapshots, began) = (self.snapshots.clone(), Instant::now());
        let built = tokio::task::spawn_blocking(move || snapshots.build(meta, source))
            .await
            .map_err(io::Error::other)?;
        self.metrics.snapshots_taken.observe(began.elapsed());
        if let Ok(built) = &built {
            self.metrics.journal.record(Event::SnapshotTaken {
                upto: built.meta.last_log_id.map_or(0, |log_id| log_id.index),
                bytes: built.snapshot.size(),
                took_ms: began.elapsed().as_millis() as u64,
            });
        }
        built
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::entry::new_log_id;

    #[test]
    fn a_mark_is_read_back_as_it_was() {
        for applied in [None, Some(new_log_id(2, 3, 4))] {
            let mark = Mark {
                applied,
                membership: StoredMembership::default(),
            };
            assert_eq!(Mark::decode(&mark.encode()).expect("read back"), mark);
        }
        assert!(Mark::decode(&Bytes::new()).is_err());
        assert!(Mark::decode(&Bytes::from_static(&[1, 2, 3])).is_err());
    }
}
