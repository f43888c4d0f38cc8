//! Keys and values for people with curl: no JSON, no base64.
//!
//! ```text
//! PUT    /kv/colour        body: blue       → OK
//! GET    /kv/colour                         → blue
//! GET    /kv/co?prefix                      → colour⇥blue          a line for each key
//! GET    /kv/co?prefix&keys                 → colour
//! GET    /kv/colour?watch                   → 7⇥PUT⇥colour⇥blue    a line for each event, as it happens
//! DELETE /kv/colour                         → 1
//! ```
//!
//! The key is the rest of the path after `/kv/`, with `%41` for A; a leading slash is part of it (`/kv//a` is the key
//! `/a`). In lines, a backslash, tab or newline is written `\\`, `\t`, `\n`, and bytes that are no text `\xff`, so that
//! each stays one line; a single value is sent as it is. `rev=` reads at that revision, and with `watch` begins there:
//! a watch that broke off goes on from the last line's revision plus one. `limit=` bounds the lines; `Pontoon-More:
//! true` says that there are more. `serializable` reads locally. `ttl=` puts under a new lease of so many seconds,
//! `lease=` under a given one (in hexadecimal, as etcdctl prints it).
//!
//! A value's `ETag` is its mod revision: `If-Match: "7"` makes PUT and DELETE conditional on it, `If-None-Match: *` a PUT
//! on there being no key (412 if not), and `If-None-Match: "7"` spares a GET what is known (304). `Pontoon-Revision` is
//! the store's revision.

use std::fmt::Write;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use super::gateway::metadata;
use super::grpc::Grpc;
use super::{Query, collect, percent_decode, plain, status_code};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::request_op::Request as Op;
use crate::pb::etcdserverpb::response_op::Response as OpAnswer;
use crate::pb::etcdserverpb::watch_client::WatchClient;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};

/// The paths below `/kv/`.
pub struct Plain {
    grpc: Grpc,
    /// The longest value, in bytes.
    limit: usize,
}

/// One request, taken apart.
struct Asked {
    key: Bytes,
    query: Query,
    headers: HeaderMap,
}

type Answered = Result<Response<Body>, Status>;

impl Plain {
    /// Reads and writes through `grpc`.
    pub fn new(grpc: Grpc, limit: usize) -> Plain {
        Plain { grpc, limit }
    }

    /// Answers one request; `key` is what stands behind `/kv/`.
    pub async fn answer(&self, key: &str, request: Request<Incoming>) -> Response<Body> {
        let query = Query::of(&request);
        let (head, body) = request.into_parts();
        let asked = Asked {
            key: percent_decode(key).into(),
            query,
            headers: head.headers,
        };
        let answered = match head.method {
            Method::GET | Method::HEAD if asked.query.is_set("watch") => self.watch(&asked).await,
            Method::GET | Method::HEAD if asked.query.is_set("prefix") => self.list(&asked).await,
            Method::GET | Method::HEAD => self.get(&asked).await,
            Method::PUT | Method::POST => self.put(&asked, body).await,
            Method::DELETE => self.delete(&asked).await,
            _ => Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n")),
        };
        answered.unwrap_or_else(|status| plain(status_code(status.code()), format!("{}\n", status.message())))
    }

    fn kv(&self) -> KvClient<Grpc> {
        KvClient::new(self.grpc.clone()).max_decoding_message_size(usize::MAX)
    }

    async fn get(&self, asked: &Asked) -> Answered {
        let answer = self.kv().range(asked.with(asked.range()?)).await?.into_inner();
        let Some(kv) = answer.kvs.into_iter().next() else {
            return Ok(stamped(not_found(), answer.header.as_ref()));
        };
        let tag = tag(kv.mod_revision);
        let is_known = asked
            .header(header::IF_NONE_MATCH)
            .is_some_and(|known| known == tag);
        let kind = match std::str::from_utf8(&kv.value) {
            Ok(_) => HeaderValue::from_static("text/plain; charset=utf-8"),
            Err(_) => HeaderValue::from_static("application/octet-stream"),
        };
        let mut response = match is_known {
            true => plain(StatusCode::NOT_MODIFIED, ""),
            false => plain(StatusCode::OK, kv.value),
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, kind);
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        headers.insert("pontoon-create-revision", kv.create_revision.into());
        headers.insert("pontoon-version", kv.version.into());
        if kv.lease != 0 {
            // Printed as etcdctl does.
            headers.extend(
                HeaderValue::from_str(&format!("{:x}", kv.lease))
                    .ok()
                    .map(|lease| (LEASE, lease)),
            );
        }
        Ok(stamped(response, answer.header.as_ref()))
    }

