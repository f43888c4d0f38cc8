//! What `top` shows: text and colours of one screen.
//!
//! The table gives up columns that the screen has no room for, those first that say least.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use super::super::events::{Told, time_of_day};
use super::text::{Piece, flow, length, line, piece};

/// Older figures are of a member that is not reached.
const STALE_MS: u64 = 1600;
/// Colours of terms, each unlike its neighbours: numbers of the terminal's 256.
const TERMS: [u8; 6] = [75, 173, 113, 140, 179, 80];
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const REVERSED: &str = "\x1b[7m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
/// Between two columns.
const GAP: usize = 2;
/// What is not known.
const UNKNOWN: &str = "–";
/// How a member that is not reached is called.
const GONE: &str = "✕ no answer";
/// Sentences begin below what is said of the event.
const INDENT: usize = 24;
/// Most lines for the keys.
const KEY_LINES: usize = 2;

/// One event.
pub struct Line {
    says: String,
    explain: String,
    trouble: bool,
    win: bool,
}

impl Line {
    /// From what the journal tells.
    pub fn of(told: &Told) -> Line {
        let text = |field: &str| told.record[field].as_str().unwrap_or_default().to_string();
        let kind = text("kind");
        Line {
            says: format!("{}  {:<8}  {}", time_of_day(told.at), told.name, text("says")),
            explain: text("explain"),
            trouble: ["leader-lost", "link-down", "failed", "slow-sync"].contains(&kind.as_str()),
            win: kind == "leader-elected",
        }
    }
}

/// How far a member is.
#[derive(Debug, Clone, Copy)]
struct Figures {
    term: u64,
    last: u64,
    committed: u64,
    applied: u64,
}

/// One member.
#[derive(Debug, Default, Clone)]
struct Row {
    name: String,
    alive: bool,
    role: String,
    /// As it was when it was heard of last; none: it never was.
    figures: Option<Figures>,
    requests: (u64, u64),
    rate: f64,
    heard_ms: Option<u64>,
    rtt_us: Option<u64>,
    leads: bool,
}

/// One column of the table.
struct Column {
    heading: &'static str,
    is_number: bool,
    /// Where there is no room those with the highest go.
    rank: u8,
    /// Of a member, where the longest log ends at the entry.
    cell: fn(&Row, u64) -> String,
}

const COLUMNS: [Column; 9] = [
    column("member", false, 0, |row, _| row.name.clone()),
    column("role", false, 0, |row, _| row.role.clone()),
    column("term", true, 0, |row, _| row.figure(|figures| figures.term)),
    column("log", true, 2, |row, _| row.figure(|figures| figures.last)),
    column("committed", true, 5, |row, _| {
        row.figure(|figures| figures.committed)
    }),
    column("applied", true, 6, |row, _| row.figure(|figures| figures.applied)),
    column("behind", true, 3, |row, head| {
        row.figure(|figures| head.saturating_sub(figures.last))
    }),
    column("req/s", true, 4, |row, _| row.requests_a_second()),
    column("answered", false, 1, |row, _| row.answered()),
];

const fn column(heading: &'static str, is_number: bool, rank: u8, cell: fn(&Row, u64) -> String) -> Column {
    Column {
        heading,
        is_number,
        rank,
        cell,
    }
}

/// What is seen.
#[derive(Default)]
pub struct View {
    rows: Vec<Row>,
    through: String,
    /// When it was, by the clock of the member that tells.
    now: u64,
    chosen: usize,
    /// Whether events are explained.
    pub explain: bool,
    /// Said at the bottom.
    pub notice: String,
}

impl View {
    /// The name of the chosen member.
    pub fn chosen(&self) -> Option<String> {
        self.rows.get(self.chosen).map(|row| row.name.clone())
    }

    /// Chooses another one.
    pub fn choose(&mut self, step: isize) {
        let last = self.rows.len().saturating_sub(1);
        self.chosen = self.chosen.saturating_add_signed(step).min(last);
    }

