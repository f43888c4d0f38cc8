//! Step by step into a cluster: the one that others have, or the one that is founded when all have met.

use std::time::Duration;

use tokio::time::Instant;

use super::enter::{join, join_request};
use super::found::{check_found, found};
use super::meet::{Answer, Met, meet};
use super::{Complaints, Meeting};
use crate::raft::replica::Replica;
use crate::raft::{Node, Role};

/// Between two rounds of asking.
const ROUND: Duration = Duration::from_millis(100);

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
pub(super) async fn waiting(replica: &Replica) -> String {
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
pub(super) struct Quiet {
    since: Option<Instant>,
}

impl Quiet {
    /// Whether it has been so for `wait`: what is known `now`, or that it is too early.
    pub(super) fn lasts(
        &mut self,
        objection: Result<(), String>,
        now: Instant,
        wait: Duration,
    ) -> Result<(), String> {
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

/// One step towards belonging, or what stands in its way.
pub(super) async fn act(
    replica: &Replica,
    meeting: &Meeting,
    met: &Met,
    quiet: &mut Quiet,
) -> Result<(), String> {
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
