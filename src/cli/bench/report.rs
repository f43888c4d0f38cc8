//! What a run found, as a table and as JSON.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::format::{Answer, size, table};
use super::measured::{Measured, per_second};
use super::plan::{Plan, Work};
use super::processes::Usage;
use super::schedule::End;

/// A run and what it found.
pub struct Report {
    /// What was asked for.
    pub plan: Plan,
    /// Whom it was asked of.
    pub endpoints: Vec<String>,
    /// Over how many connections.
    pub connections: usize,
    /// What it found.
    pub found: Found,
}

/// What a run found.
pub struct Found {
    /// How long was measured.
    pub elapsed: Duration,
    /// The operations.
    pub measured: Measured,
    /// For `watch`: the writes, and how many events never came.
    pub writes: Option<(Measured, u64)>,
    /// Operations that were due and that no client was free for.
    pub not_started: u64,
    /// What this process used.
    pub own: Usage,
    /// What the servers used, by process id.
    pub servers: Vec<(u32, Usage)>,
    /// Each second, if asked for.
    pub seconds: Vec<Second>,
}

/// A second of a run.
pub struct Second {
    /// Its end, in seconds from the beginning of what is measured.
    at_s: u64,
    operations: u64,
    errors: u64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Second {
    /// Of what was measured in it.
    pub fn of(at_s: u64, measured: &Measured) -> Second {
        Second {
            at_s,
            operations: measured.answered,
            errors: measured.failed(),
            p50_ms: measured.percentile_ms(50.0),
            p99_ms: measured.percentile_ms(99.0),
        }
    }

    /// For people.
    pub fn line(&self) -> String {
        format!(
            "{:>5} s {:>9}/s   p50 {:>6} ms   p99 {:>6} ms   errors {}",
            self.at_s,
            grouped(self.operations as f64),
            milliseconds(self.p50_ms),
            milliseconds(self.p99_ms),
            self.errors
        )
    }

    fn json(&self) -> Value {
        json!({
            "at_s": self.at_s,
            "operations": self.operations,
            "errors": self.errors,
            "p50_ms": rounded(self.p50_ms),
            "p99_ms": rounded(self.p99_ms),
        })
    }
}

impl Report {
    /// Everything that failed.
    fn errors(&self) -> Measured {
        let mut all = Measured::default();
        all.add(&self.found.measured);
        if let Some((writes, _)) = &self.found.writes {
            all.add(writes);
        }
        all
    }

    /// Microseconds of CPU for each operation.
    fn cpu_us_per_op<'a>(&self, usages: impl IntoIterator<Item = &'a Usage>) -> f64 {
        let cpu_s: f64 = usages.into_iter().map(|usage| usage.cpu_s).sum();
        cpu_s * 1e6 / self.found.measured.answered.max(1) as f64
    }

    fn servers(&self) -> impl Iterator<Item = &Usage> {
        self.found.servers.iter().map(|(_, usage)| usage)
    }

    /// What is written to disks for each operation; none where it may not be read.
    fn written_per_op(&self) -> Option<f64> {
        let written: Option<u64> = self.servers().map(|usage| usage.written_bytes).sum();
        written.map(|written| written as f64 / self.found.measured.answered.max(1) as f64)
    }

