//! Founding a cluster: when, by whom, and of whom.

use std::collections::{BTreeMap, BTreeSet};

use super::meet::{Answer, Met};
use super::{ANSWER, Meeting};
use crate::pb::pontoon::peer;
use crate::raft::identity::Identity;
use crate::raft::network::{Purpose, within};
use crate::raft::replica::Replica;
use crate::raft::{Node, Role};

/// What speaks against founding a cluster of those that were met.
pub(super) fn check_found(identity: &Identity, meeting: &Meeting, met: &Met) -> Result<(), String> {
    let (me, mine) = (&meeting.introduction, identity.cluster_id());
    let is_met = |urls: &[String]| met.named.values().any(|(url, _)| urls.contains(url));
    let members = meeting.members.iter();
    let missing: Vec<&str> = members
        .filter(|(_, urls)| !is_met(urls))
        .map(|(name, _)| name.as_str())
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "waiting for {}: a new cluster starts when all its members have met",
            missing.join(", ")
        ));
    }
    if meeting.is_discovered && !met.named.contains_key(&me.name) {
        return Err(format!(
            "no record that --discovery-srv finds leads to this member, which is reached at {}",
            meeting.peer_urls.join(",")
        ));
    }
    for (name, (url, reply)) in &met.named {
        if name == &me.name && reply.member_id != identity.member_id() {
            return Err(format!(
                "another process answers at {url}, where this member is to be reached"
            ));
        }
        if reply.initial_cluster != me.initial_cluster {
            return Err(format!(
                "{name} has another --initial-cluster: give all members the same"
            ));
        }
        if reply.cluster_id != 0 && reply.cluster_id != mine {
            return Err(format!(
                "{name} at {url} belongs to cluster {:x}, and this member began to found {mine:x}: if the other one \
                 serves, empty this member's --data-dir and start it again; if none does, those of all members",
                reply.cluster_id
            ));
        }
        let listens = !meeting.founding_wait.is_zero();
        if listens && reply.sought_by != 0 && reply.sought_by != mine {
            return Err(format!(
                "cluster {:x} looks for a member at {url}, whose disk was lost: start that member with --join and the \
                 URL of another one of that cluster; or, if a new cluster is to be founded all the same, with \
                 --founding-wait 0",
                reply.sought_by
            ));
        }
    }
    match founder(&met.named)? == me.name {
        true => Ok(()),
        false => Err("waiting for the founder".to_string()),
    }
}

/// The first by name; of those that were restored, if any were: the others get their state.
fn founder(met: &BTreeMap<String, Answer>) -> Result<&str, String> {
    let restored = || met.iter().filter(|(_, (_, reply))| !reply.restored.is_empty());
    let hashes: BTreeSet<&str> = restored()
        .map(|(_, (_, reply))| reply.restored.as_str())
        .collect();
    if hashes.len() > 1 {
        let each: Vec<String> = restored()
            .map(|(name, (_, reply))| format!("{name}: {:.12}", reply.restored))
            .collect();
        return Err(format!(
            "the members were restored from different backups ({}): restore the same file, in the same way, for each",
            each.join(", ")
        ));
    }
    let first = restored().next().or(met.iter().next());
    first
        .map(|(name, _)| name.as_str())
        .ok_or_else(|| "there are no members".to_string())
}

/// Founds a cluster of those that were met, nothing having spoken against it.
pub(super) async fn found(
    replica: &Replica,
    meeting: &Meeting,
    met: &BTreeMap<String, Answer>,
) -> Result<(), String> {
    let members: BTreeMap<u64, Node> = met
        .iter()
        .map(|(name, (url, reply))| {
            (
                reply.member_id,
                Node {
                    name: name.clone(),
                    peer_urls: vec![url.clone()],
                    role: Role::Founder,
                },
            )
        })
        .collect();
    if members.len() != met.len() {
        return Err("two members have the same id: is a data directory used twice?".to_string());
    }
    let identity = replica.identity();
    tracing::info!(
        cluster_id = format!("{:x}", identity.own_cluster()),
        members = members.len(),
        "founding a new cluster"
    );
    identity
        .adopt(identity.own_cluster())
        .map_err(|error| error.to_string())?;
    enlist(replica, &members).await?;
    match &meeting.restored {
        Some(state) => replica.found_restored(members, state).await,
        None => replica.found(members).await,
    }
}

/// Has all the others adopt the cluster's id. Once they have, nobody else can found one with any of them, however long
/// this member stands still before it goes on.
async fn enlist(replica: &Replica, members: &BTreeMap<u64, Node>) -> Result<(), String> {
    let me = replica.identity().member_id();
    for (id, node) in members.iter().filter(|(id, _)| **id != me) {
        let request = peer::ConfirmVoteRequest {
            target: Some(replica.peers().target(*id)),
        };
        let answer = async {
            let mut client = replica.peers().client(*id, node, Purpose::Control)?;
            within(ANSWER, client.confirm_vote(request)).await
        };
        answer
            .await
            .map_err(|status| format!("{node}: {}", status.message()))?;
    }
    Ok(())
}
