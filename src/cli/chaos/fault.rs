//! The faults: what is done, to whom, and what it is called.

/// What is done to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Its process is killed.
    Kill,
    /// Its process is stopped, and closes everything.
    Stop,
    /// Its process stands still and does not know it.
    Pause,
    /// It can't reach the others, nor they it.
    Cut,
}

/// To whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// Whoever leads.
    Leader,
    /// Any voter.
    Random,
    /// One voter after another.
    Each,
}

/// A fault that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// As it is typed.
    pub name: &'static str,
    /// What it does, for the help.
    pub about: &'static str,
    /// What is done.
    pub act: Act,
    whom: Whom,
}

/// All of them.
pub const FAULTS: [Fault; 7] = [
    fault("kill-leader", "Kill the leader", Act::Kill, Whom::Leader),
    fault("kill-random", "Kill a member", Act::Kill, Whom::Random),
    fault(
        "pause-leader",
        "The leader stands still",
        Act::Pause,
        Whom::Leader,
    ),
    fault("pause-random", "A member stands still", Act::Pause, Whom::Random),
    fault(
        "partition-leader",
        "Cut the leader off from the others",
        Act::Cut,
        Whom::Leader,
    ),
    fault(
        "partition-random",
        "Cut a member off from the others",
        Act::Cut,
        Whom::Random,
    ),
    fault(
        "rolling-restart",
        "Stop and start each member in turn",
        Act::Stop,
        Whom::Each,
    ),
];

const fn fault(name: &'static str, about: &'static str, act: Act, whom: Whom) -> Fault {
    Fault {
        name,
        about,
        act,
        whom,
    }
}

impl Fault {
    /// The one of that name.
    pub fn named(name: &str) -> Option<Fault> {
        FAULTS.into_iter().find(|fault| fault.name == name)
    }

    /// How many rounds it takes to do it so many times to `voters`.
    pub fn rounds(&self, times: usize, voters: usize) -> usize {
        match self.whom {
            Whom::Each => times * voters,
            Whom::Leader | Whom::Random => times,
        }
    }

    /// Which of `voters` is the victim of a round, counted from 0.
    pub fn victim(&self, round: usize, leader: usize, voters: usize) -> usize {
        match self.whom {
            Whom::Leader => leader,
            Whom::Random => rand::random_range(0..voters),
            Whom::Each => round % voters,
        }
    }
}

impl Act {
    /// What became of the victim.
    pub fn done(self) -> &'static str {
        match self {
            Act::Kill => "killed",
            Act::Stop => "stopped",
            Act::Pause => "paused",
            Act::Cut => "cut off",
        }
    }

    /// The options that say how this is done to a member, and how it is undone; with examples.
    pub fn options(self) -> [(&'static str, &'static str); 2] {
        let restart = ("restart-with", "docker compose start {name}");
        match self {
            Act::Kill => [("kill-with", "docker compose kill -s KILL {name}"), restart],
            Act::Stop => [("stop-with", "docker compose stop {name}"), restart],
            Act::Pause => [
                ("pause-with", "docker compose pause {name}"),
                ("resume-with", "docker compose unpause {name}"),
            ],
            Act::Cut => [
                ("cut-with", "docker network disconnect NETWORK {name}"),
                (
                    "heal-with",
                    "docker network connect --alias {name} NETWORK {name}",
                ),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_hit_or_each_in_turn_or_any() {
        let named = |name| Fault::named(name).expect("there is such");
        assert_eq!(named("kill-leader").victim(5, 2, 3), 2);
        assert_eq!(named("kill-leader").rounds(4, 3), 4);
        let rolling = named("rolling-restart");
        let victims: Vec<usize> = (0..rolling.rounds(2, 3))
            .map(|round| rolling.victim(round, 0, 3))
            .collect();
        assert_eq!(victims, [0, 1, 2, 0, 1, 2]);
        let hit: std::collections::BTreeSet<usize> = (0..200)
            .map(|round| named("pause-random").victim(round, 0, 3))
            .collect();
        assert_eq!(hit, [0, 1, 2].into());
        assert_eq!(Fault::named("kill-everybody"), None);
    }
}
