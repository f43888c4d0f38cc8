//! What README.md says is served: every method of etcd's API is in its table, and answers as the table says; every
//! setting is in its list, with its default.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pontoon::pb::etcdserverpb::auth_client::AuthClient;
use pontoon::pb::etcdserverpb::{AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest};
use pontoon::pb::v3lockpb::LockRequest;
use tonic::Code;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use crate::support::cluster::{BINARY, Cluster};
use crate::support::rpc::channel;

/// How long one method may take to answer.
const ANSWER: Duration = Duration::from_secs(15);

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `KV/Range` and its like, each with the path that a client asks for.
pub(super) fn methods() -> BTreeMap<String, String> {
    let mut methods = BTreeMap::new();
    for file in ["rpc", "v3lock", "v3election"] {
        let (mut package, mut service) = (String::new(), String::new());
        for line in read(&format!("proto/etcd/{file}.proto")).lines() {
            let mut words = line.split([' ', ';', '(', '{']).filter(|word| !word.is_empty());
            match (words.next(), words.next()) {
                (Some("package"), Some(name)) => package = name.to_string(),
                (Some("service"), Some(name)) => service = name.to_string(),
                (Some("rpc"), Some(name)) => {
                    methods.insert(
                        format!("{service}/{name}"),
                        format!("/{package}.{service}/{name}"),
                    );
                }
                _ => {}
            }
        }
    }
    methods
}

/// The rows of the table of `file` that begins with `head`, without it and the line below.
fn table(file: &str, head: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim_matches('|');
        line.split('|').map(|cell| cell.trim().to_string()).collect()
    };
    let text = read(file);
    let lines = text.lines().skip_while(|line| !line.starts_with(head));
    lines
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect()
}

/// The methods that the table names, and whether it calls them served.
fn claims() -> BTreeMap<String, bool> {
    let mut claims = BTreeMap::new();
    for row in table("README.md", "| service |") {
        let is_served = !row[3].starts_with("UNIMPLEMENTED");
        for method in row[1].split(", ") {
            let earlier = claims.insert(format!("{}/{method}", row[0]), is_served);
            assert_eq!(earlier, None, "{}/{method} is in the table twice", row[0]);
        }
    }
    claims
}

#[test]
fn the_tests_that_the_readme_names_are_there() {
    for row in table("README.md", "| service |") {
        for test in row[2].split(", ") {
            let name = test.trim_matches('`');
            let path = format!("{}/tests/it/{name}.rs", env!("CARGO_MANIFEST_DIR"));
            assert!(Path::new(&path).is_file(), "{}: {name}", row[1]);
        }
    }
}

/// The answer to an empty request: a served method may refuse it, but not as unknown. Taken for a stream, as some never
/// end. Only a lock has a name, or it would stand behind the nameless candidate of Campaign.
pub(super) async fn ask(
    cluster: &Cluster,
    member: usize,
    method: &str,
    path: &str,
) -> Result<tonic::Response<tonic::Streaming<()>>, tonic::Status> {
    let mut client = Grpc::new(channel(&cluster.members[member].client_url));
    client.ready().await.expect("connected");
    let path_and_query = PathAndQuery::try_from(path).expect("a path");
    let name = if method == "Lock/Lock" { "served" } else { "" };
    let request = LockRequest {
        name: name.into(),
        ..LockRequest::default()
    };
    let call = client.server_streaming(
        tonic::Request::new(request),
        path_and_query,
        ProstCodec::<LockRequest, ()>::default(),
    );
    let answer = tokio::time::timeout(ANSWER, call).await;
    answer.unwrap_or_else(|_| panic!("{path} did not answer"))
}

/// What needs no token: the list of members, by which clients find their way, and a stream of watches, each of which is
/// checked when it is created.
const OPEN_TO_ALL: [&str; 2] = ["Cluster/MemberList", "Watch/Watch"];

#[tokio::test(flavor = "multi_thread")]
async fn with_access_control_on_nothing_is_done_for_whoever_has_no_token() {
    let cluster = Cluster::start_with(1, &["--bcrypt-cost", "4"]).await;
    let mut auth = AuthClient::new(channel(&cluster.members[0].client_url));
    let root = AuthUserAddRequest {
        name: "root".to_string(),
        password: "r".to_string(),
        ..AuthUserAddRequest::default()
    };
    auth.user_add(root).await.expect("added");
    let grant = AuthUserGrantRoleRequest {
        user: "root".to_string(),
        role: "root".to_string(),
    };
    auth.user_grant_role(grant).await.expect("granted");
    auth.auth_enable(AuthEnableRequest {}).await.expect("enabled");
    let mut let_in = Vec::new();
    for (method, path) in methods() {
        let answered = match ask(&cluster, 0, &method, &path).await {
            Err(_) => false,
            Ok(mut stream) => matches!(
                tokio::time::timeout(ANSWER, stream.get_mut().message()).await,
                Ok(Ok(_))
            ),
        };
        if answered && !OPEN_TO_ALL.contains(&method.as_str()) {
            let_in.push(method);
        }
    }
    assert!(let_in.is_empty(), "answered without a token: {let_in:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_answers_as_the_readme_says() {
    let (methods, claims) = (methods(), claims());
    let named: BTreeSet<_> = claims.keys().collect();
    assert_eq!(named, methods.keys().collect(), "the table (left) and the protos");
    let cluster = Cluster::start(1).await;
    for (method, is_served) in claims {
        let path = &methods[&method];
        match ask(&cluster, 0, &method, path).await {
            Err(status) if status.code() == Code::Unimplemented => {
                assert!(!is_served, "{path} is said to be served: {status}");
                assert!(
                    status.message().contains(path.as_str()),
                    "{path} does not name itself: {status}"
                );
            }
            answer => assert!(is_served, "{path} is said not to be served: {answer:?}"),
        }
    }
}

#[test]
fn every_setting_is_in_the_documentation_with_its_default() {
    let output = Command::new(BINARY)
        .args(["serve", "--print-config"])
        .env_clear()
        .output()
        .expect("ran");
    let printed = String::from_utf8(output.stdout).expect("text");
    let settings: BTreeMap<String, String> = printed
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once('=')?;
            let (value, _) = rest.split_once('#')?;
            Some((
                name.trim().to_string(),
                value.trim().trim_matches('"').to_string(),
            ))
        })
        .collect();
    assert!(settings.len() > 10, "printed only {printed}");
    let listed: BTreeMap<String, String> = table("docs/operating.md", "| setting |")
        .into_iter()
        .map(|row| {
            (
                row[0].trim_matches('`').to_string(),
                row[1].trim_matches('`').to_string(),
            )
        })
        .collect();
    assert_eq!(
        listed, settings,
        "the table of docs/operating.md (left) and --print-config"
    );
}
