//! One running member, with its tasks and clocks: [`run()`] is its life, [`Server`] what its services see of it.

pub mod auth;
pub mod backup;
mod bind;
pub mod bootstrap;
pub mod certificates;
mod compactor;
mod corruption;
pub mod data_dir;
mod discovery;
mod disk;
mod ending;
pub mod jwt;
pub mod leader;
pub mod lessor;
mod listen;
pub mod members;
pub mod observatory;
mod parts;
pub mod propose;
pub mod read;
pub mod recover;
pub mod restore;
mod run;
pub mod space;
pub mod watches;

use std::sync::Arc;

use self::auth::{Caller, Credentials, Gate};
use self::backup::Backups;
pub use self::ending::Removed;
use self::leader::Leadership;
use self::lessor::Lessor;
use self::members::Members;
use self::observatory::Observatory;
use self::propose::{Limits, Proposer};
use self::read::Barrier;
pub use self::run::run;
use self::space::Space;
use self::watches::Watches;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::pb::etcdserverpb::Member;
use crate::pb::pontoon::command::{MemberRecord, command::Op, reply::Response};
use crate::raft::replica::Replica;
use crate::state::Reader;
use crate::state::auth::{Auth, Who};
use crate::tls::ServerTls;

/// What etcd adds to `--max-request-bytes` for the envelope.
pub const ENVELOPE: usize = 512 * 1024;
/// How often it is looked again who asks, while users and roles keep changing.
const CALLER_TRIES: usize = 5;

/// What the services see of a member. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    replica: Replica,
    proposer: Proposer,
    barrier: Barrier,
    leadership: Leadership,
    watches: Watches,
    gate: Gate,
    members: Members,
    backups: Backups,
    lessor: Lessor,
    space: Space,
    observatory: Observatory,
    metrics: Arc<Metrics>,
    certificates: Shown,
}

/// The certificates that a member shows, by the port that it shows them on.
type Shown = Arc<[(&'static str, Arc<ServerTls>)]>;

impl Server {
    /// The replica underneath.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Reads of the applied state here.
    pub fn reader(&self) -> &Reader {
        self.replica.reader()
    }

    /// What a linearizable read waits for.
    pub fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    /// Whether this member has a leader.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// Watches of what is applied here.
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// Changes of the membership.
    pub fn membership(&self) -> &Members {
        &self.members
    }

    /// Where backups come from.
    pub fn backups(&self) -> &Backups {
        &self.backups
    }

    /// The room that this member has.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// The cluster, to be looked at.
    pub fn observatory(&self) -> &Observatory {
        &self.observatory
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.proposer.limits()
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.replica.identity().cluster_id()
    }

    /// This member's id.
    pub fn member_id(&self) -> u64 {
        self.replica.identity().member_id()
    }

    /// Raft's term as this member knows it.
    pub fn term(&self) -> u64 {
        self.replica.term()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The certificates that it shows, by the port: `client` or `peer`.
    pub fn certificates(&self) -> &[(&'static str, Arc<ServerTls>)] {
        &self.certificates
    }

    /// Proposals under way from this member.
    pub fn in_flight(&self) -> usize {
        self.proposer.in_flight()
    }

    /// Who asks.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Changes the state, through the log, for the cluster itself: not subject to permissions.
    pub async fn propose(&self, op: Op) -> Result<Response, Error> {
        self.space.admit(&op).await?;
        self.proposer.propose(op).await
    }

    /// Changes the state, through the log, for a client. If users change meanwhile it is looked again who asks.
    pub async fn propose_as(&self, credentials: &Credentials, op: Op) -> Result<Response, Error> {
        self.space.admit(&op).await?;
        if !self.reader().auth().enabled() {
            return self.proposer.propose_for(&Caller::default(), op).await;
        }
        for _ in 0..CALLER_TRIES {
            let caller = self.gate.caller(credentials).await?;
            match self.proposer.propose_for(&caller, op.clone()).await {
                // The state here may lag behind the one that refused.
                Err(Error::AuthOldRevision) => self.barrier.pass().await?,
                answer => return answer,
            }
        }
        Err(Error::AuthOldRevision)
    }

    /// Reads the state here, if the caller may. If users or roles change meanwhile it is looked and read again, so that
    /// nobody sees what was written after the right to see it was taken away.
    pub async fn read_as<T, E: From<Error>>(
        &self,
        credentials: &Credentials,
        permit: impl Fn(&Auth, &Who<'_>) -> Result<(), Error>,
        read: impl Fn(&Reader) -> Result<T, E>,
    ) -> Result<T, E> {
        let reader = self.reader();
        for _ in 0..CALLER_TRIES {
            let auth = reader.auth();
            let caller = self.gate.caller(credentials).await?;
            match permit(&auth, &caller.who()) {
                Err(Error::AuthOldRevision) => continue,
                permitted => permitted?,
            }
            let answer = read(reader);
            if Arc::ptr_eq(&auth, &reader.auth()) {
                return answer;
            }
        }
        Err(Error::AuthOldRevision.into())
    }

    /// Refuses whoever is not known, while access control is on.
    pub async fn permit_user(&self, credentials: &Credentials) -> Result<(), Error> {
        self.read_as(credentials, Auth::permit_user, |_| Ok(())).await
    }

    /// Refuses whoever does not have the role root, while access control is on.
    pub async fn permit_root(&self, credentials: &Credentials) -> Result<(), Error> {
        self.read_as(credentials, Auth::permit_root, |_| Ok(())).await
    }

    /// A token for a name and a password.
    pub async fn log_in(&self, name: &str, password: &str) -> Result<String, Error> {
        self.gate.log_in(&self.proposer, name, password).await
    }

    /// Something local failed: this member stops.
    pub fn fail(&self, reason: String) {
        self.replica.failure().report(reason);
    }

    /// The members, as clients see them, by id.
    pub fn members(&self) -> Vec<Member> {
        let member = |record: MemberRecord| Member {
            id: record.id,
            name: record.name,
            peer_ur_ls: record.peer_urls,
            client_ur_ls: record.client_urls,
            is_learner: record.is_learner,
        };
        self.reader().members().into_iter().map(member).collect()
    }
}
