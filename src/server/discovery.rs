//! Where the members are, by DNS (`--discovery-srv`).
//!
//! The records give each member's peer URL, and no names: the URL stands for the name, alike on all members, until the
//! member is asked (`server/bootstrap`). They must name all founders before the first of these starts: a member can't
//! know of those that no record names yet.
//!
//! A blank member waits until there are records. One that has its place in a cluster needs them only to find the others
//! if all have moved: it asks once, and goes on without an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bootstrap::{Complaints, Waits};
use crate::config::Discovery;
use crate::dns::Resolver;

/// etcd's name for what members serve to each other.
const SERVICE: &str = "etcd-server";
/// Between two questions of a member that can't do without the answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a member that can do without waits for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// The peer URLs of all members, each also in the place of a name; none if a member that is `settled` gets no answer.
pub async fn members(discovery: &Discovery, settled: bool, waits: &Waits) -> BTreeMap<String, Vec<String>> {
    let found = match settled {
        false => until_there_are(discovery, waits).await,
        true => match tokio::time::timeout(PATIENCE, urls(discovery)).await {
            Ok(Ok(urls)) => urls,
            Ok(Err(problem)) => without(&problem),
            Err(_) => without(&format!("no answer within {PATIENCE:?}")),
        },
    };
    found.into_iter().map(|url| (url.clone(), vec![url])).collect()
}

async fn until_there_are(discovery: &Discovery, waits: &Waits) -> Vec<String> {
    let mut complaints = Complaints::new(waits);
    loop {
        match urls(discovery).await {
            Ok(urls) => {
                tracing::info!(
                    domain = discovery.domain,
                    urls = urls.join(","),
                    "DNS names the members"
                );
                return urls;
            }
            Err(problem) => complaints.hear(&problem),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn without(problem: &str) -> Vec<String> {
    tracing::warn!(
        problem,
        "goes on without --discovery-srv: it has its place in a cluster"
    );
    Vec::new()
}

async fn urls(discovery: &Discovery) -> Result<Vec<String>, String> {
    let Discovery {
        domain,
        name,
        servers,
    } = discovery;
    let found = Resolver::new(servers).urls(SERVICE, name, domain).await;
    let urls = found.map_err(|error| format!("--discovery-srv: {error}"))?;
    match urls.is_empty() {
        false => Ok(urls),
        true => {
            let suffix = if name.is_empty() {
                String::new()
            } else {
                format!("-{name}")
            };
            Err(format!(
                "--discovery-srv: DNS has no SRV record of _{SERVICE}-ssl{suffix}._tcp.{domain} or \
                 _{SERVICE}{suffix}._tcp.{domain}"
            ))
        }
    }
}