    /// Takes a sample of how members stand.
    pub fn members(&mut self, sample: &Value) {
        let members = sample["members"].as_array().cloned().unwrap_or_default();
        let leader = members.iter().find(|member| {
            let figures = &member["figures"];
            member["age_ms"].as_u64().is_some_and(|age| age < STALE_MS)
                && figures["role"] == "leader"
                && figures["leader"] == member["id"]
        });
        let now = sample["now"].as_u64().unwrap_or_default();
        let passed = now.saturating_sub(self.now);
        let mut rows: Vec<Row> = members.iter().map(|member| row(member, leader)).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        for row in &mut rows {
            if let Some(before) = self.rows.iter().find(|before| before.name == row.name) {
                row.follow(before, passed);
            }
        }
        let here = members.iter().find(|member| member["here"] == true);
        self.through = here
            .map_or("", |here| here["name"].as_str().unwrap_or_default())
            .to_string();
        self.rows = rows;
        self.now = now;
        self.choose(0);
    }

    /// No member answers, and so much time has passed since the last word of one.
    pub fn nobody(&mut self, passed: Duration) {
        for row in &mut self.rows {
            row.alive = false;
            row.leads = false;
            row.role = GONE.to_string();
            row.heard_ms = row.heard_ms.map(|heard| heard + passed.as_millis() as u64);
        }
        self.through = "nobody".to_string();
    }

    /// The screen, as what is sent to a terminal.
    pub fn draw(&self, events: &VecDeque<Line>, may_act: bool, width: usize, height: usize) -> String {
        let keys = flow(self.keys(may_act), "  ", width);
        let keys = keys.iter().take(KEY_LINES);
        let mut foot = vec![line(&[piece(YELLOW, &self.notice)], width)];
        foot.extend(keys.map(|keys| line(&[piece(DIM, keys)], width)));
        let mut lines = vec![self.head(width), String::new()];
        lines.extend(self.table(may_act, width));
        lines.push(String::new());
        let above = height.saturating_sub(foot.len());
        lines.extend(self.events(events, above.saturating_sub(lines.len()), width));
        lines.resize(above, String::new());
        lines.extend(foot);
        lines.truncate(height);
        // Each line is drawn over the one before it: nothing flickers.
        format!("\x1b[H{}\x1b[J", lines.join("\x1b[K\r\n"))
    }

