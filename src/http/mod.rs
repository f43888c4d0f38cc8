//! Everything on the client port: gRPC, and over plain HTTP the JSON gateway, key-value for people with curl, health
//! and metrics.
//!
//! HTTP/2 requests that say they are gRPC go straight to the services ([`grpc`]). All else is HTTP, on either version:
//!
//! | path | |
//! |---|---|
//! | `/v3/…`, `/v3beta/…` | etcd's JSON gateway ([`gateway`]) |
//! | `/kv/…` | values as they are ([`kv`]) |
//! | `/health`, `/livez`, `/readyz`, `/version` | for whoever looks after members ([`health`]) |
//! | `/metrics` | for Prometheus ([`metrics`]) |
//! | `/` | the page ([`page`]) |
//! | `/ui/…` | its parts, and the cluster, to be looked at ([`look`]) |
//!
//! What is read or written goes through the same gRPC services, in the process: nothing here decides about data, and
//! this ring knows neither the state's writes nor Raft. Every answer carries the CORS headers, by which a member's
//! page may ask the other members, too; a `Host` outside
//! `--host-whitelist` is turned away before anything is looked at.

mod door;
mod gateway;
mod grpc;
mod health;
mod kv;
mod look;
mod messages;
mod metrics;
mod page;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service as _;

pub use self::door::Door;
use self::gateway::Gateway;
use self::grpc::{Answer, Counted, Grpc};
use self::kv::Plain;
use crate::api;
use crate::config::HttpOptions;
use crate::server::Server;

/// How long a request's body may take to come.
const BODY: Duration = Duration::from_secs(30);

/// What answers on the client port, or on a metrics port. Cheap to clone.
#[derive(Clone)]
pub struct Port {
    /// None on a metrics port.
    grpc: Option<Grpc>,
    http: Arc<Http>,
}

struct Http {
    server: Server,
    options: HttpOptions,
    /// None on a metrics port.
    kv: Option<Plain>,
    /// None also if it is switched off.
    gateway: Option<Gateway>,
}

impl Port {
    /// Everything that clients use.
    pub fn for_clients(server: &Server, options: HttpOptions) -> anyhow::Result<Port> {
        let grpc = Grpc::new(server)?;
        let limit = api::message_limit(server);
        let gateway = options
            .gateway
            .then(|| Gateway::new(grpc.clone(), limit))
            .transpose()?;
        let http = Http {
            server: server.clone(),
            options,
            kv: Some(Plain::new(grpc.clone(), limit)),
            gateway,
        };
        Ok(Port {
            grpc: Some(grpc),
            http: Arc::new(http),
        })
    }

    /// Health and metrics alone.
    pub fn for_metrics(server: &Server, options: HttpOptions) -> Port {
        let http = Http {
            server: server.clone(),
            options,
            kv: None,
            gateway: None,
        };
        Port {
            grpc: None,
            http: Arc::new(http),
        }
    }
}

impl hyper::service::Service<Request<Incoming>> for Port {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        match &self.grpc {
            Some(grpc) if is_grpc(&request) => grpc.clone().call(request),
            _ => {
                let http = self.http.clone();
                Box::pin(async move { Ok(http.answer(request).await.map(Counted::uncounted)) })
            }
        }
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let says_so = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    request.version() == http::Version::HTTP_2
        && request.headers().get(header::CONTENT_TYPE).is_some_and(says_so)
}

