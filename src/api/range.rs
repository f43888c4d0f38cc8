//! Range as it is called from outside: its pairs are encoded from where they are in the store, and go out as they are.
//!
//! By the generated service an answer is made of structures: a thousand pairs are copied out of the store, each with
//! two counts of who shares its bytes, to be encoded and dropped a moment later. Here the store is asked for bytes, and
//! what it writes is gRPC's message already: room for gRPC's prefix, the pairs, and behind them what else the answer
//! says. tonic reads the request and has the errors; a body that it makes itself is copied into.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

use super::kv::Kv;
use super::services::Answering;
use crate::pb::etcdserverpb::kv_server::KvServer;
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use crate::state::{EncodedRange, ReadError, Reader};
use crate::wire::codec::ProtobufCodec;
use crate::wire::framing::{PREFIX, ended_well, seal};

/// Whether a path is that of the method.
pub(super) fn is_range(path: &str) -> bool {
    let path = path.strip_prefix('/');
    let method = path.and_then(|path| path.strip_prefix(KvServer::<Kv>::NAME));
    method == Some("/Range")
}

/// Answers one call; a request may have this many bytes.
pub(super) fn call<B>(kv: Arc<Kv>, limit: usize, request: http::Request<B>) -> Answering
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send> + Send + 'static,
{
    Box::pin(async move {
        let message = OnceLock::new();
        let range = Range {
            kv: &kv,
            message: &message,
        };
        let mut grpc = Grpc::new(ProtobufCodec::default()).max_decoding_message_size(limit);
        let answer = grpc.unary(range, request).await;
        Ok(match message.into_inner() {
            Some(message) => answer.map(|_| body(message)),
            None => answer,
        })
    })
}

/// The method. Its answer is put where it is told.
struct Range<'a> {
    kv: &'a Kv,
    message: &'a OnceLock<Bytes>,
}

impl<'a> UnaryService<RangeRequest> for Range<'a> {
    type Response = ();
    type Future = BoxFuture<'a, Result<Response<()>, Status>>;

    fn call(&mut self, request: Request<RangeRequest>) -> Self::Future {
        let Range { kv, message } = *self;
        Box::pin(async move {
            let (header, range) = kv.encoded_range(request).await?;
            let answer = complete(header, range)?;
            message.get_or_init(|| answer);
            Ok(Response::new(()))
        })
    }
}

/// A range behind room for the prefix, and the revision for its header.
pub(super) fn read(reader: &Reader, request: &RangeRequest) -> Result<(i64, EncodedRange), ReadError> {
    reader.encoded_range(request, BytesMut::zeroed(PREFIX))
}

/// The message, with its prefix. The header stands last: a message's fields may have any order.
fn complete(header: ResponseHeader, range: EncodedRange) -> Result<Bytes, Status> {
    let rest = RangeResponse {
        header: Some(header),
        kvs: Vec::new(),
        more: range.more,
        count: range.count,
    };
    let mut message = range.kvs;
    message.reserve(rest.encoded_len());
    rest.encode_raw(&mut message);
    seal(&mut message)?;
    Ok(message.freeze())
}

/// One message, and that all went well.
fn body(message: Bytes) -> Body {
    let trailers = std::future::ready(Some(Ok::<_, Infallible>(ended_well())));
    Body::new(Full::new(message).with_trailers(trailers))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tonic::Streaming;
    use tonic::codec::{Codec, Decoder};

    use super::*;
    use crate::mvcc::pair;
    use crate::pb::mvccpb::KeyValue;

    #[test]
    fn only_the_method_is_taken() {
        assert!(is_range("/etcdserverpb.KV/Range"));
        for path in [
            "",
            "/",
            "/etcdserverpb.KV/RangeStream",
            "/etcdserverpb.KV/Put",
            "/x/Range",
        ] {
            assert!(!is_range(path), "{path}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_what_tonic_would_send() {
        let pairs: Vec<KeyValue> = (1..4)
            .map(|number| KeyValue {
                key: Bytes::from(format!("key {number}")),
                value: Bytes::from(vec![b'v'; 100 * number as usize]),
                mod_revision: number,
                ..KeyValue::default()
            })
            .collect();
        let header = ResponseHeader {
            revision: 9,
            ..ResponseHeader::default()
        };
        for (kvs, more, count) in [(pairs, true, 7), (Vec::new(), false, 0)] {
            let whole = RangeResponse {
                header: Some(header),
                kvs,
                more,
                count,
            };
            let mut encoded = BytesMut::zeroed(PREFIX);
            for pair in &whole.kvs {
                pair::encode_field(2, pair, &mut encoded);
            }
            let range = EncodedRange {
                kvs: encoded,
                more,
                count,
            };
            let sent = body(complete(header, range).expect("it is short"));
            let mut received = Streaming::new_response(decoder(), sent, StatusCode::OK, None, None);
            assert_eq!(received.message().await.expect("well formed"), Some(whole));
            assert_eq!(received.message().await.expect("well formed"), None);
        }
    }

    fn decoder() -> impl Decoder<Item = RangeResponse, Error = Status> {
        ProtobufCodec::<(), RangeResponse>::default().decoder()
    }
}
