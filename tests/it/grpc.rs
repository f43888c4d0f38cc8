//! What a gRPC server does beside etcd's services: health, reflection, deadlines; answers without a limit, and requests
//! with one.

use futures::future::join_all;
use futures::stream;
use pontoon::pb::etcdserverpb::RangeRequest;
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::etcd::Etcd;
use crate::support::http::{Http, ask, post};
use crate::support::process::wait_for;
use crate::support::rpc::{Request, Response, channel, everything, put_request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_reflection_and_large_answers() {
    let cluster = Cluster::start(1).await;
    let url = &cluster.members[0].client_url;
    health_is_told_of_the_whole(url).await;
    reflection_tells_every_service(url).await;
    an_answer_may_be_larger_than_any_request(&cluster).await;
    health_ends_with_the_member(cluster).await;
}

async fn health_is_told_of_the_whole(url: &str) {
    let mut health = HealthClient::new(channel(url));
    let of = |service: &str| HealthCheckRequest {
        service: service.to_string(),
    };
    let serving = HealthCheckResponse {
        status: ServingStatus::Serving as i32,
    };
    let answer = health.check(of("")).await.expect("an answer").into_inner();
    assert_eq!(answer, serving);
    let refused = health
        .check(of("etcdserverpb.KV"))
        .await
        .expect_err("one health for all");
    assert_eq!(refused.code(), Code::NotFound);
    let mut told = health.watch(of("")).await.expect("a stream").into_inner();
    assert_eq!(told.message().await.expect("no error"), Some(serving));
}

/// The names of the services, and what is told of one: by the protocol as it is, and as older tools speak it.
async fn reflection_tells_every_service(url: &str) {
    const SERVICES: [&str; 8] = [
        "etcdserverpb.Auth",
        "etcdserverpb.Cluster",
        "etcdserverpb.KV",
        "etcdserverpb.Lease",
        "etcdserverpb.Maintenance",
        "etcdserverpb.Watch",
        "v3electionpb.Election",
        "v3lockpb.Lock",
    ];
    macro_rules! told {
        ($version:ident, $ask:ident, $of:expr) => {{
            use $version::server_reflection_client::ServerReflectionClient;
            use $version::server_reflection_request::MessageRequest::$ask;
            use $version::server_reflection_response::MessageResponse;
            let request = $version::ServerReflectionRequest {
                host: String::new(),
                message_request: Some($ask($of.to_string())),
            };
            let mut client = ServerReflectionClient::new(channel(url));
            let answers = client.server_reflection_info(stream::iter([request])).await;
            let answer = answers.expect("a stream").into_inner().message().await;
            match answer.expect("no error").expect("an answer").message_response {
                Some(MessageResponse::ListServicesResponse(list)) => list
                    .service
                    .into_iter()
                    .map(|service| service.name)
                    .collect::<Vec<String>>(),
                Some(MessageResponse::FileDescriptorResponse(files)) => files
                    .file_descriptor_proto
                    .iter()
                    .map(|file| {
                        let file = prost_reflect::prost_types::FileDescriptorProto::decode(&file[..]);
                        file.expect("a descriptor").name().to_string()
                    })
                    .collect::<Vec<String>>(),
                other => panic!("{other:?}"),
            }
        }};
    }
    for services in [told!(v1, ListServices, ""), told!(v1alpha, ListServices, "")] {
        for service in SERVICES {
            assert!(
                services.iter().any(|named| named == service),
                "{service} in {services:?}"
            );
        }
    }
    let file = told!(v1, FileContainingSymbol, "etcdserverpb.KV.Range");
    assert!(file.iter().any(|name| name.ends_with("rpc.proto")), "{file:?}");
    assert_eq!(
        file,
        told!(v1alpha, FileContainingSymbol, "etcdserverpb.KV.Range")
    );
}

async fn an_answer_may_be_larger_than_any_request(cluster: &Cluster) {
    const VALUES: usize = 70;
    const VALUE: usize = 1_500_000;
    let mut client = cluster.client(0);
    for number in 0..VALUES {
        let put = put_request(format!("large/{number}").as_bytes(), &vec![b'v'; VALUE]);
        client.call(Request::Put(put)).await.expect("a put");
    }
    let Response::Range(range) = client
        .call(Request::Range(everything()))
        .await
        .expect("a range of 100 MB")
    else {
        panic!("a range answers a range");
    };
    let bytes: usize = range.kvs.iter().map(|kv| kv.value.len()).sum();
    assert_eq!((range.count, bytes), (VALUES as i64, VALUES * VALUE));
}

/// And does not hold it up.
async fn health_ends_with_the_member(mut cluster: Cluster) {
    let mut health = HealthClient::new(channel(&cluster.members[0].client_url));
    let told = health.watch(HealthCheckRequest::default()).await;
    let mut told = told.expect("a stream").into_inner();
    assert!(told.message().await.expect("no error").is_some());
    assert!(cluster.terminate(0).await.success());
    let last = told.message().await.expect("no error").expect("a word");
    assert_eq!(last.status(), ServingStatus::NotServing);
    assert_eq!(told.message().await.expect("no error"), None);
    let log = std::fs::read_to_string(cluster.members[0].log_file()).expect("a log");
    assert!(!log.contains("cut off"), "{log}");
}

/// Calls that wait for something that does not come, each with the answer of a member whose client has set a deadline.
async fn overdue(endpoint: &str) -> Vec<String> {
    for id in [7, 8] {
        let grant = json!({"ID": id, "TTL": 600}).to_string();
        assert_eq!(post(endpoint, "/v3/lease/grant", &grant).await.status, 200);
    }
    let held = post(endpoint, "/v3/lock/lock", r#"{"name":"bG9jaw==","lease":7}"#).await;
    assert_eq!(held.status, 200);
    let mut said = Vec::new();
    for (path, body) in [
        ("/v3/lock/lock", r#"{"name":"bG9jaw==","lease":8}"#),
        ("/v3/watch", r#"{"create_request":{"key":"YQ=="}}"#),
    ] {
        let answer = ask(
            endpoint,
            "POST",
            path,
            &[("Grpc-Timeout", "300m")],
            body.as_bytes(),
        )
        .await;
        let last = answer.text().lines().last().unwrap_or_default().to_string();
        let mut last: Value = serde_json::from_str(&last).expect("JSON");
        last.sort_all_objects();
        said.push(format!("{path}: {} {last}", answer.status));
    }
    // Who stopped waiting is in nobody's way.
    wait_for(PATIENCE, "the place to be given back", || async {
        let place = post(endpoint, "/v3/kv/range", r#"{"key":"bG9jay84"}"#).await;
        place.json().get("kvs").is_none().then_some(())
    })
    .await;
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_kept_by_the_server_too() {
    let cluster = Cluster::start(1).await;
    let expected = [
        r#"/v3/lock/lock: 504 {"code":4,"error":"context deadline exceeded","message":"context deadline exceeded"}"#,
        r#"/v3/watch: 200 {"error":{"grpc_code":4,"http_code":504,"http_status":"Gateway Timeout","message":"context deadline exceeded"}}"#,
    ];
    assert_eq!(overdue(&cluster.members[0].client_url).await, expected);
    let Some(binary) = Etcd::find() else { return };
    let etcd = Etcd::start(&binary).await;
    // It is a matter of luck there whether the code is kept.
    for said in overdue(&etcd.endpoint).await {
        assert!(
            said.contains("context deadline exceeded"),
            "etcd {}: {said}",
            etcd.version
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_writes_at_once_than_allowed_are_refused_and_not_made() {
    let cluster = Cluster::start_with(1, &["--max-in-flight", "1"]).await;
    let client = cluster.client(0);
    let (mut made, mut refused) = (0, 0);
    let mut round = 0;
    // On an idle machine the first round will do.
    while made == 0 || refused == 0 {
        let puts = (0..100).map(|number| {
            let mut client = client.clone();
            let key = format!("{round}/{number}");
            async move { client.put(&key, "v").await }
        });
        for answer in join_all(puts).await {
            match answer {
                Ok(_) => made += 1,
                Err(status) => {
                    let said = (status.code(), status.message());
                    assert_eq!(said, (Code::ResourceExhausted, "etcdserver: too many requests"));
                    refused += 1;
                }
            }
        }
        round += 1;
        assert!(round < 1000, "never too many: {made} made");
    }
    let count = RangeRequest {
        count_only: true,
        ..everything()
    };
    let Ok(Response::Range(range)) = client.clone().call(Request::Range(count)).await else {
        panic!("reads are not counted");
    };
    assert_eq!(range.count, made, "{refused} were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_nowhere_is_said_so() {
    let cluster = Cluster::start(1).await;
    let url = &cluster.members[0].client_url;
    for path in ["/debug/pprof/", "/debug/vars", "/config/local/log", "/v2/keys/a"] {
        let mut http = Http::connect(url).await;
        http.ask("GET", path, &[], b"").await;
        let answer = http.answer().await.expect("an answer");
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (404, "404 page not found\n"),
            "{path}"
        );
    }
}
