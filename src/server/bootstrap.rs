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
//! * **All of them are blank:** the one whose name sorts first founds the cluster with all of them as voters. It does so
//!   only when it has met *every* member, all blank and with the same `--initial-cluster` and token: with one missing
//!   it could not know that there is no cluster with data. If some of them were restored from a backup, the first of
//!   those is the founder, and the cluster begins with that (`raft/restored.rs`): one is enough, and all that were
//!   restored must have restored the same.
//!
//! All may be blank and yet not the first: members that joined later are in no flag, and carry on where the disks of
//! the first were lost. But they look for those: a leader calls within a heartbeat, one who misses its leader within an
//! election timeout. So the founder *listens* before it founds (`--founding-wait`), and whoever is called by a cluster
//! that looks for somebody else says so when it is met. A partition of all that time hides the others; so would a
//! majority that is down.
//!
//! ```text
//! founder   meets all, listens   adopts   each of the others adopts   Raft begins with all as voters
//! ```
//!
//! The others *adopt the cluster's id* before there is anything in it. A process that stood still after it had met them
//! all finds that they belong to another founder's cluster meanwhile, or to its own: no two clusters can have one of
//! them. If two founders got some each, neither begins, nothing is lost, and all say what to do. A founder that is
//! stopped on the way knows its own cluster's id and goes on.
//!
//! The members' URLs may come from DNS (`server/discovery`). Their names are then what they answer when they are asked.
//!
//! Either way it serves clients only once it has its vote, or is a learner that is to stay one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::data_dir::DataDir;
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
    /// DNS told where the members are: what stands for their names is no name.
    pub is_discovered: bool,
    /// Where the others reach this member.
    pub peer_urls: Vec<String>,
    /// `--initial-cluster-state existing`: never found a cluster.
    pub existing_only: bool,
    /// `--founding-wait`.
    pub founding_wait: Duration,
    /// `--join`: peer or client URLs of members.
    pub join: Vec<String>,
    /// The state that this member was restored with, while no cluster was founded on it.
    pub restored: Option<PathBuf>,
    /// Where it is told what this member waits for.
    pub waits: Waits,
}

impl Meeting {
    /// Peer URLs of others that this member was started with.
    pub fn hints(&self) -> Vec<String> {
        let is_mine = |url: &&String| self.peer_urls.contains(url);
        let others = self
            .members
            .iter()
            .filter(|(name, urls)| **name != self.introduction.name && !urls.iter().any(|url| is_mine(&url)));
        let others = others.flat_map(|(_, urls)| urls.clone());
        others.chain(self.join.clone()).collect()
    }
}

/// What a member waits for while it is in no cluster, for whoever asks. Cheap to clone.
#[derive(Clone, Default)]
pub struct Waits(Arc<Mutex<String>>);

impl Waits {
    /// In words.
    pub fn what(&self) -> String {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            what if what.is_empty() => "it starts".to_string(),
            what => what.clone(),
        }
    }

    fn set(&self, what: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what.to_string();
    }
}

/// Says now and then what stands in the way, and at once to whoever asks.
pub(super) struct Complaints {
    waits: Waits,
    next: Instant,
}

impl Complaints {
    pub(super) fn new(waits: &Waits) -> Self {
        Complaints {
            waits: waits.clone(),
            next: Instant::now() + COMPLAIN,
        }
    }

