//! `pontoon import`: a live etcd cluster moves here, while its clients work.
//!
//! 1. **Copy.** All pairs as of one revision of the source, page by page, with their leases ([`copy`]).
//! 2. **Follow.** Every change since, by a watch; what one revision changed goes over together. The lag is said.
//! 3. **Switch.** When nobody writes to the source any more, Ctrl-C: what is left is applied, the counts are compared,
//!    and clients may go over.
//!
//! Leases keep their ids and TTLs, and are kept alive here for as long as they live there ([`leases`]).
//!
//! What does not come along, as no client can write it: revisions, versions, users and roles. A backup has them:
//! `pontoon snapshot save`, `pontoon snapshot restore`.
//!
//! A write whose fate is unknown is made again: nobody else writes there, in order, and to set a pair twice is to set it
//! once. If the source has compacted what is to come, or a lease ran out here while it could not be kept alive, the two
//! are compared anew, pair by pair, and what differs is set right: this is also how `--resume` begins.

mod copy;
mod leases;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgMatches, Command};
use tokio::time::Instant;

use self::copy::Extra;
use self::leases::Leases;
use super::args::{flag, int, number, text, value};
use super::ctl::{Context, login};
use super::failed::Failed;
use super::{mirror, output};
use crate::client::{Client, Options, WatchError};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};

/// How often the lag is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often progress is said.
const REPORT: Duration = Duration::from_secs(5);
/// Before a write is made again.
const RETRY: Duration = Duration::from_millis(500);
/// Bytes of one transaction, about: below the request size that every etcd takes.
const TXN_BYTES: usize = 512 << 10;

const HELP: &str = "\
Copies all keys and leases of a live etcd cluster (of any etcd v3 endpoint) into an empty cluster, and then follows
every change. When it says that it has caught up: stop the writers, press Ctrl-C, wait for the last line, and start
them again at the new cluster. A second Ctrl-C ends it at once.

Revisions, versions, users and roles do not come along: no client can write them. Where they matter, take a backup and
restore it instead: pontoon snapshot save, pontoon snapshot restore.

Examples:
  pontoon import --from 10.0.0.1:2379,10.0.0.2:2379 --to 127.0.0.1:2379
  pontoon import --from 10.0.0.1:2379 --until-caught-up";

/// The verb.
pub fn command() -> Command {
    Command::new("import")
        .about("Copy a live etcd cluster, and follow it until clients go over")
        .arg(value("from", "The source's endpoints, comma-separated").required(true))
        .arg(value("to", "The target's endpoints [default: --endpoints]"))
        .arg(value(
            "from-user",
            "Name and password at the source, as NAME:PASSWORD",
        ))
        .arg(flag(
            "until-caught-up",
            "End as soon as the source is caught up with",
        ))
        .arg(
            flag(
                "force",
                "The target may hold keys: those of the source replace them, others stay",
            )
            .conflicts_with("resume"),
        )
        .arg(flag(
            "resume",
            "Go on with an import: set right what differs, and delete what the source does not have",
        ))
        .arg(number("max-txn-ops", "Most writes in one transaction [default: 128]").default_value("128"))
        .after_help(HELP)
}

/// Runs it.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let import = Import::of(context, matches)?;
    let mut extra = import.check(matches).await?;
    let keeps_others = extra == Extra::Keep;
    if extra == Extra::Delete {
        import.leases.take_over(&import.target).await?;
    }
    let outcome = loop {
        let round = async {
            let revision = import.copy(extra).await?;
            import.follow(revision, matches.get_flag("until-caught-up")).await
        };
        let next = tokio::select! {
            outcome = round => outcome?,
            outcome = import.leases.keep(&import.source, &import.target) => { outcome?; Round::Again("a lease ran out at the target") }
        };
        match next {
            Round::Done(revision) => break revision,
            Round::Again(why) => {
                output::say(format!("{why}: comparing source and target anew"));
                // What is there now is ours.
                extra = if keeps_others { Extra::Keep } else { Extra::Delete };
            }
        }
    };
    import.finish(outcome, keeps_others).await
}

/// How a round of copying and following ended.
enum Round {
    /// Everything up to this revision of the source is over.
    Done(i64),
    /// It can't go on from where it was.
    Again(&'static str),
}

/// From where to where.
struct Import {
    source: Client,
    target: Client,
    leases: Leases,
    max_ops: usize,
    /// Pairs set or deleted.
    written: AtomicU64,
}

impl Import {
    fn of(context: &Context, matches: &ArgMatches) -> Result<Import, Failed> {
        let endpoints =
            |name: &str| -> Vec<String> { text(matches, name).split(',').map(str::to_string).collect() };
        let source = Options {
            login: login(text(matches, "from-user"), "")?,
            ..context.options.clone()
        };
        let target = match text(matches, "to") {
            "" => context.client.endpoints().to_vec(),
            _ => endpoints("to"),
        };
        Ok(Import {
            source: Client::with(&endpoints("from"), source)?,
            target: Client::with(&target, context.options.clone())?,
            leases: Leases::default(),
            max_ops: usize::try_from(int(matches, "max-txn-ops")).unwrap_or(1).max(1),
            written: AtomicU64::new(0),
        })
    }