    /// What the keys do to the member that is chosen, as it is.
    fn keys(&self, may_act: bool) -> Vec<&'static str> {
        let acts: &[&str] = match self.rows.get(self.chosen) {
            Some(row) if may_act && row.alive => {
                &["↑↓ choose", "k kill", "p pause", "s stop", "l lead", "c cut off"]
            }
            Some(_) if may_act => &["↑↓ choose", "s start", "p resume", "c mend", "w wipe", "k kill"],
            _ => &[],
        };
        [acts, &["e explain", "q quit"]].concat()
    }

    /// As much as there is room for, the most important first.
    fn head(&self, width: usize) -> String {
        let leader = self.rows.iter().find(|row| row.leads);
        let alive = self.rows.iter().filter(|row| row.alive);
        let term = alive
            .filter_map(|row| row.figures)
            .map(|figures| figures.term)
            .max();
        let figures = self.rows.iter().filter_map(|row| row.figures);
        let committed = figures.map(|figures| figures.committed).max().unwrap_or(0);
        let rate: f64 = self.rows.iter().map(|row| row.rate).sum();
        let parts = [
            piece("", "Pontoon  leader "),
            match leader {
                Some(row) => piece(BOLD, &row.name),
                None => piece(format!("{BOLD}{RED}"), "none"),
            },
            piece(
                "",
                format!(
                    "  term {}",
                    term.map_or(UNKNOWN.to_string(), |term| term.to_string())
                ),
            ),
            piece(DIM, format!("  seen through {}", self.through)),
            piece("", format!("  {rate:.0} req/s")),
            piece("", format!("  committed {committed}")),
        ];
        let mut end = 0;
        let fits = parts.iter().take_while(|part| {
            end += part.length();
            end <= width
        });
        let fits = fits.count().max(2);
        line(&parts[..fits], width)
    }

    fn table(&self, may_act: bool, width: usize) -> Vec<String> {
        let figures = self.rows.iter().filter_map(|row| row.figures);
        let head = figures.map(|figures| figures.last).max().unwrap_or(0);
        let widths = COLUMNS.map(|column| {
            let cells = self.rows.iter().map(|row| length(&(column.cell)(row, head)));
            cells.max().unwrap_or(0).max(length(column.heading))
        });
        let shown = shown(&widths, width);
        let headings = shown
            .iter()
            .map(|at| pad(COLUMNS[*at].heading, &COLUMNS[*at], widths[*at]));
        let headings: Vec<Piece> = headings.map(|heading| piece(DIM, heading)).collect();
        let mut lines = vec![line(&headings, width)];
        for (at, row) in self.rows.iter().enumerate() {
            let is_chosen = may_act && at == self.chosen;
            let cells = shown.iter().map(|at| {
                let column = &COLUMNS[*at];
                let cell = pad(&(column.cell)(row, head), column, widths[*at]);
                let style = row.style(column.heading == "role");
                match is_chosen {
                    true => piece(format!("{style}{REVERSED}"), cell),
                    false => piece(style, cell),
                }
            });
            lines.push(line(&cells.collect::<Vec<_>>(), width));
        }
        lines
    }

    /// The newest events that there is room for, newest first.
    fn events(&self, events: &VecDeque<Line>, room: usize, width: usize) -> Vec<String> {
        // On a narrow screen sentences begin further left.
        let indent = INDENT.min(width / 4);
        let mut lines = Vec::new();
        for event in events.iter().rev() {
            let colour = match (event.trouble, event.win) {
                (true, _) => RED,
                (_, true) => GREEN,
                _ => "",
            };
            lines.push(line(&[piece(colour, &event.says)], width));
            if self.explain {
                let sentence = flow(event.explain.split(' '), " ", width.saturating_sub(indent));
                lines.extend(
                    sentence
                        .iter()
                        .map(|part| line(&[piece(DIM, format!("{:indent$}{part}", ""))], width)),
                );
            }
            if lines.len() >= room {
                break;
            }
        }
        lines.truncate(room);
        lines
    }
}

/// Which columns are shown: all, without those of the highest ranks while they are wider than the screen.
fn shown(widths: &[usize], width: usize) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..COLUMNS.len()).collect();
    let wide = |shown: &[usize]| shown.iter().map(|at| widths[*at] + GAP).sum::<usize>() > width + GAP;
    while wide(&shown) {
        match shown.iter().map(|at| COLUMNS[*at].rank).max() {
            Some(0) | None => break,
            Some(most) => shown.retain(|at| COLUMNS[*at].rank < most),
        }
    }
    shown
}

fn pad(text: &str, column: &Column, width: usize) -> String {
    match column.is_number {
        true => format!("{text:>width$}{:GAP$}", ""),
        false => format!("{text:<width$}{:GAP$}", ""),
    }
}

fn row(member: &Value, leader: Option<&Value>) -> Row {
    let figures = &member["figures"];
    let number = |name: &str| figures[name].as_u64().unwrap_or(0);
    let age = member["age_ms"].as_u64();
    let alive = age.is_some_and(|age| age < STALE_MS);
    let leads = leader.is_some_and(|leader| leader["id"] == member["id"]);
    let id = member["id"].as_str().unwrap_or_default();
    let role = figures["role"].as_str().unwrap_or_default();
    Row {
        name: member["name"].as_str().unwrap_or_default().to_string(),
        role: match (alive, role) {
            (false, _) => GONE.to_string(),
            (true, "leader") => "★ leader".to_string(),
            (true, "candidate") => "? candidate".to_string(),
            (true, "learner") => "◇ learner".to_string(),
            (true, _) if figures["leader"].is_null() => "● no leader".to_string(),
            (true, role) => format!("● {role}"),
        },
        alive,
        figures: figures.is_object().then(|| Figures {
            term: number("term"),
            last: number("last"),
            committed: number("committed"),
            applied: number("applied"),
        }),
        requests: (number("now"), number("requests")),
        rate: 0.0,
        heard_ms: age,
        rtt_us: leader
            .filter(|_| alive && !leads)
            .and_then(|leader| leader["figures"]["links"][id]["rtt_us"].as_u64()),
        leads,
    }
}

