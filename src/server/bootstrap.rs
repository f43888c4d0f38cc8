//! How a blank member finds its cluster. The data directory decides: one that belongs to a cluster skips all this,
//! so every member is started by the same command, always.
//!
//! **Into a cluster that is there** ([`enter`]; `--initial-cluster-state existing`, or `--join`): before Raft is opened
//! the process asks for a place, at the addresses that it was given. It gets the id that it lives under, and has that
//! and the cluster's on disk before it does anything else. What it may get: the place that MemberAdd made at its URL;
//! the place of the member of its name, whose disk was lost; with `--join` a new one (see `server/members`).
//!
//! **Into a new one** ([`belong`]). Blank members meet by asking each address in `--initial-cluster` who answers there.
//!
//! * **Somebody belongs to a cluster already:** this disk was wiped, or replaced. The member asks the leader to let its
//!   new id take the place of the old one of its name. It never votes under the old id, whose votes it has forgotten.
//! * **All of them are blank:** the one whose name sorts first founds the cluster: it makes the cluster's id and starts
//!   Raft with all of them as voters. It does so only when it has met *every* member, all blank and with the same
//!   `--initial-cluster` and token: with one missing it could not know that there is no cluster with data. From then
//!   on any majority carries on alone. The others are contacted by the founder and adopt the cluster's id from that.
//!   If some of them were restored from a backup, the first of those is the founder, and the cluster begins with that
//!   (`raft/restored.rs`): one is enough, and all that were restored must have restored the same.
//!
//! Either way it serves clients only once it has its vote, or is a learner that is to stay one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::data_dir::{DataDir, random_id};
use crate::pb::etcdserverpb::MemberListRequest;
use crate::pb::etcdserverpb::cluster_client::ClusterClient;
use crate::pb::pontoon::peer;
use crate::raft::identity::Identity;
use crate::raft::network::{Peers, Purpose, within};
use crate::raft::peer::Introduction;
use crate::raft::replica::Replica;
use crate::raft::{Node, Role, Timing};
use crate::tls::ClientTls;

/// Between two rounds of asking.
const ROUND: Duration = Duration::from_millis(100);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two rounds of asking for a place, and how long the answer may take: a leader may have to be elected.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const JOIN: Duration = Duration::from_secs(15);
/// What is missing is said this often.
const COMPLAIN: Duration = Duration::from_secs(5);

/// What a blank member knows from its flags.
pub struct Meeting {
    /// Who it says it is.
    pub introduction: Introduction,
    /// Name and peer URLs of each member, this one included.
    pub members: BTreeMap<String, Vec<String>>,
    /// Where the others reach this member.
    pub peer_urls: Vec<String>,
    /// `--initial-cluster-state existing`: never found a cluster.
    pub existing_only: bool,
    /// `--join`: peer or client URLs of members.
    pub join: Vec<String>,
    /// The state that this member was restored with, while no cluster was founded on it.
    pub restored: Option<PathBuf>,
}

impl Meeting {
    /// Peer URLs of others that this member was started with.
    pub fn hints(&self) -> Vec<String> {
        let others = self
            .members
            .iter()
            .filter(|(name, _)| **name != self.introduction.name);
        let others = others.flat_map(|(_, urls)| urls.clone());
        others.chain(self.join.clone()).collect()
    }
}

/// Says now and then what stands in the way.
struct Complaints {
    next: Instant,
}

impl Complaints {
    fn new() -> Self {
        Complaints {
            next: Instant::now() + COMPLAIN,
        }
    }

    fn hear(&mut self, problem: &str) {
        if Instant::now() > self.next {
            tracing::warn!(%problem, "not yet in a cluster");
            self.next = Instant::now() + COMPLAIN;
        }
    }
}