    /// Says what is about to happen, or refuses; what becomes of pairs that only the target has.
    async fn check(&self, matches: &ArgMatches) -> Result<Extra, Failed> {
        let (from, to) = (self.source.status().await?, self.target.status().await?);
        let cluster = |header: &Option<crate::pb::etcdserverpb::ResponseHeader>| {
            header.as_ref().map(|header| header.cluster_id)
        };
        if cluster(&from.header) == cluster(&to.header) {
            return Err(Failed::arguments("--from and --to are the same cluster"));
        }
        let (keys, there) = (count(&self.source, 0).await?.0, count(&self.target, 0).await?.0);
        output::say(format!(
            "from {} (version {}, {keys} keys) to {} ({there} keys)",
            self.source.endpoints().join(","),
            from.version,
            self.target.endpoints().join(",")
        ));
        output::say(
            "values and leases come along; revisions, versions, users and roles do not (a restored backup has them)",
        );
        match (there, matches.get_flag("force"), matches.get_flag("resume")) {
            (_, _, true) => Ok(Extra::Delete),
            (_, true, _) => Ok(Extra::Keep),
            (0, ..) => Ok(Extra::None),
            _ => Err(Failed::error(format!(
                "the target holds {there} keys: import into an empty cluster; go on with an import by --resume, which \
                 deletes what the source does not have; or write over what is there by --force"
            ))),
        }
    }

    /// Copies every change after a revision. Until Ctrl-C, or until it has caught up.
    async fn follow(&self, revision: i64, until_caught_up: bool) -> Result<Round, Failed> {
        let all = all();
        let request = WatchCreateRequest {
            key: all.key,
            range_end: all.range_end,
            start_revision: revision + 1,
            ..WatchCreateRequest::default()
        };
        let mut watcher = match self.source.watch(request).await {
            Err(WatchError::Compacted(_)) => {
                return Ok(Round::Again("the source has compacted what was to come"));
            }
            opened => opened?,
        };
        let mut at = Position {
            applied: revision,
            stop_at: None,
            caught_up: false,
            said: Instant::now(),
        };
        let mut look = tokio::time::interval(LOOK);
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        loop {
            if at.stop_at.is_some_and(|stop| at.applied >= stop) {
                return Ok(Round::Done(at.applied));
            }
            tokio::select! {
                response = watcher.next() => match response {
                    Err(WatchError::Compacted(_)) => return Ok(Round::Again("the source has compacted what was to come")),
                    response => {
                        let events = response?.events;
                        self.apply(&events).await?;
                        at.applied = events.last().map_or(at.applied, revision_of).max(at.applied);
                    }
                },
                _ = look.tick() => {
                    // A source that does not answer now is asked again.
                    if let Ok((_, now)) = count(&self.source, 0).await {
                        at.see(now, until_caught_up);
                    }
                }
                _ = &mut interrupt, if at.stop_at.is_none() => {
                    let (_, now) = count(&self.source, 0).await?;
                    output::say(format!("finishing: what the source has up to revision {now}"));
                    at.stop_at = Some(now);
                    exit_at_next_interrupt();
                }
            }
        }
    }

    /// What one revision changed stays in one transaction, if the limits allow.
    async fn apply(&self, events: &[Event]) -> Result<(), Failed> {
        let mut batch = Batch::new(self);
        for events in events.chunk_by(|a, b| revision_of(a) == revision_of(b)) {
            let changes: Vec<Change> = events.iter().map(Change::of).collect();
            if !batch.has_room(&changes) {
                batch.write().await?;
            }
            for change in changes {
                batch.add(change).await?;
            }
        }
        batch.write().await
    }

