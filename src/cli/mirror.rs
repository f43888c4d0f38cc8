//! make-mirror: a copy of a range in another cluster, kept up to date.
//!
//! First the pairs, as of one revision, page by page; then every change since, by a watch that begins behind that
//! revision. What one revision changed goes over in one transaction, or in several if it is too large for one.
//!
//! A write to the destination whose fate is unknown is made again: the mirror alone writes there, in order, and to set
//! a pair twice, or to delete it twice, is to do it once.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};

use super::args::{bytes, flag, int, number, optional, prefix_range, text, value, word};
use super::ctl::{Context, login, tls};
use super::failed::Failed;
use super::output;
use crate::client::{Client, ClientError, Options};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};
use crate::pb::mvccpb::Event;
use crate::pb::mvccpb::event::EventType;
use crate::tls::Files;

/// Pairs that are read at a time.
const PAGE: i64 = 1000;
/// How often the number of writes is said.
const REPORT: Duration = Duration::from_secs(30);
/// Before a write is made again.
const RETRY: Duration = Duration::from_millis(500);

const HELP: &str = "\
Copies all pairs, or those below a prefix, to another cluster, and then every change as it happens. \
Prints every 30 seconds how many writes were made. Leases are not copied: a pair whose lease expires \
is deleted there as it is here.

Examples:
  pontoon make-mirror 10.0.0.9:2379
  pontoon make-mirror --prefix app/ --dest-prefix copy/app/ 10.0.0.9:2379";

/// The verb.
pub fn commands() -> Vec<Command> {
    let of_tls = |name: &'static str| -> Arg { value(name, "As for the source") };
    vec![
        Command::new("make-mirror")
            .about("Keep a copy in another cluster, up to date")
            .arg(word("destination", "A member of the other cluster").required(true))
            .arg(
                value("prefix", "Only keys that begin so")
                    .value_parser(clap::value_parser!(std::ffi::OsString)),
            )
            .arg(
                value("dest-prefix", "What they begin with over there, instead")
                    .value_parser(clap::value_parser!(std::ffi::OsString)),
            )
            .arg(flag("no-dest-prefix", "Over there they are without the prefix"))
            .arg(number(
                "rev",
                "Copy changes from this revision on, and no pairs first",
            ))
            .arg(number("max-txn-ops", "Most writes in one transaction [default: 128]").default_value("128"))
            .arg(value(
                "dest-user",
                "Name and password over there, as NAME:PASSWORD",
            ))
            .arg(value("dest-password", "The password over there"))
            .args(["dest-cacert", "dest-cert", "dest-key"].map(of_tls))
            .arg(
                optional(
                    "dest-insecure-transport",
                    "Taken for etcd's sake: the scheme decides",
                )
                .hide(true),
            )
            .after_help(HELP),
    ]
}

/// Where the pairs go, and under which names.
struct Destination {
    client: Client,
    prefix: Bytes,
    dest_prefix: Bytes,
    max_ops: usize,
    /// Writes made.
    written: AtomicU64,
}

/// Runs it: until it is stopped.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let destination = Destination::of(context, matches)?;
    let mirroring = async {
        let revision = match int(matches, "rev") {
            0 => destination.copy(context).await?,
            revision => revision - 1,
        };
        destination.follow(context, revision + 1).await
    };
    tokio::select! {
        outcome = mirroring => outcome,
        outcome = destination.report() => outcome,
    }
}

impl Destination {
    fn of(context: &Context, matches: &ArgMatches) -> Result<Destination, Failed> {
        let path = |name| PathBuf::from(text(matches, name));
        let files = Files {
            ca: path("dest-cacert"),
            cert: path("dest-cert"),
            key: path("dest-key"),
            ..Files::default()
        };
        let is_wanted = files != Files::default() || text(matches, "destination").contains("https://");
        let without = matches.get_flag("no-dest-prefix");
        let (prefix, given) = (bytes(matches, "prefix"), bytes(matches, "dest-prefix"));
        let dest_prefix = match (without, given.is_empty()) {
            (true, false) => {
                let reason =
                    "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one";
                return Err(Failed::arguments(reason));
            }
            (true, true) => Bytes::new(),
            (false, true) => prefix.clone(),
            (false, false) => given,
        };
        let options = Options {
            login: login(text(matches, "dest-user"), text(matches, "dest-password"))?,
            tls: tls(files, false, is_wanted)?,
            ..context.options.clone()
        };
        let endpoints: Vec<String> = text(matches, "destination")
            .split(',')
            .map(str::to_string)
            .collect();
        Ok(Destination {
            client: Client::with(&endpoints, options)?,
            prefix,
            dest_prefix,
            max_ops: usize::try_from(int(matches, "max-txn-ops")).unwrap_or(1).max(1),
            written: AtomicU64::new(0),
        })
    }

