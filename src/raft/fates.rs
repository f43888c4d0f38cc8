//! What became of commands that this member handed to a leader: told by what it applies itself.
//!
//! A follower applies every committed entry, and each command names itself by a random id. So the commands that were
//! handed over stand in a table, each under the leader it was handed to (a [`LeaderId`]: a term, and who leads in it),
//! until it is known what became of them:
//!
//! ```text
//!   the command's id in an entry that is applied ──► it is made
//!   the leader refuses it ─────────────────────────► it is not made, and may be made again
//!   an entry of a later leader that is applied ────► it is certainly not made, and may be made again
//! ```
//!
//! So a leader that is paused, cut off or killed is not waited for. And whoever wrote through a member finds it there, be
//! it by a serializable read, as with etcd: the leader's word that a command is made is kept, and told only if a snapshot
//! hides its entry.
//!
//! **Why the third is certain.** The leader appends such a command as the leader that it is named under, or not at all:
//! openraft compares the two as it appends, in the one task that also gives leadership up ([`Proposals::propose`]). So the
//! command only ever stands in an entry of leader L, and in one: L gets it again only if L refused it. In a log, leaders
//! never go back: if an entry of a later leader is committed, whatever of L's is ever committed stands before it. Who has
//! applied that entry has applied all that stands before it, so a command that did not come by will not come. This
//! holds for L's entries that its successor still commits (they stand before the successor's first), and for
//! requests that lie in L's socket until it wakes, even if it leads again by then: that is another term.
//!
//! **What it rests on.** A command is entered before it is sent, so its entry is applied after that. A snapshot that is
//! installed hides entries: commands that waited then learn nothing by their absence. A leader of an earlier build
//! does not compare; the rolling upgrade away from it is the one time when it matters.
//!
//! [`Proposals::propose`]: super::proposals::Proposals::propose

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Reply;
use super::entry::LeaderId;
use super::replica::ProposeError;

/// What a command came to.
pub type Fate = Result<Reply, ProposeError>;
/// Where that is told; dropped by who does not want to know any more.
pub type Teller = oneshot::Sender<Fate>;

/// The commands that are handed over and not answered yet. As many as there are requests under way that wait for
/// them: who stops waiting takes its command away ([`Fates::forget`]).
#[derive(Default)]
pub struct Fates {
    table: Mutex<Table>,
    /// How many are in the table: apply looks at it at every command.
    awaited: AtomicUsize,
}

#[derive(Default)]
struct Table {
    /// By the command's id.
    handed: HashMap<u64, Handed, foldhash::fast::RandomState>,
    /// Who led when the last entry that is applied here was appended.
    applied: Option<LeaderId>,
}

struct Handed {
    to: LeaderId,
    /// Entries were skipped since: that it did not come by means nothing.
    blind: bool,
    /// What it came to, by the leader's word.
    made: Option<Reply>,
    teller: Teller,
}

impl Fates {
    /// Enters a command that is about to be handed to a leader; whether it is to be. Not if nobody waits for it any
    /// more, nor if the leader is known to be a former one: then it is told so.
    pub fn enter(&self, id: u64, to: LeaderId, teller: Teller) -> bool {
        let mut table = self.lock();
        // Asked under the lock: who goes after this finds its command in the table, and takes it away.
        if teller.is_closed() {
            return false;
        }
        if table.applied.is_some_and(|applied| applied > to) {
            drop(table);
            let _ = teller.send(Err(not_made()));
            return false;
        }
        let handed = Handed {
            to,
            blind: false,
            made: None,
            teller,
        };
        table.handed.insert(id, handed);
        self.count(&table);
        true
    }

    /// The leader's answers. One that knows nothing leaves the command where it is: apply may tell yet.
    pub fn answered(&self, by: LeaderId, answers: impl IntoIterator<Item = (u64, Fate)>) {
        let mut table = self.lock();
        let told: Vec<_> = answers
            .into_iter()
            .filter_map(|(id, fate)| table.answered(id, by, fate))
            .collect();
        self.count(&table);
        drop(table);
        tell(told);
    }

    /// Nobody waits for this command any more.
    pub fn forget(&self, id: u64) {
        let mut table = self.lock();
        table.take(id, |_| true);
        self.count(&table);
    }

