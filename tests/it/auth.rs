//! Users, roles, tokens: who gets in, on which member, and who no longer does.

use pontoon::pb::authpb::{Permission, permission::Type};
use pontoon::pb::etcdserverpb::auth_client::AuthClient;
use pontoon::pb::etcdserverpb::kv_client::KvClient;
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::*;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::process::wait_for;
use crate::support::rpc::{channel, op};
use crate::support::watcher::{WatchStream, watch, watch_all};

/// A request with a token, or with none.
fn with<T>(token: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request
            .metadata_mut()
            .insert("token", token.parse().expect("a token is ASCII"));
    }
    request
}

fn auth(cluster: &Cluster, member: usize) -> AuthClient<Channel> {
    AuthClient::new(channel(&cluster.members[member].client_url))
}

fn kv(cluster: &Cluster, member: usize) -> KvClient<Channel> {
    KvClient::new(channel(&cluster.members[member].client_url))
}

async fn log_in(cluster: &Cluster, member: usize, name: &str, password: &str) -> Result<String, Status> {
    let request = AuthenticateRequest {
        name: name.to_string(),
        password: password.to_string(),
    };
    let response = auth(cluster, member).authenticate(request).await?;
    Ok(response.into_inner().token)
}

async fn put(cluster: &Cluster, member: usize, token: Option<&str>, key: &'static str) -> Result<(), Status> {
    let request = PutRequest {
        key: key.into(),
        value: "value".into(),
        ..PutRequest::default()
    };
    kv(cluster, member).put(with(token, request)).await.map(drop)
}

async fn get(cluster: &Cluster, member: usize, token: Option<&str>, key: &'static str) -> Result<(), Status> {
    let request = RangeRequest {
        key: key.into(),
        ..RangeRequest::default()
    };
    kv(cluster, member).range(with(token, request)).await.map(drop)
}

async fn user_add(
    client: &mut AuthClient<Channel>,
    token: Option<&str>,
    name: &str,
    password: &str,
) -> Result<(), Status> {
    let request = AuthUserAddRequest {
        name: name.to_string(),
        password: password.to_string(),
        ..Default::default()
    };
    client.user_add(with(token, request)).await.map(drop)
}

/// root and alice, who may read and write [a, c); access control is on. Returns their tokens.
async fn guard(cluster: &Cluster) -> (String, String) {
    let mut client = auth(cluster, 0);
    for (name, password) in [("root", "r"), ("alice", "a")] {
        user_add(&mut client, None, name, password).await.expect("added");
    }
    client
        .role_add(AuthRoleAddRequest {
            name: "writer".to_string(),
        })
        .await
        .expect("added");
    let perm = Permission {
        perm_type: Type::Readwrite as i32,
        key: "a".into(),
        range_end: "c".into(),
    };
    client
        .role_grant_permission(AuthRoleGrantPermissionRequest {
            name: "writer".to_string(),
            perm: Some(perm),
        })
        .await
        .expect("granted");
    for (user, role) in [("root", "root"), ("alice", "writer")] {
        let grant = AuthUserGrantRoleRequest {
            user: user.to_string(),
            role: role.to_string(),
        };
        client.user_grant_role(grant).await.expect("granted");
    }
    client.auth_enable(AuthEnableRequest {}).await.expect("enabled");
    let root = log_in(cluster, 0, "root", "r").await.expect("logged in");
    let alice = log_in(cluster, 0, "alice", "a").await.expect("logged in");
    (root, alice)
}

fn refused(answer: Result<(), Status>, code: Code, text: &str) {
    let status = answer.expect_err("it must be refused");
    assert_eq!((status.code(), status.message()), (code, text));
}

const EMPTY: &str = "etcdserver: user name is empty";
const DENIED: &str = "etcdserver: permission denied";
const BAD_TOKEN: &str = "etcdserver: invalid auth token";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_do_what_is_the_same_on_every_member() {
    let mut cluster = Cluster::start_with(3, &["--bcrypt-cost", "4"]).await;
    let (root, alice) = guard(&cluster).await;
    for member in 0..3 {
        // The token was made on another member a moment ago: no waiting is needed.
        put(&cluster, member, Some(&alice), "b").await.expect("allowed");
        get(&cluster, member, Some(&alice), "b").await.expect("allowed");
        put(&cluster, member, Some(&root), "x")
            .await
            .expect("root may do everything");
        refused(
            put(&cluster, member, None, "b").await,
            Code::InvalidArgument,
            EMPTY,
        );
        refused(
            get(&cluster, member, None, "b").await,
            Code::InvalidArgument,
            EMPTY,
        );
        refused(
            put(&cluster, member, Some(&alice), "x").await,
            Code::PermissionDenied,
            DENIED,
        );
        refused(
            get(&cluster, member, Some(&alice), "x").await,
            Code::PermissionDenied,
            DENIED,
        );
        refused(
            get(&cluster, member, Some("no such token"), "b").await,
            Code::Unauthenticated,
            BAD_TOKEN,
        );
        refused(
            get(&cluster, member, Some("madeup.1"), "b").await,
            Code::Unauthenticated,
            BAD_TOKEN,
        );
    }
    let wrong = "etcdserver: authentication failed, invalid user ID or password";
    for (name, password) in [("alice", "wrong"), ("nobody", "a"), ("alice", "")] {
        let answer = log_in(&cluster, 1, name, password).await.map(drop);
        refused(answer, Code::InvalidArgument, wrong);
    }
    refused(
        user_add(&mut auth(&cluster, 1), Some(&alice), "mallory", "m").await,
        Code::PermissionDenied,
        DENIED,
    );
    a_transaction_is_refused_for_what_its_other_branch_would_do(&cluster, &alice).await;
    // A restart forgets tokens, not users: one logs in again.
    for member in 0..3 {
        cluster.terminate(member).await;
    }
    for member in 0..3 {
        cluster.spawn(member);
    }
    let again = wait_for(PATIENCE, "a login", || async {
        log_in(&cluster, 2, "alice", "a").await.ok()
    })
    .await;
    put(&cluster, 0, Some(&again), "b").await.expect("allowed");
    refused(put(&cluster, 0, None, "b").await, Code::InvalidArgument, EMPTY);
}

