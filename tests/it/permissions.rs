//! What each user may do, call by call. Asked over the JSON gateway, which passes tokens on to the same services; a real
//! etcd, where there is one, is asked the same.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::etcd::Etcd;
use crate::support::http::ask;
use crate::support::process::wait_for;

const OK: &str = "ok";
const DENIED: &str = "7 etcdserver: permission denied";
const NOBODY: &str = "3 etcdserver: user name is empty";
const NO_ROLE: &str = "9 etcdserver: role name not found";

fn bytes(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// A server, and who is known there.
struct Site {
    url: String,
    tokens: BTreeMap<&'static str, String>,
}

impl Site {
    fn new(url: &str) -> Site {
        Site {
            url: url.to_string(),
            tokens: BTreeMap::new(),
        }
    }

    /// The whole answer, or code and text of the refusal.
    async fn call(&self, who: &str, path: &str, body: &Value) -> Result<Value, String> {
        let token = self
            .tokens
            .get(who)
            .map(|token| ("Authorization", token.as_str()));
        let headers: Vec<_> = token.into_iter().collect();
        let path = format!("/v3/{path}");
        let answer = ask(&self.url, "POST", &path, &headers, body.to_string().as_bytes()).await;
        let mut lines = serde_json::Deserializer::from_slice(&answer.body).into_iter();
        let answer: Value = match lines.next() {
            Some(Ok(line)) => line,
            _ => panic!("{path}: {} {}", answer.status, answer.text()),
        };
        match &answer["error"] {
            Value::Null => Ok(answer),
            // Of a stream.
            Value::Object(error) => Err(format!("{} {}", error["grpc_code"], text(&error["message"]))),
            error => Err(format!("{} {}", answer["code"], text(error))),
        }
    }

    async fn must(&self, who: &str, path: &str, body: Value) -> Value {
        let answer = self.call(who, path, &body).await;
        answer.unwrap_or_else(|refused| panic!("{who}: {path} {body}: {refused}"))
    }

    async fn log_in(&mut self, name: &'static str, password: &str) -> Result<(), String> {
        let body = json!({"name": name, "password": password});
        let answer = self.call("", "auth/authenticate", &body).await?;
        self.tokens.insert(name, text(&answer["token"]));
        Ok(())
    }

    /// root, and alice with one role for each kind of permission; access control is on.
    async fn guard(&mut self) {
        for name in ["root", "alice"] {
            self.must("", "auth/user/add", json!({"name": name, "password": "p"}))
                .await;
        }
        for (role, kind, key, end) in [
            ("owner", "READWRITE", "a", "c"),
            ("reader", "READ", "r", "s"),
            ("writer", "WRITE", "w", "x"),
        ] {
            self.must("", "auth/role/add", json!({"name": role})).await;
            let perm = json!({"permType": kind, "key": bytes(key), "range_end": bytes(end)});
            self.must("", "auth/role/grant", json!({"name": role, "perm": perm}))
                .await;
            self.must("", "auth/user/grant", json!({"user": "alice", "role": role}))
                .await;
        }
        self.must("", "auth/role/add", json!({"name": "nobodys"})).await;
        self.must("", "auth/user/grant", json!({"user": "root", "role": "root"}))
            .await;
        self.must("", "auth/enable", json!({})).await;
        for name in ["root", "alice"] {
            self.log_in(name, "p").await.expect("a token");
        }
        self.tokens.insert("forger", "abcdefghijklmnop.1".to_string());
    }

    /// Leases 1 to 5, each with the keys that it is named for.
    async fn attach(&self) {
        for (lease, keys) in [
            (OWN, &["a"][..]),
            (FOREIGN, &["z"]),
            (MIXED, &["b", "z1"]),
            (READABLE, &["r"]),
            (WRITABLE, &["w"]),
        ] {
            self.must("root", "lease/grant", json!({"ID": lease, "TTL": 1000}))
                .await;
            for key in keys {
                self.must("root", "kv/put", json!({"key": bytes(key), "lease": lease}))
                    .await;
            }
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

const OWN: i64 = 1;
const FOREIGN: i64 = 2;
const MIXED: i64 = 3;
const READABLE: i64 = 4;
const WRITABLE: i64 = 5;

/// Whether etcd 3.4 and 3.5 say so too.
#[derive(Clone, Copy, PartialEq)]
enum Etcd34 {
    Agrees,
    /// Later releases do: the earlier ones let too many in, or have another code for it.
    Differs,
}
use Etcd34::{Agrees, Differs};

/// Who asks what, and the answer.
type Line = (&'static str, &'static str, Value, &'static str, Etcd34);

/// What ends a lease takes its keys away; what lists them tells of them.
fn about_leases() -> Vec<Line> {
    let put = |key: &str, lease: i64| json!({"key": bytes(key), "lease": lease});
    let txn = |op: Value| json!({"failure": [{"request_put": op}]});
    let id = |lease: i64| json!({"ID": lease});
    let keys = |lease: i64| json!({"ID": lease, "keys": true});
    vec![
        ("alice", "lease/grant", json!({"ID": 9, "TTL": 1000}), OK, Agrees),
        ("", "lease/grant", json!({"ID": 10, "TTL": 1000}), NOBODY, Differs),
        ("alice", "kv/put", put("b1", OWN), OK, Agrees),
        ("alice", "kv/put", put("b1", 9), OK, Agrees),
        ("alice", "kv/put", put("b1", FOREIGN), DENIED, Agrees),
        ("alice", "kv/put", put("b1", MIXED), DENIED, Agrees),
        ("alice", "kv/put", put("b1", READABLE), DENIED, Agrees),
        ("alice", "kv/put", put("b1", WRITABLE), OK, Agrees),
        ("alice", "kv/txn", txn(put("b1", FOREIGN)), DENIED, Differs),
        ("alice", "kv/txn", txn(put("b1", OWN)), OK, Agrees),
        ("alice", "lease/keepalive", id(OWN), OK, Agrees),
        ("alice", "lease/keepalive", id(WRITABLE), OK, Agrees),
        ("alice", "lease/keepalive", id(FOREIGN), DENIED, Differs),
        ("alice", "lease/keepalive", id(MIXED), DENIED, Differs),
        ("", "lease/keepalive", id(OWN), NOBODY, Differs),
        ("alice", "lease/timetolive", id(FOREIGN), OK, Agrees),
        ("alice", "lease/timetolive", keys(OWN), OK, Agrees),
        ("alice", "lease/timetolive", keys(READABLE), OK, Agrees),
        ("alice", "lease/timetolive", keys(WRITABLE), DENIED, Differs),
        ("alice", "lease/timetolive", keys(FOREIGN), DENIED, Differs),
        ("alice", "lease/timetolive", keys(MIXED), DENIED, Differs),
        ("alice", "lease/leases", json!({}), OK, Agrees),
        ("alice", "lease/revoke", id(FOREIGN), DENIED, Agrees),
        ("alice", "lease/revoke", id(MIXED), DENIED, Agrees),
        ("alice", "lease/revoke", id(READABLE), DENIED, Agrees),
        ("alice", "lease/revoke", id(WRITABLE), OK, Agrees),
        ("alice", "lease/revoke", id(OWN), OK, Agrees),
    ]
}

/// A previous pair is read.
fn about_previous_pairs() -> Vec<Line> {
    let put = |key: &str| json!({"key": bytes(key)});
    let told = |key: &str| json!({"key": bytes(key), "prev_kv": true});
    let nested = |kind: &str, op: Value| json!({"success": [{"request_txn": {"failure": [{kind: op}]}}]});
    vec![
        ("alice", "kv/put", put("w"), OK, Agrees),
        ("alice", "kv/put", told("w"), DENIED, Agrees),
        ("alice", "kv/put", told("a"), OK, Agrees),
        ("alice", "kv/put", put("r"), DENIED, Agrees),
        ("alice", "kv/deleterange", told("w"), DENIED, Agrees),
        ("alice", "kv/deleterange", put("r"), DENIED, Agrees),
        ("alice", "kv/range", put("w"), DENIED, Agrees),
        ("alice", "kv/range", put("r"), OK, Agrees),
        (
            "alice",
            "kv/txn",
            nested("request_put", told("w")),
            DENIED,
            Differs,
        ),
        (
            "alice",
            "kv/txn",
            nested("request_delete_range", told("w")),
            DENIED,
            Differs,
        ),
        ("alice", "kv/txn", nested("request_put", put("w")), OK, Agrees),
        ("alice", "kv/deleterange", put("w"), OK, Agrees),
    ]
}

/// One may look at oneself. The role root can be given without having been made, but not be looked at.
fn about_oneself() -> Vec<Line> {
    let user = |name: &str| json!({"name": name});
    let role = |name: &str| json!({"role": name});
    vec![
        ("alice", "auth/user/get", user("alice"), OK, Agrees),
        ("alice", "auth/user/get", user("root"), DENIED, Agrees),
        ("alice", "auth/user/get", user("no such user"), DENIED, Agrees),
        ("alice", "auth/role/get", role("owner"), OK, Agrees),
        ("alice", "auth/role/get", role("nobodys"), DENIED, Agrees),
        ("alice", "auth/role/get", role("root"), DENIED, Agrees),
        ("alice", "auth/role/get", role("no such role"), DENIED, Agrees),
        ("root", "auth/role/get", role("root"), NO_ROLE, Agrees),
        ("root", "auth/role/add", user("root"), OK, Agrees),
        ("root", "auth/role/get", role("root"), OK, Agrees),
        ("root", "auth/role/get", role("nobodys"), OK, Agrees),
        (
            "root",
            "auth/user/get",
            user("no such user"),
            "9 etcdserver: user name not found",
            Agrees,
        ),
        ("root", "auth/role/get", role("no such role"), NO_ROLE, Agrees),
    ]
}

/// What is for root alone, asked by somebody who is known; and what is for anybody who is.
fn about_root() -> Vec<Line> {
    let nothing = || json!({});
    let member = || json!({"ID": "1", "peerURLs": ["http://127.0.0.1:1"]});
    let alarm = |action: &str| json!({"action": action, "memberID": "1", "alarm": "NOSPACE"});
    let user = || json!({"name": "alice", "user": "alice", "role": "root", "password": "new"});
    let role = || json!({"name": "owner", "role": "owner", "key": bytes("a"), "range_end": bytes("c")});
    let perm = || json!({"name": "owner", "perm": {"permType": "READWRITE", "key": bytes("z")}});
    vec![
        ("alice", "maintenance/status", nothing(), OK, Agrees),
        ("alice", "maintenance/alarm", alarm("GET"), OK, Agrees),
        ("alice", "cluster/member/list", nothing(), OK, Agrees),
        ("alice", "kv/compaction", json!({"revision": 1}), DENIED, Differs),
        ("alice", "maintenance/alarm", alarm("ACTIVATE"), DENIED, Differs),
        ("alice", "maintenance/alarm", alarm("DEACTIVATE"), DENIED, Differs),
        ("alice", "maintenance/defragment", nothing(), DENIED, Differs),
        ("alice", "maintenance/hash", nothing(), DENIED, Differs),
        ("alice", "maintenance/hashkv", nothing(), DENIED, Differs),
        ("alice", "maintenance/snapshot", nothing(), DENIED, Differs),
        (
            "alice",
            "maintenance/transfer-leadership",
            json!({"targetID": "1"}),
            DENIED,
            Differs,
        ),
        ("alice", "cluster/member/add", member(), DENIED, Agrees),
        ("alice", "cluster/member/remove", member(), DENIED, Agrees),
        ("alice", "cluster/member/update", member(), DENIED, Agrees),
        ("alice", "cluster/member/promote", member(), DENIED, Agrees),
        ("alice", "auth/enable", nothing(), DENIED, Agrees),
        ("alice", "auth/disable", nothing(), DENIED, Agrees),
        ("alice", "auth/status", nothing(), DENIED, Differs),
        (
            "alice",
            "auth/user/add",
            json!({"name": "new", "password": "p"}),
            DENIED,
            Agrees,
        ),
        ("alice", "auth/user/list", nothing(), DENIED, Agrees),
        ("alice", "auth/user/delete", user(), DENIED, Agrees),
        ("alice", "auth/user/changepw", user(), DENIED, Agrees),
        ("alice", "auth/user/grant", user(), DENIED, Agrees),
        ("alice", "auth/user/revoke", user(), DENIED, Agrees),
        ("alice", "auth/role/add", json!({"name": "new"}), DENIED, Agrees),
        ("alice", "auth/role/list", nothing(), DENIED, Agrees),
        ("alice", "auth/role/delete", role(), DENIED, Agrees),
        ("alice", "auth/role/grant", perm(), DENIED, Agrees),
        ("alice", "auth/role/revoke", role(), DENIED, Agrees),
    ]
}

/// Lock and Election do what they do in the name of whoever asks; they forget the codes of refusals.
fn about_recipes() -> Vec<Line> {
    const DENIED: &str = "2 etcdserver: permission denied";
    const NOBODY: &str = "2 etcdserver: user name is empty";
    const FORGED: &str = "2 etcdserver: invalid auth token";
    let lock = |name: &str| json!({"name": bytes(name), "lease": 9});
    let unlock = |key: &str| json!({"key": bytes(key)});
    let campaign = |name: &str| json!({"name": bytes(name), "lease": 9, "value": ""});
    let leader = |name: &str| json!({"name": bytes(name)});
    vec![
        ("alice", "lock/lock", lock("a"), OK, Agrees),
        ("alice", "lock/lock", lock("z"), DENIED, Agrees),
        ("", "lock/lock", lock("a"), NOBODY, Agrees),
        ("forger", "lock/lock", lock("a"), FORGED, Agrees),
        ("alice", "lock/unlock", unlock("z"), DENIED, Agrees),
        ("alice", "lock/unlock", unlock("a/9"), OK, Agrees),
        ("alice", "election/campaign", campaign("b"), OK, Agrees),
        ("alice", "election/campaign", campaign("z"), DENIED, Agrees),
        ("alice", "election/leader", leader("b"), OK, Agrees),
        ("alice", "election/leader", leader("z"), DENIED, Agrees),
        // There the stream ends without a word.
        ("alice", "election/observe", leader("z"), DENIED, Differs),
    ]
}

fn script() -> Vec<Line> {
    [
        about_leases(),
        about_previous_pairs(),
        about_oneself(),
        about_root(),
        about_recipes(),
    ]
    .concat()
}

/// Follows the script; what was answered otherwise than it says.
async fn surprises(site: &Site, compare: impl Fn(Etcd34) -> bool) -> Vec<String> {
    let mut surprises = Vec::new();
    for (who, path, body, expected, etcd) in script() {
        if !compare(etcd) {
            continue;
        }
        let answer = site.call(who, path, &body).await;
        let said = answer.map_or_else(|refused| refused, |_| OK.to_string());
        if said != expected {
            surprises.push(format!("{who:?}: {path} {body}: {said:?}, not {expected:?}"));
        }
    }
    surprises
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_refused_to_whoever_may_not() {
    let mut cluster = Cluster::start_with(1, &["--bcrypt-cost", "4"]).await;
    let mut ours = Site::new(&cluster.members[0].client_url);
    ours.guard().await;
    ours.attach().await;
    let wrong = surprises(&ours, |_| true).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    passwords_are_hashed_here(&mut ours).await;
    a_token_that_is_not_used_runs_out(&mut cluster).await;
    for binary in Etcd::find_all() {
        let etcd = Etcd::start(&binary).await;
        let mut theirs = Site::new(&etcd.endpoint);
        theirs.guard().await;
        theirs.attach().await;
        let wrong = surprises(&theirs, |etcd| etcd == Agrees).await;
        assert!(wrong.is_empty(), "etcd {}: {wrong:#?}", etcd.version);
        passwords_are_hashed_here(&mut theirs).await;
    }
}

/// A hash that a client brings along is not taken for the one of the password: the field is for the log.
async fn passwords_are_hashed_here(site: &mut Site) {
    let with_hash =
        |password: &str| json!({"name": "bob", "password": password, "hashedPassword": "Zm9vYmFy"});
    site.must("root", "auth/user/add", with_hash("first")).await;
    site.log_in("bob", "first")
        .await
        .expect("the password as it was given");
    site.must("root", "auth/user/changepw", with_hash("second")).await;
    site.log_in("bob", "second")
        .await
        .expect("the password as it was given");
    assert!(site.log_in("bob", "first").await.is_err(), "the old password");
}

/// Pauses grow until one is too long for the token.
async fn a_token_that_is_not_used_runs_out(cluster: &mut Cluster) {
    assert!(cluster.terminate(0).await.success());
    cluster.set_flags(&["--bcrypt-cost", "4", "--auth-token-ttl", "1"]);
    cluster.spawn(0);
    let mut site = Site::new(&cluster.members[0].client_url);
    wait_for(PATIENCE, "the member to ask who asks", || async {
        let refused = cluster.client(0).get("a").await.err()?;
        (refused.code() == Code::InvalidArgument).then_some(())
    })
    .await;
    let mut pause = Duration::from_millis(500);
    let refused = loop {
        site.log_in("alice", "p").await.expect("a token");
        tokio::time::sleep(pause).await;
        let body = json!({"key": bytes("a")});
        match site.call("alice", "kv/range", &body).await {
            Ok(_) => assert!(pause < PATIENCE, "it never runs out"),
            Err(refused) => break refused,
        }
        pause *= 2;
    };
    assert_eq!(refused, "16 etcdserver: invalid auth token");
}