    /// Whether any command is waited for: if not, apply need not say what it applied.
    pub fn are_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire) > 0
    }

    /// These commands, and nothing else that is waited for, were applied up to an entry of this leader.
    pub fn applied(&self, upto: LeaderId, commands: impl IntoIterator<Item = (u64, Reply)>) {
        let mut table = self.lock();
        let mut told: Vec<(Teller, Fate)> = commands
            .into_iter()
            .filter_map(|(id, reply)| table.take(id, |_| true).zip(Some(Ok(reply))))
            .collect();
        if table.applied.replace(upto) != Some(upto) {
            let lost = table
                .handed
                .extract_if(|_, handed| handed.to < upto && !handed.blind && handed.made.is_none());
            told.extend(lost.map(|(_, handed)| (handed.teller, Err(not_made()))));
        }
        self.count(&table);
        drop(table);
        tell(told);
    }

    /// A snapshot took the place of entries up to one of this leader: what was in them is not known here, but by the word
    /// of who appended them.
    pub fn skipped(&self, upto: Option<LeaderId>) {
        let mut table = self.lock();
        table.applied = upto;
        for handed in table.handed.values_mut() {
            handed.blind = true;
        }
        let told = table.take_made();
        self.count(&table);
        drop(table);
        tell(told);
    }

    /// Nothing is applied any more: who waits is told what the leader said, or that nothing is known.
    pub fn end(&self) {
        let mut table = self.lock();
        let told = table.take_made();
        table.handed.clear();
        self.count(&table);
        drop(table);
        tell(told);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, table: &Table) {
        self.awaited.store(table.handed.len(), Ordering::Release);
    }
}

impl Table {
    fn take(&mut self, id: u64, is_it: impl FnOnce(&Handed) -> bool) -> Option<Teller> {
        match self.handed.get(&id).is_some_and(is_it) {
            true => self.handed.remove(&id).map(|handed| handed.teller),
            false => None,
        }
    }

    /// Takes a leader's answer; whom to tell what, if it is to be told now.
    fn answered(&mut self, id: u64, by: LeaderId, fate: Fate) -> Option<(Teller, Fate)> {
        // By its id alone it could be a later attempt with the same command.
        let handed = self.handed.get_mut(&id).filter(|handed| handed.to == by)?;
        match fate {
            Ok(reply) if !handed.blind => {
                handed.made = Some(reply);
                None
            }
            Err(ProposeError::Unknown(_)) => None,
            fate => self.take(id, |_| true).zip(Some(fate)),
        }
    }

    /// Those that are made by the leader's word.
    fn take_made(&mut self) -> Vec<(Teller, Fate)> {
        let made = self.handed.extract_if(|_, handed| handed.made.is_some());
        made.filter_map(|(_, handed)| Some((handed.teller, Ok(handed.made?))))
            .collect()
    }
}

/// Without the lock: it wakes whoever waits.
fn tell(told: Vec<(Teller, Fate)>) {
    for (teller, fate) in told {
        // A requester that gave up meanwhile is no concern of the others.
        let _ = teller.send(fate);
    }
}

