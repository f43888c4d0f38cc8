//! gRPC's own framing over HTTP/2, for answers that are bytes already: tonic would copy them into a buffer of its own.
//!
//! ```text
//! DATA   0  length  message   0  length  message  ...
//! trailers   grpc-status, grpc-message
//! ```

use http::{HeaderMap, HeaderValue};
use tonic::Status;

/// What stands before a message ("Length-Prefixed-Message"): whether it is compressed, in a byte, and its length in four.
pub const PREFIX: usize = 5;

/// Writes a message's prefix, for which room was left before it.
///
/// Fails with `RESOURCE_EXHAUSTED` if no prefix can tell its length.
pub fn seal(framed: &mut [u8]) -> Result<(), Status> {
    let length = framed.len() - PREFIX;
    let told = u32::try_from(length)
        .map_err(|_| Status::resource_exhausted(format!("an answer of {length} bytes: 4 GiB is the most")))?;
    framed[0] = 0;
    framed[1..PREFIX].copy_from_slice(&told.to_be_bytes());
    Ok(())
}

/// How an answer ends if all went well.
pub fn ended_well() -> HeaderMap {
    HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))])
}

/// How an answer ends with this status.
pub fn ended(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // What a header can't say is escaped, so this does not fail; it would end without a status, which clients know.
    let _ = status.add_header(&mut trailers);
    trailers
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_prefix_tells_the_length() {
        let mut framed = vec![7; PREFIX + 0x0102];
        seal(&mut framed).expect("it is short");
        assert_eq!(framed[..PREFIX + 1], [0, 0, 0, 1, 2, 7]);
    }

    #[test]
    fn an_end_says_what_tonic_reads() {
        let status = Status::from_header_map(&ended_well()).expect("a status");
        assert_eq!(status.code(), Code::Ok);
        let status = Status::new(Code::Unavailable, "etcdserver: no leader ✗");
        let read = Status::from_header_map(&ended(&status)).expect("a status");
        assert_eq!((read.code(), read.message()), (status.code(), status.message()));
    }
}
