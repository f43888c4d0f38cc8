//! What clients ask for.

use super::text::Page;
use crate::metrics::{CODES, Calls, Counter, Metrics};

/// The end of a name, its meaning, and what is counted.
type Operation = (&'static str, &'static str, fn(&Metrics) -> &Counter);

/// What is done to the store (`state/counts.rs`).
const OPERATIONS: [Operation; 4] = [
    (
        "range_total",
        "Ranges of the store: of reads served here, and of commands applied here.",
        |metrics| &metrics.ranges,
    ),
    ("put_total", "Puts applied here.", |metrics| &metrics.puts),
    ("delete_total", "Deletes applied here.", |metrics| {
        &metrics.deletes
    }),
    (
        "txn_total",
        "Passes over the store of more than one range, put or delete.",
        |metrics| &metrics.txns,
    ),
];

/// Adds it to the page.
pub fn write(page: &mut Page, metrics: &Metrics) {
    for (name, meaning, counter) in OPERATIONS {
        // Under both of the names that etcd has had for it.
        for prefix in ["etcd_mvcc", "etcd_debugging_mvcc"] {
            page.counter(&format!("{prefix}_{name}"), meaning, counter(metrics).get());
        }
    }
    page.counter(
        "etcd_server_health_success",
        "Good answers of /health.",
        metrics.health_successes.get(),
    );
    page.counter(
        "etcd_server_health_failures",
        "Bad answers of /health.",
        metrics.health_failures.get(),
    );
    page.counter(
        "etcd_network_client_grpc_received_bytes_total",
        "Bytes of messages from clients.",
        metrics.client_received_bytes.get(),
    );
    page.counter(
        "etcd_network_client_grpc_sent_bytes_total",
        "Bytes of messages to clients.",
        metrics.client_sent_bytes.get(),
    );
    let name = "etcd_server_client_requests_total";
    page.head("counter", name, "Calls by what clients say their version is.");
    for (version, [unary, streams]) in metrics.versions() {
        for (kind, count) in [("unary", unary), ("stream", streams)] {
            page.sample(name, &[("client_api_version", &version), ("type", kind)], count);
        }
    }
    calls(page, &metrics.all_calls());
}

/// A name, its meaning, and what it counts of a method.
type Column = (&'static str, &'static str, fn(&Calls) -> &Counter);

fn calls(page: &mut Page, all: &[&Calls]) {
    let kinds: [Column; 3] = [
        ("grpc_server_started_total", "Calls begun.", |calls| {
            &calls.started
        }),
        (
            "grpc_server_msg_received_total",
            "Messages from clients.",
            |calls| &calls.received,
        ),
        ("grpc_server_msg_sent_total", "Messages to clients.", |calls| {
            &calls.sent
        }),
    ];
    for (name, meaning, counter) in kinds {
        page.head("counter", name, meaning);
        for calls in all {
            page.sample(name, &labels(calls), counter(calls).get());
        }
    }
    let name = "grpc_server_handled_total";
    page.head("counter", name, "Calls ended, by their code.");
    for calls in all {
        for (code, count) in CODES.iter().zip(&calls.handled) {
            let labels = [&[("grpc_code", *code)][..], &labels(calls)].concat();
            page.sample(name, &labels, count.get());
        }
    }
    let name = "grpc_server_handling_seconds";
    let timed: Vec<_> = all
        .iter()
        .filter_map(|calls| Some((calls, calls.handling.as_ref()?)))
        .collect();
    if !timed.is_empty() {
        page.head(
            "histogram",
            name,
            "How long calls took; of streams, until their end.",
        );
    }
    for (calls, handling) in timed {
        page.buckets(name, &labels(calls), handling);
    }
}

fn labels(calls: &Calls) -> [(&str, &str); 3] {
    [
        ("grpc_method", &calls.method),
        ("grpc_service", &calls.service),
        ("grpc_type", calls.kind),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_counted_from_zero() {
        let mut page = Page(String::new());
        write(&mut page, &Metrics::new(true));
        let sample = "grpc_server_handled_total{grpc_code=\"Unavailable\",grpc_method=\"Watch\",\
            grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 0\n";
        assert!(page.0.contains(sample), "{}", page.0);
        assert!(page.0.contains("grpc_server_handling_seconds_bucket"));
    }
}
