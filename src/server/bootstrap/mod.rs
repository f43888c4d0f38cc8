//! How a blank member finds its cluster. The data directory decides: one that belongs to a cluster skips all this,
//! so every member is started by the same command, always.
//!
//! **Into a cluster that is there** ([`enter()`]; `--initial-cluster-state existing`, or `--join`): before Raft is opened
//! the process asks for a place, at the addresses that it was given. It gets the id that it lives under, and has that
//! and the cluster's on disk before it does anything else. What it may get: the place that MemberAdd made at its URL;
//! the place of the member of its name, whose disk was lost; with `--join` a new one (see `server/members`).
//!
//! **Into a new one** ([`belong()`]). Blank members meet by asking each address in `--initial-cluster` who answers there.
//!
//! * **Somebody belongs to a cluster already:** this disk was wiped, or replaced. The member asks the leader to let its
//!   new id take the place of the old one of its name. It never votes under the old id, whose votes it has forgotten.
//! * **All of them are blank:** the one whose name sorts first founds the cluster with all of them as voters. It does so
//!   only when it has met *every* member, all blank and with the same `--initial-cluster` and token: with one missing
//!   it could not know that there is no cluster with data. If some of them were restored from a backup, the first of
//!   those is the founder, and the cluster begins with that (`raft/restored.rs`): one is enough, and all that were
//!   restored must have restored the same.
//!
//! All may be blank and yet not the first: members that joined later are in no flag, and carry on where the disks of
//! the first were lost. But they look for those: a leader calls within a heartbeat, one who misses its leader within an
//! election timeout. So the founder *listens* before it founds (`--founding-wait`), and whoever is called by a cluster
//! that looks for somebody else says so when it is met. A partition of all that time hides the others; so would a
//! majority that is down.
//!
//! ```text
//! founder   meets all, listens   adopts   each of the others adopts   Raft begins with all as voters
//! ```
//!
//! The others *adopt the cluster's id* before there is anything in it. A process that stood still after it had met them
//! all finds that they belong to another founder's cluster meanwhile, or to its own: no two clusters can have one of
//! them. If two founders got some each, neither begins, nothing is lost, and all say what to do. A founder that is
//! stopped on the way knows its own cluster's id and goes on.
//!
//! The members' URLs may come from DNS (`server/discovery`). Their names are then what they answer when they are asked.
//!
//! Either way it serves clients only once it has its vote, or is a learner that is to stay one.
//!
//! Files: `enter` into a cluster that is there · `meet` who answers · `belong` step by step into theirs, or a new one ·
//! `found` when, by whom, of whom.

mod belong;
mod enter;
mod found;
mod meet;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use self::belong::belong;
pub use self::enter::enter;
use crate::raft::peer::Introduction;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// What is missing is said this often.
const COMPLAIN: Duration = Duration::from_secs(5);

/// What a blank member knows from its flags.
pub struct Meeting {
    /// Who it says it is.
    pub introduction: Introduction,
    /// Name and peer URLs of each member, this one included.
    pub members: BTreeMap<String, Vec<String>>,
    /// DNS told where the members are: what stands for their names is no name.
    pub is_discovered: bool,
    /// Where the others reach this member.
    pub peer_urls: Vec<String>,
    /// `--initial-cluster-state existing`: never found a cluster.
    pub existing_only: bool,
    /// `--founding-wait`.
    pub founding_wait: Duration,
    /// `--join`: peer or client URLs of members.
    pub join: Vec<String>,
    /// The state that this member was restored with, while no cluster was founded on it.
    pub restored: Option<PathBuf>,
    /// Where it is told what this member waits for.
    pub waits: Waits,
}

impl Meeting {
    /// Peer URLs of others that this member was started with.
    pub fn hints(&self) -> Vec<String> {
        let is_mine = |url: &&String| self.peer_urls.contains(url);
        let others = self
            .members
            .iter()
            .filter(|(name, urls)| **name != self.introduction.name && !urls.iter().any(|url| is_mine(&url)));
        let others = others.flat_map(|(_, urls)| urls.clone());
        others.chain(self.join.clone()).collect()
    }
}

/// What a member waits for while it is in no cluster, for whoever asks. Cheap to clone.
#[derive(Clone, Default)]
pub struct Waits(Arc<Mutex<String>>);

impl Waits {
    /// In words.
    pub fn what(&self) -> String {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            what if what.is_empty() => "it starts".to_string(),
            what => what.clone(),
        }
    }

    fn set(&self, what: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what.to_string();
    }
}

/// Says now and then what stands in the way, and at once to whoever asks.
pub(super) struct Complaints {
    waits: Waits,
    next: Instant,
}

impl Complaints {
    pub(super) fn new(waits: &Waits) -> Self {
        Complaints {
            waits: waits.clone(),
            next: Instant::now() + COMPLAIN,
        }
    }

    pub(super) fn hear(&mut self, problem: &str) {
        self.waits.set(problem);
        if Instant::now() > self.next {
            tracing::warn!(%problem, "not yet in a cluster");
            self.next = Instant::now() + COMPLAIN;
        }
    }
}