fn not_made() -> ProposeError {
    ProposeError::NotProposed("another leader's entries were applied without it".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::pontoon::command::Done;
    use crate::pb::pontoon::command::reply::Response;
    use crate::raft::entry::leader_id;

    fn done() -> Reply {
        Reply(Ok(Response::Done(Done {})))
    }

    fn enter(fates: &Fates, id: u64, to: LeaderId) -> oneshot::Receiver<Fate> {
        let (teller, fate) = oneshot::channel();
        assert!(fates.enter(id, to, teller));
        fate
    }

    fn is_not_made(mut fate: oneshot::Receiver<Fate>) -> bool {
        matches!(fate.try_recv(), Ok(Err(ProposeError::NotProposed(_))))
    }

    #[test]
    fn what_is_made_is_told_once_it_is_applied() {
        let (fates, leader) = (Fates::default(), leader_id(3, 1));
        let mut open = [7, 8, 9].map(|id| enter(&fates, id, leader));
        fates.answered(
            leader,
            [(7, Ok(done())), (8, Err(ProposeError::Unknown(String::new())))],
        );
        assert!(open.iter_mut().all(|fate| fate.try_recv().is_err()));
        fates.applied(leader, [(7, done()), (8, done())]);
        let told = open.each_mut().map(|fate| matches!(fate.try_recv(), Ok(Ok(_))));
        assert_eq!((told, fates.are_awaited()), ([true, true, false], true));
        fates.answered(leader, [(9, Err(not_made()))]);
        let [_, _, refused] = open;
        assert!(is_not_made(refused) && !fates.are_awaited());
    }

    /// A leader of an earlier build may have appended it in a later term than it is named under.
    #[test]
    fn what_is_made_by_the_leaders_word_is_never_said_not_to_be() {
        let (fates, leader) = (Fates::default(), leader_id(3, 1));
        let mut made = enter(&fates, 7, leader);
        fates.answered(leader, [(7, Ok(done()))]);
        fates.applied(leader_id(4, 1), []);
        assert!(made.try_recv().is_err() && fates.are_awaited());
        fates.applied(leader_id(4, 1), [(7, done())]);
        assert!(matches!(made.try_recv(), Ok(Ok(_))));
    }

    #[test]
    fn where_apply_can_not_tell_the_leaders_word_counts() {
        let (fates, leader) = (Fates::default(), leader_id(3, 1));
        let [mut before, mut behind, mut open] = [7, 8, 9].map(|id| enter(&fates, id, leader));
        fates.answered(leader, [(7, Ok(done()))]);
        fates.skipped(Some(leader));
        assert!(matches!(before.try_recv(), Ok(Ok(_))));
        fates.answered(leader, [(8, Ok(done()))]);
        assert!(matches!(behind.try_recv(), Ok(Ok(_))));
        let mut last = enter(&fates, 10, leader);
        fates.answered(leader, [(10, Ok(done()))]);
        fates.end();
        assert!(matches!(last.try_recv(), Ok(Ok(_))), "it is made, whoever goes");
        assert!(matches!(
            open.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        ));
    }

    #[test]
    fn an_entry_of_a_later_leader_tells_what_is_not_made() {
        let fates = Fates::default();
        let (lost, mut kept) = (
            enter(&fates, 7, leader_id(3, 1)),
            enter(&fates, 8, leader_id(3, 2)),
        );
        let mut made = enter(&fates, 9, leader_id(3, 1));
        // In one term the larger id is the later leader, as openraft has it.
        fates.applied(leader_id(3, 2), [(9, done())]);
        assert!(is_not_made(lost));
        assert!(matches!(made.try_recv(), Ok(Ok(_))));
        assert!(kept.try_recv().is_err());
        let (teller, fate) = oneshot::channel();
        assert!(!fates.enter(10, leader_id(3, 1), teller) && is_not_made(fate));
    }

    #[test]
    fn a_snapshot_says_nothing_of_what_waited_for_it() {
        let fates = Fates::default();
        let (mut before, leader) = (enter(&fates, 7, leader_id(3, 1)), leader_id(4, 2));
        fates.skipped(Some(leader));
        let after = enter(&fates, 8, leader);
        fates.applied(leader_id(5, 1), []);
        assert!(before.try_recv().is_err() && is_not_made(after));
        fates.applied(leader_id(5, 1), [(7, done())]);
        assert!(matches!(before.try_recv(), Ok(Ok(_))));
    }

    #[test]
    fn an_attempt_is_not_answered_by_the_one_before() {
        let fates = Fates::default();
        let (first, second) = (leader_id(3, 1), leader_id(4, 2));
        let lost = enter(&fates, 7, first);
        fates.applied(second, []);
        assert!(is_not_made(lost));
        let mut again = enter(&fates, 7, second);
        fates.answered(first, [(7, Err(not_made()))]);
        assert!(again.try_recv().is_err() && fates.are_awaited());
    }

    #[test]
    fn a_command_that_nobody_waits_for_is_not_sent() {
        let (fates, leader) = (Fates::default(), leader_id(3, 1));
        let (teller, fate) = oneshot::channel();
        drop(fate);
        assert!(!fates.enter(7, leader, teller));
        drop(enter(&fates, 8, leader));
        fates.forget(8);
        assert!(!fates.are_awaited());
    }
}