    async fn list(&self, asked: &Asked) -> Answered {
        let keys_only = asked.query.is_set("keys");
        let range = RangeRequest {
            range_end: prefix_end(&asked.key),
            key: or_zero(asked.key.clone()),
            keys_only,
            ..asked.range()?
        };
        let answer = self.kv().range(asked.with(range)).await?.into_inner();
        let mut lines = String::new();
        for kv in &answer.kvs {
            escape(&kv.key, &mut lines);
            if !keys_only {
                lines.push('\t');
                escape(&kv.value, &mut lines);
            }
            lines.push('\n');
        }
        let mut response = plain(StatusCode::OK, lines);
        if answer.more {
            response
                .headers_mut()
                .insert("pontoon-more", HeaderValue::from_static("true"));
        }
        Ok(stamped(response, answer.header.as_ref()))
    }

    async fn put(&self, asked: &Asked, body: Incoming) -> Answered {
        let condition = asked.condition()?;
        let value = collect(body, self.limit).await?;
        let put = PutRequest {
            key: asked.key.clone(),
            value,
            lease: self.lease(asked).await?,
            ..PutRequest::default()
        };
        let header = match condition {
            None => self.kv().put(asked.with(put)).await?.into_inner().header,
            Some(condition) => match self.try_txn(asked, condition, Op::RequestPut(put)).await? {
                Some(done) => done.header,
                None => return Ok(failed()),
            },
        };
        Ok(stamped(plain(StatusCode::OK, "OK\n"), header.as_ref()))
    }

    async fn delete(&self, asked: &Asked) -> Answered {
        let is_prefix = asked.query.is_set("prefix");
        let (key, range_end) = asked.keys();
        let delete = DeleteRangeRequest {
            key,
            range_end,
            ..DeleteRangeRequest::default()
        };
        let (header, deleted) = match asked.condition()? {
            None => {
                let done = self.kv().delete_range(asked.with(delete)).await?.into_inner();
                (done.header, done.deleted)
            }
            Some(_) if is_prefix => {
                return Err(Status::invalid_argument(
                    "a condition is on one key, not on a prefix",
                ));
            }
            Some(condition) => match self
                .try_txn(asked, condition, Op::RequestDeleteRange(delete))
                .await?
            {
                Some(done) => (done.header, deleted(&done.responses)),
                None => return Ok(failed()),
            },
        };
        let response = match deleted {
            0 if !is_prefix => not_found(),
            deleted => plain(StatusCode::OK, format!("{deleted}\n")),
        };
        Ok(stamped(response, header.as_ref()))
    }

    /// Does it if the condition holds.
    async fn try_txn(
        &self,
        asked: &Asked,
        condition: Compare,
        op: Op,
    ) -> Result<Option<TxnResponse>, Status> {
        let txn = TxnRequest {
            compare: vec![condition],
            success: vec![RequestOp { request: Some(op) }],
            failure: Vec::new(),
        };
        let done = self.kv().txn(asked.with(txn)).await?.into_inner();
        Ok(done.succeeded.then_some(done))
    }

    /// The lease to put under: a given one, a new one, or 0 for none.
    async fn lease(&self, asked: &Asked) -> Result<i64, Status> {
        if let Some(id) = asked.query.get("lease") {
            return i64::from_str_radix(id, 16)
                .map_err(|_| Status::invalid_argument("lease= is a lease's id, in hexadecimal"));
        }
        let Some(ttl) = asked.number("ttl")? else {
            return Ok(0);
        };
        let grant = LeaseGrantRequest { ttl, id: 0 };
        let granted = LeaseClient::new(self.grpc.clone())
            .lease_grant(asked.with(grant))
            .await?;
        Ok(granted.into_inner().id)
    }

    async fn watch(&self, asked: &Asked) -> Answered {
        let (key, range_end) = asked.keys();
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: asked.number("rev")?.unwrap_or(0),
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let mut watch = WatchClient::new(self.grpc.clone()).max_decoding_message_size(usize::MAX);
        // Not ended, as the watch goes on until the client hangs up.
        let requests = stream::iter([create]).chain(stream::pending());
        let mut answers = watch.watch(asked.with(requests)).await?.into_inner();
        let created = answers.message().await?.unwrap_or_default();
        if created.canceled {
            return Err(refused(&created));
        }
        let keys_only = asked.query.is_set("keys");
        let lines =
            answers.map(move |answer| Ok::<_, Status>(Frame::data(watch_lines(answer, keys_only).into())));
        let mut response = plain(StatusCode::OK, "");
        *response.body_mut() = Body::new(StreamBody::new(lines));
        Ok(stamped(response, created.header.as_ref()))
    }
}