impl Http {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let origin = request.headers().get(header::ORIGIN).cloned();
        let mut response = match allow_host(&self.options, &request) {
            false => plain(StatusCode::MISDIRECTED_REQUEST, WRONG_HOST),
            true if request.method() == Method::OPTIONS => Response::new(Body::empty()),
            true => self.route(request).await,
        };
        let is_ours = origin.as_ref().is_some_and(|origin| self.is_of_a_page(origin));
        mark(&self.options, origin, is_ours, response.headers_mut());
        date(response.headers_mut());
        response
    }

    /// Whether this is the origin of a member's page.
    fn is_of_a_page(&self, origin: &HeaderValue) -> bool {
        let named = |own: &String| origin == own.as_str();
        self.kv.is_some() && self.options.page && page::origins(&self.server).iter().any(named)
    }

    async fn route(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_string();
        if let Some(answer) = self.look_after(&path, &request).await {
            return answer;
        }
        if let Some(answer) = self.look_at(&path, &request).await {
            return answer;
        }
        if let (Some(gateway), Some(path)) = (&self.gateway, gateway_path(&path)) {
            return gateway.answer(&path, request).await;
        }
        if let (Some(kv), Some(key)) = (&self.kv, path.strip_prefix("/kv/")) {
            return kv.answer(key, request).await;
        }
        plain(StatusCode::NOT_FOUND, "404 page not found\n")
    }

    /// The cluster, to be looked at: for reading only, and on the client port.
    async fn look_at(&self, path: &str, request: &Request<Incoming>) -> Option<Response<Body>> {
        let is_page = self.options.page && page::is_path(path);
        if self.kv.is_none() || !(is_page || look::is_path(path)) {
            return None;
        }
        let control = self.options.control.as_deref();
        match may_read(request) {
            false => Some(only_get()),
            true if is_page => Some(page::answer(&self.server, control, path)),
            true => Some(look::answer(&self.server, control, path, &Query::of(request)).await),
        }
    }

    /// Health, version and metrics: for reading only.
    async fn look_after(&self, path: &str, request: &Request<Incoming>) -> Option<Response<Body>> {
        let server = &self.server;
        let query = Query::of(request);
        let is_ours = path == "/metrics" || path == "/version" || health::is_path(path);
        if is_ours && !may_read(request) {
            return Some(only_get());
        }
        match path {
            "/metrics" => Some(metrics::answer(server)),
            "/version" => Some(health::version()),
            _ if is_ours => Some(health::answer(server, path, &query).await),
            _ => None,
        }
    }
}

/// Whether the request changes nothing.
fn may_read<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET || request.method() == Method::HEAD
}

fn only_get() -> Response<Body> {
    let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    refused
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET"));
    refused
}

const WRONG_HOST: &str = "The Host header of the request is none of those that --host-whitelist allows.\n\
    Call this member by one of them, or start it with --host-whitelist='*'.\n";

/// Whether clients may call this member by the name that they use.
fn allow_host<B>(options: &HttpOptions, request: &Request<B>) -> bool {
    let named = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let host = named.or(request.uri().host()).unwrap_or_default();
    // An address in brackets has colons of its own.
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    options
        .hosts
        .iter()
        .any(|allowed| allowed == "*" || allowed == name)
}

/// Says to browsers whose pages may read the answer.
fn mark(options: &HttpOptions, origin: Option<HeaderValue>, is_ours: bool, headers: &mut HeaderMap) {
    let is_listed = |origin: &HeaderValue| options.cors.iter().any(|allowed| origin == allowed.as_str());
    let allowed = match options.cors.iter().any(|allowed| allowed == "*") {
        true => Some(HeaderValue::from_static("*")),
        false => origin.filter(|origin| is_ours || is_listed(origin)),
    };
    let Some(allowed) = allowed else { return };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("accept, content-type, authorization"),
    );
}

/// When the answer was made (RFC 9110 §6.6.1).
fn date(headers: &mut HeaderMap) {
    if let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())) {
        headers.insert(header::DATE, now);
    }
}

/// A path of the gateway, as it is now: older clients call it by the name that it had while it was new.
fn gateway_path(path: &str) -> Option<String> {
    match path.strip_prefix("/v3beta/") {
        Some(rest) => Some(format!("/v3/{rest}")),
        None => path.starts_with("/v3/").then(|| path.to_string()),
    }
}

/// What stands behind the question mark: names, some with values.
struct Query(Vec<(String, String)>);

