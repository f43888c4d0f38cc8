//! Signed tokens: any member that has the public key knows whose they are, until they end or users change.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pontoon::pb::etcdserverpb::auth_client::AuthClient;
use pontoon::pb::etcdserverpb::kv_client::KvClient;
use pontoon::pb::etcdserverpb::*;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::process::wait_for;
use crate::support::rpc::channel;

const BAD: (Code, &str) = (Code::Unauthenticated, "etcdserver: invalid auth token");
const OLD: (Code, &str) = (Code::InvalidArgument, "etcdserver: revision of auth store is old");

/// Files of keys, made by openssl as etcd's documents tell.
struct Keys(PathBuf);

impl Keys {
    /// None without openssl.
    fn make(dir: &Path) -> Option<Keys> {
        let openssl = |command: &str| {
            let run = Command::new("openssl")
                .args(command.split(' '))
                .current_dir(dir)
                .output();
            run.is_ok_and(|output| output.status.success())
        };
        if !openssl("version") {
            println!("skipped: no openssl on this machine");
            return None;
        }
        for command in [
            "genrsa -out rsa.pem 2048",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out ec384.pem",
            // The older form: with the curve before the key, or without it.
            "ecparam -genkey -name prime256v1 -out ec-old.pem",
            "ecparam -genkey -noout -name secp384r1 -out ec384-old.pem",
            "genpkey -algorithm ED25519 -out ed.pem",
        ] {
            assert!(openssl(command), "openssl {command}");
        }
        for key in ["rsa", "ec", "ec384", "ec-old", "ec384-old", "ed"] {
            assert!(openssl(&format!("pkey -in {key}.pem -pubout -out {key}.pub")));
        }
        std::fs::write(dir.join("secret.pem"), "a secret").expect("written");
        Some(Keys(dir.to_path_buf()))
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.join(name)).expect("made before")
    }

    /// `--auth-token` for a method with a key.
    fn flag(&self, method: &str, key: &str) -> String {
        let dir = self.0.display();
        match method.starts_with("HS") {
            true => format!("jwt,sign-method={method},priv-key={dir}/{key}.pem,ttl=1h"),
            false => {
                format!("jwt,pub-key={dir}/{key}.pub,priv-key={dir}/{key}.pem,sign-method={method},ttl=1h")
            }
        }
    }
}

/// The auth revision behind [`guard`]: it begins at 1, and each of three changes adds one.
const REVISION: u64 = 4;

async fn guard(cluster: &Cluster) {
    let mut client = auth(cluster, 0);
    for name in ["root", "alice"] {
        let user = AuthUserAddRequest {
            name: name.to_string(),
            password: "p".to_string(),
            ..Default::default()
        };
        client.user_add(user).await.expect("added");
    }
    let grant = AuthUserGrantRoleRequest {
        user: "root".to_string(),
        role: "root".to_string(),
    };
    client.user_grant_role(grant).await.expect("granted");
    client.auth_enable(AuthEnableRequest {}).await.expect("enabled");
}

fn auth(cluster: &Cluster, member: usize) -> AuthClient<Channel> {
    AuthClient::new(channel(&cluster.members[member].client_url))
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("token", token.parse().expect("a token is ASCII"));
    request
}

async fn log_in(cluster: &Cluster, member: usize, name: &str) -> Result<String, Status> {
    let request = AuthenticateRequest {
        name: name.to_string(),
        password: "p".to_string(),
    };
    Ok(auth(cluster, member)
        .authenticate(request)
        .await?
        .into_inner()
        .token)
}

async fn put(cluster: &Cluster, member: usize, token: &str) -> Result<(), Status> {
    let request = PutRequest {
        key: "key".into(),
        ..PutRequest::default()
    };
    let mut client = KvClient::new(channel(&cluster.members[member].client_url));
    client.put(with(token, request)).await.map(drop)
}

#[track_caller]
fn refused(answer: Result<(), Status>, expected: (Code, &str)) {
    let status = answer.expect_err("it must be refused");
    assert_eq!((status.code(), status.message()), expected);
}

