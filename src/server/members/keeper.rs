//! The one task that changes the membership, on the leader: wishes one after the other, and in between what is due.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, timeout_at};

use super::roll::{Listed, Place, Roll, namesake};
use super::{ANSWER, RETRY, Rules, failed};
use crate::error::Error;
use crate::pb::pontoon::command::{ClaimMember, UpdateMember, command::Op};
use crate::pb::pontoon::peer;
use crate::pb::pontoon::peer::change_members_reply::Result as Outcome;
use crate::pb::pontoon::peer::change_members_request::Change as Wanted;
use crate::raft::membership::{Change, Standing};
use crate::raft::network::{Purpose, within};
use crate::raft::peer::Wish;
use crate::raft::replica::{ProposeError, Replica};
use crate::raft::{Node, Role};
use crate::server::data_dir::random_id;
use crate::server::propose::own_command;
use crate::server::read::Barrier;

/// How often the leader looks whether a newcomer has caught up.
const TEND: Duration = Duration::from_millis(100);

/// Why a wish is not fulfilled.
enum Refusal {
    /// It must not be.
    Error(Error),
    /// It could not be, here and now.
    Failed(ProposeError),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Error(error)
    }
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        Refusal::Failed(error)
    }
}

impl Refusal {
    fn into_outcome(self) -> Outcome {
        match self {
            Refusal::Error(error) => Outcome::Error(error.text().to_string()),
            Refusal::Failed(error) => failed(error),
        }
    }

    fn into_text(self) -> String {
        match self {
            Refusal::Error(error) => error.text().to_string(),
            Refusal::Failed(ProposeError::NotProposed(why) | ProposeError::Unknown(why)) => why,
        }
    }
}

/// The one task that changes the membership, on the leader.
pub(super) struct Keeper {
    replica: Replica,
    barrier: Barrier,
    rules: Rules,
    rounds: Rounds,
}