impl Query {
    fn of<B>(request: &Request<B>) -> Query {
        let text = request.uri().query().unwrap_or_default();
        let decode =
            |text: &str| String::from_utf8_lossy(&percent_decode(&text.replace('+', " "))).into_owned();
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        };
        Query(
            text.split('&')
                .filter(|part| !part.is_empty())
                .map(pair)
                .collect(),
        )
    }

    /// The value of the first `name`.
    fn get(&self, name: &str) -> Option<&str> {
        let named = self.0.iter().find(|(own, _)| own == name);
        named.map(|(_, value)| value.as_str())
    }

    /// The values of every `name`.
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(own, _)| own == name);
        named.map(|(_, value)| value.as_str())
    }

    /// Whether `name` is there, alone or as true.
    fn is_set(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| matches!(value, "" | "true" | "1"))
    }
}

/// Bytes of a path or query: `%41` is A.
fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let digits = (*byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        let escaped = digits
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(escaped.unwrap_or(*byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    decoded
}

/// The whole body, if it is no longer than `limit` and comes in time.
async fn collect(body: Incoming, limit: usize) -> Result<Bytes, Status> {
    match tokio::time::timeout(BODY, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Status::resource_exhausted(format!(
            "received message larger than max ({limit} bytes)"
        ))),
        Ok(Err(error)) => Err(Status::invalid_argument(error.to_string())),
        Err(_) => Err(Status::cancelled("the request's body did not come in time")),
    }
}

/// Plain text.
fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(text.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// HTTP's status for gRPC's code, as etcd 3.5 has it.
fn status_code(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        let uri = format!("/x?{text}");
        Query::of(&Request::builder().uri(uri).body(()).expect("a request"))
    }

    #[test]
    fn a_query_has_names_with_or_without_values() {
        let query = query("prefix&rev=7&a+b=%2Fx%zz&exclude=A&exclude=B&watch=false");
        assert!(query.is_set("prefix") && !query.is_set("watch") && !query.is_set("limit"));
        assert_eq!(query.get("rev"), Some("7"));
        assert_eq!(query.get("a b"), Some("/x%zz"));
        assert_eq!(query.all("exclude").collect::<Vec<_>>(), ["A", "B"]);
    }

    #[test]
    fn any_byte_can_stand_in_a_path() {
        assert_eq!(percent_decode("a%00%fF/%"), b"a\0\xff/%");
        assert_eq!(percent_decode("%4"), b"%4");
        assert_eq!(percent_decode("%ä1"), "%ä1".as_bytes());
    }

    #[test]
    fn the_gateway_answers_to_its_old_name_too() {
        assert_eq!(gateway_path("/v3beta/kv/put").as_deref(), Some("/v3/kv/put"));
        assert_eq!(gateway_path("/v3/kv/put").as_deref(), Some("/v3/kv/put"));
        assert_eq!(gateway_path("/v3alpha/kv/put"), None);
    }

    #[test]
    fn origins_are_named_back_only_if_they_are_listed() {
        let marked = |cors: &[&str], origin: Option<&'static str>, is_ours| {
            let options = HttpOptions {
                gateway: true,
                page: true,
                control: None,
                cors: cors.iter().map(ToString::to_string).collect(),
                hosts: vec!["*".to_string()],
            };
            let mut headers = HeaderMap::new();
            let origin = origin.map(HeaderValue::from_static);
            mark(&options, origin, is_ours, &mut headers);
            headers
                .get(header::ACCESS_CONTROL_ALLOW_ORIGIN)
                .map(|origin| origin.to_str().expect("text").to_string())
        };
        assert_eq!(marked(&["*"], None, false).as_deref(), Some("*"));
        assert_eq!(
            marked(&["http://a"], Some("http://a"), false).as_deref(),
            Some("http://a")
        );
        assert_eq!(marked(&["http://a"], Some("http://b"), false), None);
        assert_eq!(
            marked(&["http://a"], Some("http://b"), true).as_deref(),
            Some("http://b")
        );
        assert_eq!(marked(&[], None, false), None);
    }
}
