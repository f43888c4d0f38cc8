//! How a blank member finds its cluster. The data directory decides: one that belongs to a cluster skips all this,
//! so every member is started by the same command, always.
//!
//! Blank members meet by asking each address in `--initial-cluster` who answers there.
//!
//! * **Somebody belongs to a cluster already:** this disk was wiped, or replaced. The member asks the leader to let its
//!   new id take the place of the old one of its name. It never votes under the old id, whose votes it has forgotten.
//! * **All of them are blank:** the one whose name sorts first founds the cluster: it makes the cluster's id and starts
//!   Raft with all of them as voters. It does so only when it has met *every* member, all blank and with the same
//!   `--initial-cluster` and token: with one missing it could not know that there is no cluster with data. From then
//!   on any majority carries on alone. The others are contacted by the founder and adopt the cluster's id from that.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::data_dir::random_id;
use crate::pb::pontoon::peer;
use crate::raft::Node;
use crate::raft::network::{Purpose, within};
use crate::raft::peer::Introduction;
use crate::raft::replica::Replica;

/// Between two rounds of asking.
const ROUND: Duration = Duration::from_millis(100);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How long joining may take: the whole state is sent to this member.
const JOIN: Duration = Duration::from_secs(3600);
/// What is missing is said this often.
const COMPLAIN: Duration = Duration::from_secs(5);

/// What a blank member knows from its flags.
pub struct Meeting {
    /// Who it says it is.
    pub introduction: Introduction,
    /// Name and peer URLs of each member, this one included.
    pub members: BTreeMap<String, Vec<String>>,
    /// `--initial-cluster-state existing`: never found a cluster.
    pub existing_only: bool,
}

/// Returns when this member belongs to a cluster.
pub async fn belong(replica: &Replica, meeting: &Meeting) -> anyhow::Result<()> {
    let mut next_complaint = Instant::now() + COMPLAIN;
    while !belongs(replica, &meeting.introduction.name) {
        let met = meet(replica, meeting).await?;
        let problem = act(replica, meeting, &met).await.err();
        if let Some(problem) = problem.filter(|_| Instant::now() > next_complaint) {
            tracing::warn!(%problem, "not yet in a cluster");
            next_complaint = Instant::now() + COMPLAIN;
        }
        tokio::time::sleep(ROUND).await;
    }
    Ok(())
}

/// Whether Raft has this member in a membership, and nobody else votes in its place: a member that was stopped while
/// it joined is a learner still, beside the one that it is to replace.
fn belongs(replica: &Replica, name: &str) -> bool {
    let me = replica.identity().member_id();
    let (nodes, voters) = replica.membership();
    let replaced = nodes
        .iter()
        .any(|(id, node)| *id != me && node.name == name && voters.contains(id));
    nodes.contains_key(&me) && (voters.contains(&me) || !replaced)
}

/// Who answered, by name; for each, the URL that it answered at.
type Met = BTreeMap<String, (String, peer::IdentifyReply)>;

async fn meet(replica: &Replica, meeting: &Meeting) -> anyhow::Result<Met> {
    let mut met = Met::new();
    for (name, urls) in &meeting.members {
        for url in urls {
            let Ok(reply) = identify(replica, meeting, url).await else {
                continue;
            };
            if &reply.name != name {
                bail!(
                    "--initial-cluster says that {name:?} is at {url}, but {:?} answers there: give all members the \
                     same --initial-cluster",
                    reply.name
                );
            }
            met.insert(name.clone(), (url.clone(), reply));
            break;
        }
    }
    Ok(met)
}

async fn identify(
    replica: &Replica,
    meeting: &Meeting,
    url: &str,
) -> Result<peer::IdentifyReply, tonic::Status> {
    let request = peer::IdentifyRequest {
        token: meeting.introduction.token.clone(),
        name: meeting.introduction.name.clone(),
    };
    let mut client = replica.peers().client_at(url, Purpose::Control)?;
    within(ANSWER, client.identify(request)).await
}

/// One step towards belonging, or what stands in its way.
async fn act(replica: &Replica, meeting: &Meeting, met: &Met) -> Result<(), String> {
    let me = &meeting.introduction;
    let blank = replica.identity().cluster_id() == 0;
    let settled = met
        .iter()
        .find(|(name, (_, reply))| *name != &me.name && reply.cluster_id != 0);
    match settled {
        Some((_, (url, _))) if blank || replica.status().is_member => {
            return join(replica, meeting, url).await;
        }
        // A founder that was stopped before it had founded goes on with that.
        _ if !blank && replica.is_initialized().await => {
            return Err("waiting for the cluster's leader".to_string());
        }
        _ => {}
    }
    if meeting.existing_only {
        return Err("--initial-cluster-state is existing, but no member of a cluster answers".to_string());
    }
    let missing: Vec<&str> = meeting
        .members
        .keys()
        .filter(|name| !met.contains_key(*name))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "waiting for {}: a new cluster starts when all its members have met",
            missing.join(", ")
        ));
    }
    if let Some((name, _)) = met
        .iter()
        .find(|(_, (_, reply))| reply.initial_cluster != me.initial_cluster)
    {
        return Err(format!(
            "{name} has another --initial-cluster: give all members the same"
        ));
    }
    match meeting.members.keys().next() == Some(&me.name) {
        true => found(replica, met).await,
        false => Err("waiting for the founder".to_string()),
    }
}

async fn found(replica: &Replica, met: &Met) -> Result<(), String> {
    let members: BTreeMap<u64, Node> = met
        .iter()
        .map(|(name, (url, reply))| {
            (
                reply.member_id,
                Node {
                    name: name.clone(),
                    peer_url: url.clone(),
                },
            )
        })
        .collect();
    if members.len() != met.len() {
        return Err("two members have the same id: is a data directory used twice?".to_string());
    }
    let cluster_id = match replica.identity().cluster_id() {
        0 => random_id(),
        begun => begun,
    };
    tracing::info!(
        cluster_id = format!("{cluster_id:x}"),
        members = members.len(),
        "founding a new cluster"
    );
    replica
        .identity()
        .adopt(cluster_id)
        .map_err(|error| error.to_string())?;
    replica.found(members).await
}

async fn join(replica: &Replica, meeting: &Meeting, url: &str) -> Result<(), String> {
    let me = &meeting.introduction;
    let mut url = url.to_string();
    let own_url = meeting
        .members
        .get(&me.name)
        .and_then(|urls| urls.first())
        .cloned()
        .unwrap_or_default();
    // The one asked may send us on to the leader, once.
    for _ in 0..2 {
        let request = peer::JoinRequest {
            token: me.token.clone(),
            member_id: replica.identity().member_id(),
            name: me.name.clone(),
            peer_url: own_url.clone(),
        };
        let mut client = replica
            .peers()
            .client_at(&url, Purpose::Snapshot)
            .map_err(|status| status.to_string())?;
        tracing::debug!(%url, "asking to join");
        let reply = within(JOIN, client.join(request))
            .await
            .map_err(|status| status.to_string())?;
        if reply.refused.is_empty() {
            return Ok(());
        }
        if reply.leader_url.is_empty() || reply.leader_url == url {
            return Err(reply.refused);
        }
        url = reply.leader_url;
    }
    Err("the cluster's leader changed while asking to join".to_string())
}
