//! etcd's checks of a membership change, as pure functions of who is there and who is heard of.

use super::Rules;
use crate::error::Error;
use crate::pb::pontoon::command::MemberRecord;
use crate::pb::pontoon::peer;
use crate::raft::membership::Standing;

/// A member, as the checks see it.
pub(super) struct Listed {
    pub(super) record: MemberRecord,
    /// Whether it votes; one that was added as a voter does not yet.
    pub(super) is_voter: bool,
    /// Whether it was heard of lately.
    pub(super) is_active: bool,
}

impl Listed {
    fn is_started(&self) -> bool {
        !self.record.name.is_empty()
    }
}

/// All members, and the rules: the checks of etcd, as pure functions.
pub(super) struct Roll {
    pub(super) listed: Vec<Listed>,
    pub(super) rules: Rules,
}

/// Where a process that asks for a place belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
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
    pub(super) fn find(&self, id: u64) -> Option<&Listed> {
        self.listed.iter().find(|listed| listed.record.id == id)
    }

    pub(super) fn record(&self, id: u64) -> Option<&MemberRecord> {
        self.find(id).map(|listed| &listed.record)
    }

    /// Those listed as voters, whether or not they have their vote yet: etcd counts so.
    fn voters(&self) -> impl Iterator<Item = &Listed> {
        self.listed.iter().filter(|listed| !listed.record.is_learner)
    }

    pub(super) fn check_add(&self, peer_urls: &[String], is_learner: bool) -> Result<(), Error> {
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

    pub(super) fn check_remove(&self, id: u64) -> Result<(), Error> {
        let target = self.find(id).ok_or(Error::MemberNotFound)?;
        let voting = |listed: &&Listed| listed.is_voter && listed.record.id != id;
        let votes: Vec<&Listed> = self.listed.iter().filter(voting).collect();
        if target.is_voter && votes.is_empty() {
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
        // One that is listed as a voter and has no vote yet decides nothing.
        let awake = votes.iter().filter(|listed| listed.is_active).count();
        if target.is_voter && awake < votes.len() / 2 + 1 {
            return Err(Error::Unhealthy);
        }
        // One that is not heard of is no part of the majority that is there.
        let active = self.voters().filter(|listed| listed.is_active).count();
        if target.is_active && active - 1 < 1 + rest.len() / 2 {
            return Err(Error::Unhealthy);
        }
        Ok(())
    }

    pub(super) fn check_promote(&self, id: u64, standing: &Standing) -> Result<(), Error> {
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

    /// One that is heard of is not replaced, whether or not it is reached where it says that it is.
    pub(super) fn check_silent(&self, id: u64) -> Result<(), String> {
        match self.find(id) {
            Some(listed) if listed.is_active => Err(namesake(&listed.record)),
            _ => Ok(()),
        }
    }

    pub(super) fn place(&self, request: &peer::JoinRequest) -> Result<Place, String> {
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

/// Why somebody of the same name is not let in.
pub(super) fn namesake(record: &MemberRecord) -> String {
    format!(
        "another member named {:?} runs at {}: choose another --name",
        record.name,
        record.peer_urls.join(",")
    )
}

fn shares(some: &[String], others: &[String]) -> bool {
    some.iter().any(|url| others.contains(url))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

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
        const LOADING: &[&str] = &["voter", "voter", "voter down", "added"];
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
            (LOADING, 2, Err(Error::Unhealthy)),
            (LOADING, 3, Ok(())),
            (LOADING, 4, Ok(())),
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
    fn a_member_that_is_heard_of_is_not_replaced() {
        // The third has come for the vote of the second, whose name it has.
        let mut roll = roll(&["voter", "voter down", "learner"]);
        roll.listed[2].record.name = "n2".to_string();
        assert!(
            roll.check_silent(1)
                .is_err_and(|why| why.contains("named \"n1\" runs"))
        );
        assert_eq!(roll.check_silent(2), Ok(()));
        assert!(roll.check_silent(3).is_err());
        roll.listed[2].is_active = false;
        assert_eq!(roll.check_silent(3), Ok(()));
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
}
