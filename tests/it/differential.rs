//! The same random requests to two stores give the same answers, field by field.
//!
//! Three stores take part: a member of ours, a real etcd, and the sequential model. Ours is compared with etcd where
//! one is installed, and with the model everywhere; the model is compared with etcd, which is what lets the other
//! tests trust it. Cluster id, member id and term are left out. `PONTOON_SEED` and `PONTOON_REQUESTS` replace seed and
//! length; a difference prints the seed, the request and both answers.
//!
//! Left out on purpose, because etcd itself is wrong or its versions differ: see [`excluded`].

use std::collections::BTreeMap;

use futures::future::join_all;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::{RequestOp, TxnRequest};

use crate::support::cluster::Cluster;
use crate::support::etcd::Etcd;
use crate::support::from_env;
use crate::support::generate::{Generator, Near};
use crate::support::model::Model;
use crate::support::rpc::{Answer, Client, Request, is_read_only};
use crate::support::ties::settle;

/// How many requests a run makes by default.
const REQUESTS: u64 = 20_000;

/// Why a request is not sent, if it isn't.
///
/// | excluded | because |
/// |---|---|
/// | a txn with a delete up to `\0` and a put with `ignore_value` or `ignore_lease` | etcd takes the `\0` literally when it looks for duplicate keys, applies the delete, and the put panics on every member, again at each restart; ours answers "key not found" |
/// | sort targets and orders that don't exist | 3.5.1 crashes on such a target; later versions answer "invalid sort option", and so do we. The generator makes none |
/// | messages above the transport's limit | the text is the gRPC library's. The generator makes none |
pub fn excluded(request: &Request) -> Option<&'static str> {
    let Request::Txn(txn) = request else { return None };
    let mut found = (false, false);
    visit(txn, &mut |op| match op {
        Op::RequestDeleteRange(delete) => found.0 |= delete.range_end[..] == [0],
        Op::RequestPut(put) => found.1 |= put.ignore_value || put.ignore_lease,
        _ => {}
    });
    (found == (true, true)).then_some("a delete up to \\0 with an ignoring put")
}

/// Every operation of both branches, also nested ones.
fn visit(txn: &TxnRequest, see: &mut dyn FnMut(&Op)) {
    for RequestOp { request } in txn.success.iter().chain(&txn.failure) {
        match request {
            Some(Op::RequestTxn(nested)) => visit(nested, see),
            Some(plain) => see(plain),
            None => {}
        }
    }
}

/// Something that answers.
enum Store {
    Model(Box<Model>),
    Server(Client),
}

impl Store {
    async fn answer(&mut self, request: &Request) -> Answer {
        match self {
            Store::Model(model) => model.answer(request),
            Store::Server(client) => client.ask(request.clone()).await,
        }
    }
}