/// A token of etcd's form, signed by whoever has `key`; it ends so many seconds from now.
fn forge(algorithm: Algorithm, key: &EncodingKey, revision: u64, ends: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let exp = now.as_secs() as i64 + ends;
    let claims = json!({"username": "root", "revision": revision, "exp": exp});
    jsonwebtoken::encode(&Header::new(algorithm), &claims, key).expect("signed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_token_is_good_on_every_member_until_it_ends_or_users_change() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(keys) = Keys::make(dir.path()) else {
        return;
    };
    let flag = keys.flag("RS256", "rsa");
    let flags = ["--bcrypt-cost", "4", "--auth-token", flag.as_str()];
    let mut cluster = Cluster::start_with(3, &flags).await;
    guard(&cluster).await;
    let token = log_in(&cluster, 0, "root").await.expect("a token");
    for member in 0..3 {
        put(&cluster, member, &token).await.expect("known everywhere");
    }
    let ours = EncodingKey::from_rsa_pem(&keys.read("rsa.pem")).expect("a key");
    let good = forge(Algorithm::RS256, &ours, REVISION, 60);
    put(&cluster, 1, &good).await.expect("that is how they are made");
    forged_tokens_are_refused(&cluster, &keys, &token).await;
    refused(
        put(&cluster, 1, &forge(Algorithm::RS256, &ours, REVISION, -1)).await,
        BAD,
    );
    refused(
        put(&cluster, 1, &forge(Algorithm::RS256, &ours, REVISION - 1, 60)).await,
        OLD,
    );
    // Members keep nothing of tokens, so they outlive a restart.
    assert!(cluster.terminate(2).await.success());
    cluster.spawn(2);
    wait_for(PATIENCE, "the member to know the token", || async {
        put(&cluster, 2, &token).await.ok()
    })
    .await;
    let alice = log_in(&cluster, 1, "alice").await.expect("a token");
    refused(
        put(&cluster, 2, &alice).await,
        (Code::PermissionDenied, "etcdserver: permission denied"),
    );
    // Any change of users or roles ends all of them.
    let role = AuthRoleAddRequest {
        name: "role".to_string(),
    };
    auth(&cluster, 1)
        .role_add(with(&token, role))
        .await
        .expect("added");
    for member in 0..3 {
        // A write is judged by the log, whatever a member has seen of it.
        refused(put(&cluster, member, &token).await, OLD);
    }
    let again = log_in(&cluster, 2, "root").await.expect("a token");
    put(&cluster, 0, &again).await.expect("a new one is good");
}

