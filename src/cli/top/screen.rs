//! What `top` shows: text and colours of one screen.

use std::collections::VecDeque;

use serde_json::Value;

use super::super::events::{Told, time_of_day};

/// Older figures are of a member that is not reached.
const STALE_MS: u64 = 1600;
/// Colours of terms, each unlike its neighbours: numbers of the terminal's 256.
const TERMS: [u8; 6] = [75, 173, 113, 140, 179, 80];

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

/// One member.
#[derive(Debug, Default, Clone)]
struct Row {
    name: String,
    alive: bool,
    role: String,
    term: u64,
    last: u64,
    committed: u64,
    applied: u64,
    requests: (u64, u64),
    rate: f64,
    heard_ms: Option<u64>,
    rtt_us: Option<u64>,
    leads: bool,
}

/// What is seen.
#[derive(Default)]
pub struct View {
    rows: Vec<Row>,
    through: String,
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
        let mut rows: Vec<Row> = members.iter().map(|member| row(member, leader)).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        for row in &mut rows {
            if let Some(before) = self.rows.iter().find(|before| before.name == row.name) {
                row.follow(before);
            }
        }
        let here = members.iter().find(|member| member["here"] == true);
        self.through = here
            .map_or("", |here| here["name"].as_str().unwrap_or_default())
            .to_string();
        self.rows = rows;
        self.choose(0);
    }

    /// The screen, as what is sent to a terminal.
    pub fn draw(&self, events: &VecDeque<Line>, may_act: bool, width: usize, height: usize) -> String {
        let mut lines = vec![self.head(), String::new(), header()];
        let head = self.rows.iter().map(|row| row.last).max().unwrap_or(0);
        let rows = self.rows.iter().enumerate();
        lines.extend(rows.map(|(at, row)| row.line(head, at == self.chosen, width)));
        lines.push(String::new());
        let room = height.saturating_sub(lines.len() + 2);
        lines.extend(self.events(events, room, width));
        lines.resize(height.saturating_sub(2).max(lines.len()), String::new());
        lines.push(cut(&self.notice, width));
        let keys = match may_act {
            true => {
                "↑↓ choose  k kill  p pause/resume  s stop/start  w wipe  l lead  c cut off  e explain  q quit"
            }
            false => "↑↓ choose  e explain  q quit",
        };
        lines.push(format!("\x1b[2m{}\x1b[0m", cut(keys, width)));
        lines.truncate(height);
        // Each line is drawn over the one before it: nothing flickers.
        format!("\x1b[H{}\x1b[J", lines.join("\x1b[K\r\n"))
    }

    fn head(&self) -> String {
        let leader = self.rows.iter().find(|row| row.leads);
        let term = self.rows.iter().filter(|row| row.alive).map(|row| row.term).max();
        let committed = self.rows.iter().map(|row| row.committed).max().unwrap_or(0);
        let rate: f64 = self.rows.iter().map(|row| row.rate).sum();
        let leader = leader.map_or("\x1b[31mnone\x1b[0m".to_string(), |row| {
            format!("\x1b[1m{}\x1b[0m", row.name)
        });
        format!(
            "Pontoon  leader {leader}  term {}  committed {committed}  {rate:.0} req/s  \x1b[2mseen through {}\x1b[0m",
            term.unwrap_or(0),
            self.through
        )
    }

    /// The newest events that there is room for, newest first.
    fn events(&self, events: &VecDeque<Line>, room: usize, width: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for event in events.iter().rev() {
            let colour = match (event.trouble, event.win) {
                (true, _) => "\x1b[31m",
                (_, true) => "\x1b[32m",
                _ => "",
            };
            lines.push(format!("{colour}{}\x1b[0m", cut(&event.says, width)));
            if self.explain {
                let explain = format!("{:24}{}", "", event.explain);
                lines.push(format!("\x1b[2m{}\x1b[0m", cut(&explain, width)));
            }
            if lines.len() >= room {
                break;
            }
        }
        lines.truncate(room);
        lines
    }
}

