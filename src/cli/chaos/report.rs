//! What a run found: a line for each round, the figures of all rounds, and the verdict.

use serde_json::{Value, json};

use super::check::Lost;
use super::fault::Fault;
use super::ledger::Stale;
use super::round::Round;
use super::summary::{Summary, drawn, histogram};
use super::until::Ended;
use crate::cli::format::{Answer, table};

/// Lost writes that are told one by one.
const EXAMPLES: usize = 10;

/// With fewer rounds there is nothing to be seen in how they are spread.
const SPREAD: usize = 5;

/// What is measured in each round: its name for people, for programs, and where it is.
type Measure = (&'static str, &'static str, fn(&Round) -> Option<f64>);
const MEASURES: [Measure; 5] = [
    ("detect", "detect_ms", |round| round.failover.detect_ms),
    ("elect", "elect_ms", |round| round.failover.elect_ms),
    ("first write", "first_write_ms", |round| {
        Some(round.first_write_ms)
    }),
    ("catch-up", "catch_up_ms", |round| Some(round.catch_up_ms)),
    ("pause", "pause_ms", |round| Some(round.pause_ms)),
];

/// A run.
pub struct Report {
    /// What was done.
    pub fault: Fault,
    /// All members.
    pub members: Vec<String>,
    /// What was measured.
    pub rounds: Vec<Round>,
    /// Why it ended early, if it did.
    pub ended: Option<Ended>,
    /// What was promised, and kept.
    pub promises: Promises,
}

/// What was promised, and kept.
#[derive(Debug, Default)]
pub struct Promises {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes of which nobody knows whether they happened.
    pub unknown: u64,
    /// Acknowledged ones that are not there; none if it could not be looked for them.
    pub lost: Option<Lost>,
    /// Linearizable reads that were answered.
    pub reads: u64,
    /// How many of them saw what was not the newest, and some of those.
    pub stale: (u64, Vec<Stale>),
}

/// The head of the lines.
pub fn head() -> String {
    let measures = MEASURES.map(|(name, ..)| format!("{name:>12}")).concat();
    format!("round  {:<24}{measures}   (ms)", "fault")
}

/// One round.
pub fn line(number: usize, fault: Fault, round: &Round) -> String {
    let led = if round.led { ", the leader" } else { "" };
    let what = format!("{} {}{led}", round.member, fault.act.done());
    let figures = MEASURES.map(|(_, _, of)| format!("{:>12}", short(of(round))));
    format!("{:>5}  {what:<24}{}", number + 1, figures.concat())
}

/// Tenths where they may matter.
fn short(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_string(),
        Some(ms) if ms < 100.0 => format!("{ms:.1}"),
        Some(ms) => format!("{ms:.0}"),
    }
}

impl Promises {
    /// Whether what was promised is kept, as far as was looked.
    fn are_kept(&self) -> bool {
        self.lost.as_ref().is_some_and(|lost| lost.0.is_empty()) && self.stale.0 == 0
    }

    fn lost_count(&self) -> Option<usize> {
        self.lost.as_ref().map(|lost| lost.0.len())
    }

    /// The broken ones, as far as they are told one by one.
    fn broken(&self) -> Vec<String> {
        let lost = self.lost.iter().flat_map(|lost| &lost.0).take(EXAMPLES);
        let lost = lost.map(|((writer, number), places)| {
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            format!(
                "lost: write {number} of writer {writer}, on {}",
                places.join(", ")
            )
        });
        let stale = self.stale.1.iter().map(|stale| {
            let Stale { counter, known, read } = stale;
            format!("stale: counter {counter} was read as {read} when {known} was known already")
        });
        lost.chain(stale).collect()
    }
}

impl Report {
    /// Whether all rounds were played and all promises kept.
    pub fn is_good(&self) -> bool {
        self.ended.is_none() && self.promises.are_kept()
    }

    /// Whether it was ended from outside, and nothing was wrong until then.
    pub fn is_interrupted(&self) -> bool {
        self.ended == Some(Ended::Interrupted) && self.promises.are_kept()
    }

    fn figures(&self, of: fn(&Round) -> Option<f64>) -> Vec<f64> {
        self.rounds.iter().filter_map(of).collect()
    }

    /// For people, behind the lines of the rounds.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let rows: Vec<Vec<String>> = MEASURES.iter().filter_map(|measure| self.row(measure)).collect();
        if !rows.is_empty() {
            text += &format!("\n{}", table(&["ms", "min", "median", "p90", "max"], rows));
        }
        if self.rounds.len() >= SPREAD {
            let first = self.figures(|round| Some(round.first_write_ms));
            text += &format!("\nfirst write\n{}", drawn(&histogram(&first)));
        }
        let promises = &self.promises;
        let lost = promises
            .lost_count()
            .map_or("? lost".to_string(), |lost| format!("{lost} lost"));
        text += &format!(
            "\nwrites  {} acknowledged, {lost}, {} of unknown fate\nreads   {} linearizable, {} stale\n",
            promises.acknowledged, promises.unknown, promises.reads, promises.stale.0
        );
        for broken in promises.broken() {
            text += &format!("{broken}\n");
        }
        text + &self.verdict() + "\n"
    }

    fn row(&self, (name, _, of): &Measure) -> Option<Vec<String>> {
        let summary = Summary::of(self.figures(*of))?;
        let figures = [summary.min, summary.median, summary.p90, summary.max];
        let cells = figures.iter().map(|figure| short(Some(*figure)));
        Some(std::iter::once(name.to_string()).chain(cells).collect())
    }

    fn verdict(&self) -> String {
        let promises = match (self.promises.lost.is_some(), self.promises.are_kept()) {
            (_, true) => "Everything acknowledged is on every member, and no read was stale.",
            (true, false) => "FAILED: a promise was broken.",
            (false, false) => "FAILED: the acknowledged writes could not be looked for.",
        };
        let played = self.rounds.len();
        match &self.ended {
            None => promises.to_string(),
            Some(Ended::Interrupted) => format!("Interrupted, rounds played: {played}. {promises}"),
            Some(Ended::Failed(why)) => format!("FAILED, rounds played: {played}: {why}. {promises}"),
        }
    }
}

