//! The page that Prometheus reads: every metric of a member, by name, with its unit and meaning.
//!
//! The names are etcd's, so that its dashboards and alerts work; what etcd doesn't have begins with `pontoon_`. Values
//! are read when the page is asked for, but for what only [`crate::metrics`] counts. Names end with their unit; a
//! duration is in seconds, a size in bytes.
//!
//! Files: [`text`] the format · [`raft`] consensus · [`store`] the applied state · [`disk`] what it costs ·
//! [`network`] the other members · [`requests`] clients · [`process`] the process.

mod disk;
mod network;
mod process;
mod raft;
mod requests;
mod store;
mod text;

use http::{HeaderValue, Response, header};
use http_body_util::Full;
use tonic::body::Body;

use self::text::Page;
use crate::server::Server;

/// The page of `server`.
pub fn answer(server: &Server) -> Response<Body> {
    let metrics = server.metrics();
    let mut page = Page(String::with_capacity(128 << 10));
    raft::write(&mut page, server);
    store::write(&mut page, server);
    disk::write(&mut page, metrics);
    network::write(&mut page, server.member_id(), metrics);
    requests::write(&mut page, metrics);
    process::write(&mut page, server);
    let mut response = Response::new(Body::new(Full::from(page.0)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}
