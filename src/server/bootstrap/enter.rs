//! Into a cluster that is there: asking its members for a place.

use std::sync::Arc;
use std::time::Duration;

use super::{ANSWER, Complaints, Meeting};
use crate::pb::etcdserverpb::MemberListRequest;
use crate::pb::etcdserverpb::cluster_client::ClusterClient;
use crate::pb::pontoon::peer;
use crate::raft::Timing;
use crate::raft::identity::Identity;
use crate::raft::network::{Peers, Purpose, within};
use crate::server::data_dir::DataDir;
use crate::tls::ClientTls;

/// Between two rounds of asking for a place, and how long the answer may take: a leader may have to be elected.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const JOIN: Duration = Duration::from_secs(15);

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

/// The request for a place; `opened`: under this id only, as Raft runs with it already.
pub(super) fn join_request(meeting: &Meeting, member_id: u64, opened: bool) -> peer::JoinRequest {
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

/// Asks the member at `url` for a place, and the leader, if it names one.
pub(super) async fn join(
    peers: &Peers,
    url: &str,
    request: &peer::JoinRequest,
) -> Result<peer::JoinReply, String> {
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