    fn name(&self, key: &[u8]) -> Bytes {
        [&self.dest_prefix, &key[self.prefix.len()..]].concat().into()
    }

    /// Copies the pairs as they are now; returns the revision of now.
    async fn copy(&self, context: &Context) -> Result<i64, Failed> {
        let (mut key, range_end) = prefix_range(self.prefix.clone());
        let mut revision = 0;
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE,
                revision,
                ..RangeRequest::default()
            };
            let response = context.client.range(request).await?;
            if revision == 0 {
                revision = response.header.as_ref().map_or(0, |header| header.revision);
            }
            let puts: Vec<Op> = response
                .kvs
                .iter()
                .map(|kv| Op::put(self.name(&kv.key), kv.value.clone()))
                .collect();
            self.write_all(puts).await?;
            match response.kvs.last() {
                Some(last) if response.more => key = [&last.key, &b"\0"[..]].concat().into(),
                _ => return Ok(revision),
            }
        }
    }

    /// Copies every change from a revision on.
    async fn follow(&self, context: &Context, from: i64) -> Result<ExitCode, Failed> {
        let (key, range_end) = prefix_range(self.prefix.clone());
        let request = WatchCreateRequest {
            key,
            range_end,
            start_revision: from,
            // So that a mirror of an idle range can still go on after a compaction.
            progress_notify: true,
            ..WatchCreateRequest::default()
        };
        let mut watcher = context.client.watch(request).await?;
        loop {
            let response = watcher.next().await?;
            let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            for events in response.events.chunk_by(|a, b| revision(a) == revision(b)) {
                self.write_all(events.iter().map(|event| self.op(event)).collect())
                    .await?;
            }
        }
    }

    fn op(&self, event: &Event) -> Op {
        let kv = event.kv.clone().unwrap_or_default();
        let key = self.name(&kv.key);
        match event.r#type() {
            EventType::Put => Op::put(key, kv.value),
            EventType::Delete => Op::delete(key),
        }
    }

    /// In as few transactions as the limit, and the rule that a transaction names a key once, allow.
    async fn write_all(&self, ops: Vec<Op>) -> Result<(), Failed> {
        for batch in batches(ops, self.max_ops) {
            let count = batch.len();
            let success = batch.into_iter().map(|op| op.request).collect();
            let txn = TxnRequest {
                success,
                ..TxnRequest::default()
            };
            self.write(txn).await?;
            self.written.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn write(&self, txn: TxnRequest) -> Result<(), Failed> {
        loop {
            match self.client.txn(txn.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if may_recover(&error) => {
                    output::say(format!("not written yet: {error}"));
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn report(&self) -> Result<ExitCode, Failed> {
        loop {
            tokio::time::sleep(REPORT).await;
            output::line(self.written.load(Ordering::Relaxed).to_string())?;
        }
    }
}

/// A write, and what it writes.
struct Op {
    key: Bytes,
    request: RequestOp,
}

impl Op {
    fn put(key: Bytes, value: Bytes) -> Op {
        let put = PutRequest {
            key: key.clone(),
            value,
            ..PutRequest::default()
        };
        Op::of(key, Request::RequestPut(put))
    }

    fn delete(key: Bytes) -> Op {
        let delete = DeleteRangeRequest {
            key: key.clone(),
            ..DeleteRangeRequest::default()
        };
        Op::of(key, Request::RequestDeleteRange(delete))
    }

    fn of(key: Bytes, request: Request) -> Op {
        let request = RequestOp {
            request: Some(request),
        };
        Op { key, request }
    }
}

fn batches(ops: Vec<Op>, max_ops: usize) -> Vec<Vec<Op>> {
    let (mut batches, mut keys) = (vec![Vec::new()], BTreeSet::new());
    for op in ops {
        let full = batches.last().is_none_or(|batch| batch.len() == max_ops);
        if full || !keys.insert(op.key.clone()) {
            keys = BTreeSet::from([op.key.clone()]);
            batches.push(Vec::new());
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(op);
        }
    }
    batches.retain(|batch| !batch.is_empty());
    batches
}

/// Whether what failed may succeed later, if it is done again.
pub fn may_recover(error: &ClientError) -> bool {
    use tonic::Code::{Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown};
    match error.code() {
        Some(ResourceExhausted) => error.to_string().contains("too many requests"),
        Some(code) => matches!(
            code,
            Unavailable | DeadlineExceeded | Unknown | Internal | Cancelled
        ),
        None => matches!(error, ClientError::Unreachable { .. }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_neither_too_large_nor_ambiguous() {
        let sizes = |keys: &[&'static str]| {
            let ops = keys
                .iter()
                .map(|key| Op::delete(Bytes::from_static(key.as_bytes())));
            let batches = batches(ops.collect(), 3);
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&["a", "b", "c", "d"]), [3, 1]);
        assert_eq!(sizes(&["a", "b", "a", "b"]), [2, 2]);
    }
}
