//! The test binary: each case is a module, what they share is in `tests/support`.

#[allow(dead_code, reason = "what the cases share; the long forms use more of it")]
#[path = "../support/mod.rs"]
mod support;

mod architecture;
mod auth;
mod backup;
mod bad_input;
mod bench;
mod chaos;
mod checkers;
mod cli;
mod clients;
mod compaction_races;
mod concurrency;
mod crash;
mod differential;
mod differential_all;
mod discovery;
mod doctor;
mod etcdctl;
mod etcdctl_parity;
mod events;
mod failover;
mod gateway;
mod grpc;
mod http;
mod jwt;
mod learner;
mod lease;
mod maintenance;
mod membership;
mod metrics;
mod page;
mod permissions;
mod range_stream;
mod readme;
mod recovery;
mod served;
mod store_counts;
mod tls;
mod tls_admission;
mod tls_per_url;
mod top;
mod watch;
mod watch_differential;
mod watch_faults;
