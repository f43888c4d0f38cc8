//! Who asks: from what a request carries to a user.
//!
//! A user shows a password once and gets a token, which comes with every request from then on. Tokens are made through
//! the log, so that every member knows them, but are no part of the state: each member keeps them in memory and forgets
//! those that were not used for a while; after a restart users log in again, which clients do by themselves.
//!
//! A token ends with the index of the entry that made it (etcd's form): a member that is behind waits until it has
//! applied that far instead of calling the token wrong.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use super::jwt::{Claims, Jwt};
use super::propose::Proposer;
use crate::error::Error;
use crate::pb::pontoon::command::{Authenticate, command::Op, reply::Response};
use crate::state::auth::Who;
use crate::state::{Reader, TokenChange};

/// Random letters in a token: 16 of 52, as etcd has them; more than 90 bits.
const SECRET_LETTERS: usize = 16;
/// Passwords looked at at once: each takes a core for a good part of a tenth of a second, by design.
const PASSWORDS_AT_ONCE: usize = 2;
/// How often a login is tried again because users changed meanwhile.
const LOGIN_TRIES: usize = 5;
/// When this many tokens are held, those that ran out are looked for.
const TOKENS_BEFORE_CLEANING: usize = 1024;

/// What a request says about who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// A token, as the request carries it.
    pub token: Option<String>,
    /// The common name in the certificate that the connection came with: the user, if there is no token.
    pub common_name: Option<String>,
}

/// A user as known now; empty while access control is off, or if nobody said who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    user: String,
    revision: u64,
}

impl Caller {
    /// As the state asks for it.
    pub fn who(&self) -> Who<'_> {
        Who {
            user: &self.user,
            revision: self.revision,
            system: false,
        }
    }
}

/// The tokens that this member knows.
pub struct Tokens {
    held: Mutex<BTreeMap<String, Held>>,
    /// A token that was not used for so long is void.
    ttl: Duration,
}

struct Held {
    user: String,
    until: Instant,
}

impl Tokens {
    /// None yet.
    pub fn new(ttl: Duration) -> Self {
        Tokens {
            held: Mutex::default(),
            ttl,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns what the log says of tokens.
    pub fn take(&self, change: TokenChange) {
        let mut held = self.lock();
        match change {
            TokenChange::Granted(granted) => {
                let now = Instant::now();
                if held.len() % TOKENS_BEFORE_CLEANING == TOKENS_BEFORE_CLEANING - 1 {
                    held.retain(|_, token| token.until > now);
                }
                let token = Held {
                    user: granted.user,
                    until: now + self.ttl,
                };
                held.insert(granted.token, token);
            }
            TokenChange::Revoked(user) => held.retain(|_, token| token.user != user),
            TokenChange::AllRevoked => held.clear(),
        }
    }

    /// Whose a token is; using it keeps it alive.
    fn user(&self, token: &str) -> Option<String> {
        let now = Instant::now();
        let mut held = self.lock();
        let found = held.get_mut(token)?;
        if found.until <= now {
            held.remove(token);
            return None;
        }
        found.until = now + self.ttl;
        Some(found.user.clone())
    }
}

/// Knows callers. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    reader: Reader,
    tokens: Arc<Tokens>,
    /// Signed tokens instead of those.
    jwt: Option<Arc<Jwt>>,
    applied: watch::Receiver<u64>,
    passwords: Arc<Semaphore>,
    /// `--bcrypt-cost`.
    cost: u32,
    /// How long to wait for the entry that made a token.
    patience: Duration,
}

impl Gate {
    /// Over the state that `reader` sees.
    pub fn new(
        reader: Reader,
        tokens: Arc<Tokens>,
        jwt: Option<Arc<Jwt>>,
        applied: watch::Receiver<u64>,
        cost: u32,
        patience: Duration,
    ) -> Self {
        Gate {
            reader,
            tokens,
            jwt,
            applied,
            passwords: Arc::new(Semaphore::new(PASSWORDS_AT_ONCE)),
            cost,
            patience,
        }
    }

    /// Who asks. Whether it may is for the state to say.
    pub async fn caller(&self, credentials: &Credentials) -> Result<Caller, Error> {
        let auth = self.reader.auth();
        match (&credentials.token, &credentials.common_name, &self.jwt) {
            _ if !auth.enabled() => Ok(Caller::default()),
            (Some(token), _, None) => self.holder(token).await,
            (Some(token), _, Some(jwt)) => self.bearer(jwt.read(token)?).await,
            (None, Some(name), _) => Ok(Caller {
                user: name.clone(),
                revision: auth.revision(),
            }),
            (None, None, _) => Ok(Caller::default()),
        }
    }

    async fn holder(&self, token: &str) -> Result<Caller, Error> {
        self.await_maker(token).await?;
        // The revision first: if the user goes between the two, the older revision is found out at apply.
        let revision = self.reader.auth().revision();
        let user = self.tokens.user(token).ok_or(Error::InvalidAuthToken)?;
        Ok(Caller { user, revision })
    }

