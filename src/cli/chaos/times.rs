//! When a failover was noticed and when it was over, as the members that live have it in their journals.
//!
//! Their clocks are not ours: how far each is ahead is what it says the time is, when that gets here. So a time may be
//! wrong by what an answer takes to get here, and by the millisecond in which journals count.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::members::Member;
use crate::client::{Client, Options};

/// What the journals say of a failover, in milliseconds since the fault.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Failover {
    /// Until somebody missed the leader, or wanted to lead.
    pub detect_ms: Option<f64>,
    /// Until somebody knew a new leader.
    pub elect_ms: Option<f64>,
}

impl Failover {
    /// As these members have it. One that keeps no journal, as etcd's don't, adds nothing.
    pub async fn told_by(survivors: &[&Member], fault: SystemTime, options: &Options) -> Failover {
        let asked = survivors
            .iter()
            .map(|member| told(member, milliseconds(fault), options));
        let told = futures::future::join_all(asked).await;
        told.into_iter()
            .flatten()
            .fold(Failover::default(), Failover::first)
    }

    /// Whatever was earlier.
    fn first(self, other: Failover) -> Failover {
        let earlier = |one: Option<f64>, other: Option<f64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Failover {
            detect_ms: earlier(self.detect_ms, other.detect_ms),
            elect_ms: earlier(self.elect_ms, other.elect_ms),
        }
    }

    /// In the records of one member, whose clock is `ahead`.
    fn in_records(records: &[Value], fault_ms: f64, ahead_ms: f64) -> Failover {
        let first = |kinds: &[&str]| {
            let is_it = |record: &&Value| kinds.iter().any(|kind| record["kind"] == *kind);
            let since = |record: &Value| Some(record["at"].as_f64()? - ahead_ms - fault_ms);
            // Journals count whole milliseconds.
            let behind = records.iter().filter(is_it).filter_map(since);
            let first = behind.filter(|since| *since >= -1.0).reduce(f64::min);
            first.map(|since| since.max(0.0).round())
        };
        Failover {
            detect_ms: first(&["leader-lost", "campaign"]),
            elect_ms: first(&["leader-elected"]),
        }
    }
}

async fn told(member: &Member, fault_ms: f64, options: &Options) -> Option<Failover> {
    let client = Client::with(std::slice::from_ref(&member.url), options.clone()).ok()?;
    let state = read(&client, "/ui/state").await?;
    let ahead_ms = state["now"].as_f64()? - milliseconds(SystemTime::now());
    let journal = read(&client, "/ui/journal").await?;
    let own = journal[format!("{:x}", member.id)].as_array()?;
    Some(Failover::in_records(own, fault_ms, ahead_ms))
}

async fn read(client: &Client, path: &str) -> Option<Value> {
    let page = client.look(path).await.ok()?.all().await.ok()?;
    serde_json::from_slice(&page).ok()
}

fn milliseconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(at: u64, kind: &str) -> Value {
        json!({"at": at, "kind": kind})
    }

    #[test]
    fn a_failover_begins_behind_the_fault_and_ends_with_a_leader() {
        let records = [
            record(1000, "leader-elected"),
            record(5000, "link-down"),
            record(6010, "campaign"),
            record(6000, "leader-lost"),
            record(6050, "leader-elected"),
            record(9000, "leader-lost"),
        ];
        let found = Failover::in_records(&records, 4500.0, 500.0);
        let expected = Failover {
            detect_ms: Some(1000.0),
            elect_ms: Some(1050.0),
        };
        assert_eq!(found, expected);
        assert_eq!(Failover::in_records(&records, 9500.0, 0.0), Failover::default());
    }

    #[test]
    fn the_first_member_to_know_counts() {
        let told = |detect_ms, elect_ms| Failover { detect_ms, elect_ms };
        let both = told(Some(900.0), None).first(told(Some(950.0), Some(960.0)));
        assert_eq!(both, told(Some(900.0), Some(960.0)));
    }
}
