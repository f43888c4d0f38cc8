//! Meeting: who answers at the addresses in `--initial-cluster`.

use std::collections::BTreeMap;

use anyhow::bail;

use super::{ANSWER, Meeting};
use crate::pb::pontoon::peer;
use crate::raft::network::{Purpose, within};
use crate::raft::replica::Replica;

/// Who answered: the URL, and what was said there.
pub(super) type Answer = (String, peer::IdentifyReply);

/// Who answered at the addresses in `--initial-cluster`.
#[derive(Default)]
pub(super) struct Met {
    /// By name.
    pub named: BTreeMap<String, Answer>,
    /// Members of a cluster where somebody else was expected: they moved since.
    pub moved: Vec<Answer>,
}

/// Asks everywhere. Fails if the flags can't be right, whoever else answers.
pub(super) async fn meet(replica: &Replica, meeting: &Meeting) -> anyhow::Result<Met> {
    let mut met = Met::default();
    for (name, urls) in &meeting.members {
        for url in urls {
            let Ok(reply) = identify(replica, meeting, url).await else {
                continue;
            };
            let is_expected = meeting.is_discovered || &reply.name == name;
            if !is_expected && reply.cluster_id != 0 {
                met.moved.push((url.clone(), reply));
                continue;
            }
            if !is_expected {
                bail!(
                    "--initial-cluster says that {name:?} is at {url}, but {:?} answers there: give all members the \
                     same --initial-cluster",
                    reply.name
                );
            }
            let earlier = met.named.insert(reply.name.clone(), (url.clone(), reply));
            if let Some((other, reply)) = earlier {
                bail!(
                    "{:?} is the --name of who answers at {other}, and at {url}: give each member a name of its own, \
                     and one record",
                    reply.name
                );
            }
            break;
        }
    }
    Ok(met)
}

async fn identify(
    replica: &Replica,
    meeting: &Meeting,
    url: &str,
) -> Result<peer::IdentifyReply, tonic::Status> {
    let request = peer::IdentifyRequest {
        token: meeting.introduction.token.clone(),
        name: meeting.introduction.name.clone(),
        ..Default::default()
    };
    let mut client = replica.peers().client_at(url, Purpose::Control)?;
    within(ANSWER, client.identify(request)).await
}
