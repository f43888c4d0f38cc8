//! JSON over HTTP for every method, as etcd's gateway has it.
//!
//! The paths come from the methods' annotations in `proto/etcd`, so that a new method is served once it has one. A
//! request goes JSON → message → the same gRPC service that gRPC clients call → message → JSON: there is no second
//! implementation of anything.
//!
//! ```text
//! POST /v3/kv/put   {"key":"Zm9v","value":"YmFy"}
//! 200               {"header":{"cluster_id":"…","revision":"2",…}}
//! POST /v3/watch    {"create_request":{"key":"Zm9v"}}
//! 200               {"result":{…,"created":true}}⏎  {"result":{…,"events":[…]}}⏎  …
//! ```
//!
//! A stream's answers are a line each, and a chunk each, sent at once. Its requests may follow each other in the body;
//! the end of the body ends the requests, and what that means is for the service to say: a watch goes on, a keep-alive
//! ends. A refusal before the first answer has its own HTTP status; a later one is a line.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::future;
use futures::stream::{self, Stream, StreamExt};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use prost_reflect::{DynamicMessage, ExtensionDescriptor, MessageDescriptor, MethodDescriptor, Value};
use serde_json::json;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};

use super::grpc::Grpc;
use super::messages::{AnyCodec, Objects, from_json, to_json};
use super::{collect, plain, status_code};
use crate::pb;

/// How long the first object of a stream's body may take to come.
const FIRST_OBJECT: Duration = Duration::from_secs(30);

/// One method behind a path.
struct Target {
    method: PathAndQuery,
    takes: MessageDescriptor,
    answers: AnyCodec,
    takes_many: bool,
    answers_many: bool,
}

/// The gateway.
pub struct Gateway {
    targets: BTreeMap<String, Target>,
    grpc: Grpc,
    /// The longest message, in bytes of JSON.
    limit: usize,
}

type Requests = Pin<Box<dyn Stream<Item = DynamicMessage> + Send>>;

impl Gateway {
    /// Serves `grpc`.
    pub fn new(grpc: Grpc, limit: usize) -> anyhow::Result<Gateway> {
        let targets = routes()?
            .into_iter()
            .map(|(path, method)| Ok((path, Target::new(&method)?)));
        Ok(Gateway {
            targets: targets.collect::<anyhow::Result<_>>()?,
            grpc,
            limit,
        })
    }

    /// Answers one request for `path`.
    pub async fn answer(&self, path: &str, request: http::Request<Incoming>) -> Response<Body> {
        let Some(target) = self.targets.get(path) else {
            return plain(StatusCode::NOT_FOUND, "Not Found\n");
        };
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        }
        let (head, body) = request.into_parts();
        match self.call(target, &head.headers, body).await {
            Ok(answer) => answer,
            Err(status) => refusal(&status),
        }
    }

    async fn call(
        &self,
        target: &Target,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Body>, Status> {
        let requests: Requests = match target.takes_many {
            true => requests(target.takes.clone(), body, self.limit).await?,
            false => {
                let body = collect(body, self.limit).await?;
                Box::pin(stream::iter([from_json(&target.takes, &body)?]))
            }
        };
        let mut request = tonic::Request::new(requests);
        *request.metadata_mut() = metadata(headers);
        let mut grpc = tonic::client::Grpc::new(self.grpc.clone()).max_decoding_message_size(usize::MAX);
        // As `client_streaming` wants it; always ready.
        if grpc.ready().await.is_err() {
            return Err(Status::unavailable("not ready"));
        }
        let (method, codec) = (target.method.clone(), target.answers.clone());
        if target.answers_many {
            let answers = grpc.streaming(request, method, codec).await?.into_inner();
            return lines(answers).await;
        }
        let answer = grpc.client_streaming(request, method, codec).await?.into_inner();
        Ok(success(Body::new(http_body_util::Full::from(to_json(&answer)?))))
    }
}

impl Target {
    fn new(method: &MethodDescriptor) -> anyhow::Result<Target> {
        Ok(Target {
            method: PathAndQuery::try_from(pb::path(method))?,
            takes: method.input(),
            answers: AnyCodec {
                answers: method.output(),
            },
            takes_many: method.is_client_streaming(),
            answers_many: method.is_server_streaming(),
        })
    }
}

