//! A range in chunks is the range.

use pontoon::pb::etcdserverpb::kv_client::KvClient;
use pontoon::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use pontoon::pb::etcdserverpb::{DeleteRangeRequest, RangeRequest, RangeResponse};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::cluster::Cluster;
use crate::support::rpc::{channel, everything, put_request};

async fn chunks(
    client: &mut KvClient<Channel>,
    request: &RangeRequest,
) -> Result<Vec<RangeResponse>, Status> {
    let mut stream = client.range_stream(request.clone()).await?.into_inner();
    let mut chunks = Vec::new();
    while let Some(response) = stream.message().await? {
        chunks.push(response.range_response.expect("a chunk"));
    }
    Ok(chunks)
}

/// The chunks put together, each checked for what only the last may have.
fn whole(chunks: Vec<RangeResponse>) -> RangeResponse {
    let mut chunks = chunks.into_iter().rev();
    let mut whole = chunks.next().expect("at least one chunk");
    assert!(whole.header.is_some());
    for chunk in chunks {
        assert!(chunk.header.is_none() && !chunk.more && chunk.count == 0);
        let bytes: usize = chunk.kvs.iter().map(|kv| kv.value.len()).sum();
        assert!(bytes < 700_000, "{bytes} bytes in a chunk");
        whole.kvs = [chunk.kvs, whole.kvs].concat();
    }
    whole
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_in_chunks_is_the_range() {
    let cluster = Cluster::start(1).await;
    let mut client =
        KvClient::new(channel(&cluster.members[0].client_url)).max_decoding_message_size(1 << 30);
    for number in 0..300 {
        let put = put_request(format!("{:03}", number % 250).as_bytes(), &[b'x'; 10_000]);
        client.put(put).await.expect("a put");
    }
    let delete = DeleteRangeRequest {
        key: "100".into(),
        range_end: "110".into(),
        ..Default::default()
    };
    client.delete_range(delete).await.expect("a delete");
    let with = |change: &dyn Fn(&mut RangeRequest)| {
        let mut request = everything();
        change(&mut request);
        request
    };
    let requests = [
        with(&|_| ()),
        with(&|request| request.revision = 280),
        with(&|request| request.revision = 5),
        with(&|request| request.limit = 120),
        with(&|request| request.limit = 240),
        with(&|request| request.limit = 1000),
        with(&|request| request.keys_only = true),
        with(&|request| request.count_only = true),
        with(&|request| request.serializable = true),
        with(&|request| (request.key, request.range_end) = ("003".into(), "007".into())),
        with(&|request| (request.key, request.range_end) = ("007".into(), "003".into())),
        with(&|request| (request.key, request.range_end) = ("005".into(), "".into())),
        with(&|request| request.sort_order = SortOrder::Ascend as i32),
    ];
    for request in requests {
        let expected = client.range(request.clone()).await.expect("a range").into_inner();
        let chunks = chunks(&mut client, &request).await.expect("chunks");
        if expected.kvs.len() > 200 && !request.keys_only {
            assert!(chunks.len() >= 4, "{} chunks of 2.4 MB", chunks.len());
        }
        assert!(!request.count_only || chunks.len() == 1);
        assert_eq!(whole(chunks), expected, "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_of_one_moment_and_refuse_what_they_cannot() {
    let cluster = Cluster::start(1).await;
    let mut client = KvClient::new(channel(&cluster.members[0].client_url));
    for number in 0..200 {
        let put = put_request(format!("{number:03}").as_bytes(), &[b'x'; 50_000]);
        client.put(put).await.expect("a put");
    }
    let mut stream = client
        .range_stream(everything())
        .await
        .expect("a stream")
        .into_inner();
    let first = stream.message().await.expect("a chunk").expect("a chunk");
    let delete = DeleteRangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    };
    client.delete_range(delete).await.expect("a delete");
    let mut chunks = vec![first.range_response.expect("a chunk")];
    while let Some(response) = stream.message().await.expect("a chunk") {
        chunks.push(response.range_response.expect("a chunk"));
    }
    let whole = whole(chunks);
    assert_eq!((whole.kvs.len(), whole.count), (200, 200));
    assert_eq!(whole.header.expect("a header").revision, 201);
    type Change = fn(&mut RangeRequest);
    let refused: [(Change, Code); 6] = [
        (
            |request| request.sort_order = SortOrder::Descend as i32,
            Code::Unimplemented,
        ),
        (
            |request| request.sort_target = SortTarget::Mod as i32,
            Code::Unimplemented,
        ),
        (|request| request.min_mod_revision = 3, Code::Unimplemented),
        (|request| request.max_create_revision = 3, Code::Unimplemented),
        (|request| request.revision = 1000, Code::OutOfRange),
        (|request| request.key = "".into(), Code::InvalidArgument),
    ];
    for (change, code) in refused {
        let mut request = everything();
        change(&mut request);
        let answer = client.range_stream(request).await;
        assert_eq!(answer.expect_err("refused").code(), code);
    }
}