const LEASE: http::HeaderName = http::HeaderName::from_static("pontoon-lease");

impl Asked {
    /// The key, or with `?prefix` all that begin with it: key and range end.
    fn keys(&self) -> (Bytes, Bytes) {
        match self.query.is_set("prefix") {
            true => (or_zero(self.key.clone()), prefix_end(&self.key)),
            false => (self.key.clone(), Bytes::new()),
        }
    }

    /// A message for the service, with the caller's token.
    fn with<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = metadata(&self.headers);
        request
    }

    fn header(&self, name: http::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        let number = self.query.get(name).map(str::parse).transpose();
        number.map_err(|_| Status::invalid_argument(format!("{name}= is a number")))
    }

    /// What all reads have in common.
    fn range(&self) -> Result<RangeRequest, Status> {
        Ok(RangeRequest {
            key: self.key.clone(),
            limit: self.number("limit")?.unwrap_or(0),
            revision: self.number("rev")?.unwrap_or(0),
            serializable: self.query.is_set("serializable"),
            ..RangeRequest::default()
        })
    }

    /// What must hold for a write.
    fn condition(&self) -> Result<Option<Compare>, Status> {
        let is_new = match self.header(header::IF_NONE_MATCH) {
            Some("*") => Some(TargetUnion::ModRevision(0)),
            Some(_) => return Err(Status::invalid_argument("a write knows If-None-Match: * only")),
            None => None,
        };
        let is_at = match self.header(header::IF_MATCH) {
            None => None,
            // Whatever there is, if there is something.
            Some("*") => {
                return Ok(Some(
                    self.compare(CompareResult::Greater, TargetUnion::ModRevision(0)),
                ));
            }
            Some(tag) => {
                let revision = tag.trim().trim_matches('"').parse();
                let revision =
                    revision.map_err(|_| Status::invalid_argument("If-Match is an ETag, such as \"7\""))?;
                Some(TargetUnion::ModRevision(revision))
            }
        };
        Ok(is_new
            .or(is_at)
            .map(|target| self.compare(CompareResult::Equal, target)))
    }

    fn compare(&self, result: CompareResult, target: TargetUnion) -> Compare {
        Compare {
            key: self.key.clone(),
            result: result.into(),
            target: CompareTarget::Mod.into(),
            target_union: Some(target),
            ..Compare::default()
        }
    }
}

fn tag(mod_revision: i64) -> String {
    format!("\"{mod_revision}\"")
}

fn not_found() -> Response<Body> {
    plain(StatusCode::NOT_FOUND, "key not found\n")
}

fn failed() -> Response<Body> {
    plain(
        StatusCode::PRECONDITION_FAILED,
        "the key is not as the condition says\n",
    )
}

/// Says at which revision the answer was.
fn stamped(mut response: Response<Body>, header: Option<&ResponseHeader>) -> Response<Body> {
    if let Some(header) = header {
        response
            .headers_mut()
            .insert("pontoon-revision", header.revision.into());
    }
    response
}

/// The least key above all that begin with `prefix`; a zero byte if there is none.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let Some(last) = prefix.iter().rposition(|byte| *byte != 0xff) else {
        return Bytes::from_static(b"\0");
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end.into()
}

/// An empty prefix stands for every key, which begin at the zero byte.
fn or_zero(key: Bytes) -> Bytes {
    match key.is_empty() {
        true => Bytes::from_static(b"\0"),
        false => key,
    }
}

fn deleted(responses: &[crate::pb::etcdserverpb::ResponseOp]) -> i64 {
    let of = |response: &OpAnswer| match response {
        OpAnswer::ResponseDeleteRange(done) => done.deleted,
        _ => 0,
    };
    responses
        .iter()
        .filter_map(|op| op.response.as_ref())
        .map(of)
        .sum()
}

fn refused(answer: &WatchResponse) -> Status {
    match answer.compact_revision {
        0 => Status::invalid_argument(answer.cancel_reason.clone()),
        compacted => Status::out_of_range(format!("history before revision {compacted} is compacted")),
    }
}

/// The lines of one answer of a watch: a line an event, or one with what ended it.
fn watch_lines(answer: Result<WatchResponse, Status>, keys_only: bool) -> String {
    let mut lines = String::new();
    match answer {
        Ok(answer) if answer.canceled => {
            let _ = writeln!(
                lines,
                "{}\tERROR\t{}",
                answer.compact_revision,
                refused(&answer).message()
            );
        }
        Ok(answer) => answer
            .events
            .iter()
            .for_each(|event| watch_line(event, keys_only, &mut lines)),
        Err(status) => {
            let _ = writeln!(lines, "0\tERROR\t{}", status.message());
        }
    }
    lines
}