/// Every path of every method, from the annotations.
fn routes() -> anyhow::Result<BTreeMap<String, MethodDescriptor>> {
    let annotation = pb::REFLECTION
        .get_extension_by_name("google.api.http")
        .ok_or_else(|| anyhow::anyhow!("the descriptors have no annotations"))?;
    let mut routes = BTreeMap::new();
    for method in pb::REFLECTION
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
    {
        for path in paths(&method, &annotation) {
            let earlier = routes.insert(path.clone(), method.clone());
            anyhow::ensure!(earlier.is_none(), "{path} is the path of two methods");
        }
    }
    Ok(routes)
}

fn paths(method: &MethodDescriptor, annotation: &ExtensionDescriptor) -> Vec<String> {
    let options = method.options();
    if !options.has_extension(annotation) {
        return Vec::new();
    }
    let rule = options.get_extension(annotation);
    let Some(rule) = rule.as_message() else {
        return Vec::new();
    };
    let more = rule.get_field_by_name("additional_bindings");
    let more = more.iter().filter_map(|more| more.as_list()).flatten();
    std::iter::once(rule)
        .chain(more.filter_map(Value::as_message))
        .filter_map(|rule| Some(rule.get_field_by_name("post")?.as_str()?.to_string()))
        .collect()
}

/// What HTTP headers become for the service: the token, and whatever says that it is for gRPC.
pub fn metadata(headers: &HeaderMap) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let name = match name.as_str() {
            name @ ("authorization" | "grpc-timeout") => name,
            name => match name.strip_prefix("grpc-metadata-") {
                Some(name) => name,
                None => continue,
            },
        };
        let key = MetadataKey::from_bytes(name.as_bytes());
        let value = MetadataValue::try_from(value.as_bytes());
        if let (Ok(key), Ok(value)) = (key, value) {
            metadata.append(key, value);
        }
    }
    metadata
}

/// The messages in a body, as they come. Waits for the first, so that a refusal of it can still be the answer; an
/// unreadable later one ends them.
async fn requests(of: MessageDescriptor, body: Incoming, limit: usize) -> Result<Requests, Status> {
    let state = Some((Objects::default(), body));
    let mut messages = stream::unfold(state, move |state| {
        let of = of.clone();
        async move {
            let (mut objects, mut body) = state?;
            match next_object(&mut objects, &mut body, limit).await {
                Ok(None) => None,
                Ok(Some(object)) => Some((from_json(&of, &object), Some((objects, body)))),
                Err(status) => Some((Err(status), None)),
            }
        }
    })
    .boxed()
    .fuse();
    let first = tokio::time::timeout(FIRST_OBJECT, messages.next())
        .await
        .map_err(|_| Status::cancelled("the request's body did not come in time"))?
        .transpose()?;
    let rest = messages
        .map(Result::ok)
        .take_while(|message| future::ready(message.is_some()));
    Ok(Box::pin(
        stream::iter(first).chain(rest.filter_map(future::ready)),
    ))
}

async fn next_object(
    objects: &mut Objects,
    body: &mut Incoming,
    limit: usize,
) -> Result<Option<Bytes>, Status> {
    loop {
        if let Some(object) = objects.pop() {
            return Ok(Some(object));
        }
        if objects.waiting() > limit {
            return Err(Status::resource_exhausted(format!(
                "an object is longer than {limit} bytes"
            )));
        }
        match body.frame().await {
            Some(Ok(frame)) => frame.data_ref().into_iter().for_each(|data| objects.push(data)),
            Some(Err(error)) => return Err(Status::cancelled(error.to_string())),
            None => return Ok(objects.rest()),
        }
    }
}

/// A stream's answers, a line each. Waits for the first: if that is a refusal it is the answer's status.
async fn lines(answers: tonic::Streaming<DynamicMessage>) -> Result<Response<Body>, Status> {
    let mut answers = answers.fuse();
    let first = answers.next().await;
    let status = match &first {
        Some(Err(status)) => status_code(status.code()),
        _ => StatusCode::OK,
    };
    let all = stream::iter(first).chain(answers);
    let lines = all.map(|answer| {
        let line = answer.and_then(|answer| to_json(&answer)).map_or_else(
            |status| stream_refusal(&status),
            |answer| [b"{\"result\":", answer.as_slice(), b"}\n"].concat(),
        );
        Ok::<_, Status>(Frame::data(Bytes::from(line)))
    });
    let mut response = success(Body::new(StreamBody::new(lines)));
    *response.status_mut() = status;
    Ok(response)
}

