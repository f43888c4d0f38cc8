//! Who is calling: name and password are changed for a token, which goes along with every request.
//!
//! A token ends when it has not been used for a while, when its member restarts, or when its user's password changes.
//! The server then says "invalid auth token", and a new one is fetched, once a call.

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Client, ClientError, lock};
use crate::pb::etcdserverpb::AuthenticateRequest;
use crate::pb::etcdserverpb::auth_client::AuthClient;

/// What the server answers to a login while access control is off: then none is needed.
const NOT_ENABLED: &str = "etcdserver: authentication is not enabled";
const STALE: &str = "etcdserver: revision of auth store is old";

impl Client {
    /// What goes along with requests that are made without this client; none without a login.
    pub async fn token_to_lend(&self) -> Result<Option<String>, ClientError> {
        if self.options.login.is_none() {
            return Ok(None);
        }
        let (_, channel) = self.connect().await?;
        self.token(&channel).await
    }

    /// The token in use, fetched if need be; none without a login, or where none is asked for.
    pub(super) async fn token(&self, channel: &Channel) -> Result<Option<String>, ClientError> {
        let Some((name, password)) = self.options.login.clone() else {
            return Ok(None);
        };
        if let Some(token) = lock(&self.token).clone() {
            return Ok(Some(token));
        }
        let mut request = tonic::Request::new(AuthenticateRequest { name, password });
        request.set_timeout(self.options.timeout);
        match AuthClient::new(channel.clone()).authenticate(request).await {
            Ok(answer) => {
                let token = answer.into_inner().token;
                *lock(&self.token) = Some(token.clone());
                Ok(Some(token))
            }
            Err(status) if status.message() == NOT_ENABLED => Ok(None),
            Err(status) if status.code() == Code::Unavailable => Err(ClientError::Server(status)),
            Err(status) => Err(ClientError::Login(status)),
        }
    }

    /// Whether an answer says that a new token is needed, and one can be had.
    pub(super) fn token_is_stale(&self, status: &Status) -> bool {
        self.options.login.is_some() && (status.code() == Code::Unauthenticated || status.message() == STALE)
    }
}
