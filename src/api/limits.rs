//! gRPC's answer to a message over the limit, as etcd's clients know it.
//!
//! tonic refuses with OUT_OF_RANGE and words of its own; grpc-go, whose words clients match, with RESOURCE_EXHAUSTED.

use http::{HeaderMap, HeaderValue};
use tonic::{Code, Status};

const OUT_OF_RANGE: &str = "11";
const RESOURCE_EXHAUSTED: HeaderValue = HeaderValue::from_static("8");

/// Rewrites the refusal of a too large message, if that is what these headers are.
pub fn rewrite_limit_error(headers: &mut HeaderMap) {
    if headers
        .get(&Status::GRPC_STATUS)
        .is_none_or(|status| status != OUT_OF_RANGE)
    {
        return;
    }
    let message = headers
        .get("grpc-message")
        .and_then(|message| message.to_str().ok())
        .unwrap_or_default();
    let Some((size, limit)) = sizes(message) else {
        return;
    };
    let text = format!("grpc:%20received%20message%20larger%20than%20max%20({size}%20vs.%20{limit})");
    if let Ok(text) = HeaderValue::from_str(&text) {
        headers.insert(Status::GRPC_STATUS, RESOURCE_EXHAUSTED);
        headers.insert("grpc-message", text);
    }
}

/// The same for a refusal in the middle of a stream of requests.
pub fn corrected(status: Status) -> Status {
    match sizes(status.message()) {
        Some((size, limit)) if status.code() == Code::OutOfRange => Status::resource_exhausted(format!(
            "grpc: received message larger than max ({size} vs. {limit})"
        )),
        _ => status,
    }
}

/// The message's size and the limit, if this is tonic's refusal (percent-encoded, as in the header).
fn sizes(message: &str) -> Option<(u64, u64)> {
    let message = message.replace("%20", " ");
    let rest = message.split_once("message length too large: found ")?.1;
    let (size, rest) = rest.split_once(" bytes, the limit is: ")?;
    Some((size.parse().ok()?, rest.split_once(' ')?.0.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(status: &'static str, message: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static(status));
        headers.insert("grpc-message", HeaderValue::from_static(message));
        headers
    }

    #[test]
    fn only_the_refusal_of_large_messages_is_rewritten() {
        let refusal = "Error,%20decoded%20message%20length%20too%20large:%20found%2020%20bytes,%20the%20limit%20is:%2010%20bytes";
        let mut large = headers("11", refusal);
        rewrite_limit_error(&mut large);
        assert_eq!(large["grpc-status"], "8");
        assert_eq!(
            large["grpc-message"],
            "grpc:%20received%20message%20larger%20than%20max%20(20%20vs.%2010)"
        );
        let mut other = headers("11", "etcdserver: mvcc: required revision has been compacted");
        rewrite_limit_error(&mut other);
        assert_eq!(other["grpc-status"], "11");
    }
}
