//! Endpoints, one by one: status, health, hash.

use serde_json::{Value, json};

use super::{Answer, Fields, comma_lines, json_header, object, table, whole};
use crate::pb::etcdserverpb::{HashKvResponse, StatusResponse};

/// What each endpoint answered, of those that did.
pub struct Endpoints<T>(pub Vec<T>);

/// A status.
pub struct Status {
    /// Whom it was asked of.
    pub endpoint: String,
    /// What it said.
    pub response: StatusResponse,
}

/// A hash.
pub struct Hash {
    /// Whom it was asked of.
    pub endpoint: String,
    /// What it said.
    pub response: HashKvResponse,
}

/// Whether an endpoint is well.
pub struct Health {
    /// Whom it was asked of.
    pub endpoint: String,
    /// What is wrong; empty if nothing is.
    pub error: String,
    /// How long it took, as Go prints durations.
    pub took: String,
}

impl Endpoints<Status> {
    /// One a line.
    pub fn lines(&self) -> Vec<u8> {
        comma_lines(self.rows())
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let row = |Status { endpoint, response }: &Status| {
            let member_id = response.header.as_ref().map_or(0, |header| header.member_id);
            vec![
                endpoint.clone(),
                format!("{member_id:x}"),
                response.version.clone(),
                size(response.db_size),
                (response.leader == member_id).to_string(),
                response.is_learner.to_string(),
                response.raft_term.to_string(),
                response.raft_index.to_string(),
                response.raft_applied_index.to_string(),
                response.errors.join(", "),
            ]
        };
        self.0.iter().map(row).collect()
    }
}

impl Answer for Endpoints<Status> {
    fn json(&self) -> Value {
        let one = |Status { endpoint, response }: &Status| {
            let status = object(vec![
                ("header", json_header(response.header.as_ref())),
                ("version", json!(response.version)),
                ("dbSize", json!(response.db_size)),
                ("leader", json!(response.leader)),
                ("raftIndex", json!(response.raft_index)),
                ("raftTerm", json!(response.raft_term)),
                ("raftAppliedIndex", json!(response.raft_applied_index)),
                ("errors", json!(response.errors)),
                ("dbSizeInUse", json!(response.db_size_in_use)),
                ("isLearner", json!(response.is_learner)),
            ]);
            json!({"Endpoint": endpoint, "Status": status})
        };
        self.0.iter().map(one).collect()
    }

    fn fields(&self) -> Option<Fields> {
        let one = |fields: Fields, Status { endpoint, response }: &Status| {
            let errors: Vec<String> = response
                .errors
                .iter()
                .map(|e| super::quote(e.as_bytes()))
                .collect();
            fields
                .header(response.header.as_ref())
                .text("Version", &response.version)
                .value("DBSize", response.db_size)
                .value("Leader", response.leader)
                .value("IsLearner", response.is_learner)
                .value("RaftIndex", response.raft_index)
                .value("RaftTerm", response.raft_term)
                .value("RaftAppliedIndex", response.raft_applied_index)
                .value("Errors", format!("[{}]", errors.join(" ")))
                .text("Endpoint", endpoint)
                .blank()
        };
        Some(Fields::default().all(&self.0, one))
    }

    fn table(&self) -> Option<String> {
        let head = [
            "Endpoint",
            "ID",
            "Version",
            "DB Size",
            "Is Leader",
            "Is Learner",
            "Raft Term",
            "Raft Index",
            "Raft Applied Index",
            "Errors",
        ];
        Some(table(&head, self.rows()))
    }
}

impl Endpoints<Hash> {
    /// One a line.
    pub fn lines(&self) -> Vec<u8> {
        comma_lines(self.rows())
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let row = |hash: &Hash| vec![hash.endpoint.clone(), hash.response.hash.to_string()];
        self.0.iter().map(row).collect()
    }
}

impl Answer for Endpoints<Hash> {
    fn json(&self) -> Value {
        let one = |Hash { endpoint, response }: &Hash| {
            let hash = object(vec![
                ("header", json_header(response.header.as_ref())),
                ("hash", json!(response.hash)),
                ("compact_revision", json!(response.compact_revision)),
            ]);
            json!({"Endpoint": endpoint, "HashKV": hash})
        };
        self.0.iter().map(one).collect()
    }

    fn fields(&self) -> Option<Fields> {
        let one = |fields: Fields, Hash { endpoint, response }: &Hash| {
            fields
                .header(response.header.as_ref())
                .text("Endpoint", endpoint)
                .value("Hash", response.hash)
                .blank()
        };
        Some(Fields::default().all(&self.0, one))
    }

    fn table(&self) -> Option<String> {
        Some(table(&["Endpoint", "Hash"], self.rows()))
    }
}

impl Answer for Endpoints<Health> {
    fn json(&self) -> Value {
        let one = |health: &Health| {
            let fields = vec![
                ("endpoint", json!(health.endpoint)),
                ("health", json!(health.error.is_empty())),
                ("took", json!(health.took)),
            ];
            let error = (!health.error.is_empty()).then(|| ("error", json!(health.error)));
            whole(fields.into_iter().chain(error))
        };
        self.0.iter().map(one).collect()
    }

    fn fields(&self) -> Option<Fields> {
        let one = |fields: Fields, health: &Health| {
            fields
                .text("Endpoint", &health.endpoint)
                .value("Health", health.error.is_empty())
                .value("Took", &health.took)
                .value("Error", &health.error)
                .blank()
        };
        Some(Fields::default().all(&self.0, one))
    }

    fn table(&self) -> Option<String> {
        let row = |health: &Health| {
            let healthy = health.error.is_empty().to_string();
            vec![
                health.endpoint.clone(),
                healthy,
                health.took.clone(),
                health.error.clone(),
            ]
        };
        let rows = self.0.iter().map(row).collect();
        Some(table(&["Endpoint", "Health", "Took", "Error"], rows))
    }
}

/// Bytes as etcdctl says them: decimal units, two digits.
pub fn size(bytes: i64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 10.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(
            [size(20480), size(999), size(1_500_000)],
            ["20 kB", "999 B", "1.5 MB"]
        );
    }
}
