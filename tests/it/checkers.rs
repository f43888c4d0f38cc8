//! The checkers, checked: hand-made histories, good ones that must pass and bad ones that must not.
//!
//! A history is a script. First what the store went through, one change a revision beginning with 2: `a=1`, `-a`, or
//! several joined by commas. Then the operations, each with its start and end:
//!
//! ```text
//! 0..10  put a 1 -> 2          acknowledged at revision 2
//! 0..10  put a 1 ?             outcome unknown          (`!`: certainly not executed)
//! 0..10  get a -> 1 @2         found 1 at revision 2    (`-`: nothing)     (sget: serializable)
//! 0..10  all -> a=1,b=2 @3     every pair               (`-`: none)
//! 0..10  del a -> 1 @3         deleted one key
//! 0..10  cas a 1 2 -> ok @3    put 2 if a was 1         (`-> 7 @3`: a was 7)
//! 0..10  both a b 1 -> 3       put 1 to a and b in one transaction
//! ```

use pontoon::pb::etcdserverpb::DeleteRangeRequest;
use pontoon::pb::etcdserverpb::compare::TargetUnion;
use pontoon::pb::mvccpb::KeyValue;

use crate::support::history::{Operation, Outcome, Past};
use crate::support::model::Model;
use crate::support::rpc::{Request, Response, put_request};
use crate::support::workload::{both, compare_and_swap, delete, get, get_all};
use crate::support::{linearize, order};

/// What a checker should say.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Good,
    Bad,
}
use Verdict::{Bad, Good};