    pub(super) fn hear(&mut self, problem: &str) {
        self.waits.set(problem);
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
    let peers = Peers::new(Arc::new(nobody), timing, tls, Arc::default());
    let request = join_request(meeting, data_dir.member_id()?, false);
    let mut complaints = Complaints::new(&meeting.waits);
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
    let origin = channel.origin();
    let mut client = ClusterClient::with_origin(channel, origin);
    let list = within(ANSWER, client.member_list(list)).await;
    let members = list.map(|list| list.members).unwrap_or_default();
    members.into_iter().flat_map(|member| member.peer_ur_ls).collect()
}

/// Returns when this member belongs to a cluster.
pub async fn belong(replica: &Replica, meeting: &Meeting) -> anyhow::Result<()> {
    let mut complaints = Complaints::new(&meeting.waits);
    let mut quiet = Quiet::default();
    while !belongs(replica) {
        let done = match is_open(replica, meeting).await {
            true => {
                let met = meet(replica, meeting).await?;
                act(replica, meeting, &met, &mut quiet).await
            }
            false => Err(waiting(replica).await),
        };
        if let Err(problem) = done {
            complaints.hear(&problem);
        }
        tokio::time::sleep(ROUND).await;
    }
    Ok(())
}

/// Whether it is open which cluster this member belongs to, or it has begun to found one.
async fn is_open(replica: &Replica, meeting: &Meeting) -> bool {
    match replica.identity().cluster_id() {
        0 => true,
        mine if mine == replica.identity().own_cluster() => {
            !replica.is_initialized().await || founds_again(replica, meeting)
        }
        _ => false,
    }
}

/// What a member of a cluster, which has no vote in it yet, is waiting for.
async fn waiting(replica: &Replica) -> String {
    let cluster_id = replica.identity().cluster_id();
    if replica.is_in_touch() {
        format!("catching up with cluster {cluster_id:x}")
    } else if replica.is_initialized().await {
        format!("waiting for the leader of cluster {cluster_id:x}")
    } else {
        format!(
            "waiting for the leader of cluster {cluster_id:x}; if that has never served, its founder's disk was lost \
             before it began: then empty the --data-dir of all its members and start them again"
        )
    }
}

/// A founder that was stopped before the restored state was installed has voted, but has no members yet.
fn founds_again(replica: &Replica, meeting: &Meeting) -> bool {
    meeting.restored.is_some() && replica.standing().nodes.is_empty()
}

/// Since when nothing spoke against founding a cluster.
#[derive(Default)]
struct Quiet {
    since: Option<Instant>,
}

impl Quiet {
    /// Whether it has been so for `wait`: what is known `now`, or that it is too early.
    fn lasts(&mut self, objection: Result<(), String>, now: Instant, wait: Duration) -> Result<(), String> {
        if objection.is_err() {
            self.since = None;
            return objection;
        }
        match now.saturating_duration_since(*self.since.get_or_insert(now)) < wait {
            true => Err("listening for a cluster that lost a member here".to_string()),
            false => Ok(()),
        }
    }
}

/// Whether Raft has this member in a membership, and with the vote that it is to have.
fn belongs(replica: &Replica) -> bool {
    let me = replica.identity().member_id();
    let standing = replica.standing();
    let is_learner = |node: &Node| node.role == Role::Learner;
    standing.voters.contains(&me) || standing.nodes.get(&me).is_some_and(is_learner)
}

/// Who answered: the URL, and what was said there.
type Answer = (String, peer::IdentifyReply);

/// Who answered at the addresses in `--initial-cluster`.
#[derive(Default)]
struct Met {
    /// By name.
    named: BTreeMap<String, Answer>,
    /// Members of a cluster where somebody else was expected: they moved since.
    moved: Vec<Answer>,
}

async fn meet(replica: &Replica, meeting: &Meeting) -> anyhow::Result<Met> {
    let mut met = Met::default();
    for (name, urls) in &meeting.members {
        for url in urls {
            let Ok(reply) = identify(replica, meeting, url).await else {
                continue;
            };
            let is_expected = meeting.is_discovered || &reply.name == name;
            if !is_expected && reply.cluster_id != 0 {
                met.moved.push((url.clone(), reply));
                continue;
            }
            if !is_expected {
                bail!(
                    "--initial-cluster says that {name:?} is at {url}, but {:?} answers there: give all members the \
                     same --initial-cluster",
                    reply.name
                );
            }
            let earlier = met.named.insert(reply.name.clone(), (url.clone(), reply));
            if let Some((other, reply)) = earlier {
                bail!(
                    "{:?} is the --name of who answers at {other}, and at {url}: give each member a name of its own, \
                     and one record",
                    reply.name
                );
            }
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
async fn act(replica: &Replica, meeting: &Meeting, met: &Met, quiet: &mut Quiet) -> Result<(), String> {
    let identity = replica.identity();
    let is_settled = |(_, reply): &&Answer| reply.member_id != identity.member_id() && reply.cluster_id != 0;
    let settled: Vec<&Answer> = met.named.values().chain(&met.moved).filter(is_settled).collect();
    if identity.cluster_id() == 0 && !settled.is_empty() {
        return rejoin(replica, meeting, &settled).await;
    }
    let objection = check_found(identity, meeting, met);
    quiet.lasts(objection, Instant::now(), meeting.founding_wait)?;
    found(replica, meeting, &met.named).await
}

/// Gets this member, which is blank, a place in the cluster that others are settled in: the first of them that helps.
async fn rejoin(replica: &Replica, meeting: &Meeting, settled: &[&Answer]) -> Result<(), String> {
    let identity = replica.identity();
    let request = join_request(meeting, identity.member_id(), true);
    let mut problem = String::new();
    for (url, reply) in settled {
        // A backup that was restored is not to be forgotten because an old cluster still runs.
        if meeting.restored.is_some() && reply.restored != meeting.introduction.restored {
            problem = format!(
                "this member was restored for a new cluster, but {url} belongs to one that has another state: stop \
                 that one, or restore and start with an --initial-cluster-token of its own"
            );
            continue;
        }
        match join(replica.peers(), url, &request).await {
            Ok(place) if place.member_id == identity.member_id() => {
                return identity
                    .adopt(place.cluster_id)
                    .map_err(|error| error.to_string());
            }
            Ok(place) => {
                problem = format!(
                    "this member has a place as {:x}: start it with --initial-cluster-state existing to take it",
                    place.member_id
                );
            }
            Err(why) => {
                let cluster_id = reply.cluster_id;
                problem = format!("asked {url}, of cluster {cluster_id:x}, for a place: {why}");
            }
        }
    }
    Err(problem)
}

/// What speaks against founding a cluster of those that were met.
fn check_found(identity: &Identity, meeting: &Meeting, met: &Met) -> Result<(), String> {
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

async fn found(replica: &Replica, meeting: &Meeting, met: &BTreeMap<String, Answer>) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::net::TcpListener;
    use tokio::sync::mpsc::Receiver;
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;
    use crate::raft::peer::{LeaseClock, PeerService, Wish};
    use crate::raft::replica::Options;
    use crate::storage::fs::RealFs;

    const ME: u64 = 7;

    fn meeting() -> Meeting {
        let url = |name: &str| (name.to_string(), vec![format!("http://{name}")]);
        Meeting {
            introduction: Introduction {
                name: "a".to_string(),
                token: String::new(),
                initial_cluster: "a,b".to_string(),
                restored: String::new(),
            },
            members: BTreeMap::from(["a", "b"].map(url)),
            is_discovered: false,
            peer_urls: Vec::new(),
            existing_only: false,
            founding_wait: Duration::from_secs(2),
            join: Vec::new(),
            restored: None,
            waits: Waits::default(),
        }
    }

    fn reply(name: &str, member_id: u64) -> peer::IdentifyReply {
        peer::IdentifyReply {
            name: name.to_string(),
            member_id,
            initial_cluster: "a,b".to_string(),
            ..Default::default()
        }
    }

    /// What this member, `a`, which belongs to `cluster_id`, has against founding a cluster with who answers.
    fn objection(cluster_id: u64, replies: &[peer::IdentifyReply]) -> String {
        let named = replies.iter().map(|reply| {
            let url = format!("http://{}", reply.name);
            (reply.name.clone(), (url, reply.clone()))
        });
        let met = Met {
            named: named.collect(),
            moved: Vec::new(),
        };
        let identity = Identity::new(ME, cluster_id, Box::new(|_| Ok(())));
        check_found(&identity, &meeting(), &met).err().unwrap_or_default()
    }

    #[test]
    fn a_cluster_is_founded_when_all_have_met_and_nothing_speaks_against_it() {
        let mine = Identity::new(ME, 0, Box::new(|_| Ok(()))).own_cluster();
        let (a, b) = (reply("a", ME), reply("b", 8));
        let settled = |cluster_id| peer::IdentifyReply {
            cluster_id,
            ..b.clone()
        };
        let sought = |sought_by| peer::IdentifyReply {
            sought_by,
            ..b.clone()
        };
        let restored = peer::IdentifyReply {
            restored: "state".to_string(),
            ..b.clone()
        };
        for (cluster_id, replies, expected) in [
            (0, vec![a.clone(), b.clone()], ""),
            (0, vec![a.clone()], "waiting for b"),
            (
                0,
                vec![reply("a", 9), b.clone()],
                "another process answers at http://a",
            ),
            (0, vec![a.clone(), restored], "waiting for the founder"),
            (
                0,
                vec![a.clone(), sought(5)],
                "cluster 5 looks for a member at http://b",
            ),
            // It began before, and some have heard of it.
            (mine, vec![a.clone(), settled(mine)], ""),
            (mine, vec![a.clone(), sought(mine)], ""),
            (mine, vec![a.clone(), settled(5)], "belongs to cluster 5"),
        ] {
            let said = objection(cluster_id, &replies);
            let fits = said.contains(expected) && said.is_empty() == expected.is_empty();
            assert!(fits, "{expected:?}: {said:?}");
        }
    }

    /// Has no leases.
    struct NoClock;

    #[tonic::async_trait]
    impl LeaseClock for NoClock {
        async fn answer(&self, _: peer::LeaseClockRequest) -> peer::LeaseClockReply {
            peer::LeaseClockReply::default()
        }
    }

    /// A blank member that answers its peers, where, and who asks it for a place.
    async fn blank(dir: &Path, name: &str, member_id: u64) -> (Replica, String, Receiver<Wish>) {
        let timing = Timing {
            heartbeat: Duration::from_millis(100),
            election: Duration::from_secs(1),
        };
        let options = Options {
            wal_dir: dir.join(name).join("wal"),
            has_log: false,
            snapshot_dir: dir.join(name).join("snapshots"),
            state_dir: dir.join(name).join("state"),
            fs: Arc::new(RealFs),
            trust_state: true,
            timing,
            peer_tls: None,
            detours: BTreeMap::new(),
            snapshot_count: 0,
            engine_cache: 1 << 20,
            identity: Arc::new(Identity::new(member_id, 0, Box::new(|_| Ok(())))),
            lease_sink: Arc::new(|_| {}),
            token_sink: Arc::new(|_| {}),
            metrics: Arc::default(),
        };
        let replica = Replica::open(options).await.expect("opened");
        let introduction = Introduction {
            name: name.to_string(),
            ..meeting().introduction
        };
        let (wishes, asked) = tokio::sync::mpsc::channel(1);
        let service = PeerService::server(replica.clone(), introduction, wishes, Arc::new(NoClock));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let connections = TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(connections));
        (replica, url, asked)
    }

    fn at(members: &[(&str, &str)]) -> Meeting {
        let members = members.iter();
        Meeting {
            members: members
                .map(|(name, url)| (name.to_string(), vec![url.to_string()]))
                .collect(),
            ..meeting()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_founder_that_stood_still_does_not_begin_without_those_it_had_met() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (a, a_url, _) = blank(dir.path(), "a", ME).await;
        let (b, b_url, _) = blank(dir.path(), "b", 8).await;
        let meeting = at(&[("a", &a_url), ("b", &b_url)]);
        let met = meet(&a, &meeting).await.expect("met");
        assert_eq!(check_found(a.identity(), &meeting, &met), Ok(()));
        // While it stands still, another founder takes its place.
        b.identity().adopt(5).expect("adopted");
        let refusal = found(&a, &meeting, &met.named)
            .await
            .expect_err("must be refused");
        assert!(refusal.contains("reached cluster 5"), "{refusal}");
        assert!(!a.is_initialized().await, "nothing has begun");
        // Should that one be lost before it begins, b says what to do.
        let said = waiting(&b).await;
        assert!(said.contains("cluster 5; if that has never served"), "{said}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_member_with_a_blank_disk_comes_back_through_anybody_who_helps() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (a, a_url, _) = blank(dir.path(), "a", ME).await;
        let (b, b_url, _) = blank(dir.path(), "b", 8).await;
        // It lives where c was before it moved.
        let (d, d_url, mut asked) = blank(dir.path(), "d", 9).await;
        let meeting = at(&[("a", &a_url), ("b", &b_url), ("c", &d_url)]);
        let wrong = meet(&a, &meeting).await.err().expect("the flags are wrong");
        assert!(wrong.to_string().contains("\"d\" answers there"), "{wrong}");

        b.identity().adopt(5).expect("adopted");
        d.identity().adopt(5).expect("adopted");
        tokio::spawn(async move {
            for member_id in [3, ME] {
                if let Some(Wish::Join(_, answer)) = asked.recv().await {
                    let place = peer::JoinReply {
                        cluster_id: 5,
                        member_id,
                        ..Default::default()
                    };
                    answer.send(place).expect("it waits");
                }
            }
        });
        // b, which is asked first, can't help.
        let met = meet(&a, &meeting).await.expect("met");
        let mut quiet = Quiet::default();
        let other = act(&a, &meeting, &met, &mut quiet).await.expect_err("not its id");
        assert!(other.contains("a place as 3"), "{other}");
        assert_eq!(a.identity().cluster_id(), 0);
        assert_eq!(act(&a, &meeting, &met, &mut quiet).await, Ok(()));
        assert_eq!(a.identity().cluster_id(), 5);
    }

    #[test]
    fn a_founder_listens_first_and_begins_anew_when_something_is_heard() {
        let (start, wait) = (Instant::now(), Duration::from_secs(2));
        let mut quiet = Quiet::default();
        let mut at = |seconds, objection: Result<(), &str>| {
            let objection = objection.map_err(str::to_string);
            let now = start + Duration::from_secs(seconds);
            quiet.lasts(objection, now, wait).is_ok()
        };
        assert!(!at(0, Ok(())));
        assert!(!at(1, Err("a cluster calls")));
        assert!(!at(2, Ok(())));
        assert!(!at(3, Ok(())));
        assert!(at(4, Ok(())));
        assert!(!at(5, Err("a cluster calls")));
        assert_eq!(Quiet::default().lasts(Ok(()), start, Duration::ZERO), Ok(()));
    }
}