fn row(member: &Value, leader: Option<&Value>) -> Row {
    let figures = &member["figures"];
    let number = |name: &str| figures[name].as_u64().unwrap_or(0);
    let age = member["age_ms"].as_u64();
    let alive = age.is_some_and(|age| age < STALE_MS);
    let leads = leader.is_some_and(|leader| leader["id"] == member["id"]);
    let id = member["id"].as_str().unwrap_or_default();
    let role = figures["role"].as_str().unwrap_or("-");
    Row {
        name: member["name"].as_str().unwrap_or_default().to_string(),
        role: match (alive, role) {
            (false, _) => "✕ no answer".to_string(),
            (true, "leader") => "★ leader".to_string(),
            (true, "candidate") => "? candidate".to_string(),
            (true, "learner") => "◇ learner".to_string(),
            (true, _) if figures["leader"].is_null() => "● no leader".to_string(),
            (true, role) => format!("● {role}"),
        },
        alive,
        term: number("term"),
        last: number("last"),
        committed: number("committed"),
        applied: number("applied"),
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
    /// Requests a second, smoothed.
    fn follow(&mut self, before: &Row) {
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

    fn line(&self, head: u64, chosen: bool, width: usize) -> String {
        let lag = head.saturating_sub(self.last);
        let heard = match self.heard_ms {
            _ if self.alive => String::new(),
            Some(ms) => format!("{:.1} s ago", ms as f64 / 1000.0),
            None => "never".to_string(),
        };
        let rtt = self
            .rtt_us
            .map_or(String::new(), |us| format!("{:.2} ms", us as f64 / 1000.0));
        let text = format!(
            "{} {:<10} {:<12} {:>5} {:>9} {:>9} {:>9} {:>7} {:>9} {:>6.0}  {heard}",
            if chosen { ">" } else { " " },
            self.name,
            self.role,
            self.term,
            self.last,
            self.committed,
            self.applied,
            lag,
            rtt,
            self.rate,
        );
        let colour = match self.alive {
            true => format!("\x1b[38;5;{}m", TERMS[self.term as usize % TERMS.len()]),
            false => "\x1b[2m".to_string(),
        };
        let weight = if self.leads { "\x1b[1m" } else { "" };
        format!("{colour}{weight}{}\x1b[0m", cut(&text, width))
    }
}

fn header() -> String {
    format!(
        "\x1b[2m  {:<10} {:<12} {:>5} {:>9} {:>9} {:>9} {:>7} {:>9} {:>6}  heard\x1b[0m",
        "member", "role", "term", "log", "committed", "applied", "behind", "there+back", "req/s"
    )
}

/// No longer than the screen is wide.
fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
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
        assert!(
            screen[0].starts_with("Pontoon  leader a  term 7  committed 11"),
            "{}",
            screen[0]
        );
        assert!(screen[0].ends_with("seen through b"));
        assert!(screen[3].starts_with("  a          ★ leader"), "{}", screen[3]);
        assert!(
            screen[4].starts_with("> b          ● follower") && screen[4].contains("1.50 ms"),
            "{}",
            screen[4]
        );
        assert!(
            screen[5].contains("✕ no answer") && screen[5].ends_with("9.0 s ago"),
            "{}",
            screen[5]
        );
        assert_eq!(screen[7], "22:13:20.123  b         a leads in term 7");
        assert_eq!(screen[8].trim(), "So it is.");
        assert!(screen[13].starts_with("↑↓ choose  k kill"));
        assert_eq!(view.chosen().as_deref(), Some("b"));
        let narrow = plain(&view.draw(&events, false, 20, 5));
        assert!(
            narrow.len() == 5 && narrow[3..].iter().all(|line| line.chars().count() <= 20),
            "{narrow:#?}"
        );
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