fn watch_line(event: &Event, keys_only: bool, lines: &mut String) {
    let Some(KeyValue {
        key,
        value,
        mod_revision,
        ..
    }) = &event.kv
    else {
        return;
    };
    let is_put = event.r#type() == EventType::Put;
    let _ = write!(
        lines,
        "{mod_revision}\t{}\t",
        if is_put { "PUT" } else { "DELETE" }
    );
    escape(key, lines);
    if is_put && !keys_only {
        lines.push('\t');
        escape(value, lines);
    }
    lines.push('\n');
}

/// Bytes within a line.
fn escape(bytes: &[u8], line: &mut String) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => line.push_str("\\\\"),
                '\t' => line.push_str("\\t"),
                '\n' => line.push_str("\\n"),
                '\r' => line.push_str("\\r"),
                character => line.push(character),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(line, "\\x{byte:02x}");
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn asked(query: &str, headers: &[(http::HeaderName, &'static str)]) -> Asked {
        let request = Request::builder()
            .uri(format!("/kv/k?{query}"))
            .body(())
            .expect("a request");
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        Asked {
            key: Bytes::from_static(b"k"),
            query: Query::of(&request),
            headers: headers.collect(),
        }
    }

    #[test]
    fn each_pair_stays_one_line() {
        let mut line = String::new();
        escape(b"a\tb\nc\\d\xff\xc3\xa4\r\0", &mut line);
        assert_eq!(line, "a\\tb\\nc\\\\d\\xffä\\r\0");
    }

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(prefix_end(b"ab"), "ac");
        assert_eq!(prefix_end(b"a\xff\xff"), "b");
        assert_eq!(prefix_end(b"\xff"), "\0");
        assert_eq!(prefix_end(b""), "\0");
        assert_eq!(or_zero(Bytes::new()), "\0");
    }

    #[test]
    fn etags_become_comparisons() {
        let condition = |headers: &[_]| asked("", headers).condition();
        let target = |headers: &[_]| {
            let compare = condition(headers).expect("understood").expect("a condition");
            (compare.result(), compare.target_union)
        };
        assert_eq!(condition(&[]).expect("understood"), None);
        let seven = (CompareResult::Equal, Some(TargetUnion::ModRevision(7)));
        assert_eq!(target(&[(header::IF_MATCH, "\"7\"")]), seven);
        let new = (CompareResult::Equal, Some(TargetUnion::ModRevision(0)));
        assert_eq!(target(&[(header::IF_NONE_MATCH, "*")]), new);
        let any = (CompareResult::Greater, Some(TargetUnion::ModRevision(0)));
        assert_eq!(target(&[(header::IF_MATCH, "*")]), any);
        for bad in [(header::IF_MATCH, "x"), (header::IF_NONE_MATCH, "\"7\"")] {
            assert_eq!(
                condition(&[bad]).expect_err("refused").code(),
                Code::InvalidArgument
            );
        }
    }

    #[test]
    fn events_are_lines_that_begin_with_the_revision_to_go_on_from() {
        let event = |kind: EventType, value: &'static str| Event {
            r#type: kind.into(),
            kv: Some(KeyValue {
                key: Bytes::from_static(b"a b"),
                value: Bytes::from_static(value.as_bytes()),
                mod_revision: 7,
                ..KeyValue::default()
            }),
            prev_kv: None,
        };
        let answer = WatchResponse {
            events: vec![event(EventType::Put, "x\ny"), event(EventType::Delete, "")],
            ..WatchResponse::default()
        };
        assert_eq!(
            watch_lines(Ok(answer.clone()), false),
            "7\tPUT\ta b\tx\\ny\n7\tDELETE\ta b\n"
        );
        assert_eq!(watch_lines(Ok(answer), true), "7\tPUT\ta b\n7\tDELETE\ta b\n");
        let lost = Err(Status::unavailable("etcdserver: no leader"));
        assert_eq!(watch_lines(lost, false), "0\tERROR\tetcdserver: no leader\n");
        let gone = WatchResponse {
            canceled: true,
            compact_revision: 9,
            ..WatchResponse::default()
        };
        assert_eq!(
            watch_lines(Ok(gone), false),
            "9\tERROR\thistory before revision 9 is compacted\n"
        );
    }
}
