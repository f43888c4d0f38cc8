//! Where the page asks `pontoon cluster` for faults.
//!
//! ```text
//! GET  /state   {"members":[{"name":"node1","state":"running","pid":4711,"url":"http://127.0.0.1:2379"},…],
//!                "links":[{"from":"node1","to":"node2","mode":"up"},…]}
//! POST /do      {"act":"kill","member":"node1"}        kill, stop, pause, resume, start, wipe, lead
//! POST /do      {"act":"link","from":"node1","to":"node2","mode":"slow","ms":150}
//! ```
//!
//! Only on loopback, only with the token that this run made up and showed on its terminal (as a part of the page's
//! address that browsers don't send to anybody), only under its own name as a host, so that no page from elsewhere gets
//! here by a name that it controls, and to browsers only from the members' pages.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use super::Cluster;
use super::links::{Mode, Way};
use super::member::Act;

/// The longest request.
const MOST_BYTES: usize = 4096;
/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// A slow way is no slower.
const MOST_DELAY_MS: u64 = 10_000;

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(tag = "act", rename_all = "lowercase")]
enum Asked {
    Kill {
        member: String,
    },
    Stop {
        member: String,
    },
    Pause {
        member: String,
    },
    Resume {
        member: String,
    },
    Start {
        member: String,
    },
    Wipe {
        member: String,
    },
    Lead {
        member: String,
    },
    Link {
        from: String,
        to: String,
        mode: Mode,
        #[serde(default)]
        ms: u64,
    },
}

/// Where it will listen; and what listens.
pub async fn listen() -> std::io::Result<(SocketAddr, TcpListener)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    Ok((listener.local_addr()?, listener))
}

/// 128 random bits.
pub fn new_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Answers for as long as the cluster runs.
pub async fn serve(cluster: Arc<Cluster>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Most often file descriptors have run out.
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let cluster = cluster.clone();
                async move { Ok::<_, Infallible>(answer(&cluster, request).await) }
            });
            let server = auto::Builder::new(TokioExecutor::new());
            // A client that breaks off has its reasons.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(cluster: &Cluster, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match may_ask(cluster, &request) {
        Err(refused) => text(StatusCode::FORBIDDEN, refused),
        Ok(()) if request.method() == Method::OPTIONS => text(StatusCode::NO_CONTENT, ""),
        Ok(()) => route(cluster, request).await,
    };
    // Whoever got here with an origin has one of a member's pages.
    if let Some(origin) = origin.filter(|_| response.status() != StatusCode::FORBIDDEN) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let allowed = HeaderValue::from_static("authorization, content-type");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// Whether somebody with these headers may ask; the browser's own question for that has no token.
fn may_ask<B>(cluster: &Cluster, request: &Request<B>) -> Result<(), &'static str> {
    let said = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let own = cluster.control.to_string();
    let host = said(header::HOST).or(request.uri().authority().map(http::uri::Authority::as_str));
    if host != Some(own.as_str()) {
        return Err("asked for by another name\n");
    }
    let is_ours = |origin: &str| {
        let rest = ["http://127.0.0.1:", "http://localhost:"];
        let port = rest.iter().find_map(|prefix| origin.strip_prefix(prefix));
        let port = port.and_then(|port| port.parse::<u16>().ok());
        port.is_some_and(|port| cluster.members.iter().any(|member| member.client_port == port))
    };
    if said(header::ORIGIN).is_some_and(|origin| !is_ours(origin)) {
        return Err("asked for by a page from elsewhere\n");
    }
    let token = said(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    match request.method() == Method::OPTIONS || token == Some(cluster.token.as_str()) {
        true => Ok(()),
        false => Err("the token is missing or wrong: open the address that pontoon cluster printed\n"),
    }
}

async fn route(cluster: &Cluster, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/state") => {
            let mut response = text(StatusCode::OK, state(cluster).to_string());
            let kind = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        (&Method::POST, "/do") => {
            let body = Limited::new(request.into_body(), MOST_BYTES).collect().await;
            let asked = body
                .ok()
                .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
            let Some(asked) = asked else {
                return text(StatusCode::BAD_REQUEST, "what is to be done?\n");
            };
            match act(cluster, asked).await {
                Ok(done) => text(StatusCode::OK, done),
                Err(error) => text(StatusCode::CONFLICT, format!("{error:#}")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn state(cluster: &Cluster) -> serde_json::Value {
    let name = |at: usize| cluster.members.get(at).map(|member| member.name.as_str());
    let members = cluster.members.iter().map(|member| {
        let (state, pid) = member.state();
        json!({"name": member.name, "state": state, "pid": pid, "url": member.client_url()})
    });
    let links = cluster.links.all().map(|((from, to), way)| {
        json!({"from": name(from), "to": name(to), "mode": way.mode, "ms": way.delay.as_millis() as u64})
    });
    json!({"members": members.collect::<Vec<_>>(), "links": links.collect::<Vec<_>>()})
}

async fn act(cluster: &Cluster, asked: Asked) -> anyhow::Result<String> {
    let (act, member) = match asked {
        Asked::Link { from, to, mode, ms } => {
            let way = Way {
                mode,
                delay: std::time::Duration::from_millis(ms.min(MOST_DELAY_MS)),
            };
            let (from, to) = (cluster.member(&from)?, cluster.member(&to)?);
            anyhow::ensure!(cluster.links.set(from, to, way), "there is no such link");
            return Ok("done".to_string());
        }
        Asked::Lead { member } => return cluster.lead(&member).await,
        Asked::Start { member } => return cluster.start(&member),
        Asked::Kill { member } => (Act::Kill, member),
        Asked::Stop { member } => (Act::Stop, member),
        Asked::Pause { member } => (Act::Pause, member),
        Asked::Resume { member } => (Act::Resume, member),
        Asked::Wipe { member } => (Act::Wipe, member),
    };
    cluster.members[cluster.member(&member)?].act(act)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}
