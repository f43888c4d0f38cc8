//! Connections to the other members: one for each peer and purpose.
//!
//! They are made lazily and kept; a name is resolved anew on each connect, so a peer that comes back at another address
//! is found. One that comes back at another URL is found by the newest word of it ([`Peers::moved`]): every call looks
//! it up anew. If a peer has several URLs, one that can't be reached is left for the next.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::HeaderValue;
use openraft::raft::{VoteRequest, VoteResponse};
use tokio::time::timeout;
use tonic::Status;

use crate::metrics::Metrics;
use crate::pb::pontoon::peer;
use crate::pb::pontoon::peer::peer_client::PeerClient;
use crate::raft::ballots::Ballots;
use crate::raft::channel::Channel;
use crate::raft::contact::Contacts;
use crate::raft::identity::Identity;
use crate::raft::links::Links;
use crate::raft::traffic::{self, Other, Outgoing};
use crate::raft::{Node, Timing, Types};
use crate::tls::ClientTls;

/// The largest message between members: a slice of the log (1 MiB) or one entry of the largest request, and room.
pub const MAX_MESSAGE: usize = 64 << 20;

/// What a connection is used for: each purpose has its own, so that none waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Log entries.
    Replication,
    /// Heartbeats, votes, leadership transfer, read confirmations.
    Control,
    /// Snapshot files.
    Snapshot,
    /// Clients' requests, handed to the leader.
    Forward,
}

/// Connections to the other members, made on first use.
pub struct Peers {
    identity: Arc<Identity>,
    /// What this member calls itself in requests.
    name: HeaderValue,
    pub(super) metrics: Arc<Metrics>,
    pub(super) contacts: Contacts,
    links: Links,
    pub(super) ballots: Ballots,
    pub(super) timing: Timing,
    tls: Option<Arc<ClientTls>>,
    /// URLs that are dialled elsewhere.
    detours: BTreeMap<String, String>,
    channels: Mutex<BTreeMap<(String, Purpose), Channel>>,
    /// Where members are by the newest word of them, which wins over where they were added.
    addresses: RwLock<BTreeMap<u64, Address>>,
}

/// Where one member is reached: one of its URLs is in use.
struct Address {
    urls: Vec<String>,
    in_use: usize,
}

impl Peers {
    /// No connections yet. `tls`: for peers at `https://`.
    pub fn new(
        identity: Arc<Identity>,
        timing: Timing,
        tls: Option<Arc<ClientTls>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Peers {
            name: traffic::name(identity.member_id()),
            identity,
            metrics,
            contacts: Contacts::default(),
            links: Links::default(),
            ballots: Ballots::default(),
            timing,
            tls,
            detours: BTreeMap::new(),
            channels: Mutex::default(),
            addresses: RwLock::default(),
        }
    }

    /// These URLs are dialled elsewhere.
    pub fn with_detours(mut self, detours: BTreeMap<String, String>) -> Self {
        self.detours = detours;
        self
    }

    /// These are the other members now: what is counted and known of any others is forgotten.
    pub fn keep(&self, ids: &BTreeSet<u64>) {
        self.metrics.traffic.keep(ids);
        self.contacts.keep(ids);
        self.links.keep(ids);
    }

    /// A question to the member `id` was answered, or was not.
    pub fn asked(&self, id: u64, answer: Result<(), &Status>) {
        let patience = self.timing.election / 2;
        self.links.asked(&self.metrics.journal, id, patience, answer);
    }

    /// Whether the member `id` answers, if that is known.
    pub fn is_up(&self, id: u64) -> Option<bool> {
        self.links.is_up(id)
    }

    /// The member that asks for a vote was answered.
    pub fn voted(&self, request: &VoteRequest<Types>, pre_vote: bool, response: &VoteResponse<Types>) {
        self.ballots
            .asked(&self.metrics.journal, request, pre_vote, response);
    }