impl Keeper {
    pub(super) fn new(replica: Replica, barrier: Barrier, rules: Rules) -> Self {
        Keeper {
            replica,
            barrier,
            rules,
            rounds: Rounds::default(),
        }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Wish>) {
        let mut tick = tokio::time::interval(TEND);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                wish = queue.recv() => match wish {
                    Some(wish) => self.deal_with(wish).await,
                    None => return,
                },
                _ = tick.tick() => self.tend().await,
            }
        }
    }

    async fn deal_with(&self, wish: Wish) {
        let deadline = Instant::now() + self.rules.timeout;
        match wish {
            // Whoever gave up must not be surprised by a late change.
            Wish::Change(_, answer) if answer.is_closed() => {}
            Wish::Join(_, answer) if answer.is_closed() => {}
            Wish::Change(wanted, answer) => {
                let outcome = match self.change(wanted, deadline).await {
                    Ok(changed) => Outcome::Changed(changed),
                    Err(refusal) => refusal.into_outcome(),
                };
                // The one who asked may be gone: the change is made or not, all the same.
                let _ = answer.send(peer::ChangeMembersReply {
                    result: Some(outcome),
                });
            }
            Wish::Join(request, answer) => {
                let reply = match self.join(request, deadline).await {
                    Ok(member_id) => peer::JoinReply {
                        cluster_id: self.replica.identity().cluster_id(),
                        member_id,
                        ..Default::default()
                    },
                    Err(refused) => peer::JoinReply {
                        refused,
                        leader_url: self.leader_url(),
                        ..Default::default()
                    },
                };
                let _ = answer.send(reply);
            }
        }
    }

    fn leader_url(&self) -> String {
        let leader = self.replica.leader();
        leader
            .map(|(id, node)| self.replica.peers().url(id, &node))
            .unwrap_or_default()
    }

    /// Sees to it that what is looked at next is the newest.
    async fn lead(&self) -> Result<(), Refusal> {
        let not_leading = || ProposeError::NotProposed("this member does not lead".to_string());
        if !self.replica.leads() {
            return Err(not_leading().into());
        }
        self.barrier.pass().await.map_err(|_| not_leading())?;
        Ok(())
    }

    async fn change(&self, wanted: Wanted, deadline: Instant) -> Result<peer::ChangedMembers, Refusal> {
        self.lead().await?;
        let (change, member_id) = match wanted {
            Wanted::Add(add) => {
                self.check_add(&add.peer_urls, add.is_learner).await?;
                let id = random_id();
                let node = Node {
                    name: String::new(),
                    peer_urls: add.peer_urls,
                    role: if add.is_learner {
                        Role::Learner
                    } else {
                        Role::Added
                    },
                };
                let instead_of = None;
                (Change::Add { id, node, instead_of }, id)
            }
            Wanted::Remove(remove) => {
                self.healthy(|roll| roll.check_remove(remove.id)).await?;
                (Change::Remove(remove.id), 0)
            }
            Wanted::Promote(promote) => {
                let standing = self.replica.standing();
                self.roll(&standing).check_promote(promote.id, &standing)?;
                (Change::Promote(promote.id), 0)
            }
            Wanted::Update(update) => return self.update(update, deadline).await,
        };
        tracing::info!(?change, "changing the membership");
        let index = self.replica.change_membership(&change, deadline).await?;
        Ok(peer::ChangedMembers { index, member_id })
    }

    async fn update(
        &self,
        update: peer::UpdateMember,
        deadline: Instant,
    ) -> Result<peer::ChangedMembers, Refusal> {
        let op = Op::UpdateMember(UpdateMember {
            id: update.id,
            peer_urls: update.peer_urls,
        });
        self.propose(op, deadline).await?;
        let index = *self.replica.applied().borrow();
        Ok(peer::ChangedMembers { index, member_id: 0 })
    }

    async fn propose(&self, op: Op, deadline: Instant) -> Result<(), Refusal> {
        let proposed = self.replica.propose(own_command(op));
        let late = |_| ProposeError::Unknown("not committed in time".to_string());
        timeout_at(deadline, proposed).await.map_err(late)??.0?;
        Ok(())
    }

    async fn check_add(&self, peer_urls: &[String], is_learner: bool) -> Result<(), Refusal> {
        self.healthy(|roll| roll.check_add(peer_urls, is_learner)).await
    }

    /// A leader of a moment ago has heard of nobody yet: *unhealthy* must be so for a while.
    async fn healthy(&self, check: impl Fn(&Roll) -> Result<(), Error>) -> Result<(), Refusal> {
        let until = Instant::now() + self.replica.timing().election;
        loop {
            match check(&self.roll(&self.replica.standing())) {
                Err(Error::Unhealthy) if Instant::now() < until => tokio::time::sleep(RETRY).await,
                checked => return Ok(checked?),
            }
        }
    }

    fn roll(&self, standing: &Standing) -> Roll {
        let me = self.replica.identity().member_id();
        // A paused or cut-off member is noticed within this time.
        let limit = self.replica.timing().stream_idle();
        let listed = self.replica.reader().members().into_iter().map(|record| Listed {
            is_voter: standing.voters.contains(&record.id),
            is_active: record.id == me || standing.heard.get(&record.id).is_some_and(|ago| *ago < limit),
            record,
        });
        Roll {
            listed: listed.collect(),
            rules: self.rules,
        }
    }

    /// A process asks for a place; the id that it lives under from now on.
    async fn join(&self, request: peer::JoinRequest, deadline: Instant) -> Result<u64, String> {
        self.lead().await.map_err(Refusal::into_text)?;
        let standing = self.replica.standing();
        let roll = self.roll(&standing);
        let id = request.member_id;
        let place = match roll.place(&request)? {
            Place::Has(id) => return Ok(id),
            Place::Claims(place) => {
                let claim = ClaimMember {
                    id: place,
                    claimant: id,
                };
                let claimed = self.propose(Op::ClaimMember(claim), deadline).await;
                return claimed.map(|()| place).map_err(Refusal::into_text);
            }
            other => other,
        };
        let (role, instead_of) = match place {
            Place::Replaces(old) => {
                let (role, instead_of) = replacement(old, &standing);
                for gone in BTreeSet::from_iter([Some(old), instead_of].into_iter().flatten()) {
                    self.check_dead(gone, &roll).await?;
                }
                (role, instead_of)
            }
            _ => {
                let checked = self.check_add(&request.peer_urls, true).await;
                checked.map_err(Refusal::into_text)?;
                (Role::Joining, None)
            }
        };
        let node = Node {
            name: request.name,
            peer_urls: request.peer_urls,
            role,
        };
        tracing::info!(member = %node, id = format!("{id:x}"), "adding a member that starts with a blank disk");
        let change = Change::Add { id, node, instead_of };
        let added = self.replica.change_membership(&change, deadline).await;
        added
            .map(|_| id)
            .map_err(|error| Refusal::from(error).into_text())
    }

    /// Nobody is put out of the cluster by somebody who merely has its name: neither who is heard of, nor who answers
    /// where it is to be found.
    async fn check_dead(&self, old: u64, roll: &Roll) -> Result<(), String> {
        roll.check_silent(old)?;
        let Some(record) = roll.record(old) else {
            return Ok(());
        };
        for url in &record.peer_urls {
            let ask = peer::IdentifyRequest {
                cluster_id: self.replica.identity().cluster_id(),
                ..Default::default()
            };
            let Ok(mut client) = self.replica.peers().client_at(url, Purpose::Control) else {
                continue;
            };
            let answer = within(ANSWER, client.identify(ask)).await;
            if answer.is_ok_and(|reply| reply.member_id == old) {
                return Err(namesake(record));
            }
        }
        Ok(())
    }

    /// On the leader: gives newcomers their vote, settles what is joint.
    async fn tend(&mut self) {
        if !self.replica.leads() {
            self.rounds.clear();
            return;
        }
        let standing = self.replica.standing();
        if !standing.is_settled {
            return;
        }
        let limit = self.replica.timing().election;
        let Some(change) = self.rounds.due(&standing, Instant::now(), limit) else {
            return;
        };
        tracing::info!(?change, "changing the membership");
        let deadline = Instant::now() + self.rules.timeout;
        if let Err(error) = self.replica.change_membership(&change, deadline).await {
            // The next leader's task, or this one's next look, sees to it.
            tracing::debug!(?error, ?change, "not now");
        }
    }
}

