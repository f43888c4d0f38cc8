//! Is this member well? In etcd's three ways of asking, which all say why not.
//!
//! `/health`: does a linearizable read work (`?serializable=true`: a local one), and is no alarm raised
//! (`?exclude=NOSPACE` leaves one out). `/livez`: should the process be restarted? `/readyz`: should it get traffic? The
//! last two are sets of checks: `?verbose` shows each, `?exclude=` leaves one out, and each has a path of its own,
//! such as `/readyz/linearizable_read`. A member that is in no cluster yet is not well, in all of them.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::json;
use tonic::body::Body;

use super::{Query, plain};
use crate::api::{CLUSTER_VERSION, ETCD_VERSION};
use crate::pb::etcdserverpb::{AlarmType, RangeRequest};
use crate::server::Server;
use crate::state::ReadError;

/// One thing that can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVE: &[Check] = &[Check::SerializableRead];
const READY: &[Check] = &[
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    /// What is wrong, if something is.
    async fn problem(self, server: &Server) -> Option<String> {
        match self {
            Check::DataCorruption => {
                let is_corrupt = server.reader().has_alarm(AlarmType::Corrupt);
                is_corrupt.then(|| "alarm CORRUPT is raised".to_string())
            }
            Check::SerializableRead => local_read(server),
            Check::LinearizableRead => linearizable_read(server).await,
            Check::NonLearner => {
                let is_learner = server.replica().status().is_learner;
                is_learner.then(|| "this member is a learner".to_string())
            }
        }
    }
}

fn checks(path: &str) -> Option<(&'static [Check], &str)> {
    let (root, rest) = match path.get(1..)?.split_once('/') {
        Some((root, rest)) => (root, rest),
        None => (path.get(1..)?, ""),
    };
    let set = match root {
        "livez" => LIVE,
        "readyz" => READY,
        _ => return None,
    };
    let is_known = rest.is_empty() || set.iter().any(|check| check.name() == rest);
    is_known.then_some((set, rest))
}

/// Whether `path` is answered here.
pub fn is_path(path: &str) -> bool {
    path == "/health" || checks(path).is_some()
}

/// Answers any path while this member is in no cluster, and waits for `what`.
pub fn not_yet(path: &str, what: &str) -> Response<Body> {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    match path {
        "/version" => version(),
        "/health" => json_answer(
            status,
            json!({"health": "false", "reason": format!("NOT IN A CLUSTER YET: {what}")}),
        ),
        _ if checks(path).is_some() => plain(status, format!("[-]in_a_cluster failed: not yet: {what}\n")),
        _ => plain(status, format!("not in a cluster yet: {what}\n")),
    }
}

/// Answers `/health`, `/livez…` or `/readyz…`.
pub async fn answer(server: &Server, path: &str, query: &Query) -> Response<Body> {
    match checks(path) {
        Some((set, "")) => run(server, set, query).await,
        Some((set, one)) => {
            let one: Vec<Check> = set.iter().copied().filter(|check| check.name() == one).collect();
            run(server, &one, query).await
        }
        None => health(server, query).await,
    }
}

async fn run(server: &Server, checks: &[Check], query: &Query) -> Response<Body> {
    let (mut lines, mut failed) = (String::new(), false);
    for check in checks {
        let name = check.name();
        if query.all("exclude").any(|excluded| excluded == name) {
            lines += &format!("[+]{name} excluded: ok\n");
            continue;
        }
        match check.problem(server).await {
            None => lines += &format!("[+]{name} ok\n"),
            Some(problem) => {
                failed = true;
                lines += &format!("[-]{name} failed: {problem}\n");
            }
        }
    }
    match failed {
        true => plain(StatusCode::SERVICE_UNAVAILABLE, lines),
        false if query.is_set("verbose") => plain(StatusCode::OK, lines + "ok\n"),
        false => plain(StatusCode::OK, "ok\n"),
    }
}

async fn health(server: &Server, query: &Query) -> Response<Body> {
    let alarm = alarm(server, query);
    let leader = server.replica().status().leader;
    let reason = match leader.filter(|_| server.leadership().is_known()) {
        _ if alarm.is_some() => alarm,
        _ if query.is_set("serializable") => {
            local_read(server).map(|problem| format!("RANGE ERROR:{problem}"))
        }
        None => Some("RAFT NO LEADER".to_string()),
        Some(_) => linearizable_read(server)
            .await
            .map(|problem| format!("RANGE ERROR:{problem}")),
    };
    let (status, counter) = match reason {
        None => (StatusCode::OK, &server.metrics().health_successes),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, &server.metrics().health_failures),
    };
    counter.increment();
    let is_well = status == StatusCode::OK;
    json_answer(
        status,
        json!({"health": is_well.to_string(), "reason": reason.unwrap_or_default()}),
    )
}

/// The first alarm that is not left out.
fn alarm(server: &Server, query: &Query) -> Option<String> {
    let alarms = server.reader().alarms();
    let names = alarms.iter().map(|alarm| alarm.alarm().as_str_name());
    let mut counting = names.filter(|name| query.all("exclude").all(|excluded| excluded != *name));
    counting.next().map(|name| format!("ALARM {name}"))
}

fn local_read(server: &Server) -> Option<String> {
    let request = RangeRequest {
        key: Bytes::from_static(b"\0"),
        limit: 1,
        ..RangeRequest::default()
    };
    server.reader().range(&request).err().map(|error| match error {
        ReadError::Refused(error) => error.to_string(),
        ReadError::Local(error) => error.to_string(),
    })
}

/// The barrier, then the read: what a client's read does.
async fn linearizable_read(server: &Server) -> Option<String> {
    match server.barrier().pass().await {
        Ok(()) => local_read(server),
        Err(error) => Some(error.to_string()),
    }
}

/// What clients choose paths and features by.
pub fn version() -> Response<Body> {
    json_answer(
        StatusCode::OK,
        json!({"etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION}),
    )
}

/// JSON.
pub fn json_answer(status: StatusCode, value: serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(value.to_string())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_a_path_in_its_set() {
        for path in [
            "/health",
            "/livez",
            "/readyz",
            "/livez/serializable_read",
            "/readyz/non_learner",
        ] {
            assert!(is_path(path), "{path}");
        }
        for path in [
            "/",
            "/healthz",
            "/livez/linearizable_read",
            "/readyz/nothing",
            "/livezz",
            "",
        ] {
            assert!(!is_path(path), "{path}");
        }
    }
}
