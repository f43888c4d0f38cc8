//! A server that is asked, ours or etcd's: what it says to a call, as text that can be compared.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use pontoon::pb::etcdserverpb::cluster_client::ClusterClient;
use pontoon::pb::etcdserverpb::lease_client::LeaseClient;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::watch_client::WatchClient;
use pontoon::pb::etcdserverpb::{
    AlarmRequest, DefragmentRequest, HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberAddRequest, MemberAddResponse,
    MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest,
    ResponseHeader, StatusRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::rpc::{Client, Refusal, Request, channel};
use crate::support::ties::settle;

/// A remaining TTL may differ by so much.
const TTL_SLACK: i64 = 30;

/// One call, the same for each server but for the ids that it has itself.
#[derive(Debug, Clone)]
pub enum Call {
    Kv(Request),
    Grant {
        id: i64,
        ttl: i64,
    },
    /// With an id that the server chooses, and revoked again.
    GrantAny {
        ttl: i64,
    },
    Revoke(i64),
    TimeToLive {
        id: i64,
        keys: bool,
    },
    Leases,
    KeepAlive(i64),
    HashKv(i64),
    Status,
    Defragment,
    Alarm(AlarmRequest),
    Members {
        linearizable: bool,
    },
    AddLearner(&'static str),
    /// With the address that the member itself has.
    AddItself,
    /// The learner that was added, or nobody.
    PromoteLearner,
    /// Of a member that isn't there: etcd forgets by an update that a learner is one.
    UpdateNobody(&'static str),
    RemoveLearner,
    MoveLeader(u64),
}

/// What a server said, as text that can be compared.
pub type Said = Result<String, Refusal>;

pub struct Server {
    pub name: String,
    pub kv: Client,
    pub lease: LeaseClient<Channel>,
    pub watch: WatchClient<Channel>,
    pub cluster: ClusterClient<Channel>,
    pub maintenance: MaintenanceClient<Channel>,
    learner: u64,
    /// The revision of its last answer.
    pub revision: i64,
}

fn stripped(header: Option<ResponseHeader>) -> i64 {
    header.map_or(-1, |header| header.revision)
}

pub fn text(fields: impl Debug) -> String {
    format!("{fields:?}")
}

impl Server {
    pub fn new(name: String, endpoint: &str) -> Server {
        let channel = channel(endpoint);
        Server {
            name,
            kv: Client::new(endpoint),
            lease: LeaseClient::new(channel.clone()),
            watch: WatchClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel),
            learner: 1,
            revision: 1,
        }
    }

    pub async fn say(&mut self, call: &Call) -> Said {
        match call {
            Call::Kv(request) => {
                let answer = settle(request, self.kv.ask(request.clone()).await)?;
                self.revision = self.revision.max(answer.revision());
                Ok(text(answer))
            }
            call => self
                .say_more(call)
                .await
                .map_err(Refusal::from)
                .map_err(settle_refusal),
        }
    }

    async fn say_more(&mut self, call: &Call) -> Result<String, Status> {
        Ok(match *call {
            Call::Kv(_) => unreachable!("answered above"),
            Call::Grant { id, ttl } => {
                let r = self
                    .lease
                    .lease_grant(LeaseGrantRequest { id, ttl })
                    .await?
                    .into_inner();
                text((stripped(r.header), r.id, r.ttl, r.error))
            }
            Call::GrantAny { ttl } => {
                let grant = LeaseGrantRequest { id: 0, ttl };
                let r = self.lease.lease_grant(grant).await?.into_inner();
                self.lease.lease_revoke(LeaseRevokeRequest { id: r.id }).await?;
                text((stripped(r.header), r.id > 0, r.ttl))
            }
            Call::Revoke(id) => {
                let r = self
                    .lease
                    .lease_revoke(LeaseRevokeRequest { id })
                    .await?
                    .into_inner();
                self.revision = self.revision.max(stripped(r.header));
                text(stripped(r.header))
            }
            Call::TimeToLive { id, keys } => {
                let request = LeaseTimeToLiveRequest { id, keys };
                let mut r = self.lease.lease_time_to_live(request).await?.into_inner();
                r.keys.sort_unstable();
                let fresh = r.granted_ttl - r.ttl <= TTL_SLACK;
                text((
                    stripped(r.header),
                    r.id,
                    r.ttl < 0 || fresh,
                    r.granted_ttl,
                    r.keys,
                ))
            }
            Call::Leases => {
                let r = self.lease.lease_leases(LeaseLeasesRequest {}).await?.into_inner();
                let mut ids: Vec<i64> = r.leases.iter().map(|lease| lease.id).collect();
                ids.sort_unstable();
                text((stripped(r.header), ids))
            }
            Call::KeepAlive(id) => {
                let once = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
                let mut stream = self.lease.lease_keep_alive(once).await?.into_inner();
                let r = stream.message().await?.unwrap_or_default();
                text((stripped(r.header), r.id, r.ttl))
            }
            Call::HashKv(revision) => {
                let r = self
                    .maintenance
                    .hash_kv(HashKvRequest { revision })
                    .await?
                    .into_inner();
                text((stripped(r.header), r.compact_revision))
            }
            Call::Status => {
                let r = self.maintenance.status(StatusRequest {}).await?.into_inner();
                let leads = r
                    .header
                    .as_ref()
                    .is_some_and(|header| header.member_id == r.leader);
                let fits = r.db_size >= r.db_size_in_use;
                text((stripped(r.header), leads, fits, r.errors, r.is_learner))
            }
            Call::Defragment => {
                let r = self.maintenance.defragment(DefragmentRequest {}).await?;
                // etcd sends no header.
                text(r.into_inner().header.map(|_| ()))
            }
            Call::Alarm(request) => {
                let r = self.maintenance.alarm(request).await?.into_inner();
                // etcd 3.4 sends no header.
                text(r.alarms)
            }
            Call::Members { linearizable } => {
                let r = self
                    .cluster
                    .member_list(MemberListRequest { linearizable })
                    .await?
                    .into_inner();
                let learners: Vec<(bool, bool)> = r
                    .members
                    .iter()
                    .map(|member| (member.is_learner, member.name.is_empty()))
                    .collect();
                let mut learners = learners;
                learners.sort_unstable();
                text((stripped(r.header), learners))
            }
            Call::AddLearner(url) => {
                let request = MemberAddRequest {
                    peer_ur_ls: vec![url.to_string()],
                    is_learner: true,
                };
                let r = self.add_member(request).await?;
                let member = r.member.unwrap_or_default();
                self.learner = member.id;
                text((
                    stripped(r.header),
                    member.peer_ur_ls,
                    member.is_learner,
                    member.name,
                    r.members.len(),
                ))
            }
            Call::AddItself => {
                let list = self
                    .cluster
                    .member_list(MemberListRequest { linearizable: true })
                    .await?
                    .into_inner();
                let itself = list
                    .members
                    .into_iter()
                    .find(|member| !member.is_learner)
                    .unwrap_or_default();
                let request = MemberAddRequest {
                    peer_ur_ls: itself.peer_ur_ls,
                    is_learner: false,
                };
                text(self.cluster.member_add(request).await?.into_inner().members.len())
            }
            Call::PromoteLearner => {
                let request = MemberPromoteRequest { id: self.learner };
                text(
                    self.cluster
                        .member_promote(request)
                        .await?
                        .into_inner()
                        .members
                        .len(),
                )
            }
            Call::UpdateNobody(url) => {
                let request = MemberUpdateRequest {
                    id: 3,
                    peer_ur_ls: vec![url.to_string()],
                };
                text(
                    self.cluster
                        .member_update(request)
                        .await?
                        .into_inner()
                        .members
                        .len(),
                )
            }
            Call::RemoveLearner => {
                let request = MemberRemoveRequest { id: self.learner };
                text(
                    self.cluster
                        .member_remove(request)
                        .await?
                        .into_inner()
                        .members
                        .len(),
                )
            }
            Call::MoveLeader(target_id) => text(stripped(
                self.maintenance
                    .move_leader(MoveLeaderRequest { target_id })
                    .await?
                    .into_inner()
                    .header,
            )),
        })
    }
}

impl Server {
    /// etcd makes a member's id of its address and the time in seconds, and an id that was removed never comes back:
    /// within the second in which the same address was removed it answers that the member is not found.
    async fn add_member(&mut self, request: MemberAddRequest) -> Result<MemberAddResponse, Status> {
        let next_second = Instant::now() + Duration::from_secs(2);
        loop {
            match self.cluster.member_add(request.clone()).await {
                Err(status) if status.code() == Code::NotFound && Instant::now() < next_second => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                answer => return answer.map(tonic::Response::into_inner),
            }
        }
    }
}

/// etcd makes a member's id of its address and the time in seconds: one that is added twice within a second is refused
/// by its id, later by its address.
fn settle_refusal(mut refusal: Refusal) -> Refusal {
    if refusal.text == "etcdserver: member ID already exist" {
        refusal.text = "etcdserver: Peer URLs already exists".to_string();
    }
    refusal
}
