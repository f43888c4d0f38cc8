//! What is said of an event: a line for those who know Raft, and a sentence for those who don't.

use std::collections::BTreeMap;
use std::time::Duration;

use super::event::{Answer, Event, Id, Left, Loss, Refusal, Role, Synced};

type Names = BTreeMap<u64, String>;

fn name(id: Id, names: &Names) -> String {
    names.get(&id.0).cloned().unwrap_or_else(|| format!("{id:?}"))
}

fn all(ids: &[Id], names: &Names) -> String {
    let each: Vec<String> = ids.iter().map(|id| name(*id, names)).collect();
    match each.is_empty() {
        true => "none".to_string(),
        false => each.join(", "),
    }
}

/// A duration as a person would say it.
fn time(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => humantime::format_duration(Duration::from_secs(ms / 1000)).to_string(),
    }
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Learner => "learner",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::Stopped => "stopped",
    }
}

fn refused(refusal: Option<Refusal>, names: &Names) -> String {
    match refusal {
        None => String::new(),
        Some(Refusal::LaterTerm { voter_term }) => format!(": it knows of term {voter_term}"),
        Some(Refusal::Voted { voted_for }) => {
            format!(": it has voted for {} in this term", name(voted_for, names))
        }
        Some(Refusal::LongerLog {
            voter_last,
            candidate_last,
        }) => format!(": its log goes on to entry {voter_last}, the candidate's to {candidate_last}"),
        Some(Refusal::HasLeader) => ": it hears from a leader".to_string(),
    }
}

/// The event as a line, with members by their names as far as they are known.
pub fn says(event: &Event, names: &Names) -> String {
    let name = |id: &Id| name(*id, names);
    match event {
        Event::Started { name, version, left } => {
            let after = match left {
                Left::First => "for the first time",
                Left::Clean => "after a clean stop",
                Left::Killed => "after it was killed",
                Left::PowerCut => "after the machine stopped",
            };
            format!("{name} starts {after}, version {version}")
        }
        Event::Serving {} => "serves clients".to_string(),
        Event::Stopping {} => "was told to stop".to_string(),
        Event::Failed { why } => format!("must stop: {why}"),
        Event::Role { from, to, term } => {
            format!("is now {} in term {term}, was {}", role(*to), role(*from))
        }
        Event::Term { from, to } => format!("enters term {to}, was in {from}"),
        Event::Campaign { term, pre: true } => format!("asks whether it could lead in term {term}"),
        Event::Campaign { term, pre: false } => format!("asks for votes in term {term}"),
        Event::Vote { .. } => vote(event, names),
        Event::Asked {
            candidate,
            term,
            pre,
            granted,
            refusal,
        } => {
            let asks = match pre {
                true => format!("{} asks whether it could lead in term {term}", name(candidate)),
                false => format!("{} asks for a vote in term {term}", name(candidate)),
            };
            match granted {
                true => format!("{asks}: yes"),
                false => format!(
                    "{asks}: no{}",
                    refused(*refusal, names).replacen(": it", ", this member", 1)
                ),
            }
        }
        Event::LeaderElected { leader, term } => format!("{} leads in term {term}", name(leader)),
        Event::LeaderBack { leader, term } => {
            format!("{}, leader of term {term}, is heard of again", name(leader))
        }
        Event::LeaderLost {
            leader,
            term,
            why,
            silent_ms,
        } => {
            let what = match why {
                Loss::Silent => format!("has been silent for {}", time(*silent_ms)),
                Loss::Superseded => format!(
                    "is given up for a later term, {} after its last word",
                    time(*silent_ms)
                ),
                Loss::NoMajority => "hears from no majority".to_string(),
                Loss::SteppedDown => "leads no more".to_string(),
            };
            format!("{}, leader of term {term}, {what}", name(leader))
        }
        Event::HandingOver { to } => format!("asks {} to lead", name(to)),
        Event::Membership { voters, learners } => match learners.is_empty() {
            true => format!("voters: {}", all(voters, names)),
            false => format!(
                "voters: {}; learners: {}",
                all(voters, names),
                all(learners, names)
            ),
        },
        Event::SnapshotTaken { upto, bytes, took_ms } => {
            format!(
                "took a snapshot up to entry {upto}, {} in {}",
                size(*bytes),
                time(*took_ms)
            )
        }
        Event::SnapshotSent {
            to,
            upto,
            bytes,
            took_ms,
            why,
        } => match why {
            None => format!(
                "sent {} a snapshot up to entry {upto}, {} in {}",
                name(to),
                size(*bytes),
                time(*took_ms)
            ),
            Some(why) => format!("a snapshot up to entry {upto} did not get to {}: {why}", name(to)),
        },
        Event::SnapshotReceived {
            from,
            upto,
            bytes,
            took_ms,
            why,
        } => match why {
            None => format!(
                "got a snapshot of {} up to entry {upto}, {} in {}",
                name(from),
                size(*bytes),
                time(*took_ms)
            ),
            Some(why) => format!("a snapshot of {} up to entry {upto} broke off: {why}", name(from)),
        },
        Event::LinkUp { peer } => format!("{} answers", name(peer)),
        Event::LinkDown { peer, why } => format!("{} does not answer: {why}", name(peer)),
        Event::SlowSync { of, took_ms, more } => {
            let what = match of {
                Synced::Log => "the log",
                Synced::Snapshot => "a snapshot",
            };
            let before = match more {
                0 => String::new(),
                more => format!("; so were {more} before it"),
            };
            format!(
                "the disk was slow: {} until {what} was safe{before}",
                time(*took_ms)
            )
        }
    }
}

