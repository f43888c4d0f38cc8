//! How bytes travel: what HTTP/2 and gRPC cost is decided by how often the system is called and memory is asked for.
//!
//! [`gathered`] has many small frames share one write · [`turn`] all that is said in a turn of a connection's task · [`codec`] has messages live in buffers of their own size.

pub mod codec;
pub mod gathered;
pub mod turn;

pub use gathered::Gathered;
pub use turn::postponed;