    /// A token from before the last change is void; one from a change that this member has yet to see is waited for.
    async fn bearer(&self, claims: Claims) -> Result<Caller, Error> {
        let mut applied = self.applied.clone();
        let is_known = |_: &u64| self.reader.auth().revision() >= claims.revision;
        let known = tokio::time::timeout(self.patience, applied.wait_for(is_known)).await;
        match known {
            Ok(Ok(_)) if self.reader.auth().revision() == claims.revision => Ok(Caller {
                user: claims.username,
                revision: claims.revision,
            }),
            Ok(Err(_)) => Err(Error::Stopped),
            _ => Err(Error::AuthOldRevision),
        }
    }

    /// Waits until the entry that made a token is applied here, if there can be one.
    async fn await_maker(&self, token: &str) -> Result<(), Error> {
        let index = token
            .rsplit_once('.')
            .and_then(|(_, index)| index.parse::<u64>().ok());
        let index = index.ok_or(Error::InvalidAuthToken)?;
        let mut applied = self.applied.clone();
        let waited = tokio::time::timeout(self.patience, applied.wait_for(|applied| *applied >= index)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::InvalidAuthToken),
        }
    }

    /// A token for a name and a password.
    pub async fn log_in(&self, proposer: &Proposer, name: &str, password: &str) -> Result<String, Error> {
        let mut refused = Error::AuthOldRevision;
        for _ in 0..LOGIN_TRIES {
            let auth = self.reader.auth();
            if !auth.enabled() {
                return Err(Error::AuthNotEnabled);
            }
            let hash = auth
                .password_hash(name)
                .map(|hash| String::from_utf8_lossy(hash).into_owned());
            if !self.is_right(password.to_string(), hash).await? {
                return Err(Error::AuthFailed);
            }
            if let Some(jwt) = &self.jwt {
                return jwt.make(name, auth.revision());
            }
            let login = Op::Authenticate(Authenticate {
                name: name.to_string(),
                secret: random_letters(),
            });
            let nobody_yet = Caller {
                user: String::new(),
                revision: auth.revision(),
            };
            match proposer.propose_for(&nobody_yet, login).await {
                Ok(Response::Authenticated(granted)) => return Ok(granted.token),
                Ok(_) => return Err(Error::AuthFailed),
                Err(Error::AuthOldRevision) => refused = Error::AuthOldRevision,
                Err(other) => return Err(other),
            }
        }
        Err(refused)
    }

    /// A user that does not exist takes as long as a wrong password, so that the time does not tell.
    async fn is_right(&self, password: String, hash: Option<String>) -> Result<bool, Error> {
        let cost = self.cost;
        self.at_length(move || match hash {
            Some(hash) => bcrypt::verify(password, &hash).unwrap_or(false),
            None => {
                // Hashed for the time that it takes only.
                let _ = bcrypt::hash(password, cost);
                false
            }
        })
        .await
    }

    /// A password as the log may carry it.
    pub async fn hash(&self, password: String) -> Result<String, Error> {
        let cost = self.cost;
        let hashed = self.at_length(move || bcrypt::hash(password, cost)).await?;
        hashed.map_err(|_| Error::InvalidAuthManagement)
    }

    /// Does what takes a core for long in a thread of its own, a few at once.
    async fn at_length<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.passwords.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Error::Stopped)?;
        let worked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        worked.await.map_err(|_| Error::Stopped)
    }
}

fn random_letters() -> String {
    use rand::Rng;
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut rng = rand::rng();
    let letter = |_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]);
    (0..SECRET_LETTERS).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::pontoon::command::Authenticated;

    fn granted(user: &str, token: &str) -> TokenChange {
        TokenChange::Granted(Authenticated {
            user: user.to_string(),
            token: token.to_string(),
        })
    }

    #[test]
    fn a_token_is_its_users_until_it_is_revoked() {
        let tokens = Tokens::new(Duration::from_secs(300));
        tokens.take(granted("alice", "a.1"));
        tokens.take(granted("alice", "b.2"));
        tokens.take(granted("bob", "c.3"));
        assert_eq!(tokens.user("a.1").as_deref(), Some("alice"));
        assert_eq!(tokens.user("x.1"), None);
        tokens.take(TokenChange::Revoked("alice".to_string()));
        assert_eq!([tokens.user("a.1"), tokens.user("b.2")], [None, None]);
        assert_eq!(tokens.user("c.3").as_deref(), Some("bob"));
        tokens.take(TokenChange::AllRevoked);
        assert_eq!(tokens.user("c.3"), None);
    }

    #[test]
    fn a_token_that_is_not_used_runs_out() {
        let tokens = Tokens::new(Duration::ZERO);
        tokens.take(granted("alice", "a.1"));
        assert_eq!(tokens.user("a.1"), None);
    }

    #[test]
    fn secrets_differ() {
        assert_ne!(random_letters(), random_letters());
        assert_eq!(random_letters().len(), SECRET_LETTERS);
    }
}
