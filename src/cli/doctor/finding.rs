//! What a check came to.

use serde_json::{Value, json};

use crate::cli::format::{Answer, table};

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as it should.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One check's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty if there is nothing to do.
    pub next: String,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Ok, found, "")
    }

    /// Works, but.
    pub fn warn(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Warn, found, next)
    }

    /// Does not work.
    pub fn fail(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Fail, found, next)
    }

    fn new(
        check: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        next: impl Into<String>,
    ) -> Finding {
        Finding {
            check,
            verdict,
            found: found.into(),
            next: next.into(),
        }
    }
}

/// Of all checks.
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// The worst of them.
    pub fn worst(&self) -> Verdict {
        let verdicts = self.0.iter().map(|finding| finding.verdict);
        verdicts.max().unwrap_or(Verdict::Ok)
    }

    /// For people: a line for each, and one for what to do.
    pub fn lines(&self) -> String {
        let one = |finding: &Finding| {
            let line = format!(
                "{:<5} {:<9} {}\n",
                finding.verdict.name(),
                finding.check,
                finding.found
            );
            match finding.next.as_str() {
                "" => line,
                next => format!("{line}{:<15} next: {next}\n", ""),
            }
        };
        self.0.iter().map(one).collect()
    }
}

impl Answer for Findings {
    fn json(&self) -> Value {
        let one = |finding: &Finding| {
            json!({
                "check": finding.check,
                "verdict": finding.verdict.name(),
                "found": finding.found,
                "next": finding.next,
            })
        };
        self.0.iter().map(one).collect()
    }

    fn table(&self) -> Option<String> {
        let row = |finding: &Finding| {
            let verdict = finding.verdict.name().to_string();
            vec![
                finding.check.to_string(),
                verdict,
                finding.found.clone(),
                finding.next.clone(),
            ]
        };
        let rows = self.0.iter().map(row).collect();
        Some(table(&["check", "verdict", "found", "next"], rows))
    }
}