impl Answer for Report {
    fn json(&self) -> Value {
        let round = |(number, round): (usize, &Round)| {
            let mut json = json!({"round": number + 1, "member": round.member, "led": round.led});
            for (_, name, of) in MEASURES {
                json[name] = json!(of(round));
            }
            json
        };
        let mut summary = json!({});
        for (_, name, of) in MEASURES {
            summary[name] = Summary::of(self.figures(of)).map_or(Value::Null, |figures| {
                json!({
                    "count": figures.count,
                    "min": figures.min,
                    "median": figures.median,
                    "p90": figures.p90,
                    "max": figures.max,
                })
            });
        }
        let bars = histogram(&self.figures(|round| Some(round.first_write_ms)));
        let bars = bars
            .iter()
            .map(|bar| json!({"from_ms": bar.from, "to_ms": bar.to, "rounds": bar.count}));
        let promises = &self.promises;
        json!({
            "fault": self.fault.name,
            "members": self.members,
            "rounds": self.rounds.iter().enumerate().map(round).collect::<Vec<_>>(),
            "summary": summary,
            "first_write_histogram": bars.collect::<Vec<_>>(),
            "writes": {
                "acknowledged": promises.acknowledged,
                "lost": promises.lost_count(),
                "unknown": promises.unknown,
            },
            "reads": {"linearizable": promises.reads, "stale": promises.stale.0},
            "broken": promises.broken(),
            "good": self.is_good(),
            "verdict": self.verdict(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::times::Failover;
    use super::*;

    fn report() -> Report {
        let round = |member: &str, led, elect_ms, first_write_ms| Round {
            member: member.to_string(),
            led,
            failover: Failover {
                detect_ms: elect_ms,
                elect_ms,
            },
            first_write_ms,
            catch_up_ms: 300.25,
            pause_ms: first_write_ms,
        };
        Report {
            fault: Fault::named("kill-random").expect("there is such"),
            members: vec!["n1".to_string(), "n2".to_string()],
            rounds: vec![
                round("n1", true, Some(1000.4), 1042.6),
                round("n2", false, None, 4.25),
            ],
            ended: None,
            promises: Promises {
                acknowledged: 100,
                unknown: 3,
                lost: Some(Lost::default()),
                reads: 50,
                stale: (0, Vec::new()),
            },
        }
    }

    fn lost() -> Option<Lost> {
        Some(Lost([((3, 17), ["n1 (serializable)".to_string()].into())].into()))
    }

    #[test]
    fn a_round_is_a_line() {
        let report = report();
        let lines = [0, 1].map(|at| line(at, report.fault, &report.rounds[at]));
        assert_eq!(
            lines[0],
            "    1  n1 killed, the leader           1000        1000        1043         300        1043"
        );
        assert!(lines[1].contains("n2 killed ") && lines[1].contains(" - "));
        assert!(head().find("elect").is_some());
    }

    #[test]
    fn what_is_kept_is_good_and_what_is_not_is_told() {
        let mut report = report();
        assert!(report.is_good());
        assert!(
            report.text().ends_with("no read was stale.\n"),
            "{}",
            report.text()
        );
        report.promises.lost = lost();
        assert!(!report.is_good());
        let text = report.text();
        assert!(text.contains("1 lost") && text.contains("FAILED"), "{text}");
        assert!(
            text.contains("lost: write 17 of writer 3, on n1 (serializable)"),
            "{text}"
        );
    }

    #[test]
    fn a_stale_read_is_no_good_nor_is_what_could_not_be_looked_at() {
        let mut stale = report();
        let example = Stale {
            counter: 2,
            known: 9,
            read: 8,
        };
        stale.promises.stale = (1, vec![example]);
        assert!(!stale.is_good());
        assert!(stale.text().contains("counter 2 was read as 8 when 9 was known"));
        let mut unseen = report();
        unseen.promises.lost = None;
        assert!(!unseen.is_good());
        assert!(unseen.text().contains("? lost"));
    }

    #[test]
    fn one_that_ended_early_is_not_good_but_may_be_blameless() {
        let mut report = report();
        report.ended = Some(Ended::Interrupted);
        assert!(!report.is_good() && report.is_interrupted());
        report.promises.lost = lost();
        assert!(!report.is_interrupted());
        report.ended = Some(Ended::Failed("n1 is gone".to_string()));
        assert!(
            report
                .verdict()
                .starts_with("FAILED, rounds played: 2: n1 is gone.")
        );
    }

    #[test]
    fn programs_get_all_of_it() {
        let json = report().json();
        assert_eq!(json["rounds"][0]["elect_ms"], 1000.4);
        assert_eq!(json["rounds"][1]["elect_ms"], Value::Null);
        assert_eq!(json["summary"]["elect_ms"]["count"], 1);
        assert_eq!(json["summary"]["first_write_ms"]["max"], 1042.6);
        assert_eq!(
            json["writes"],
            json!({"acknowledged": 100, "lost": 0, "unknown": 3})
        );
        assert_eq!(
            (&json["good"], &json["reads"]["stale"]),
            (&json!(true), &json!(0))
        );
        let rounds = json["first_write_histogram"].as_array().expect("bars");
        let rounds: u64 = rounds.iter().filter_map(|bar| bar["rounds"].as_u64()).sum();
        assert_eq!(rounds, 2);
    }
}