/// Name, what checker A should say, what checker B should say, changes, operations.
type Case = (&'static str, Verdict, Verdict, &'static str, &'static str);

const CASES: &[Case] = &[
    ("nothing at all", Good, Good, "", ""),
    (
        "one put, one get",
        Good,
        Good,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 get a -> 1 @2",
    ),
    ("a get of nothing", Good, Good, "", "0..1 get a -> - @1"),
    (
        "a get during the put finds the old value",
        Good,
        Good,
        "a=1 a=2",
        "0..1 put a 1 -> 2 \n 2..9 put a 2 -> 3 \n 3..4 get a -> 1 @2",
    ),
    (
        "a get during the put finds the new value",
        Good,
        Good,
        "a=1 a=2",
        "0..1 put a 1 -> 2 \n 2..9 put a 2 -> 3 \n 3..4 get a -> 2 @3",
    ),
    (
        "two puts at once, in either order",
        Good,
        Good,
        "a=2 a=1",
        "0..9 put a 1 -> 3 \n 0..9 put a 2 -> 2 \n 10..11 get a -> 1 @3",
    ),
    (
        "an unknown put that was executed",
        Good,
        Good,
        "a=1",
        "0..1 put a 1 ? \n 2..3 get a -> 1 @2",
    ),
    (
        "an unknown put that was not",
        Good,
        Good,
        "",
        "0..1 put a 1 ? \n 2..3 get a -> - @1",
    ),
    (
        "an unknown put that was executed late",
        Good,
        Good,
        "a=2 a=1",
        "0..1 put a 1 ? \n 2..3 put a 2 -> 2 \n 4..5 get a -> 2 @2 \n 6..7 get a -> 1 @3",
    ),
    (
        "an unknown put that nobody saw",
        Good,
        Good,
        "a=1 a=2",
        "0..1 put a 1 ? \n 2..3 put a 2 -> 3 \n 4..5 get a -> 2 @3",
    ),
    (
        "an unknown delete that was executed",
        Good,
        Good,
        "a=1 -a",
        "0..1 put a 1 -> 2 \n 2..3 del a ? \n 4..5 get a -> - @3",
    ),
    (
        "two unknown deletes, the later one executed twice as likely",
        Good,
        Good,
        "a=1 -a a=2 -a",
        "0..1 put a 1 -> 2 \n 2..3 del a ? \n 4..5 put a 2 -> 4 \n 6..7 del a ? \n 8..9 get a -> - @5",
    ),
    (
        "a refused put",
        Good,
        Good,
        "",
        "0..1 put a 1 ! \n 2..3 get a -> - @1",
    ),
    ("a delete of nothing", Good, Good, "", "0..1 del a -> 0 @1"),
    (
        "a delete, a put, a delete",
        Good,
        Good,
        "a=1 -a a=2 -a",
        "0..1 put a 1 -> 2 \n 2..3 del a -> 1 @3 \n 4..5 put a 2 -> 4 \n 6..7 del a -> 1 @5",
    ),
    (
        "a swap that holds and one that fails",
        Good,
        Good,
        "a=1 a=2",
        "0..1 put a 1 -> 2 \n 2..3 cas a 1 2 -> ok @3 \n 4..5 cas a 1 3 -> 2 @3",
    ),
    (
        "an unknown swap that was executed",
        Good,
        Good,
        "a=1 a=2",
        "0..1 put a 1 -> 2 \n 2..3 cas a 1 2 ? \n 4..5 get a -> 2 @3",
    ),
    (
        "a transaction on two keys",
        Good,
        Good,
        "a=1,b=1",
        "0..1 both a b 1 -> 2 \n 2..3 all -> a=1,b=1 @2",
    ),
    (
        "a serializable read may be stale",
        Good,
        Good,
        "a=1 a=2",
        "0..1 put a 1 -> 2 \n 2..3 put a 2 -> 3 \n 4..5 sget a -> 1 @2",
    ),
    (
        "reads at one revision in any order",
        Good,
        Good,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..9 get a -> 1 @2 \n 3..4 get a -> 1 @2 \n 5..6 all -> a=1 @2",
    ),
    (
        "a stale read",
        Bad,
        Bad,
        "a=1 a=2",
        "0..1 put a 1 -> 2 \n 2..3 put a 2 -> 3 \n 4..5 get a -> 1 @2",
    ),
    (
        "a stale read that claims a new revision",
        Bad,
        Bad,
        "a=1 a=2",
        "0..1 put a 1 -> 2 \n 2..3 put a 2 -> 3 \n 4..5 get a -> 1 @3",
    ),
    (
        "a right value with an old revision",
        Bad,
        Good,
        "a=1 b=1",
        "0..1 put a 1 -> 2 \n 2..3 put b 1 -> 3 \n 4..5 get a -> 1 @2",
    ),
    (
        "a read of the future",
        Bad,
        Bad,
        "a=1 a=2",
        "0..1 put a 1 -> 2 \n 2..3 get a -> 2 @3 \n 4..5 put a 2 -> 3",
    ),
    (
        "two reads, the second one older",
        Bad,
        Bad,
        "a=1 a=2",
        "0..1 put a 1 -> 2 \n 2..20 put a 2 -> 3 \n 4..5 get a -> 2 @3 \n 6..7 get a -> 1 @2",
    ),
    (
        "an acknowledged put that is gone",
        Bad,
        Bad,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 put a 2 -> 3 \n 4..5 get a -> 1 @2",
    ),
    (
        "an acknowledged last put that is gone, and nobody looked",
        Bad,
        Good,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 put a 2 -> 3",
    ),
    (
        "two acknowledged puts at one revision",
        Bad,
        Good,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 put a 2 -> 2",
    ),
    (
        "a lost update: two swaps from one value",
        Bad,
        Bad,
        "a=1 a=2 a=3",
        "0..1 put a 1 -> 2 \n 2..3 cas a 1 2 -> ok @3 \n 2..3 cas a 1 3 -> ok @4",
    ),
    (
        "a swap that failed though it held",
        Bad,
        Bad,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 cas a 1 2 -> 1 @2",
    ),
    (
        "a phantom: a value that nobody wrote",
        Bad,
        Bad,
        "a=7",
        "0..1 get a -> 7 @2",
    ),
    (
        "a revision that nobody wrote",
        Bad,
        Good,
        "a=1 b=1 a=2",
        "0..1 put a 1 -> 2 \n 2..3 put a 2 -> 4",
    ),
    ("a put executed twice", Bad, Good, "a=1 a=1", "0..1 put a 1 -> 2"),
    (
        "an unknown put executed twice",
        Bad,
        Good,
        "a=1 a=1",
        "0..1 put a 1 ?",
    ),
    (
        "a refused put that was executed",
        Bad,
        Bad,
        "a=1",
        "0..1 put a 1 ! \n 2..3 get a -> 1 @2",
    ),
    (
        "a revision going back",
        Bad,
        Good,
        "a=1 b=2",
        "0..1 put b 2 -> 3 \n 2..3 put a 1 -> 2",
    ),
    (
        "a write overtaken by a later one",
        Bad,
        Bad,
        "a=2 a=1",
        "0..1 put a 1 -> 3 \n 2..3 put a 2 -> 2 \n 4..5 get a -> 1 @3",
    ),
    (
        "an unknown put executed before it began",
        Bad,
        Bad,
        "a=1",
        "0..1 get a -> 1 @2 \n 2..3 put a 1 ?",
    ),
    (
        "a delete that found nothing though there was something",
        Bad,
        Bad,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 del a -> 0 @2",
    ),
    (
        "a delete that found something though there was nothing",
        Bad,
        Bad,
        "",
        "0..1 del a -> 1 @1",
    ),
    (
        "a deleted key that comes back",
        Bad,
        Bad,
        "a=1 -a",
        "0..1 put a 1 -> 2 \n 2..3 del a -> 1 @3 \n 4..5 get a -> 1 @3",
    ),
    (
        "an acknowledged delete that was undone",
        Bad,
        Bad,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 del a -> 1 @3 \n 4..5 get a -> 1 @2",
    ),
    (
        "half a transaction",
        Bad,
        Bad,
        "a=1",
        "0..1 both a b 1 -> 2 \n 2..3 all -> a=1 @2",
    ),
    (
        "a range torn between two transactions",
        Bad,
        Good,
        "a=1,b=1 a=2,b=2",
        "0..1 both a b 1 -> 2 \n 2..9 both a b 2 -> 3 \n 3..4 all -> a=2,b=1 @3",
    ),
    (
        "a range that misses a key",
        Bad,
        Bad,
        "a=1 b=1",
        "0..1 put a 1 -> 2 \n 2..3 put b 1 -> 3 \n 4..5 all -> a=1 @3",
    ),
    (
        "an answer from beyond the store",
        Bad,
        Good,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 get a -> 1 @9",
    ),
    (
        "an answer without a revision",
        Bad,
        Good,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 get a -> 1 @0",
    ),
    (
        "a serializable read of a value that never was",
        Bad,
        Good,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 sget a -> 9 @2",
    ),
    (
        "a long fork: two reads see two writes in opposite orders",
        Bad,
        Good,
        "a=1 b=1",
        "0..9 put a 1 -> 2 \n 0..9 put b 1 -> 3 \n 4..9 all -> a=1 @2 \n 4..9 all -> b=1 @3",
    ),
    (
        "a value with the wrong version",
        Bad,
        Good,
        "a=1",
        "0..1 put a 1 -> 2 \n 2..3 get a -> 1~ @2",
    ),
];

#[test]
fn each_history_gets_its_verdict() {
    let mut wrong = Vec::new();
    for (name, expect_order, expect_registers, changes, script) in CASES {
        let past = read_changes(changes);
        let operations: Vec<Operation> = script.lines().map(|line| read_operation(line, &past)).collect();
        let order = order::check(&operations, &past);
        // Without places only acknowledged operations count for checker B.
        let places = order.clone().unwrap_or_else(|_| vec![None; operations.len()]);
        let registers = linearize::check(&operations, &places);
        if verdict(&order) != *expect_order {
            wrong.push(format!("{name}: checker A says {order:?}"));
        }
        if verdict(&registers) != *expect_registers {
            wrong.push(format!("{name}: checker B says {registers:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn verdict<T, E>(result: &Result<T, E>) -> Verdict {
    if result.is_ok() { Good } else { Bad }
}

fn read_changes(changes: &str) -> Past {
    let mut model = Model::default();
    let mut states = vec![Vec::new()];
    for change in changes.split_whitespace() {
        let revision = model.revision();
        for part in change.split(',') {
            // All parts of one change have one revision, as the keys differ.
            model.set_revision(revision);
            let request = match part.split_once('=') {
                Some((key, value)) => Request::Put(put_request(key.as_bytes(), value.as_bytes())),
                None => delete(&part[1..]),
            };
            model.answer(&request).expect("a change is a valid request");
        }
        states.push(model.pairs());
    }
    Past::new(states)
}

fn read_operation(line: &str, past: &Past) -> Operation {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (start, end) = words[0].split_once("..").expect("start..end");
    let (start, mut end) = (start.parse().expect("a time"), end.parse().expect("a time"));
    let (request, said) = read_request(&words[1..]);
    let outcome = match said {
        ["?"] => Outcome::Unknown,
        ["!"] => Outcome::Refused,
        ["->", answer @ ..] => Outcome::Answered(read_answer(&request, answer, past)),
        other => panic!("not an outcome: {other:?}"),
    };
    if outcome == Outcome::Unknown {
        end = u64::MAX;
    }
    Operation {
        start,
        end,
        request,
        outcome,
    }
}

fn read_request<'a>(words: &'a [&'a str]) -> (Request, &'a [&'a str]) {
    match words {
        ["put", key, value, rest @ ..] => (Request::Put(put_request(key.as_bytes(), value.as_bytes())), rest),
        ["get", key, rest @ ..] => (get(key, false), rest),
        ["sget", key, rest @ ..] => (get(key, true), rest),
        ["all", rest @ ..] => (get_all(), rest),
        ["del", key, rest @ ..] => (delete(key), rest),
        ["cas", key, old, new, rest @ ..] => (compare_and_swap(key, old.as_bytes(), new), rest),
        ["both", first, second, value, rest @ ..] => (both(first, second, value), rest),
        other => panic!("not an operation: {other:?}"),
    }
}

/// The answer as a server would send it, with what the script says found or done.
fn read_answer(request: &Request, words: &[&str], past: &Past) -> Response {
    let revision: i64 = words
        .last()
        .and_then(|word| word.trim_start_matches('@').parse().ok())
        .expect("a revision");
    // The answer's shape comes from the model, on a store in which the operation has the outcome that is said.
    let mut model = Model::default();
    for (key, value) in made_up_pairs(request, words[0]) {
        model
            .answer(&Request::Put(put_request(key.as_bytes(), value.as_bytes())))
            .expect("a valid put");
    }
    let mut response = model
        .answer(&said_branch(request, words[0]))
        .expect("a valid request");
    response.set_revisions(revision);
    response.for_each_pair(&mut |kv| *kv = known_pair(kv, revision, past));
    response
}

/// A swap that is said to have failed is made to fail.
fn said_branch(request: &Request, said: &str) -> Request {
    let mut request = request.clone();
    if let Request::Txn(txn) = &mut request
        && said != "ok"
    {
        txn.compare
            .iter_mut()
            .for_each(|compare| compare.target_union = Some(TargetUnion::Value("\0".into())));
    }
    request
}

fn made_up_pairs(request: &Request, said: &str) -> Vec<(String, String)> {
    let pair = |key: &[u8], value: &str| (String::from_utf8_lossy(key).into_owned(), value.to_string());
    match (request, said) {
        (_, "-" | "0") => Vec::new(),
        (Request::Range(range), value) if range.range_end.is_empty() => vec![pair(&range.key, value)],
        (Request::Range(_), pairs) => {
            let split = pairs
                .split(',')
                .map(|text| text.split_once('=').expect("key=value"));
            split.map(|(key, value)| pair(key.as_bytes(), value)).collect()
        }
        (Request::Delete(DeleteRangeRequest { key, .. }), _) => vec![pair(key, "something")],
        (Request::Txn(txn), said) if !txn.compare.is_empty() => {
            let (key, old) = crate::support::workload::swapped(txn);
            vec![pair(key, if said == "ok" { old } else { said })]
        }
        _ => Vec::new(),
    }
}

/// The pair as the store had it, if it had this value; `~` stands for a wrong version.
fn known_pair(kv: &KeyValue, revision: i64, past: &Past) -> KeyValue {
    let text = String::from_utf8_lossy(&kv.value).into_owned();
    let value = text.trim_end_matches('~').as_bytes().to_vec();
    let revision = revision.clamp(1, past.last());
    let found = past
        .at(revision)
        .iter()
        .find(|other| other.key == kv.key && other.value == value);
    let mut known = found.cloned().unwrap_or_else(|| kv.clone());
    known.version += i64::from(text.ends_with('~'));
    known
}