async fn a_transaction_is_refused_for_what_its_other_branch_would_do(cluster: &Cluster, alice: &str) {
    let put = |key: &'static str| {
        op(Op::RequestPut(PutRequest {
            key: key.into(),
            ..PutRequest::default()
        }))
    };
    let txn = |failure| TxnRequest {
        compare: vec![],
        success: vec![put("a")],
        failure,
    };
    let mut client = kv(cluster, 1);
    client
        .txn(with(Some(alice), txn(vec![put("b")])))
        .await
        .expect("allowed");
    let answer = client.txn(with(Some(alice), txn(vec![put("x")]))).await;
    refused(answer.map(drop), Code::PermissionDenied, DENIED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_go_with_their_user_and_its_password() {
    let cluster = Cluster::start_with(3, &["--bcrypt-cost", "4"]).await;
    let (root, alice) = guard(&cluster).await;
    let mut client = auth(&cluster, 1);
    let change = AuthUserChangePasswordRequest {
        name: "alice".to_string(),
        password: "b".to_string(),
        ..Default::default()
    };
    client
        .user_change_password(with(Some(&root), change))
        .await
        .expect("changed");
    // Linearizable, so the change is known wherever it is asked next.
    for member in 0..3 {
        let answer = get(&cluster, member, Some(&alice), "b").await;
        refused(answer, Code::Unauthenticated, BAD_TOKEN);
    }
    assert!(
        log_in(&cluster, 0, "alice", "a").await.is_err(),
        "the old password"
    );
    let alice = log_in(&cluster, 0, "alice", "b").await.expect("the new password");
    get(&cluster, 2, Some(&alice), "b").await.expect("allowed");
    let delete = AuthUserDeleteRequest {
        name: "alice".to_string(),
    };
    client
        .user_delete(with(Some(&root), delete))
        .await
        .expect("deleted");
    for member in 0..3 {
        let answer = get(&cluster, member, Some(&alice), "b").await;
        refused(answer, Code::Unauthenticated, BAD_TOKEN);
    }
    // Somebody else of the same name is somebody else.
    user_add(&mut client, Some(&root), "alice", "c")
        .await
        .expect("added");
    let answer = get(&cluster, 0, Some(&alice), "b").await;
    refused(answer, Code::Unauthenticated, BAD_TOKEN);
    client
        .auth_disable(with(Some(&root), AuthDisableRequest {}))
        .await
        .expect("disabled");
    get(&cluster, 2, None, "b")
        .await
        .expect("nobody is asked any more");
    get(&cluster, 2, Some("whatever"), "b")
        .await
        .expect("nor are tokens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_needs_the_right_to_read_and_ends_with_it() {
    let cluster = Cluster::start(1).await;
    let endpoint = &cluster.members[0].client_url;
    let mut unknown = WatchStream::open(endpoint).await.expect("a stream");
    assert!(
        !unknown.create(watch("b", "", 0)).await.canceled,
        "nobody is asked yet"
    );
    let (root, alice) = guard(&cluster).await;
    let end = unknown.next().await.expect("a response");
    assert!(end.canceled && end.cancel_reason.ends_with(EMPTY), "{end:?}");
    for (token, key, range_end, reason) in [
        (
            "",
            "b",
            "",
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
        ),
        (
            "wrong.1",
            "b",
            "",
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
        ),
        (
            &alice,
            "c",
            "",
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
        ),
        (
            &alice,
            "a",
            "d",
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
        ),
        (
            &alice,
            "a",
            "\0",
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
        ),
        (
            &alice,
            "",
            "c",
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
        ),
    ] {
        let metadata = [("token", token)];
        let metadata = if token.is_empty() { &[][..] } else { &metadata[..] };
        let mut stream = WatchStream::open_with(endpoint, metadata)
            .await
            .expect("a stream");
        let answer = stream.create(watch(key, range_end, 0)).await;
        assert!(
            answer.created && answer.canceled && answer.watch_id == -1,
            "{answer:?}"
        );
        assert_eq!(answer.cancel_reason, reason);
    }
    let mut alices = WatchStream::open_with(endpoint, &[("token", &alice)])
        .await
        .expect("a stream");
    let mut roots = WatchStream::open_with(endpoint, &[("token", &root)])
        .await
        .expect("a stream");
    assert!(!alices.create(watch("a", "c", 0)).await.canceled);
    assert!(!roots.create(watch_all(0)).await.canceled);
    put(&cluster, 0, Some(&alice), "b").await.expect("put");
    // Before the right is taken away: what was not told by then is not told any more.
    assert_eq!(alices.told(1).await, ["+b=value @2"]);
    let revoke = AuthUserRevokeRoleRequest {
        name: "alice".to_string(),
        role: "writer".to_string(),
    };
    auth(&cluster, 0)
        .user_revoke_role(with(Some(&root), revoke))
        .await
        .expect("revoked");
    put(&cluster, 0, Some(&root), "b").await.expect("put");
    let end = alices.next().await.expect("a response");
    assert!(
        end.canceled && end.events.is_empty() && end.cancel_reason.ends_with(DENIED),
        "{end:?}"
    );
    assert_eq!(roots.told(2).await, ["+b=value @2", "+b=value @3"]);
}
