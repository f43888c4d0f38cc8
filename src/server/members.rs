//! Who is in the cluster: changing it, tending it, and following where everybody is.
//!
//! **Changing.** A wish comes from a client of any member, goes to the leader by one hop, and is dealt with there by one
//! task, one after the other: so each is checked against the outcome of the one before. The checks are etcd's (with
//! `--strict-reconfig-check`): a change must leave a majority of members that have started and are heard of. Each
//! change is one entry of the log ([`crate::raft::membership`]), so a leader that dies leaves nothing half done.
//!
//! **Tending.** The same task, on the leader, gives a newcomer its vote when it has caught up, and settles a joint
//! membership that it finds. It needs no memory for that: what a member was added for stands in the membership, and
//! the next leader's task carries on. *Caught up* is judged in rounds (Raft thesis §4.2.1): the newcomer must receive
//! all that the leader had when the round began, within an election timeout.
//!
//! **A place and who takes it.** etcd's MemberAdd answers with an id before any process exists. The id is given once:
//! the process that starts on a blank disk at one of the place's peer URLs claims it, by a command in the log, under a
//! random number that it made with its data directory. From then on the id stands in its data directory. If that disk
//! is lost, the next process there has another number, and gets an id of its own that takes the old one's vote over
//! ([`Role::Replacing`]). So no id ever votes for two disks, and no vote is forgotten.
//!
//! **Following.** Where a member is stands in its record, and every member tells its connections when that changes. A
//! member that lost touch with its leader asks around, at every address that it knows or was started with: by asking
//! it also tells where it is now. That is how the members find each other when one moved, or all did, and how one
//! that was removed while it was away learns that.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout_at};

use super::data_dir::random_id;
use super::read::Barrier;
use crate::error::Error;
use crate::pb::pontoon::command::{ClaimMember, Command, Header, MemberRecord, UpdateMember, command::Op};
use crate::pb::pontoon::peer;
use crate::pb::pontoon::peer::change_members_reply::Result as Outcome;
use crate::pb::pontoon::peer::change_members_request::Change as Wanted;
use crate::raft::membership::{Change, Standing};
use crate::raft::network::{Purpose, within};
use crate::raft::peer::{Introduction, Wish};
use crate::raft::replica::{ProposeError, Replica};
use crate::raft::{Node, Role};

/// Wishes that wait for the leader's task; one more waits to be taken into the queue.
const WISHES: usize = 64;
/// How often the leader looks whether a newcomer has caught up.
const TEND: Duration = Duration::from_millis(100);
/// How often a member that lost touch asks around, and how long one answer may take.
const LOOK_AROUND: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_secs(2);
/// After a refusal, the leader is looked for again at a change or after this long.
const RETRY: Duration = Duration::from_millis(20);

/// What is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// `--strict-reconfig-check`.
    pub strict: bool,
    /// `--max-learners`.
    pub max_learners: usize,
    /// How long a change may take in all.
    pub timeout: Duration,
}

/// Changes the membership, through the leader. Cheap to clone.
#[derive(Clone)]
pub struct Members {
    replica: Replica,
    wishes: mpsc::Sender<Wish>,
    timeout: Duration,
}

impl Members {
    /// Starts the task that deals with wishes while this member leads; it ends with the last sender.
    pub fn start(replica: Replica, barrier: Barrier, rules: Rules, queue: mpsc::Receiver<Wish>) {
        let keeper = Keeper {
            replica,
            barrier,
            rules,
            rounds: BTreeMap::new(),
        };
        tokio::spawn(keeper.run(queue));
    }

    /// The queue of wishes: bounded, a sender waits while it is full.
    pub fn queue() -> (mpsc::Sender<Wish>, mpsc::Receiver<Wish>) {
        mpsc::channel(WISHES)
    }

    /// Changes go into `wishes` here, or to the leader.
    pub fn new(replica: Replica, wishes: mpsc::Sender<Wish>, timeout: Duration) -> Self {
        Members {
            replica,
            wishes,
            timeout,
        }
    }

