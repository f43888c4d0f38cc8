//! etcd's v3 gRPC API: check the request, call the server, fill the header, map the error.
//!
//! Nothing here decides about data. What is not served yet answers UNIMPLEMENTED and names itself.

mod auth;
mod cluster;
mod concurrency;
mod kv;
mod leader;
mod learner;
mod lease;
mod limits;
mod maintenance;
mod range;
mod services;
mod until;
mod watch;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::error::Error;
use crate::pb::etcdserverpb::ResponseHeader;
use crate::pb::etcdserverpb::auth_server::AuthServer;
use crate::pb::etcdserverpb::cluster_server::ClusterServer;
use crate::pb::etcdserverpb::kv_server::KvServer;
use crate::pb::etcdserverpb::lease_server::LeaseServer;
use crate::pb::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::server::auth::Credentials;
use crate::server::{ENVELOPE, Server};
use crate::state::ReadError;
use crate::tls::CommonName;

pub use leader::{Bound, RequireLeader};
pub use learner::VotersOnly;
pub use limits::rewrite_limit_error;
pub use services::{Answering, Services};
pub use until::until;

/// The version that clients read: they decide by it what a server can do, so it is etcd's, not ours.
pub const ETCD_VERSION: &str = "3.5.21";
/// The same for the cluster as a whole.
pub const CLUSTER_VERSION: &str = "3.5.0";

/// The longest message from a client, in bytes.
pub fn message_limit(server: &Server) -> usize {
    server.limits().request_bytes + ENVELOPE
}

/// Every service of the client port.
pub fn services(server: &Server) -> anyhow::Result<Services> {
    let limit = message_limit(server);
    let ranges = Arc::new(kv::Kv::new(server.clone()));
    let kv = KvServer::from_arc(ranges.clone());
    let lease = LeaseServer::new(lease::Lease::new(server.clone()));
    let cluster = ClusterServer::new(cluster::Cluster::new(server.clone()));
    let maintenance = MaintenanceServer::new(maintenance::Maintenance::new(server.clone()));
    // The overall service ("") is SERVING from the start; other names are NOT_FOUND.
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(tell_of_the_end(server.clone(), reporter));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::pb::DESCRIPTORS)
    };
    let others = Routes::new(cluster.max_decoding_message_size(limit))
        .add_service(AuthServer::new(auth::Auth::new(server.clone())).max_decoding_message_size(limit))
        .add_service(maintenance.max_decoding_message_size(limit))
        .add_service(watch::WatchServer::new(server.clone()))
        .add_service(LockServer::new(concurrency::Lock::new(server.clone())).max_decoding_message_size(limit))
        .add_service(
            ElectionServer::new(concurrency::Election::new(server.clone())).max_decoding_message_size(limit),
        )
        .add_service(health)
        .add_service(reflection().build_v1()?)
        // The only one that older tools know.
        .add_service(reflection().build_v1alpha()?);
    Ok(Services {
        ranges,
        limit,
        kv: kv
            .max_decoding_message_size(limit)
            .max_encoding_message_size(usize::MAX),
        lease: lease
            .max_decoding_message_size(limit)
            .max_encoding_message_size(usize::MAX),
        others: Routes::from(others.into_axum_router().fallback(unimplemented_path)).prepare(),
    })
}

/// Whoever watches the health is told when the member stops, and the stream ends: by itself it never would.
async fn tell_of_the_end(server: Server, mut health: HealthReporter) {
    server.stops().await;
    health.set_service_status("", ServingStatus::NotServing).await;
    health.clear_service_status("").await;
}

/// Methods of services that are not served at all.
async fn unimplemented_path(uri: http::Uri) -> http::Response<tonic::body::Body> {
    unimplemented(uri.path()).into_http()
}

/// The answer of a method that is not served yet.
fn unimplemented(method: &str) -> Status {
    Status::unimplemented(format!("pontoon does not serve {method} yet"))
}

/// etcd's code and text for an error.
pub fn status(error: Error) -> Status {
    Status::new(Code::from(error.code() as i32), error.text())
}

static TOKEN: HeaderName = HeaderName::from_static("token");

/// Who says it asks: the token in the request's metadata. Newer clients send it as `authorization`.
fn credentials<T>(request: &tonic::Request<T>) -> Credentials {
    let headers: &HeaderMap = request.metadata().as_ref();
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let token = text(&TOKEN).or_else(|| text(&header::AUTHORIZATION));
    let common_name = request.extensions().get::<CommonName>();
    Credentials {
        common_name: common_name.map(|name| name.0.clone()),
        token: token.map(|token| token.strip_prefix("Bearer ").unwrap_or(token).to_string()),
    }
}

/// What a failed read is answered; a local failure stops this member.
fn read_error(server: &Server, error: ReadError) -> Status {
    match error {
        ReadError::Refused(error) => status(error),
        ReadError::Local(error) => {
            server.fail(format!("cannot read the applied state: {error}"));
            status(Error::Stopped)
        }
    }
}

/// A reply of another kind than the request's can only come from a newer leader.
fn unexpected() -> Status {
    Status::internal("the leader answered with an unknown reply")
}

/// A header for an answer at `revision`.
fn header(server: &Server, revision: i64) -> ResponseHeader {
    ResponseHeader {
        cluster_id: server.cluster_id(),
        member_id: server.member_id(),
        revision,
        raft_term: server.term(),
    }
}
