//! Calls of etcd's gRPC methods.

use super::{Counter, Histogram};

/// gRPC's status codes: 0 to 16.
pub const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The calls of one gRPC method.
#[derive(Debug)]
pub struct Calls {
    /// Package and service.
    pub service: String,
    /// The method's own name.
    pub method: String,
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`.
    pub kind: &'static str,
    /// Begun.
    pub started: Counter,
    /// Ended, by code.
    pub handled: [Counter; CODES.len()],
    /// Messages from clients.
    pub received: Counter,
    /// Messages to clients.
    pub sent: Counter,
    /// How long they took; only with `--metrics extensive`.
    pub handling: Option<Histogram>,
}

impl Calls {
    /// None yet; their durations are kept if `extensive`.
    pub fn new(method: &prost_reflect::MethodDescriptor, extensive: bool) -> Self {
        let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
            (false, false) => "unary",
            (true, false) => "client_stream",
            (false, true) => "server_stream",
            (true, true) => "bidi_stream",
        };
        Calls {
            service: method.parent_service().full_name().to_string(),
            method: method.name().to_string(),
            kind,
            started: Counter::default(),
            handled: Default::default(),
            received: Counter::default(),
            sent: Counter::default(),
            // 0.5 ms to 8 s.
            handling: extensive.then(|| Histogram::new(500, 15)),
        }
    }
}