/// The answer to a question for a vote.
fn vote(event: &Event, names: &Names) -> String {
    let Event::Vote {
        voter,
        term,
        pre,
        answer,
        refusal,
        why,
        ..
    } = event
    else {
        return String::new();
    };
    let voter = name(*voter, names);
    match (answer, pre) {
        (Answer::Granted, true) => format!("{voter} would vote for it in term {term}"),
        (Answer::Granted, false) => format!("{voter} votes for it in term {term}"),
        (Answer::Refused, true) => format!(
            "{voter} would not vote for it in term {term}{}",
            refused(*refusal, names)
        ),
        (Answer::Refused, false) => format!(
            "{voter} refuses its vote in term {term}{}",
            refused(*refusal, names)
        ),
        (Answer::None, _) => {
            let why = why.as_deref().unwrap_or("no answer");
            format!("{voter} does not say whether it votes in term {term}: {why}")
        }
    }
}

/// One plain sentence about what such an event means.
pub fn explain(event: &Event) -> &'static str {
    match event {
        Event::Started { left, .. } => match left {
            Left::First => "A new member has an empty disk: it gets everything from the others.",
            Left::Clean => {
                "It goes on with what it has on its disk, and gets what it missed from the leader."
            }
            Left::Killed => {
                "Being killed costs nothing that was acknowledged: the log on its disk is read again, and the rest \
                 comes from the leader."
            }
            Left::PowerCut => {
                "After a power cut only what was synced to the disk counts: what is applied is built anew from \
                 snapshot and log."
            }
        },
        Event::Serving {} => {
            "It knows its cluster and takes requests; writes go to the leader, whoever that is."
        }
        Event::Stopping {} => {
            "A member that is stopped in order hands over first, if it leads, so that nobody has to wait for an election."
        }
        Event::Failed { .. } => {
            "A member that can't trust its disk or itself stops rather than answer wrongly."
        }
        Event::Role { to, .. } => match to {
            Role::Learner => "A learner gets everything but has no vote.",
            Role::Follower => "A follower copies the leader's log, and votes when there is none.",
            Role::Candidate => {
                "A candidate has missed its leader and asks the others to make it the next one."
            }
            Role::Leader => "All writes go through the leader's log, in one order for everybody.",
            Role::Stopped => "It takes no part any more.",
        },
        Event::Term { .. } => {
            "Terms number the attempts to elect a leader: each has one leader at most, and whoever hears of a later \
             term leaves the earlier one behind."
        }
        Event::Campaign { pre: true, .. } => {
            "Before it disturbs anybody it asks whether it would win: a member that was merely cut off thus can't \
             depose a healthy leader."
        }
        Event::Campaign { pre: false, .. } => {
            "It opens a new term, votes for itself, and needs a majority to lead."
        }
        Event::Vote { answer, .. } => match answer {
            Answer::Granted => "With votes of more than half of the members, its own included, it leads.",
            Answer::Refused => {
                "A member gives one vote in a term, and only to a log that holds all that its own does."
            }
            Answer::None => "Silence is no vote: a majority has to be found among those that answer.",
        },
        Event::Asked { granted: true, .. } => {
            "It keeps its vote on its disk before it answers, so it can't give another one in this term, even after a crash."
        }
        Event::Asked { granted: false, .. } => {
            "A vote is refused to whoever could lose acknowledged writes, or would depose a leader that is well."
        }
        Event::LeaderElected { .. } => {
            "A majority voted for it; their logs hold every acknowledged write, and so does its own."
        }
        Event::LeaderBack { .. } => "It was only late or cut off, and nobody else was elected meanwhile.",
        Event::LeaderLost { why, .. } => match why {
            Loss::Silent => {
                "A leader calls every heartbeat interval; one that is silent for an election timeout counts as dead."
            }
            Loss::Superseded => {
                "Once a member has promised its vote in a later term it follows no leader of an earlier one."
            }
            Loss::NoMajority => {
                "A leader that reaches no majority can acknowledge nothing: the others may have elected another one."
            }
            Loss::SteppedDown => "There is a later term, with a leader of its own or about to have one.",
        },
        Event::HandingOver { .. } => {
            "The one with the longest log is asked to hold its election at once: writes pause for milliseconds."
        }
        Event::Membership { .. } => "Voters make the majority; learners only get copies.",
        Event::SnapshotTaken { .. } => "With the state on disk the log before it can go.",
        Event::SnapshotSent { why: None, .. } | Event::SnapshotReceived { why: None, .. } => {
            "A member that is further behind than the log reaches gets the whole state, then the entries after it."
        }
        Event::SnapshotSent { .. } | Event::SnapshotReceived { .. } => "It is sent again, from the start.",
        Event::LinkUp { .. } => "Messages get there and back.",
        Event::LinkDown { .. } => "It may be dead, paused or cut off: from here that looks the same.",
        Event::SlowSync { .. } => {
            "Nothing is acknowledged before it is safe on a majority's disks, so a slow disk makes slow writes."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_members_reasons_and_times() {
        let names = Names::from([(1, "node1".to_string()), (3, "node3".to_string())]);
        let asked = Event::Asked {
            candidate: Id(3),
            term: 7,
            pre: false,
            granted: false,
            refusal: Some(Refusal::Voted { voted_for: Id(1) }),
        };
        assert_eq!(
            says(&asked, &names),
            "node3 asks for a vote in term 7: no, this member has voted for node1 in this term"
        );
        let unanswered = Event::Vote {
            voter: Id(0xff),
            term: 7,
            pre: true,
            answer: Answer::None,
            refusal: None,
            why: Some("Connection refused".to_string()),
            took_ms: 1,
        };
        assert_eq!(
            says(&unanswered, &names),
            "ff does not say whether it votes in term 7: Connection refused"
        );
        let lost = Event::LeaderLost {
            leader: Id(1),
            term: 6,
            why: Loss::Silent,
            silent_ms: 1049,
        };
        assert_eq!(
            says(&lost, &names),
            "node1, leader of term 6, has been silent for 1.0 s"
        );
        let longer = Event::Vote {
            voter: Id(3),
            term: 7,
            pre: false,
            answer: Answer::Refused,
            refusal: Some(Refusal::LongerLog {
                voter_last: 12,
                candidate_last: 9,
            }),
            why: None,
            took_ms: 1,
        };
        assert_eq!(
            says(&longer, &names),
            "node3 refuses its vote in term 7: its log goes on to entry 12, the candidate's to 9"
        );
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        assert_eq!(time(999), "999 ms");
        assert_eq!(time(1250), "1.2 s");
        assert_eq!(time(61_000), "1m 1s");
    }
}
