//! The JSON gateway: the same requests to a real etcd and to ours get the same status and the same JSON; streams come
//! message by message.

use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::etcd::Etcd;
use crate::support::http::{Answer, Http, ask, get, post};

/// Requests in this order: path, body. The store is empty before the first.
const SCRIPT: &[(&str, &str)] = &[
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v"}"#),
    ("/v3beta/kv/range", r#"{"key":"Zm9v"}"#),
    // Both spellings, numbers and names, what nobody knows, and something behind it.
    (
        "/v3/kv/range",
        r#"{"key":"Zm9v","sortOrder":"DESCEND","sort_target":1,"bogus":{"a":[1]},"limit":"5"} trailing"#,
    ),
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#),
    ("/v3/kv/put", r#"{"key":"AP8=","value":""}"#),
    (
        "/v3/kv/range",
        r#"{"key":"AA==","range_end":"AA==","count_only":true}"#,
    ),
    ("/v3/kv/range", r#"{"key":"AA==","rangeEnd":"AA==","limit":1}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":2}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":"99"}"#),
    ("/v3/kv/range", r#"{"key":"bm9uZQ=="}"#),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"key":"Zm9v","target":"VERSION","result":"EQUAL","version":"2"}],
            "success":[{"request_range":{"key":"Zm9v"}},{"requestPut":{"key":"Zg==","value":""}},
                {"request_txn":{"failure":[],"success":[{"request_delete_range":{"key":"Zg=="}}]}}],
            "failure":[{"request_put":{"key":"bm8=","value":"bm8="}}]}"#,
    ),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"key":"Zm9v","target":"VERSION","version":"2"}],
            "success":[{"request_range":{"key":"Zm9v"}},{"requestPut":{"key":"Zg==","value":""}}]}"#,
    ),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"key":"Zm9v","target":2,"mod_revision":"1"}],"failure":[{"request_delete_range":{"key":"Zm9v","prev_kv":true}}]}"#,
    ),
    ("/v3/kv/deleterange", r#"{"key":"Zg==","prev_kv":true}"#),
    ("/v3/kv/deleterange", r#"{"key":"Zg=="}"#),
    ("/v3/kv/compaction", r#"{"revision":99}"#),
    ("/v3/kv/compaction", r#"{"revision":"3"}"#),
    ("/v3/kv/compaction", r#"{"revision":"3"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":2}"#),
    // Refused by the service.
    ("/v3/kv/range", ""),
    ("/v3/kv/range", "null"),
    ("/v3/kv/range", r#"{"key":null}"#),
    ("/v3/kv/put", r#"{"value":"YmF6"}"#),
    ("/v3/kv/put", r#"{"key":"YQ==","lease":"4242"}"#),
    // Refused by the gateway: the text is the JSON library's.
    ("/v3/kv/range", r#"{"key":"!!!"}"#),
    ("/v3/kv/range", r#"{"key":"Zm8="#),
    ("/v3/kv/range", "[]"),
    ("/v3/kv/range", r#"{"key":"Zm9v","sort_target":"NOPE"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":"x"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","limit":1.5}"#),
    ("/v3/kv/range", "{"),
    // Leases; a keep-alive's body may hold several, and ends them.
    ("/v3/lease/grant", r#"{"TTL":1000,"ID":7}"#),
    ("/v3/lease/grant", r#"{"TTL":"1000","ID":"7"}"#),
    ("/v3/lease/keepalive", r#"{"ID":7}"#),
    ("/v3/lease/keepalive", r#"{"ID":"7"} {"ID":8}"#),
    ("/v3/lease/keepalive", ""),
    ("/v3/kv/put", r#"{"key":"bGVhc2Vk","lease":7}"#),
    ("/v3/kv/range", r#"{"key":"bGVhc2Vk"}"#),
    ("/v3/lease/timetolive", r#"{"ID":77}"#),
    ("/v3/kv/lease/timetolive", r#"{"ID":7,"keys":true}"#),
    ("/v3/lease/leases", "{}"),
    ("/v3/kv/lease/leases", ""),
    ("/v3/lease/revoke", r#"{"ID":77}"#),
    ("/v3/kv/lease/revoke", r#"{"ID":7}"#),
    ("/v3/kv/range", r#"{"key":"bGVhc2Vk"}"#),
    // Others than KV.
    ("/v3/maintenance/alarm", r#"{"action":"GET"}"#),
    ("/v3/maintenance/status", "{}"),
    ("/v3/cluster/member/list", ""),
    ("/v3/auth/authenticate", r#"{"name":"x","password":"y"}"#),
    ("/v3/auth/user/add", r#"{"name":"someone","password":"y"}"#),
    ("/v3/auth/user/add", r#"{"name":"someone","password":"y"}"#),
    ("/v3/auth/user/get", r#"{"name":"nobody"}"#),
    ("/v3/auth/role/add", r#"{"name":"reader"}"#),
    (
        "/v3/auth/role/grant",
        r#"{"name":"reader","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}"#,
    ),
    ("/v3/auth/role/get", r#"{"role":"reader"}"#),
    ("/v3/auth/user/grant", r#"{"user":"someone","role":"reader"}"#),
    ("/v3/auth/user/get", r#"{"name":"someone"}"#),
    ("/v3/auth/user/list", "{}"),
    ("/v3/auth/enable", ""),
    // No such path.
    ("/v3/kv/nothing", "{}"),
    ("/v3alpha/kv/range", "{}"),
    ("/v2/keys", "{}"),
];

/// Without what differs between any two clusters or releases.
fn comparable(path: &str, status: u16, body: &[u8]) -> (u16, Value) {
    // One value, or a line for each of a stream.
    let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(body).into_iter().collect();
    let mut body = match values {
        Ok(mut values) if values.len() == 1 && !body.ends_with(b"\n") => values.remove(0),
        Ok(values) => Value::from(values),
        Err(_) => return (status, Value::from(String::from_utf8_lossy(body))),
    };
    // 3.4 answers a refused alarm's GET, and FAILED_PRECONDITION, differently from later releases; 3.5 is followed.
    let status = if status == 412 { 400 } else { status };
    if path == "/v3/maintenance/alarm" && body == json!({}) {
        body = json!({"header": {"revision": "*"}});
    }
    strip(&mut body);
    if path == "/v3/kv/lease/timetolive" {
        // It ticks.
        body["TTL"] = json!(body["TTL"].is_string());
    }
    if path == "/v3/maintenance/alarm" {
        body = json!({"alarms": body.get("alarms")});
    }
    if path == "/v3/maintenance/status" {
        let names = [
            "version",
            "dbSize",
            "leader",
            "raftIndex",
            "raftTerm",
            "raftAppliedIndex",
            "dbSizeInUse",
        ];
        let texts = names.map(|name| (name, body[name].is_string()));
        body = json!(texts);
    }
    if path == "/v3/maintenance/hash" {
        body = json!(body["hash"].is_u64());
    }
    if path == "/v3/cluster/member/promote" {
        // 3.4 and 3.5 forget the code of this refusal.
        body = json!(body["message"]);
        return (0, body);
    }
    if let Some(member) = body.get_mut("member") {
        let shape: Vec<String> = member.as_object().expect("a member").keys().cloned().collect();
        *member = json!(shape);
    }
    if let Some(members) = body.get_mut("members").and_then(Value::as_array_mut) {
        for member in members.iter_mut() {
            let shape: Vec<String> = member.as_object().expect("a member").keys().cloned().collect();
            *member = json!(shape);
        }
        // They come by their ids, which differ.
        members.sort_by_key(ToString::to_string);
    }
    // What a JSON library says of bad JSON is its own.
    let is_ours = |text: &str| text.starts_with("etcdserver: ") || text.starts_with("election: ");
    if let Some(error) = body.get("error").and_then(Value::as_str)
        && !is_ours(error)
    {
        assert_eq!(body["error"], body["message"]);
        body = json!({"code": body["code"], "text": "of the JSON library"});
    }
    (status, body)
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for name in ["cluster_id", "member_id", "raft_term"] {
                fields.remove(name);
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_json_gets_the_same_answer_as_from_etcd() {
    let Some(binary) = Etcd::find() else {
        println!("skipped: no etcd on this machine");
        return;
    };
    let cluster = Cluster::start(1).await;
    let etcd = Etcd::start(&binary).await;
    let ours = &cluster.members[0].client_url;
    for (path, body) in SCRIPT {
        let (real, own) = (
            post(&etcd.endpoint, path, body).await,
            post(ours, path, body).await,
        );
        let kind = |answer: &Answer| answer.header("content-type").map(ToString::to_string);
        assert_eq!(kind(&own), kind(&real), "{path} {body}");
        for name in [
            "access-control-allow-origin",
            "access-control-allow-methods",
            "access-control-allow-headers",
        ] {
            assert_eq!(own.header(name), real.header(name), "{path} {body}");
        }
        assert_eq!(
            comparable(path, own.status, &own.body),
            comparable(path, real.status, &real.body),
            "{path} {body}: ours (left) and etcd {}",
            etcd.version
        );
    }
    for (method, path) in [
        ("GET", "/v3/kv/range"),
        ("PUT", "/v3/kv/range"),
        ("OPTIONS", "/v3/kv/range"),
        ("OPTIONS", "/nothing"),
        ("GET", "/nothing"),
        ("POST", "/health"),
        ("POST", "/version"),
    ] {
        let (real, own) = (
            ask(&etcd.endpoint, method, path, &[], b"").await,
            ask(ours, method, path, &[], b"").await,
        );
        assert_eq!(
            (own.status, own.text()),
            (real.status, real.text()),
            "{method} {path}"
        );
        assert_eq!(own.header("allow"), real.header("allow"), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_content_type_works_and_a_token_is_passed_on() {
    let cluster = Cluster::start(1).await;
    let url = &cluster.members[0].client_url;
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/grpc",
        "nonsense",
    ] {
        let answer = ask(
            url,
            "POST",
            "/v3/kv/put",
            &[("Content-Type", kind)],
            br#"{"key":"YQ=="}"#,
        )
        .await;
        assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
    }
    for (path, body) in [
        ("/v3/auth/user/add", r#"{"name":"root","password":"secret"}"#),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/enable", "{}"),
    ] {
        let answer = post(url, path, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let refused = post(url, "/v3/kv/range", r#"{"key":"YQ=="}"#).await;
    assert_eq!(refused.json()["error"], "etcdserver: user name is empty");
    let login = post(
        url,
        "/v3/auth/authenticate",
        r#"{"name":"root","password":"secret"}"#,
    )
    .await;
    let token = login.json()["token"].as_str().expect("a token").to_string();
    for token in [token.clone(), format!("Bearer {token}")] {
        let headers = [("Authorization", token.as_str())];
        let answer = ask(url, "POST", "/v3/kv/range", &headers, br#"{"key":"YQ=="}"#).await;
        assert_eq!(answer.json()["count"], "1", "{}", answer.text());
        let answer = ask(url, "GET", "/kv/a", &headers, b"").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let answer = ask(
        url,
        "POST",
        "/v3/kv/range",
        &[("Authorization", "none")],
        br#"{"key":"YQ=="}"#,
    )
    .await;
    assert_eq!(
        (answer.status, answer.json()["code"].clone()),
        (401, json!(16)),
        "{}",
        answer.text()
    );
    assert_eq!(get(url, "/kv/a").await.status, 400);
    // Whoever looks after the member needs no name.
    assert_eq!(get(url, "/health").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_comes_as_lines() {
    let cluster = Cluster::start(1).await;
    let mut http = Http::connect(&cluster.members[0].client_url).await;
    http.ask("POST", "/v3/maintenance/snapshot", &[], b"{}").await;
    let head = http.head().await.expect("an answer");
    assert_eq!(
        (head.status, head.header("transfer-encoding")),
        (200, Some("chunked"))
    );
    let mut blobs = 0;
    while let Some(line) = http.json_chunk().await {
        assert!(line["result"]["blob"].is_string(), "{line}");
        blobs += 1;
    }
    assert!(blobs >= 2, "the database and its sum");
    // The connection serves the next request.
    http.ask("POST", "/v3/kv/put", &[], br#"{"key":"YQ=="}"#).await;
    assert_eq!(http.answer().await.expect("an answer").status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_can_be_switched_off_and_hosts_and_origins_bounded() {
    let flags = [
        "--enable-grpc-gateway=false",
        "--host-whitelist=good.example,127.0.0.1",
        "--cors=http://page.example",
    ];
    let mut cluster = Cluster::prepare(1, &flags).await;
    cluster.spawn(0);
    cluster.await_ready().await;
    let url = &cluster.members[0].client_url;
    let from = |host: &'static str| {
        let request = format!("GET /version HTTP/1.1\r\nHost: {host}\r\nOrigin: http://page.example\r\n\r\n");
        async move {
            let mut http = Http::connect(url).await;
            http.send(request).await;
            http.answer().await.expect("an answer")
        }
    };
    assert_eq!(from("bad.example").await.status, 421);
    for host in ["good.example", "good.example:2379", "127.0.0.1:1"] {
        let answer = from(host).await;
        assert_eq!(answer.status, 200, "{host}");
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("http://page.example")
        );
    }
    let request = "POST /v3/kv/range HTTP/1.1\r\nHost: good.example\r\nContent-Length: 2\r\n\r\n{}";
    let mut http = Http::connect(url).await;
    http.send(request).await;
    let answer = http.answer().await.expect("an answer");
    assert_eq!(
        (answer.status, answer.text()),
        (404, "404 page not found\n".to_string())
    );
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

/// What a watch that begins with `body` says, up to `lines` lines, without what differs between clusters.
async fn watched(endpoint: &str, body: &str, lines: usize) -> (u16, Vec<Value>) {
    let mut http = Http::connect(endpoint).await;
    http.ask("POST", "/v3/watch", &[], body.as_bytes()).await;
    let head = http.head().await.expect("an answer");
    let mut said = Vec::new();
    while said.len() < lines {
        let mut line = http.json_chunk().await.expect("a line");
        strip(&mut line);
        said.push(line);
    }
    (head.status, said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_says_what_etcds_says_chunk_by_chunk() {
    let Some(binary) = Etcd::find() else {
        println!("skipped: no etcd on this machine");
        return;
    };
    let cluster = Cluster::start(1).await;
    let etcd = Etcd::start(&binary).await;
    let endpoints = [cluster.members[0].client_url.as_str(), etcd.endpoint.as_str()];
    for endpoint in endpoints {
        for (path, body) in [
            ("/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#),
            ("/v3/kv/put", r#"{"key":"YQ==","value":"Mg=="}"#),
            ("/v3/kv/deleterange", r#"{"key":"YQ=="}"#),
            ("/v3/kv/put", r#"{"key":"YQ==","value":"Mw=="}"#),
            ("/v3/kv/compaction", r#"{"revision":3}"#),
        ] {
            assert_eq!(post(endpoint, path, body).await.status, 200, "{path}");
        }
    }
    for (body, lines) in [
        (r#"{"create_request":{"key":"YQ==","start_revision":3}}"#, 2),
        (
            r#"{"createRequest":{"key":"YQ==","startRevision":"4","prevKv":true,"filters":["NODELETE"]}}"#,
            2,
        ),
        (
            r#"{"create_request":{"key":"YQ==","start_revision":2,"watch_id":"5"}}"#,
            2,
        ),
        (
            r#"{"create_request":{"key":"YQ=="}} {"cancel_request":{"watch_id":0}}"#,
            2,
        ),
    ] {
        let ours = watched(endpoints[0], body, lines).await;
        assert_eq!(
            ours,
            watched(endpoints[1], body, lines).await,
            "{body}: ours (left) and etcd"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_after_its_body_and_with_more_of_it() {
    let cluster = Cluster::start(3).await;
    let url = &cluster.members[cluster.follower().await].client_url;
    // The body ends at once: the watch does not.
    let mut ended = Http::connect(url).await;
    ended
        .ask("POST", "/v3/watch", &[], br#"{"create_request":{"key":"YQ=="}}"#)
        .await;
    assert_eq!(ended.head().await.expect("an answer").status, 200);
    assert_eq!(
        ended.json_chunk().await.expect("a line")["result"]["created"],
        true
    );
    // The body goes on: more watches are made, and ended.
    let mut open = Http::connect(url).await;
    let piece = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    open.send("POST /v3/watch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    open.send(piece(r#"{"create_request":"#)).await;
    open.send(piece(r#"{"key":"YQ==","watch_id":"7"}}"#)).await;
    assert_eq!(open.head().await.expect("an answer").status, 200);
    assert_eq!(
        open.json_chunk().await.expect("a line")["result"]["watch_id"],
        "7"
    );
    for n in 1..=3 {
        post(url, "/v3/kv/put", r#"{"key":"YQ=="}"#).await;
        for http in [&mut ended, &mut open] {
            let line = http.json_chunk().await.expect("a line");
            assert_eq!(
                line["result"]["events"][0]["kv"]["version"],
                n.to_string(),
                "{line}"
            );
        }
    }
    open.send(piece(r#"{"cancel_request":{"watch_id":7}}"#)).await;
    assert_eq!(
        open.json_chunk().await.expect("a line")["result"]["canceled"],
        true
    );
}

/// What a server says to calls of which each needs what an earlier one said: a lock, an election that is observed, and a
/// member that comes and goes.
async fn locks_elections_and_members(endpoint: &str) -> Vec<Value> {
    let mut said = Vec::new();
    let mut call = async |path: &'static str, body: Value| {
        let answer = post(endpoint, path, &body.to_string()).await;
        let (status, comparable) = comparable(path, answer.status, &answer.body);
        said.push(json!([path, status, comparable]));
        answer.json()
    };
    call("/v3/lease/grant", json!({"ID": 9, "TTL": 1000})).await;
    let job = json!({"name": "am9i", "lease": "9"});
    let held = call("/v3/lock/lock", job.clone()).await;
    call("/v3/lock/lock", job).await;
    call("/v3/lock/lock", json!({"name": "am9i", "lease": 77})).await;
    call("/v3/lock/unlock", json!({"key": held["key"]})).await;
    call("/v3/lock/unlock", json!({"key": held["key"]})).await;
    call("/v3/lock/unlock", json!({})).await;

    let vacancy = json!({"name": "cG9zdA=="});
    call("/v3/election/leader", vacancy.clone()).await;
    let mut observed = Http::connect(endpoint).await;
    observed
        .ask(
            "POST",
            "/v3/election/observe",
            &[],
            vacancy.to_string().as_bytes(),
        )
        .await;
    let candidate = json!({"name": "cG9zdA==", "lease": 9, "value": "b25l"});
    let led = call("/v3/election/campaign", candidate.clone()).await;
    assert_eq!(observed.head().await.expect("an answer").status, 200);
    let mut leaders = vec![observed.json_chunk().await.expect("a line")];
    let leader = &led["leader"];
    call(
        "/v3/election/proclaim",
        json!({"leader": leader, "value": "dHdv"}),
    )
    .await;
    leaders.push(observed.json_chunk().await.expect("a line"));
    call("/v3/election/leader", vacancy).await;
    call("/v3/election/proclaim", json!({"value": "dHdv"})).await;
    call("/v3/election/resign", json!({})).await;
    call("/v3/election/resign", json!({"leader": leader})).await;
    call(
        "/v3/election/proclaim",
        json!({"leader": leader, "value": "dHdv"}),
    )
    .await;
    call("/v3/election/campaign", candidate).await;
    leaders.push(observed.json_chunk().await.expect("a line"));

    let place = |port: u16| json!([format!("http://127.0.0.1:{port}")]);
    let added = call(
        "/v3/cluster/member/add",
        json!({"peerURLs": place(1), "isLearner": true}),
    )
    .await;
    let id = &added["member"]["ID"];
    call(
        "/v3/cluster/member/add",
        json!({"peerURLs": place(2), "isLearner": true}),
    )
    .await;
    call("/v3/cluster/member/add", json!({"peerURLs": ["nowhere"]})).await;
    // Not of the learner, which 3.4 and 3.5 then list as a voter.
    call(
        "/v3/cluster/member/update",
        json!({"ID": 7, "peerURLs": place(3)}),
    )
    .await;
    call("/v3/cluster/member/promote", json!({"ID": id})).await;
    call("/v3/maintenance/transfer-leadership", json!({"targetID": id})).await;
    call("/v3/cluster/member/remove", json!({"ID": id})).await;
    call("/v3/cluster/member/remove", json!({"ID": id})).await;
    call("/v3/maintenance/transfer-leadership", json!({"targetID": "7"})).await;
    call("/v3/maintenance/defragment", json!({})).await;
    let hash = call("/v3/maintenance/hash", json!({})).await;
    assert!(hash["hash"].is_u64(), "{hash}");
    leaders.iter_mut().for_each(strip);
    said.extend(leaders);
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_an_earlier_answer_is_answered_as_by_etcd() {
    crate::support::etcd::answers_are_etcds(locks_elections_and_members).await;
}