    /// Makes a change; it is applied here when this returns. The id of the member that was added, if one was.
    pub async fn change(&self, wanted: Wanted) -> Result<u64, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match timeout_at(deadline, self.change_once(&wanted, deadline)).await {
                Err(_) => return Err(Error::Timeout),
                Ok(Outcome::Changed(changed)) => return self.applied(changed, deadline).await,
                Ok(Outcome::Error(text)) => return Err(Error::parse(&text).unwrap_or(Error::Timeout)),
                Ok(Outcome::Unknown(why)) => {
                    tracing::debug!(%why, "a membership change's outcome is unknown");
                    return Err(Error::TimeoutConnectionLost);
                }
                Ok(Outcome::NotProposed(_)) if Instant::now() + RETRY < deadline => {
                    // Whichever comes first; either way the leader is looked up anew.
                    let _ = tokio::time::timeout(RETRY, self.replica.changed()).await;
                }
                Ok(Outcome::NotProposed(_)) => return Err(Error::NoLeader),
            }
        }
    }

    /// Makes a voter lead. Only the leader does; it forwards nothing.
    pub async fn move_leader(&self, to: u64) -> Result<(), Error> {
        if !self.replica.leads() {
            return Err(Error::NotLeader);
        }
        let standing = self.replica.standing();
        if !standing.voters.contains(&to) {
            return Err(Error::BadLeaderTransferee);
        }
        if to == self.replica.identity().member_id() {
            return Ok(());
        }
        // A leader that hands over takes no more writes: don't begin with one that can't take over.
        let limit = self.replica.timing().stream_idle();
        let is_active = standing.heard.get(&to).is_some_and(|ago| *ago < limit);
        let leads = is_active && self.replica.transfer_leader(to, self.timeout).await;
        match leads && self.replica.leader().is_some_and(|(leader, _)| leader == to) {
            true => Ok(()),
            false => Err(Error::TimeoutLeaderTransfer),
        }
    }

    async fn change_once(&self, wanted: &Wanted, deadline: Instant) -> Outcome {
        if self.replica.leads() {
            let (answer, reply) = oneshot::channel();
            let gone = || Outcome::Unknown("this member is stopping".to_string());
            return match self.wishes.send(Wish::Change(wanted.clone(), answer)).await {
                Ok(()) => reply.await.ok().and_then(|r| r.result).unwrap_or_else(gone),
                Err(_) => Outcome::NotProposed("this member is stopping".to_string()),
            };
        }
        let Some((leader, node)) = self.replica.leader() else {
            return Outcome::NotProposed("no leader is known".to_string());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let reply = self.replica.forward_change(leader, &node, wanted.clone(), left);
        match reply.await {
            Ok(reply) => reply
                .result
                .unwrap_or_else(|| Outcome::Unknown("the leader's answer is empty".to_string())),
            Err(error) => failed(error),
        }
    }

    /// Waits until the change is seen here too: whoever made it may list the members next.
    async fn applied(&self, changed: peer::ChangedMembers, deadline: Instant) -> Result<u64, Error> {
        let mut applied = self.replica.applied();
        match timeout_at(deadline, applied.wait_for(|applied| *applied >= changed.index)).await {
            Ok(Ok(_)) => Ok(changed.member_id),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::TimeoutWaitAppliedIndex),
        }
    }
}

fn failed(error: ProposeError) -> Outcome {
    match error {
        ProposeError::NotProposed(why) => Outcome::NotProposed(why),
        ProposeError::Unknown(why) => Outcome::Unknown(why),
    }
}

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
struct Keeper {
    replica: Replica,
    barrier: Barrier,
    rules: Rules,
    /// For each newcomer, the round of catching up that it is in.
    rounds: BTreeMap<u64, Round>,
}

