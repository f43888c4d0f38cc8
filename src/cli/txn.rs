//! Reading a transaction as etcdctl writes it: compares, then the ops of success, then those of failure, each part
//! ended by an empty line.
//!
//! ```text
//! value("key") = "bar"          version create mod value lease, with = > < !=
//!
//! put key "new value"           get, put and del as on the command line
//!
//! get key
//! ```

use bytes::Bytes;

use super::ctl::{Failed, prefix_end};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

/// Reads a transaction; asks for its parts if somebody is there to be asked.
pub fn read(mut lines: impl Iterator<Item = String>, asks: bool) -> Result<TxnRequest, Failed> {
    let mut part = |question: &str| -> Vec<String> {
        if asks {
            eprintln!("{question}:");
        }
        lines
            .by_ref()
            .take_while(|line| !line.trim().is_empty())
            .collect()
    };
    let compare = part("compares")
        .iter()
        .map(|line| parse_compare(line))
        .collect::<Result<_, _>>()?;
    let success = part("success requests (get, put, del)")
        .iter()
        .map(|line| parse_op(line))
        .collect::<Result<_, _>>()?;
    let failure = part("failure requests (get, put, del)")
        .iter()
        .map(|line| parse_op(line))
        .collect::<Result<_, _>>()?;
    Ok(TxnRequest {
        compare,
        success,
        failure,
    })
}

fn bad(what: &str, line: &str) -> Failed {
    Failed::input(format!("malformed {what}: {line:?}"))
}

/// `target("key") op "operand"`.
fn parse_compare(line: &str) -> Result<Compare, Failed> {
    let malformed = || bad("comparison", line);
    let (target, rest) = line.trim().split_once('(').ok_or_else(malformed)?;
    let (key, rest) = rest.rsplit_once(')').ok_or_else(malformed)?;
    let rest = rest.trim();
    let (result, operand) = [
        ("!=", CompareResult::NotEqual),
        ("=", CompareResult::Equal),
        (">", CompareResult::Greater),
        ("<", CompareResult::Less),
    ]
    .iter()
    .find_map(|(sign, result)| Some((*result, rest.strip_prefix(sign)?.trim())))
    .ok_or_else(malformed)?;
    let operand = words(operand).into_iter().next().ok_or_else(malformed)?;
    let number = || operand.parse::<i64>().map_err(|_| malformed());
    let (target, union) = match target.trim() {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "val" | "value" => (
            CompareTarget::Value,
            TargetUnion::Value(Bytes::from(operand.clone())),
        ),
        "lease" => {
            let lease = i64::from_str_radix(&operand, 16).map_err(|_| malformed())?;
            (CompareTarget::Lease, TargetUnion::Lease(lease))
        }
        _ => return Err(malformed()),
    };
    let key = words(key).into_iter().next().ok_or_else(malformed)?;
    Ok(Compare {
        result: result as i32,
        target: target as i32,
        key: key.into(),
        range_end: Bytes::new(),
        target_union: Some(union),
    })
}

fn parse_op(line: &str) -> Result<RequestOp, Failed> {
    let malformed = || bad("request", line);
    let mut words = words(line).into_iter();
    let verb = words.next().ok_or_else(malformed)?;
    let (flags, plain): (Vec<String>, Vec<String>) = words.partition(|word| word.starts_with("--"));
    let has = |flag: &str| flags.iter().any(|given| given == flag);
    let unknown = flags
        .iter()
        .any(|flag| !["--prefix", "--from-key", "--prev-kv", "--keys-only"].contains(&flag.as_str()));
    let (1..=2, false) = (plain.len(), unknown) else {
        return Err(malformed());
    };
    let key = Bytes::from(plain[0].clone());
    let second = plain.get(1).cloned().map(Bytes::from);
    let range_end = match (has("--prefix"), has("--from-key")) {
        (true, _) => prefix_end(&key),
        (_, true) => Bytes::from_static(b"\0"),
        _ => second.clone().unwrap_or_default(),
    };
    let prev_kv = has("--prev-kv");
    let request = match verb.as_str() {
        "put" => {
            let value = second.ok_or_else(malformed)?;
            Request::RequestPut(PutRequest {
                key,
                value,
                prev_kv,
                ..PutRequest::default()
            })
        }
        "get" => Request::RequestRange(RangeRequest {
            key,
            range_end,
            keys_only: has("--keys-only"),
            ..RangeRequest::default()
        }),
        "del" => Request::RequestDeleteRange(DeleteRangeRequest {
            key,
            range_end,
            prev_kv,
        }),
        _ => return Err(malformed()),
    };
    Ok(RequestOp {
        request: Some(request),
    })
}

/// Words as a shell splits them: quotes keep spaces, a backslash keeps what follows.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut started) = (Vec::new(), String::new(), None, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => {
                word.extend(chars.next());
                started = true;
            }
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                started = true;
            }
            (c, None) if c.is_whitespace() => {
                if std::mem::take(&mut started) {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, _) => {
                word.push(c);
                started = true;
            }
        }
    }
    if started {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_read_as_etcdctl_writes_it() {
        let text = "value(\"k\") = \"a b\"\nmod(\"k\") > \"3\"\n\nput k \"c d\"\nget --prefix k\n\ndel k\n";
        let txn = read(text.lines().map(str::to_string), false)
            .ok()
            .expect("well formed");
        assert_eq!(
            (txn.compare.len(), txn.success.len(), txn.failure.len()),
            (2, 2, 1)
        );
        assert_eq!(
            txn.compare[0].target_union,
            Some(TargetUnion::Value(Bytes::from_static(b"a b")))
        );
        assert_eq!(txn.compare[1].target_union, Some(TargetUnion::ModRevision(3)));
        let Some(Request::RequestPut(put)) = &txn.success[0].request else {
            panic!("not a put")
        };
        assert_eq!(put.value, &b"c d"[..]);
        let Some(Request::RequestRange(get)) = &txn.success[1].request else {
            panic!("not a get")
        };
        assert_eq!((&get.key[..], &get.range_end[..]), (&b"k"[..], &b"l"[..]));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for line in [
            "value(k = 1",
            "size(\"k\") = \"1\"",
            "mod(\"k\") = \"x\"",
            "mod(\"k\") ~ \"1\"",
        ] {
            assert!(parse_compare(line).is_err(), "{line}");
        }
        for line in ["put k", "fetch k", "get", "get k l m", "get --all k"] {
            assert!(parse_op(line).is_err(), "{line}");
        }
    }

    #[test]
    fn quotes_keep_words_together() {
        assert_eq!(
            words(r#"put "a b" 'c "d' e\ f "" "#),
            ["put", "a b", "c \"d", "e f", ""]
        );
    }
}
