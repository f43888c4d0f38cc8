//! The source's leases at the target: the same ids and TTLs, alive for as long as they are alive there.
//!
//! A lease is granted here when a pair needs it, or when the list of the source's leases shows it. From then on it is
//! renewed here, each third of its TTL, while the source still lists it; what it does not list any more is revoked. If
//! the source can't be asked, all are renewed: a pair that stays too long is set right later, one that is gone is not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tokio::time::Instant;
use tonic::Code;

use crate::cli::failed::Failed;
use crate::cli::mirror;
use crate::client::{Client, ClientError};
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
};

/// How often leases are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Renewals under way at once.
const AT_ONCE: usize = 32;

/// The leases that are at the target.
#[derive(Default)]
pub struct Leases {
    /// By id: the TTL in seconds, and when it is to be renewed.
    granted: Mutex<BTreeMap<i64, (i64, Instant)>>,
}

fn due(ttl: i64) -> Instant {
    let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    Instant::now() + ttl / 3
}

impl Leases {
    fn granted(&self) -> MutexGuard<'_, BTreeMap<i64, (i64, Instant)>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.granted().len()
    }

    /// What an import before this one has left at the target: what of it the source does not have any more is revoked.
    pub async fn take_over(&self, target: &Client) -> Result<(), Failed> {
        for lease in target.lease_leases(LeaseLeasesRequest {}).await?.leases {
            let ask = LeaseTimeToLiveRequest {
                id: lease.id,
                keys: false,
            };
            let ttl = target.lease_time_to_live(ask).await?.granted_ttl;
            if ttl > 0 {
                self.granted().insert(lease.id, (ttl, Instant::now()));
            }
        }
        Ok(())
    }

    /// The lease that a pair is to have at the target: the same, granted if it is not there yet; none if it has ended at
    /// the source meanwhile, as the pair's deletion is on its way then.
    pub async fn at_target(&self, id: i64, source: &Client, target: &Client) -> Result<i64, Failed> {
        if id == 0 || self.granted().contains_key(&id) {
            return Ok(id);
        }
        let ask = LeaseTimeToLiveRequest { id, keys: false };
        let told = source.lease_time_to_live(ask).await?;
        if told.ttl <= 0 {
            return Ok(0);
        }
        let ttl = told.granted_ttl;
        match target.lease_grant(LeaseGrantRequest { id, ttl }).await {
            Ok(_) => {}
            // By an import before this one, or by an attempt whose answer was lost.
            Err(error) if error.to_string().contains("lease already exists") => {
                target.lease_keep_alive_once(id).await?;
            }
            Err(error) => return Err(error.into()),
        }
        self.granted().insert(id, (ttl, due(ttl)));
        Ok(id)
    }

    /// Keeps them as the source has them. Returns only if one ran out at the target, with its pairs, or on a refusal.
    pub async fn keep(&self, source: &Client, target: &Client) -> Result<(), Failed> {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(source, target).await?;
            let now = Instant::now();
            let due: Vec<i64> = self
                .granted()
                .iter()
                .filter(|(_, (_, due))| *due <= now)
                .map(|(id, _)| *id)
                .collect();
            if !self.renew(due, target).await? {
                return Ok(());
            }
        }
    }

    /// Grants and revokes what the source has granted and revoked.
    pub async fn look(&self, source: &Client, target: &Client) -> Result<(), Failed> {
        // Before the question: a lease that is granted meanwhile may be missing in the answer.
        let known: BTreeSet<i64> = self.granted().keys().copied().collect();
        let listed = match source.lease_leases(LeaseLeasesRequest {}).await {
            Ok(list) => list.leases.into_iter().map(|lease| lease.id).collect(),
            // It is asked again.
            Err(error) if mirror::may_recover(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.follow(&known, &listed, source, target).await
    }

    async fn follow(
        &self,
        known: &BTreeSet<i64>,
        listed: &BTreeSet<i64>,
        source: &Client,
        target: &Client,
    ) -> Result<(), Failed> {
        for id in listed.difference(known) {
            self.at_target(*id, source, target).await?;
        }
        for id in known.difference(listed) {
            // The list is one member's, who may lag; this is answered by the leader.
            let ask = LeaseTimeToLiveRequest { id: *id, keys: false };
            if source.lease_time_to_live(ask).await?.ttl > 0 {
                continue;
            }
            match target.lease_revoke(LeaseRevokeRequest { id: *id }).await {
                Err(error) if error.code() == Some(Code::NotFound) => {}
                // It is tried again the next time.
                Err(error) if mirror::may_recover(&error) => continue,
                revoked => drop(revoked?),
            }
            self.granted().remove(id);
        }
        Ok(())
    }

    /// Before clients go over, so that they have the whole TTL for it.
    pub async fn renew_all(&self, target: &Client) -> Result<(), Failed> {
        let all = self.granted().keys().copied().collect();
        self.renew(all, target).await.map(drop)
    }

    /// Whether all of them were still there.
    async fn renew(&self, ids: Vec<i64>, target: &Client) -> Result<bool, Failed> {
        let renew = |id| async move { renew_one(target, id).await.map(|lives| (id, lives)) };
        let renewed: Vec<(i64, bool)> = futures::stream::iter(ids)
            .map(renew)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let mut granted = self.granted();
        for (id, lives) in &renewed {
            match granted.get_mut(id).filter(|_| *lives) {
                Some((ttl, next)) => *next = due(*ttl),
                None => drop(granted.remove(id)),
            }
        }
        Ok(renewed.iter().all(|(_, lives)| *lives))
    }
}

async fn renew_one(target: &Client, id: i64) -> Result<bool, ClientError> {
    match target.lease_keep_alive_once(id).await {
        Ok(answer) => Ok(answer.ttl > 0),
        Err(error) if error.code() == Some(Code::NotFound) => Ok(false),
        // It is tried again the next time.
        Err(error) if mirror::may_recover(&error) => Ok(true),
        Err(error) => Err(error),
    }
}
