//! Users, roles and tokens.

use tonic::{Request, Response, Status};

use super::{credentials, header, status};
use crate::pb::etcdserverpb::auth_server::Auth as Service;
use crate::pb::etcdserverpb::*;
use crate::pb::pontoon::command::auth_change::Change;
use crate::pb::pontoon::command::{AuthChange, command::Op};
use crate::server::Server;
use crate::server::auth::Credentials;
use crate::state;

/// The Auth service.
pub struct Auth {
    server: Server,
}

impl Auth {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        Auth { server }
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(header(&self.server, self.server.reader().revision()))
    }

    async fn change(
        &self,
        credentials: &Credentials,
        change: Change,
    ) -> Result<Option<ResponseHeader>, Status> {
        let op = Op::Auth(AuthChange { change: Some(change) });
        self.server.propose_as(credentials, op).await.map_err(status)?;
        Ok(self.header())
    }

    /// Users and roles as they are now, on whichever member, if the caller has the role root or is let in by `or_if`.
    async fn read(
        &self,
        credentials: &Credentials,
        or_if: impl Fn(&state::auth::Auth, &str) -> bool,
    ) -> Result<std::sync::Arc<state::auth::Auth>, Status> {
        self.server.barrier().pass().await.map_err(status)?;
        let caller = self.server.gate().caller(credentials).await.map_err(status)?;
        let auth = self.server.reader().auth();
        let who = caller.who();
        let permitted = match auth.permit_user(&who) {
            Ok(()) if or_if(&auth, who.user) => Ok(()),
            Ok(()) => auth.permit_root(&who),
            Err(refused) => Err(refused),
        };
        permitted.map(|()| auth).map_err(status)
    }

    /// What the log carries instead of a password. A hash that a client sends along is ignored, as by etcd.
    async fn hashed(&self, password: String) -> Result<String, Status> {
        self.server.gate().hash(password).await.map_err(status)
    }
}

/// Nobody but root.
fn nobody_else(_: &state::auth::Auth, _: &str) -> bool {
    false
}

#[tonic::async_trait]
impl Service for Auth {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        let change = Change::Enable(AuthEnableRequest {});
        let header = self.change(&credentials(&request), change).await?;
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let change = Change::Disable(AuthDisableRequest {});
        let header = self.change(&credentials(&request), change).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        let auth = self.read(&credentials(&request), nobody_else).await?;
        Ok(Response::new(AuthStatusResponse {
            header: self.header(),
            enabled: auth.enabled(),
            auth_revision: auth.revision(),
        }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let AuthenticateRequest { name, password } = request.into_inner();
        let token = self.server.log_in(&name, &password).await.map_err(status)?;
        Ok(Response::new(AuthenticateResponse {
            header: self.header(),
            token,
        }))
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        let credentials = credentials(&request);
        // Before a password is hashed, which takes long, for somebody who may not set it.
        self.server.permit_root(&credentials).await.map_err(status)?;
        let mut user = request.into_inner();
        let has_none = user.options.as_ref().is_some_and(|options| options.no_password);
        let password = std::mem::take(&mut user.password);
        user.hashed_password = match has_none {
            true => String::new(),
            false => self.hashed(password).await?,
        };
        let header = self.change(&credentials, Change::UserAdd(user)).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        let name = &request.get_ref().name;
        let auth = self.read(&credentials(&request), |_, user| user == name).await?;
        Ok(Response::new(AuthUserGetResponse {
            header: self.header(),
            roles: auth.user(name).map_err(status)?.to_vec(),
        }))
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        let auth = self.read(&credentials(&request), nobody_else).await?;
        Ok(Response::new(AuthUserListResponse {
            header: self.header(),
            users: auth.users().cloned().collect(),
        }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let credentials = credentials(&request);
        let header = self
            .change(&credentials, Change::UserDelete(request.into_inner()))
            .await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let credentials = credentials(&request);
        // Before a password is hashed, which takes long, for somebody who may not set it.
        self.server.permit_root(&credentials).await.map_err(status)?;
        let mut user = request.into_inner();
        let password = std::mem::take(&mut user.password);
        user.hashed_password = self.hashed(password).await?;
        let header = self
            .change(&credentials, Change::UserChangePassword(user))
            .await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let credentials = credentials(&request);
        let header = self
            .change(&credentials, Change::UserGrantRole(request.into_inner()))
            .await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let credentials = credentials(&request);
        let header = self
            .change(&credentials, Change::UserRevokeRole(request.into_inner()))
            .await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        let credentials = credentials(&request);
        let header = self
            .change(&credentials, Change::RoleAdd(request.into_inner()))
            .await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        let role = &request.get_ref().role;
        let has_it = |auth: &state::auth::Auth, user: &str| {
            auth.user(user)
                .is_ok_and(|roles| roles.iter().any(|had| had == role))
        };
        let auth = self.read(&credentials(&request), has_it).await?;
        Ok(Response::new(AuthRoleGetResponse {
            header: self.header(),
            perm: auth.role(role).map_err(status)?,
        }))
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        let auth = self.read(&credentials(&request), nobody_else).await?;
        Ok(Response::new(AuthRoleListResponse {
            header: self.header(),
            roles: auth.roles().cloned().collect(),
        }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let credentials = credentials(&request);
        let header = self
            .change(&credentials, Change::RoleDelete(request.into_inner()))
            .await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let credentials = credentials(&request);
        let header = self
            .change(&credentials, Change::RoleGrantPermission(request.into_inner()))
            .await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let credentials = credentials(&request);
        let header = self
            .change(&credentials, Change::RoleRevokePermission(request.into_inner()))
            .await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }
}