fn success(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(
        "grpc-metadata-content-type",
        http::HeaderValue::from_static("application/grpc"),
    );
    response
}

const JSON: http::HeaderValue = http::HeaderValue::from_static("application/json");

/// A refusal: `error` is for older clients, `message` for newer ones.
fn refusal(status: &Status) -> Response<Body> {
    let text = status.message();
    let body = json!({"error": text, "code": status.code() as i32, "message": text});
    let mut response = Response::new(Body::new(http_body_util::Full::from(body.to_string())));
    *response.status_mut() = status_code(status.code());
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// A refusal within a stream.
fn stream_refusal(status: &Status) -> Vec<u8> {
    let http = status_code(status.code());
    let error = json!({"error": {
        "grpc_code": status.code() as i32,
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": http.canonical_reason().unwrap_or_default(),
    }});
    format!("{error}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// etcd's paths, each with how its method streams.
    const ETCD: &str = "
        /v3/kv/range /v3/kv/put /v3/kv/deleterange /v3/kv/txn /v3/kv/compaction >watch>
        /v3/lease/grant /v3/lease/revoke /v3/kv/lease/revoke >lease/keepalive> /v3/lease/timetolive
        /v3/kv/lease/timetolive /v3/lease/leases /v3/kv/lease/leases
        /v3/cluster/member/add /v3/cluster/member/remove /v3/cluster/member/update /v3/cluster/member/list
        /v3/cluster/member/promote
        /v3/maintenance/alarm /v3/maintenance/status /v3/maintenance/defragment /v3/maintenance/hash
        /v3/maintenance/hashkv maintenance/snapshot> /v3/maintenance/transfer-leadership /v3/maintenance/downgrade
        /v3/auth/enable /v3/auth/disable /v3/auth/status /v3/auth/authenticate
        /v3/auth/user/add /v3/auth/user/get /v3/auth/user/list /v3/auth/user/delete /v3/auth/user/changepw
        /v3/auth/user/grant /v3/auth/user/revoke
        /v3/auth/role/add /v3/auth/role/get /v3/auth/role/list /v3/auth/role/delete /v3/auth/role/grant
        /v3/auth/role/revoke
        /v3/lock/lock /v3/lock/unlock
        /v3/election/campaign /v3/election/proclaim /v3/election/leader election/observe> /v3/election/resign";

    #[test]
    fn the_paths_are_etcds() {
        let ours: Vec<(String, bool, bool)> = routes()
            .expect("routes")
            .into_iter()
            .map(|(path, method)| (path, method.is_client_streaming(), method.is_server_streaming()))
            .collect();
        let mut etcds: Vec<(String, bool, bool)> = ETCD
            .split_whitespace()
            .map(|path| {
                let name = path.trim_matches('>').trim_start_matches("/v3/");
                (format!("/v3/{name}"), path.starts_with('>'), path.ends_with('>'))
            })
            .collect();
        etcds.sort();
        assert_eq!(ours, etcds);
    }

    #[test]
    fn only_what_is_meant_for_grpc_is_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "token"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-timeout", "1S"),
            ("cookie", "secret"),
            ("content-type", "x"),
        ] {
            headers.insert(name, http::HeaderValue::from_static(value));
        }
        let passed = metadata(&headers).into_headers();
        let mut names: Vec<&str> = passed.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "grpc-timeout", "hasleader"]);
    }

    #[test]
    fn a_refusal_speaks_to_old_and_new_clients() {
        let status = Status::failed_precondition("etcdserver: not leader");
        assert_eq!(refusal(&status).status(), 400);
        let line = String::from_utf8(stream_refusal(&status)).expect("text");
        let error = r#"{"error":{"grpc_code":9,"http_code":400,"message":"etcdserver: not leader","http_status":"Bad Request"}}"#;
        assert_eq!(line, format!("{error}\n"));
    }
}
