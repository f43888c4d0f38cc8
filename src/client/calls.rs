//! The unary calls, one method each. Which of them may be sent again is argued in the head of [`super`].

use tonic::transport::Channel;

use super::Again::{Harmless, Never};
use super::{Client, ClientError};
use crate::pb::etcdserverpb::auth_client::AuthClient;
use crate::pb::etcdserverpb::cluster_client::ClusterClient;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::pb::etcdserverpb::request_op::Request as Op;
use crate::pb::etcdserverpb::*;
use crate::pb::v3electionpb::election_client::ElectionClient;
use crate::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use crate::pb::v3lockpb::lock_client::LockClient;
use crate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

/// A row is a method of [`Client`]: its name, the service and method it calls, request and response, and whether it may
/// be sent again.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($stub:expr, $method:ident, $request:ty) -> $response:ty, $again:expr;)*) => {
        impl Client {
            $(
                $(#[$doc])*
                pub async fn $name(&self, request: $request) -> Result<$response, ClientError> {
                    let call = |channel, request| async move { $stub(channel).$method(request).await };
                    self.call($again, request, call).await
                }
            )*
        }
    };
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

calls! {
    /// Reads a range.
    range(kv, range, RangeRequest) -> RangeResponse, Harmless;
    /// Sets a key.
    put(kv, put, PutRequest) -> PutResponse, Never;
    /// Deletes a range.
    delete_range(kv, delete_range, DeleteRangeRequest) -> DeleteRangeResponse, Never;
    /// Forgets old revisions.
    compact(kv, compact, CompactionRequest) -> CompactionResponse, Never;

    /// Ends a lease.
    lease_revoke(LeaseClient::new, lease_revoke, LeaseRevokeRequest) -> LeaseRevokeResponse, Never;
    /// How long a lease still lives.
    lease_time_to_live(LeaseClient::new, lease_time_to_live, LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse,
        Harmless;
    /// All leases.
    lease_leases(LeaseClient::new, lease_leases, LeaseLeasesRequest) -> LeaseLeasesResponse, Harmless;

    /// Adds a member.
    member_add(ClusterClient::new, member_add, MemberAddRequest) -> MemberAddResponse, Never;
    /// Removes a member.
    member_remove(ClusterClient::new, member_remove, MemberRemoveRequest) -> MemberRemoveResponse, Never;
    /// Changes a member's peer URLs.
    member_update(ClusterClient::new, member_update, MemberUpdateRequest) -> MemberUpdateResponse, Never;
    /// Makes a voter of a learner.
    member_promote(ClusterClient::new, member_promote, MemberPromoteRequest) -> MemberPromoteResponse,
        Never;
    /// The members.
    member_list_as(ClusterClient::new, member_list, MemberListRequest) -> MemberListResponse, Harmless;

    /// Checksum of the pairs of this endpoint.
    hash_kv(MaintenanceClient::new, hash_kv, HashKvRequest) -> HashKvResponse, Harmless;
    /// Gives back the unused space of this endpoint.
    defragment(MaintenanceClient::new, defragment, DefragmentRequest) -> DefragmentResponse, Never;
    /// Tells this endpoint, the leader, to hand over.
    move_leader(MaintenanceClient::new, move_leader, MoveLeaderRequest) -> MoveLeaderResponse, Never;

    /// Turns access control on.
    auth_enable(AuthClient::new, auth_enable, AuthEnableRequest) -> AuthEnableResponse, Never;
    /// Turns access control off.
    auth_disable(AuthClient::new, auth_disable, AuthDisableRequest) -> AuthDisableResponse, Never;
    /// Whether access control is on.
    auth_status(AuthClient::new, auth_status, AuthStatusRequest) -> AuthStatusResponse, Harmless;
    /// Adds a user.
    user_add(AuthClient::new, user_add, AuthUserAddRequest) -> AuthUserAddResponse, Never;
    /// A user's roles.
    user_get(AuthClient::new, user_get, AuthUserGetRequest) -> AuthUserGetResponse, Harmless;
    /// All users.
    user_list(AuthClient::new, user_list, AuthUserListRequest) -> AuthUserListResponse, Harmless;
    /// Deletes a user.
    user_delete(AuthClient::new, user_delete, AuthUserDeleteRequest) -> AuthUserDeleteResponse, Never;
    /// Sets a password.
    user_change_password(AuthClient::new, user_change_password, AuthUserChangePasswordRequest)
        -> AuthUserChangePasswordResponse, Never;
    /// Gives a role to a user.
    user_grant_role(AuthClient::new, user_grant_role, AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse,
        Never;
    /// Takes a role from a user.
    user_revoke_role(AuthClient::new, user_revoke_role, AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse,
        Never;
    /// Adds a role.
    role_add(AuthClient::new, role_add, AuthRoleAddRequest) -> AuthRoleAddResponse, Never;
    /// A role's permissions.
    role_get(AuthClient::new, role_get, AuthRoleGetRequest) -> AuthRoleGetResponse, Harmless;
    /// All roles.
    role_list(AuthClient::new, role_list, AuthRoleListRequest) -> AuthRoleListResponse, Harmless;
    /// Deletes a role.
    role_delete(AuthClient::new, role_delete, AuthRoleDeleteRequest) -> AuthRoleDeleteResponse, Never;
    /// Gives a permission to a role.
    role_grant_permission(AuthClient::new, role_grant_permission, AuthRoleGrantPermissionRequest)
        -> AuthRoleGrantPermissionResponse, Never;
    /// Takes a permission from a role.
    role_revoke_permission(AuthClient::new, role_revoke_permission, AuthRoleRevokePermissionRequest)
        -> AuthRoleRevokePermissionResponse, Never;

    /// Gives a lock back.
    unlock(LockClient::new, unlock, UnlockRequest) -> UnlockResponse, Never;
    /// The leader of an election.
    leader(ElectionClient::new, leader, LeaderRequest) -> LeaderResponse, Harmless;
    /// The leader changes its value.
    proclaim(ElectionClient::new, proclaim, ProclaimRequest) -> ProclaimResponse, Never;
    /// Gives the leadership up.
    resign_as(ElectionClient::new, resign, ResignRequest) -> ResignResponse, Never;
}

impl Client {
    /// Compares and changes.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, ClientError> {
        let again = if reads_only(&request) { Harmless } else { Never };
        let call = |channel, request| async move { kv(channel).txn(request).await };
        self.call(again, request, call).await
    }

    /// Makes a lease.
    pub async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, ClientError> {
        let again = if request.id == 0 { Harmless } else { Never };
        let call = |channel, request| async move { LeaseClient::new(channel).lease_grant(request).await };
        self.call(again, request, call).await
    }

    /// Lists, raises or clears alarms.
    pub async fn alarm(&self, request: AlarmRequest) -> Result<AlarmResponse, ClientError> {
        let lists = request.action == alarm_request::AlarmAction::Get as i32;
        let again = if lists { Harmless } else { Never };
        let call = |channel, request| async move { MaintenanceClient::new(channel).alarm(request).await };
        self.call(again, request, call).await
    }

    /// The members, as a majority knows them.
    pub async fn member_list(&self) -> Result<MemberListResponse, ClientError> {
        self.member_list_as(MemberListRequest { linearizable: true })
            .await
    }

    /// The endpoint's own status.
    pub async fn status(&self) -> Result<StatusResponse, ClientError> {
        let call = |channel, request| async move { MaintenanceClient::new(channel).status(request).await };
        self.call(Harmless, StatusRequest {}, call).await
    }

    /// A backup of the endpoint, in pieces. It may take as long as it takes.
    pub async fn snapshot(&self) -> Result<tonic::Streaming<SnapshotResponse>, ClientError> {
        let (_, channel) = self.connect().await?;
        let message = self.request(&channel, SnapshotRequest {}).await?;
        let mut client = MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX);
        Ok(client.snapshot(message).await?.into_inner())
    }

    /// Waits until the lock is owned, for as long as it takes.
    pub async fn lock(&self, request: LockRequest) -> Result<LockResponse, ClientError> {
        let call = |channel, request| async move { LockClient::new(channel).lock(request).await };
        self.call_patiently(request, call).await
    }

    /// Waits until the election is won, for as long as it takes.
    pub async fn campaign(&self, request: CampaignRequest) -> Result<CampaignResponse, ClientError> {
        let call = |channel, request| async move { ElectionClient::new(channel).campaign(request).await };
        self.call_patiently(request, call).await
    }

    /// Gives the leadership up.
    pub async fn resign(&self, leader: LeaderKey) -> Result<ResignResponse, ClientError> {
        self.resign_as(ResignRequest { leader: Some(leader) }).await
    }

    /// The leader of an election now, then each that follows. Ends with an error when the endpoint can't serve; asked
    /// again, it begins with who leads then.
    pub async fn observe(
        &self,
        request: LeaderRequest,
    ) -> Result<tonic::Streaming<LeaderResponse>, ClientError> {
        let (at, channel) = self.connect().await?;
        let message = self.request(&channel, request).await?;
        let answer = ElectionClient::new(channel).observe(message).await;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            self.leave(at);
            status.into()
        })
    }
}

/// Such a transaction writes nothing, whichever branch is taken.
fn reads_only(txn: &TxnRequest) -> bool {
    txn.success
        .iter()
        .chain(&txn.failure)
        .all(|op| match &op.request {
            Some(Op::RequestRange(_)) | None => true,
            Some(Op::RequestTxn(txn)) => reads_only(txn),
            Some(Op::RequestPut(_) | Op::RequestDeleteRange(_)) => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(ops: Vec<Op>) -> TxnRequest {
        let ops = ops.into_iter().map(|op| RequestOp { request: Some(op) });
        TxnRequest {
            failure: ops.collect(),
            ..TxnRequest::default()
        }
    }

    #[test]
    fn a_transaction_that_only_reads_may_be_sent_again() {
        let read = || Op::RequestRange(RangeRequest::default());
        assert!(reads_only(&txn(vec![])));
        assert!(reads_only(&txn(vec![read(), Op::RequestTxn(txn(vec![read()]))])));
        let write = Op::RequestTxn(txn(vec![read(), Op::RequestPut(PutRequest::default())]));
        assert!(!reads_only(&txn(vec![read(), write])));
    }
}
