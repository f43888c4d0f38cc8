//! What the cases share: clusters of real processes, a real etcd, a sequential model, and checkers of histories.

pub mod cluster;
pub mod etcd;
pub mod generate;
pub mod model;
pub mod process;
pub mod proxy;
pub mod rpc;
pub mod ties;