/// How a newcomer comes in for `old`: a voter keeps its vote until the newcomer has caught up; one without a vote, or
/// an earlier newcomer for the same vote whose disk was lost again, goes at once.
fn replacement(old: u64, standing: &Standing) -> (Role, Option<u64>) {
    if !standing.voters.contains(&old) {
        let role = standing.nodes.get(&old).map_or(Role::Learner, |node| node.role);
        return (role, Some(old));
    }
    let earlier = standing
        .nodes
        .iter()
        .find(|(id, node)| node.role == Role::Replacing(old) && !standing.voters.contains(id));
    (Role::Replacing(old), earlier.map(|(id, _)| *id))
}

/// For each newcomer, the round of catching up that it is in.
#[derive(Default)]
struct Rounds(BTreeMap<u64, Round>);

impl Rounds {
    fn clear(&mut self) {
        self.0.clear();
    }

    /// What is to be changed now: a joint membership is settled, or a newcomer gets its vote. It has to be heard of:
    /// what it has stays known when it is gone, and its vote would be missed.
    fn due(&mut self, standing: &Standing, now: Instant, limit: Duration) -> Option<Change> {
        if standing.is_joint {
            return Some(Change::Settle);
        }
        self.0.retain(|id, _| standing.nodes.contains_key(id));
        for (id, node) in &standing.nodes {
            if standing.voters.contains(id) || matches!(node.role, Role::Founder | Role::Learner) {
                continue;
            }
            let heard = standing.heard.get(id).filter(|ago| **ago < limit);
            let (Some(matched), Some(_)) = (standing.matched.get(id), heard) else {
                continue;
            };
            let round = self.0.entry(*id).or_insert(Round {
                began: now,
                upto: standing.last_index,
            });
            if round.caught_up(*matched, standing.last_index, now, limit) {
                self.0.remove(id);
                return Some(match node.role {
                    Role::Replacing(old) if standing.voters.contains(&old) => {
                        Change::Replace { old, new: *id }
                    }
                    _ => Change::Promote(*id),
                });
            }
        }
        None
    }
}

/// One round of catching up.
struct Round {
    began: Instant,
    upto: u64,
}

impl Round {
    /// Whether the round has ended in time; a new one begins if it ended late.
    fn caught_up(&mut self, matched: u64, last: u64, now: Instant, limit: Duration) -> bool {
        if matched < self.upto {
            return false;
        }
        if now.saturating_duration_since(self.began) <= limit {
            return true;
        }
        *self = Round {
            began: now,
            upto: last,
        };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_that_is_gone_gets_no_vote() {
        let second = Duration::from_secs(1);
        let newcomer = Node {
            role: Role::Joining,
            ..Node::default()
        };
        let mut standing = Standing {
            nodes: BTreeMap::from([(1, Node::default()), (2, newcomer)]),
            voters: BTreeSet::from([1]),
            is_settled: true,
            last_index: 100,
            matched: BTreeMap::from([(2, 100)]),
            ..Standing::default()
        };
        let mut rounds = Rounds::default();
        let mut after = |ago: Option<Duration>| {
            standing.heard = ago.map(|ago| (2, ago)).into_iter().collect();
            rounds.due(&standing, Instant::now(), second)
        };
        assert_eq!(after(None), None);
        assert_eq!(after(Some(5 * second)), None);
        assert_eq!(after(Some(second / 10)), Some(Change::Promote(2)));
    }

    #[test]
    fn a_newcomer_has_caught_up_when_a_round_took_less_than_an_election() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut round = Round {
            began: start,
            upto: 100,
        };
        assert!(!round.caught_up(99, 150, start + second / 2, second));
        assert!(
            !round.caught_up(100, 300, start + 5 * second, second),
            "too slow: a new round begins"
        );
        assert!(!round.caught_up(299, 310, start + 5 * second, second));
        assert!(round.caught_up(300, 310, start + 5 * second + second / 2, second));
    }
}
