//! Range as it is called from outside: its pairs are encoded from where they are in the store.
//!
//! By the generated service an answer is made of structures: a thousand pairs are copied out of the store, each with
//! two counts of who shares its bytes, to be encoded and dropped a moment later. Here the store is asked for bytes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use http_body::Body as HttpBody;
use prost::Message;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

use super::kv::Kv;
use super::services::Answering;
use crate::pb::etcdserverpb::kv_server::KvServer;
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use crate::state::EncodedRange;
use crate::wire::codec::{Outgoing, ProtobufCodec};

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
        let mut grpc =
            Grpc::new(ProtobufCodec::default()).apply_max_message_size_config(Some(limit), Some(usize::MAX));
        Ok(grpc.unary(Range(kv), request).await)
    })
}

/// The method.
struct Range(Arc<Kv>);

impl UnaryService<RangeRequest> for Range {
    type Response = Answer;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Status>> + Send>>;

    fn call(&mut self, request: Request<RangeRequest>) -> Self::Future {
        let kv = self.0.clone();
        Box::pin(async move { kv.encoded_range(request).await })
    }
}

/// A `RangeResponse`, its pairs encoded.
pub struct Answer {
    /// Complete.
    pub header: ResponseHeader,
    /// The rest.
    pub range: EncodedRange,
}

impl Answer {
    /// What stands before the pairs, and what stands behind them: messages one after the other are one.
    fn ends(&self) -> [RangeResponse; 2] {
        let head = RangeResponse {
            header: Some(self.header),
            ..RangeResponse::default()
        };
        let tail = RangeResponse {
            more: self.range.more,
            count: self.range.count,
            ..RangeResponse::default()
        };
        [head, tail]
    }
}

impl Outgoing for Answer {
    fn length(&self) -> usize {
        let ends = self.ends().iter().map(Message::encoded_len).sum::<usize>();
        ends + self.range.kvs.len()
    }

    fn write(&self, buf: &mut impl BufMut) {
        let [head, tail] = self.ends();
        head.encode_raw(buf);
        buf.put_slice(&self.range.kvs);
        tail.encode_raw(buf);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
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

    #[test]
    fn an_answer_in_parts_is_the_same_message() {
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
            let only_pairs = RangeResponse {
                kvs: whole.kvs.clone(),
                ..RangeResponse::default()
            };
            let range = EncodedRange {
                kvs: BytesMut::from(&only_pairs.encode_to_vec()[..]),
                more,
                count,
            };
            let answer = Answer { header, range };
            let mut written = Vec::new();
            answer.write(&mut written);
            assert_eq!(answer.length(), written.len());
            assert_eq!(written, whole.encode_to_vec());
        }
    }
}
