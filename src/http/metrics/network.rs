//! The other members: how many bytes go to and fro, how long that takes, and what fails. Members are named by their
//! ids, in hex; only those that are members now are there.

use std::sync::Arc;

use super::text::Page;
use crate::metrics::traffic::Exchange;
use crate::metrics::{Histogram, Metrics};

/// A name, its kind, its meaning, what its label is called, and what it says of an exchange.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    fn(&Exchange) -> u64,
);

const ROWS: [Row; 8] = [
    (
        "etcd_network_peer_sent_bytes_total",
        "counter",
        "Bytes of requests and answers to a member.",
        "To",
        |exchange| exchange.sent_bytes.get(),
    ),
    (
        "etcd_network_peer_received_bytes_total",
        "counter",
        "Bytes of requests and answers from a member.",
        "From",
        |exchange| exchange.received_bytes.get(),
    ),
    (
        "etcd_network_peer_sent_failures_total",
        "counter",
        "Requests to a member for which there was no connection, or whose connection broke.",
        "To",
        |exchange| exchange.sent_failures.get(),
    ),
    (
        "etcd_network_peer_received_failures_total",
        "counter",
        "Requests of a member that broke off.",
        "From",
        |exchange| exchange.received_failures.get(),
    ),
    (
        "etcd_network_snapshot_send_success",
        "counter",
        "Snapshots that arrived at a member.",
        "To",
        |exchange| exchange.snapshots_sent.succeeded.get(),
    ),
    (
        "etcd_network_snapshot_send_failures",
        "counter",
        "Snapshots that did not arrive at a member.",
        "To",
        |exchange| exchange.snapshots_sent.failed.get(),
    ),
    (
        "etcd_network_snapshot_receive_success",
        "counter",
        "Snapshots that arrived from a member.",
        "From",
        |exchange| exchange.snapshots_received.succeeded.get(),
    ),
    (
        "etcd_network_snapshot_receive_failures",
        "counter",
        "Snapshots of a member that did not arrive whole.",
        "From",
        |exchange| exchange.snapshots_received.failed.get(),
    ),
];

/// The same of this member and another, without what the label is called.
type Pair = (&'static str, &'static str, &'static str, fn(&Exchange) -> u64);

const PAIRS: [Pair; 3] = [
    ("etcd_network_known_peers", "gauge", "The other members.", |_| 1),
    (
        "etcd_network_active_peers",
        "gauge",
        "Whether a member answered when it was asked last.",
        |exchange| u64::from(exchange.answers()),
    ),
    (
        "etcd_network_disconnected_peers_total",
        "counter",
        "How often a member stopped to answer.",
        |exchange| exchange.disconnections.get(),
    ),
];

/// A name, its meaning, what its label is called, and the durations.
type Durations = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Exchange) -> &Histogram,
);

const DURATIONS: [Durations; 3] = [
    (
        "etcd_network_peer_round_trip_time_seconds",
        "How long a small question to a member took, there and back.",
        "To",
        |exchange| &exchange.round_trips,
    ),
    (
        "etcd_network_snapshot_send_total_duration_seconds",
        "How long snapshots to a member took.",
        "To",
        |exchange| &exchange.snapshots_sent.took,
    ),
    (
        "etcd_network_snapshot_receive_total_duration_seconds",
        "How long snapshots from a member took.",
        "From",
        |exchange| &exchange.snapshots_received.took,
    ),
];

/// Another member.
struct Other {
    id: String,
    exchange: Arc<Exchange>,
}

/// Adds it to the page of the member `me`.
pub fn write(page: &mut Page, me: u64, metrics: &Metrics) {
    let all = metrics.traffic.all();
    let other = |(id, exchange): (&u64, &Arc<Exchange>)| Other {
        id: format!("{id:x}"),
        exchange: exchange.clone(),
    };
    let others: Vec<Other> = all.iter().map(other).collect();
    for (name, kind, meaning, label, value) in ROWS {
        page.head(kind, name, meaning);
        for other in &others {
            page.sample(name, &[(label, &other.id)], value(&other.exchange));
        }
    }
    let me = format!("{me:x}");
    for (name, kind, meaning, value) in PAIRS {
        page.head(kind, name, meaning);
        for other in &others {
            let labels = [("Local", me.as_str()), ("Remote", &other.id)];
            page.sample(name, &labels, value(&other.exchange));
        }
    }
    for (name, meaning, label, histogram) in DURATIONS {
        page.head("histogram", name, meaning);
        for other in &others {
            page.buckets(name, &[(label, &other.id)], histogram(&other.exchange));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn members_are_named_by_their_ids_in_hex() {
        let metrics = Metrics::default();
        metrics.traffic.keep(&BTreeSet::from([0xab]));
        let exchange = metrics.traffic.with(0xab).expect("a member");
        exchange.sent_bytes.add(7);
        exchange.asked(Some(Duration::from_millis(1)));
        let mut page = Page(String::new());
        write(&mut page, 0xcd, &metrics);
        for sample in [
            "etcd_network_peer_sent_bytes_total{To=\"ab\"} 7\n",
            "etcd_network_peer_received_bytes_total{From=\"ab\"} 0\n",
            "etcd_network_active_peers{Local=\"cd\",Remote=\"ab\"} 1\n",
            "etcd_network_peer_round_trip_time_seconds_count{To=\"ab\"} 1\n",
        ] {
            assert!(page.0.contains(sample), "{}", page.0);
        }
    }
}