    /// What an operation is.
    fn unit(&self) -> &'static str {
        match self.plan.work {
            Work::Watch { .. } => "events delivered",
            _ => "operations",
        }
    }

    fn settings(&self) -> Value {
        let plan = &self.plan;
        let (duration, total) = match plan.length.end {
            End::After(duration) => (Some(duration.as_secs_f64()), None),
            End::Total(total) => (None, Some(total)),
        };
        let mut settings = json!({
            "seed": plan.seed,
            "endpoints": self.endpoints,
            "clients": plan.clients,
            "connections": self.connections,
            "threads": plan.threads,
            "rate": plan.rate,
            "warmup_s": plan.length.warmup.as_secs_f64(),
            "duration_s": duration,
            "total": total,
            "key_size": plan.space.name(0).len(),
            "value_size": plan.value_size,
            "key_space": plan.space.size,
            "distribution": plan.distribution_name,
        });
        let own = match plan.work {
            Work::Get => json!({"serializable": plan.serializable}),
            Work::Range { keys } => json!({"serializable": plan.serializable, "keys": keys}),
            Work::Mixed { reads } => json!({"serializable": plan.serializable, "reads": reads}),
            Work::Watch { watchers, streams } => json!({"watchers": watchers, "streams": streams}),
            Work::LeaseGrant | Work::LeaseKeepAlive => json!({"ttl_s": plan.ttl_s}),
            Work::Put | Work::Txn => json!({}),
        };
        if let (Some(settings), Value::Object(own)) = (settings.as_object_mut(), own) {
            settings.extend(own);
        }
        settings
    }

    fn servers_json(&self) -> Value {
        let process = |(pid, usage): &(u32, Usage)| {
            json!({
                "pid": pid,
                "cpu_s": rounded(usage.cpu_s),
                "resident_bytes": usage.resident_bytes,
                "written_bytes": usage.written_bytes,
            })
        };
        json!({
            "cpu_us_per_op": rounded(self.cpu_us_per_op(self.servers())),
            "written_bytes_per_op": self.written_per_op().map(rounded),
            "resident_bytes": self.servers().map(|usage| usage.resident_bytes).max(),
            "processes": self.found.servers.iter().map(process).collect::<Value>(),
        })
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let mut row = |name: &str, value: String| rows.push(vec![name.to_string(), value]);
        let measured = &self.found.measured;
        let plan = &self.plan;
        let rate = plan.rate.map_or(String::new(), |rate| format!(", {rate}/s due"));
        row("clients", format!("{}{rate}", plan.clients));
        row(
            "connections",
            format!("{} to {}", self.connections, self.endpoints.len()),
        );
        row("seed", plan.seed.to_string());
        row("measured", format!("{:.2} s", self.found.elapsed.as_secs_f64()));
        row(self.unit(), grouped(measured.answered as f64));
        row(
            "a second",
            grouped(per_second(measured.answered, self.found.elapsed)),
        );
        if let Some((writes, missing)) = &self.found.writes {
            row("writes", grouped(writes.answered as f64));
            row("events missing", grouped(*missing as f64));
        }
        if measured.missed > 0 {
            row("missed", grouped(measured.missed as f64));
        }
        if plan.rate.is_some() {
            row("not started", grouped(self.found.not_started as f64));
        }
        for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)] {
            row(
                name,
                format!("{} ms", milliseconds(measured.percentile_ms(percent))),
            );
        }
        row("max", format!("{} ms", milliseconds(measured.max_ms())));
        let errors = self.errors().errors;
        if errors.is_empty() {
            row("errors", "0".to_string());
        }
        for (code, count) in errors {
            row(&format!("errors: {code}"), grouped(count as f64));
        }
        row(
            "client CPU/op",
            format!("{:.1} us", self.cpu_us_per_op([&self.found.own])),
        );
        if !self.found.servers.is_empty() {
            row(
                "servers CPU/op",
                format!("{:.1} us", self.cpu_us_per_op(self.servers())),
            );
            let written = self.written_per_op();
            row(
                "servers written/op",
                written.map_or("unknown".to_string(), |bytes| format!("{bytes:.0} B")),
            );
        }
        for (pid, usage) in &self.found.servers {
            let resident = size(i64::try_from(usage.resident_bytes).unwrap_or(i64::MAX));
            row(&format!("memory of {pid}"), resident);
        }
        rows
    }
}

impl Answer for Report {
    fn json(&self) -> Value {
        let measured = &self.found.measured;
        let elapsed = self.found.elapsed;
        let mut report = Map::new();
        let mut field = |name: &str, value: Value| report.insert(name.to_string(), value);
        field("workload", json!(self.plan.name));
        field("settings", self.settings());
        field("elapsed_s", json!(rounded(elapsed.as_secs_f64())));
        field("operations", json!(measured.answered));
        field(
            "ops_per_s",
            json!(rounded(per_second(measured.answered, elapsed))),
        );
        field("missed", json!(measured.missed));
        field("not_started", json!(self.found.not_started));
        field("errors", json!(self.errors().errors));
        field("latency_ms", latency_json(measured));
        if let Some((writes, missing)) = &self.found.writes {
            field(
                "writes",
                json!({"operations": writes.answered, "latency_ms": latency_json(writes)}),
            );
            field("events_missing", json!(missing));
        }
        field(
            "client_cpu_us_per_op",
            json!(rounded(self.cpu_us_per_op([&self.found.own]))),
        );
        if !self.found.servers.is_empty() {
            field("servers", self.servers_json());
        }
        if self.plan.seconds {
            field("seconds", self.found.seconds.iter().map(Second::json).collect());
        }
        Value::Object(report)
    }