impl Keeper {
    async fn run(mut self, mut queue: mpsc::Receiver<Wish>) {
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
        let header = Header {
            id: rand::random(),
            system: true,
            ..Header::default()
        };
        let command = Command {
            header: Some(header),
            op: Some(op),
        };
        let proposed = self.replica.propose(command.encode_to_vec().into());
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
                self.check_dead(old, &roll).await?;
                replacement(old, &standing)
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

    /// Nobody is put out of the cluster by somebody who merely has its name.
    async fn check_dead(&self, old: u64, roll: &Roll) -> Result<(), String> {
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
                return Err(format!(
                    "another member named {:?} runs at {url}: choose another --name",
                    record.name
                ));
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
        let Some(change) = self.due(&standing) else { return };
        tracing::info!(?change, "changing the membership");
        let deadline = Instant::now() + self.rules.timeout;
        if let Err(error) = self.replica.change_membership(&change, deadline).await {
            // The next leader's task, or this one's next look, sees to it.
            tracing::debug!(?error, ?change, "not now");
        }
    }

    fn due(&mut self, standing: &Standing) -> Option<Change> {
        if standing.is_joint {
            return Some(Change::Settle);
        }
        let now = Instant::now();
        let limit = self.replica.timing().election;
        self.rounds.retain(|id, _| standing.nodes.contains_key(id));
        for (id, node) in &standing.nodes {
            if standing.voters.contains(id) || matches!(node.role, Role::Founder | Role::Learner) {
                continue;
            }
            let Some(matched) = standing.matched.get(id) else {
                continue;
            };
            let round = self.rounds.entry(*id).or_insert(Round {
                began: now,
                upto: standing.last_index,
            });
            if round.caught_up(*matched, standing.last_index, now, limit) {
                self.rounds.remove(id);
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

/// A member, as the checks see it.
struct Listed {
    record: MemberRecord,
    /// Whether it votes; one that was added as a voter does not yet.
    is_voter: bool,
    /// Whether it was heard of lately.
    is_active: bool,
}

impl Listed {
    fn is_started(&self) -> bool {
        !self.record.name.is_empty()
    }
}

/// All members, and the rules: the checks of etcd, as pure functions.
struct Roll {
    listed: Vec<Listed>,
    rules: Rules,
}

/// Where a process that asks for a place belongs.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// It lives in the cluster already.
    Has(u64),
    /// In a place that was made for it.
    Claims(u64),
    /// In the place of a member of its name, whose disk was lost.
    Replaces(u64),
    /// In a new place.
    New,
}

impl Roll {
    fn find(&self, id: u64) -> Option<&Listed> {
        self.listed.iter().find(|listed| listed.record.id == id)
    }

    fn record(&self, id: u64) -> Option<&MemberRecord> {
        self.find(id).map(|listed| &listed.record)
    }

    /// Those listed as voters, whether or not they have their vote yet: etcd counts so.
    fn voters(&self) -> impl Iterator<Item = &Listed> {
        self.listed.iter().filter(|listed| !listed.record.is_learner)
    }

    fn check_add(&self, peer_urls: &[String], is_learner: bool) -> Result<(), Error> {
        if self.rules.strict {
            let members = self.voters().count() + 1;
            let started = self.voters().filter(|listed| listed.is_started()).count();
            // A single member may always get a second one.
            let first = started == 1 && members == 2;
            if !is_learner && !first && started < members / 2 + 1 {
                return Err(Error::NotEnoughStarted);
            }
            if !self.voters().all(|listed| listed.is_active) {
                return Err(Error::Unhealthy);
            }
        }
        let used = |listed: &Listed| shares(&listed.record.peer_urls, peer_urls);
        if self.listed.iter().any(used) {
            return Err(Error::PeerUrlsExist);
        }
        let learners = self.listed.iter().filter(|listed| listed.record.is_learner);
        if is_learner && learners.count() >= self.rules.max_learners {
            return Err(Error::TooManyLearners);
        }
        Ok(())
    }

    fn check_remove(&self, id: u64) -> Result<(), Error> {
        let target = self.find(id).ok_or(Error::MemberNotFound)?;
        let votes = self.listed.iter().filter(|listed| listed.is_voter);
        if target.is_voter && votes.count() == 1 {
            // Nobody would be left, or nobody who may decide.
            return Err(Error::NotEnoughStarted);
        }
        if !self.rules.strict || target.record.is_learner {
            return Ok(());
        }
        let rest: Vec<&Listed> = self.voters().filter(|listed| listed.record.id != id).collect();
        let started = rest.iter().filter(|listed| listed.is_started()).count();
        if started < rest.len() / 2 + 1 {
            return Err(Error::NotEnoughStarted);
        }
        // One that is not heard of is no part of the majority that is there.
        let active = self.voters().filter(|listed| listed.is_active).count();
        if target.is_active && active - 1 < 1 + rest.len() / 2 {
            return Err(Error::Unhealthy);
        }
        Ok(())
    }

    fn check_promote(&self, id: u64, standing: &Standing) -> Result<(), Error> {
        let target = self.find(id).ok_or(Error::MemberNotFound)?;
        if !target.record.is_learner {
            return Err(Error::MemberNotLearner);
        }
        let matched = standing.matched.get(&id).copied().unwrap_or(0);
        // 90 % of the leader's log, as etcd has it.
        if matched * 10 < standing.last_index * 9 {
            return Err(Error::LearnerNotReady);
        }
        let members = self.voters().count() + 1;
        let started = self.voters().filter(|listed| listed.is_started()).count() + 1;
        if self.rules.strict && started < members / 2 + 1 {
            return Err(Error::NotEnoughStarted);
        }
        Ok(())
    }

    fn place(&self, request: &peer::JoinRequest) -> Result<Place, String> {
        let id = request.member_id;
        let lives = |listed: &&Listed| listed.record.id == id || listed.record.claimant == id;
        if let Some(listed) = self.listed.iter().find(lives) {
            return Ok(Place::Has(listed.record.id));
        }
        let at_its_urls = |listed: &&Listed| shares(&listed.record.peer_urls, &request.peer_urls);
        let at_urls = self.listed.iter().find(at_its_urls);
        if let Some(place) = at_urls.filter(|listed| listed.record.claimant == 0) {
            return match request.opened {
                false => Ok(Place::Claims(place.record.id)),
                true => Err(format!(
                    "a place was made at {}: start with --initial-cluster-state existing to take it",
                    request.peer_urls.join(",")
                )),
            };
        }
        // Whoever lived there never came so far as to tell its name.
        let nameless = at_urls.filter(|listed| listed.record.name.is_empty());
        let has_its_name = |listed: &&Listed| listed.record.name == request.name;
        // A voter rather than an earlier newcomer that was to take its place.
        let named = self.listed.iter().filter(has_its_name);
        if let Some(old) = named.max_by_key(|listed| listed.is_voter).or(nameless) {
            return Ok(Place::Replaces(old.record.id));
        }
        match request.add {
            true => Ok(Place::New),
            false => Err(format!(
                "the cluster has no member named {:?}, and no place at {}: `member add` one first, or use --join",
                request.name,
                request.peer_urls.join(",")
            )),
        }
    }
}

fn shares(some: &[String], others: &[String]) -> bool {
    some.iter().any(|url| others.contains(url))
}

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
    }
}

async fn follow_records(replica: &Replica) {
    let me = replica.identity().member_id();
    let mut changed = replica.members_changed();
    let mut seen: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    while !replica.reader().is_removed(me) {
        for record in replica.reader().members() {
            // Only what is new in the records is news: a member may have told since that it moved.
            if seen.get(&record.id) != Some(&record.peer_urls) {
                replica.peers().moved(record.id, &record.peer_urls);
                seen.insert(record.id, record.peer_urls);
            }
        }
        if changed.changed().await.is_err() {
            // The state machine is gone: this member stops.
            return std::future::pending().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A member: `voter`, `learner`, or `added` (listed as a voter, without a vote); `down`; `unstarted`.
    fn listed(id: u64, what: &str) -> Listed {
        let has = |word| what.split(' ').any(|w| w == word);
        Listed {
            record: MemberRecord {
                id,
                name: if has("unstarted") {
                    String::new()
                } else {
                    format!("n{id}")
                },
                peer_urls: vec![format!("http://p{id}")],
                is_learner: has("learner"),
                claimant: if has("unstarted") { 0 } else { id },
                ..MemberRecord::default()
            },
            is_voter: has("voter"),
            is_active: !has("down") && !has("unstarted"),
        }
    }

    fn roll(members: &[&str]) -> Roll {
        Roll {
            listed: (1..).zip(members).map(|(id, what)| listed(id, what)).collect(),
            rules: Rules {
                strict: true,
                max_learners: 1,
                timeout: Duration::ZERO,
            },
        }
    }

    fn urls(id: u64) -> Vec<String> {
        vec![format!("http://p{id}")]
    }

    #[test]
    fn a_member_is_added_where_the_majority_is_safe() {
        const ONE: &[&str] = &["voter"];
        const UNSTARTED: &[&str] = &["voter", "added unstarted"];
        const THREE: &[&str] = &["voter", "voter", "voter"];
        const DOWN: &[&str] = &["voter", "voter", "voter down"];
        const LEARNER: &[&str] = &["voter", "learner unstarted"];
        for (members, learner, url, result) in [
            (ONE, false, 9, Ok(())),
            (ONE, true, 9, Ok(())),
            (ONE, false, 1, Err(Error::PeerUrlsExist)),
            (UNSTARTED, false, 9, Err(Error::NotEnoughStarted)),
            (UNSTARTED, true, 9, Err(Error::Unhealthy)),
            (THREE, false, 9, Ok(())),
            (DOWN, false, 9, Err(Error::Unhealthy)),
            (LEARNER, false, 9, Ok(())),
            (LEARNER, true, 9, Err(Error::TooManyLearners)),
            (LEARNER, true, 2, Err(Error::PeerUrlsExist)),
        ] {
            let checked = roll(members).check_add(&urls(url), learner);
            assert_eq!(checked, result, "{members:?}, learner {learner}, at p{url}");
        }
        let mut lax = roll(DOWN);
        lax.rules.strict = false;
        assert_eq!(lax.check_add(&urls(9), false), Ok(()));
    }

    #[test]
    fn a_member_is_removed_where_the_majority_is_safe() {
        const ONE: &[&str] = &["voter"];
        const TWO: &[&str] = &["voter", "voter"];
        const ONE_AND_LEARNER: &[&str] = &["voter", "learner"];
        const UNSTARTED: &[&str] = &["voter", "added unstarted"];
        const THREE: &[&str] = &["voter", "voter", "voter"];
        const DOWN: &[&str] = &["voter", "voter", "voter down"];
        for (members, id, result) in [
            (ONE, 1, Err(Error::NotEnoughStarted)),
            (ONE, 9, Err(Error::MemberNotFound)),
            (TWO, 2, Ok(())),
            (ONE_AND_LEARNER, 1, Err(Error::NotEnoughStarted)),
            (ONE_AND_LEARNER, 2, Ok(())),
            (UNSTARTED, 1, Err(Error::NotEnoughStarted)),
            (UNSTARTED, 2, Ok(())),
            (THREE, 1, Ok(())),
            (DOWN, 1, Err(Error::Unhealthy)),
            (DOWN, 3, Ok(())),
        ] {
            assert_eq!(roll(members).check_remove(id), result, "{id} of {members:?}");
        }
        let mut lax = roll(DOWN);
        lax.rules.strict = false;
        assert_eq!(lax.check_remove(1), Ok(()));
        let mut last = roll(ONE);
        last.rules.strict = false;
        assert_eq!(
            last.check_remove(1),
            Err(Error::NotEnoughStarted),
            "somebody must stay"
        );
    }

    #[test]
    fn a_learner_is_promoted_when_it_is_near() {
        let standing = Standing {
            last_index: 1000,
            matched: BTreeMap::from([(1, 1000), (2, 900), (3, 899)]),
            ..Standing::default()
        };
        let roll = roll(&["voter", "learner", "learner", "learner unstarted"]);
        assert_eq!(roll.check_promote(1, &standing), Err(Error::MemberNotLearner));
        assert_eq!(roll.check_promote(2, &standing), Ok(()));
        assert_eq!(roll.check_promote(3, &standing), Err(Error::LearnerNotReady));
        assert_eq!(roll.check_promote(4, &standing), Err(Error::LearnerNotReady));
        assert_eq!(roll.check_promote(9, &standing), Err(Error::MemberNotFound));
    }

    #[test]
    fn a_process_finds_its_place() {
        let ask = |member_id, name: &str, url| peer::JoinRequest {
            member_id,
            name: name.to_string(),
            peer_urls: urls(url),
            ..Default::default()
        };
        let mut roll = roll(&["voter", "voter", "added unstarted", "added unstarted"]);
        roll.listed[3].record.claimant = 77;
        assert_eq!(roll.place(&ask(2, "n2", 2)), Ok(Place::Has(2)));
        assert_eq!(
            roll.place(&ask(77, "n4", 4)),
            Ok(Place::Has(4)),
            "it claimed that place before"
        );
        assert_eq!(roll.place(&ask(50, "n3", 3)), Ok(Place::Claims(3)));
        assert_eq!(roll.place(&ask(50, "n2", 9)), Ok(Place::Replaces(2)));
        assert_eq!(
            roll.place(&ask(50, "n4", 4)),
            Ok(Place::Replaces(4)),
            "whoever claimed it lost its disk"
        );
        let opened = peer::JoinRequest {
            opened: true,
            ..ask(50, "n3", 3)
        };
        assert!(roll.place(&opened).is_err_and(|why| why.contains("existing")));
        assert!(roll.place(&ask(50, "new", 9)).is_err());
        let add = peer::JoinRequest {
            add: true,
            ..ask(50, "new", 9)
        };
        assert_eq!(roll.place(&add), Ok(Place::New));
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
