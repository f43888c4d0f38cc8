//! Where the others are, and where this one is: told when it changes, asked around when touch is lost.

use std::time::Duration;

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::{ANSWER, probe};
use crate::pb::pontoon::peer;
use crate::raft::network::{Purpose, within};
use crate::raft::peer::Introduction;
use crate::raft::replica::Replica;

/// How often a member that lost touch asks around.
const LOOK_AROUND: Duration = Duration::from_millis(500);

/// How a member finds the others, and tells them where it is.
pub struct Whereabouts {
    /// Who this member says it is.
    pub introduction: Introduction,
    /// `--initial-advertise-peer-urls`.
    pub peer_urls: Vec<String>,
    /// Peer URLs that this member was started with: somebody may be there.
    pub hints: Vec<String>,
}

/// Follows where the others are. Returns when this member was removed from the cluster.
pub async fn follow(replica: &Replica, whereabouts: &Whereabouts) {
    tokio::select! {
        () = follow_records(replica) => {}
        () = look_around(replica, whereabouts) => {}
        () = probe::ask_now_and_then(replica, &whereabouts.introduction) => {}
    }
}

async fn follow_records(replica: &Replica) {
    let me = replica.identity().member_id();
    let mut changed = replica.members_changed();
    let mut seen: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    loop {
        let is_removed = replica.reader().is_removed(me);
        if is_removed && !replica.standing().nodes.contains_key(&me) {
            return;
        }
        let records = replica.reader().members();
        let others: BTreeSet<u64> = records
            .iter()
            .map(|record| record.id)
            .filter(|id| *id != me)
            .collect();
        replica.peers().keep(&others);
        let names = records.iter().map(|record| (record.id, record.name.clone()));
        replica.metrics().journal.call(names);
        for record in records {
            // Only what is new in the records is news: a member may have told since that it moved.
            if seen.get(&record.id) != Some(&record.peer_urls) {
                replica.peers().moved(record.id, &record.peer_urls);
                seen.insert(record.id, record.peer_urls);
            }
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() {
                // The state machine is gone: this member stops.
                return std::future::pending().await;
            },
            // Raft, which decides, says otherwise: it is about to, or the member recovered and its state will follow.
            () = tokio::time::sleep(LOOK_AROUND), if is_removed => {}
        }
    }
}

async fn look_around(replica: &Replica, whereabouts: &Whereabouts) {
    loop {
        if replica.identity().cluster_id() != 0
            && !replica.is_in_touch()
            && ask_around(replica, whereabouts).await
        {
            return;
        }
        tokio::time::sleep(LOOK_AROUND).await;
    }
}

/// Asks everybody who they are, and says who and where this one is; whether one says that this member was removed.
async fn ask_around(replica: &Replica, whereabouts: &Whereabouts) -> bool {
    let me = replica.identity().member_id();
    let records = replica.reader().members();
    let mut urls = whereabouts.hints.clone();
    let others = records.iter().filter(|record| record.id != me);
    urls.extend(others.flat_map(|record| record.peer_urls.clone()));
    urls.sort();
    urls.dedup();
    let own = records.iter().find(|record| record.id == me);
    // Its own word is news only if it changed (see state/cluster.rs).
    let peer_urls = match own {
        Some(own) if own.told_peer_urls == whereabouts.peer_urls => &own.peer_urls,
        _ => &whereabouts.peer_urls,
    };
    urls.retain(|url| !peer_urls.contains(url));
    let ask = peer::IdentifyRequest {
        token: whereabouts.introduction.token.clone(),
        name: whereabouts.introduction.name.clone(),
        cluster_id: replica.identity().cluster_id(),
        member_id: me,
        peer_urls: peer_urls.clone(),
    };
    let mut answers: FuturesUnordered<_> = urls.iter().map(|url| identify(replica, url, &ask)).collect();
    while let Some(answer) = answers.next().await {
        let Some((url, reply)) = answer else { continue };
        if reply.removed {
            return true;
        }
        let known = records.iter().find(|record| record.id == reply.member_id);
        if known.is_some_and(|record| reply.member_id != me && !record.peer_urls.contains(url)) {
            replica.peers().moved(reply.member_id, std::slice::from_ref(url));
        }
    }
    false
}

async fn identify<'a>(
    replica: &Replica,
    url: &'a String,
    ask: &peer::IdentifyRequest,
) -> Option<(&'a String, peer::IdentifyReply)> {
    let mut client = replica.peers().client_at(url, Purpose::Control).ok()?;
    let reply = within(ANSWER, client.identify(ask.clone())).await.ok()?;
    (reply.cluster_id == ask.cluster_id).then_some((url, reply))
}