impl Row {
    /// What goes on from the sample before, `passed` milliseconds ago.
    fn follow(&mut self, before: &Row, passed: u64) {
        // Another member may not have heard of it yet, where the one before did.
        if self.figures.is_none() {
            self.figures = before.figures;
            self.heard_ms = before.heard_ms.map(|heard| heard + passed);
        }
        // Requests a second, smoothed.
        let (now, requests) = self.requests;
        let (then, earlier) = before.requests;
        self.rate = match now.checked_sub(then) {
            // Nothing new was heard.
            Some(0) if self.alive => before.rate,
            Some(passed @ 1..) if requests >= earlier => {
                before.rate * 0.8 + 0.2 * (requests - earlier) as f64 * 1000.0 / passed as f64
            }
            _ => 0.0,
        };
    }

    fn figure(&self, which: impl Fn(&Figures) -> u64) -> String {
        let figure = self.figures.as_ref().map(which);
        figure.map_or(UNKNOWN.to_string(), |figure| figure.to_string())
    }

    fn requests_a_second(&self) -> String {
        match self.alive {
            true => format!("{:.0}", self.rate),
            false => UNKNOWN.to_string(),
        }
    }

    /// How long the leader waits for its answers, or how long ago the last one was.
    fn answered(&self) -> String {
        match (self.alive, self.rtt_us, self.heard_ms) {
            (true, Some(us), _) => format!("in {:.2} ms", us as f64 / 1000.0),
            (true, None, _) => String::new(),
            (false, _, Some(ms)) => format!("{:.1} s ago", ms as f64 / 1000.0),
            (false, _, None) => "never".to_string(),
        }
    }

    /// How its cells are coloured: by its term, while it is there.
    fn style(&self, is_role: bool) -> String {
        if !self.alive {
            return if is_role { RED } else { DIM }.to_string();
        }
        let term = self.figures.map_or(0, |figures| figures.term) as usize;
        let weight = if self.leads { BOLD } else { "" };
        format!("{weight}\x1b[38;5;{}m", TERMS[term % TERMS.len()])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn member(name: &str, role: &str, age: u64) -> Value {
        json!({"id": name, "name": name, "here": name == "b", "age_ms": age, "figures": {
            "role": role, "term": 7, "leader": "a", "last": 12, "committed": 11, "applied": 10, "now": 1000, "requests": 5,
            "links": {"b": {"rtt_us": 1500}},
        }})
    }

    /// The screen without its colours.
    fn plain(screen: &str) -> Vec<String> {
        let mut text = String::new();
        let mut parts = screen.split('\x1b');
        text.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let end = part
                .find(|c: char| c.is_ascii_alphabetic())
                .map_or(part.len(), |at| at + 1);
            text.push_str(&part[end..]);
        }
        text.split("\r\n")
            .map(|line| line.trim_end().to_string())
            .collect()
    }

    #[test]
    fn a_screen_shows_who_leads_and_who_is_gone() {
        let mut view = View::default();
        view.members(&json!({"members": [member("b", "follower", 0), member("a", "leader", 20), member("c", "follower", 9000)]}));
        view.choose(1);
        let told = Told {
            at: 1_700_000_000_123,
            name: "b".to_string(),
            member: "b".to_string(),
            record: json!({"kind": "leader-elected", "says": "a leads in term 7", "explain": "So it is."}),
        };
        let events = VecDeque::from([Line::of(&told)]);
        view.explain = true;
        let screen = plain(&view.draw(&events, true, 110, 14));
        assert_eq!(screen.len(), 14, "{screen:#?}");
        assert_eq!(
            screen[0],
            "Pontoon  leader a  term 7  seen through b  0 req/s  committed 11"
        );
        assert!(screen[3].starts_with("a       ★ leader"), "{}", screen[3]);
        assert!(
            screen[4].starts_with("b       ● follower") && screen[4].ends_with("in 1.50 ms"),
            "{}",
            screen[4]
        );
        assert!(
            screen[5].contains("✕ no answer") && screen[5].ends_with("9.0 s ago"),
            "{}",
            screen[5]
        );
        assert_eq!(screen[7], "22:13:20.123  b         a leads in term 7");
        assert_eq!(screen[8], format!("{:24}So it is.", ""));
        assert!(screen[13].starts_with("↑↓ choose  k kill"));
        assert_eq!(view.chosen().as_deref(), Some("b"));
    }