/// Gets a place in a cluster that is there, before Raft is opened. A directory that belongs to one has it already.
pub async fn enter(
    data_dir: &DataDir,
    meeting: &Meeting,
    timing: Timing,
    tls: Option<Arc<ClientTls>>,
) -> anyhow::Result<()> {
    let wants = meeting.existing_only || !meeting.join.is_empty();
    if data_dir.cluster_id()? != 0 || !wants {
        return Ok(());
    }
    let nobody = Identity::new(data_dir.member_id()?, 0, Box::new(|_| Ok(())));
    let peers = Peers::new(Arc::new(nobody), timing, tls);
    let request = join_request(meeting, data_dir.member_id()?, false);
    let mut complaints = Complaints::new();
    loop {
        match ask_for_place(&peers, meeting, &request).await {
            Ok(place) => {
                tracing::info!(
                    id = format!("{:x}", place.member_id),
                    cluster_id = format!("{:x}", place.cluster_id),
                    "has a place in the cluster"
                );
                return data_dir.settle(place.member_id, place.cluster_id);
            }
            Err(problem) => complaints.hear(&problem),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn join_request(meeting: &Meeting, member_id: u64, opened: bool) -> peer::JoinRequest {
    peer::JoinRequest {
        token: meeting.introduction.token.clone(),
        member_id,
        name: meeting.introduction.name.clone(),
        peer_urls: meeting.peer_urls.clone(),
        add: !meeting.join.is_empty(),
        opened,
    }
}

async fn ask_for_place(
    peers: &Peers,
    meeting: &Meeting,
    request: &peer::JoinRequest,
) -> Result<peer::JoinReply, String> {
    let mut problem = "no address of a member was given".to_string();
    for url in meeting.hints() {
        match join(peers, &url, request).await {
            Ok(place) => return Ok(place),
            Err(why) => problem = why,
        }
        // Perhaps clients are served there: members say in their list where peers are.
        for url in peer_urls_at(peers, &url).await {
            match join(peers, &url, request).await {
                Ok(place) => return Ok(place),
                Err(why) => problem = why,
            }
        }
    }
    Err(problem)
}

async fn peer_urls_at(peers: &Peers, client_url: &str) -> Vec<String> {
    let Ok(channel) = peers.channel_at(client_url, Purpose::Control) else {
        return Vec::new();
    };
    let list = MemberListRequest { linearizable: false };
    let mut client = ClusterClient::new(channel);
    let list = within(ANSWER, client.member_list(list)).await;
    let members = list.map(|list| list.members).unwrap_or_default();
    members.into_iter().flat_map(|member| member.peer_ur_ls).collect()
}

/// Returns when this member belongs to a cluster.
pub async fn belong(replica: &Replica, meeting: &Meeting) -> anyhow::Result<()> {
    let mut complaints = Complaints::new();
    while !belongs(replica) {
        if replica.identity().cluster_id() != 0
            && (meeting.existing_only || replica.is_initialized().await)
            && !founds_again(replica, meeting)
        {
            complaints.hear("waiting for the cluster's leader");
        } else {
            let met = meet(replica, meeting).await?;
            if let Err(problem) = act(replica, meeting, &met).await {
                complaints.hear(&problem);
            }
        }
        tokio::time::sleep(ROUND).await;
    }
    Ok(())
}

/// A founder that was stopped before the restored state was installed has voted, but has no members yet.
fn founds_again(replica: &Replica, meeting: &Meeting) -> bool {
    meeting.restored.is_some() && replica.standing().nodes.is_empty()
}

/// Whether Raft has this member in a membership, and with the vote that it is to have.
fn belongs(replica: &Replica) -> bool {
    let me = replica.identity().member_id();
    let standing = replica.standing();
    let is_learner = |node: &Node| node.role == Role::Learner;
    standing.voters.contains(&me) || standing.nodes.get(&me).is_some_and(is_learner)
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
        ..Default::default()
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
    if let Some((_, (url, reply))) = settled {
        if !blank {
            return Err("waiting for the cluster's leader".to_string());
        }
        // A backup that was restored is not to be forgotten because an old cluster still runs.
        if meeting.restored.is_some() && reply.restored != me.restored {
            return Err(format!(
                "this member was restored for a new cluster, but {url} belongs to one that has another state: stop \
                 that one, or restore and start with an --initial-cluster-token of its own"
            ));
        }
        let request = join_request(meeting, replica.identity().member_id(), true);
        let place = join(replica.peers(), url, &request).await?;
        return replica
            .identity()
            .adopt(place.cluster_id)
            .map_err(|error| error.to_string());
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
    match founder(met)? == me.name {
        true => found(replica, meeting, met).await,
        false => Err("waiting for the founder".to_string()),
    }
}

/// The first by name; of those that were restored, if any were: the others get their state.
fn founder(met: &Met) -> Result<&str, String> {
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

async fn found(replica: &Replica, meeting: &Meeting, met: &Met) -> Result<(), String> {
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
    match &meeting.restored {
        Some(state) => replica.found_restored(members, state).await,
        None => replica.found(members).await,
    }
}

/// Asks the member at `url` for a place, and the leader, if it names one.
async fn join(peers: &Peers, url: &str, request: &peer::JoinRequest) -> Result<peer::JoinReply, String> {
    let mut url = url.to_string();
    for _ in 0..2 {
        let mut client = peers
            .client_at(&url, Purpose::Control)
            .map_err(|status| status.message().to_string())?;
        tracing::debug!(%url, "asking for a place");
        let reply = within(JOIN, client.join(request.clone()))
            .await
            .map_err(|status| format!("{url}: {}", status.message()))?;
        if reply.refused.is_empty() {
            return Ok(reply);
        }
        if reply.leader_url.is_empty() || reply.leader_url == url {
            return Err(reply.refused);
        }
        url = reply.leader_url;
    }
    Err("the cluster's leader changed while asking for a place".to_string())
}
