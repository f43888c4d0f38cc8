//! Pontoon: a replicated key-value store that speaks the etcd v3 API.
//!
//! # The tour
//!
//! **A put.** `api::kv` checks it; [`server::propose`] puts it into a command and finds the leader; openraft appends it
//! through [`raft::log_store`] to [`storage::wal`], and [`raft::network`] sends the same bytes to the followers; once a
//! quorum has it on disk, [`raft::state_machine`] applies it by [`state`] to [`mvcc`], publishes the revision, and
//! answers.
//!
//! **A linearizable get.** [`server::read`] passes the barrier: [`raft::read_index`] confirms the leader and says what
//! must be applied; then a view of [`mvcc`] is read, without a lock.
//!
//! **A watch.** [`raft::state_machine`] tells [`server::watches`] what changed, through [`raft::feed`]; its hub hands it to
//! those who watch, and reads to those behind from [`mvcc`]; `api::watch` sends it.
//!
//! **The same put by curl.** [`http`] takes JSON to the message and hands it to `api::kv` as gRPC would.
//!
//! The modules, inner ones first: [`storage`], [`mvcc`], [`state`], [`backup`], [`raft`], [`server`], [`api`],
//! [`http`], [`cli`]. Each knows only those before it, and the leaves [`pb`], [`error`], [`config`], [`journal`],
//! [`metrics`], [`tls`], [`dns`] and [`wire`].
//! `docs/architecture.md` has the rest.
// The head of a module speaks of its insides too.
#![allow(rustdoc::private_intra_doc_links)]

pub mod api;
pub mod backup;
pub mod cli;
pub mod client;
pub mod config;
pub mod dns;
pub mod error;
pub mod http;
pub mod journal;
pub mod metrics;
pub mod mvcc;
pub mod raft;
pub mod server;
pub mod state;
pub mod storage;
pub mod tls;
pub mod wire;

/// Messages and services generated from `proto/`, one module a package.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod pb {
    /// etcd's API: KV, Watch, Lease, Cluster, Maintenance, Auth.
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    /// Key-value pairs and events.
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    /// Users, roles, permissions.
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    /// The lock service.
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    /// The election service.
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
    /// Our own packages.
    pub mod pontoon {
        /// What is in the log.
        pub mod command {
            tonic::include_proto!("pontoon.command");
        }
        /// Member to member.
        pub mod peer {
            tonic::include_proto!("pontoon.peer");
        }
    }
    /// All of the above, described: for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

    /// The same, to be asked: which services and methods there are, and what their messages hold.
    pub static REFLECTION: std::sync::LazyLock<prost_reflect::DescriptorPool> =
        std::sync::LazyLock::new(|| {
            prost_reflect::DescriptorPool::decode(DESCRIPTORS).expect("they were encoded by the build")
        });

    /// The path by which gRPC calls a method.
    pub fn path(method: &prost_reflect::MethodDescriptor) -> String {
        format!("/{}/{}", method.parent_service().full_name(), method.name())
    }
}
