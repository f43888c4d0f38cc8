//! Prometheus' text format: a metric's name, kind and meaning, then its samples, a line each.

use std::fmt::{Display, Write};

use crate::metrics::Histogram;

/// The text, metric by metric.
pub struct Page(pub String);

impl Page {
    /// What comes before the samples of a metric.
    pub fn head(&mut self, kind: &str, name: &str, meaning: &str) {
        // Writing to memory does not fail.
        let _ = writeln!(self.0, "# HELP {name} {meaning}\n# TYPE {name} {kind}");
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, text)| format!("{label}=\"{}\"", escape(text)))
            .collect();
        let _ = match labels.is_empty() {
            true => writeln!(self.0, "{name} {value}"),
            false => writeln!(self.0, "{name}{{{}}} {value}", labels.join(",")),
        };
    }

    /// Goes up and down.
    pub fn gauge(&mut self, name: &str, meaning: &str, value: impl Display) {
        self.head("gauge", name, meaning);
        self.sample(name, &[], value);
    }

    /// Goes up.
    pub fn counter(&mut self, name: &str, meaning: &str, value: impl Display) {
        self.head("counter", name, meaning);
        self.sample(name, &[], value);
    }

    /// Always 1: what matters is the label.
    pub fn fact(&mut self, name: &str, meaning: &str, label: &str, text: &str) {
        self.head("gauge", name, meaning);
        self.sample(name, &[(label, text)], 1);
    }

    /// How long something took.
    pub fn histogram(&mut self, name: &str, meaning: &str, histogram: &Histogram) {
        self.head("histogram", name, meaning);
        self.buckets(name, &[], histogram);
    }

    /// The samples of one histogram, of several that may be under one head.
    pub fn buckets(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let cumulative = histogram.cumulative();
        for (bound, count) in &cumulative {
            let bound = match bound.is_finite() {
                true => bound.to_string(),
                false => "+Inf".to_string(),
            };
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(&format!("{name}_bucket"), &labels, count);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum());
        let count = cumulative.last().map_or(0, |(_, count)| *count);
        self.sample(&format!("{name}_count"), labels, count);
    }
}

/// A label's text, as the format wants it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page(String::new());
        page.gauge("a_bytes", "How \"big\".", 7);
        page.fact("b", "Who.", "name", "x\"\\\n");
        let histogram = Histogram::new(500, 2);
        histogram.observe(std::time::Duration::from_millis(1));
        page.head("histogram", "c_seconds", "Long.");
        page.buckets("c_seconds", &[("k", "v")], &histogram);
        let expected = "# HELP a_bytes How \"big\".\n# TYPE a_bytes gauge\na_bytes 7\n\
            # HELP b Who.\n# TYPE b gauge\nb{name=\"x\\\"\\\\\\n\"} 1\n\
            # HELP c_seconds Long.\n# TYPE c_seconds histogram\n\
            c_seconds_bucket{k=\"v\",le=\"0.0005\"} 0\nc_seconds_bucket{k=\"v\",le=\"0.001\"} 1\n\
            c_seconds_bucket{k=\"v\",le=\"+Inf\"} 1\nc_seconds_sum{k=\"v\"} 0.001\nc_seconds_count{k=\"v\"} 1\n";
        assert_eq!(page.0, expected);
    }
}
