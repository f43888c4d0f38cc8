//! Who this member is, and which cluster it belongs to.
//!
//! A member's id is random and made with its data directory: a wiped disk is a new member, since a voter that
//! forgot its votes could vote twice in one term. The cluster's id is made by the founder; the others learn it from
//! the first request that is addressed to their own id, which only somebody who met them under the same token can
//! know, and have it on disk before they answer.
//!
//! A request for somebody else is refused; but if it comes from another cluster it is remembered for a while: that
//! cluster has a member at this address, and if this one is blank that member's disk was lost (`server/bootstrap`).

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

use crate::pb::pontoon::peer::Target;

/// How long it is remembered that another cluster called. Its members call at least every few seconds.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Makes an adopted cluster id durable.
pub type Persist = Box<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// This member's id and its cluster's.
pub struct Identity {
    member_id: u64,
    cluster_id: AtomicU64,
    adopting: Mutex<()>,
    persist: Persist,
    /// The other cluster that called last, and when.
    sought: Mutex<Option<(u64, Instant)>>,
}

impl Identity {
    /// `cluster_id` is 0 while the member belongs to no cluster.
    pub fn new(member_id: u64, cluster_id: u64, persist: Persist) -> Self {
        Identity {
            member_id,
            cluster_id: AtomicU64::new(cluster_id),
            adopting: Mutex::default(),
            persist,
            sought: Mutex::default(),
        }
    }

    /// This member's id.
    pub fn member_id(&self) -> u64 {
        self.member_id
    }

    /// The cluster's id, 0 while there is none.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id.load(Ordering::Acquire)
    }

    /// The id of the cluster that this member founds, if it founds one: always the same, so it founds one at most, and
    /// knows after a restart that it began to.
    pub fn own_cluster(&self) -> u64 {
        (!self.member_id).max(1)
    }

    /// A member of a cluster looks for another member at this address.
    pub fn seek(&self, cluster_id: u64) {
        if cluster_id != 0 && cluster_id != self.cluster_id() {
            let mut sought = self.sought.lock().unwrap_or_else(PoisonError::into_inner);
            *sought = Some((cluster_id, Instant::now()));
        }
    }

    /// The other cluster that lately looked for a member at this address, 0 for none.
    pub fn sought_by(&self) -> u64 {
        let sought = self.sought.lock().unwrap_or_else(PoisonError::into_inner);
        sought
            .filter(|(_, at)| at.elapsed() < REMEMBERED)
            .map_or(0, |(cluster_id, _)| cluster_id)
    }

    /// Joins a cluster, for good. The id is on disk when this returns. A member that belongs to another one already
    /// stays there: that is an error.
    pub fn adopt(&self, cluster_id: u64) -> io::Result<()> {
        let _one_at_a_time = self.adopting.lock().unwrap_or_else(PoisonError::into_inner);
        match self.cluster_id() {
            0 => {}
            mine if mine == cluster_id => return Ok(()),
            mine => {
                let text = format!("this member belongs to cluster {mine:x}, not to {cluster_id:x}");
                return Err(io::Error::other(text));
            }
        }
        (self.persist)(cluster_id)?;
        self.cluster_id.store(cluster_id, Ordering::Release);
        Ok(())
    }

    /// How a request for `member_id` is addressed.
    pub fn target(&self, member_id: u64) -> Target {
        Target {
            cluster_id: self.cluster_id(),
            member_id,
        }
    }

    /// Refuses a request that is meant for somebody else.
    pub fn check(&self, target: Option<Target>) -> Result<(), Status> {
        let target = target.ok_or_else(|| Status::invalid_argument("peer request without a target"))?;
        if target.member_id != self.member_id {
            self.seek(target.cluster_id);
            return Err(mismatch("member", target.member_id, self.member_id));
        }
        match self.cluster_id() {
            mine if mine == target.cluster_id && mine != 0 => Ok(()),
            0 if target.cluster_id != 0 => self
                .adopt(target.cluster_id)
                .map_err(|error| Status::internal(format!("cannot record the cluster id: {error}"))),
            mine => Err(mismatch("cluster", target.cluster_id, mine)),
        }
    }
}

fn mismatch(what: &str, meant: u64, is: u64) -> Status {
    Status::failed_precondition(format!("request for {what} {meant:x} reached {what} {is:x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(cluster_id: u64) -> Identity {
        Identity::new(7, cluster_id, Box::new(|_| Ok(())))
    }

    #[test]
    fn requests_for_others_are_refused() {
        let me = identity(1);
        assert!(
            me.check(Some(Target {
                cluster_id: 1,
                member_id: 7
            }))
            .is_ok()
        );
        assert!(
            me.check(Some(Target {
                cluster_id: 1,
                member_id: 8
            }))
            .is_err()
        );
        assert!(
            me.check(Some(Target {
                cluster_id: 2,
                member_id: 7
            }))
            .is_err()
        );
        assert!(me.check(None).is_err());
    }

    #[test]
    fn a_new_member_adopts_the_first_cluster_that_knows_its_id() {
        let me = identity(0);
        assert!(
            me.check(Some(Target {
                cluster_id: 0,
                member_id: 7
            }))
            .is_err()
        );
        assert!(
            me.check(Some(Target {
                cluster_id: 5,
                member_id: 8
            }))
            .is_err()
        );
        assert_eq!(
            (me.cluster_id(), me.sought_by()),
            (0, 5),
            "somebody else is looked for"
        );
        assert!(
            me.check(Some(Target {
                cluster_id: 5,
                member_id: 7
            }))
            .is_ok()
        );
        assert_eq!(me.cluster_id(), 5);
        assert!(
            me.check(Some(Target {
                cluster_id: 6,
                member_id: 7
            }))
            .is_err()
        );
    }
}
