//! Snapshots: the whole state at one entry of the log, as a file.
//!
//! ```text
//! store   the directory: which is current; building, receiving, replacing   uses file, format, names
//! file    one of them, whole: its records, its way to a peer                uses format, names
//! format  frames, written and read                                          uses names
//! names   what files are called
//! ```
//!
//! **When one counts.** A file is written under a temporary name of its own, synced, read back and verified, renamed, and its
//! directory synced; only then is it current, and only then may the log be purged behind it. A file that comes to
//! nothing goes with its last user. A newer snapshot is never replaced by an older one: one that was being built while
//! a newer one arrived is dropped.
//!
//! **A snapshot is no second copy of the state.** Nearly all of it lies in files of the engine that are never changed
//! (`storage/values.rs`). They get a second name beside the snapshot's file, which has a record's place in them for the
//! record. So a snapshot costs a thousandth of the state, and a sync; and until the state has moved on, no space:
//!
//! ```text
//! T-I.snapshot           … | length + 2^31 | crc | kind of the record u8, place | …
//! T-I.00000007.values    another name of state/1/values/00000007.values
//! ```
//!
//! A peer is sent all of it in frames of the first kind, and keeps it as such a file. The engine may be thrown away, or
//! make its files anew: the names here keep what they name. They are durable before the snapshot is named, and go once
//! it is durably gone.

mod file;
mod format;
mod names;
mod store;

pub use file::SnapshotFile;
pub use format::write;
pub use store::SnapshotStore;