/// How often each kind of request had each kind of answer.
#[derive(Default)]
struct Coverage(BTreeMap<(&'static str, String), usize>);

/// What a run must have met, or it says little. With an error's text: at least once refused so.
const MUST_MEET: [(&str, &str); 30] = [
    ("range", "ok"),
    ("range", "etcdserver: key is not provided"),
    ("range", "etcdserver: mvcc: required revision has been compacted"),
    (
        "range",
        "etcdserver: mvcc: required revision is a future revision",
    ),
    ("put", "ok"),
    ("put", "etcdserver: key is not provided"),
    ("put", "etcdserver: value is provided"),
    ("put", "etcdserver: lease is provided"),
    ("put", "etcdserver: key not found"),
    ("put", "etcdserver: requested lease not found"),
    ("put", "etcdserver: request is too large"),
    ("delete", "ok"),
    ("delete", "etcdserver: key is not provided"),
    ("compact", "ok"),
    (
        "compact",
        "etcdserver: mvcc: required revision has been compacted",
    ),
    (
        "compact",
        "etcdserver: mvcc: required revision is a future revision",
    ),
    ("read txn", "ok"),
    ("read txn", "etcdserver: key is not provided"),
    (
        "read txn",
        "etcdserver: mvcc: required revision has been compacted",
    ),
    (
        "read txn",
        "etcdserver: mvcc: required revision is a future revision",
    ),
    ("read txn", "etcdserver: too many operations in txn request"),
    ("txn", "ok"),
    ("txn", "etcdserver: key is not provided"),
    ("txn", "etcdserver: key not found"),
    ("txn", "etcdserver: value is provided"),
    ("txn", "etcdserver: lease is provided"),
    ("txn", "etcdserver: requested lease not found"),
    ("txn", "etcdserver: duplicate key given in txn request"),
    ("txn", "etcdserver: mvcc: required revision has been compacted"),
    ("txn", "etcdserver: mvcc: required revision is a future revision"),
];

impl Coverage {
    fn count(&mut self, request: &Request, answer: &Answer) {
        let kind = match request {
            Request::Range(_) => "range",
            Request::Put(_) => "put",
            Request::Delete(_) => "delete",
            Request::Txn(txn) if is_read_only(txn) => "read txn",
            Request::Txn(_) => "txn",
            Request::Compact(_) => "compact",
        };
        let outcome = answer
            .as_ref()
            .map_or_else(|refusal| refusal.text.clone(), |_| "ok".to_string());
        *self.0.entry((kind, outcome)).or_default() += 1;
    }

    /// Prints the counts; panics if something was never met.
    fn check(&self) {
        for ((kind, outcome), count) in &self.0 {
            println!("{count:>8}  {kind}: {outcome}");
        }
        for (kind, outcome) in MUST_MEET {
            let met = self.0.contains_key(&(kind, outcome.to_string()));
            assert!(
                met,
                "no {kind} was answered {outcome:?}: the requests are not varied enough"
            );
        }
    }
}

/// Sends the same requests to every store; panics at the first difference.
async fn compare(mut stores: Vec<(String, Store)>) {
    let seed = from_env("PONTOON_SEED", 1);
    let requests = from_env("PONTOON_REQUESTS", REQUESTS);
    let mut generator = Generator::new(seed);
    // Runs along only to know which revisions are interesting.
    let mut guide = Model::default();
    let mut coverage = Coverage::default();
    let mut sent = 0;
    while sent < requests {
        let request = generator.request(Near {
            revision: guide.revision(),
            compacted: guide.compacted(),
        });
        if excluded(&request).is_some() {
            continue;
        }
        let answers = join_all(stores.iter_mut().map(|(_, store)| store.answer(&request))).await;
        let answers: Vec<Answer> = answers
            .into_iter()
            .map(|answer| settle(&request, answer))
            .collect();
        if answers.iter().any(|answer| *answer != answers[0]) {
            let said = |((name, _), answer): (&(String, Store), &Answer)| format!("{name}: {answer:?}\n");
            let all: String = stores.iter().zip(&answers).map(said).collect();
            panic!("seed {seed}, request {sent}: {request:?}\n{all}");
        }
        let _ = guide.answer(&request);
        coverage.count(&request, &answers[0]);
        sent += 1;
    }
    let names: Vec<&str> = stores.iter().map(|(name, _)| name.as_str()).collect();
    println!(
        "{} gave the same answers to {sent} requests (seed {seed})",
        names.join(" and ")
    );
    coverage.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_answers_as_the_model_and_etcd_do() {
    let cluster = Cluster::start(1).await;
    let mut stores = vec![
        ("the model".to_string(), Store::Model(Box::default())),
        ("a member".to_string(), Store::Server(cluster.client(0))),
    ];
    // Kept to the end: it ends when dropped.
    let etcd = start_etcd().await;
    if let Some(etcd) = &etcd {
        stores.push((format!("etcd {}", etcd.version), Store::Server(etcd.client())));
    }
    compare(stores).await;
}

async fn start_etcd() -> Option<Etcd> {
    let Some(binary) = Etcd::find() else {
        println!("no etcd on this machine: compared with the model alone");
        return None;
    };
    Some(Etcd::start(&binary).await)
}