    /// The newest word of where a member is.
    pub fn moved(&self, member_id: u64, urls: &[String]) {
        let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        let known = addresses.get(&member_id);
        if urls.is_empty() || known.is_some_and(|address| address.urls == urls) {
            return;
        }
        let address = Address {
            urls: urls.to_vec(),
            in_use: 0,
        };
        if addresses.insert(member_id, address).is_some() {
            tracing::info!(
                member = format!("{member_id:x}"),
                urls = urls.join(","),
                "a member moved"
            );
        }
        // Connections to where nobody is any more go.
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|(url, _), _| addresses.values().any(|address| address.urls.contains(url)));
    }

    /// Where the member `id` is reached, which Raft's membership places at `node`.
    pub fn url(&self, id: u64, node: &Node) -> String {
        let addresses = self.addresses.read().unwrap_or_else(PoisonError::into_inner);
        let in_use = addresses.get(&id).and_then(|at| at.urls.get(at.in_use));
        in_use.or(node.peer_urls.first()).cloned().unwrap_or_default()
    }

    /// A client for the member `id`, which Raft's membership places at `node`.
    pub fn client(&self, id: u64, node: &Node, purpose: Purpose) -> Result<PeerClient<Outgoing>, Status> {
        self.client_over(
            &self.url(id, node),
            purpose,
            Some(Other::new(id, self.metrics.clone())),
        )
    }

    /// A member can't be reached where it is looked for: the next call looks at its next URL.
    pub(super) fn unreachable(&self, id: u64) {
        let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = addresses.get_mut(&id) {
            address.in_use = (address.in_use + 1) % address.urls.len();
        }
    }

    /// A client for whoever is at `url`.
    pub fn client_at(&self, url: &str, purpose: Purpose) -> Result<PeerClient<Outgoing>, Status> {
        self.client_over(url, purpose, None)
    }

    fn client_over(
        &self,
        url: &str,
        purpose: Purpose,
        to: Option<Other>,
    ) -> Result<PeerClient<Outgoing>, Status> {
        let channel = self.channel_at(url, purpose)?;
        let origin = channel.origin();
        let service = Outgoing::new(channel, self.name.clone(), to);
        Ok(PeerClient::with_origin(service, origin)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    /// A channel to whoever is at `url`.
    pub fn channel_at(&self, url: &str, purpose: Purpose) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (url.to_string(), purpose);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let dialled = self.detours.get(url).map_or(url, String::as_str);
        let channel = Channel::new(dialled, self.tls.clone())
            .map_err(|error| Status::unavailable(format!("peer URL {url}: {error}")))?;
        channels.insert(key, channel.clone());
        Ok(channel)
    }

    /// How a request for `id` is addressed.
    pub fn target(&self, id: u64) -> peer::Target {
        self.identity.target(id)
    }
}

/// The reply, unless it takes longer than `limit`.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(limit, call).await {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(Status::unavailable("no answer in time")),
    }
}

/// Whether no connection could be made, so that the request certainly was not sent.
pub fn is_connect_error(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_word_tells_where_a_member_is() {
        let identity = Identity::new(1, 1, Box::new(|_| Ok(())));
        let second = Duration::from_secs(1);
        let timing = Timing {
            heartbeat: second / 10,
            election: second,
        };
        let peers = Peers::new(Arc::new(identity), timing, None, Arc::default());
        let node = Node {
            peer_urls: vec!["http://added:1".to_string()],
            ..Node::default()
        };
        assert_eq!(peers.url(2, &node), "http://added:1");
        let two = ["http://a:1".to_string(), "http://b:1".to_string()];
        peers.moved(2, &two);
        for expected in ["http://a:1", "http://b:1", "http://a:1"] {
            assert_eq!(peers.url(2, &node), expected);
            peers.unreachable(2);
        }
        // Said again it is no news: the one in use stays in use.
        peers.moved(2, &two);
        assert_eq!(peers.url(2, &node), "http://b:1");
        assert!(peers.client_at("http://b:1", Purpose::Control).is_ok());
        assert_eq!(peers.channels.lock().expect("not poisoned").len(), 1);
        peers.moved(2, &["http://c:1".to_string()]);
        assert_eq!(peers.url(2, &node), "http://c:1");
        assert!(
            peers.channels.lock().expect("not poisoned").is_empty(),
            "nobody is there any more"
        );
        peers.moved(2, &[]);
        assert_eq!(peers.url(2, &node), "http://c:1");
    }
}