/// By another key, by none, and by the public key taken for a shared secret; or changed after it was signed.
async fn forged_tokens_are_refused(cluster: &Cluster, keys: &Keys, token: &str) {
    let other = EncodingKey::from_ed_pem(&keys.read("ed.pem")).expect("a key");
    let public = EncodingKey::from_secret(&keys.read("rsa.pub"));
    let (head, rest) = token.split_once('.').expect("three parts");
    let (claims, signature) = rest.split_once('.').expect("three parts");
    let alice = log_in(cluster, 0, "alice").await.expect("a token");
    let alices = alice.split('.').nth(1).expect("three parts");
    // {"alg":"none"}
    let unsigned = format!("eyJhbGciOiJub25lIn0.{claims}.");
    for forged in [
        forge(Algorithm::EdDSA, &other, REVISION, 60),
        forge(Algorithm::HS256, &public, REVISION, 60),
        format!("{head}.{alices}.{signature}"),
        format!("{head}.{claims}."),
        unsigned,
        "abcdefghijklmnop.1".to_string(),
        ".".to_string(),
    ] {
        refused(put(cluster, 1, &forged).await, BAD);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_signs_what_it_verifies() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(keys) = Keys::make(dir.path()) else {
        return;
    };
    let mut cluster = Cluster::start_with(1, &["--bcrypt-cost", "4"]).await;
    guard(&cluster).await;
    let mut earlier: Option<String> = None;
    for (method, key) in [
        ("HS256", "secret"),
        ("HS512", "secret"),
        ("RS256", "rsa"),
        ("PS384", "rsa"),
        ("ES256", "ec"),
        ("ES256", "ec-old"),
        ("ES384", "ec384"),
        ("ES384", "ec384-old"),
        ("EdDSA", "ed"),
    ] {
        assert!(cluster.terminate(0).await.success());
        cluster.set_flags(&["--auth-token", &keys.flag(method, key)]);
        cluster.spawn(0);
        let what = format!("a login with {method} and {key}");
        let token = wait_for(PATIENCE, &what, || async {
            log_in(&cluster, 0, "root").await.ok()
        })
        .await;
        put(&cluster, 0, &token)
            .await
            .unwrap_or_else(|refused| panic!("{what}: {refused}"));
        if let Some(earlier) = earlier.replace(token) {
            refused(put(&cluster, 0, &earlier).await, BAD);
        }
    }
    // With the public key alone a member knows tokens, and makes none.
    let token = earlier.expect("the last one");
    assert!(cluster.terminate(0).await.success());
    let public = format!("jwt,sign-method=EdDSA,pub-key={}/ed.pub", keys.0.display());
    cluster.set_flags(&["--auth-token", &public]);
    cluster.spawn(0);
    wait_for(PATIENCE, "a put", || async {
        put(&cluster, 0, &token).await.ok()
    })
    .await;
    assert!(log_in(&cluster, 0, "root").await.is_err());
    tokens_end(&mut cluster, &keys).await;
}

/// Pauses grow until one is too long for the token.
async fn tokens_end(cluster: &mut Cluster, keys: &Keys) {
    assert!(cluster.terminate(0).await.success());
    let flag = keys.flag("EdDSA", "ed").replace("ttl=1h", "ttl=1s");
    cluster.set_flags(&["--auth-token", &flag]);
    cluster.spawn(0);
    let cluster = &*cluster;
    let token = wait_for(PATIENCE, "a login", || async {
        log_in(cluster, 0, "root").await.ok()
    })
    .await;
    let status = wait_for(PATIENCE, "the token's end", || async {
        put(cluster, 0, &token).await.err()
    })
    .await;
    assert_eq!((status.code(), status.message()), BAD);
}

#[tokio::test]
async fn keys_that_are_no_use_are_named() {
    use crate::support::cluster::BINARY;
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("noise.pem"), "no key").expect("written");
    let noise = dir.path().join("noise.pem").display().to_string();
    let mut useless = Vec::new();
    if let Some(keys) = Keys::make(dir.path()) {
        let two = keys.flag("ES256", "ec").replace("ec.pub", "ec-old.pub");
        useless.push((two, "priv-key and pub-key are no pair"));
        useless.push((keys.flag("ES256", "ec384"), "priv-key is no key for ES256"));
        useless.push((keys.flag("RS256", "ed"), "priv-key is no key for RS256"));
    }
    useless.extend([
        (
            "jwt,sign-method=RS999,priv-key=k".to_string(),
            "sign-method=\"RS999\" is not supported",
        ),
        (
            "jwt,sign-method=RS256,pub-key=/nowhere".to_string(),
            "cannot read the key in /nowhere",
        ),
        (
            format!("jwt,sign-method=ES256,pub-key={noise}"),
            "pub-key is no key for ES256",
        ),
        ("jwt,sign-method=HS256".to_string(), "priv-key is needed"),
        ("jwt,what=x".to_string(), "\"what=x\" is none of"),
        ("jwt".to_string(), "--auth-token"),
        ("kerberos".to_string(), "--auth-token"),
    ]);
    for (options, words) in useless {
        let output = Command::new(BINARY)
            .args(["serve", "--listen-client-urls", "http://127.0.0.1:0"])
            .args([
                "--listen-peer-urls",
                "http://127.0.0.1:0",
                "--auth-token",
                &options,
            ])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env_clear()
            .output()
            .expect("ran");
        let said = String::from_utf8_lossy(&output.stderr);
        let said = format!("{said}{}", String::from_utf8_lossy(&output.stdout));
        assert!(!output.status.success(), "{options} was accepted: {said}");
        assert!(said.contains(words), "{options}: {words:?} is not in {said}");
    }
}