    #[test]
    fn nothing_is_wider_than_the_screen_and_what_says_least_goes_first() {
        let mut view = View::default();
        view.members(&json!({"members": [member("a", "leader", 20), member("b", "follower", 0)]}));
        view.explain = true;
        let told = Told {
            at: 0,
            name: "b".to_string(),
            member: "b".to_string(),
            record: json!({"kind": "vote", "says": "word ".repeat(40), "explain": "word ".repeat(40)}),
        };
        let events = VecDeque::from([Line::of(&told)]);
        for (width, headings) in [
            (
                100,
                "member role term log committed applied behind req/s answered",
            ),
            (80, "member role term log committed applied behind req/s answered"),
            (60, "member role term log behind req/s answered"),
            (44, "member role term log answered"),
            (30, "member role term"),
            (12, "member rol…"),
        ] {
            let screen = plain(&view.draw(&events, true, width, 20));
            assert_eq!(screen.len(), 20, "{width}");
            for line in &screen {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            let shown: Vec<&str> = screen[2].split_whitespace().collect();
            assert_eq!(shown.join(" "), headings, "{width}");
            assert!(
                width < 44 || screen.concat().contains("q quit"),
                "{width}: {screen:#?}"
            );
        }
    }

    #[test]
    fn of_a_member_that_was_never_heard_nothing_is_made_up() {
        let mut view = View::default();
        let silent = json!({"id": "c", "name": "c", "here": false, "age_ms": null, "figures": null});
        view.members(&json!({"now": 1000, "members": [silent]}));
        let screen = plain(&view.draw(&VecDeque::new(), true, 80, 10));
        let cells: Vec<&str> = screen[3].split_whitespace().collect();
        assert_eq!(cells.join(" "), "c ✕ no answer – – – – – – never");
        assert!(
            screen[9].contains("s start") && !screen[9].contains("p pause"),
            "{}",
            screen[9]
        );
        // Known through one member, it stays so through another that has not heard of it.
        view.members(&json!({"now": 2000, "members": [member("c", "follower", 0)]}));
        view.members(&json!({"now": 4500, "members": [silent]}));
        let screen = plain(&view.draw(&VecDeque::new(), true, 80, 10));
        let cells: Vec<&str> = screen[3].split_whitespace().collect();
        assert_eq!(cells.join(" "), "c ✕ no answer 7 12 11 10 0 – 2.5 s ago");
    }

    #[test]
    fn when_nobody_answers_nobody_leads() {
        let mut view = View::default();
        view.members(&json!({"members": [member("a", "leader", 20)]}));
        view.nobody(Duration::from_millis(1480));
        let screen = plain(&view.draw(&VecDeque::new(), false, 80, 10));
        assert_eq!(
            screen[0],
            "Pontoon  leader none  term –  seen through nobody  0 req/s  committed 11"
        );
        assert!(screen[3].ends_with("1.5 s ago"), "{}", screen[3]);
        assert_eq!(screen[9], "e explain  q quit");
    }

    #[test]
    fn without_a_leader_there_is_none() {
        let mut view = View::default();
        view.members(&json!({"members": [member("a", "leader", 9000)]}));
        view.choose(-3);
        assert!(plain(&view.draw(&VecDeque::new(), false, 80, 10))[0].starts_with("Pontoon  leader none"));
    }

    #[test]
    fn requests_are_counted_between_samples() {
        let mut view = View::default();
        let mut sample = member("a", "leader", 0);
        view.members(&json!({"members": [sample]}));
        sample["figures"]["now"] = 1500.into();
        sample["figures"]["requests"] = 105.into();
        view.members(&json!({"members": [sample]}));
        assert_eq!(view.rows[0].rate, 40.0);
    }
}
