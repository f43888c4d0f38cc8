//! How bytes travel: what HTTP/2 and gRPC cost is decided by how often the system is called and memory is asked for.
//!
//! [`gathered`] has many small frames share one write · [`turn`] all that is said in a turn of a connection's task ·
//! [`together`] makes that task one with those of its requests · [`codec`] has messages live in buffers of their own size ·
//! [`framing`] is gRPC's own, for what is encoded already.

pub mod codec;
pub mod framing;
pub mod gathered;
pub mod together;
pub mod turn;

pub use gathered::Gathered;
pub use together::{Begun, Together};
pub use turn::postponed;
