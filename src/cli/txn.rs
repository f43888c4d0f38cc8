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

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use bytes::Bytes;

use super::args::lease_id;
use super::failed::Failed;
use super::{kv, output, words};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{Compare, RequestOp, TxnRequest};

/// Reads a transaction; asks for its parts if somebody is there to be asked.
pub fn read(mut lines: impl Iterator<Item = Vec<u8>>, asks: bool) -> Result<TxnRequest, Failed> {
    let mut part = |question: &str| -> Result<Vec<Vec<u8>>, Failed> {
        if asks {
            output::line(format!("{question}:"))?;
        }
        let mut part = Vec::new();
        loop {
            match lines.next() {
                Some(line) if line.trim_ascii().is_empty() => return Ok(part),
                Some(line) => part.push(line),
                // Cut off, perhaps: to do what has arrived would be to guess.
                None => {
                    return Err(Failed::input(
                        "EOF: each of the three parts ends with an empty line",
                    ));
                }
            }
        }
    };
    let compares = part("compares")?;
    let compare = compares
        .iter()
        .map(|line| parse_compare(line))
        .collect::<Result<_, _>>()?;
    let ops = part("success requests (get, put, del)")?;
    let success = ops.iter().map(|line| parse_op(line)).collect::<Result<_, _>>()?;
    let ops = part("failure requests (get, put, del)")?;
    let failure = ops.iter().map(|line| parse_op(line)).collect::<Result<_, _>>()?;
    Ok(TxnRequest {
        compare,
        success,
        failure,
    })
}

fn bad(what: &str, line: &[u8]) -> Failed {
    Failed::input(format!("malformed {what}: {}", String::from_utf8_lossy(line)))
}

/// `target("key") op "operand"`.
fn parse_compare(line: &[u8]) -> Result<Compare, Failed> {
    let malformed = || bad("comparison", line);
    let text = line.trim_ascii();
    let open = text.iter().position(|byte| *byte == b'(').ok_or_else(malformed)?;
    let (target, rest) = (&text[..open], &text[open + 1..]);
    let (key, rest) = words::first(rest, b")").ok_or_else(malformed)?;
    let rest = rest.trim_ascii_start().strip_prefix(b")").ok_or_else(malformed)?;
    let (result, operand) = comparison(rest.trim_ascii_start()).ok_or_else(malformed)?;
    let (operand, rest) = words::first(operand, b"").ok_or_else(malformed)?;
    if !rest.trim_ascii().is_empty() {
        return Err(malformed());
    }
    let operand_text = || std::str::from_utf8(&operand).map_err(|_| malformed());
    let number = || operand_text()?.parse::<i64>().map_err(|_| malformed());
    let (target, union) = match target.trim_ascii() {
        b"ver" | b"version" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        b"c" | b"create" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        b"m" | b"mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        b"val" | b"value" => (CompareTarget::Value, TargetUnion::Value(Bytes::from(operand))),
        b"lease" => {
            let lease = lease_id(operand_text()?).map_err(|_| malformed())?;
            (CompareTarget::Lease, TargetUnion::Lease(lease))
        }
        _ => return Err(malformed()),
    };
    Ok(Compare {
        result: result as i32,
        target: target as i32,
        key: key.into(),
        range_end: Bytes::new(),
        target_union: Some(union),
    })
}

fn comparison(rest: &[u8]) -> Option<(CompareResult, &[u8])> {
    let signs: [(&[u8], CompareResult); 4] = [
        (b"!=", CompareResult::NotEqual),
        (b"=", CompareResult::Equal),
        (b">", CompareResult::Greater),
        (b"<", CompareResult::Less),
    ];
    let fits = |(sign, result): &(&[u8], CompareResult)| Some((*result, rest.strip_prefix(*sign)?));
    signs.iter().find_map(fits)
}

/// get, put or del, as on the command line.
fn parse_op(line: &[u8]) -> Result<RequestOp, Failed> {
    let malformed = || bad("request", line);
    let words = words::split(line).into_iter().map(OsString::from_vec);
    let words: Vec<OsString> = words.collect();
    let verb = words.first().and_then(|verb| verb.to_str()).unwrap_or_default();
    let command = match verb {
        "get" => kv::get_command(),
        "put" => kv::put_command(),
        "del" => kv::del_command(),
        _ => return Err(malformed()),
    };
    let matches = command.try_get_matches_from(&words).map_err(|_| malformed())?;
    let request = match verb {
        "get" => Request::RequestRange(kv::get_request(&matches)?),
        "put" => Request::RequestPut(kv::put_request(&matches, || Err(kv::no_value()))?),
        _ => Request::RequestDeleteRange(kv::del_request(&matches)?),
    };
    Ok(RequestOp {
        request: Some(request),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<TxnRequest, Failed> {
        read(text.lines().map(|line| line.as_bytes().to_vec()), false)
    }

    #[test]
    fn a_transaction_is_read_as_etcdctl_writes_it() {
        let text = "value(\"k\") = \"a b\"\nmod(\"k\") > \"3\"\n\nput k \"c d\" --lease 1f\nget --prefix k\n\ndel k\n\n";
        let txn = read_text(text).expect("well formed");
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
        assert_eq!((&put.value[..], put.lease), (&b"c d"[..], 0x1f));
        let Some(Request::RequestRange(get)) = &txn.success[1].request else {
            panic!("not a get")
        };
        assert_eq!((&get.key[..], &get.range_end[..]), (&b"k"[..], &b"l"[..]));
    }

    #[test]
    fn a_transaction_that_was_cut_off_is_refused() {
        assert!(read_text("\n\n\n").is_ok());
        assert!(read_text("\nput a b\n\n").is_err());
        assert!(read_text("\nput a b").is_err());
    }

    #[test]
    fn keys_may_hold_any_bytes() {
        let compare = parse_compare(br#"lease("a)\"\x00") != "7f""#).expect("well formed");
        assert_eq!(&compare.key[..], b"a)\"\0");
        assert_eq!(compare.target_union, Some(TargetUnion::Lease(0x7f)));
        assert_eq!(compare.result, CompareResult::NotEqual as i32);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for line in [
            "value(k = 1",
            "size(\"k\") = \"1\"",
            "mod(\"k\") = \"x\"",
            "mod(\"k\") ~ \"1\"",
            "mod(\"k\") = \"1\" 2",
        ] {
            assert!(parse_compare(line.as_bytes()).is_err(), "{line}");
        }
        for line in ["put k", "fetch k", "get", "get k l m", "get --all k"] {
            assert!(parse_op(line.as_bytes()).is_err(), "{line}");
        }
    }
}