    fn table(&self) -> Option<String> {
        Some(table(&[&self.plan.name, ""], self.rows()))
    }
}

fn latency_json(measured: &Measured) -> Value {
    json!({
        "count": measured.recorded(),
        "mean": rounded(measured.mean_ms()),
        "p50": rounded(measured.percentile_ms(50.0)),
        "p90": rounded(measured.percentile_ms(90.0)),
        "p99": rounded(measured.percentile_ms(99.0)),
        "p99_9": rounded(measured.percentile_ms(99.9)),
        "max": rounded(measured.max_ms()),
    })
}

/// To a thousandth.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// With three digits that count, as far as there are so many.
fn milliseconds(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.3}"),
        ..100.0 => format!("{value:.2}"),
        _ => format!("{value:.1}"),
    }
}

/// A whole number, with commas between thousands.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tonic::Code;

    use super::super::measured::Outcome;
    use super::super::plan::plan;
    use super::super::schedule::Interval;
    use super::*;

    /// Two seconds in which 1000 operations took a millisecond each, and one failed.
    fn report(line: &str) -> Report {
        let from = Instant::now();
        let interval = Interval { from, until: None };
        let mut measured = Measured::default();
        let millisecond = from + Duration::from_millis(1);
        for _ in 0..1000 {
            measured.record(&interval, from, millisecond, Outcome::Done);
        }
        measured.record(&interval, from, millisecond, Outcome::Failed(Code::Unavailable));
        let usage = |cpu_s| Usage {
            cpu_s,
            resident_bytes: 50_000_000,
            written_bytes: Some(300_000),
        };
        Report {
            plan: plan(line).expect("good options"),
            endpoints: vec!["http://a:1".to_string(), "http://b:2".to_string()],
            connections: 4,
            found: Found {
                elapsed: Duration::from_secs(2),
                seconds: vec![Second::of(1, &measured)],
                measured,
                writes: None,
                not_started: 7,
                own: usage(0.01),
                servers: vec![(11, usage(0.2)), (12, usage(0.1))],
            },
        }
    }

    #[test]
    fn figures_are_per_second_and_per_operation() {
        let json = report("get --consistency s --seed 5 --seconds").json();
        assert_eq!(json["workload"], "get");
        assert_eq!(json["operations"], 1000);
        assert_eq!(json["ops_per_s"], 500.0);
        assert_eq!(json["errors"], json!({"Unavailable": 1}));
        assert_eq!(json["client_cpu_us_per_op"], 10.0);
        assert_eq!(json["servers"]["cpu_us_per_op"], 300.0);
        assert_eq!(json["servers"]["written_bytes_per_op"], 600.0);
        assert_eq!(json["servers"]["processes"][1]["pid"], 12);
        assert_eq!(json["latency_ms"]["count"], 1000);
        assert_eq!(json["seconds"][0]["operations"], 1000);
        let settings = &json["settings"];
        assert_eq!(
            (&settings["seed"], &settings["serializable"]),
            (&json!(5), &json!(true))
        );
    }

    #[test]
    fn what_was_not_asked_for_is_left_out() {
        let mut report = report("put");
        report.found.servers.clear();
        let json = report.json();
        for name in ["servers", "seconds", "writes", "events_missing"] {
            assert!(json.get(name).is_none(), "{name}");
        }
        let table = report.table().expect("a table");
        assert!(
            !table.contains("servers") && !table.contains("not started"),
            "{table}"
        );
    }

    #[test]
    fn the_table_tells_what_people_ask_for() {
        let table = report("put --rate 500").table().expect("a table");
        for words in [
            "500/s due",
            "4 to 2",
            "p99.9",
            "not started",
            "errors: Unavailable",
            "memory of 11",
            "50 MB",
        ] {
            assert!(table.contains(words), "{words} is not in\n{table}");
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [grouped(0.0), grouped(999.0), grouped(1_234_567.4)],
            ["0", "999", "1,234,567"]
        );
        assert_eq!(
            [milliseconds(0.07123), milliseconds(12.345), milliseconds(1234.5)],
            ["0.071", "12.35", "1234.5"]
        );
    }
}
