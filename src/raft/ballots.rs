//! What is told of votes: who asked, what was answered, and why not.
//!
//! A member that is cut off asks again at every election timeout, in the same term, and is answered the same. That is
//! told once. The reason of a refusal is not in the answer; it follows from what the voter says of itself, as openraft
//! decides in this order: it hears from a leader; its log goes further; it has voted, or knows of a later term.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use openraft::raft::{VoteRequest, VoteResponse};
use tonic::Status;

use super::Types;
use super::links::cause;
use crate::journal::event::{Answer, Refusal};
use crate::journal::{Event, Id, Journal};

/// What was told last, so that it is not told again.
#[derive(Default)]
pub struct Ballots {
    told: Mutex<Told>,
}

/// A term, and whether it was only asked how it would be.
type Round = (u64, bool);

#[derive(Default)]
struct Told {
    /// What this member stood for.
    campaign: Option<Round>,
    /// What the others answered.
    answers: BTreeMap<u64, (Round, Answer, Option<Refusal>)>,
    /// What the others were answered.
    asked: BTreeMap<u64, (Round, bool, Option<Refusal>)>,
}

impl Ballots {
    fn told<T>(&self, change: impl FnOnce(&mut Told) -> T) -> T {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// This member asks for a vote.
    pub fn ask(&self, journal: &Journal, request: &VoteRequest<Types>, pre: bool) {
        let term = request.vote.leader_id.term;
        let round = (term, pre);
        if self.told(|told| told.campaign.replace(round)) != Some(round) {
            journal.record(Event::Campaign { term, pre });
        }
    }

    /// It was answered, or was not, after so long.
    pub fn answered(
        &self,
        journal: &Journal,
        voter: u64,
        request: &VoteRequest<Types>,
        pre: bool,
        answer: Result<&VoteResponse<Types>, &Status>,
        took: Duration,
    ) {
        let term = request.vote.leader_id.term;
        let (answer, refusal, why) = match answer {
            Ok(response) if response.vote_granted => (Answer::Granted, None, None),
            Ok(response) => (Answer::Refused, Some(refusal(request, response)), None),
            Err(status) => (Answer::None, None, Some(cause(status))),
        };
        let news = ((term, pre), answer, refusal);
        if self.told(|told| told.answers.insert(voter, news)) != Some(news) {
            journal.record(Event::Vote {
                voter: Id(voter),
                term,
                pre,
                answer,
                refusal,
                why,
                took_ms: took.as_millis() as u64,
            });
        }
    }

    /// Another member asked for this one's vote.
    pub fn asked(
        &self,
        journal: &Journal,
        request: &VoteRequest<Types>,
        pre: bool,
        response: &VoteResponse<Types>,
    ) {
        let (candidate, term) = (request.vote.leader_id.node_id, request.vote.leader_id.term);
        let granted = response.vote_granted;
        let refusal = (!granted).then(|| refusal(request, response));
        let news = ((term, pre), granted, refusal);
        if self.told(|told| told.asked.insert(candidate, news)) != Some(news) {
            journal.record(Event::Asked {
                candidate: Id(candidate),
                term,
                pre,
                granted,
                refusal,
            });
        }
    }
}

/// Why a voter that answers like this refused.
fn refusal(request: &VoteRequest<Types>, response: &VoteResponse<Types>) -> Refusal {
    let (asked, held) = (&request.vote.leader_id, &response.vote.leader_id);
    if held.term > asked.term {
        return Refusal::LaterTerm {
            voter_term: held.term,
        };
    }
    if held.term == asked.term && held.node_id != asked.node_id {
        return Refusal::Voted {
            voted_for: Id(held.node_id),
        };
    }
    if response.last_log_id > request.last_log_id {
        let index = |last: &Option<super::LogId>| last.as_ref().map_or(0, |last| last.index);
        return Refusal::LongerLog {
            voter_last: index(&response.last_log_id),
            candidate_last: index(&request.last_log_id),
        };
    }
    Refusal::HasLeader
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Vote;
    use crate::raft::entry::new_log_id;

    fn request(term: u64, by: u64, last: u64) -> VoteRequest<Types> {
        VoteRequest::new(Vote::new(term, by), Some(new_log_id(1, 1, last)))
    }

    fn refused(term: u64, held: u64, last: u64) -> VoteResponse<Types> {
        VoteResponse::new(Vote::new(term, held), Some(new_log_id(1, 1, last)), false)
    }

    #[test]
    fn a_refusal_says_why() {
        let asked = request(7, 2, 9);
        let why = |response| refusal(&asked, &response);
        assert_eq!(why(refused(8, 3, 9)), Refusal::LaterTerm { voter_term: 8 });
        assert_eq!(why(refused(7, 3, 9)), Refusal::Voted { voted_for: Id(3) });
        assert_eq!(
            why(refused(6, 1, 12)),
            Refusal::LongerLog {
                voter_last: 12,
                candidate_last: 9
            }
        );
        assert_eq!(why(refused(6, 1, 9)), Refusal::HasLeader);
    }

    #[test]
    fn the_same_attempt_with_the_same_answer_is_told_once() {
        let (ballots, journal) = (Ballots::default(), Journal::default());
        let silent = Status::unavailable("no answer in time");
        for _ in 0..3 {
            let asked = request(7, 2, 9);
            ballots.ask(&journal, &asked, true);
            ballots.answered(&journal, 3, &asked, true, Err(&silent), Duration::ZERO);
            ballots.asked(&journal, &request(7, 3, 9), true, &refused(6, 1, 9));
        }
        let kinds = || -> Vec<&str> {
            let records = journal.after(0, 99);
            records.iter().map(|record| record.event.kind()).collect()
        };
        assert_eq!(kinds(), ["campaign", "vote", "asked"]);
        let asked = request(7, 2, 9);
        ballots.answered(&journal, 3, &asked, true, Ok(&refused(6, 1, 9)), Duration::ZERO);
        ballots.ask(&journal, &asked, false);
        assert_eq!(kinds()[3..], ["vote", "campaign"]);
    }
}