    async fn write(&self, txn: TxnRequest) -> Result<(), Failed> {
        loop {
            match self.target.txn(txn.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if mirror::may_recover(&error) => {
                    output::say(format!("not written yet: {error}"));
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Compares what can be compared cheaply, and says that clients may go over.
    async fn finish(&self, revision: i64, keeps_others: bool) -> Result<ExitCode, Failed> {
        self.leases.look(&self.source, &self.target).await?;
        self.leases.renew_all(&self.target).await?;
        let (there, here) = (
            count(&self.source, revision).await?.0,
            count(&self.target, 0).await?.0,
        );
        if there != here && !keeps_others {
            return Err(Failed::error(format!(
                "the source has {there} keys at revision {revision}, the target {here}: does anybody else write there?"
            )));
        }
        output::line(format!(
            "imported {there} keys and {} leases, up to revision {revision} of the source; clients may go over",
            self.leases.count()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// How far following has come.
struct Position {
    applied: i64,
    stop_at: Option<i64>,
    caught_up: bool,
    said: Instant,
}

impl Position {
    /// The source is at `now`.
    fn see(&mut self, now: i64, until_caught_up: bool) {
        let behind = (now - self.applied).max(0);
        if behind == 0 && !self.caught_up {
            self.caught_up = true;
            let hint = if until_caught_up {
                ""
            } else {
                "; stop the writers and press Ctrl-C to go over"
            };
            output::say(format!("caught up, at revision {now} of the source{hint}"));
            if until_caught_up {
                self.stop_at = Some(now);
            }
        }
        if self.said.elapsed() >= REPORT {
            self.said = Instant::now();
            output::say(format!(
                "at revision {} of the source, {behind} behind",
                self.applied
            ));
        }
    }
}

fn exit_at_next_interrupt() {
    tokio::spawn(async {
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(i32::from(super::failed::exit::INTERRUPTED));
        }
    });
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// A range over every key.
fn all() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..RangeRequest::default()
    }
}

/// How many keys there are at a revision (0: now), and the revision now.
async fn count(client: &Client, revision: i64) -> Result<(i64, i64), Failed> {
    let request = RangeRequest {
        count_only: true,
        revision,
        ..all()
    };
    let response = client.range(request).await?;
    Ok((
        response.count,
        response.header.map_or(0, |header| header.revision),
    ))
}

/// One write.
enum Change {
    Put(KeyValue),
    Delete(Bytes),
}

impl Change {
    fn of(event: &Event) -> Change {
        let kv = event.kv.clone().unwrap_or_default();
        match event.r#type() {
            EventType::Put => Change::Put(kv),
            EventType::Delete => Change::Delete(kv.key),
        }
    }

    fn key(&self) -> &Bytes {
        match self {
            Change::Put(kv) => &kv.key,
            Change::Delete(key) => key,
        }
    }

    fn size(&self) -> usize {
        match self {
            Change::Put(kv) => kv.key.len() + kv.value.len(),
            Change::Delete(key) => key.len(),
        }
    }
}

/// Writes that go over in one transaction, which names no key twice.
struct Batch<'a> {
    import: &'a Import,
    changes: Vec<Change>,
    keys: BTreeSet<Bytes>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    fn new(import: &'a Import) -> Self {
        Batch {
            import,
            changes: Vec::new(),
            keys: BTreeSet::new(),
            bytes: 0,
        }
    }

    fn has_room(&self, changes: &[Change]) -> bool {
        let bytes: usize = changes.iter().map(Change::size).sum();
        self.changes.len() + changes.len() <= self.import.max_ops
            && self.bytes + bytes <= TXN_BYTES
            && !changes.iter().any(|change| self.keys.contains(change.key()))
    }

    /// Writes first, if there is no room.
    async fn add(&mut self, change: Change) -> Result<(), Failed> {
        if !self.has_room(std::slice::from_ref(&change)) {
            self.write().await?;
        }
        self.bytes += change.size();
        self.keys.insert(change.key().clone());
        self.changes.push(change);
        Ok(())
    }

    async fn write(&mut self) -> Result<(), Failed> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let import = self.import;
        let mut success = Vec::new();
        for change in std::mem::take(&mut self.changes) {
            let request = match change {
                Change::Put(kv) => Request::RequestPut(PutRequest {
                    lease: import
                        .leases
                        .at_target(kv.lease, &import.source, &import.target)
                        .await?,
                    key: kv.key,
                    value: kv.value,
                    ..PutRequest::default()
                }),
                Change::Delete(key) => Request::RequestDeleteRange(DeleteRangeRequest {
                    key,
                    ..DeleteRangeRequest::default()
                }),
            };
            success.push(RequestOp {
                request: Some(request),
            });
        }
        self.keys.clear();
        self.bytes = 0;
        let count = success.len() as u64;
        let txn = TxnRequest {
            success,
            ..TxnRequest::default()
        };
        import.write(txn).await?;
        import.written.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catching_up_is_seen_once_and_ends_it_if_asked() {
        let mut at = Position {
            applied: 7,
            stop_at: None,
            caught_up: false,
            said: Instant::now(),
        };
        at.see(9, true);
        assert!(!at.caught_up && at.stop_at.is_none());
        at.applied = 9;
        at.see(9, true);
        assert_eq!((at.caught_up, at.stop_at), (true, Some(9)));
    }
}
