//! A small question to each of the others, now and then: how long is the way there and back, and does it answer at all?
//!
//! Nothing is decided by it; it is for those who look after the cluster. It asks for no more than a name, so that
//! neither a busy disk nor a busy Raft makes the way look longer than it is.

use std::time::{Duration, Instant};

use tonic::Status;

use super::ANSWER;
use crate::pb::pontoon::peer;
use crate::raft::Node;
use crate::raft::network::{Purpose, within};
use crate::raft::peer::Introduction;
use crate::raft::replica::Replica;

/// How often each of the others is asked.
const EVERY: Duration = Duration::from_secs(1);

/// Asks for as long as the member runs.
pub async fn ask_now_and_then(replica: &Replica, introduction: &Introduction) {
    let me = replica.identity().member_id();
    loop {
        let nodes = replica.standing().nodes;
        let others = nodes.iter().filter(|(id, _)| **id != me);
        let asked = others.map(|(id, node)| ask(replica, introduction, *id, node));
        futures::future::join_all(asked).await;
        tokio::time::sleep(EVERY).await;
    }
}

async fn ask(replica: &Replica, introduction: &Introduction, id: u64, node: &Node) {
    let Some(exchange) = replica.metrics().traffic.with(id) else {
        return;
    };
    let began = Instant::now();
    let named = identify(replica, introduction, id, node).await;
    // Where it was somebody else may be now.
    let named = named.and_then(|named| match named == id {
        true => Ok(()),
        false => Err(Status::not_found(format!("member {named:x} is at its address"))),
    });
    exchange.asked(named.is_ok().then(|| began.elapsed()));
    replica.peers().asked(id, named.as_ref().copied());
}

/// Who answers where `id` is looked for.
async fn identify(
    replica: &Replica,
    introduction: &Introduction,
    id: u64,
    node: &Node,
) -> Result<u64, Status> {
    let question = peer::IdentifyRequest {
        token: introduction.token.clone(),
        name: introduction.name.clone(),
        cluster_id: replica.identity().cluster_id(),
        ..peer::IdentifyRequest::default()
    };
    let mut client = replica.peers().client(id, node, Purpose::Control)?;
    Ok(within(ANSWER, client.identify(question)).await?.member_id)
}
